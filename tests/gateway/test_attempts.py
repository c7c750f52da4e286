"""Retries and fallbacks through the whole data plane: who is asked, what is charged, what the record tells."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.gateway.conftest import Stand, chat, message, settings_for
from tests.gateway.fakes import principal_of
from tollkeeper.domain.bodies import BodyLogging
from tollkeeper.domain.money import NANO_PER_USD
from tollkeeper.domain.policy import Budget, Policy, Unit, Window
from tollkeeper.settings import DeploymentSettings, ModelSettings, RoutingSettings, Settings
from tollkeeper.simulator import Simulator

QUICK = RoutingSettings(backoff_min_s=0.001, backoff_max_s=0.002, retry_after_max_s=0.5)


PATIENT: dict[str, Any] = {"connect_timeout_s": 10.0, "first_byte_timeout_s": 30.0, "total_timeout_s": 60.0}
"""A machine that stands still for a second is no failure of a provider."""


def routed(base: Settings, routing: RoutingSettings = QUICK, **models: ModelSettings) -> Settings:
    """The settings with retries, with patience, and with a provider `down` that nobody listens at."""
    patient = {name: structs.replace(its, **PATIENT) for name, its in base.providers.items()}
    base = structs.replace(base, providers=patient)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    down = structs.replace(base.providers["sim"], base_url=url, models=("nothing",))
    return structs.replace(
        base, routing=routing, providers=base.providers | {"down": down}, models=base.models | models
    )


@asynccontextmanager
async def stand_of(
    tmp_path: Path, simulator: Simulator, routing: RoutingSettings = QUICK, **models: ModelSettings
) -> AsyncIterator[Stand]:
    stand = Stand(tmp_path, routed(settings_for(simulator.base_url), routing, **models), simulator)
    stand.key()
    async with stand.running():
        yield stand


def ends_of(stand: Stand) -> list[tuple[str, str]]:
    """Number and kind of every attempt's end."""
    return [(end.attempt.rpartition(".")[2], end.kind) for end in stand.governor.ends]


def agrees(stand: Stand) -> Any:
    """The only record, whose sums are those of the ledger and of its own attempts."""
    (record,) = stand.records.all
    assert record.cost_nano == sum(end.cost_nano for end in stand.governor.ends)
    assert len(stand.governor.granted) == len(stand.governor.ends)
    if record.attempt_list:
        assert record.cost_nano == sum(a.cost_nano for a in record.attempt_list)
        assert record.hold_nano == sum(a.hold_nano for a in record.attempt_list)
        assert [a.attempt for a in record.attempt_list] == [end.attempt for end in stand.governor.ends]
    return record


@pytest.mark.parametrize(("path", "body_of"), [("/chat/completions", chat), ("/messages", message)])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
async def test_a_passing_error_is_tried_again_for_free(
    tmp_path: Path, simulator: Simulator, path: str, body_of: Any, stream: bool, status: int
) -> None:
    """The client sees the second attempt only; the first is released whole, the second charged exactly."""
    async with stand_of(tmp_path, simulator) as stand:
        reply = await stand.post(body_of(f"[[sim status={status} times=1 output=5]]", stream=stream), path)
        await stand.settled()
    assert reply.status == 200, reply.body
    assert ends_of(stand) == [("1", "voided"), ("2", "settled")]
    record = agrees(stand)
    assert (record.status, record.error, record.attempts, record.presumed) == (200, None, 2, False)
    assert record.tokens_output == 5
    assert record.cost_nano == stand.governor.ends[1].cost_nano > 0
    first, second = record.attempt_list
    assert (first.result, first.status, first.cost_nano) == (
        "rate_limited" if status == 429 else "client_error" if status == 408 else "server_error",
        status,
        0,
    )
    assert (second.result, second.status) == ("answered", 200)
    assert 0 < first.started_us <= first.ended_us <= second.started_us <= second.ended_us <= record.total_us
    if not stream:
        assert reply.headers["x-tollkeeper-cost-usd"] is not None


@pytest.mark.parametrize("fault", ["reset", "garbage"])
@pytest.mark.parametrize("stream", [False, True])
async def test_sent_and_no_answer_is_presumed_and_tried_again_under_a_fresh_hold(
    tmp_path: Path, simulator: Simulator, fault: str, stream: bool
) -> None:
    """Nobody knows whether the first attempt ran: both are charged."""
    async with stand_of(tmp_path, simulator) as stand:
        reply = await stand.post(chat(f"[[sim fault={fault} times=1]]", stream=stream))
        await stand.settled()
    assert reply.status == 200
    assert ends_of(stand) == [("1", "presumed"), ("2", "settled")]
    record = agrees(stand)
    first, second = record.attempt_list
    assert record.presumed and first.presumed and not second.presumed
    assert record.cost_nano == first.hold_nano + second.cost_nano
    assert stand.count("tollkeeper_presumed_nanodollars_total") == first.hold_nano
    assert stand.count("tollkeeper_charged_nanodollars_total") == record.cost_nano
    assert stand.count("tollkeeper_charged_requests_total") == 1
    assert first.result.startswith("upstream_")


async def test_an_operator_may_leave_unanswered_requests_alone(tmp_path: Path, simulator: Simulator) -> None:
    settings = routed(settings_for(simulator.base_url))
    careful = structs.replace(settings.providers["sim"], retry_unanswered=False)
    stand = Stand(tmp_path, structs.replace(settings, providers=settings.providers | {"sim": careful}), simulator)
    stand.key()
    async with stand.running():
        assert (await stand.post(chat("[[sim fault=reset times=1]]"))).status == 502
        await stand.settled()
        assert ends_of(stand) == [("1", "presumed")]
        assert (await stand.post(chat("[[sim status=500 times=1]]"))).status == 200, "an answer is an answer"


SPREAD = {
    "smart": ModelSettings(
        deployments=(
            DeploymentSettings(provider="down", upstream_model="gpt-4o"),
            DeploymentSettings(provider="sim", upstream_model="gpt-4o-mini"),
        )
    )
}


@pytest.mark.parametrize("stream", [False, True])
async def test_another_deployment_takes_over(tmp_path: Path, simulator: Simulator, stream: bool) -> None:
    """Whichever is drawn first, the client gets an answer; what reached nobody is void."""
    async with stand_of(tmp_path, simulator, QUICK, **SPREAD) as stand:
        for _ in range(12):
            assert (await stand.post(chat("[[sim output=3]]", model="smart", stream=stream))).status == 200
        await stand.settled()
        assert stand.count("tollkeeper_deployment_cooldown") in (0, 2)
    kinds = [kind for _, kind in ends_of(stand)]
    assert kinds.count("settled") == 12 == len(stand.records.all)
    assert set(kinds) <= {"settled", "voided"}
    for record in stand.records.all:
        assert (record.model, record.provider, record.upstream_model) == ("smart", "sim", "gpt-4o-mini")
    assert kinds.count("voided") <= 5, "then it cools down"


async def test_fallbacks_are_tried_in_their_order_with_holds_of_their_own(
    tmp_path: Path, simulator: Simulator
) -> None:
    """The model twice, the first fallback twice, and what the last attempt costs is charged at its own price."""
    chain = {
        "first": ModelSettings(provider="sim", upstream_model="gpt-4o-mini", fallbacks=("second", "third")),
        "second": ModelSettings(provider="down", upstream_model="gpt-4o-mini"),
        "third": ModelSettings(provider="sim", upstream_model="gpt-4o"),
    }
    routing = structs.replace(QUICK, attempts_max=5)
    async with stand_of(tmp_path, simulator, routing, **chain) as stand:
        stand.key(Policy(budgets=(Budget(10 * NANO_PER_USD),)))
        reply = await stand.post(chat("[[sim status=500 model=gpt-4o-mini output=7]]", model="first"))
        await stand.settled()
    assert reply.status == 200
    record = agrees(stand)
    assert [(a.model, a.provider, a.result) for a in record.attempt_list] == [
        ("first", "sim", "server_error"),
        ("first", "sim", "server_error"),
        ("second", "down", "upstream_unreachable"),
        ("second", "down", "upstream_unreachable"),
        ("third", "sim", "answered"),
    ]
    holds = [a.hold_nano for a in record.attempt_list]
    assert holds[4] > holds[0] == holds[1], "the dearer model has its own bound"
    assert record.model == "third" and record.upstream_model == "gpt-4o"
    assert (reply.headers["x-tollkeeper-attempts"], reply.headers["x-tollkeeper-model"]) == ("5", "third")
    assert ends_of(stand)[-1] == ("5", "settled")


async def test_a_stream_falls_back_before_its_first_byte_only(tmp_path: Path, simulator: Simulator) -> None:
    model = ModelSettings(provider="sim", upstream_model="gpt-4o-mini", fallbacks=("gpt-4o",))
    settings = routed(settings_for(simulator.base_url), structs.replace(QUICK, attempts_per_model_max=1), smart=model)
    hasty = structs.replace(settings.providers["sim"], first_byte_timeout_s=1.0)
    stand = Stand(tmp_path, structs.replace(settings, providers=settings.providers | {"sim": hasty}), simulator)
    stand.key()
    async with stand.running():
        reply = await stand.post(chat("[[sim fault=stall model=gpt-4o-mini]]", model="smart", stream=True))
        assert reply.status == 200 and reply.body.endswith(b"data: [DONE]\n\n")
        await stand.settled()
        assert ends_of(stand) == [("1", "presumed"), ("2", "settled")]
        reply = await stand.post(
            chat("[[sim fault=reset after=2 model=gpt-4o-mini output=9]]", model="smart", stream=True)
        )
        assert reply.status == 200 and b"upstream_" in reply.body, "an error event: a byte was out"
        await stand.settled()
    assert ends_of(stand)[2:] == [("1", "presumed")]


async def test_a_dearer_fallback_that_the_budget_refuses_is_a_refusal(tmp_path: Path, simulator: Simulator) -> None:
    """Its hold does not fit: 429, nothing is charged, nothing stays held, and the record tells both."""
    dear = ModelSettings(provider="sim", upstream_model="dear", input_usd="1000", output_usd="1000")
    model = ModelSettings(provider="sim", upstream_model="gpt-4o-mini", fallbacks=("dear",))
    async with stand_of(tmp_path, simulator, smart=model, dear=dear) as stand:
        policy = Policy(budgets=(Budget(NANO_PER_USD // 5),))
        stand.key(policy)
        assert (await stand.post(chat("[[sim output=100]]", model="dear", max_tokens=100))).status == 200
        reply = await stand.post(chat("[[sim status=500]]", model="smart", max_tokens=100))
        await stand.settled()
        assert (reply.status, reply.json["error"]["code"]) == (429, "insufficient_quota")
        record = stand.records.all[1]
        assert (record.refused_by, record.cost_nano, record.attempts) == ("key/budget", 0, 2)
        (budget,) = await stand.governor.limits(principal_of("test2", policy))
        assert (budget.held, budget.used) == (0, stand.records.all[0].cost_nano)


async def test_a_fallback_that_never_fits_leaves_the_failure(tmp_path: Path, simulator: Simulator) -> None:
    """The client asked for another model: that its provider failed is what it should know, not a 400."""
    dear = ModelSettings(provider="sim", upstream_model="dear", input_usd="1000", output_usd="1000")
    model = ModelSettings(provider="sim", upstream_model="gpt-4o-mini", fallbacks=("dear",))
    async with stand_of(tmp_path, simulator, smart=model, dear=dear) as stand:
        stand.key(Policy(budgets=(Budget(NANO_PER_USD // 100),)))
        assert (await stand.post(chat("[[sim status=503]]", model="smart", max_tokens=100))).status == 503
        await stand.settled()
        assert agrees(stand).refused_by is None


async def test_a_key_does_not_reach_a_forbidden_model_by_a_failure(tmp_path: Path, simulator: Simulator) -> None:
    model = ModelSettings(provider="sim", upstream_model="gpt-4o-mini", fallbacks=("gpt-4o", "third"))
    third = ModelSettings(provider="sim", upstream_model="gpt-4.1")
    async with stand_of(tmp_path, simulator, smart=model, third=third) as stand:
        stand.key(Policy(models=("smart", "third")))
        reply = await stand.post(chat("[[sim status=500 model=gpt-4o-mini]]", model="smart"))
        await stand.settled()
    assert reply.status == 200
    assert [a.model for a in agrees(stand).attempt_list] == ["smart", "smart", "third"]


async def test_a_request_counts_once_however_often_it_is_tried(tmp_path: Path, simulator: Simulator) -> None:
    """A key with one request a minute and one slot gets its retry; the window has one request after it."""
    async with stand_of(tmp_path, simulator) as stand:
        stand.key(Policy(windows=(Window(Unit.REQUESTS, 1, 60_000_000),), concurrency=1))
        assert (await stand.post(chat("[[sim status=500 times=1]]"))).status == 200
        assert (await stand.post(chat())).status == 429


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_provider_key_goes_elsewhere_and_never_to_the_client(
    tmp_path: Path, simulator: Simulator, status: int
) -> None:
    """Never tried twice; the last of several attempts is a 502 without the provider's words, too; it cools down."""
    chain = {
        "first": ModelSettings(provider="down", upstream_model="gpt-4o-mini", fallbacks=("second",)),
        "second": ModelSettings(provider="sim", upstream_model="gpt-4o"),
    }
    async with stand_of(tmp_path, simulator, QUICK, **chain) as stand:
        reply = await stand.post(chat(f"[[sim status={status}]]", model="first"))
        await stand.settled()
        assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_authentication")
        record = agrees(stand)
        assert [a.result for a in record.attempt_list] == ["upstream_unreachable"] * 2 + ["refused_us"]
        assert record.cost_nano == 0
        exposition = stand.metrics.exposition().decode()
        assert 'tollkeeper_deployment_cooldown{model="gpt-4o",provider="sim"} 2.0' in exposition
        assert (await stand.post(chat("hi", model="second"))).status == 200, "alone, it is asked all the same"


async def test_a_refused_provider_key_is_not_tried_again_however_short_the_cooldown(
    tmp_path: Path, simulator: Simulator
) -> None:
    async with stand_of(tmp_path, simulator, structs.replace(QUICK, cooldown_s=0.0001)) as stand:
        assert (await stand.post(chat("[[sim status=401]]"))).status == 502
        await stand.settled()
    assert len(simulator.served.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_the_clients_own_fault_is_not_tried_again(tmp_path: Path, simulator: Simulator, status: int) -> None:
    model = ModelSettings(provider="sim", upstream_model="gpt-4o-mini", fallbacks=("gpt-4o",))
    async with stand_of(tmp_path, simulator, smart=model) as stand:
        assert (await stand.post(chat(f"[[sim status={status}]]", model="smart"))).status == status
        end, record = await stand.one_end()
    assert (end.kind, record.attempts, record.attempt_list) == ("settled", 1, ())


async def test_the_last_failure_reaches_the_client_as_the_provider_told_it(
    tmp_path: Path, simulator: Simulator
) -> None:
    async with stand_of(tmp_path, simulator) as stand:
        reply = await stand.post(chat("[[sim status=503]]"))
        await stand.settled()
    assert reply.status == 503
    assert ends_of(stand) == [("1", "voided"), ("2", "settled")]
    record = agrees(stand)
    assert (record.error, record.cost_nano, len(simulator.served.requests)) == ("upstream_503", 0, 2)


async def test_retry_after_is_honoured_within_a_bound(tmp_path: Path, simulator: Simulator) -> None:
    """A second is waited for if the operator lets it; what is longer is the client's to wait."""
    patient = structs.replace(QUICK, retry_after_max_s=2.0)
    async with stand_of(tmp_path, simulator, patient) as stand:
        assert (await stand.post(chat("[[sim status=429 retry_after=1 times=1]]"))).status == 200
        await stand.settled()
        first, second = agrees(stand).attempt_list
        assert second.started_us - first.ended_us >= 1_000_000
        reply = await stand.post(chat("[[sim status=429 retry_after=60 times=1]]", model="gpt-4o"))
        assert (reply.status, reply.headers["retry-after"]) == (429, "60")


async def test_the_retry_budget_ends_retries_not_requests(tmp_path: Path, simulator: Simulator) -> None:
    """With every request failing, attempts stay below requests × (1 + ratio) + burst."""
    routing = structs.replace(
        QUICK,
        retry_ratio=0.1,
        retry_burst=3,
        cooldown_failures=1000,
        cooldown_failure_ratio=1.0,
        cooldown_requests_min=1000,
    )
    async with stand_of(tmp_path, simulator, routing) as stand:
        for number in range(20):
            assert (await stand.post(chat(f"{number} [[sim status=500]]"))).status == 500
        assert len(simulator.served.requests) == 20 + 3 + 2 - 1, (
            "3 saved up, 20 × 0.1 earned, and 0.9 of the first lost"
        )
        assert stand.count("tollkeeper_retry_budget_exhausted_total") == 20 - 4


async def test_a_client_that_hangs_up_in_a_pause_ends_everything(tmp_path: Path, simulator: Simulator) -> None:
    """No second attempt, nothing held, one record with what the first attempt cost."""
    slow = RoutingSettings(backoff_min_s=60.0, backoff_max_s=60.0, retry_after_max_s=60.0)
    settings = routed(settings_for(simulator.base_url), slow)
    patient = structs.replace(settings.providers["sim"], total_timeout_s=900.0)
    settings = structs.replace(
        settings,
        server=structs.replace(settings.server, drain_timeout_s=60.0),
        providers=settings.providers | {"sim": patient},
    )
    stand = Stand(tmp_path, settings, simulator)
    stand.key()
    async with stand.running():
        stand.plane._attempts.draw = lambda: 0.5
        request = asyncio.create_task(stand.post(chat("[[sim fault=reset]]")))
        async with asyncio.timeout(5):
            while not stand.governor.ends:
                await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await stand.settled()
    assert ends_of(stand) == [("1", "presumed")]
    record = agrees(stand)
    assert (record.status, record.client_disconnected, record.attempts) == (499, True, 1)
    assert len(simulator.served.requests) == 1


async def test_a_pause_longer_than_the_deadline_is_not_begun(tmp_path: Path, simulator: Simulator) -> None:
    slow = RoutingSettings(backoff_min_s=300.0, backoff_max_s=300.0, retry_after_max_s=300.0)
    async with stand_of(tmp_path, simulator, slow) as stand:
        stand.plane._attempts.draw = lambda: 0.5
        assert (await stand.post(chat("[[sim status=500]]"))).status == 500
        end, _ = await stand.one_end()
    assert end.kind == "settled"


async def test_the_total_deadline_bounds_all_attempts(tmp_path: Path, simulator: Simulator) -> None:
    """Each attempt may wait 0.4 s for a first byte, all of them together 1.1 s: there is no fourth."""
    settings = routed(
        settings_for(simulator.base_url), structs.replace(QUICK, attempts_max=9, attempts_per_model_max=9)
    )
    hasty = structs.replace(
        settings.providers["sim"], connect_timeout_s=0.2, first_byte_timeout_s=0.4, total_timeout_s=0.9
    )
    stand = Stand(tmp_path, structs.replace(settings, providers=settings.providers | {"sim": hasty}), simulator)
    stand.key()
    async with stand.running():
        reply = await stand.post(chat("[[sim fault=stall]]"))
        await stand.settled()
    assert (reply.status, reply.json["error"]["code"]) == (504, "upstream_timeout")
    assert 1 <= len(ends_of(stand)) <= 3
    assert {kind for _, kind in ends_of(stand)} == {"presumed"}
    assert agrees(stand).attempts == len(ends_of(stand))


async def test_the_total_deadline_cuts_an_attempt_whose_own_is_later(tmp_path: Path, simulator: Simulator) -> None:
    """The model's provider sets it; a fallback's longer patience does not extend it. What was sent is presumed."""
    chain = {
        "first": ModelSettings(provider="down", fallbacks=("second",)),
        "second": ModelSettings(provider="sim", upstream_model="gpt-4o"),
    }
    settings = routed(settings_for(simulator.base_url), structs.replace(QUICK, attempts_per_model_max=1), **chain)
    hasty = structs.replace(settings.providers["down"], connect_timeout_s=1.0, total_timeout_s=1.0)
    stand = Stand(tmp_path, structs.replace(settings, providers=settings.providers | {"down": hasty}), simulator)
    stand.key()
    async with stand.running():
        reply = await stand.post(chat("[[sim fault=stall]]", model="first"))
        await stand.settled()
    assert (reply.status, reply.json["error"]["message"]) == (504, "The answer was not finished in time.")
    assert ends_of(stand) == [("1", "voided"), ("2", "presumed")]
    assert [a.result for a in agrees(stand).attempt_list] == ["upstream_unreachable", "unfinished"]


@pytest.mark.parametrize("directive", ["status=500", "fault=truncate"])
async def test_the_log_has_the_answer_that_the_client_got(
    tmp_path: Path, simulator: Simulator, directive: str
) -> None:
    async with stand_of(tmp_path, simulator) as stand:
        stand.key(Policy(log_bodies=BodyLogging.FULL))
        reply = await stand.post(chat(f"[[sim {directive} times=1 output=4]]"))
        await stand.settled()
    ((_, logged),) = stand.records.bodies
    assert reply.status == 200 and logged is not None and logged.value == reply.json


async def test_a_deployment_at_its_limit_lets_others_serve(tmp_path: Path, simulator: Simulator) -> None:
    """Two requests a minute at the first, then the second; with both full a 429 that says when."""
    two = tuple(
        DeploymentSettings(provider="sim", upstream_model=name, requests_per_minute=2, weight=weight)
        for name, weight in (("gpt-4o", 1000), ("gpt-4o-mini", 1))
    )
    async with stand_of(tmp_path, simulator, smart=ModelSettings(deployments=two)) as stand:
        stand.plane._attempts.draw = lambda: 0.0
        replies = [await stand.post(chat("hi", model="smart")) for _ in range(5)]
        await stand.settled()
    assert [reply.status for reply in replies] == [200] * 4 + [429]
    assert [r.model for r in simulator.served.requests] == ["gpt-4o"] * 2 + ["gpt-4o-mini"] * 2
    assert replies[4].json["error"]["code"] == "deployments_at_limit"
    assert 1 <= int(replies[4].headers["retry-after"]) <= 61
    assert len(stand.governor.granted) == 4, "and the key's limits were not asked"


async def test_a_deployments_tokens_are_the_truth_of_what_ran_and_the_estimate_of_what_asks(
    tmp_path: Path, simulator: Simulator
) -> None:
    """250 of 300 tokens are used: a request that may take 200 goes to the other one."""
    two = (
        DeploymentSettings(provider="sim", upstream_model="gpt-4o", tokens_per_minute=300, weight=1000),
        DeploymentSettings(provider="sim", upstream_model="gpt-4o-mini"),
    )
    async with stand_of(tmp_path, simulator, smart=ModelSettings(deployments=two)) as stand:
        stand.plane._attempts.draw = lambda: 0.0
        for _ in range(2):
            body = chat("[[sim input=50 output=200]]", model="smart", max_tokens=200)
            assert (await stand.post(body)).status == 200
        await stand.settled()
    assert [r.model for r in simulator.served.requests] == ["gpt-4o", "gpt-4o-mini"]


async def test_a_cooled_deployment_is_tried_by_one_request_and_comes_back(
    tmp_path: Path, simulator: Simulator
) -> None:
    """By the gateway's clock, which is the test's here."""
    two = tuple(
        DeploymentSettings(provider="sim", upstream_model=n, weight=w) for n, w in (("a", 1000), ("gpt-4o", 1))
    )
    routing = structs.replace(QUICK, cooldown_failures=2, cooldown_s=30.0)
    async with stand_of(tmp_path, simulator, routing, smart=ModelSettings(deployments=two)) as stand:
        attempts, start_us = stand.plane._attempts, stand.plane._now_us()
        attempts.draw, attempts.now_us = (lambda: 0.0), lambda: start_us
        for number in range(4):
            assert (await stand.post(chat(f"{number} [[sim status=500 model=a]]", model="smart"))).status == 200
        assert [r.model for r in simulator.served.requests] == ["a", "gpt-4o"] * 2 + ["gpt-4o"] * 2
        attempts.now_us = lambda: start_us + 30_000_000
        assert (await stand.post(chat("4 [[sim status=500 model=a]]", model="smart"))).status == 200
        assert (await stand.post(chat("5", model="smart"))).status == 200
        assert [r.model for r in simulator.served.requests][6:] == ["a", "gpt-4o", "gpt-4o"], "the probe failed"
        attempts.now_us = lambda: start_us + 60_000_000
        for _ in range(2):
            assert (await stand.post(chat("6", model="smart"))).status == 200
        assert [r.model for r in simulator.served.requests][9:] == ["a", "a"], "the probe closed it"
