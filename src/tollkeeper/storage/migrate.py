"""Brings a database's schema up to date with Alembic, from code alone: no ini file, no command line.

Knows where the migrations are and how to keep two migrators apart, not what any migration does.

A migration *expands*: it leaves programs of earlier releases working, so a newer schema is current for them, and
gateways can be replaced one by one. What it must take away it takes in a later release, by a migration that
*contracts*: its revision says which schema a program must know at least, `0012_0010`: programs that know 0010 or
later. All revisions after it say so too, so that the one word in the database tells any program whether it may go on.
"""

import asyncio
import re
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from tollkeeper.domain.errors import ConfigurationError, DatabaseUnavailable
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.transactions import Transaction, Transactions

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "alembic_version"
MIGRATE_TIMEOUT_S: Final = 600.0
"""Longest wait for another migrator, and then for each step."""
TABLE_LOCK_S: Final = 2
"""Longest wait for a table that others use: everybody else's statements wait behind it meanwhile."""
TABLE_LOCK_ATTEMPTS: Final = 30
TABLE_LOCK_PAUSE_S: Final = 1.0
_REVISION: Final = re.compile(r"(\d{4})(?:_(\d{4}))?")
_ADVISORY_LOCK: Final = 0x746F6C6C6B656570
"""`tollkeep` in ASCII: what concurrent migrators of one PostgreSQL database queue on."""


class TableInUse(DatabaseUnavailable):
    """Somebody's transaction kept a table from being changed."""


async def migrate(transactions: Transactions) -> None:
    """Apply what is missing, all of it or nothing. Concurrent migrators wait for each other; gateways that serve wait
    for a table at most TABLE_LOCK_S, and are let through before the next attempt. Raises as `is_current`."""
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
        if not await _is_current(transaction):
            try:
                await transaction.run(upgrade)
            except DBAPIError as error:
                if error.orig is not None and isinstance(error.orig.__cause__, asyncpg.LockNotAvailableError):
                    raise TableInUse(
                        "a table stayed in use by another transaction (see pg_stat_activity); nothing was changed"
                    ) from error
                raise


async def is_current(transactions: Transactions) -> bool:
    """Whether this program can work on the schema: it is its own or a newer one. Raises ConfigurationError if it is
    one for newer programs only."""
    async with transactions.read() as transaction:
        return await _is_current(transaction)


async def _is_current(transaction: Transaction) -> bool:
    applied = await transaction.run(_applied)
    script = ScriptDirectory(str(MIGRATIONS))
    head = script.get_current_head()
    assert head is not None, "there are migrations"
    if applied is None:
        return False
    if applied in {step.revision for step in script.walk_revisions()}:
        return applied == head
    return _serves(applied, head)


def _serves(applied: str, head: str) -> bool:
    """True for a schema newer than this program's that serves it. Raises ConfigurationError for any other."""
    schema, known = _REVISION.fullmatch(applied), _REVISION.fullmatch(head)
    if known is None or schema is None or int(schema[1]) < int(known[1]):
        raise ConfigurationError(f"the database's schema {applied!r} is of no release of Tollkeeper")
    if schema[2] is not None and int(schema[2]) > int(known[1]):
        raise ConfigurationError(
            f"the database's schema {schema[1]} is for programs that know schema {schema[2]}; this one knows "
            f"{known[1]}: run a newer release"
        )
    return True


def _applied(connection: Connection) -> str | None:
    # Asked for first, since a failed query would end the transaction.
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations inside the connection's transaction."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, revision)
