"""A record with bodies is complete, or goes on without them and says why; it is never lost and never waited for."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.logs.conftest import make_record, until
from tollkeeper.domain.bodies import Body, ByteBudget, CapturedBodies
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs import bodies as bodies_module
from tollkeeper.logs.bodies import FAILED, HUNG, OVERFLOW, REASONS, STOPPED, TIMED_OUT, BodyLog
from tollkeeper.logs.encoding import RECORD_BYTES_MAX
from tollkeeper.logs.redact import Redactor
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

KEY = "tk_" + "a" * 43


class Stand:
    def __init__(self, call: Callable[[str, str], Any] | None = None, **settings: Any) -> None:
        self.metrics = Metrics()
        redactor = Redactor(LogSettings(**settings))
        redactor.callable = call
        self.records: list[RequestRecord] = []
        self.expected = 0
        self.log = BodyLog(self.records.append, redactor, self.metrics, self.expect)
        self.done = 0

    def expect(self, count: int) -> None:
        self.expected = count

    def put(self, number: int, value: Any = "hello", bytes_max: int = 10_000, **fields: Any) -> None:
        def done() -> None:
            self.done += 1

        captured = CapturedBodies(bytes_max, lambda: (Body(value), Body({"answer": value})), done)
        self.log.put(make_record(number, **fields), captured)

    def omitted(self, reason: str) -> bool:
        line = f'tollkeeper_log_bodies_omitted_total{{reason="{REASONS[reason]}"}} '
        return any(
            found.startswith(line) and not found.endswith(" 0.0")
            for found in self.metrics.exposition().decode().splitlines()
        )


async def test_bodies_are_redacted_texts_in_their_record() -> None:
    stand = Stand(redact=("hush",))
    stand.put(1, f"hush {KEY}", user=f"u{KEY}", metadata={KEY: "hush"}, tags=("hush", "b"))
    assert stand.records == []  # in a thread, not in the event loop
    await stand.log.stop()
    (record,) = stand.records
    assert record.request_body == '"[redacted] [redacted]"'
    assert record.response_body == '{"answer":"[redacted] [redacted]"}'
    assert (record.bodies_cut, record.bodies_omitted, stand.done) == (False, None, 1)
    assert (record.metadata, record.tags) == ({"[redacted]": "[redacted]"}, ("[redacted]", "b"))


async def test_a_record_that_the_thread_has_is_expected() -> None:
    """If the process is killed now it is missing like one that was just answered."""
    stand, goes_on = Stand(lambda _, text: goes_on.wait(60) and text), threading.Event()
    stand.log.expect(1)
    stand.put(1)
    stand.log.expect(1)
    assert stand.expected == 2
    goes_on.set()
    await until(lambda: stand.records)
    stand.log.expect(1)
    assert stand.expected == 1
    await stand.log.stop()


async def test_a_record_without_bodies_passes_at_once_with_its_labels_redacted() -> None:
    stand = Stand(redact=(r"@\w+",))
    stand.log.put(make_record(1, user="ann@home", metadata={"a": KEY}, tags=("@x",)))
    (record,) = stand.records
    assert (record.user, record.metadata, record.tags) == ("ann[redacted]", {"a": "[redacted]"}, ("[redacted]",))


async def test_a_callable_redacts_labels_too_away_from_the_event_loop() -> None:
    threads: set[str] = set()

    def redact(field: str, text: str) -> str | None:
        threads.add(threading.current_thread().name)
        return None if text == "b" else f"{field}={text}"

    stand = Stand(redact)
    stand.log.put(make_record(1, user="a", metadata={"x": "b", "y": "c"}, tags=("b", "d")))
    stand.log.put(make_record(2))
    assert [record.tokens_input for record in stand.records] == [2]
    await stand.log.stop()
    record = stand.records[1]
    assert (record.user, record.metadata, record.tags) == ("user=a", {"y": "metadata=c"}, ("tags=d",))
    assert threads == {"log-bodies"}


@pytest.mark.parametrize("raised", [ValueError("x"), RecursionError()])
async def test_a_redactor_that_raises_costs_the_texts_not_the_record(raised: Exception) -> None:
    def redact(field: str, text: str) -> str:
        raise raised

    stand = Stand(redact)
    stand.put(1, user="u", tags=("t",))
    await stand.log.stop()
    (record,) = stand.records
    assert (record.request_body, record.response_body, record.user, record.tags) == (None, None, None, ())
    assert record.bodies_omitted == FAILED and stand.omitted(FAILED) and stand.done == 1


async def test_a_redactor_that_hangs_costs_a_thread_and_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record goes on, the others are redacted by a new thread; when too many hang there are no more bodies."""
    monkeypatch.setattr(bodies_module, "REDACTION_S", 0.2)
    monkeypatch.setattr(bodies_module, "HUNG_MAX", 2)
    released = threading.Event()

    def redact(field: str, text: str) -> str:
        if "hang" in text:
            released.wait(20)
        return text

    stand = Stand(redact)
    try:
        stand.put(1, "hang")
        await until(lambda: len(stand.records) == 1)
        assert stand.records[0].bodies_omitted == TIMED_OUT and stand.records[0].request_body is None
        stand.put(2, "quick")
        await until(lambda: len(stand.records) == 2)
        assert stand.records[1].request_body == '"quick"'
        stand.put(3, "hang")
        stand.put(4, "behind it")
        await until(lambda: len(stand.records) == 4)
        assert {record.bodies_omitted for record in stand.records[2:]} <= {TIMED_OUT, HUNG}
        stand.put(5, "quick")
        assert stand.records[4].bodies_omitted == HUNG
    finally:
        released.set()
    await asyncio.sleep(0.05)
    assert len(stand.records) == 5 and stand.done == 5  # what came late changed nothing
    assert [r.request_body for r in stand.records] == [None, '"quick"', None, None, None]
    await stand.log.stop()


async def test_too_many_and_a_stop_leave_bodies_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies_module, "WAITING_MAX", 3)
    released = threading.Event()

    def redact(field: str, text: str) -> str:
        released.wait(20)
        return text

    stand = Stand(redact)
    for number in range(5):
        before = time.perf_counter()
        stand.put(number)
        assert time.perf_counter() - before < 1  # never waits for the redactor, which takes 20 s
    assert [record.bodies_omitted for record in stand.records] == [OVERFLOW, OVERFLOW]
    await stand.log.stop(deadline_s=0.05)
    released.set()
    assert [record.bodies_omitted for record in stand.records[2:]] == [STOPPED] * 3
    assert stand.done == 5


async def test_a_body_full_of_escapes_still_fits_the_record() -> None:
    stand = Stand()
    stand.put(1, "\x01" * 384 * 1024, bytes_max=384 * 1024)
    await stand.log.stop()
    (record,) = stand.records
    assert record.bodies_cut and len(msgspec.json.encode(record)) < RECORD_BYTES_MAX


def test_a_byte_budget_never_gives_more_than_it_has() -> None:
    budget = ByteBudget(10)
    assert budget.take(6) and not budget.take(5) and budget.take(4)
    budget.give(6)
    assert budget.take(6) and budget.used == 10
