"""Puts the small objects of an hour together, so that a month is some hundred objects and not half a million.

compacted.py tells what lies in an hour's folder then, and what of it counts. A plan is made, the object is built, the
mark is made, the old objects are deleted: each step is a put-if-absent, or deletes what the last one has made
superfluous. So any of them may be done by anybody, at any time, twice or not at all: what counts is always the same
records, once. The mark is made only after the new object has been read back and has the records of the old ones to
the byte, and these are deleted only after the mark. Between two steps `GRACE_US` pass, so that whoever listed a
folder before one still finds everything.

A plan outlives its objects: a shipper that could not acknowledge a batch for long writes it again under its name, and
then it is in a plan that counts, and is deleted again. Other programs that read the store see records twice for half
an hour.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from tollkeeper.domain.errors import ConfigurationError, LogStoreUnavailable
from tollkeeper.logs import objects
from tollkeeper.logs.compacted import Folder, Plan, beside, folders_of, plan_of, stem_of
from tollkeeper.logs.extent import HOUR_US, days_of, extent_of
from tollkeeper.logs.objects import Format
from tollkeeper.logs.sinks import LogStore, StoredObject
from tollkeeper.observability.logging import logger

INTERVAL_S: Final = 600.0
"""How often it is looked for hours that ended; several processes may do so at once."""
GRACE_US: Final = 900_000_000
"""A quarter of an hour: longer than clocks differ and readers read."""
SMALL_BYTES_MAX: Final = 2**20
"""Larger objects stay as they are."""
MEMBERS_MIN: Final = 8
"""Fewer are not worth it: late ones wait for more."""
MEMBERS_MAX: Final = 2000
TOGETHER_BYTES_MAX: Final = 2 * 2**20
"""Of the members of one plan, compressed: their records are in memory at once."""
READS_AT_ONCE: Final = 4

_log = logger("logs")


class Compaction(msgspec.Struct):
    """What one look did."""

    planned: int = 0
    built: int = 0
    counted: int = 0
    deleted: int = 0


async def keep_compacting(store: LogStore, after_s: float, form: Format, now_us: Callable[[], int]) -> None:
    """Look every ten minutes, until cancelled."""
    while True:
        # at different times in processes that were started together: each would do the same work
        await asyncio.sleep(INTERVAL_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        try:
            await compact(store, now_us(), int(after_s * 1_000_000), form)
        except (LogStoreUnavailable, ConfigurationError) as error:
            _log.warning("log_compaction_waits", why=str(error))


async def compact(store: LogStore, now_us: int, after_us: int, form: Format = "jsonl.gz") -> Compaction:
    """Take every hour that ended `after_us` ago a step further.

    Raises `LogStoreUnavailable`; the rest is left for the next time. Raises ConfigurationError for Parquet without
    DuckDB.
    """
    done = Compaction()
    for starts_us, day in await days_of(store):
        if day in objects.UNDATED or starts_us + HOUR_US + after_us > now_us:
            continue
        items = [item async for item in store.listing(day)]
        for folder in folders_of(items):
            await _advance(store, folder, now_us, after_us, form, done)
    if done != Compaction():
        _log.info("log_objects_compacted", **msgspec.structs.asdict(done))
    return done


async def _advance(
    store: LogStore, folder: Folder, now_us: int, after_us: int, form: Format, done: Compaction
) -> None:
    planned: set[str] = set()
    for number in sorted(folder.plans):
        if number in folder.marks and not folder.plain:
            continue  # over
        plan = await plan_of(store, folder, number)
        planned |= plan.stems
        if number not in folder.built:
            done.built += await _build_again(store, plan)
        elif number not in folder.marks:
            if folder.built[number].modified_us + GRACE_US <= now_us and await _holds_the_same(store, plan):
                done.counted += 1
                await _create(store, beside(folder, number, "counts"), b"{}")
        elif folder.marks[number].modified_us + GRACE_US <= now_us:
            for item in folder.plain:
                if stem_of(item.path) in plan.stems:
                    await store.delete(item.path)
                    done.deleted += 1
    left = [item for item in folder.plain if stem_of(item.path) not in planned and 0 < item.bytes <= SMALL_BYTES_MAX]
    ended_us = max((extent.since_us + HOUR_US for item in left if (extent := extent_of(item))), default=now_us)
    if ended_us + after_us > now_us:
        return
    for number, members in enumerate(_shares(left), start=max(folder.plans, default=-1) + 1):
        if not await _begin(store, folder, number, members, form):
            return
        done.planned += 1
        done.built += 1


async def _begin(store: LogStore, folder: Folder, number: int, members: Sequence[StoredObject], form: Format) -> bool:
    """Plan and build. False: there are too few that are whole, or somebody else has taken the number; what else there
    is to be planned is seen next time."""
    bodies = await _records(store, [item.path for item in members])
    whole = [item for item, records in zip(members, bodies, strict=True) if records is not None]
    if len(whole) < MEMBERS_MIN:
        return False
    until_us = max(extent.until_us for item in whole if (extent := extent_of(item)))
    records = b"".join(body for body in bodies if body is not None)
    body, suffix = await asyncio.to_thread(objects.packed, records, form)
    path = f"{folder.path}/compact-{number}-{until_us}{suffix}"
    plan = msgspec.json.encode(Plan(path, tuple(item.path for item in whole)))
    if not await _create(store, beside(folder, number, "plan"), plan):
        return False
    await store.create(path, body, objects.digest(records))
    return True


async def _build_again(store: LogStore, plan: Plan) -> bool:
    """Whoever planned it did not get so far. False: somebody else has, or it cannot be."""
    form: Format = "parquet" if plan.path.endswith(".parquet") else "jsonl.gz"
    bodies = await _records(store, plan.members)
    records = b"".join(body for body in bodies if body is not None)
    body, suffix = await asyncio.to_thread(objects.packed, records, form)
    if None in bodies or not plan.path.endswith(suffix):
        _log.error("log_compaction_stuck", path=plan.path, why="an object of its plan is not whole")
        return False
    return await store.create(plan.path, body, objects.digest(records))


async def _holds_the_same(store: LogStore, plan: Plan) -> bool:
    """Whether the object that was built has the records of the plan's members, to the byte."""
    bodies = await _records(store, plan.members)
    (built,) = await _records(store, [plan.path])
    same = None not in bodies and built == b"".join(body or b"" for body in bodies)
    if not same:
        _log.error("log_compaction_stuck", path=plan.path, why="it does not hold the records of its plan")
    return same


async def _records(store: LogStore, paths: Sequence[str]) -> list[bytes | None]:
    """The lines of each object; None for one that is not whole. Raises `LogStoreUnavailable`."""
    slots = asyncio.Semaphore(READS_AT_ONCE)

    async def read(path: str) -> bytes | None:
        async with slots:
            return await asyncio.to_thread(objects.records_in, await store.read(path))

    return list(await asyncio.gather(*map(read, paths)))


async def _create(store: LogStore, path: str, body: bytes) -> bool:
    return await store.create(path, body, objects.digest(body))


def _shares(items: Sequence[StoredObject]) -> Iterator[list[StoredObject]]:
    """What becomes one object each; what is left over stays."""
    share: list[StoredObject] = []
    size = 0
    for item in items:
        if len(share) == MEMBERS_MAX or size + item.bytes > TOGETHER_BYTES_MAX:
            yield share
            share, size = [], 0
        share.append(item)
        size += item.bytes
    if len(share) >= MEMBERS_MIN:
        yield share
