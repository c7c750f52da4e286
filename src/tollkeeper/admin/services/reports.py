"""Usage reports by model, provider, tag, day and more, from the log records."""

from typing import Final

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.keys import KeyService
from tollkeeper.domain.accounts import KeyFilters
from tollkeeper.domain.paging import PAGE_MAX, Paging
from tollkeeper.domain.reports import ReportQuery, report_words
from tollkeeper.domain.words import Words, instant

NAMED_MAX: Final = 10 * PAGE_MAX
"""Keys of a report whose names are looked up."""


class ReportService:
    """An owner's reports are over the records of its keys."""

    def __init__(self, parts: Parts, keys: KeyService) -> None:
        self._reports, self._accounts, self._keys = parts.reports, parts.accounts, keys

    async def usage(self, caller: Caller, query: ReportQuery) -> Words:
        """`data`, `total` and `has_more`. Filters may name key, team and organisation; groups are ids, keys' names
        beside them."""
        filters = query.filters
        if filters.key is not None:
            filters = msgspec.structs.replace(filters, key=(await self._keys.known(caller, filters.key)).id)
        if filters.team is not None:
            filters = msgspec.structs.replace(filters, team=(await self._accounts.get_team(filters.team)).id)
        if filters.organisation is not None:
            organisation = await self._accounts.get_organisation(filters.organisation)
            filters = msgspec.structs.replace(filters, organisation=organisation.id)
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        query = msgspec.structs.replace(query, filters=filters)
        report = await self._reports.report(query)
        rows = [report_words(query, row) for row in report.rows]
        await self._name_keys(query, rows)
        return {
            "since": instant(query.since_us),
            "until": instant(query.until_us),
            "group_by": list(query.group_by),
            "data": rows,
            "has_more": report.has_more,
            "total": report_words(query, report.total),
        }

    async def _name_keys(self, query: ReportQuery, rows: list[Words]) -> None:
        if "key" not in query.group_by:
            return
        ids = list(dict.fromkeys(row["key_id"] for row in rows))[:NAMED_MAX]
        names: dict[str, str] = {}
        for start in range(0, len(ids), PAGE_MAX):
            filters = KeyFilters(owned=tuple(ids[start : start + PAGE_MAX]), include_revoked=True)
            found = await self._accounts.find_keys(filters, Paging(PAGE_MAX))
            names |= {key.id: key.name for key in found.items}
        for row in rows:
            row["key_name"] = names.get(row["key_id"])
