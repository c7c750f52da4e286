"""Warnings of budgets in the database: who is first to give one, and which still have to be delivered.

An alert's row is claimed by inserting it, so of any number of gateways one gives it, once. Its delivery is leased by
moving its due time, so a gateway that dies is followed by another.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, false, not_, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from tollkeeper.domain.admission import split_counter
from tollkeeper.domain.alerts import Alert, AlertFilters, GivenAlert
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.periods import expiry_of_label
from tollkeeper.domain.policy import Scope, ScopeKind
from tollkeeper.domain.ports import DueAlert
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.names import ORGANISATION, is_text
from tollkeeper.storage.principals import read_policy
from tollkeeper.storage.tables import budget_alerts, keys, organisations, spend, teams
from tollkeeper.storage.transactions import Transaction, Transactions

FAILURE_CHARACTERS_MAX: Final = 500
BATCH: Final = 200
"""Counters asked for in one query."""
_FIELDS: Final = tuple(field for field in Alert.__struct_fields__)
_THRESHOLDS: Final = ('%"soft":true%', '%"warn_%')
"""What a policy's text has if one of its budgets may warn."""


class StoredAlerts:
    """`AlertBook` over the database."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def claim(self, alerts: Sequence[Alert], *, due_us: int | None) -> list[Alert]:
        first: list[Alert] = []
        async with self._transactions.write() as transaction:
            for alert in sorted(alerts, key=lambda a: (a.root, a.counter, a.threshold_nano)):
                row = {name: getattr(alert, name) for name in _FIELDS} | {
                    "scope": alert.scope.value,
                    "expires_us": expiry_of_label(split_counter(alert.counter)[1]),
                    "due_us": due_us,
                    "attempts": 0,
                }
                if (await transaction.execute(_insert(transaction.dialect), row)).rowcount == 1:
                    first.append(alert)
        return first

    async def take_due(self, now_us: int, *, lease_us: int, limit: int) -> list[DueAlert]:
        table = budget_alerts
        identity = (table.c.root, table.c.counter, table.c.threshold_nano)
        due = select(*identity).where(table.c.due_us <= now_us).order_by(table.c.due_us).limit(limit)
        async with self._transactions.write() as transaction:
            found = await transaction.rows(due.with_for_update(skip_locked=True))
            if not found:
                return []
            leased = update(table).where(tuple_(*identity).in_([tuple(row) for row in found]))
            rows = (
                await transaction.execute(
                    leased.values(due_us=now_us + lease_us, attempts=table.c.attempts + 1).returning(table)
                )
            ).all()
        return [DueAlert(_alert(row), row.attempts) for row in rows]

    async def settle(
        self, alert: Alert, *, due_us: int | None, delivered_us: int | None = None, failure: str | None = None
    ) -> None:
        table = budget_alerts
        mine = (
            (table.c.root == alert.root)
            & (table.c.counter == alert.counter)
            & (table.c.threshold_nano == alert.threshold_nano)
        )
        kept = None if failure is None else failure[:FAILURE_CHARACTERS_MAX]
        async with self._transactions.write() as transaction:
            values = {"due_us": due_us, "delivered_us": delivered_us, "failure": kept}
            await transaction.execute(update(table).where(mine).values(**values))

    async def find(
        self, filters: AlertFilters, limit: int, cursor: str | None = None
    ) -> tuple[list[GivenAlert], str | None]:
        table = budget_alerts
        order = (table.c.crossed_us.desc(), table.c.root, table.c.counter, table.c.threshold_nano)
        query = select(table).where(*_wanted(filters)).order_by(*order)
        async with self._transactions.read() as transaction:
            if cursor is not None:
                query = query.where(await _behind(transaction, cursor))
            found = [_given(row) for row in await transaction.rows(query.limit(limit + 1))]
        page = found[:limit]
        more = len(found) > limit
        return page, f"{page[-1].alert.crossed_us}-{page[-1].alert.id}" if more else None

    async def forget(self, now_us: int) -> None:
        table = budget_alerts
        async with self._transactions.write() as transaction:
            over = table.c.expires_us.between(1, now_us)
            await transaction.execute(table.delete().where(over, table.c.due_us.is_(None)))

    async def watched(self) -> list[tuple[str, Scope]]:
        async with self._transactions.read() as transaction:
            return [
                (row.root, Scope(kind, row.id, read_policy(row.policy)))
                for kind, query in _watched()
                for row in await transaction.rows(query)
            ]

    async def spent(self, counters: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        wanted = {(root, *split_counter(name)): (root, name) for root, name in counters}
        names = list(wanted)
        async with self._transactions.read() as transaction:
            for start in range(0, len(names), BATCH):
                which = tuple_(spend.c.root, spend.c.scope, spend.c.period).in_(names[start : start + BATCH])
                query = select(spend.c.root, spend.c.scope, spend.c.period, spend.c.cost_nano).where(which)
                for row in await transaction.rows(query):
                    found[wanted[(row.root, row.scope, row.period)]] = row.cost_nano
        return found


def _insert(dialect: Dialect) -> Insert:
    insert = postgresql.insert if dialect is Dialect.POSTGRESQL else sqlite.insert
    statement: Insert = insert(budget_alerts).on_conflict_do_nothing()
    return statement


def _alert(row: Any) -> Alert:
    values = {name: getattr(row, name) for name in _FIELDS}
    return Alert(**values | {"scope": ScopeKind(row.scope)})


def _given(row: Any) -> GivenAlert:
    return GivenAlert(_alert(row), row.attempts, row.due_us, row.delivered_us, row.failure)


def _wanted(filters: AlertFilters) -> list[ColumnElement[bool]]:
    table = budget_alerts
    wanted: list[ColumnElement[bool]] = []
    if filters.since_us is not None:
        wanted.append(table.c.crossed_us >= filters.since_us)
    if filters.until_us is not None:
        wanted.append(table.c.crossed_us < filters.until_us)
    if filters.scope_id is not None:
        wanted.append(_of_scope(filters.scope_id, whole=False))
    if filters.owned is not None:
        wanted.append(or_(false(), *(_of_scope(owned, whole=True) for owned in filters.owned)))
    if filters.delivery is not None:
        wanted.append(_delivered_so(filters.delivery))
    return wanted


def _of_scope(scope_id: str, *, whole: bool) -> ColumnElement[bool]:
    """Alerts of a scope; of an organisation its own, or `whole`: those of all below it, too."""
    table = budget_alerts
    if not is_text(scope_id):
        return false()
    if not scope_id.startswith(ORGANISATION):
        return table.c.counter.startswith(f"{scope_id}:", autoescape=True)
    own = table.c.scope == ScopeKind.ORGANISATION.value
    return table.c.root == scope_id if whole else and_(table.c.root == scope_id, own)


def _delivered_so(delivery: str) -> ColumnElement[bool]:
    table = budget_alerts
    over, due = table.c.delivered_us.is_not(None), table.c.due_us.is_not(None)
    failed = table.c.failure.is_not(None)
    conditions: dict[str, ColumnElement[bool]] = {
        "delivered": over,
        "waiting": and_(due, not_(failed)),
        "retrying": and_(due, failed),
        "given_up": and_(not_(over), not_(due), failed),
        "none": and_(not_(over), not_(due), not_(failed)),
    }
    if delivery not in conditions:
        raise InvalidInput(f"delivery: {delivery!r} is not one of {', '.join(conditions)}")
    return conditions[delivery]


async def _behind(transaction: Transaction, cursor: str) -> ColumnElement[bool]:
    """What follows the alert that a cursor names. Ids are digests, so it is looked for among those of its instant."""
    table = budget_alerts
    at, dash, alert_id = cursor.partition("-")
    refusal = InvalidInput("starting_after: give the next_cursor of the page before, unchanged")
    if not dash or not (at.isascii() and at.isdecimal()) or len(at) > 17:
        raise refusal
    crossed_us = int(at)
    for row in await transaction.rows(select(table).where(table.c.crossed_us == crossed_us)):
        if _alert(row).id == alert_id:
            place = tuple_(table.c.root, table.c.counter, table.c.threshold_nano)
            later = place > tuple_(row.root, row.counter, row.threshold_nano)
            return or_(table.c.crossed_us < crossed_us, and_(table.c.crossed_us == crossed_us, later))
    raise refusal


def _watched() -> Iterator[tuple[ScopeKind, Any]]:
    for kind, table, root, live in (
        (ScopeKind.KEY, keys, keys.c.organisation_id, keys.c.revoked_us.is_(None)),
        (ScopeKind.TEAM, teams, teams.c.organisation_id, teams.c.deleted_us.is_(None)),
        (ScopeKind.ORGANISATION, organisations, organisations.c.id, organisations.c.deleted_us.is_(None)),
    ):
        warns = or_(*(table.c.policy.like(pattern) for pattern in _THRESHOLDS))
        yield kind, select(table.c.id, table.c.policy, root.label("root")).where(live, warns)
