"""Log records that were delivered, and the account of those on their way."""

from typing import Any, Final

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.errors import Forbidden
from tollkeeper.domain.log_search import PAGE_MAX, LogFilters
from tollkeeper.domain.operators import Role
from tollkeeper.domain.words import Words, log_stats_words, proof_words

RANGES_MAX: Final = 1000
"""Ranges of numbers in an answer, of each producer and kind; `tollkeeper logs verify --json` has all."""
EXPORTED_MAX: Final = 10_000
"""Records of one file."""
BODIES: Final = ("request_body", "response_body")


class LogService:
    """An owner sees the records of its keys. Bodies, which may hold anything, are for admins and owners."""

    def __init__(self, parts: Parts) -> None:
        self._reader, self._accounts = parts.logs, parts.log_accounts

    async def search(
        self, caller: Caller, filters: LogFilters, limit: int, cursor: str | None, *, bodies: bool = False
    ) -> Words:
        """A page, newest first; one may be short, or empty, and still have a next one. Raises Forbidden."""
        if bodies and caller.actor.role is Role.VIEWER:
            raise Forbidden("bodies: prompts and answers are for admins and for the owners of the key")
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        page = await self._reader.search(filters, limit, cursor, bodies=bodies)
        return {"data": page.records, "has_more": page.next_cursor is not None, "next_cursor": page.next_cursor}

    async def export(self, caller: Caller, filters: LogFilters) -> list[Words]:
        """The newest records without bodies, up to `EXPORTED_MAX`; what is in a list or a map is JSON."""
        rows: list[Words] = []
        cursor: str | None = None
        while len(rows) < EXPORTED_MAX:
            page = await self.search(caller, filters, min(PAGE_MAX, EXPORTED_MAX - len(rows)), cursor)
            rows += [
                {name: _cell(value) for name, value in record.items() if name not in BODIES}
                for record in page["data"]
            ]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return rows

    def stats(self) -> Words:
        """The records of this process, and the queue."""
        return log_stats_words(self._accounts.stats())

    async def verify(self) -> Words:
        """What became of every record's number."""
        return proof_words(await self._accounts.verify(), RANGES_MAX)


def _row(record: Words) -> Words:
    return {name: _cell(value) for name, value in record.items() if name not in BODIES}


def _cell(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, (list, dict)) else value
