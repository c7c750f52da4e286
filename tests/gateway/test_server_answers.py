"""Whole answers: exact charge, one end, one record, the headers, and the real SDKs."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from msgspec import structs

from tests.gateway.conftest import MODEL, PROVIDER_KEY, Stand, chat, message, settings_for
from tollkeeper.domain.policy import Budget, Policy, Unit, Window
from tollkeeper.gateway.bound import Plan
from tollkeeper.gateway.record import Exchange, Try
from tollkeeper.gateway.settle import Attempt
from tollkeeper.simulator import Simulator

DOLLAR = 10**9
SMALL = "[[sim input=25 output=9 cached=5]] and some words to be sent with it"
SIZED = "[[sim input=1000 output=20 cached=100]]"
COST_4O_MINI = 900 * 150 + 100 * 75 + 20 * 600
"""0.15, 0.075 and 0.60 USD per million tokens, in nano-dollars."""


async def test_charge_is_exact_and_recorded(stand: Stand) -> None:
    """The client gets the provider's body; the charge is the provider's usage at the list price, to the nano."""
    reply = await stand.post(chat(SIZED, user="u-1"), headers={"x-request-id": "mine"})
    assert reply.status == 200
    assert reply.json["usage"]["prompt_tokens"] == 1000
    end, record = await stand.one_end()
    assert end.kind == "settled"
    assert end.cost_nano == COST_4O_MINI
    assert (end.usage.input_tokens, end.usage.output_tokens, end.usage.cached_tokens) == (1000, 20, 100)
    assert record.request_id == reply.headers["x-request-id"] != "mine"
    assert end.attempt == f"{record.request_id}.1"
    assert (record.client_request_id, record.user, record.status) == ("mine", "u-1", 200)
    assert (record.provider, record.model, record.endpoint) == ("sim", MODEL, "/v1/chat/completions")
    assert record.hold_nano >= record.cost_nano
    assert record.price_version is not None
    assert reply.headers["x-tollkeeper-cost-usd"] == "0.0001545"
    assert reply.headers["x-upstream-request-id"] == record.upstream_request_id
    served = stand.simulator.served.requests[0]
    assert served.request_id == record.request_id, "the provider is told our id"


@pytest.mark.parametrize("directive", [SIZED, "[[sim status=429]]"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_leaves_nothing_to_the_garbage_collector(stand: Stand, directive: str, stream: bool) -> None:
    """Circles of objects would stop every request for ten milliseconds, three times a second."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await stand.post(chat(directive, stream=stream))
        await asyncio.sleep(0.05)
        left = [type(each).__name__ for each in gc.get_objects() if isinstance(each, Exchange | Try | Attempt | Plan)]
    finally:
        gc.enable()
    assert not left


async def test_each_provider_has_the_http_client_it_asks_for(tmp_path: Path, simulator: Simulator) -> None:
    """One on aiohttp beside one on ours: both serve and settle."""
    settings = settings_for(simulator.base_url)
    other = structs.replace(settings.providers["sim"], http_client="aiohttp")
    settings = structs.replace(settings, providers={**settings.providers, "sim": other})
    stand = Stand(tmp_path, settings, simulator)
    stand.key()
    async with stand.running():
        assert (await stand.post(chat(SIZED))).status == 200
        assert (await stand.post(message(SMALL), "/messages")).status == 200
    assert [end.kind for end in stand.governor.ends] == ["settled", "settled"]
    kinds = {name: type(upstream).__name__ for name, upstream in stand.plane._attempts.upstreams.items()}
    ours = {name for name, kind in kinds.items() if kind == "Http1Upstream"}
    assert kinds["sim"] == "AiohttpUpstream" and ours == kinds.keys() - {"sim"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": SMALL}),
        ("/embeddings", {"model": "text-embedding-3-small", "input": SMALL.replace("cached=5", "")}),
        ("/responses", {"model": MODEL, "input": SMALL}),
        ("/messages", message(SMALL)),
        ("/chat/completions", chat(SMALL, model="house-model")),
        ("/chat/completions", chat(SMALL, model="sim/gpt-4o")),
    ],
)
async def test_every_endpoint_settles_what_was_served(stand: Stand, path: str, body: dict[str, Any]) -> None:
    stand.key(Policy(budgets=(Budget(100 * DOLLAR),)))
    reply = await stand.post(body, path)
    assert reply.status == 200, reply.body
    end, _ = await stand.one_end()
    served = stand.simulator.served.requests[0]
    assert end.usage == served.usage
    assert end.kind == "settled"
    assert 0 < end.cost_nano <= stand.governor.granted[0].demand.hold_nano


async def test_cost_above_the_hold_is_charged_and_counted(stand: Stand) -> None:
    """Should a provider report more than the bound says is possible, the truth is charged, never cut."""
    await stand.post(chat("[[sim input=1000000 output=10]]", max_tokens=10))
    end, record = await stand.one_end()
    assert end.cost_nano == 1_000_000 * 150 + 10 * 600 > record.hold_nano
    assert stand.count("tollkeeper_over_hold_total") == 1
    assert stand.count("tollkeeper_over_hold_nanodollars_total") == end.cost_nano - record.hold_nano


async def test_only_allowed_headers_reach_the_provider(stand: Stand) -> None:
    """A simulator that insists on the provider's key gets it, and never the client's."""
    secret_headers = {
        "cookie": "a=b",
        "openai-organization": "org",
        "host": "evil.example",
        "x-forwarded-for": "1.2.3.4",
    }
    assert (await stand.post(chat(), headers=secret_headers)).status == 200
    assert PROVIDER_KEY not in str((await stand.post(chat())).headers)


async def test_budget_and_limit_headers(stand: Stand) -> None:
    """They tell the state with this request settled: the hold is gone, the cost is in, unused tokens are back."""
    stand.key(Policy(budgets=(Budget(DOLLAR),), windows=(Window(Unit.REQUESTS, 10), Window(Unit.TOKENS, 100_000))))
    reply = await stand.post(chat(SIZED))
    assert reply.status == 200
    headers = reply.headers
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-remaining-tokens"] == str(100_000 - 1020)
    assert headers["x-tollkeeper-budget-remaining-usd"] == "0.9998455"
    assert headers["x-tollkeeper-max-tokens"] == "16384"
    reply = await stand.post(message(SIZED), "/messages")
    assert reply.headers["anthropic-ratelimit-requests-limit"] == "10"
    assert reply.headers["request-id"] == reply.headers["x-request-id"]


async def test_unlimited_keys_requests_are_not_changed(stand: Stand) -> None:
    """Without a budget or token limit above it, nobody sets an output limit."""
    reply = await stand.post(chat("[[sim output=5000]]"))
    assert reply.json["usage"]["completion_tokens"] == 5000
    assert "x-tollkeeper-max-tokens" not in reply.headers


async def test_injected_limit_shrinks_to_what_the_budget_affords(stand: Stand) -> None:
    """The model's cap does not fit the budget, a smaller output does: it is asked for, told, and never exceeded."""
    stand.key(Policy(budgets=(Budget(1_000_000),)))
    reply = await stand.post(chat("[[sim input=10 output=5000]]"))
    assert reply.status == 200, reply.body
    limit = int(reply.headers["x-tollkeeper-max-tokens"])
    assert 1000 < limit < 1_000_000 // 600
    assert reply.json["usage"]["completion_tokens"] == limit
    end, record = await stand.one_end()
    assert end.attempt == f"{record.request_id}.2"
    assert end.cost_nano <= record.hold_nano <= 1_000_000


async def test_stated_limit_is_never_shrunk(stand: Stand) -> None:
    """A hold that a client's own limit asks for fits or is refused: 429, or 400 if it could never fit."""
    stand.key(Policy(budgets=(Budget(10_000_000),)))
    assert (await stand.post(chat("[[sim output=5000]]", max_tokens=5000))).status == 200
    reply = await stand.post(chat(max_tokens=16_000))
    assert (reply.status, reply.json["error"]["code"]) == (429, "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"
    reply = await stand.post(chat(max_tokens=160_000))
    assert (reply.status, reply.json["error"]["code"]) == (400, "request_exceeds_limit")
    await stand.settled()
    assert len(stand.records.all) == 1


async def test_token_window_shrinks_too(stand: Stand) -> None:
    """The estimate of a request must fit the window; a smaller output limit makes it fit."""
    stand.key(Policy(windows=(Window(Unit.TOKENS, 100),)))
    reply = await stand.post(chat("[[sim input=10 output=20]]"))
    assert reply.status == 200, reply.body
    assert 16 <= int(reply.headers["x-tollkeeper-max-tokens"]) < 100


async def test_cost_cap(stand: Stand) -> None:
    """A stated limit above the cap is refused with both amounts; ours is made to fit."""
    stand.key(Policy(cost_cap_nano=1_000_000))
    reply = await stand.post(chat(max_tokens=16_000))
    assert reply.status == 400, reply.body
    assert (reply.json["error"]["code"], "0.001 USD" in reply.json["error"]["message"]) == ("cost_cap_exceeded", True)
    reply = await stand.post(chat())
    assert reply.status == 200
    assert int(reply.headers["x-tollkeeper-max-tokens"]) < 1_000_000 // 600


async def test_unpriced_model_needs_no_price_without_a_budget(stand: Stand) -> None:
    reply = await stand.post(chat(model="local-llama"))
    assert reply.status == 200
    end, _ = await stand.one_end()
    assert end.cost_nano == 0
    stand.key(Policy(budgets=(Budget(DOLLAR),)))
    reply = await stand.post(chat(model="local-llama"))
    assert reply.status == 400
    assert reply.json["error"]["code"] == "model_not_priced"
    assert "input_usd" in reply.json["error"]["message"]


async def test_unbounded_input_is_refused_under_a_budget(stand: Stand) -> None:
    """Media of unknown size has no bound."""
    stand.key(Policy(budgets=(Budget(DOLLAR),)))
    content = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
    reply = await stand.post({"model": MODEL, "messages": [{"role": "user", "content": content}]})
    assert reply.status == 400, reply.body
    assert reply.json["error"]["code"] == "cost_not_bounded"
    assert not stand.governor.granted


async def test_refusals_tell_kind_and_wait(stand: Stand) -> None:
    stand.key(Policy(windows=(Window(Unit.REQUESTS, 1),)))
    assert (await stand.post(chat())).status == 200
    reply = await stand.post(chat())
    assert reply.status == 429
    assert 50 < int(reply.headers["retry-after"]) <= 61
    assert 50_000 < int(reply.headers["retry-after-ms"]) <= 60_010
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    reply = await stand.post(message(), "/messages")
    assert (reply.status, reply.json["error"]["type"]) == (429, "rate_limit_error")
    await stand.settled()
    assert len(stand.records.all) == 1, "a refusal is not an admitted request"
    assert stand.count("tollkeeper_refusals_total") == 2


async def test_concurrency_slot_is_free_when_the_answer_has_arrived(stand: Stand) -> None:
    """A client that sends its next request right after an answer never meets its own slot."""
    stand.key(Policy(concurrency=1))
    for _ in range(20):
        assert (await stand.post(chat())).status == 200
    slow = asyncio.create_task(stand.post(chat("[[sim delay_ms=200]]")))
    await asyncio.sleep(0.1)
    assert (await stand.post(chat())).status == 429
    assert (await slow).status == 200


async def test_real_openai_sdk(stand: Stand) -> None:
    stand.key(Policy(windows=(Window(Unit.REQUESTS, 3),)))
    async with openai.AsyncOpenAI(base_url=stand.url, api_key=stand.secret, max_retries=0) as client:
        question: Any = [{"role": "user", "content": "[[sim output=7]]"}]
        whole = await client.chat.completions.create(model=MODEL, messages=question)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 7
        stream = await client.chat.completions.create(model=MODEL, messages=question, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert text == whole.choices[0].message.content
        response = await client.responses.create(model=MODEL, input="[[sim output=7]]", stream=True)
        kinds = [event.type async for event in response]
        assert kinds[-1] == "response.completed"
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model=MODEL, messages=question)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="tk_" + "n" * 43).chat.completions.create(
                model=MODEL, messages=question
            )
        assert MODEL in [m.id async for m in client.models.list()]
    await stand.settled()
    assert [e.kind for e in stand.governor.ends] == ["settled"] * 3
    assert [e.usage for e in stand.governor.ends] == [s.usage for s in stand.simulator.served.requests]


async def test_real_anthropic_sdk(stand: Stand) -> None:
    stand.key(Policy(windows=(Window(Unit.REQUESTS, 2),)))
    base_url = stand.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=stand.secret, max_retries=0) as client:
        question: Any = [{"role": "user", "content": "[[sim output=7 cached=3]]"}]
        whole = await client.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=question)
        assert whole.usage.output_tokens == 7
        async with client.messages.stream(model="claude-haiku-4-5", max_tokens=50, messages=question) as stream:
            final = await stream.get_final_message()
        assert final.usage.output_tokens == 7
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=question)
        other = client.with_options(api_key="tk_" + "n" * 43)
        with pytest.raises(anthropic.AuthenticationError):
            await other.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=question)
    await stand.settled()
    assert [e.kind for e in stand.governor.ends] == ["settled"] * 2
    assert [e.usage for e in stand.governor.ends] == [s.usage for s in stand.simulator.served.requests]
