"""What an answer costs: by our own price, or by the provider's word where it is trusted."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.gateway.conftest import PROVIDER_KEY, Stand, chat
from tests.gateway.test_catalog import EVERY, NOW, us
from tollkeeper.domain.bound import Bound, Content
from tollkeeper.domain.policy import Budget, Policy
from tollkeeper.domain.pricing import Price, rates
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import ModelInfo
from tollkeeper.gateway.charge import Charge, CostSource, charge_of
from tollkeeper.gateway.dialects import ENDPOINTS, parse
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings
from tollkeeper.simulator import Simulator

PRICE = Price(rates(input=1_000_000, output=2_000_000), per_web_search=10**10)
USAGE = Usage(1000, 500)
OURS = 2_000_000


def model_info(reported_max_nano: int | None, price: Price | None = PRICE, searches: bool = False) -> ModelInfo:
    return ModelInfo(
        price=price,
        image_tokens_max=1,
        output_default=1,
        reported_max_nano=reported_max_nano,
        searches=searches,
    )


def test_a_word_counts_only_where_it_is_trusted_and_can_be() -> None:
    """Absent, unreadable, negative or above the bound: our own price, and it is counted."""
    ours, doubted = (Charge(OURS, CostSource.PRICE, disbelieved) for disbelieved in (False, True))
    assert charge_of(model_info(None), USAGE, b"0.5") == ours
    assert charge_of(model_info(10**9), USAGE, b"0.0000000001") == Charge(1, CostSource.PROVIDER)
    assert charge_of(model_info(10**9), USAGE, b"0") == Charge(0, CostSource.PROVIDER)
    assert charge_of(model_info(10**9), USAGE, b"1") == Charge(10**9, CostSource.PROVIDER)
    for text in (b"", b"1.0000000001", b"-1", b"null", b"1e99", b"lots"):
        assert charge_of(model_info(10**9), USAGE, text) == doubted
    assert charge_of(model_info(10**9, None), USAGE, b"") == Charge(0, None, True)
    assert charge_of(model_info(10**9, None), USAGE, b"0.25") == Charge(250_000_000, CostSource.PROVIDER)


def test_a_service_tier_without_a_price_is_told() -> None:
    """It is charged as the standard, which may be below the truth: so it is counted."""
    served = structs.replace(PRICE, served={"flex": PRICE})
    for tier, unpriced in (("", False), ("flex", False), ("ultrafast", True)):
        charge = charge_of(model_info(None, served), Usage(1000, 500, service_tier=tier), b"")
        assert charge == Charge(OURS, CostSource.PRICE, unpriced_tier=unpriced)


def test_a_model_that_always_searches_is_charged_for_one() -> None:
    """Where its answer does not count them."""
    always = model_info(None, searches=True)
    assert charge_of(always, USAGE, b"").cost_nano == OURS + 10**7
    assert charge_of(always, Usage(1000, 500, web_searches=2), b"").cost_nano == OURS + 2 * 10**7


def test_audio_that_a_report_does_not_tell_apart_is_charged_as_audio() -> None:
    """Never below the truth; a report that tells it, and a request without it, are charged as told."""
    gemini = EVERY.info("google", "gemini-2.5-flash", "gemini-2.5-flash", us(NOW))
    told = Usage(1000, 0, 100, input_audio_tokens=300, cached_audio_tokens=100)
    assert charge_of(gemini, USAGE, b"").cost_nano == 1000 * 300 + 500 * 2500
    assert charge_of(gemini, USAGE, b"", heard=True).cost_nano == 1000 * 1000 + 500 * 2500
    assert charge_of(gemini, told, b"", heard=True).cost_nano == 700 * 300 + 200 * 1000 + 100 * 100
    assert charge_of(model_info(None), USAGE, b"", heard=True).cost_nano == OURS
    part = b'{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}'
    body = b'{"model":"m","messages":[{"role":"user","content":[%s]}]}'
    assert parse(ENDPOINTS["/v1/chat/completions"], body % part).content.audio
    assert not parse(ENDPOINTS["/v1/chat/completions"], body % b'{"type":"text","text":"x"}').content.audio


INFOS = [
    info
    for provider, model in (
        *(
            ("openai", m)
            for m in ("gpt-5", "gpt-5.5", "gpt-6-sol", "gpt-4o-mini", "gpt-audio", "o3", "gpt-image-1.5")
        ),
        *(("anthropic", m) for m in ("claude-sonnet-4-5", "claude-opus-4-6", "claude-haiku-4-5", "claude-opus-5")),
        *(("google", m) for m in ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.5-flash-image")),
        *(("perplexity", m) for m in ("sonar", "sonar-pro")),
        ("deepseek", "deepseek-v4-pro"),
    )
    if (info := EVERY.info(provider, model, model, us(NOW))).price is not None
]


@st.composite
def requests(draw: st.DrawFn) -> tuple[ModelInfo, Content, Bound, Usage]:
    """A model, a request that it bounds, and any report of what the request may have had within its bound."""
    info = draw(st.sampled_from(INFOS))
    assert info.price is not None
    writes, writes_1h = draw(st.booleans()), draw(st.booleans())
    tiers = draw(st.sampled_from(((), *((tier,) for tier in info.price.served))))
    content = Content(
        text_bytes=draw(st.integers(1, 400_000)),
        images=draw(st.integers(0, 3)),
        extra_input_tokens=draw(st.sampled_from((0, 1024))),
        cache_write=writes,
        cache_write_1h=writes and writes_1h,
        service_tiers=tiers,
    )
    tokens = info.bound(content, max_output=draw(st.integers(0, 200_000)), choices=draw(st.integers(1, 3)))
    whole_input, whole_output = st.integers(0, tokens.input_tokens), st.integers(0, tokens.output_tokens)
    return (
        info,
        content,
        tokens,
        Usage(
            input_tokens=draw(st.one_of(st.just(tokens.input_tokens), whole_input)),
            output_tokens=draw(st.one_of(st.just(tokens.output_tokens), whole_output)),
            cached_tokens=draw(whole_input),
            cache_write_tokens=draw(whole_input) if content.cache_write else 0,
            cache_write_1h_tokens=draw(whole_input) if content.cache_write_1h else 0,
            reasoning_tokens=draw(whole_output),
            input_image_tokens=draw(whole_input) if content.images else 0,
            cached_image_tokens=draw(whole_input) if content.images else 0,
            output_image_tokens=draw(st.one_of(st.none(), whole_output)),
            citation_tokens=draw(whole_output),
            service_tier=draw(st.sampled_from(("", *tiers))),
        ),
    )


@settings(max_examples=500, deadline=None)
@given(requests())
def test_no_charge_within_the_bound_is_above_the_hold(case: tuple[ModelInfo, Content, Bound, Usage]) -> None:
    """What the gateway holds for a request covers what it charges for it, whatever kinds its tokens turn out to be
    and as whichever of the service tiers asked for it was served."""
    info, content, tokens, usage = case
    assert tokens.unbounded is None
    held = info.hold_nano(content, tokens)
    assert held is not None
    assert charge_of(info, usage, b"").cost_nano <= held


@pytest.fixture
async def told() -> AsyncIterator[tuple[str, list[str]]]:
    """A provider that answers with the words at the end of the list in its usage, and its address."""
    costs: list[str] = []

    async def answer(_: web.Request) -> web.Response:
        usage = f'{{"prompt_tokens":1000,"completion_tokens":500{costs.pop()}}}'
        return web.Response(text=f'{{"choices":[],"usage":{usage}}}', content_type="application/json")

    async def respond(_: web.Request) -> web.Response:
        usage = '{"input_tokens":1000,"output_tokens":500}'
        text = f'{{"usage":{usage},{costs.pop()}}}'
        return web.Response(text=text, content_type="application/json")

    async def message(_: web.Request) -> web.Response:
        return web.Response(text=f'{{"type":"message","usage":{{{costs.pop()}}}}}', content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/messages", message)
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_post("/v1/responses", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", costs
    await runner.cleanup()


async def test_the_record_says_whose_word_was_taken(
    tmp_path: Path, simulator: Simulator, told: tuple[str, list[str]]
) -> None:
    """Charge, source, header and counter, through the whole gateway."""
    base_url, costs = told
    configured = Settings(
        providers={
            "router": ProviderSettings(
                base_url=base_url, dialect="openai", trust_reported_cost=True, reported_cost_max_usd="0.5"
            )
        },
        models={"m": ModelSettings(input_usd="1", output_usd="2")},
    )
    stand = Stand(tmp_path, configured, simulator)
    stand.key()
    costs += [',"cost":0.5000001', "", ',"cost":0.0001234567891']
    async with stand.running():
        replies = [await stand.post(chat(model="m")) for _ in range(3)]
        await stand.settled()
    assert [reply.status for reply in replies] == [200, 200, 200]
    kept = [(record.cost_nano, record.cost_source) for record in stand.records.all]
    assert kept == [(123_457, "provider"), (OURS, "price"), (OURS, "price")]
    assert [end.cost_nano for end in stand.governor.ends] == [123_457, OURS, OURS]
    assert stand.count("tollkeeper_reported_costs_disbelieved_total") == 2
    assert PROVIDER_KEY not in str(stand.records.all)


async def test_a_service_tier_and_searches_are_charged_and_recorded(
    tmp_path: Path, simulator: Simulator, told: tuple[str, list[str]]
) -> None:
    """What was served counts, not what was asked for; each search has its fee; the record names all of it."""
    base_url, words = told
    openai = ProviderSettings(base_url=base_url, dialect="openai", prices="openai")
    stand = Stand(tmp_path, Settings(providers={"openai": openai}), simulator)
    stand.key(Policy(budgets=(Budget(10**9),)))
    search = '{"type":"web_search_call","action":{"type":"search"}}'
    words += [
        '"service_tier":"ultrafast"',
        f'"output":[{search},{search}]',
        '"service_tier":"default"',
        '"service_tier":"priority"',
    ]
    body = {"model": "gpt-5", "input": "hello " * 200, "max_output_tokens": 500}
    async with stand.running():
        for tier in ({"service_tier": "priority"}, {"service_tier": "priority"}):
            assert (await stand.post(body | tier, "/responses")).status == 200
        stand.key()
        tools = {"tools": [{"type": "web_search"}]}
        assert (await stand.post(body | tools, "/responses")).status == 200
        assert (await stand.post(body, "/responses")).status == 200
        await stand.settled()
    fast, standard, searched, unpriced = stand.records.all
    assert [r.service_tier for r in stand.records.all] == ["priority", None, None, "ultrafast"]
    assert stand.count("tollkeeper_unpriced_service_tiers_total") == 1
    assert unpriced.price_version == f"{standard.price_version} (no price as ultrafast)"
    plain = (1000 * 1250 + 500 * 10_000) * 1000 // 1000
    assert [r.cost_nano for r in stand.records.all] == [2 * plain, plain, plain + 2 * 10_000_000, plain]
    assert fast.cost_nano <= fast.hold_nano == standard.hold_nano
    assert fast.price_version == f"{standard.price_version} priority"
    assert searched.web_searches == 2
    assert searched.cost_source == "price"


async def test_an_advisor_is_charged_and_counted(
    tmp_path: Path, simulator: Simulator, told: tuple[str, list[str]]
) -> None:
    """Its tokens are in no total of the answer; the charge and the record have them, at its own model's price."""
    base_url, words = told
    anthropic = ProviderSettings(base_url=base_url, dialect="anthropic", prices="anthropic")
    stand = Stand(tmp_path, Settings(providers={"anthropic": anthropic}), simulator)
    stand.key()
    advice = '{"type":"advisor_message","model":"claude-opus-4-7","input_tokens":800,"output_tokens":1000}'
    words += [f'"input_tokens":100,"output_tokens":10,"iterations":[{advice}]']
    body = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
    async with stand.running():
        assert (
            await stand.post(body | {"tools": [{"type": "advisor_20260301", "name": "a"}]}, "/messages")
        ).status == 200
        end, record = await stand.one_end()
    # claude-haiku-4-5: 1 in, 5 out; claude-opus-4-7: 5 in, 25 out
    assert end.cost_nano == 100 * 1000 + 10 * 5000 + 800 * 5000 + 1000 * 25_000
    assert (record.tokens_input, record.tokens_output) == (900, 1010)
