"""Accounts of log records: of one pipeline at an instant, and of a whole store by producer and number (the proof).

Knows neither queue nor store: `logs/verify.py` reads them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import msgspec

from tollkeeper.domain.log_queue import QueueStats

NumberRange: TypeAlias = tuple[int, int]
"""First and last number, both included."""


class PipelineStats(msgspec.Struct, frozen=True):
    """The account of a pipeline, in records.

    `produced` are this process's; `pending` are those in its memory and, without Redis, in its queue. `replaced`
    counts records (among those) that stand in for one that could not be kept. `last_error` is None while deliveries
    succeed. `queue` is the sum over all shards of the queue, with Redis as it was within the last second or two;
    `records_max` and `bytes_max` are its bounds.
    """

    produced: int
    delivered: int
    dropped: int
    pending: int
    replaced: int
    failures: int
    conflicts: int
    last_delivered_us: int | None
    last_error: str | None
    spooled_bytes: int
    records_max: int
    bytes_max: int
    queue: QueueStats

    @property
    def fill(self) -> float:
        """How full the queue is, 0 to 1 (more while leases hold it above its bound)."""
        return max(self.queue.size / self.records_max, self.queue.bytes / self.bytes_max)


class ProducerReport(msgspec.Struct, frozen=True):
    """One producer: 1..`last` by what became of each number.

    `gaps` are the lost ones: told as lost, or accounted for by nothing. `doubles` are numbers found more than once,
    in whichever objects; `records` counts all that were found. `pending` waits, as of the beginning. Ranges ascend.
    """

    records: int
    last: int
    gaps: tuple[NumberRange, ...] = ()
    doubles: tuple[NumberRange, ...] = ()
    dropped: tuple[NumberRange, ...] = ()
    taken: tuple[NumberRange, ...] = ()
    pending: tuple[NumberRange, ...] = ()
    retired: tuple[NumberRange, ...] = ()
    """Delivered, and deleted since because they were older than the retention."""

    @property
    def missing(self) -> int:
        """Records in gaps."""
        return count(self.gaps)


class VerifyReport(msgspec.Struct, frozen=True):
    """A whole store. `unreadable` are objects that are not whole, or hold a line that is not a numbered record."""

    objects: int
    records: int
    producers: dict[str, ProducerReport]
    unreadable: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is lost or double: each record was delivered once, waits, or was knowingly dropped."""
        return not self.unreadable and not any(p.gaps or p.doubles for p in self.producers.values())


def count(ranges: Sequence[NumberRange]) -> int:
    """Numbers in ranges."""
    return sum(last - first + 1 for first, last in ranges)


class Found(msgspec.Struct):
    """What is known of one producer. `known` is the last number the queue was brought, if it knows the producer."""

    delivered: list[NumberRange] = []
    told: dict[str, list[NumberRange]] = {}
    pending: list[NumberRange] = []
    retired: list[NumberRange] = []
    known: int | None = None


def account(found: Found) -> ProducerReport:
    """Sweep in order of number. What was delivered is delivered, whatever else was told of it; above the last number
    that the queue knew nothing is missed, for it was on its way."""
    told = found.told
    layers = {
        "delivered": found.delivered,
        "retired": merged(found.retired),
        "dropped": merged(told.get("dropped", [])),
        "taken": merged(told.get("taken", [])),
        "lost": merged(told.get("lost", [])),
        "pending": merged(found.pending),
    }
    steps: dict[int, dict[str, int]] = {}
    for name, ranges in layers.items():
        for first, last in ranges:
            for at, change in ((first, 1), (last + 1, -1)):
                step = steps.setdefault(at, {})
                step[name] = step.get(name, 0) + change
    end = max(steps, default=1)
    last = end - 1 if found.known is None else found.known
    for edge in (1, last + 1):
        steps.setdefault(edge, {})
    out: dict[str, list[NumberRange]] = {name: [] for name in (*layers, "doubles", "gaps")}
    covered = dict.fromkeys(layers, 0)
    for start, following in pairwise(sorted(steps)):
        for name, change in steps[start].items():
            covered[name] += change
        if covered["delivered"] > 1:
            _extend(out["doubles"], start, following - 1)
        kind = next((name for name in layers if covered[name]), "lost")
        if kind == "lost" and not 1 <= start <= last:
            continue
        _extend(out["gaps" if kind == "lost" else kind], start, following - 1)
    return ProducerReport(
        records=count(found.delivered),
        last=max(last, end - 1),
        gaps=tuple(out["gaps"]),
        doubles=tuple(out["doubles"]),
        dropped=tuple(out["dropped"]),
        taken=tuple(out["taken"]),
        pending=tuple(out["pending"]),
        retired=tuple(out["retired"]),
    )


def merged(ranges: Sequence[NumberRange]) -> list[NumberRange]:
    """The same numbers as ranges that ascend and do not touch."""
    out: list[NumberRange] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


def _extend(ranges: list[NumberRange], first: int, last: int) -> None:
    if ranges and ranges[-1][1] == first - 1:
        ranges[-1] = (ranges[-1][0], last)
    else:
        ranges.append((first, last))
