"""Log records between production and delivery: the rules of one queue. Knows neither records' content nor stores.

A producer numbers its records 1, 2, 3, … and brings them in *chunks* of consecutive numbers; the queue remembers its
*mark*, the last number it was brought, and ignores what is at or below it, so a chunk whose answer was lost is simply
brought again. A number that is skipped is not the queue's to judge: the proof names it as lost.

A *lease* takes the oldest records out as a batch whose membership never changes again; `<run>-<n>` is its name, where
`run` was chosen by whoever found the queue empty-handed. An expired lease is given, whole, to whoever asks next. So
however often delivery is tried, and by whom, the same name always means the same records.

Above its bounds the queue first sheds the *bodies* of the oldest records, then drops the oldest records; what is
leased is never touched, for it may be half delivered. What was dropped, taken or reported lost is kept as *gaps*
until a lease carries them along, so that the proof can name them. At every instant, for each producer that skipped
nothing,

    mark = delivered + taken + dropped + lost + waiting + leased

This is the twin of `governance/scripts/log*.lua`, and the queue of a process without Redis.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Literal, TypeAlias

import msgspec

LEASE_CHUNKS_MAX: Final = 1000
"""Chunks of one lease, so that no script call takes long (3.7 ms, on a busy machine)."""
PRODUCERS_MAX: Final = 1000
"""Marks kept whatever their age; above it a new producer's arrival forgets marks that have not moved for a week."""
MARK_TTL_US: Final = 7 * 24 * 3600 * 1_000_000
GAP_FIELDS_MAX: Final = 1000
"""Producers with gaps that are named; gaps of others are only counted (`unlisted`) until a lease takes the named."""
GAP_TEXT_MAX: Final = 4000
"""Characters of one producer's gaps of one kind (about 200 ranges)."""

GapKind = Literal["dropped", "lost", "taken"]
"""*taken*: handed to a caller of `dequeue` instead of the store."""


class Gap(msgspec.Struct, frozen=True, order=True):
    """Numbers of a producer that will not be in the store, `first` and `last` included, and why."""

    kind: GapKind
    producer: str
    first: int
    last: int


class Chunk(msgspec.Struct, frozen=True):
    """Consecutive records of one producer. `bodies` is empty, or has one part, perhaps empty, for each record.

    A part is the encoded record without its bodies, a body the part that may be shed.
    """

    producer: str
    first: int
    parts: tuple[bytes, ...]
    bodies: tuple[bytes, ...] = ()

    @property
    def last(self) -> int:
        """The number of the last record."""
        return self.first + len(self.parts) - 1

    @property
    def bytes(self) -> int:
        """Of all parts and bodies."""
        return sum(map(len, self.parts)) + sum(map(len, self.bodies))

    def __len__(self) -> int:
        return len(self.parts)

    def cut(self, start: int, stop: int) -> "Chunk":
        """The records from `start` (0: the first) up to, not including, `stop`."""
        bodies = self.bodies[start:stop]
        return Chunk(self.producer, self.first + start, self.parts[start:stop], bodies if any(bodies) else ())


def joined(chunks: Iterable[Chunk], records_max: int, bytes_max: int) -> Iterator[Chunk]:
    """The same records of one producer in as few chunks as those bounds allow, none of the given being cut."""
    together: list[Chunk] = []
    records = size = 0
    for chunk in chunks:
        records, size = records + len(chunk), size + chunk.bytes
        if together and (chunk.first != together[-1].last + 1 or records > records_max or size > bytes_max):
            yield _one(together)
            together, records, size = [], len(chunk), chunk.bytes
        together.append(chunk)
    if together:
        yield _one(together)


def _one(chunks: Sequence[Chunk]) -> Chunk:
    first = chunks[0]
    if len(chunks) == 1:
        return first
    bodies: list[bytes] = []
    if any(chunk.bodies for chunk in chunks):
        for chunk in chunks:
            bodies += chunk.bodies or (b"",) * len(chunk)
    return Chunk(first.producer, first.first, tuple([p for chunk in chunks for p in chunk.parts]), tuple(bodies))


class Batch(msgspec.Struct, frozen=True):
    """What a lease took: chunks in order, and gaps to be told with them."""

    name: str
    chunks: tuple[Chunk, ...]
    gaps: tuple[Gap, ...] = ()
    taken_over: bool = False
    """Somebody else had it leased before, and may have delivered it."""

    @property
    def bytes(self) -> int:
        """Of all parts and bodies."""
        return sum(chunk.bytes for chunk in self.chunks)

    def __len__(self) -> int:
        return sum(map(len, self.chunks))


class Bounds(msgspec.Struct, frozen=True):
    """What a queue keeps, leased records included."""

    records_max: int = 100_000
    bytes_max: int = 256 * 2**20


class Ask(msgspec.Struct, frozen=True):
    """A request for a lease: at most `count` records and `bytes_max` bytes (at least one record), held for `hold_us`.

    A new lease is given only when one is due: `due_count` records or `due_bytes` wait, or the oldest for `due_us`.
    """

    count: int
    bytes_max: int
    hold_us: int
    due_count: int = 1
    due_bytes: int = 1
    due_us: int = 0


class QueueStats(msgspec.Struct, frozen=True):
    """A queue at one instant. Records and bytes; `oldest_us` is when the oldest record came, 0 if there is none.

    `repeated` records were brought again and ignored, `shed` ones lost their bodies, `unlisted` are in gaps without a
    name. `gaps` counts what waits to be told.
    """

    waiting: int = 0
    waiting_bytes: int = 0
    leased: int = 0
    leased_bytes: int = 0
    leases: int = 0
    delivered: int = 0
    taken: int = 0
    dropped: int = 0
    lost: int = 0
    repeated: int = 0
    shed: int = 0
    unlisted: int = 0
    gaps: int = 0
    oldest_us: int = 0
    now_us: int = 0

    @property
    def size(self) -> int:
        """Records kept."""
        return self.waiting + self.leased

    @property
    def bytes(self) -> int:
        """Bytes kept."""
        return self.waiting_bytes + self.leased_bytes


class Kept(msgspec.Struct, frozen=True):
    """What a queue holds after a chunk was brought, leased records included, and what this chunk pressed out."""

    records: int
    bytes: int
    dropped: int
    shed: int


Taken: TypeAlias = tuple[str, int, bytes, bytes]
"""Producer, number, part, body."""


class _Waiting:
    """A chunk in the queue; its first `skip` records are gone. Bytes are of those that are left."""

    __slots__ = ("body_bytes", "chunk", "part_bytes", "skip", "stamp_us")

    def __init__(self, chunk: Chunk, skip: int, stamp_us: int) -> None:
        self.chunk, self.skip, self.stamp_us = chunk, skip, stamp_us
        self.part_bytes = sum(map(len, chunk.parts[skip:]))
        self.body_bytes = sum(map(len, chunk.bodies[skip:]))

    @property
    def left(self) -> int:
        return len(self.chunk) - self.skip

    @property
    def bytes(self) -> int:
        return self.part_bytes + self.body_bytes

    def bytes_of(self, index: int) -> tuple[int, int]:
        """Part and body bytes of a record, counted from the first that is left."""
        at = self.skip + index
        return len(self.chunk.parts[at]), len(self.chunk.bodies[at]) if self.body_bytes else 0

    def rest(self) -> Chunk:
        bodies = self.chunk.bodies[self.skip :] if self.body_bytes else ()
        return Chunk(self.chunk.producer, self.chunk.first + self.skip, self.chunk.parts[self.skip :], bodies)


class _Lease:
    __slots__ = ("batch", "bytes", "oldest_us", "until_us")

    def __init__(self, batch: Batch, size: int, oldest_us: int, until_us: int) -> None:
        self.batch, self.bytes, self.oldest_us, self.until_us = batch, size, oldest_us, until_us


class LogQueue:
    """One queue in this process's memory. Every method is one atomic step; `now_us` is the clock of the queue."""

    def __init__(self) -> None:
        self._run = ""
        self._next_lease = 1
        self._waiting: deque[_Waiting] = deque()
        self._count = self._bytes = self._body_bytes = 0
        self._bare = 0  # chunks at the head that certainly have no bodies
        self._leases: dict[int, _Lease] = {}
        self._leased = self._leased_bytes = 0
        self._marks: dict[str, tuple[int, int]] = {}
        self._gaps: dict[tuple[GapKind, str], list[tuple[int, int]]] = {}
        self._counts = {"dropped": 0, "lost": 0, "taken": 0}
        self._delivered = self._repeated = self._shed = self._unlisted = 0

    def put(self, now_us: int, run: str, chunk: Chunk, bounds: Bounds) -> Kept:
        """Keep what is above the producer's mark, then press into the bounds."""
        dropped, shed = self._counts["dropped"], self._shed
        mark = self._mark(now_us, chunk.producer)
        self._run = self._run or run
        skip = min(len(chunk), max(0, mark - chunk.first + 1))
        self._repeated += skip
        if skip < len(chunk):
            self._marks[chunk.producer] = (chunk.last, now_us)
            entry = _Waiting(chunk, skip, now_us)
            self._waiting.append(entry)
            self._count += entry.left
            self._bytes += entry.bytes
            self._body_bytes += entry.body_bytes
            self._press(bounds)
        dropped, shed = self._counts["dropped"] - dropped, self._shed - shed
        return Kept(self._count + self._leased, self._bytes + self._leased_bytes, dropped, shed)

    def note(self, now_us: int, run: str, gap: Gap) -> bool:
        """The producer tells that these numbers never come. False: all are at or below its mark, and ignored."""
        mark = self._mark(now_us, gap.producer)
        self._run = self._run or run
        first = max(gap.first, mark + 1)
        if gap.last >= first:
            self._marks[gap.producer] = (gap.last, now_us)
            self._add_gap(gap.kind, gap.producer, first, gap.last)
        return gap.last >= first

    def _mark(self, now_us: int, producer: str) -> int:
        if producer not in self._marks and len(self._marks) >= PRODUCERS_MAX:
            for name in [n for n, (_, moved_us) in self._marks.items() if moved_us <= now_us - MARK_TTL_US]:
                del self._marks[name]
        return self._marks.get(producer, (0, 0))[0]

    def _press(self, bounds: Bounds) -> None:
        over_bytes = self._bytes + self._leased_bytes - bounds.bytes_max
        while over_bytes > 0 and self._body_bytes > 0:
            over_bytes -= self._shed_next()
        self._drop(self._count + self._leased - bounds.records_max, over_bytes)

    def _shed_next(self) -> int:
        """The bodies of the next chunk that may have some; how many bytes they were."""
        entry = self._waiting[self._bare]
        self._bare += 1
        freed, entry.body_bytes = entry.body_bytes, 0
        if freed:
            self._shed += entry.left
            entry.chunk = Chunk(entry.chunk.producer, entry.chunk.first, entry.chunk.parts)
            self._bytes -= freed
            self._body_bytes -= freed
        return freed

    def _drop(self, records: int, size: int) -> None:
        """Drop the oldest until so many records and bytes are gone, or nothing waits."""
        while (records > 0 or size > 0) and self._waiting:
            entry = self._waiting[0]
            dropped, freed = entry.left, entry.bytes
            if records < dropped and size < freed:
                dropped = freed = 0
                while dropped < records or freed < size:
                    freed += sum(entry.bytes_of(dropped))
                    dropped += 1
            records, size = records - dropped, size - freed
            first = entry.chunk.first + entry.skip
            self._add_gap("dropped", entry.chunk.producer, first, first + dropped - 1)
            self._remove(dropped)

    def _remove(self, count: int) -> None:
        """Let go of the first `count` records of the head chunk."""
        entry = self._waiting[0]
        if count == entry.left:
            parts, bodies = entry.part_bytes, entry.body_bytes
            self._waiting.popleft()
            self._bare = max(0, self._bare - 1)
        else:
            sizes = [entry.bytes_of(i) for i in range(count)]
            parts, bodies = sum(s[0] for s in sizes), sum(s[1] for s in sizes)
            entry.skip += count
            entry.part_bytes -= parts
            entry.body_bytes -= bodies
        self._count -= count
        self._bytes -= parts + bodies
        self._body_bytes -= bodies

    def _add_gap(self, kind: GapKind, producer: str, first: int, last: int) -> None:
        self._counts[kind] += last - first + 1
        ranges = self._gaps.get((kind, producer))
        if ranges is None:
            if len(self._gaps) >= GAP_FIELDS_MAX:
                self._unlisted += last - first + 1
                return
            ranges = self._gaps[kind, producer] = []
        if ranges and ranges[-1][1] == first - 1:
            ranges[-1] = (ranges[-1][0], last)
        elif len(_text(ranges)) > GAP_TEXT_MAX:
            self._unlisted += last - first + 1
        else:
            ranges.append((first, last))

    def peek(self, count: int) -> list[Taken]:
        """The oldest waiting records."""
        found: list[Taken] = []
        for entry in self._waiting:
            rest = entry.rest()
            for i in range(min(count - len(found), len(rest))):
                found.append((rest.producer, rest.first + i, rest.parts[i], rest.bodies[i] if rest.bodies else b""))
            if len(found) >= count:
                break
        return found

    def take(self, count: int) -> list[Taken]:
        """`peek`, and they are gone: delivered to the caller."""
        found = self.peek(count)
        left = len(found)
        while left:
            entry = self._waiting[0]
            n = min(left, entry.left)
            first = entry.chunk.first + entry.skip
            self._add_gap("taken", entry.chunk.producer, first, first + n - 1)
            self._remove(n)
            left -= n
        return found

    def empty(self) -> list[Chunk]:
        """Everything that waits, for a queue that ends: no longer its concern, and counted nowhere."""
        chunks = [entry.rest() for entry in self._waiting]
        self._waiting.clear()
        self._count = self._bytes = self._body_bytes = self._bare = 0
        return chunks

    def clear(self, count: int) -> int:
        """Drop the oldest `count` waiting records; how many were dropped."""
        before = self._count
        self._drop(count, 0)
        return before - self._count

    def lease(self, now_us: int, ask: Ask, bounds: Bounds) -> Batch | None:
        """An expired lease, whole; else a new one if it is due and not half of the bounds is leased; else None."""
        expired = [(lease.until_us, str(n)) for n, lease in self._leases.items() if lease.until_us <= now_us]
        if expired:
            lease = self._leases[int(min(expired)[1])]
            lease.until_us = now_us + ask.hold_us
            return msgspec.structs.replace(lease.batch, taken_over=True)
        if not self._due(now_us, ask):
            return None
        if self._leased and (self._leased * 2 >= bounds.records_max or self._leased_bytes * 2 >= bounds.bytes_max):
            return None
        oldest_us = self._waiting[0].stamp_us if self._waiting else 0
        before = self._bytes
        chunks = self._take_chunks(ask.count, ask.bytes_max)
        size = before - self._bytes
        batch = Batch(f"{self._run}-{self._next_lease}", tuple(chunks), self._take_gaps())
        self._leases[self._next_lease] = _Lease(batch, size, oldest_us, now_us + ask.hold_us)
        self._next_lease += 1
        self._leased += len(batch)
        self._leased_bytes += size
        return batch

    def _due(self, now_us: int, ask: Ask) -> bool:
        if not self._waiting:
            return bool(self._gaps)
        return (
            self._count >= ask.due_count
            or self._bytes >= ask.due_bytes
            or self._waiting[0].stamp_us + ask.due_us <= now_us
        )

    def _take_chunks(self, count: int, bytes_max: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        while self._waiting and count > 0 and len(chunks) < LEASE_CHUNKS_MAX:
            entry = self._waiting[0]
            n, size = entry.left, entry.bytes
            if n > count or size > bytes_max:
                n = size = 0
                while n < count and n < entry.left:
                    more = sum(entry.bytes_of(n))
                    if size + more > bytes_max and (chunks or n):
                        break
                    size += more
                    n += 1
                if n == 0:
                    break
            rest = entry.rest()
            chunks.append(rest if n == len(rest) else rest.cut(0, n))
            self._remove(n)
            count, bytes_max = count - n, bytes_max - size
            if bytes_max <= 0:
                break
        return chunks

    def _take_gaps(self) -> tuple[Gap, ...]:
        gaps = [Gap(kind, producer, a, b) for (kind, producer), ranges in self._gaps.items() for a, b in ranges]
        self._gaps.clear()
        return tuple(sorted(gaps))

    def renew(self, now_us: int, name: str, hold_us: int) -> bool:
        """Keep a lease for `hold_us` from now; 0 gives it to whoever asks next. False if it is gone."""
        lease = self._leases.get(self._number(name))
        if lease is not None:
            lease.until_us = now_us + hold_us
        return lease is not None

    def ack(self, name: str) -> bool:
        """Forget a delivered batch. False if it is not leased any more."""
        lease = self._leases.pop(self._number(name), None)
        if lease is None:
            return False
        self._leased -= len(lease.batch)
        self._leased_bytes -= lease.bytes
        self._delivered += len(lease.batch)
        return True

    def _number(self, name: str) -> int:
        run, _, number = name.rpartition("-")
        return int(number) if run == self._run else 0

    def stats(self, now_us: int) -> QueueStats:
        """The queue now."""
        stamps = [lease.oldest_us for lease in self._leases.values() if lease.oldest_us]
        stamps += [entry.stamp_us for entry in islice(self._waiting, 1)]
        return QueueStats(
            waiting=self._count,
            waiting_bytes=self._bytes,
            leased=self._leased,
            leased_bytes=self._leased_bytes,
            leases=len(self._leases),
            delivered=self._delivered,
            taken=self._counts["taken"],
            dropped=self._counts["dropped"],
            lost=self._counts["lost"],
            repeated=self._repeated,
            shed=self._shed,
            unlisted=self._unlisted,
            gaps=len(self._gaps),
            oldest_us=min(stamps, default=0),
            now_us=now_us,
        )

    def marks(self) -> dict[str, int]:
        """Producer → last number brought."""
        return {producer: number for producer, (number, _) in self._marks.items()}

    def pending(self) -> tuple[list[tuple[str, int, int]], list[Gap]]:
        """Producer, first and last number of everything that waits or is leased; and the gaps not yet told."""
        chunks = [entry.rest() for entry in self._waiting]
        gaps = [Gap(kind, producer, a, b) for (kind, producer), ranges in self._gaps.items() for a, b in ranges]
        for lease in self._leases.values():
            chunks += lease.batch.chunks
            gaps += lease.batch.gaps
        return [(c.producer, c.first, c.last) for c in chunks], gaps


def _text(ranges: Sequence[tuple[int, int]]) -> str:
    return ",".join(f"{first}-{last}" for first, last in ranges)
