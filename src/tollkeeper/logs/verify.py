"""The proof that logs are complete: reads every object of a store and checks the numbers of every producer.

What was delivered must tile 1..N without a gap and without a double. A gap is a record that was dropped (its
producer counted it) or lost. The tail of a producer that died cannot be seen from the store alone: give `produced`
to check it too. Numbers are kept as ranges, so memory grows with the objects, not with the records.
"""

from collections.abc import Mapping
from itertools import pairwise

import msgspec

from tollkeeper.logs import objects
from tollkeeper.logs.buffer import NumberRange
from tollkeeper.logs.sinks import LogStore


class ProducerReport(msgspec.Struct, frozen=True):
    """One producer. `doubles` are numbers found more than once, in whichever objects; `records` counts them all."""

    records: int
    last: int
    gaps: tuple[NumberRange, ...]
    doubles: tuple[NumberRange, ...]

    @property
    def missing(self) -> int:
        """Records in gaps."""
        return sum(last - first + 1 for first, last in self.gaps)


class VerifyReport(msgspec.Struct, frozen=True):
    """A whole store. `unreadable` are objects that are not whole, or hold a line that is not a numbered record."""

    objects: int
    records: int
    producers: dict[str, ProducerReport]
    unreadable: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every record of every producer is there exactly once."""
        return not self.unreadable and not any(p.gaps or p.doubles for p in self.producers.values())


class _Numbered(msgspec.Struct):
    producer: str
    number: int


_LINES = msgspec.json.Decoder(_Numbered)


async def verify(store: LogStore, produced: Mapping[str, int] | None = None) -> VerifyReport:
    """Read everything. `produced` says how many records a producer made, if that is known.

    Raises `LogStoreUnavailable`.
    """
    found: dict[str, list[NumberRange]] = {producer: [] for producer in produced or {}}
    unreadable: list[str] = []
    count = 0
    async for path in store.list():
        if not objects.is_log_object(path):
            continue
        count += 1
        runs = _runs_in(await store.read(path))
        if runs is None:
            unreadable.append(path)
            continue
        for producer, run in runs:
            found.setdefault(producer, []).append(run)
    producers = {producer: _account(runs, (produced or {}).get(producer)) for producer, runs in sorted(found.items())}
    return VerifyReport(count, sum(p.records for p in producers.values()), producers, tuple(sorted(unreadable)))


def _runs_in(body: bytes) -> list[tuple[str, NumberRange]] | None:
    """The records of an object as runs of consecutive numbers, or None if it cannot be read."""
    records = objects.records_in(body)
    if records is None:
        return None
    try:
        lines = _LINES.decode_lines(records)
    except msgspec.MsgspecError:
        return None
    runs: list[tuple[str, NumberRange]] = []
    for line in lines:
        if runs and runs[-1][0] == line.producer and runs[-1][1][1] == line.number - 1:
            runs[-1] = (line.producer, (runs[-1][1][0], line.number))
        else:
            runs.append((line.producer, (line.number, line.number)))
    return runs


def _account(runs: list[NumberRange], produced: int | None) -> ProducerReport:
    """Sweep the runs in order of number: coverage 0 is a gap, coverage above 1 a double."""
    steps: dict[int, int] = {}
    for first, last in runs:
        steps[first] = steps.get(first, 0) + 1
        steps[last + 1] = steps.get(last + 1, 0) - 1
    end = max(steps, default=1)
    for edge in (1, max(end, (produced or 0) + 1)):
        steps.setdefault(edge, 0)
    gaps: list[NumberRange] = []
    doubles: list[NumberRange] = []
    covered = 0
    for start, following in pairwise(sorted(steps)):
        covered += steps[start]
        if covered == 0 and start >= 1:
            _extend(gaps, start, following - 1)
        elif covered > 1:
            _extend(doubles, start, following - 1)
    records = sum(last - first + 1 for first, last in runs)
    return ProducerReport(records, end - 1, tuple(gaps), tuple(doubles))


def _extend(ranges: list[NumberRange], first: int, last: int) -> None:
    if ranges and ranges[-1][1] == first - 1:
        ranges[-1] = (ranges[-1][0], last)
    else:
        ranges.append((first, last))
