"""What was charged before it was over is charged at its truth, although nobody looks: batches, answers in the
background, and answers that were cut off."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tests.gateway.conftest import Stand, chat
from tests.gateway.test_batches import BUDGET, create, lines, spent, upload
from tollkeeper.domain.objects import ObjectKind, StoredObject
from tollkeeper.domain.pricing import Price, rates
from tollkeeper.gateway.batches import read_seen, truth_of_lines
from tollkeeper.gateway.followup import GIVE_UP_US, LEASE_US, PAUSE_MAX_US, PAUSE_MIN_US, next_look_us
from tollkeeper.gateway.late import ChargeNotes
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings
from tollkeeper.simulator import Simulator

TRUTH = 100 * 75 + 50 * 300
"""gpt-4o-mini for 100 and 50 tokens, at the prices of batches."""


def followed(stand: Stand) -> list[StoredObject]:
    """What the gateway will look at by itself."""
    return [its for its in stand.objects.all.values() if its.due_us is not None]


def let_be_due(stand: Stand, created_us: int | None = None) -> None:
    """As if the time had passed."""
    for its in followed(stand):
        made_us = its.created_us if created_us is None else created_us
        stand.objects.all[its.root, its.id] = msgspec.structs.replace(its, due_us=1, created_us=made_us)


async def look(stand: Stand) -> int:
    """One turn, with all that it found written down."""
    looked = await stand.plane._follow_up.turn()
    await stand.plane._objects.committed()
    return looked


async def test_a_batch_that_nobody_looks_at(stand: Stand) -> None:
    """It is looked at when it is due and not before; its list and its files are the owner's as if the owner had."""
    stand.key(BUDGET)
    file = await upload(stand, lines(chat("[[sim input=100 output=50]]", max_tokens=1000)))
    made = await create(stand, file.json["id"])
    assert await look(stand) == 0, "it is not due yet"
    assert await spent(stand) > TRUTH
    let_be_due(stand)
    assert await look(stand) == 1
    assert await spent(stand) == TRUTH
    assert followed(stand) == [] and await look(stand) == 0
    listed = (await stand.post(None, "/batches", method="GET")).json["data"]
    assert [(its["id"], its["status"]) for its in listed] == [(made.json["id"], "completed")]
    output = await stand.post(None, f"/files/{listed[0]['output_file_id']}/content", method="GET")
    assert output.status == 200
    await stand.post(None, f"/batches/{made.json['id']}", method="GET")
    assert await spent(stand) == TRUTH, "once"


async def test_a_batch_whose_sums_do_not_tell_is_read_line_by_line(stand: Stand) -> None:
    """Of several models the sums tell no price; the lines of its output do, also where the owner has looked first."""
    stand.key(BUDGET)
    asked = "[[sim input=100 output=50]]"
    bodies = (chat(asked, max_tokens=1000), chat(asked, model="gpt-4.1-nano", max_tokens=1000))
    for looks in ("gateway", "owner"):
        before = await spent(stand)
        file = await upload(stand, lines(*bodies))
        made = await create(stand, file.json["id"])
        held = await spent(stand) - before
        if looks == "owner":
            shown = await stand.post(None, f"/batches/{made.json['id']}", method="GET")
            assert shown.json["status"] == "completed"
            assert await spent(stand) - before == held
        let_be_due(stand)
        assert await look(stand) == 1
        assert await spent(stand) - before == TRUTH + 100 * 50 + 50 * 200
        assert followed(stand) == []


PRICES = {
    "a": Price(
        rates(input=1_000_000, output=2_000_000), served={"batch": Price(rates(input=500_000, output=1_000_000))}
    ),
    "a-mini": Price(rates(input=100_000, output=100_000)),
}
NOTES = ChargeNotes("attempt", "", ("a", "a-mini"))


def output(*bodies: Any) -> bytes:
    return b"\n".join(
        msgspec.json.encode({"custom_id": f"{n}", "response": {"status_code": 200, "body": body}})
        for n, body in enumerate(bodies)
    )


def used(model: str, prompt: int, completion: int) -> dict[str, Any]:
    return {"model": model, "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


@pytest.mark.parametrize(
    ("lines_", "cost"),
    [
        (output(used("a-2026-01-01", 10, 5), used("a-mini", 100, 0)), 10 * 500 + 5 * 1000 + 100 * 100),
        (output(used("a", 1, 0), used("a", 1, 0)) + b'\n{"response":{"status_code":400,"body":{}}}\n', 1000),
        (output(used("b", 1, 0), used("a", 1, 0)), None),
        (output(used("a", 1, 0), {"model": "a"}), None),
        (output(used("a", 1, 0)), None),
        (output(used("a", 1, 0)) + b"\nnot json", None),
        (b"", None),
    ],
)
async def test_lines_tell_or_the_bound_stays(lines_: bytes, cost: int | None) -> None:
    """Each at its own model's price for batches; errors cost nothing; a missing or unreadable one is no truth."""
    counts = {"total": 2, "completed": 2, "failed": 0}
    shown = {"endpoint": "/v1/chat/completions", "status": "completed", "request_counts": counts}
    seen = read_seen(msgspec.json.encode(shown))
    assert seen is not None
    found = await truth_of_lines(NOTES, seen, lines_, PRICES)
    assert (None if found is None else found.charge.cost_nano) == cost
    assert await truth_of_lines(msgspec.structs.replace(NOTES, settled=True), seen, lines_, PRICES) is None


BACKGROUND = {"model": "gpt-4o-mini", "input": "[[sim input=100 output=50]]", "background": True}


@pytest.mark.parametrize("looks", ["gateway", "owner"])
async def test_an_answer_in_the_background(stand: Stand, looks: str) -> None:
    """Its bound is charged at once, so a budget can have it; then its truth, whoever looks first."""
    stand.key(BUDGET)
    made = await stand.post(BACKGROUND | {"max_output_tokens": 1000}, "/responses")
    assert (made.status, made.json["status"]) == (200, "queued"), made.body
    end = stand.governor.ends[-1]
    assert (end.kind, end.cost_nano) == ("presumed", await spent(stand))
    assert end.cost_nano >= 1000 * 600
    if looks == "gateway":
        let_be_due(stand)
        assert await look(stand) == 1
        assert await spent(stand) == 2 * TRUTH
    for _ in range(2):
        shown = await stand.post(None, f"/responses/{made.json['id']}", method="GET")
        assert shown.json["status"] == "completed"
        assert await spent(stand) == 2 * TRUTH
    assert followed(stand) == []


async def test_an_answer_that_was_cut_off_is_followed_if_it_is_stored(stand: Stand) -> None:
    """The provider has it whole; the stream told no usage."""
    stand.key(BUDGET)
    body = {"model": "gpt-4o-mini", "stream": True, "max_output_tokens": 1000}
    await stand.post(body | {"input": "[[sim input=100 output=50]] whole"}, "/responses")
    await stand.settled()
    assert followed(stand) == [] and await spent(stand) == 2 * TRUTH
    await stand.post(body | {"input": "[[sim input=100 output=50 fault=truncate after=3]]"}, "/responses")
    await stand.settled()
    await stand.plane._objects.committed()
    assert stand.governor.ends[-1].kind == "presumed" and await spent(stand) > 4 * TRUTH
    let_be_due(stand)
    assert await look(stand) == 1
    assert await spent(stand) == 4 * TRUTH


class Slow:
    """A provider whose answers are over when a test says so."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] | int = {"status": "in_progress", "usage": None}
        self.asked: list[str] = []
        self.url = ""

    async def _make(self, _: web.Request) -> web.Response:
        return web.json_response({"id": "resp_1", "object": "response", "status": "queued", "usage": None})

    async def _show(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers["authorization"])
        if isinstance(self.shown, int):
            return web.json_response({"error": {"message": "no"}}, status=self.shown)
        return web.json_response({"id": "resp_1", "object": "response", "output": [], **self.shown})


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    made = Slow()
    app = web.Application()
    app.router.add_post("/v1/responses", made._make)
    app.router.add_get("/v1/responses/resp_1", made._show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    await runner.cleanup()


@pytest.fixture
async def waiting(tmp_path: Path, simulator: Simulator, slow: Slow) -> AsyncIterator[Stand]:
    """A gateway before it, with an answer in the background that nobody looks at."""
    configured = Settings(
        providers={"slow": ProviderSettings(base_url=slow.url, dialect="openai")},
        models={"m": ModelSettings(input_usd="1", output_usd="2")},
    )
    stand = Stand(tmp_path, configured, simulator)
    stand.key(BUDGET)
    async with stand.running():
        made = await stand.post(BACKGROUND | {"model": "m", "max_output_tokens": 100}, "/responses")
        assert made.status == 200, made.body
        let_be_due(stand)
        yield stand


async def test_what_is_not_over_is_looked_at_again(waiting: Stand, slow: Slow) -> None:
    """Also where the provider does not answer, or shows something else; the charge stays what it was."""
    held = await spent(waiting)
    for shown in ({"status": "in_progress"}, 500, 429, {"id": "resp_2", "status": "completed"}, {"status": 5}):
        slow.shown = shown
        assert await look(waiting) == 1
        (its,) = followed(waiting)
        assert its.due_us is not None and its.due_us > its.created_us + PAUSE_MIN_US
        assert await spent(waiting) == held
        let_be_due(waiting)
    slow.shown = {"status": "completed", "usage": {"input_tokens": 10, "output_tokens": 5}}
    assert await look(waiting) == 1
    assert await spent(waiting) == 10 * 1000 + 5 * 2000
    assert set(slow.asked) == {"Bearer sk-provider-secret"} and followed(waiting) == []
    assert waiting.count("tollkeeper_late_charges_looked_at_total") == 6


@pytest.mark.parametrize(
    ("shown", "cost"),
    [
        ({"status": "failed", "usage": None}, 0),
        ({"status": "failed", "usage": {"input_tokens": 10, "output_tokens": 0}}, 10_000),
        ({"status": "cancelled", "usage": None}, None),
        ({"status": "incomplete", "usage": {"input_tokens": 10, "output_tokens": 100}}, 210_000),
        (404, None),
    ],
)
async def test_what_is_over_is_looked_at_no_more(waiting: Stand, slow: Slow, shown: Any, cost: int | None) -> None:
    """Where the provider does not tell what it used, the bound stays charged."""
    held, slow.shown = await spent(waiting), shown
    assert await look(waiting) == 1
    assert await spent(waiting) == (held if cost is None else cost)
    assert followed(waiting) == []


async def test_what_never_ends_is_given_up(waiting: Stand) -> None:
    """After two weeks its bound is what it cost."""
    let_be_due(waiting, created_us=1)
    held = await spent(waiting)
    assert await look(waiting) == 1
    assert await spent(waiting) == held and followed(waiting) == []


async def test_only_one_gateway_looks(waiting: Stand, slow: Slow) -> None:
    """What one has leased is not due for another, until the lease is over."""
    now_us = followed(waiting)[0].created_us + 10
    taken = await waiting.objects.take_due(now_us, lease_us=LEASE_US, limit=9)
    assert [its.kind for its in taken] == [ObjectKind.RESPONSE]
    assert await look(waiting) == 0 and slow.asked == []
    assert await waiting.objects.take_due(now_us + LEASE_US, lease_us=1, limit=9) != []


def test_looks_become_rarer() -> None:
    """Between ten seconds and half an hour, by age; two weeks at most."""
    assert next_look_us(0, 0) == PAUSE_MIN_US
    assert next_look_us(0, 16 * PAUSE_MIN_US) == 18 * PAUSE_MIN_US
    assert next_look_us(0, GIVE_UP_US) == GIVE_UP_US + PAUSE_MAX_US
    assert next_look_us(0, GIVE_UP_US + 1) is None
