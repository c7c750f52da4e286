"""Where records wait for delivery. Knows numbers and bytes, neither what is in a record nor where it goes.

A producer's records are numbered 1..N without a gap. A *lease* takes the oldest of them out as a batch whose
membership never changes again; it stays leased until it is acknowledged, and a batch that was released is leased
again before anything else, whole, under the same name. So however often delivery is tried, and whoever tries it,
the same name always means the same records.

Above a bound the oldest records that are not leased are dropped: a leased batch may already be half delivered, and
the newest records are the ones somebody will look for. At every instant

    last number = acknowledged + dropped + size

`LogBuffer` is what a shared buffer in the fast store will implement too. Its `put` is synchronous and never fails:
carrying records to another process, and what to do when that is away, is the buffer's own business.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

import msgspec

from tollkeeper.observability.logging import logger

DROPPED_RANGES_MAX: Final = 64
"""Ranges of dropped numbers that are named; older ones are only counted (`BufferStats.dropped_unlisted`)."""
WARN_FILL: Final = 0.8
"""A buffer fuller than this warns, once."""
REARM_FILL: Final = 0.6
"""Below this the next crossing of `WARN_FILL` warns again; the gap keeps a buffer on the edge from flooding."""

NumberRange: TypeAlias = tuple[int, int]
"""First and last number, both included."""

_log = logger("logs")


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one producer, encoded. `name` says which, and is the name of the object."""

    producer: str
    first: int
    records: tuple[bytes, ...]

    @property
    def last(self) -> int:
        """The number of the last record."""
        return self.first + len(self.records) - 1

    @property
    def name(self) -> str:
        """`<producer>-<first>-<last>`."""
        return f"{self.producer}-{self.first}-{self.last}"

    def __len__(self) -> int:
        return len(self.records)


class BufferStats(msgspec.Struct, frozen=True):
    """A buffer at one instant.

    `size` and `bytes` include what is leased; `waiting*` is what is not. Ages are in µs, 0 if there is nothing.
    `dropped_ranges` names the newest ranges in ascending order, `dropped_unlisted` counts the numbers they miss.
    """

    size: int
    bytes: int
    fill: float
    leased: int
    waiting: int
    waiting_bytes: int
    waiting_age_us: int
    oldest_age_us: int
    acknowledged: int
    dropped: int
    dropped_ranges: tuple[NumberRange, ...]
    dropped_unlisted: int
    repeated: int


class LogBuffer(Protocol):
    """Records between production and delivery."""

    def put(self, number: int, record: bytes) -> None:
        """Keep the record with the producer's next number. A number that was put before is ignored.

        Never blocks. Raises ValueError if a number was skipped, which is a fault of the caller.
        """
        ...

    def put_batch(self, first: int, records: Sequence[bytes]) -> None:
        """`put` for consecutive numbers from `first` on; those put before are ignored."""
        ...

    async def lease(self, count: int, bytes_max: int) -> Batch | None:
        """The oldest released batch, else a new one: at most `count` records and `bytes_max` bytes, at least one.

        None if nothing waits. Raises `Unavailable`.
        """
        ...

    async def ack(self, batch: Batch) -> bool:
        """Forget a delivered batch. False if it is not leased (any more). Raises `Unavailable`."""
        ...

    async def release(self, batch: Batch) -> None:
        """Delivery failed: the next lease gives this batch again. Raises `Unavailable`."""
        ...

    def size(self) -> int:
        """Records kept, leased ones included."""
        ...

    def stats(self) -> BufferStats: ...


class _Lease(msgspec.Struct):
    batch: Batch
    bytes: int
    queued_us: int
    released: bool = False


class MemoryLogBuffer:
    """The buffer of one producer in this process's memory. Implements `LogBuffer`.

    Bounded by `records_max` and by `bytes_max` of encoded records (Python adds about 130 bytes to each).
    `now_us` is only used for ages: any clock in µs that is never set back. `on_drop` is told how many records each
    overflow dropped.
    """

    def __init__(
        self,
        producer: str,
        *,
        records_max: int,
        bytes_max: int,
        now_us: Callable[[], int],
        on_drop: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._producer = producer
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._warn_records = int(records_max * WARN_FILL) + 1
        self._warn_bytes = int(bytes_max * WARN_FILL) + 1
        self._now_us = now_us
        self._on_drop = on_drop
        self._last = 0
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = 0
        self._leases: dict[str, _Lease] = {}
        self._leased = 0
        self._leased_bytes = 0
        self._acknowledged = 0
        self._repeated = 0
        self._warned = False
        self._dropped = 0
        self._dropped_ranges: deque[NumberRange] = deque()
        self._dropped_unlisted = 0

    def put(self, number: int, record: bytes) -> None:
        """See `LogBuffer.put`. Overflow may drop the very record if everything older is leased."""
        if number != self._last + 1:
            self._refuse(number)
            return
        self._last = number
        self._waiting.append((record, self._now_us()))
        self._waiting_bytes += len(record)
        if (
            len(self._waiting) + self._leased >= self._warn_records
            or self._waiting_bytes + self._leased_bytes >= self._warn_bytes
        ):
            self._press()

    def put_batch(self, first: int, records: Sequence[bytes]) -> None:
        for number, record in enumerate(records, first):
            self.put(number, record)

    def _refuse(self, number: int) -> None:
        if number > self._last:
            raise ValueError(f"{self._producer}: record {number} does not follow {self._last}")
        self._repeated += 1

    def _press(self) -> None:
        """Warn once when the buffer is nearly full; drop the oldest waiting records above the bounds."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "log_buffer_filling", producer=self._producer, records=self.size(), fill=round(self._fill(), 3)
            )
        first = self._last - len(self._waiting) + 1
        count = 0
        while self._waiting and (
            len(self._waiting) + self._leased > self._records_max
            or self._waiting_bytes + self._leased_bytes > self._bytes_max
        ):
            record, _ = self._waiting.popleft()
            self._waiting_bytes -= len(record)
            count += 1
        if count:
            self._count_dropped(first, first + count - 1)

    def _count_dropped(self, first: int, last: int) -> None:
        ranges = self._dropped_ranges
        self._dropped += last - first + 1
        if ranges and ranges[-1][1] == first - 1:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
            if len(ranges) > DROPPED_RANGES_MAX:
                oldest = ranges.popleft()
                self._dropped_unlisted += oldest[1] - oldest[0] + 1
        self._on_drop(last - first + 1)

    async def lease(self, count: int, bytes_max: int) -> Batch | None:
        for lease in self._leases.values():
            if lease.released:
                lease.released = False
                return lease.batch
        if not self._waiting:
            return None
        return self._lease_new(count, bytes_max)

    def _lease_new(self, count: int, bytes_max: int) -> Batch:
        waiting = self._waiting
        first = self._last - len(waiting) + 1
        queued_us = waiting[0][1]
        records: list[bytes] = []
        size = 0
        while waiting and len(records) < max(1, count):
            record = waiting[0][0]
            if records and size + len(record) > bytes_max:
                break
            waiting.popleft()
            records.append(record)
            size += len(record)
        batch = Batch(self._producer, first, tuple(records))
        self._leases[batch.name] = _Lease(batch, size, queued_us)
        self._leased += len(records)
        self._leased_bytes += size
        self._waiting_bytes -= size
        return batch

    async def ack(self, batch: Batch) -> bool:
        lease = self._leases.pop(batch.name, None)
        if lease is None:
            return False
        self._leased -= len(lease.batch)
        self._leased_bytes -= lease.bytes
        self._acknowledged += len(lease.batch)
        if self._warned and self._fill() < REARM_FILL:
            self._warned = False
        return True

    async def release(self, batch: Batch) -> None:
        lease = self._leases.get(batch.name)
        if lease is not None:
            lease.released = True

    def size(self) -> int:
        return len(self._waiting) + self._leased

    def _fill(self) -> float:
        size = self._waiting_bytes + self._leased_bytes
        return max(self.size() / self._records_max, size / self._bytes_max)

    def stats(self) -> BufferStats:
        now_us = self._now_us()
        waiting_since = self._waiting[0][1] if self._waiting else now_us
        oldest = min((lease.queued_us for lease in self._leases.values()), default=waiting_since)
        return BufferStats(
            size=self.size(),
            bytes=self._waiting_bytes + self._leased_bytes,
            fill=self._fill(),
            leased=self._leased,
            waiting=len(self._waiting),
            waiting_bytes=self._waiting_bytes,
            waiting_age_us=max(0, now_us - waiting_since),
            oldest_age_us=max(0, now_us - min(oldest, waiting_since)),
            acknowledged=self._acknowledged,
            dropped=self._dropped,
            dropped_ranges=tuple(self._dropped_ranges),
            dropped_unlisted=self._dropped_unlisted,
            repeated=self._repeated,
        )
