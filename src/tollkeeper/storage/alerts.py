"""Warnings of budgets in the database: who is first to give one, and which still have to be delivered.

An alert's row is claimed by inserting it, so of any number of gateways one gives it, once. Its delivery is leased by
moving its due time, so a gateway that dies is followed by another.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from tollkeeper.domain.admission import split_counter
from tollkeeper.domain.alerts import Alert
from tollkeeper.domain.periods import expiry_of_label
from tollkeeper.domain.policy import Scope, ScopeKind
from tollkeeper.domain.ports import DueAlert
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.principals import read_policy
from tollkeeper.storage.tables import budget_alerts, keys, organisations, spend, teams
from tollkeeper.storage.transactions import Transactions

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

    async def settle(self, alert: Alert, *, due_us: int | None) -> None:
        table = budget_alerts
        mine = (
            (table.c.root == alert.root)
            & (table.c.counter == alert.counter)
            & (table.c.threshold_nano == alert.threshold_nano)
        )
        async with self._transactions.write() as transaction:
            await transaction.execute(update(table).where(mine).values(due_us=due_us))

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


def _watched() -> Iterator[tuple[ScopeKind, Any]]:
    for kind, table, root, live in (
        (ScopeKind.KEY, keys, keys.c.organisation_id, keys.c.revoked_us.is_(None)),
        (ScopeKind.TEAM, teams, teams.c.organisation_id, teams.c.deleted_us.is_(None)),
        (ScopeKind.ORGANISATION, organisations, organisations.c.id, organisations.c.deleted_us.is_(None)),
    ):
        warns = or_(*(table.c.policy.like(pattern) for pattern in _THRESHOLDS))
        yield kind, select(table.c.id, table.c.policy, root.label("root")).where(live, warns)
