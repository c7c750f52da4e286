"""Budgets and totals over all accounts, for whoever looks at them: nothing here decides anything."""

import re
from typing import Any, Final

from sqlalchemy import Select, and_, func, literal, not_, or_, select, tuple_, union_all

from tollkeeper.domain.accounts import MonthFilters, MonthTotals
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.paging import Page, Paging
from tollkeeper.domain.periods import Period, month_of_label, span_at
from tollkeeper.domain.policy import Scope, ScopeKind
from tollkeeper.domain.ports import BudgetedScope, BudgetFilters, Tally
from tollkeeper.storage.names import KEY, TEAM, is_text
from tollkeeper.storage.principals import read_policy
from tollkeeper.storage.tables import (
    admin_tokens,
    budget_alerts,
    keys,
    monthly_usage_summary,
    organisations,
    spend,
    teams,
)
from tollkeeper.storage.transactions import Transactions

_MONTH: Final = "____:__"
"""What labels of months look like, and those of no other period."""
_MONTH_TEXT: Final = re.compile(r"\d{4}-\d{2}")
_HAS_BUDGETS: Final = '%"budgets"%'
"""What a policy's text has if it has budgets: what is empty is not written."""


class StoredBudgets:
    """`BudgetReader` over the database."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def budgeted(self, filters: BudgetFilters, paging: Paging) -> Page[BudgetedScope]:
        found = union_all(*_scopes(filters)).subquery()
        query = select(found).order_by(found.c.created_us.desc(), found.c.id.desc()).limit(paging.limit + 1)
        async with self._transactions.read() as transaction:
            if paging.starting_after is not None:
                cursor = paging.starting_after
                known = select(found.c.created_us, found.c.id).where(found.c.id == cursor)
                row = await transaction.row(known) if is_text(cursor) else None
                if row is None:
                    raise InvalidInput(f"starting_after: there is no {cursor!r}; give a scope_id of this list")
                query = query.where(tuple_(found.c.created_us, found.c.id) < (row.created_us, row.id))
            rows = await transaction.rows(query)
        scopes = [
            BudgetedScope(row.root, row.name, Scope(ScopeKind(row.kind), row.id, read_policy(row.policy)))
            for row in rows
        ]
        return Page.of(scopes, paging.limit)

    async def months(self, filters: MonthFilters, paging: Paging) -> Page[MonthTotals]:
        found = _months(filters).subquery()
        place = tuple_(found.c.month_label, found.c.scope_id)
        query = select(found).order_by(found.c.month_label.desc(), found.c.scope_id.desc()).limit(paging.limit + 1)
        if paging.starting_after is not None:
            query = query.where(place < _month_place(paging.starting_after))
        async with self._transactions.read() as transaction:
            rows = [_month(row) for row in await transaction.rows(query)]
        return Page.of(rows, paging.limit)

    async def tally(self, now_us: int) -> Tally:
        expired = and_(keys.c.expires_us.is_not(None), keys.c.expires_us <= now_us)
        standing = keys.c.revoked_us.is_(None)
        real = and_(organisations.c.deleted_us.is_(None), organisations.c.implicit.is_(False))
        usage = monthly_usage_summary
        year_month = month_of_label(span_at(Period.MONTH, now_us).label)
        assert year_month is not None
        spent_query = select(
            *(
                func.coalesce(func.sum(usage.c[name]), 0)
                for name in ("cost_nano", "requests", "input_tokens", "output_tokens")
            ),
            func.max(usage.c.updated_us),
        ).where(usage.c.year == year_month[0], usage.c.month == year_month[1])
        async with self._transactions.snapshot() as transaction:
            counts: dict[str, Any] = {}
            for name, table, condition in (
                ("organisations", organisations, real),
                ("teams", teams, teams.c.deleted_us.is_(None)),
                ("keys_active", keys, and_(standing, not_(expired))),
                ("keys_expired", keys, and_(standing, expired)),
                ("keys_revoked", keys, not_(standing)),
                ("admin_tokens", admin_tokens, admin_tokens.c.revoked_us.is_(None)),
                ("alerts_undelivered", budget_alerts, budget_alerts.c.due_us.is_not(None)),
            ):
                count = select(func.count()).select_from(table).where(condition)
                counts[name] = (await transaction.execute(count)).scalar_one()
            spent: Any = (await transaction.execute(spent_query)).one()
        cost_nano, requests, input_tokens, output_tokens, synced_us = spent
        return Tally(
            **counts,
            cost_nano=int(cost_nano),  # PostgreSQL sums integers into numerics
            requests=int(requests),
            input_tokens=int(input_tokens),
            output_tokens=int(output_tokens),
            synced_us=synced_us,
        )


def _months(filters: MonthFilters) -> Select[Any]:
    """Months of one kind of scope, with its name. Of an organisation the counter is the root's own, whose name among
    scopes is empty; one that a single key has of its own has none."""
    table, kind = spend, filters.kind
    named, place = {
        ScopeKind.KEY: (keys, table.c.scope),
        ScopeKind.TEAM: (teams, table.c.scope),
        ScopeKind.ORGANISATION: (organisations, table.c.root),
    }[kind]
    prefix = {ScopeKind.KEY: KEY, ScopeKind.TEAM: TEAM, ScopeKind.ORGANISATION: ""}[kind]
    mine = (
        table.c.scope == "" if kind is ScopeKind.ORGANISATION else table.c.scope.startswith(prefix, autoescape=True)
    )
    columns = (table.c.cost_nano, table.c.requests, table.c.input_tokens, table.c.output_tokens)
    query = (
        select(
            place.label("scope_id"),
            table.c.period.label("month_label"),
            named.c.name,
            *columns,
            table.c.cached_tokens,
            table.c.updated_us,
        )
        .select_from(table.outerjoin(named, named.c.id == place))
        .where(mine, table.c.period.like(_MONTH))
    )
    if kind is ScopeKind.ORGANISATION:
        query = query.where(named.c.implicit.is_(False))
    if filters.year_month is not None:
        query = query.where(table.c.period == "{}:{:02d}".format(*filters.year_month))
    if filters.scope_id is not None:
        query = query.where(place == (filters.scope_id if is_text(filters.scope_id) else ""))
    if filters.owned is not None:
        places = [place, table.c.root, *([keys.c.team_id] if kind is ScopeKind.KEY else [])]
        query = query.where(or_(*(each.in_(filters.owned) for each in places)))
    return query


def _month_place(cursor: str) -> tuple[str, str]:
    month, colon, scope_id = cursor.partition(":")
    if not colon or not is_text(scope_id) or not _MONTH_TEXT.fullmatch(month):
        raise InvalidInput("starting_after: give the id of the last row of the page before")
    return month.replace("-", ":"), scope_id


def _month(row: Any) -> MonthTotals:
    year_month = month_of_label(row.month_label)
    assert year_month is not None
    spent = (row.cost_nano, row.requests, row.input_tokens, row.output_tokens, row.cached_tokens)
    return MonthTotals(row.scope_id, row.name, *year_month, *spent, row.updated_us)


def _scopes(filters: BudgetFilters) -> list[Select[Any]]:
    """A query for each kind of scope, with columns of the same names."""
    selects = []
    for kind, table, root, condition in (
        (ScopeKind.KEY, keys, keys.c.organisation_id, keys.c.revoked_us.is_(None)),
        (ScopeKind.TEAM, teams, teams.c.organisation_id, teams.c.deleted_us.is_(None)),
        (ScopeKind.ORGANISATION, organisations, organisations.c.id, organisations.c.deleted_us.is_(None)),
    ):
        if filters.kind not in (None, kind):
            continue
        query = select(
            literal(kind.value).label("kind"),
            table.c.id,
            table.c.name,
            table.c.policy,
            table.c.created_us,
            root.label("root"),
        ).where(condition, table.c.policy.like(_HAS_BUDGETS))
        if filters.scope_id is not None:
            query = query.where(table.c.id == (filters.scope_id if is_text(filters.scope_id) else ""))
        if filters.owned is not None:
            places = [table.c.id, root, *([keys.c.team_id] if kind is ScopeKind.KEY else [])]
            query = query.where(or_(*(place.in_(filters.owned) for place in places)))
        selects.append(query)
    return selects
