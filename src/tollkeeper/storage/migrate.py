"""Brings a database's schema up to date with Alembic, from code alone: no ini file, no command line.

Knows where the migrations are and how to keep two migrators apart, not what any migration does. Every migration
must leave the previous release working, so a schema that is newer than this program is current for it.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from tollkeeper.storage.address import Dialect
from tollkeeper.storage.transactions import Transaction, Transactions

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "alembic_version"
MIGRATE_TIMEOUT_S: Final = 600.0
"""Longest wait for another migrator, and then for each step."""
_ADVISORY_LOCK: Final = 0x746F6C6C6B656570
"""`tollkeep` in ASCII: what concurrent migrators of one PostgreSQL database queue on."""


async def migrate(transactions: Transactions) -> None:
    """Apply what is missing, all of it or nothing. Concurrent migrators wait for each other."""
    async with transactions.write(timeout_s=MIGRATE_TIMEOUT_S) as transaction:
        if transaction.dialect is Dialect.POSTGRESQL:
            await transaction.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        if not await _is_current(transaction):
            await transaction.run(upgrade)


async def is_current(transactions: Transactions) -> bool:
    """Whether the schema is this program's or a newer one."""
    async with transactions.read() as transaction:
        return await _is_current(transaction)


async def _is_current(transaction: Transaction) -> bool:
    applied = await transaction.run(_applied)
    script = ScriptDirectory(str(MIGRATIONS))
    if applied is None:
        return False
    return applied == script.get_current_head() or applied not in {step.revision for step in script.walk_revisions()}


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
