"""Log records by the admin API: the reader's pages and filters, with clear words for what cannot be asked."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest

from tests.admin.conftest import Control
from tests.logs.conftest import NOON_US, make_record
from tollkeeper.domain.errors import Busy, LogStoreUnavailable
from tollkeeper.domain.log_queue import Gap
from tollkeeper.logs.prover import LogProver
from tollkeeper.logs.sinks import LogStore, StoredObject


async def ship(control: Control) -> None:
    pipeline = control.pipeline
    for number in range(10):
        user = "ann" if number % 2 else None
        pipeline.put(make_record(number, user=user, request_body="{}", time_us=NOON_US + number * 1_000_000))
    await pipeline.start()
    await pipeline.stop()


async def test_pages_lead_from_the_newest_to_the_oldest(control: Control) -> None:
    await ship(control)
    seen: list[int] = []
    path: str | None = "/admin/v1/logs?limit=4"
    while path is not None:
        answer = await control("GET", path)
        assert answer.status == 200
        seen += [record["tokens_input"] for record in answer.json["data"]]
        cursor = answer.json["next_cursor"]
        path = None if cursor is None else f"/admin/v1/logs?limit=4&starting_after={quote(cursor)}"
    assert seen == list(range(9, -1, -1))


async def test_filters_and_bodies(control: Control) -> None:
    await ship(control)
    query = "since=2026-11-23T12:00:02Z&until=2026-11-23T12:00:07Z&user=ann&key=demo"
    (one, two) = (await control("GET", f"/admin/v1/logs?{query}")).json["data"]
    assert (one["tokens_input"], two["tokens_input"], one["request_body"]) == (5, 3, None)
    (found,) = (await control("GET", "/admin/v1/logs?request_id=req_4&bodies=true")).json["data"]
    assert found["request_body"] == "{}"
    assert (await control("GET", "/admin/v1/logs?errors=true")).json == {
        "data": [],
        "has_more": False,
        "next_cursor": None,
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [("since=yesterday", "since"), ("limit=0", "limit"), ("limit=101&bodies=1", "limit"), ("status=x", "status"),
     ("starting_after=x", "starting_after"), ("limit=many", "limit")],
)  # fmt: skip
async def test_what_cannot_be_asked_is_said(control: Control, query: str, param: str) -> None:
    answer = await control("GET", f"/admin/v1/logs?{query}")
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_only_with_the_admin_token(control: Control) -> None:
    assert (await control("GET", "/admin/v1/logs", token=None)).status == 401


async def test_stats_tell_what_waits_and_what_was_delivered(control: Control) -> None:
    for number in range(3):
        control.pipeline.put(make_record(number))
    await control.pipeline._producer.start()
    await control.pipeline._producer.flush()
    before = (await control("GET", "/admin/v1/logs/stats")).json
    assert (before["produced"], before["pending"], before["delivered"]) == (3, 3, 0)
    assert (before["queue"]["records"], before["queue"]["records_max"]) == (3, 100_000)
    assert before["queue"]["bytes"] > 3 * 200 and before["queue"]["oldest_age_s"] >= 0
    await control.pipeline.start()
    await control.pipeline.stop()
    after = (await control("GET", "/admin/v1/logs/stats")).json
    assert (after["pending"], after["delivered"], after["queue"]["records"]) == (0, 3, 0)
    assert (after["last_delivered_at"], after["last_error"]) == ("2026-11-23T12:00:00Z", None)


async def test_the_proof_accounts_for_every_number_and_names_what_is_lost(control: Control) -> None:
    await ship(control)
    whole = (await control("GET", "/admin/v1/logs/verify")).json
    assert (whole["complete"], whole["records"]) == (True, 10)
    (queue,) = control.pipeline.queues
    await queue.note(Gap("dropped", "gw1", 11, 12))
    await queue.note(Gap("lost", "gw1", 13, 15))
    proof = (await control("GET", "/admin/v1/logs/verify")).json
    producer = proof["producers"]["gw1"]
    assert (proof["complete"], producer["last"], producer["missing"]) == (False, 15, 3)
    assert (producer["gaps"], producer["dropped"], producer["doubles"]) == ([[13, 15]], [[11, 12]], [])
    counts = {"gaps": 3, "doubles": 0, "dropped": 2, "taken": 0, "pending": 0, "retired": 0}
    assert producer["counts"] == counts


async def test_proof_and_stats_only_with_the_admin_token(control: Control) -> None:
    for path in ("/admin/v1/logs/verify", "/admin/v1/logs/stats"):
        assert (await control("GET", path, token=None)).status == 401


async def test_one_proof_at_a_time_and_each_in_bounded_time(control: Control) -> None:
    """A store that never ends its list: the second caller is refused, the first one told; then it is free again."""

    class Endless(type(control.logs)):  # type: ignore[misc]
        async def listing(self, folder: str | None = None) -> AsyncIterator[StoredObject]:
            await asyncio.Event().wait()
            yield StoredObject("", 0, 0)

    store: LogStore = Endless.__new__(Endless)
    store.__dict__.update(control.logs.__dict__)
    prover = LogProver(store, control.pipeline.queues, control.pipeline.stats, timeout_s=0.2)
    first = asyncio.create_task(prover.verify())
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await prover.verify()
    with pytest.raises(LogStoreUnavailable, match="not verified within"):
        await first
    with pytest.raises(LogStoreUnavailable):
        await prover.verify()


async def test_a_second_caller_gets_a_409(control: Control) -> None:
    await ship(control)
    answers = await asyncio.gather(*(control("GET", "/admin/v1/logs/verify") for _ in range(2)))
    assert sorted(answer.status for answer in answers) == [200, 409]
    (refused,) = (answer for answer in answers if answer.status == 409)
    assert refused.json["error"]["code"] == "busy"
