"""The buffer, alone and against a plain model of it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from tollkeeper.logs.buffer import DROPPED_RANGES_MAX, Batch, MemoryLogBuffer

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


def make(records_max: int = 100, bytes_max: int = 10_000, clock: Clock | None = None) -> MemoryLogBuffer:
    return MemoryLogBuffer("gw", records_max=records_max, bytes_max=bytes_max, now_us=clock or Clock())


def fill(buffer: MemoryLogBuffer, count: int, first: int = 1, size: int = 10) -> None:
    buffer.put_batch(first, [b"x" * size] * count)


async def test_a_lease_is_a_run_of_records_named_by_its_numbers() -> None:
    buffer = make()
    buffer.put_batch(1, [b"a", b"b", b"c"])
    batch = await buffer.lease(2, 1000)
    assert batch == Batch("gw", 1, (b"a", b"b"))
    assert (batch.name, batch.last, len(batch)) == ("gw-1-2", 2, 2)


async def test_nothing_waiting_is_no_lease() -> None:
    assert await make().lease(10, 1000) is None


async def test_a_lease_holds_its_bytes_and_at_least_one_record() -> None:
    buffer = make()
    buffer.put_batch(1, [b"x" * 60, b"x" * 40, b"x", b"x" * 500])
    sizes = [len(batch) for _ in range(3) if (batch := await buffer.lease(10, 100))]
    assert sizes == [2, 1, 1]


async def test_a_released_batch_comes_again_whole_before_anything_else() -> None:
    """Its membership and name stay, whatever was put and whatever size is asked for meanwhile."""
    buffer = make()
    fill(buffer, 5)
    batch = await buffer.lease(5, 1000)
    assert batch is not None
    fill(buffer, 5, first=6)
    await buffer.release(batch)
    assert await buffer.lease(1, 1) == batch
    following = await buffer.lease(10, 1000)
    assert following is not None
    assert following.name == "gw-6-10"


async def test_an_acknowledged_batch_is_gone_and_a_second_ack_changes_nothing() -> None:
    buffer = make()
    fill(buffer, 3)
    batch = await buffer.lease(3, 1000)
    assert batch is not None
    assert await buffer.ack(batch)
    assert not await buffer.ack(batch)
    await buffer.release(batch)
    assert await buffer.lease(3, 1000) is None
    assert (buffer.size(), buffer.stats().acknowledged) == (0, 3)


async def test_a_number_that_was_put_before_is_ignored_and_a_skipped_one_is_a_fault() -> None:
    buffer = make()
    buffer.put_batch(1, [b"a", b"b", b"c"])
    buffer.put_batch(2, [b"B", b"C", b"d"])
    with pytest.raises(ValueError, match="does not follow 4"):
        buffer.put(6, b"f")
    batch = await buffer.lease(10, 1000)
    assert batch is not None
    assert batch.records == (b"a", b"b", b"c", b"d")
    assert buffer.stats().repeated == 2


@pytest.mark.parametrize(("records_max", "bytes_max"), [(10, 10_000), (10_000, 100)])
async def test_overflow_drops_the_oldest_that_is_not_leased_and_names_it(records_max: int, bytes_max: int) -> None:
    buffer = make(records_max, bytes_max)
    fill(buffer, 4)
    leased = await buffer.lease(4, 1000)
    fill(buffer, 12, first=5)
    stats = buffer.stats()
    assert (stats.size, stats.leased, stats.dropped, stats.dropped_ranges) == (10, 4, 6, ((5, 10),))
    rest = await buffer.lease(100, 1000)
    assert leased is not None and rest is not None
    assert (rest.first, rest.last) == (11, 16)


async def test_with_everything_leased_the_new_record_is_the_one_dropped() -> None:
    buffer = make(records_max=3)
    fill(buffer, 3)
    await buffer.lease(3, 1000)
    buffer.put(4, b"x")
    assert (buffer.size(), buffer.stats().dropped_ranges) == (3, ((4, 4),))


async def test_the_list_of_dropped_ranges_is_bounded_and_the_count_stays_exact() -> None:
    buffer = make(records_max=1)
    number = 0
    for _ in range(DROPPED_RANGES_MAX + 10):
        fill(buffer, 3, first=number + 1)
        number += 3
        batch = await buffer.lease(1, 1000)
        assert batch is not None
        await buffer.ack(batch)
    stats = buffer.stats()
    assert stats.dropped == 2 * (DROPPED_RANGES_MAX + 10)
    assert len(stats.dropped_ranges) == DROPPED_RANGES_MAX
    assert stats.dropped_unlisted == 2 * 10


async def test_a_filling_buffer_warns_once_a_crossing() -> None:
    buffer = make(records_max=100)
    with capture_logs() as events:
        fill(buffer, 80)
        assert events == []
        fill(buffer, 200, first=81)
        assert [event["event"] for event in events] == ["log_buffer_filling"]
        batch = await buffer.lease(60, 10_000)
        assert batch is not None
        await buffer.ack(batch)
        fill(buffer, 60, first=281)
        assert len(events) == 2


async def test_bytes_warn_as_records_do() -> None:
    buffer = make(bytes_max=1000)
    with capture_logs() as events:
        fill(buffer, 1, size=801)
        assert len(events) == 1
        assert buffer.stats().fill == pytest.approx(0.801)


async def test_ages_are_those_of_the_oldest_record() -> None:
    clock = Clock()
    buffer = make(clock=clock)
    fill(buffer, 1)
    clock.now += 5
    fill(buffer, 1, first=2)
    await buffer.lease(1, 1000)
    clock.now += 7
    stats = buffer.stats()
    assert (stats.oldest_age_us, stats.waiting_age_us) == (12, 7)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The memory buffer never waits for anything, so its coroutines end at the first step."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("the buffer waited")


class BufferModel(RuleBasedStateMachine):
    """The buffer equals a list of waiting numbers, a list of leases and a set of dropped numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = make(records_max=12, bytes_max=120)
        self.last = 0
        self.waiting: list[tuple[int, bytes]] = []
        self.leased: list[list[tuple[int, bytes]]] = []
        self.released: list[list[tuple[int, bytes]]] = []
        self.acknowledged: list[int] = []
        self.dropped: list[int] = []

    def all_leased(self) -> list[tuple[int, bytes]]:
        return [record for lease in self.leased + self.released for record in lease]

    @rule(sizes=st.lists(st.integers(1, 40), max_size=8))
    def put(self, sizes: list[int]) -> None:
        self.buffer.put_batch(self.last + 1, [b"x" * size for size in sizes])
        for size in sizes:
            self.last += 1
            self.waiting.append((self.last, b"x" * size))
            while self.waiting and (
                len(self.waiting) + len(self.all_leased()) > 12
                or sum(len(data) for _, data in self.waiting + self.all_leased()) > 120
            ):
                self.dropped.append(self.waiting.pop(0)[0])

    @rule(number=st.integers(1, 30))
    def repeat(self, number: int) -> None:
        if number <= self.last:
            self.buffer.put(number, b"again")

    @rule(count=st.integers(1, 6), bytes_max=st.integers(1, 60))
    def lease(self, count: int, bytes_max: int) -> None:
        batch = run(self.buffer.lease(count, bytes_max))
        if self.released:
            expected = min(self.released)
            self.released.remove(expected)
        else:
            expected = []
            while self.waiting and len(expected) < count:
                if expected and sum(len(d) for _, d in [*expected, self.waiting[0]]) > bytes_max:
                    break
                expected.append(self.waiting.pop(0))
        if not expected:
            assert batch is None
            return
        assert batch is not None
        assert list(enumerate(batch.records, batch.first)) == expected
        self.leased.append(expected)

    def batch(self, records: list[tuple[int, bytes]]) -> Batch:
        return Batch("gw", records[0][0], tuple(data for _, data in records))

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leased))
        assert run(self.buffer.ack(self.batch(lease)))
        self.leased.remove(lease)
        self.acknowledged += [number for number, _ in lease]

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leased))
        run(self.buffer.release(self.batch(lease)))
        self.leased.remove(lease)
        self.released.append(lease)

    @invariant()
    def accounts_agree(self) -> None:
        stats = self.buffer.stats()
        kept = self.waiting + self.all_leased()
        assert stats.size == len(kept) == self.buffer.size()
        assert stats.bytes == sum(len(data) for _, data in kept)
        assert (stats.waiting, stats.leased) == (len(self.waiting), len(self.all_leased()))
        assert stats.acknowledged == len(self.acknowledged)
        named = [n for first, last in stats.dropped_ranges for n in range(first, last + 1)]
        assert named == self.dropped
        assert self.last == stats.acknowledged + stats.dropped + stats.size


TestBufferModel = BufferModel.TestCase
TestBufferModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_the_buffer_never_waits() -> None:
    """`run` above relies on it, and so does the account: no moment between delivery and acknowledgement."""
    assert asyncio.iscoroutinefunction(MemoryLogBuffer.lease)
    assert run(make().lease(1, 1)) is None
