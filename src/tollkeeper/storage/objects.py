"""Objects kept at providers, in the database: whose they are. A row each, without content but what lists show."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from tollkeeper.domain.objects import ObjectKind, StoredObject
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.tables import stored_objects
from tollkeeper.storage.transactions import Transactions

FIELDS: Final = StoredObject.__struct_fields__
IDS_MAX: Final = 500
"""Asked for in one query."""


class StoredObjects:
    """`ObjectRegistry` over the database."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def record(self, objects: Sequence[StoredObject]) -> None:
        rows = {
            (its.root, its.id): {name: getattr(its, name) for name in FIELDS} | {"kind": its.kind.value}
            for its in objects
        }
        if not rows:
            return
        async with self._transactions.write() as transaction:
            insert = postgresql.insert if transaction.dialect is Dialect.POSTGRESQL else sqlite.insert
            statement: Any = insert(stored_objects)
            changed = {name: statement.excluded[name] for name in FIELDS if name not in ("root", "id", "created_us")}
            statement = statement.on_conflict_do_update(index_elements=["root", "id"], set_=changed)
            for key in sorted(rows):
                await transaction.execute(statement, rows[key])

    async def find(self, root: str, ids: Collection[str]) -> dict[str, StoredObject]:
        table, found = stored_objects, {}
        wanted = sorted(set(ids))
        async with self._transactions.read() as transaction:
            for start in range(0, len(wanted), IDS_MAX):
                query = select(table).where(table.c.root == root, table.c.id.in_(wanted[start : start + IDS_MAX]))
                for row in await transaction.rows(query):
                    found[row.id] = _object(row)
        return found

    async def page(
        self, root: str, kind: ObjectKind, *, limit: int, after: str | None = None, oldest_first: bool = False
    ) -> list[StoredObject]:
        table = stored_objects
        place = (table.c.created_us, table.c.id)
        query = select(table).where(table.c.root == root, table.c.kind == kind.value)
        if after is not None:
            known = select(table.c.created_us).where(table.c.root == root, table.c.id == after).scalar_subquery()
            later = tuple_(*place) > tuple_(known, after) if oldest_first else tuple_(*place) < tuple_(known, after)
            query = query.where(later)
        order = place if oldest_first else tuple(column.desc() for column in place)
        async with self._transactions.read() as transaction:
            return [_object(row) for row in await transaction.rows(query.order_by(*order).limit(limit))]

    async def take_due(self, now_us: int, *, lease_us: int, limit: int) -> list[StoredObject]:
        table = stored_objects
        identity = (table.c.root, table.c.id)
        due = select(*identity).where(table.c.due_us <= now_us).order_by(table.c.due_us).limit(limit)
        async with self._transactions.read() as transaction:
            if not await transaction.rows(due.limit(1)):
                return []  # nearly always: nobody else's writing is held up
        async with self._transactions.write() as transaction:
            found = await transaction.rows(due.with_for_update(skip_locked=True))
            if not found:
                return []
            leased = update(table).where(tuple_(*identity).in_([tuple(row) for row in found]))
            rows = (await transaction.execute(leased.values(due_us=now_us + lease_us).returning(table))).all()
        return [_object(row) for row in rows]

    async def forget(self, root: str, ids: Collection[str]) -> None:
        table = stored_objects
        async with self._transactions.write() as transaction:
            await transaction.execute(delete(table).where(table.c.root == root, table.c.id.in_(sorted(ids))))

    async def expire(self, kinds: Collection[ObjectKind], before_us: int) -> int:
        table = stored_objects
        old = delete(table).where(table.c.kind.in_([k.value for k in kinds]), table.c.created_us < before_us)
        async with self._transactions.write() as transaction:
            return int((await transaction.execute(old)).rowcount)


def _object(row: Any) -> StoredObject:
    values = {name: getattr(row, name) for name in FIELDS}
    return StoredObject(**values | {"kind": ObjectKind(row.kind)})
