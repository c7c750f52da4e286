"""One queue of log records behind one small interface: in this process's memory, or in Redis.

The rules are in `domain/log_queue.py`; here every step is either a call of that twin or of the script of the same
name. Knows neither records' content nor the object store. All raise StoreUnavailable when Redis is away.
"""

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from tollkeeper.domain.log_queue import Ask, Batch, Bounds, Chunk, Gap, Kept, LogQueue, QueueStats, Taken
from tollkeeper.domain.ports import ScriptStore

TAKE_MAX: Final = 1000
"""Records of one script call of `peek`, `take` or `clear`."""
PAGE: Final = 500
"""Chunks read at once, of a lease or of what is pending."""
PAGE_BYTES: Final = 4 * 2**20
"""Bytes of a lease asked for at once, so that no reply holds other clients' up for long."""
KINDS: Final = ("dropped", "lost", "taken")

_ENTRY: Final = 37
_GAP: Final = re.compile(rb"(dropped|lost|taken):([^=;]*)=([0-9,-]*);")


class Queue(Protocol):
    """What `LogQueue` tells, each method one atomic step but for `pending`, in which a record may show twice."""

    async def put(self, chunk: Chunk) -> Kept: ...

    async def note(self, gap: Gap) -> bool: ...

    async def peek(self, count: int) -> list[Taken]: ...

    async def take(self, count: int) -> list[Taken]: ...

    async def clear(self, count: int) -> int: ...

    async def lease(self, ask: Ask) -> Batch | None: ...

    async def renew(self, name: str, hold_us: int) -> bool: ...

    async def ack(self, name: str) -> bool: ...

    async def stats(self) -> QueueStats: ...

    async def marks(self) -> dict[str, int]: ...

    async def pending(self) -> tuple[list[tuple[str, int, int]], list[Gap]]: ...


class MemoryQueue:
    """A `Queue` of this process alone. `run` must be new for every start: batches are named after it."""

    def __init__(self, run: str, bounds: Bounds, now_us: Callable[[], int]) -> None:
        self._queue = LogQueue()
        self._run, self._bounds, self._now_us = run, bounds, now_us

    async def put(self, chunk: Chunk) -> Kept:
        return self._queue.put(self._now_us(), self._run, chunk, self._bounds)

    async def note(self, gap: Gap) -> bool:
        return self._queue.note(self._now_us(), self._run, gap)

    async def peek(self, count: int) -> list[Taken]:
        return self._queue.peek(count)

    async def take(self, count: int) -> list[Taken]:
        return self._queue.take(count)

    async def clear(self, count: int) -> int:
        return self._queue.clear(count)

    async def lease(self, ask: Ask) -> Batch | None:
        return self._queue.lease(self._now_us(), ask, self._bounds)

    async def renew(self, name: str, hold_us: int) -> bool:
        return self._queue.renew(self._now_us(), name, hold_us)

    async def ack(self, name: str) -> bool:
        return self._queue.ack(name)

    def empty(self) -> list[Chunk]:
        """See `LogQueue.empty`."""
        return self._queue.empty()

    def now(self) -> QueueStats:
        """`stats` without waiting."""
        return self._queue.stats(self._now_us())

    async def stats(self) -> QueueStats:
        return self.now()

    async def marks(self) -> dict[str, int]:
        return self._queue.marks()

    async def pending(self) -> tuple[list[tuple[str, int, int]], list[Gap]]:
        return self._queue.pending()


class RedisQueue:
    """A `Queue` in Redis: any number of processes bring and take. Redis' clock decides.

    `shard` becomes the hash tag of all its keys. `run` is used if the queue is new. `time_us` is for tests: a clock
    handed to the scripts instead of the server's.
    """

    def __init__(
        self,
        store: ScriptStore,
        run: str,
        bounds: Bounds,
        *,
        shard: str = "0",
        time_us: Callable[[], int] | None = None,
    ) -> None:
        self._store = store
        self._run, self._bounds = run, bounds
        self._prefix = f"logs:{{{shard}}}:"
        self._keys = (f"{self._prefix}state",)
        self._time_us = time_us or (lambda: 0)

    async def put(self, chunk: Chunk) -> Kept:
        bodies = pack(chunk.bodies)
        part_bytes = sum(map(len, chunk.parts))
        body_bytes = sum(map(len, chunk.bodies))
        bounds = self._bounds
        numbers = (chunk.first, len(chunk), part_bytes, body_bytes, bounds.records_max, bounds.bytes_max)
        packed = struct.pack("<7d", self._time_us(), *numbers)
        arguments = (packed, chunk.producer, self._run, pack(chunk.parts), bodies if body_bytes else b"")
        return Kept(*await self._store.run("logput", self._keys, arguments, idempotent=True))

    async def note(self, gap: Gap) -> bool:
        """False also if it is told again after an answer was lost."""
        arguments = (
            struct.pack("<3d", self._time_us(), gap.first, gap.last),
            *(gap.producer, self._run, gap.kind),
        )
        return bool(await self._store.run("lognote", self._keys, arguments, idempotent=True))

    async def peek(self, count: int) -> list[Taken]:
        return _taken(await self._store.run("logtake", self._keys, (min(count, TAKE_MAX), 0), idempotent=True))

    async def take(self, count: int) -> list[Taken]:
        return _taken(await self._store.run("logtake", self._keys, (min(count, TAKE_MAX), 1)))

    async def clear(self, count: int) -> int:
        dropped: int = await self._store.run("logclear", self._keys, (min(count, TAKE_MAX),))
        return dropped

    async def lease(self, ask: Ask) -> Batch | None:
        """None also if the lease was lost to somebody else while its records were read."""
        bounds = self._bounds
        numbers = (ask.count, ask.bytes_max, ask.hold_us, ask.due_count, ask.due_bytes, ask.due_us)
        packed = struct.pack("<9d", self._time_us(), *numbers, bounds.records_max, bounds.bytes_max)
        reply = await self._store.run("loglease", self._keys, (packed,))
        if not reply:
            return None
        run, number, taken_over, header, *entries = reply
        chunks = await self._read(entries)
        name = f"{run.decode()}-{number.decode()}"
        return None if chunks is None else Batch(name, chunks, tuple(sorted(_gaps(header[24:]))), bool(taken_over))

    async def _read(self, entries: Sequence[bytes]) -> tuple[Chunk, ...] | None:
        """The chunks of a lease; None if they are gone: it was acknowledged by somebody else."""
        chunks: list[Chunk] = []
        start = 0
        while start < len(entries):
            stop, size, keys = start, 0, []
            while stop < len(entries) and stop - start < PAGE and (stop == start or size < PAGE_BYTES):
                entry = _Entry(entries[stop])
                size += entry.part_bytes + entry.body_bytes
                keys.append(f"{self._prefix}part:{entry.number}")
                keys.append(f"{self._prefix}body:{entry.number}")
                stop += 1
            values = await self._store.call("MGET", *keys, key=keys[0], idempotent=True)
            for i, text in enumerate(entries[start:stop]):
                if values[2 * i] is None:
                    return None
                chunks.append(_Entry(text).chunk(values[2 * i], values[2 * i + 1]))
            start = stop
        return tuple(chunks)

    async def renew(self, name: str, hold_us: int) -> bool:
        run, _, number = name.rpartition("-")
        packed = struct.pack("<2d", self._time_us(), hold_us)
        return bool(await self._store.run("logrenew", self._keys, (packed, run, number), idempotent=True))

    async def ack(self, name: str) -> bool:
        run, _, number = name.rpartition("-")
        return bool(await self._store.run("logack", self._keys, (run, number), idempotent=True))

    async def stats(self) -> QueueStats:
        reply = await self._store.run("logstats", self._keys, (struct.pack("<d", self._time_us()),), idempotent=True)
        return QueueStats(*reply)

    async def marks(self) -> dict[str, int]:
        reply = await self._call("HGETALL", "marks")
        return {
            producer.decode(): int(mark.partition(b":")[0])
            for producer, mark in zip(reply[::2], reply[1::2], strict=True)
        }

    async def pending(self) -> tuple[list[tuple[str, int, int]], list[Gap]]:
        """Read from the tail, then the leases: records move the other way, so none is missed."""
        entries: list[_Entry] = []
        stop = -1
        while page := await self._call("LRANGE", "queue", stop - PAGE + 1, stop):
            entries += map(_Entry, page)
            stop -= PAGE
        told = await self._call("HGETALL", "gaps")
        gaps = _gaps(b"".join(b"%b=%b;" % pair for pair in zip(told[::2], told[1::2], strict=True)))
        for number in await self._call("ZRANGE", "leases", 0, -1):
            lease = await self._call("LRANGE", f"lease:{number.decode()}", 0, -1)
            if lease:
                gaps += _gaps(lease[0][24:])
                entries += map(_Entry, lease[1:])
        return [(e.producer, e.first + e.skip, e.first + e.count - 1) for e in entries], gaps

    async def _call(self, command: str, name: str, *arguments: Any) -> Any:
        key = self._prefix + name
        return await self._store.call(command, key, *arguments, key=key, idempotent=True)


class _Entry:
    """A chunk as logqueue.lua lists it. Bytes are of the records that are left."""

    __slots__ = ("body_bytes", "count", "first", "number", "part_bytes", "producer", "skip")

    def __init__(self, text: bytes) -> None:
        at = 0
        values = []
        for width in (6, 6, 4, 4, 5, 5):
            values.append(int.from_bytes(text[at : at + width], "little"))
            at += width
        self.number, self.first, self.count, self.skip, self.part_bytes, self.body_bytes = values
        self.producer = text[_ENTRY:].decode()

    def chunk(self, parts: bytes, bodies: bytes | None) -> Chunk:
        """Its records that are left."""
        kept = unpack(parts, self.count)[self.skip :]
        kept_bodies = unpack(bodies, self.count)[self.skip :] if bodies is not None and self.body_bytes else ()
        return Chunk(self.producer, self.first + self.skip, kept, kept_bodies)


def pack(pieces: Sequence[bytes]) -> bytes:
    """The lengths, four bytes each, then the pieces."""
    return struct.pack(f"<{len(pieces)}I", *map(len, pieces)) + b"".join(pieces)


def unpack(packed: bytes, count: int) -> tuple[bytes, ...]:
    """What `pack` made of `count` pieces."""
    at, pieces = 4 * count, []
    for length in struct.unpack_from(f"<{count}I", packed):
        pieces.append(packed[at : at + length])
        at += length
    return tuple(pieces)


def _taken(reply: Sequence[Any]) -> list[Taken]:
    rows = zip(reply[::4], reply[1::4], reply[2::4], reply[3::4], strict=True)
    return [(producer.decode(), int(number), part, body) for producer, number, part, body in rows]


def _gaps(text: bytes) -> list[Gap]:
    gaps: list[Gap] = []
    for kind, producer, ranges in _GAP.findall(text):
        for span in ranges.decode().split(","):
            first, _, last = span.partition("-")
            gaps.append(Gap(kind.decode(), producer.decode(), int(first), int(last)))
    return gaps
