"""Brings a database's schema up to date with Alembic, from code alone: no ini file, no command line.

Knows where the migrations are and how to keep two migrators apart, not what any migration does.
"""

import asyncio
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.storage import schema
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.transactions import Transactions

MIGRATE_TIMEOUT_S: Final = 600.0
"""Longest wait for another migrator, and then for each step."""
TABLE_LOCK_S: Final = 2
"""Longest wait for a table that others use: everybody else's statements wait behind it meanwhile."""
TABLE_LOCK_ATTEMPTS: Final = 30
TABLE_LOCK_PAUSE_S: Final = 1.0
_ADVISORY_LOCK: Final = 0x746F6C6C6B656570
"""`tollkeep` in ASCII: what concurrent migrators of one PostgreSQL database queue on."""


class TableInUse(DatabaseUnavailable):
    """Somebody's transaction kept a table from being changed."""


async def migrate(transactions: Transactions) -> None:
    """Apply what is missing, all of it or nothing. Concurrent migrators wait for each other; gateways that serve wait
    for a table at most TABLE_LOCK_S, and are let through before the next attempt. Raises as `schema.is_current`."""
    for _ in range(TABLE_LOCK_ATTEMPTS - 1):
        try:
            await _migrate(transactions)
        except TableInUse:
            await asyncio.sleep(TABLE_LOCK_PAUSE_S)
        else:
            return
    await _migrate(transactions)


async def _migrate(transactions: Transactions) -> None:
    async with transactions.write(timeout_s=MIGRATE_TIMEOUT_S) as transaction:
        if transaction.dialect is Dialect.POSTGRESQL:
            await transaction.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            await transaction.execute(text(f"SET LOCAL lock_timeout = '{TABLE_LOCK_S}s'"))
        if not await schema.serves(transaction):
            try:
                await transaction.run(upgrade)
            except DBAPIError as error:
                if error.orig is not None and isinstance(error.orig.__cause__, asyncpg.LockNotAvailableError):
                    raise TableInUse(
                        "a table stayed in use by another transaction (see pg_stat_activity); nothing was changed"
                    ) from error
                raise


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations inside the connection's transaction."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(schema.MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, revision)
