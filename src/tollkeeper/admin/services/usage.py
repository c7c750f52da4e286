"""What keys, teams and organisations have spent, by month: the ledger's exact accounts, as of the last sync."""

from typing import Final

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.keys import KeyService
from tollkeeper.domain.accounts import MonthFilters, MonthTotals
from tollkeeper.domain.paging import PAGE_MAX, Page, Paging
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.words import Words, instant, month_from, month_words

EXPORTED_MAX: Final = 10_000
"""Rows of one export."""


class UsageService:
    """An owner sees its keys, and the teams and organisations that it owns."""

    def __init__(self, parts: Parts, keys: KeyService) -> None:
        self._accounts, self._budgets, self._sync = parts.accounts, parts.budgets, parts.sync
        self._keys, self._now_us = keys, parts.now_us

    async def monthly(
        self, caller: Caller, kind: ScopeKind, scope: str | None, month: str | None, paging: Paging
    ) -> Words:
        """A page of months of a kind of scope, or of the one that is named (or given by id); the newest first."""
        page = await self._budgets.months(await self._filters(caller, kind, scope, month), paging)
        return {"data": [month_words(kind, row) for row in page.items], "has_more": page.has_more}

    async def export(self, caller: Caller, kind: ScopeKind, scope: str | None, month: str | None) -> list[Words]:
        """All of them, up to a bound."""
        filters = await self._filters(caller, kind, scope, month)
        rows: list[Words] = []
        paging = Paging(PAGE_MAX)
        while len(rows) < EXPORTED_MAX:
            page: Page[MonthTotals] = await self._budgets.months(filters, paging)
            rows += [month_words(kind, row) for row in page.items]
            if not page.has_more:
                break
            paging = Paging(PAGE_MAX, page.items[-1].id)
        return rows

    async def sync(self) -> Words:
        """Write the spend that the store knows to the database."""
        await self._sync()
        return {"synced_at": instant(self._now_us())}

    async def _filters(self, caller: Caller, kind: ScopeKind, scope: str | None, month: str | None) -> MonthFilters:
        scope_id = None
        if scope is not None:
            if kind is ScopeKind.KEY:
                scope_id = (await self._keys.known(caller, scope)).id
            elif kind is ScopeKind.TEAM:
                scope_id = (await self._accounts.get_team(scope)).id
            else:
                scope_id = (await self._accounts.get_organisation(scope)).id
        year_month = None if month is None else month_from(month)
        return MonthFilters(kind=kind, scope_id=scope_id, year_month=year_month, owned=caller.owned)
