"""The log record tells what was asked, by whom, and what came of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.conftest import Stand, chat, message, settings_for
from tollkeeper.app.connection import Request
from tollkeeper.domain.bodies import CapturedBodies
from tollkeeper.domain.policy import Policy, Unit, Window
from tollkeeper.domain.record import RequestRecord
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.record import tell_usage
from tollkeeper.settings import LogSettings
from tollkeeper.simulator import Simulator

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "log-record.schema.json").read_text())


@pytest.fixture
async def recording(tmp_path: Path, simulator: Simulator) -> AsyncIterator[Stand]:
    """A data plane that also records refusals."""
    settings = msgspec.structs.replace(settings_for(simulator.base_url), logs=LogSettings(refusals=True))
    made = Stand(tmp_path, settings, simulator)
    made.key()
    async with made.running():
        yield made


async def recorded(stand: Stand) -> RequestRecord:
    """The newest record, as valid as the schema wants it."""
    await stand.settled()
    record = stand.records.all[-1]
    jsonschema.validate(json.loads(msgspec.json.encode(record)), SCHEMA)
    return record


async def test_what_a_client_says_of_its_request_is_recorded(stand: Stand) -> None:
    """`metadata` of the body, the headers' metadata and tags; the header's wins."""
    headers = {
        "x-tollkeeper-metadata": '{"run": "7", "depth": 2, "nested": {"a": [1]}}',
        "x-tollkeeper-tags": " prod, search ,,prod",
    }
    await stand.post(chat(metadata={"run": "6", "step": "plan"}, user="u1"), headers=headers)
    record = await recorded(stand)
    assert record.metadata == {"run": "7", "depth": "2", "nested": '{"a":[1]}', "step": "plan"}
    assert (record.tags, record.user) == (("prod", "search"), "u1")
    await stand.post(message(metadata={"user_id": "u2"}), "/messages")
    record = await recorded(stand)
    assert (record.user, record.metadata, record.dialect) == ("u2", {"user_id": "u2"}, "anthropic")


async def test_labels_are_bounded_and_never_refuse_a_request(stand: Stand) -> None:
    headers = {"x-tollkeeper-tags": ",".join(f"{n}{'x' * 100}" for n in range(100)), "x-tollkeeper-metadata": "[1"}
    many = {f"{n:03}{'k' * 100}": "v" * 1000 for n in range(17)}
    assert (await stand.post(chat(metadata=many), headers=headers)).status == 200
    record = await recorded(stand)
    assert len(record.tags) == 16 and {len(tag) for tag in record.tags} == {64}
    assert record.metadata == {}  # above what is read at all
    many = {f"{n:03}{'k' * 100}": "v" * 600 for n in range(17)}
    assert (await stand.post(chat(metadata=many))).status == 200
    record = await recorded(stand)
    assert len(record.metadata) == 16
    assert {(len(k), len(v)) for k, v in record.metadata.items()} == {(64, 512)}


async def test_times_are_in_their_order(stand: Stand) -> None:
    await stand.post(chat("[[sim delay_ms=30]] hi", stream=True))
    record = await recorded(stand)
    assert record.queue_us is not None and record.first_byte_us is not None
    assert 0 < record.admission_us <= record.queue_us <= record.first_byte_us <= record.total_us
    assert record.attempts == 1 and record.streaming and record.admitted


async def test_refusals_are_recorded_if_configured(recording: Stand) -> None:
    """With the limit that refused, the model, and no cost."""
    recording.key(Policy(windows=(Window(Unit.REQUESTS, 1),)))
    await recording.post(chat())
    assert (await recording.post(chat(user="u"), headers={"x-tollkeeper-tags": "t"})).status == 429
    record = await recorded(recording)
    assert (record.admitted, record.refused_by, record.error) == (False, "key/requests", "rate_limit_exceeded")
    assert (record.status, record.model, record.user, record.tags) == (429, "gpt-4o-mini", "u", ("t",))
    assert (record.cost_nano, record.hold_nano, record.attempts, record.queue_us) == (0, 0, 0, None)


@pytest.mark.parametrize(
    ("body", "model", "error"),
    [
        (b"{", "", "invalid_json"),
        (chat(model="no-such-model" + "x" * 300), ("no-such-model" + "x" * 300)[:256], "model_not_found"),
    ],
)
async def test_wrong_requests_of_a_known_key_are_recorded_with_refusals(
    recording: Stand, body: Any, model: str, error: str
) -> None:
    await recording.post(body)
    record = await recorded(recording)
    assert (record.admitted, record.model, record.error, record.refused_by) == (False, model, error, None)


async def test_strangers_and_lists_are_not_recorded(recording: Stand) -> None:
    await recording.post(chat(), secret="tk_unknown")
    await recording.post(None, "/models", method="GET")
    await recording.settled()
    assert recording.records.all == []


async def test_refusals_are_not_recorded_by_default(stand: Stand) -> None:
    stand.key(Policy(windows=(Window(Unit.REQUESTS, 1),)))
    await stand.post(chat())
    assert (await stand.post(chat())).status == 429
    await stand.settled()
    assert len(stand.records.all) == 1


COUNTED = [name for name in Usage.__struct_fields__ if name != "service_tier"]


@given(st.dictionaries(st.sampled_from(COUNTED), st.integers(1, 9)), st.sampled_from(("", "flex")))
def test_a_record_has_every_kind_of_usage(used: dict[str, int], tier: str) -> None:
    """Also those that are hardly ever used, which are only written where there are any."""
    usage, record = (
        Usage(**used, service_tier=tier),
        msgspec.convert(dict.fromkeys(NAMES, "") | NUMBERS, RequestRecord),
    )
    tell_usage(record, usage)
    for name in COUNTED:
        kind, tokens, _ = name.partition("_tokens")
        assert getattr(record, f"tokens_{kind}" if tokens else name) == getattr(usage, name)
    assert record.service_tier == (tier or None)


NAMES = ("request_id", "key_id", "key_name", "organisation_id", "endpoint", "dialect", "provider", "model")
NUMBERS = {"time_us": 0, "status": 200}


async def test_an_answer_does_not_wait_for_its_record(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is made after the turn of the loop that wrote the answer, at whose end it leaves. In between the log
    knows that it will come."""
    turns = list[str]()

    def expected() -> int:
        return stand.records.expected

    respond, put = Request.respond, stand.records.put

    async def responding(self: Request, status: int, lines: str, body: bytes) -> None:
        await respond(self, status, lines, body)
        asyncio.get_running_loop().call_soon(lambda: turns.append(f"the turn is over, expected {expected()}"))

    def putting(record: RequestRecord, bodies: CapturedBodies | None = None) -> None:
        turns.append("recorded")
        put(record, bodies)

    monkeypatch.setattr(Request, "respond", responding)
    monkeypatch.setattr(stand.records, "put", putting)
    assert (await stand.post(chat())).status == 200
    await stand.settled()
    assert turns == ["the turn is over, expected 1", "recorded"]


async def test_a_record_that_fails_stops_no_other(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that end together are written down together, each by itself. None of them stays in flight."""
    put, failed = stand.records.put, list[str]()

    def putting(record: RequestRecord, bodies: CapturedBodies | None = None) -> None:
        if not failed:
            failed.append(record.request_id)
            raise OSError("made to fail")
        put(record, bodies)

    monkeypatch.setattr(stand.records, "put", putting)
    write_down, together = stand.plane._write_down, asyncio.Event()

    def when_all_have_ended() -> None:
        if len(stand.plane._ended) == 3:
            write_down()
            together.set()
        else:
            asyncio.get_running_loop().call_later(0.001, when_all_have_ended)

    monkeypatch.setattr(stand.plane, "_write_down", when_all_have_ended)
    replies = await asyncio.gather(*[stand.post(chat()) for _ in range(3)])
    await asyncio.wait_for(together.wait(), 60)
    assert [reply.status for reply in replies] == [200] * 3
    assert stand.plane.health()["active_requests"] == 0
    told = {reply.headers["x-request-id"] for reply in replies}
    assert {record.request_id for record in stand.records.all} | set(failed) == told and len(failed) == 1
