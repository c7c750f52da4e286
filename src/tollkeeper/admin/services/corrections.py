"""Charges whose truth is not, or was not, known; and an operator's word on them.

Each correction is an entry of this gateway's own, on its disk when the answer is sent. What is listed is what the
database has: a list brings it up to date first, and tells the last sync's if that cannot be done.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.admission import CounterRef
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.corrections import (
    ADJUSTMENT,
    adjustment,
    adjustment_id,
    charge_words,
    checked_note,
    corrected,
    counter_of,
    cursor_of,
    place_of,
)
from tollkeeper.domain.errors import InvalidInput, NotFound, Unavailable
from tollkeeper.domain.money import nano_from_usd, usd
from tollkeeper.domain.paging import Page, Paging
from tollkeeper.domain.periods import Period, month_start_us
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import ListedCharge
from tollkeeper.domain.words import Words, month_from

FLUSH_S: Final = 5.0
Tokens = tuple[int | None, int | None, int | None]
"""Input, output and cached ones; None: as they are counted."""


class CorrectionService:
    """For admins and viewers; owners see what was charged in their usage."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def find(self, status: str | None, key: str | None, paging: Paging) -> Words:
        """Charges that carry a rank, those that changed last first."""
        after = None if paging.starting_after is None else place_of(paging.starting_after)
        if after is None:
            await self._synced()
        key_id = None if key is None else (await self._parts.accounts.get_key(key)).id
        rows = await self._parts.spend.listed(status=status, key=key_id, limit=paging.limit + 1, after=after)
        page = Page.of(list(rows), paging.limit)
        return _listed(page.items, cursor_of(page.items[-1]) if page.has_more else None)

    async def show(self, attempt: str) -> Words:
        """One attempt, explained. Raises NotFound."""
        await self._synced()
        await self._known(attempt)
        return _listed(await self._parts.spend.listed(attempt=attempt), None)

    async def correct(self, caller: Caller, attempt: str, cost_usd: str, tokens: Tokens, note: str) -> Words:
        """Say what an attempt cost. Raises NotFound, InvalidInput."""
        row = await self._known(attempt)
        cost_nano = _nano(cost_usd, "cost_usd", signed=attempt.startswith(ADJUSTMENT))
        return await self._issue(caller, row.root, attempt, corrected(row, cost_nano, tokens), checked_note(note))

    async def adjust(
        self,
        caller: Caller,
        scope: ScopeKind,
        name: str,
        *,
        amount_usd: str | None,
        note: str,
        period: Period = Period.MONTH,
        month: str | None = None,
        asked_id: str | None = None,
    ) -> Words:
        """Change the spend of a scope in a period; an amount of None takes it to zero. Raises InvalidInput."""
        note = checked_note(note)
        root, scope_id = await self._scope(scope, name)
        counter = counter_of(scope_id, *_period(period, month, self._parts.now_us()))
        if amount_usd is None:
            amount_nano = -(await self._spent(root, counter))
        else:
            amount_nano = _nano(amount_usd, "amount_usd", signed=True)
        if amount_nano == 0:
            raise InvalidInput("amount_usd: there is nothing to change")
        attempt = adjustment_id(asked_id or secrets.token_hex(16))
        return await self._issue(caller, root, attempt, adjustment(amount_nano, counter), note)

    async def _synced(self) -> None:
        with suppress(Unavailable):
            await self._parts.sync()

    async def _known(self, attempt: str) -> ListedCharge:
        found = await self._parts.spend.listed(attempt=attempt)
        if not found:
            await self._parts.sync()
            found = await self._parts.spend.listed(attempt=attempt)
        if not found:
            raise NotFound(f"no charge of {attempt!r} is listed; what is settled is changed by an adjustment")
        return max(found, key=lambda listed: listed.charge.rank)

    async def _issue(self, caller: Caller, root: str, attempt: str, charge: Charge, note: str) -> Words:
        after = {"root": root, "cost_usd": usd(charge.cost_nano), "note": note}
        await self._parts.audit.append(caller.author, "correction.issue", attempt, after)
        self._parts.corrector.correct(root, attempt, charge, note)
        applied = await self._parts.corrector.flush(FLUSH_S)
        if applied:
            await self._synced()
        return {"attempt": attempt, "cost_usd": usd(charge.cost_nano), "applied": applied}

    async def _spent(self, root: str, counter: CounterRef) -> int:
        await self._parts.sync()
        totals = (await self._parts.spend.load(root)).totals.get(counter.name)
        return totals.cost_nano if totals is not None else 0

    async def _scope(self, scope: ScopeKind, name: str) -> tuple[str, str]:
        """Root and id of a scope; the id of an organisation among its counters is empty."""
        accounts = self._parts.accounts
        if scope is ScopeKind.KEY:
            principal = await accounts.principal(name)
            return principal.root, principal.key_id
        if scope is ScopeKind.TEAM:
            team = await accounts.get_team(name)
            return team.organisation_id, team.id
        return (await accounts.get_organisation(name)).id, ""


def _listed(rows: Sequence[ListedCharge], following: str | None) -> Words:
    return {"data": [charge_words(row) for row in rows], "has_more": following is not None, "next_cursor": following}


def _nano(text: str, what: str, *, signed: bool) -> int:
    """An amount; below zero only where that makes sense."""
    negative = text.startswith("-")
    if negative and not signed:
        raise InvalidInput(f"{what}: what an attempt cost is zero or more")
    nano = nano_from_usd(text.removeprefix("-"), what=what)
    return -nano if negative else nano


def _period(period: Period, month: str | None, now_us: int) -> tuple[Period, int]:
    if month is None:
        return period, now_us
    if period is not Period.MONTH:
        raise InvalidInput("month: only for the period month")
    return Period.MONTH, month_start_us(*month_from(month))
