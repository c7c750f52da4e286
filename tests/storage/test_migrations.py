"""Migrations make exactly the schema that the code declares, once, whoever runs them at the same time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from tests.servers.postgres import PostgresServer
from tests.storage.conftest import Opener
from tests.storage.next_release import with_next_migration
from tollkeeper.domain.accounts import NewKey
from tollkeeper.domain.errors import ConfigurationError, DatabaseUnavailable
from tollkeeper.storage import migrate, schema
from tollkeeper.storage.database import Database
from tollkeeper.storage.tables import METADATA
from tollkeeper.storage.transactions import Transactions


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    yield server.create_database(f"empty_{len(server.databases)}")


async def test_migrations_yield_the_metadata(empty: str, opened: Opener) -> None:
    """Alembic finds no difference of tables, columns, types, nullability, indexes or constraints."""

    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))

    database = await opened(empty)
    await database.migrate()
    async with database._transactions.read() as transaction:
        assert await transaction.run(differences) == []


async def test_the_schema_is_the_same_word_for_word(tmp_path: Path, postgres: PostgresServer, opened: Opener) -> None:
    """Conditions of indexes and checks too, which a comparison of metadata leaves out."""
    urls = {
        name: (f"sqlite:///{tmp_path / name}", postgres.create_database(name)) for name in ("migrated", "declared")
    }
    for name, (sqlite_url, postgres_url) in urls.items():
        for url in (sqlite_url, postgres_url):
            database = await opened(url)
            if name == "migrated":
                await database.migrate()
            else:
                async with database._transactions.write() as transaction:
                    await transaction.run(METADATA.create_all)
    assert sqlite_schema(tmp_path / "migrated") == sqlite_schema(tmp_path / "declared")
    assert dump(postgres, "migrated") == dump(postgres, "declared")


def sqlite_schema(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    finally:
        connection.close()
    return {name: "\n".join(sorted(ddl.replace(",", "").split())) for name, ddl in rows if name != "alembic_version"}


def dump(server: PostgresServer, database: str) -> list[str]:
    lines = server.schema_of(database).splitlines()
    return [line for line in lines if line and not line.startswith(("--", "\\restrict", "\\unrestrict"))]


async def test_the_schema_is_current_after_migrating_and_not_before(empty: str, opened: Opener) -> None:
    database = await opened(empty)
    assert not await database.schema_is_current()
    await database.migrate()
    assert await database.schema_is_current()
    await database.migrate()
    assert await database.schema_is_current()


async def test_concurrent_migrators_wait_for_each_other(empty: str, opened: Opener) -> None:
    """Gateways that start together on an empty database all succeed, and all can work at once."""
    databases = [await opened(empty) for _ in range(4)]
    await asyncio.gather(*(database.migrate() for database in databases))
    for number, database in enumerate(databases):
        assert await database.schema_is_current()
        await database.accounts(b"k" * 32, lambda: 1).create_key(NewKey(f"key {number}"))
    assert len(await databases[0].accounts(b"k" * 32, lambda: 1).list_keys()) == 4


async def test_a_new_sqlite_file_that_another_writes_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses to wait while the write-ahead log is switched on; whoever comes second tries again."""
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN IMMEDIATE")
    database = await Database.open(f"sqlite:///{path}")
    waiting = asyncio.create_task(database.ping())
    await asyncio.sleep(0.2)
    other.execute("COMMIT")
    other.close()
    await waiting
    await database.close()


async def test_a_migration_that_fails_leaves_nothing_behind(empty: str, opened: Opener) -> None:
    """A table in the way stops it half-way: nothing was made, and without the obstacle it goes through."""
    database = await opened(empty)
    async with database._transactions.write() as transaction:
        await transaction.execute(text("CREATE TABLE producers (id INTEGER)"))
    with pytest.raises(DatabaseUnavailable, match="producers"):
        await database.migrate()
    assert not await database.schema_is_current()
    async with database._transactions.write() as transaction:
        await transaction.execute(text("DROP TABLE producers"))
    await database.migrate()
    assert await database.schema_is_current()


async def test_a_newer_schema_is_current_for_an_older_program(empty: str, opened: Opener) -> None:
    """While gateways are replaced one by one, those of the previous release go on."""
    database: Database = await opened(empty)
    await database.migrate()
    async with database._transactions.write() as transaction:
        await transaction.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await database.schema_is_current()
    await database.migrate()
    async with database._transactions.read() as transaction:
        assert (await transaction.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"


async def test_a_schema_for_newer_programs_only_is_refused(empty: str, opened: Opener) -> None:
    """A revision says since which one it can be worked on: `9999_9998`; older programs neither start nor migrate."""
    database: Database = await opened(empty)
    await database.migrate()
    serves = f"9999_{head()[:4]}"
    for revision, refused in (
        (serves, None),
        ("9999_9998", "for programs that know schema 9998"),
        ("x1", "no release"),
    ):
        async with database._transactions.write() as transaction:
            await transaction.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        if refused is None:
            assert await database.schema_is_current()
            continue
        for ask in (database.schema_is_current, database.migrate):
            with pytest.raises(ConfigurationError, match=refused):
                await ask()


def head() -> str:
    return schema.revisions()[-1]


def test_revisions_keep_to_the_rule() -> None:
    """Numbers grow by one; who may work on a schema is said by all revisions after it, and never less strictly."""
    steps = list(ScriptDirectory(str(schema.MIGRATIONS)).walk_revisions())[::-1]
    assert schema.revisions() == [step.revision for step in steps], "read without the library, they are the same"
    floor = 0
    for number, step in enumerate(steps, start=1):
        found = schema.REVISION.fullmatch(step.revision)
        assert found and int(found[1]) == number, step.revision
        assert floor <= int(found[2] or 0) < number, step.revision
        floor = int(found[2] or 0)


async def test_a_table_in_use_holds_up_the_migration_and_nobody_else(
    postgres: PostgresServer, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL lets nobody read a table that somebody waits to change: the wait is short, others are let through,
    and when the table is free the migration goes through."""
    database = await opened(postgres.create_database("in_use"))
    await database.migrate()
    monkeypatch.setattr(schema, "MIGRATIONS", with_next_migration(schema.MIGRATIONS, tmp_path / "migrations"))
    monkeypatch.setattr(migrate, "TABLE_LOCK_S", 1)
    monkeypatch.setattr(migrate, "TABLE_LOCK_PAUSE_S", 0.1)
    refused = asyncio.Event()
    attempt = migrate._migrate

    async def watched(transactions: Transactions) -> None:
        try:
            await attempt(transactions)
        except migrate.TableInUse:
            refused.set()
            raise

    monkeypatch.setattr(migrate, "_migrate", watched)
    async with database._transactions.write() as reader:
        await reader.execute(text("SELECT count(*) FROM producers"))
        migrating = asyncio.create_task(database.migrate())
        async with asyncio.timeout(60):
            await refused.wait()
        assert not migrating.done()
    async with asyncio.timeout(60):
        await migrating
    assert await database.schema_is_current()


async def test_without_tables_the_error_says_what_to_do(empty: str, opened: Opener) -> None:
    database = await opened(empty)
    with pytest.raises(DatabaseUnavailable, match="tollkeeper migrate"):
        await database.directory.changes_since(0)
