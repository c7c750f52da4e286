"""A database that is slow, frozen, locked or dead: `DatabaseUnavailable` inside the deadline, and back afterwards."""

import asyncio
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.servers.postgres import PostgresServer
from tests.storage.conftest import Opener
from tollkeeper.domain.accounts import NewKey
from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.storage.database import Database

TIMEOUT_S = 0.5
SLACK_S = 0.7
"""Beyond the deadline: cutting a connection, and a busy machine."""
POOL = 3
DIGEST_KEY = b"k" * 32


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    """A server that these tests may freeze and kill."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture
async def database(own: PostgresServer, opened: Opener) -> Database:
    database = await opened(own.url(), pool_size=POOL, timeout_s=TIMEOUT_S)
    await database.migrate()
    return database


@asynccontextmanager
async def unavailable_in_time() -> AsyncIterator[None]:
    start = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        yield
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S


def operations(database: Database) -> list[Callable[[], Awaitable[object]]]:
    return [
        database.ping,
        database.schema_is_current,
        lambda: database.directory.changes_since(0),
        lambda: database.accounts(DIGEST_KEY, lambda: 1).create_key(NewKey("app")),
        lambda: database.spend.load("org_a"),
        lambda: database.spend.save(RootSnapshot("org_a", {"p": 1}, {"total": SpendTotals(1)}), 1),
    ]


async def works(database: Database) -> None:
    """All connections of the pool are there again, at the same time."""

    async def hold() -> None:
        async with database._transactions.read() as transaction:
            await transaction.execute(text("SELECT pg_sleep(0.1)"))

    await asyncio.gather(*(hold() for _ in range(POOL)))
    await database.accounts(DIGEST_KEY, lambda: 1).create_key(NewKey("app"))


async def test_a_frozen_server_is_given_up_in_time(own: PostgresServer, database: Database) -> None:
    """Connections are open and nobody answers: every operation ends at its deadline, on old and new connections."""
    await works(database)
    own.freeze()
    try:
        for operation in operations(database):
            async with unavailable_in_time():
                await operation()
    finally:
        own.thaw()
    await works(database)


async def test_many_callers_of_a_frozen_server_all_end_in_time(own: PostgresServer, database: Database) -> None:
    """More callers than connections: those that wait for one have the same deadline."""
    await works(database)
    own.freeze()
    try:
        start = time.monotonic()
        results = await asyncio.gather(*(o() for o in operations(database) * 3), return_exceptions=True)
        assert {type(result) for result in results} == {DatabaseUnavailable}
        assert time.monotonic() - start < 2 * TIMEOUT_S + SLACK_S
    finally:
        own.thaw()
    await works(database)


async def test_a_killed_server_is_away_and_comes_back(own: PostgresServer, database: Database) -> None:
    """Killed in the middle of work: no operation hangs or fails otherwise, and what was acknowledged is there."""
    accounts = database.accounts(DIGEST_KEY, lambda: 1)
    acknowledged: list[str] = []

    async def work() -> None:
        while True:
            acknowledged.append((await accounts.create_key(NewKey("app")))[0].id)

    workers = [asyncio.create_task(work()) for _ in range(POOL + 2)]
    while len(acknowledged) < 20:
        await asyncio.sleep(0.01)
    own.kill()
    start = time.monotonic()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert {type(result) for result in results} == {DatabaseUnavailable}
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S
    for operation in operations(database):
        async with unavailable_in_time():
            await operation()
    await asyncio.to_thread(own.start)
    await works(database)
    assert set(acknowledged) <= {key.id for key in await accounts.list_keys()}


async def test_a_restart_between_two_operations_is_not_noticed(own: PostgresServer, database: Database) -> None:
    """Pooled connections that died meanwhile are replaced, not handed out."""
    await works(database)
    own.kill()
    await asyncio.to_thread(own.start)
    await works(database)


async def test_a_statement_that_takes_too_long_is_ended(database: Database) -> None:
    async with unavailable_in_time(), database._transactions.read() as transaction:
        await transaction.execute(text("SELECT pg_sleep(30)"))
    await works(database)


async def test_a_frozen_gateway_does_not_keep_the_others_from_writing(own: PostgresServer, opened: Opener) -> None:
    """A process that stands still inside a transaction loses it, and its locks, at its own deadline."""
    frozen = await opened(own.url(), timeout_s=TIMEOUT_S)
    other = await opened(own.url(), timeout_s=TIMEOUT_S)
    await frozen.migrate()
    created = False
    with pytest.raises(DatabaseUnavailable):
        async with frozen._transactions.write() as transaction:
            await transaction.execute(text("UPDATE change_counter SET version = version + 1"))
            await asyncio.sleep(TIMEOUT_S + 0.3)
            await other.accounts(DIGEST_KEY, lambda: 1).create_key(NewKey("app"))
            created = True
    assert created


async def test_a_cancelled_caller_leaves_the_pool_whole(database: Database) -> None:
    async def sleep() -> None:
        async with database._transactions.write() as transaction:
            await transaction.execute(text("SELECT pg_sleep(30)"))

    tasks = [asyncio.create_task(sleep()) for _ in range(POOL)]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {asyncio.CancelledError}
    await works(database)


async def test_a_locked_sqlite_file_is_given_up_in_time(tmp_path: Path, opened: Opener) -> None:
    """Another process holds the file: writes end at the deadline, reads go on, and afterwards writes do as well."""
    path = tmp_path / "toll.db"
    database = await opened(f"sqlite:///{path}", timeout_s=TIMEOUT_S)
    await database.migrate()
    accounts = database.accounts(DIGEST_KEY, lambda: 1)
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        async with unavailable_in_time():
            await accounts.create_key(NewKey("app"))
        assert await accounts.list_keys() == []
        other.execute("ROLLBACK")
    finally:
        other.close()
    await accounts.create_key(NewKey("app"))
    assert len(await accounts.list_keys()) == 1


async def test_a_cancelled_write_gives_sqlites_lock_back(tmp_path: Path, opened: Opener) -> None:
    """At once, also while a statement of it is still alive, as one is in the traceback of its error."""
    database = await opened(f"sqlite:///{tmp_path / 'toll.db'}", timeout_s=TIMEOUT_S)
    await database.migrate()
    alive: list[object] = []

    async def write() -> None:
        async with database._transactions.write() as transaction:
            await transaction.execute(text("UPDATE change_counter SET version = 9"))
            cursor = await transaction._driver.cursor()
            alive.append(await cursor.execute("SELECT * FROM sqlite_schema"))
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(write())
    while not alive:
        await asyncio.sleep(0)
    task.cancel()
    assert [type(e) for e in await asyncio.gather(task, return_exceptions=True)] == [asyncio.CancelledError]
    async with database._transactions.write() as transaction:
        assert (await transaction.rows(text("SELECT version FROM change_counter")))[0][0] < 9


async def test_a_long_query_of_sqlite_is_ended(tmp_path: Path, opened: Opener) -> None:
    database = await opened(f"sqlite:///{tmp_path / 'toll.db'}", timeout_s=TIMEOUT_S)
    await database.migrate()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    async with unavailable_in_time(), database._transactions.read() as transaction:
        await transaction.execute(text(endless))
    await database.accounts(DIGEST_KEY, lambda: 1).create_key(NewKey("app"))


async def test_sqlite_keeps_what_it_acknowledged(tmp_path: Path, opened: Opener) -> None:
    """Write-ahead log, every commit fsynced, foreign keys checked, on every connection."""
    database = await opened(f"sqlite:///{tmp_path / 'toll.db'}")
    await database.migrate()
    async with database._transactions.read() as one, database._transactions.read() as two:
        for transaction in (one, two):
            pragmas = [
                (await transaction.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert pragmas == ["wal", 2, 1]


async def test_another_process_leaves_the_log_of_an_open_sqlite_file_alone(tmp_path: Path, opened: Opener) -> None:
    """New connections of ours must not drop the locks of those that are open, or another process that closes the file
    takes itself for the last one and deletes the write-ahead log under us."""
    path = tmp_path / "toll.db"
    database = await opened(f"sqlite:///{path}")
    await database.migrate()
    log = tmp_path / "toll.db-wal"
    async with database._transactions.snapshot() as one, database._transactions.snapshot() as two:
        for transaction in (one, two):
            await transaction.execute(text("SELECT * FROM change_counter"))
    before = log.stat().st_ino
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM keys'); c.close()"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path))
    assert await other.wait() == 0
    assert log.stat().st_ino == before
    await database.accounts(DIGEST_KEY, lambda: 1).create_key(NewKey("app"))
    late = await opened(f"sqlite:///{path}")
    assert len(await late.accounts(DIGEST_KEY, lambda: 1).list_keys()) == 1
