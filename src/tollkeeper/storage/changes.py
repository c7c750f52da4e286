"""A change of the accounts: one transaction that takes the next version, does its work and writes its audit events.

Taking the version first locks the counter's row: writers queue on it, what one reads cannot be overtaken before it
writes, and versions, and so the numbers of audit events, follow the order of commits.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from sqlalchemy import update

from tollkeeper.domain.audit import Author, differences
from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.storage.tables import audit_events, change_counter
from tollkeeper.storage.transactions import Transaction, Transactions

EVENTS_MAX: Final = 10
"""Audit events of one transaction, so that a number is a version and a digit."""

_NEXT_VERSION: Final = (
    update(change_counter).values(version=change_counter.c.version + 1).returning(change_counter.c.version)
)
Facts = dict[str, Any]


class Change:
    """One under way."""

    def __init__(self, transaction: Transaction, version: int, author: Author, now_us: int) -> None:
        self.transaction, self.version, self.now_us = transaction, version, now_us
        self._author = author
        self._events = 0

    async def record(self, action: str, object_id: str, before: Facts | None, after: Facts | None) -> int:
        """Write an audit event and give its number. Of two accounts only what differs is kept."""
        if before is not None and after is not None:
            before, after = differences(before, after)
        assert self._events < EVENTS_MAX
        number = self.version * EVENTS_MAX + self._events
        self._events += 1
        author = self._author
        await self.transaction.execute(
            audit_events.insert().values(
                number=number,
                at_us=self.now_us,
                actor_id=author.id,
                actor_name=author.name,
                source=author.source,
                address=author.address,
                request_id=author.request_id,
                idempotency=author.idempotency,
                action=action,
                object_id=object_id,
                before_json=_text(before),
                after_json=_text(after),
            )
        )
        return number


class Changes:
    """Opens changes by one author."""

    def __init__(self, transactions: Transactions, author: Author, now_us: Callable[[], int]) -> None:
        self.transactions, self.author, self.now_us = transactions, author, now_us

    def by(self, author: Author) -> "Changes":
        """The same by somebody else."""
        return Changes(self.transactions, author, self.now_us)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Change]:
        """Committed at the end of the block, rolled back if it raises. Raises DatabaseUnavailable."""
        now_us = self.now_us()
        async with self.transactions.write() as transaction:
            row = await transaction.row(_NEXT_VERSION)
            if row is None:
                raise DatabaseUnavailable("the change counter has lost its row; restore the database from a backup")
            yield Change(transaction, row.version, self.author, now_us)


def _text(facts: Facts | None) -> str | None:
    return None if facts is None else msgspec.json.encode(facts).decode()
