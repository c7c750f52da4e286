"""The audit log in the database: read in pages, and appended to where no change of the accounts does it."""

from typing import Any, Final

import msgspec
from sqlalchemy import Row, select

from tollkeeper.domain.audit import EVENT, AuditEvent, AuditFilters, Author
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.paging import Page, Paging
from tollkeeper.storage.changes import Changes
from tollkeeper.storage.names import is_text
from tollkeeper.storage.tables import audit_events

NUMBER_MAX: Final = 2**63 - 1


class StoredAudit:
    """`AuditLog` over the database."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def append(self, author: Author, action: str, object_id: str, after: dict[str, Any]) -> AuditEvent:
        async with self._changes.by(author).open() as change:
            number = await change.record(action, object_id, None, after)
        return AuditEvent(number, change.now_us, author, action, object_id, None, after)

    async def find(self, filters: AuditFilters, paging: Paging) -> Page[AuditEvent]:
        table = audit_events
        query = select(table).order_by(table.c.number.desc()).limit(paging.limit + 1)
        for column, wanted in (
            (table.c.object_id, filters.object_id),
            (table.c.actor_id, filters.actor),
            (table.c.action, filters.action),
            (table.c.request_id, filters.request_id),
        ):
            if wanted is not None:
                if not is_text(wanted):
                    return Page([], False)
                query = query.where(column == wanted)
        if filters.since_us is not None:
            query = query.where(table.c.at_us >= filters.since_us)
        if filters.until_us is not None:
            query = query.where(table.c.at_us < filters.until_us)
        if paging.starting_after is not None:
            query = query.where(table.c.number < _number(paging.starting_after))
        async with self._changes.transactions.read() as transaction:
            return Page.of([_event(row) for row in await transaction.rows(query)], paging.limit)


def _number(cursor: str) -> int:
    text = cursor.removeprefix(EVENT)
    if text == cursor or not (text.isascii() and text.isdecimal()) or int(text) > NUMBER_MAX:
        raise InvalidInput(f"starting_after: {cursor!r} is not the id of an audit event")
    return int(text)


def _event(row: Row[Any]) -> AuditEvent:
    author = Author(row.actor_id, row.actor_name, row.source, row.address, row.request_id, row.idempotency)
    return AuditEvent(
        row.number,
        row.at_us,
        author,
        row.action,
        row.object_id,
        _facts(row.before_json),
        _facts(row.after_json),
    )


def _facts(text: str | None) -> dict[str, Any] | None:
    return None if text is None else msgspec.json.decode(text, type=dict[str, Any])
