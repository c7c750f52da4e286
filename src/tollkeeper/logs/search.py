"""Log records page by page, newest first, without a database: what the admin API and `tollkeeper logs tail` show.

Objects are read in the order of the latest moment that they can hold. Once that is older than a record in hand, no
object unread can hold a younger one, so the record's place is certain. Every object is read at most once a page.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import LogStoreUnavailable
from tollkeeper.domain.log_search import (
    Indexed,
    LogFilters,
    LogPage,
    Position,
    check_filters,
    cursor_text,
    fits,
    position_from,
)
from tollkeeper.logs import objects
from tollkeeper.logs.compacted import counted, is_compacted
from tollkeeper.logs.extent import DAY_US, HOUR_US, LATE_MAX_US, Extent, days_of, extent_of
from tollkeeper.logs.sinks import LogStore

READ_BYTES_MAX: Final = 64 * 2**20
"""Objects read for one page, as they are stored; what was found by then is given, with a cursor to go on."""
SEARCHES: Final = 2
"""At once for all who ask; the others wait."""
TIMEOUT_S: Final = 20.0
"""Longest time for a page."""
FOLLOW_INTERVAL_S: Final = 2.0
BODIES: Final = ("request_body", "response_body")

_index = msgspec.json.Decoder(Indexed).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Found = tuple[Position, bytes]


class LogReader:
    """Searches one store for many askers, few at once. Implements `ports.LogReader`."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(SEARCHES)

    async def search(
        self, filters: LogFilters, limit: int, cursor: str | None = None, *, bodies: bool = False
    ) -> LogPage:
        """See `search`."""
        async with self._slots:
            return await search(self._store, filters, limit, cursor, bodies=bodies)


async def search(
    store: LogStore, filters: LogFilters, limit: int, cursor: str | None = None, *, bodies: bool = False
) -> LogPage:
    """A page of the records that fit, from `cursor` on. Without `bodies` these are null.

    Raises InvalidInput, `LogStoreUnavailable`.
    """
    check_filters(filters, limit, bodies=bodies)
    before = None if cursor is None else position_from(cursor)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _page(store, filters, limit, before, bodies)
    except TimeoutError:
        raise LogStoreUnavailable(
            f"{store.url}: no page within {TIMEOUT_S:g} s; ask for a shorter time with since and until"
        ) from None


async def _page(store: LogStore, filters: LogFilters, limit: int, before: Position | None, bodies: bool) -> LogPage:
    newest_us = filters.until_us
    if before is not None:
        end_us = before[0] + 1 if before[1] else before[0]
        newest_us = end_us if newest_us is None else min(newest_us, end_us)
    found: list[Found] = []
    read = 0
    reached_us = 0
    async for extent in _newest_first(store, filters.since_us, newest_us):
        if len(found) > limit and found[limit][0][0] >= extent.until_us:
            break
        if read >= READ_BYTES_MAX and extent.until_us < reached_us:
            sure = [item for item in found if item[0][0] >= extent.until_us]
            return LogPage([_shown(line, bodies) for _, line in sure], cursor_text((extent.until_us, "")))
        # a cursor must lead on, so the bound waits until one would be older than the one we came with
        reached_us = extent.until_us if newest_us is None else min(newest_us, extent.until_us)
        body = await store.read(extent.item.path)
        read += len(body)
        more = await asyncio.to_thread(_matching, body, filters, before)
        found = list(islice(heapq.merge(found, more, reverse=True), limit + 1))
    page = found[:limit]
    following = cursor_text(page[-1][0]) if len(found) > limit else None
    return LogPage([_shown(line, bodies) for _, line in page], following)


async def _newest_first(store: LogStore, since_us: int | None, until_us: int | None) -> AsyncIterator[Extent]:
    """Objects by the latest moment that they can hold, days being listed only when it is their turn."""
    waiting: list[tuple[int, str, Extent]] = []
    for starts_us, folder in await days_of(store):
        if until_us is not None and starts_us >= until_us:
            continue
        latest_us = starts_us + DAY_US + LATE_MAX_US + HOUR_US
        if since_us is not None and latest_us <= since_us:
            break
        while waiting and -waiting[0][0] >= latest_us:
            yield heapq.heappop(waiting)[2]
        for item in await counted(store, [item async for item in store.listing(folder)]):
            extent = extent_of(item)
            if extent is None or (until_us is not None and extent.since_us >= until_us):
                continue
            if since_us is None or extent.until_us > since_us:
                heapq.heappush(waiting, (-extent.until_us, extent.item.path, extent))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _matching(body: bytes, filters: LogFilters, before: Position | None) -> list[Found]:
    """The lines that fit, newest first. An object or a line that cannot be read holds nothing: `verify` tells."""
    found: list[Found] = []
    for line in (objects.records_in(body) or b"").splitlines():
        try:
            record = _index(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if fits(record, filters) and (before is None or record.position < before):
            found.append((record.position, line))
    return sorted(found, reverse=True)


def _shown(line: bytes, bodies: bool) -> dict[str, Any]:
    record = _decode(line)
    if not bodies:
        record |= {name: None for name in BODIES if record.get(name) is not None}
    return record


async def follow(
    store: LogStore, filters: LogFilters, interval_s: float = FOLLOW_INTERVAL_S
) -> AsyncIterator[list[dict[str, Any]]]:
    """The records of objects as they arrive, those of each look together, oldest first; the first look gives none.

    Every object is told once, since none is ever written again. Only the two newest days are looked at.
    Raises InvalidInput, `LogStoreUnavailable`.
    """
    check_filters(filters, 1)
    seen = await _newest_paths(store)
    yield []
    while True:
        await asyncio.sleep(interval_s)
        there = await _newest_paths(store)
        found: list[Found] = []
        for path in sorted(there - seen):
            found += await asyncio.to_thread(_matching, await store.read(path), filters, None)
        seen = there
        yield [_decode(line) for _, line in sorted(found)]


async def _newest_paths(store: LogStore) -> set[str]:
    days = (await days_of(store))[:2]
    there = [item.path for _, folder in days async for item in store.listing(folder)]
    return {path for path in there if objects.is_log_object(path) and not is_compacted(path)}
