"""Budgets with their state, and the warnings that they gave."""

from contextlib import suppress

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.accounts import KeyFilters
from tollkeeper.domain.alerts import AlertFilters, given_words
from tollkeeper.domain.budget_state import budget_counters, budget_words
from tollkeeper.domain.errors import NotFound
from tollkeeper.domain.paging import PAGE_MAX, Paging
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import BudgetFilters
from tollkeeper.domain.words import Words


class BudgetService:
    """What is spent is as of the last sync; what is held is not in it (`LimitService` tells both, of one key)."""

    def __init__(self, parts: Parts) -> None:
        self._budgets, self._book, self._now_us = parts.budgets, parts.alerts, parts.now_us
        self._accounts = parts.accounts

    async def find(self, caller: Caller, filters: BudgetFilters, paging: Paging) -> Words:
        """Keys, teams and organisations that have budgets, newest first."""
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        page = await self._budgets.budgeted(filters, paging)
        counters = budget_counters(page.items, self._now_us())
        names = [(scope.root, c.name) for scope, its in zip(page.items, counters, strict=True) for c in its]
        spent = await self._book.spent(names)
        data = [budget_words(scope, its, spent) for scope, its in zip(page.items, counters, strict=True)]
        return {"data": data, "has_more": page.has_more}

    async def alerts(self, caller: Caller, filters: AlertFilters, limit: int, cursor: str | None) -> Words:
        """Warnings with what became of their messages, newest first."""
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        found, following = await self._book.find(filters, limit, cursor)
        data = [given_words(given) for given in found]
        names = await self._names({(words["scope"], words["scope_id"]) for words in data})
        data = [words | {"name": names.get(words["scope_id"])} for words in data]
        return {"data": data, "has_more": following is not None, "next_cursor": following}

    async def _names(self, scopes: set[tuple[str, str]]) -> dict[str, str]:
        """Of those that are still there, by id."""
        names: dict[str, str] = {}
        keys = tuple(sorted(scope_id for scope, scope_id in scopes if scope == ScopeKind.KEY))
        if keys:
            found = await self._accounts.find_keys(KeyFilters(owned=keys, include_revoked=True), Paging(PAGE_MAX))
            names |= {key.id: key.name for key in found.items}
        for scope, scope_id in scopes:
            with suppress(NotFound):
                if scope == ScopeKind.TEAM:
                    names[scope_id] = (await self._accounts.get_team(scope_id)).name
                elif scope == ScopeKind.ORGANISATION:
                    names[scope_id] = (await self._accounts.get_organisation(scope_id)).name
        return names
