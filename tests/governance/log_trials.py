"""Random schedules for a log queue: the scripts and their twin are played the same moves and must answer the same."""

import itertools
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.governance.lua_redis import LuaClient, LuaRedis
from tests.governance.test_twin import START_US
from tollkeeper.domain.log_queue import MARK_TTL_US, Ask, Bounds, Chunk, Gap
from tollkeeper.domain.ports import ScriptStore
from tollkeeper.logs.queues import MemoryQueue, RedisQueue

Move = tuple[Any, ...]
shards = itertools.count()
BOUNDS = Bounds(records_max=12, bytes_max=120)
PRODUCERS = ("gw-a", "gw-b")

few = st.integers(1, 6)
texts = st.one_of(
    st.lists(st.integers(0, 40).map(lambda n: b"x" * n), min_size=1, max_size=6),
    st.lists(st.integers(0, 2).map(lambda n: b"y" * n), min_size=1, max_size=6),
)
moves = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(PRODUCERS), texts, st.sampled_from([0, 0, 0, 0, 2]), st.just(False)),
    st.tuples(st.just("put"), st.sampled_from(PRODUCERS), texts, st.sampled_from([0, 0, 0, 0, 2]), st.just(True)),
    st.tuples(st.just("repeat"), st.sampled_from(PRODUCERS), texts, st.integers(0, 8), st.booleans()),
    st.tuples(
        st.just("note"), st.sampled_from(PRODUCERS), st.integers(-3, 3), few, st.sampled_from(["dropped", "lost"])
    ),
    st.tuples(st.just("peek"), few),
    st.tuples(st.just("take"), few),
    st.tuples(st.just("clear"), few),
    st.tuples(st.just("lease"), few, st.integers(1, 90), st.sampled_from([0, 5, 1000])),
    st.tuples(st.just("lease"), few, st.integers(1, 90), st.sampled_from([0, 5, 1000])),
    st.tuples(st.just("due"), few, st.integers(1, 90), st.sampled_from([1, 5, 30])),
    st.tuples(st.just("renew"), st.integers(0, 5), st.sampled_from([0, 7, 1000])),
    st.tuples(st.just("ack"), st.integers(0, 5)),
    st.tuples(st.just("ack"), st.integers(0, 5)),
    st.tuples(st.just("stranger"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from([1, 4, 5, 6, 1000])),
)
schedules = st.integers(0, 40).flatmap(lambda n: st.lists(moves, min_size=n, max_size=n))


def distinct(texts: list[bytes], first: int) -> tuple[bytes, ...]:
    """Texts of the same lengths; neighbours differ, so that a piece from the wrong place shows."""
    return tuple(bytes([97 + (first + i) % 26]) * len(text) for i, text in enumerate(texts))


class QueuePair:
    """The two, with one clock."""

    def __init__(self, store: ScriptStore, bounds: Bounds = BOUNDS) -> None:
        self.now_us = START_US
        self.memory = MemoryQueue("run", bounds, lambda: self.now_us)
        self.redis = RedisQueue(store, "run", bounds, shard=f"t{next(shards)}", time_us=lambda: self.now_us)
        self.last = dict.fromkeys(PRODUCERS, 0)
        self.names: list[str] = []

    async def both(self, call: Callable[[Any], Any]) -> Any:
        one, two = await call(self.redis), await call(self.memory)
        assert one == two, (one, two)
        return two

    async def step(self, move: Move) -> None:
        kind, *arguments = move
        await getattr(self, f"on_{kind}")(*arguments)
        stats = await self.both(lambda queue: queue.stats())
        marks = await self.both(lambda queue: queue.marks())
        (runs, gaps), (twin_runs, twin_gaps) = await self.redis.pending(), await self.memory.pending()
        assert sorted(runs) == sorted(twin_runs) and sorted(gaps) == sorted(twin_gaps)
        assert sum(last - first + 1 for _, first, last in runs) == stats.size
        assert stats.size <= max(BOUNDS.records_max, stats.leased) or stats.size <= BOUNDS.records_max + stats.leased
        assert all(marks.get(producer, 0) <= last for producer, last in self.last.items())

    async def on_put(self, producer: str, texts: list[bytes], skipped: int, bodies: bool) -> None:
        first = self.last[producer] + 1 + skipped
        parts = distinct(texts, first)
        chunk = Chunk(producer, first, parts, tuple(t[::2].upper() for t in parts) if bodies else ())
        self.last[producer] = chunk.last
        await self.both(lambda queue: queue.put(chunk))

    async def on_repeat(self, producer: str, texts: list[bytes], back: int, bodies: bool) -> None:
        first = max(1, self.last[producer] - back)
        parts = distinct(texts, first)
        chunk = Chunk(producer, first, parts, tuple(t.upper() for t in parts) if bodies else ())
        self.last[producer] = max(self.last[producer], chunk.last)
        await self.both(lambda queue: queue.put(chunk))

    async def on_note(self, producer: str, ahead: int, count: int, kind: Any) -> None:
        first = max(1, self.last[producer] + 1 + ahead)
        gap = Gap(kind, producer, first, first + count - 1)
        self.last[producer] = max(self.last[producer], gap.last)
        await self.both(lambda queue: queue.note(gap))

    async def on_peek(self, count: int) -> None:
        await self.both(lambda queue: queue.peek(count))

    async def on_take(self, count: int) -> None:
        await self.both(lambda queue: queue.take(count))

    async def on_clear(self, count: int) -> None:
        await self.both(lambda queue: queue.clear(count))

    async def on_lease(self, count: int, bytes_max: int, hold_us: int) -> None:
        batch = await self.both(lambda queue: queue.lease(Ask(count, bytes_max, hold_us)))
        if batch is not None and batch.name not in self.names:
            self.names.append(batch.name)

    async def on_due(self, count: int, size: int, age_us: int) -> None:
        batch = await self.both(lambda queue: queue.lease(Ask(9, 90, 1000, count, size, age_us)))
        if batch is not None and batch.name not in self.names:
            self.names.append(batch.name)

    async def on_renew(self, which: int, hold_us: int) -> None:
        if self.names:
            name = self.names[which % len(self.names)]
            await self.both(lambda queue: queue.renew(name, hold_us))

    async def on_ack(self, which: int) -> None:
        if self.names:
            name = self.names[which % len(self.names)]
            await self.both(lambda queue: queue.ack(name))

    async def on_stranger(self, which: int) -> None:
        """A batch of another run, as a shipper holds it that slept through the loss of Redis."""
        await self.both(lambda queue: queue.ack(f"before-{which}"))
        await self.both(lambda queue: queue.renew(f"before-{which}", 1000))

    async def on_wait(self, us: int) -> None:
        self.now_us += us


async def play_queue(store: ScriptStore, schedule: list[Move]) -> None:
    pair = QueuePair(store)
    for move in schedule:
        await pair.step(move)


async def play_queue_lua(lua: LuaRedis, schedule: list[Move]) -> None:
    """And no key is left behind."""
    lua.begin(lambda: START_US)
    await play_queue(LuaClient(lua), schedule)
    nothing_is_left_behind(lua)


def nothing_is_left_behind(lua: LuaRedis) -> None:
    """Parts of every chunk that waits or is leased, bodies of those that have some, and a list for each lease."""
    chunks = [text for key, items in lua.redis.values.items() if key.endswith(b":queue") for text in items]
    for key, items in lua.redis.values.items():
        if b":lease:" in key:
            chunks += items[1:]
    numbers = {int.from_bytes(text[:6], "little") for text in chunks}
    kept = {
        kind: {int(key.rpartition(b":")[2]) for key in lua.redis.values if b":%b:" % kind in key}
        for kind in (b"part", b"body")
    }
    with_bodies = {int.from_bytes(text[:6], "little") for text in chunks if text[25:30] != bytes(5)}
    assert kept[b"part"] == numbers and with_bodies <= kept[b"body"] <= numbers
    assert all(items for key, items in lua.redis.values.items() if b":body:" in key), "a key for no bodies"
    leased = {m for key, ranked in lua.redis.values.items() if key.endswith(b":leases") for m in ranked}
    assert {key.rpartition(b":")[2] for key in lua.redis.values if b":lease:" in key} == leased


async def play_large_queue(store: ScriptStore) -> None:
    """Chunks, marks and gaps beyond the bounds of one call."""
    pair = QueuePair(store, Bounds(records_max=5_000, bytes_max=10**9))
    for number in range(1, 1_203):
        await pair.both(lambda queue, n=number: queue.put(Chunk("gw-a", n, (b"r%d" % n,))))  # type: ignore[misc]
    first = await pair.both(lambda queue: queue.lease(Ask(10_000, 10**9, 1000)))
    assert len(first) == 1000
    second = await pair.both(lambda queue: queue.lease(Ask(10_000, 10**9, 1000)))
    assert len(second) == 202
    assert await pair.both(lambda queue: queue.ack(first.name))
    for number in range(1_000):
        await pair.both(lambda queue, n=number: queue.note(Gap("lost", f"p{n}", 1, 2)))  # type: ignore[misc]
    stats = await pair.both(lambda queue: queue.stats())
    assert (stats.gaps, stats.lost, stats.unlisted) == (1000, 2000, 0)
    await pair.both(lambda queue: queue.note(Gap("lost", "one more", 1, 3)))
    assert (await pair.both(lambda queue: queue.stats())).unlisted == 3
    assert len(await pair.both(lambda queue: queue.marks())) == 1002
    pair.now_us += MARK_TTL_US
    await pair.both(lambda queue: queue.put(Chunk("new", 1, (b"",))))
    assert len(await pair.both(lambda queue: queue.marks())) == 1
    for number in range(1, 600):
        await pair.both(lambda queue, n=2 * number: queue.note(Gap("lost", "p1", n, n)))  # type: ignore[misc]
    stats = await pair.both(lambda queue: queue.stats())
    assert stats.unlisted > 3
    await pair.both(lambda queue: queue.clear(10_000))
    assert await pair.both(lambda queue: queue.ack(second.name))


async def play_edges(store: ScriptStore) -> None:
    """Texts of gaps of every length about their bound; marks at the very end of their week; a queue that is emptied
    of more chunks than are freed in one call."""
    pair = QueuePair(store, Bounds(records_max=1_300, bytes_max=10**9))
    for producer in range(11):
        start = 10 ** (producer % 4)
        for number in range(start, start + 2 * 460, 2):
            gap = Gap("lost", f"p{producer}", number + producer, number + producer)
            await pair.both(lambda queue, gap=gap: queue.note(gap))  # type: ignore[misc]
        stats = await pair.both(lambda queue: queue.stats())
    assert stats.unlisted > 0
    await pair.both(lambda queue: queue.lease(Ask(1, 1, 1)))
    for number in range(989):
        await pair.both(lambda queue, n=number: queue.note(Gap("lost", f"q{n}", 1, 1)))  # type: ignore[misc]
    assert len(await pair.both(lambda queue: queue.marks())) == 1000
    for wait_us, left in ((MARK_TTL_US - 1, 1001), (1, 2)):
        pair.now_us += wait_us
        await pair.both(lambda queue, name=f"new {wait_us}": queue.put(Chunk(name, 1, (b"x",))))  # type: ignore[misc]
        assert len(await pair.both(lambda queue: queue.marks())) == left
    for number in range(2, 1_202):
        await pair.both(lambda queue, n=number: queue.put(Chunk("new 1", n, (b"xx",), (b"yy",))))  # type: ignore[misc]
    await pair.both(lambda queue: queue.clear(600))
    batch = await pair.both(lambda queue: queue.lease(Ask(600, 10**6, 1)))
    while batch is not None and not await pair.both(lambda queue, b=batch: queue.ack(b.name)):  # type: ignore[misc]
        batch = None
    await play_exactly(store)
    await play_replies(store)
    await play_full_gaps(store)
    await play_full_marks(store)


def sized(first: int, *sizes: int, bodies: tuple[int, ...] = (), producer: str = "gw-a") -> Chunk:
    """Records of so many bytes."""
    parts = distinct([bytes(n) for n in sizes], first)
    return Chunk(producer, first, parts, tuple(t.upper() for t in distinct([bytes(n) for n in bodies], first)))


async def play_exactly(store: ScriptStore) -> None:
    """What happens when a bound is met to the record, the byte and the µs, and one beyond it."""
    roomy, few = Bounds(100, 1_000), Bounds(100, 40)
    empty = sized(1, 0, 0, 0)
    cut = sized(1, 10, 10, 10, 10, bodies=(5, 5, 5, 5))
    heavy = sized(1, 1, 1, bodies=(10, 10))
    whole = Ask(9, 1_000, 1_000)
    aged = Ask(9, 90, 1_000, 9, 99, 10)
    cases: list[tuple[Bounds, list[Chunk], list[Ask | str]]] = [
        (roomy, [empty, sized(4, 1)], ["clear 1"]),
        (roomy, [cut], [Ask(9, 34, 1_000), Ask(9, 30, 1_000)]),
        (roomy, [sized(1, 2), sized(2, 0), sized(3, 1)], [Ask(9, 2, 1_000)]),
        (roomy, [sized(1, 3, 4)], [Ask(9, 90, 1_000, 9, 8, 9_000), Ask(9, 90, 1_000, 9, 7, 9_000)]),
        (roomy, [sized(1, 3)], [aged, "wait 9", aged, "wait 1", aged]),
        (Bounds(2, 1_000), [sized(1, 1, 1)], [Ask(1, 90, 1_000), Ask(1, 90, 1_000)]),
        (Bounds(3, 1_000), [sized(1, 1, 1)], [Ask(1, 90, 1_000), Ask(1, 90, 1_000)]),
        (Bounds(100, 20), [sized(1, 10, 10)], [Ask(1, 90, 1_000), Ask(1, 90, 1_000)]),
        (Bounds(100, 21), [sized(1, 10, 10)], [Ask(1, 90, 1_000), Ask(1, 90, 1_000)]),
        (few, [sized(1, 10, 10, bodies=(10, 10))], [whole]),
        (few, [sized(1, 10, 10, bodies=(10, 11))], [whole]),
        (few, [sized(1, 40, bodies=(1,))], [whole]),
        (few, [sized(1, 5, bodies=(6,)), sized(2, 5, bodies=(6,)), sized(3, 5, bodies=(15,))], [whole]),
        (few, [sized(n, 5, bodies=(6,)) for n in range(1, 7)], [whole]),
        (few, [sized(1, 10, 10, 10, 10), sized(5, 10)], [whole]),
        (few, [sized(1, 10, 10, 10, 10), sized(5, 11)], [whole]),
        (roomy, [heavy, sized(3, 1, 1)], ["clear 1"]),
        (roomy, [heavy, sized(3, 1, 1)], ["clear 2"]),
        (Bounds(2, 1_000), [heavy, sized(3, 1)], [whole]),
        (Bounds(2, 25), [heavy, sized(3, 1, 1)], [whole]),
    ]
    for bounds, chunks, moves in cases:
        pair = QueuePair(store, bounds)
        for chunk in chunks:
            await pair.both(lambda queue, c=chunk: queue.put(c))  # type: ignore[misc]
            await pair.both(lambda queue: queue.peek(9))
        for move in moves:
            if isinstance(move, Ask):
                await pair.both(lambda queue, ask=move: queue.lease(ask))  # type: ignore[misc]
            elif move.startswith("clear"):
                await pair.both(lambda queue, n=int(move[6:]): queue.clear(n))  # type: ignore[misc]
            else:
                pair.now_us += int(move[5:])
            await pair.both(lambda queue: queue.stats())
            await pair.both(lambda queue: queue.peek(9))


async def play_replies(store: ScriptStore) -> None:
    """Yes is 1, as the scripts' headers say, whatever their callers make of it."""
    queue = RedisQueue(store, "run", Bounds(10, 1_000), shard=f"t{next(shards)}", time_us=lambda: START_US)
    keys = queue._keys

    async def run(script: str, *arguments: Any) -> Any:
        return await store.run(script, keys, arguments)

    assert await run("lognote", struct.pack("<3d", START_US, 1, 2), "gw-a", "run", "lost") == 1
    assert await run("lognote", struct.pack("<3d", START_US, 1, 2), "gw-a", "run", "lost") == 0
    ask = struct.pack("<9d", START_US, 9, 90, 0, 0, 0, 0, 10, 1_000)
    assert (await run("loglease", ask))[:3] == [b"run", b"1", 0]
    assert (await run("loglease", ask))[:3] == [b"run", b"1", 1]
    assert await run("logrenew", struct.pack("<2d", START_US, 5), "run", "1") == 1
    assert await run("logack", "run", "1") == 1
    assert await run("logack", "run", "1") == 0
    assert await run("logrenew", struct.pack("<2d", START_US, 5), "run", "1") == 0


async def play_full_gaps(store: ScriptStore) -> None:
    """A text of gaps that is just as long as it may be, and one byte longer."""
    for first in (Gap("lost", "gw-a", 10**9, 10**10), Gap("lost", "gw-a", 10**10, 10**10)):
        pair = QueuePair(store)
        gaps = [first, *(Gap("lost", "gw-a", 10**15 + n, 10**15 + n) for n in range(0, 2 * 119, 2))]
        for gap in gaps:
            await pair.both(lambda queue, gap=gap: queue.note(gap))  # type: ignore[misc]
            assert (await pair.both(lambda queue: queue.stats())).gaps == 1
            (_, one), (_, two) = await pair.redis.pending(), await pair.memory.pending()
            assert sorted(one) == sorted(two)


async def play_full_marks(store: ScriptStore) -> None:
    """Of 999 producers that were silent for a week none is forgotten, of 1,000 all."""
    pair = QueuePair(store)
    for n in range(999):
        await pair.both(lambda queue, n=n: queue.note(Gap("lost", f"p{n}", 1, 1)))  # type: ignore[misc]
    pair.now_us += MARK_TTL_US
    for name, left in (("one", 1_000), ("two", 2)):
        await pair.both(lambda queue, name=name: queue.note(Gap("lost", name, 1, 1)))  # type: ignore[misc]
        assert len(await pair.both(lambda queue: queue.marks())) == left
