"""Pages of tables that have an id and a time of creation: newest first, behind the row that the cursor names."""

from typing import Any

from sqlalchemy import Select, Table, select, tuple_

from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.paging import Paging
from tollkeeper.storage.names import is_text
from tollkeeper.storage.transactions import Transaction


async def after_cursor(transaction: Transaction, query: Select[Any], table: Table, paging: Paging) -> Select[Any]:
    """The query for a page and one row more. Raises InvalidInput for a cursor that names no row."""
    place = tuple_(table.c.created_us, table.c.id)
    if paging.starting_after is not None:
        row = None
        if is_text(paging.starting_after):
            known = select(table.c.created_us, table.c.id).where(table.c.id == paging.starting_after)
            row = await transaction.row(known)
        if row is None:
            raise InvalidInput(f"starting_after: there is no {paging.starting_after!r}; give an id of this list")
        query = query.where(place < (row.created_us, row.id))
    return query.order_by(table.c.created_us.desc(), table.c.id.desc()).limit(paging.limit + 1)
