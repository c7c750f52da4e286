"""The proof that logs are complete: accounts for every number of every producer.

What was delivered, what was told as dropped, lost or taken, and what still waits must tile 1..N, N being the last
number the queue was brought, or the last that anybody knows of. Numbers that nothing accounts for are lost, too. What
a producer that died had in memory only is told by whoever finds its spool; without that disk the tail is unknown
(`produced` can say it).

The queue is read before the store, and records only move that way, so nothing is missed that is on its way.
Numbers are kept as ranges and objects are read a few at a time, so memory grows with the objects, not the records.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import msgspec

from tollkeeper.domain.log_account import Found, NumberRange, VerifyReport, account
from tollkeeper.domain.log_queue import Gap
from tollkeeper.logs import objects
from tollkeeper.logs.compacted import counted
from tollkeeper.logs.queues import Queue
from tollkeeper.logs.sinks import LogStore

READS_AT_ONCE: Final = 4
"""Objects in memory at the same time."""
THREAD_BYTES_MIN: Final = 32 * 2**10
"""Compressed objects larger than this are taken apart in a thread."""


class _Numbered(msgspec.Struct):
    producer: str
    number: int


class Retired(msgspec.Struct):
    """What retention leaves of the objects that it deletes: producer → ranges."""

    delivered: dict[str, list[NumberRange]]


_LINES = msgspec.json.Decoder(_Numbered)


async def verify(
    store: LogStore, produced: Mapping[str, int] | None = None, queues: Sequence[Queue] = ()
) -> VerifyReport:
    """Read everything: what waits in `queues`, then the store. `produced` says how many records a producer made.

    Raises `LogStoreUnavailable`, `StoreUnavailable`.
    """
    found: dict[str, Found] = {}
    for queue in queues:
        await _read_queue(queue, found)
    unreadable: list[str] = []
    number = 0
    async for path, body in _bodies(store):
        number += 1
        if not await _take_in(path, body, found):
            unreadable.append(path)
    for producer, last in (produced or {}).items():
        known = found.setdefault(producer, Found())
        known.known = max(last, known.known or 0)
    producers = {producer: account(what) for producer, what in sorted(found.items())}
    return VerifyReport(number, sum(p.records for p in producers.values()), producers, tuple(sorted(unreadable)))


async def _read_queue(queue: Queue, found: dict[str, Found]) -> None:
    for producer, mark in (await queue.marks()).items():
        found.setdefault(producer, Found()).known = mark
    runs, gaps = await queue.pending()
    for producer, first, last in runs:
        found.setdefault(producer, Found()).pending.append((first, last))
    _tell(found, gaps)


def _tell(found: dict[str, Found], gaps: Sequence[Gap]) -> None:
    for gap in gaps:
        found.setdefault(gap.producer, Found()).told.setdefault(gap.kind, []).append((gap.first, gap.last))


async def _bodies(store: LogStore) -> AsyncIterator[tuple[str, bytes]]:
    """Every object of ours, read ahead."""
    ahead: deque[tuple[str, asyncio.Task[bytes]]] = deque()
    try:
        for path in await _paths(store):
            ahead.append((path, asyncio.create_task(store.read(path))))
            if len(ahead) >= READS_AT_ONCE:
                first, task = ahead.popleft()
                yield first, await task
        while ahead:
            first, task = ahead.popleft()
            yield first, await task
    finally:
        for _, task in ahead:
            task.cancel()
        await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)


async def _paths(store: LogStore) -> list[str]:
    """Of what counts."""
    items = [item async for item in store.listing()]
    told = [i.path for i in items if objects.is_gaps_object(i.path) or objects.is_retired_object(i.path)]
    return [item.path for item in await counted(store, items)] + told


async def _take_in(path: str, body: bytes, found: dict[str, Found]) -> bool:
    """Whether the object is whole."""
    if objects.is_gaps_object(path):
        gaps = objects.gaps_in(body)
        _tell(found, gaps or ())
        return gaps is not None
    if objects.is_retired_object(path):
        try:
            retired = msgspec.json.decode(body, type=Retired)
        except msgspec.MsgspecError:
            return False
        for producer, ranges in retired.delivered.items():
            found.setdefault(producer, Found()).retired += ranges
        return True
    in_thread = len(body) > THREAD_BYTES_MIN or path.endswith(".parquet")
    runs = await asyncio.to_thread(runs_in, body) if in_thread else runs_in(body)
    for producer, run in runs or ():
        found.setdefault(producer, Found()).delivered.append(run)
    return runs is not None


def runs_in(body: bytes) -> list[tuple[str, NumberRange]] | None:
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
