"""Which sessions of the dashboard were ended before their time: single ones by name, and all of an actor at once.

All of an actor are ended by beginning another *era* of it: a session names the era it began in, and stands in no
later one. A number and no time, because the clocks of gateways differ. There is a row for each session that somebody
ended within the last hours, and one for each actor that ever ended all; whoever makes rows has a valid token.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from tollkeeper.storage.address import Dialect
from tollkeeper.storage.tables import session_ends
from tollkeeper.storage.transactions import Transaction, Transactions

_TABLE = session_ends


class StoredSessionEnds:
    """`SessionEnds` over the database."""

    def __init__(self, transactions: Transactions, now_us: Callable[[], int]) -> None:
        self._transactions, self._now_us = transactions, now_us

    async def era(self, actor_id: str) -> int:
        async with self._transactions.read() as transaction:
            row = await transaction.row(select(_TABLE.c.era).where(_TABLE.c.subject == actor_id))
        return 0 if row is None else int(row.era)

    async def has_ended(self, session_id: str, actor_id: str, era: int) -> bool:
        named = select(_TABLE).where(_TABLE.c.subject.in_((session_id, actor_id)))
        async with self._transactions.read() as transaction:
            rows = await transaction.rows(named)
        return any(row.subject == session_id or row.era > era for row in rows)

    async def end(self, session_id: str, until_us: int) -> None:
        async with self._transactions.write() as transaction:
            await transaction.execute(delete(_TABLE).where(_TABLE.c.forget_us <= self._now_us()))
            statement = _insert(transaction).on_conflict_do_nothing()
            await transaction.execute(statement, {"subject": session_id, "era": 0, "forget_us": until_us})

    async def end_all(self, actor_id: str) -> None:
        async with self._transactions.write() as transaction:
            await begin_era(transaction, actor_id)


async def begin_era(transaction: Transaction, actor_id: str) -> None:
    """End all sessions of an actor with the transaction."""
    next_era = {"era": _TABLE.c.era + 1}
    statement = _insert(transaction).on_conflict_do_update(index_elements=["subject"], set_=next_era)
    await transaction.execute(statement, {"subject": actor_id, "era": 1, "forget_us": None})


def _insert(transaction: Transaction) -> Any:
    insert: Any = postgresql.insert if transaction.dialect is Dialect.POSTGRESQL else sqlite.insert
    return insert(_TABLE)
