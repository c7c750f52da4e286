"""Which objects can hold the records of an interval, by what a listing tells. Pure but for the listing itself.

An object's folder is the hour of its earliest record (`objects.py`), and no record is younger than the moment its
object was written. So an object of the hour H can hold records from H on until then, or until the end of that hour,
should a producer's clock be ahead of the store's.
"""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from tollkeeper.logs import objects
from tollkeeper.logs.compacted import counted
from tollkeeper.logs.sinks import LogStore, StoredObject

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
SKEW_US: Final = 300_000_000
"""Clocks of gateways and store may differ by five minutes."""
LATE_MAX_US: Final = DAY_US
"""Records that waited longer than a day for the store are found by the time of their folder, not by their own."""

_UNTIL: Final = re.compile(r"/compact-\d+-(\d+)\.")
_FOLDER: Final = re.compile(r"dt=(\d{4}-\d\d-\d\d)/hour=(\d\d)/")
_DAY: Final = re.compile(r"dt=(\d{4}-\d\d-\d\d)")


class Extent(msgspec.Struct, frozen=True):
    """An object with the interval that its records are in: [since, until)."""

    item: StoredObject
    since_us: int
    until_us: int


def extent_of(item: StoredObject) -> Extent | None:
    """None for what is no log object."""
    match = _FOLDER.match(item.path)
    if match is None or not objects.is_log_object(item.path):
        return None
    try:
        since_us = _us(datetime.fromisoformat(f"{match[1]}T{match[2]}:00:00+00:00"))
    except ValueError:
        return None
    until = _UNTIL.search(item.path)  # put together long after it was written (compaction.py)
    written_us = min(item.modified_us + SKEW_US, since_us + HOUR_US + LATE_MAX_US) if until is None else int(until[1])
    return Extent(item, since_us, max(since_us + HOUR_US, written_us))


async def days_of(store: LogStore) -> list[tuple[int, str]]:
    """The start and the folder of every day that the store has, newest first. Raises `LogStoreUnavailable`."""
    days: list[tuple[int, str]] = []
    for name in await store.folders():
        match = _DAY.fullmatch(name)
        if match is not None:
            try:
                days.append((_us(datetime.fromisoformat(f"{match[1]}T00:00:00+00:00")), name))
            except ValueError:
                continue
    return sorted(days, reverse=True)


async def extents(store: LogStore, since_us: int | None = None, until_us: int | None = None) -> AsyncIterator[Extent]:
    """The objects that can hold records of [since, until), by day, newest first.

    One listing for the days and one for each day that matters. Raises `LogStoreUnavailable`.
    """
    for starts_us, folder in await days_of(store):
        if until_us is not None and starts_us >= until_us:
            continue
        if since_us is not None and starts_us + DAY_US + LATE_MAX_US + HOUR_US <= since_us:
            break
        for item in await counted(store, [item async for item in store.listing(folder)]):
            found = extent_of(item)
            if found is None or (until_us is not None and found.since_us >= until_us):
                continue
            if since_us is None or found.until_us > since_us:
                yield found


def _us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
