"""Records on local disk: what a crash, a full disk and a damaged file leave of them."""

import asyncio
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logs.conftest import until
from tollkeeper.domain.errors import OutboxUnavailable, StoreUnavailable
from tollkeeper.domain.log_queue import Bounds, Chunk, Kept, joined
from tollkeeper.logs import producer as producers
from tollkeeper.logs import spool as spools
from tollkeeper.logs.producer import CHUNK_RECORDS_MAX, SPILL_CHUNKS, Producer, adopt
from tollkeeper.logs.queues import MemoryQueue
from tollkeeper.logs.spool import Spool, orphans


def chunk(first: int, count: int = 2, size: int = 10) -> Chunk:
    return Chunk("p", first, (b"x" * size,) * count, (b"body",) * count)


def test_chunks_come_back_in_order_after_a_crash(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", 10**6)
    for first in (1, 3, 5):
        assert spool.append(chunk(first)) is None
    spool.gave(9)
    os.close(spool._lock)  # as when the process is killed
    (again,) = orphans(tmp_path, 10**6)
    assert again.oldest() == [chunk(1), chunk(3), chunk(5)]
    assert again.last == 9
    again.forget(6)
    again.close(remove=True)
    assert list(tmp_path.iterdir()) == []


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.sampled_from((0, 0, 0, 3)))),
    records_max=st.integers(1, 12),
    bytes_max=st.integers(1, 150),
)
def test_joined_chunks_are_the_same_records(
    sizes: list[tuple[int, bool, int]], records_max: int, bytes_max: int
) -> None:
    """In order, with their bodies; none is cut, gaps stay, and only one that was too large itself is."""
    chunks, first = [], 1
    for count, with_bodies, gap in sizes:
        made = chunk(first + gap, count)
        chunks.append(made if with_bodies else Chunk("p", made.first, made.parts))
        first = made.last + 1
    found = list(joined(chunks, records_max, bytes_max))

    def records(of: list[Chunk]) -> list[tuple[int, bytes, bytes]]:
        return [(c.first + i, part, c.bodies[i] if c.bodies else b"") for c in of for i, part in enumerate(c.parts)]

    assert records(found) == records(chunks)
    assert {c.first for c in found} <= {c.first for c in chunks}
    for one in found:
        assert one in chunks or (len(one) <= records_max and one.bytes <= bytes_max)
    for one, other in itertools.pairwise(found):
        apart = other.first > one.last + 1
        following = next(c for c in chunks if c.first == other.first)
        too_much = len(one) + len(following) > records_max or one.bytes + following.bytes > bytes_max
        assert apart or too_much, "as few as may be"


def test_a_spool_that_is_just_being_made_is_nobodys(tmp_path: Path) -> None:
    """Workers start while others look for those of the dead. Locks are of open files: threads stand for processes."""
    makers, rounds = 4, 100
    done = threading.Event()

    def make(maker: int) -> int:
        spools_made = [Spool(tmp_path, f"p{maker}-{number}", 10**6) for number in range(rounds)]
        for each in spools_made:
            each.close(remove=True)
        return len(spools_made)

    def look() -> int:
        looks = 0
        while not done.is_set():
            for found in orphans(tmp_path, 10**6):
                found.close(remove=True)
            looks += 1
        return looks

    with ThreadPoolExecutor(makers + 1) as pool:
        looks = pool.submit(look)
        try:
            made = sum(pool.map(make, range(makers)))
        finally:
            done.set()
    assert (made, looks.result() > 0) == (makers * rounds, True)


def test_a_live_producers_spool_is_nobody_elses(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", 10**6)
    assert list(orphans(tmp_path, 10**6)) == []
    with pytest.raises(OutboxUnavailable, match="lives"):
        Spool(tmp_path, "p", 10**6)
    spool.close(remove=False)


def test_what_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", 10**6)
    spool.append(chunk(1))
    spool.append(chunk(3))
    spool.close(remove=False)
    (segment,) = (tmp_path / "p").glob("*.seg")
    data = segment.read_bytes()
    for damaged in (data[:-1], data[:-1] + b"!", data + b"\0\0\0"):
        segment.write_bytes(damaged)
        again = Spool(tmp_path, "p", 10**6)
        assert again.oldest()[0] == chunk(1)
        again.close(remove=False)


def test_above_its_bound_the_oldest_segment_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 300)
    spool = Spool(tmp_path, "p", 1_000)
    forgotten = [found for n in range(1, 60, 2) if (found := spool.append(chunk(n))) is not None]
    assert spool.bytes <= 1_000
    assert next(a for a, _ in forgotten) == 1
    assert all(b == c - 1 for (_, b), (c, _) in itertools.pairwise(forgotten))
    assert spool.oldest()[0].first == forgotten[-1][1] + 1


class Away(MemoryQueue):
    """A queue that is away until told otherwise."""

    away = True

    async def put(self, chunk: Chunk) -> Kept:
        if self.away:
            raise StoreUnavailable("away")
        return await super().put(chunk)


class Meanwhile(Away):
    """Something happens in the very step in which an answer comes."""

    meanwhile: list[Callable[[], object]] = []  # noqa: RUF012 - each test gives its own

    async def put(self, chunk: Chunk) -> Kept:
        kept = await super().put(chunk)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return kept


def queue() -> Away:
    return Away("run", Bounds(), lambda: 1)


async def test_records_of_the_very_tick_in_which_the_spool_ends_are_not_waited_for_in_vain(tmp_path: Path) -> None:
    """Found by the fault campaign: records pending and nothing spooled must not spin the loop."""
    target = queue()
    producer = Producer("p", target, Spool(tmp_path, "p", 10**6))
    await producer.start()
    producer.add(b"one")
    await until(lambda: producer.spooling)
    producer._spool.forget(1)  # type: ignore[union-attr]
    producer._parts.append(b"two")
    producer._bodies.append(b"")
    producer._bytes += 3
    producer.number += 1
    target.away = False
    await asyncio.wait_for(until(lambda: not producer.spooling), 5)
    await producer.stop()


async def test_a_record_that_comes_while_the_last_chunk_is_answered_does_not_spin_the_loop(tmp_path: Path) -> None:
    target = Meanwhile("run", Bounds(), lambda: 1)
    producer = Producer("p", target, Spool(tmp_path, "p", 10**6))
    await producer.start()
    producer.add(b"one")
    await until(lambda: producer.spooling)
    target.meanwhile = [lambda: producer.add(b"two"), lambda: producer.add(b"three")]
    target.away = False
    await until(lambda: not producer.spooling and producer.brought == 3)
    await producer.stop()


class Counting(MemoryQueue):
    """Knows how many records came in each chunk."""

    def __init__(self) -> None:
        super().__init__("run", Bounds(), lambda: 1)
        self.counts: list[int] = []

    async def put(self, chunk: Chunk) -> Kept:
        self.counts.append(len(chunk))
        return await super().put(chunk)


async def test_records_of_a_moment_go_together_unless_somebody_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "LINGER_S", 1.0)
    target = Counting()
    producer = Producer("p", target, None)
    await producer.start()
    producer.add(b"one")
    await until(lambda: producer.brought == 1)
    for part in (b"two", b"three"):
        producer.add(part)
        for _ in range(10):
            await asyncio.sleep(0)
    await until(lambda: producer.brought == 3)
    assert target.counts == [1, 2]

    monkeypatch.setattr(producers, "LINGER_S", 3600.0)
    for number in (4, 5, 6):
        producer.add(b"waited for")
        await asyncio.wait_for(producer.kept(number), 60)
    await producer.stop()


async def test_an_answer_that_never_comes_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in a run on a busy machine: nothing was brought any more until the restart."""
    monkeypatch.setattr(producers, "REPLAY_TIMEOUT_S", 0.02)
    target = queue()
    producer = Producer("p", target, Spool(tmp_path, "p", 10**6))
    await producer.start()
    producer.add(b"one")
    await until(lambda: producer.spooling)
    silent: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
    with monkeypatch.context() as patch:
        patch.setattr(target, "put", lambda _: silent)
        await until(lambda: silent.cancelled() and "no answer" in (producer.last_error or ""))
    target.away = False
    await until(lambda: not producer.spooling)
    await producer.stop()


async def test_a_disk_that_cannot_be_written_drops_counts_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = queue()
    spool = Spool(tmp_path, "p", 10**6)
    producer = Producer("p", target, spool)
    await producer.start()

    def full(_: Chunk) -> None:
        raise OutboxUnavailable("no space left")

    monkeypatch.setattr(spool, "append", full)
    for _ in range(5):
        producer.add(b"lost")
    await until(lambda: producer.dropped == 5)
    target.away = False
    producer.add(b"kept")
    await until(lambda: producer.brought == 6)
    (gaps,) = [gaps for _, gaps in [await target.pending()]]
    assert [(g.kind, g.first, g.last) for g in gaps] == [("dropped", 1, 5)]
    await producer.stop()


async def test_nothing_spins_while_a_disk_that_is_full_takes_none_of_many_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool is empty and more waits than one turn spills: that turn must come. Found by the fault campaign."""
    spool = Spool(tmp_path, "p", 10**6)
    producer = Producer("p", queue(), spool)
    await producer.start()

    def full(_: Chunk) -> None:
        raise OutboxUnavailable("no space left")

    monkeypatch.setattr(spool, "append", full)
    for _ in range(4 * CHUNK_RECORDS_MAX):
        producer.add(b"lost")
    await until(lambda: producer.dropped == 4 * CHUNK_RECORDS_MAX)
    await producer.stop()


async def test_what_waits_goes_to_the_spool_a_few_chunks_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MiB at once would stop every request of the process meanwhile."""
    target = queue()
    spool = Spool(tmp_path, "p", 10**9)
    producer = Producer("p", target, spool)
    await producer.start()
    turns: list[int] = []
    append = spool.append

    def counted(chunk: Chunk) -> tuple[int, int] | None:
        turns[-1] += 1
        return append(chunk)

    monkeypatch.setattr(spool, "append", counted)
    await asyncio.sleep(0)
    for _ in range(48):
        producer.add(bytes(2**18))
    while producer.brought < 48:
        turns.append(0)
        await asyncio.sleep(0)
    assert sum(turns) == 12 and max(turns) <= SPILL_CHUNKS + 1, "and the one that was on its way"
    target.away = False
    await producer.flush()
    runs, gaps = await target.pending()
    assert sum(last - first + 1 for _, first, last in runs) == 48 and not gaps
    await producer.stop()


class Slow(MemoryQueue):
    """A queue whose answers are held back."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers: asyncio.Queue[bool] = asyncio.Queue()

    async def put(self, chunk: Chunk) -> Kept:
        if not await self.answers.get():
            raise StoreUnavailable("away")
        return await super().put(chunk)


@pytest.mark.parametrize("arrives", [True, False])
async def test_without_a_spool_the_oldest_that_wait_are_dropped_and_told_in_order(arrives: bool) -> None:
    """Only they: neither the youngest, nor what is on its way."""
    target = Slow("run", Bounds(), lambda: 1)
    producer = Producer("p", target, None, pending_bytes_max=2 * 2**20)
    await producer.start()

    async def enqueue(record: bytes) -> None:
        await producer.kept(producer.add(record))

    first = asyncio.create_task(enqueue(b"first"))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(enqueue(bytes(2**18))) for _ in range(12)]
    await asyncio.sleep(0.01)
    assert producer.dropped == 4 and not first.done()
    for answer in (arrives, *[True] * 4):
        target.answers.put_nowait(answer)
    outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
    lost = [isinstance(outcome, StoreUnavailable) for outcome in outcomes]
    assert lost == [not arrives, *[True] * 4, *[False] * 8]
    runs, gaps = await target.pending()
    assert [(g.kind, g.first, g.last) for g in gaps] == [("dropped", 2 if arrives else 1, 5)]
    assert sum(b - a + 1 for _, a, b in runs) == (9 if arrives else 8)
    await producer.stop()


@pytest.mark.parametrize("away", [False, True])
async def test_a_full_spool_forgets_nothing_that_arrived_or_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """Found on a busy machine: the oldest segment was told as dropped, and arrived. Now the next ones are dropped."""
    monkeypatch.setattr(producers, "BACKOFF_MIN_S", 1.0)
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 300)
    monkeypatch.setattr(producers, "CHUNK_RECORDS_MAX", 3)
    target = Slow("run", Bounds(), lambda: 1)
    spool = Spool(tmp_path, "p", 1_000)
    for first in range(1, 13, 2):
        spool.append(chunk(first))
    producer = Producer("p", target, spool)
    producer.number = 12
    await producer.start()
    (segment, *_), first_segment = spool._segments, spool.oldest()
    target.answers.put_nowait(True)
    await until(lambda: producer._replayed == 2)  # a part of the segment arrived, the next is on its way
    if away:
        target.answers.put_nowait(False)
        await until(lambda: producer.last_error is not None)
    for _ in range(60):
        producer.add(b"x" * 10, b"body")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await until(lambda: not producer._parts)
    assert producer.dropped > 0 and segment.path.exists() == (not away) and spool.bytes <= 1_000
    for _ in range(100):
        target.answers.put_nowait(True)
    await until(lambda: not producer.spooling)
    await producer.drain(5)
    runs, gaps = await target.pending()
    assert [(g.kind, g.first, g.last - g.first + 1) for g in gaps] == [
        ("dropped", 3 if away else first_segment[-1].last + 1, producer.dropped)
    ]
    assert sum(b - a + 1 for _, a, b in runs) == 72 - producer.dropped
    await producer.stop()


async def test_a_damaged_segment_is_given_up_and_the_rest_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 100)
    spool = Spool(tmp_path, "p", 10**6)
    for first in (1, 3, 5):
        spool.append(chunk(first))
    spool.gave(6)
    spool.close(remove=False)
    second = sorted((tmp_path / "p").glob("*.seg"))[1]
    target = queue()
    target.away = False
    (found,) = orphans(tmp_path, 10**6)
    second.write_bytes(b"\0" * 90)
    found.close(remove=False)
    assert await adopt(tmp_path, lambda _: target, 10**6) == 1
    runs, _ = await target.pending()
    assert [(first, last) for _, first, last in runs] == [(1, 2), (5, 6)]
    assert not (tmp_path / "p").exists()


async def test_an_adoption_that_fails_half_way_is_repeated_without_doubles(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", 10**6)
    spool.append(chunk(1))
    spool.append(chunk(3))
    spool.gave(7)
    spool.close(remove=False)
    target = queue()
    with pytest.raises(StoreUnavailable):
        await adopt(tmp_path, lambda _: target, 10**6)
    target.away = False
    assert await adopt(tmp_path, lambda _: target, 10**6) == 1
    stats = target.now()
    assert (stats.waiting, stats.lost, stats.repeated) == (4, 3, 0)
    assert await adopt(tmp_path, lambda _: target, 10**6) == 0


async def test_what_was_expected_when_the_process_was_killed_is_told_as_lost(tmp_path: Path) -> None:
    """A request is answered a moment before its record is added."""
    spool = Spool(tmp_path, "p", 10**6)
    producer = Producer("p", queue(), spool)
    producer.add(b"one")
    producer.expect(1)
    producer.expect(2)
    producer.add(b"two")
    assert (producer.number, spool.last) == (2, 3)
    os.close(spool._lock)  # as when the process is killed
    target = queue()
    target.away = False
    assert await adopt(tmp_path, lambda _: target, 10**6) == 1
    assert target.now().lost == 3


async def test_what_was_expected_and_did_not_come_is_not_told_after_a_stop(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", 10**6)
    producer = Producer("p", queue(), spool)
    producer.expect(3)
    for number in range(1, 3):
        assert producer.add(b"x" * 10) == number
    assert spool.last == 3
    assert await producer.stop() == 0
    (again,) = orphans(tmp_path, 10**6)
    assert (again.last, again.newest) == (2, 2)
    again.close(remove=False)
