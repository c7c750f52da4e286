"""Deletes what is older than the retention from the log store, and leaves the proof that it had been there.

A day is retired when it ended `retention_days` ago. Only objects that verify would accept are deleted: whole, and
with no record that the day has twice; what is not stays, and is logged. Before the first object of a day is deleted,
the numbers of its records are written to `_retired/<day>-<digest>.json`, so that `verify` still accounts for them. A
crash in between leaves both, which verify takes for one.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec

from tollkeeper.domain.errors import LogStoreUnavailable
from tollkeeper.domain.log_account import NumberRange, merged
from tollkeeper.logs import objects
from tollkeeper.logs.compacted import counted, is_compacted
from tollkeeper.logs.sinks import LogStore, StoredObject
from tollkeeper.logs.verify import Retired, runs_in
from tollkeeper.observability.logging import logger

INTERVAL_S: Final = 3600.0
"""How often it is looked for days that ended; several processes may do so at once."""

_log = logger("logs")


class Retirement(msgspec.Struct):
    """What one look did. `kept` are old objects that are not whole, or hold a record twice."""

    deleted: int = 0
    records: int = 0
    kept: tuple[str, ...] = ()


async def keep_retiring(store: LogStore, retention_days: int, now_us: Callable[[], int]) -> None:
    """Look every hour, until cancelled."""
    while True:
        try:
            await retire(store, last_day(now_us(), retention_days))
        except LogStoreUnavailable as error:
            _log.warning("log_retention_waits", why=str(error))
        await asyncio.sleep(INTERVAL_S)


def last_day(now_us: int, retention_days: int) -> date:
    """The newest day (UTC) that is old enough."""
    return datetime.fromtimestamp(now_us / 1_000_000, UTC).date() - timedelta(days=retention_days + 1)


async def retire(store: LogStore, last: date) -> Retirement:
    """Retire every day up to `last`. Raises `LogStoreUnavailable`; the rest is left for the next time."""
    days: dict[str, list[StoredObject]] = {}
    async for item in store.listing():
        path = item.path
        if not (objects.is_log_object(path) or is_compacted(path)) or objects.UNDATED in path:
            continue
        if path[3:13] <= last.isoformat():
            days.setdefault(path[3:13], []).append(item)
    done = Retirement()
    for day, items in sorted(days.items()):
        await _retire_day(store, day, items, done)
    if done.deleted:
        _log.info("log_objects_retired", objects=done.deleted, records=done.records, up_to=last.isoformat())
    if done.kept:
        _log.warning("log_objects_not_retired", objects=done.kept[:10], count=len(done.kept), why="see logs verify")
    return done


async def _retire_day(store: LogStore, day: str, items: Sequence[StoredObject], done: Retirement) -> None:
    seen: dict[str, list[NumberRange]] = {}
    accepted: list[str] = []
    kept = len(done.kept)
    count = sorted(item.path for item in await counted(store, items))
    for path in count:
        runs = runs_in(await store.read(path))
        if runs is None or any(_overlaps(seen.get(producer, ()), run) for producer, run in runs):
            done.kept += (path,)
            continue
        for producer, run in runs:
            seen.setdefault(producer, []).append(run)
        accepted.append(path)
        done.records += sum(last - first + 1 for _, (first, last) in runs)
    beside = sorted({item.path for item in items} - set(count))  # what compaction made of them, or of what is left
    if not accepted and (beside == [] or len(done.kept) > kept):
        return
    proof = msgspec.json.encode(Retired({name: merged(ranges) for name, ranges in sorted(seen.items())}))
    sha256 = objects.digest(proof)
    await store.create(f"{objects.RETIRED_PREFIX}{day}-{sha256[:16]}.json", proof, sha256)
    if len(done.kept) == kept:
        # objects first: as long as a plan and its mark are there, what they stand for counts once
        for path in sorted(beside, key=lambda each: each.endswith(".json")):
            if not path.endswith(".json"):
                await store.delete(path)
    for path in accepted:
        await store.delete(path)
        done.deleted += 1
    if len(done.kept) == kept:
        for path in beside:
            if path.endswith(".json"):
                await store.delete(path)


def _overlaps(ranges: Sequence[NumberRange], run: NumberRange) -> bool:
    return any(first <= run[1] and run[0] <= last for first, last in ranges)
