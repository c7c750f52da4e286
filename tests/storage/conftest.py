"""`database`: a migrated, empty database of each kind. Every test that takes it runs on SQLite and PostgreSQL."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.servers.postgres import PostgresServer, postgres  # noqa: F401 - a fixture
from tollkeeper.storage.database import Database
from tollkeeper.storage.tables import METADATA

Opener = Callable[..., Awaitable[Database]]
SHARED = "contract"


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an empty, migrated database."""
    if request.param == "sqlite":
        migrated = tmp_path_factory.getbasetemp() / "migrated.db"
        if not migrated.exists():
            await _migrate(f"sqlite:///{migrated}")
        shutil.copyfile(migrated, tmp_path / "tollkeeper.db")
        return f"sqlite:///{tmp_path / 'tollkeeper.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    if SHARED not in server.databases:
        await _migrate(server.create_database(SHARED))
    connection = await asyncpg.connect(server.url(SHARED))
    try:
        # A handful of rows are deleted faster than tables are truncated.
        emptied = [f"DELETE FROM {t.name}" for t in reversed(METADATA.sorted_tables) if t.name != "change_counter"]
        await connection.execute("; ".join([*emptied, "UPDATE change_counter SET version = 0"]))
    finally:
        await connection.close()
    return server.url(SHARED)


async def _migrate(address: str) -> None:
    database = await Database.open(address)
    await database.migrate()
    await database.close()


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens databases that are closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def open_(address: str, *, pool_size: int = 5, timeout_s: float = 5.0) -> Database:
            database = await Database.open(address, pool_size=pool_size, timeout_s=timeout_s)
            stack.push_async_callback(database.close)
            return database

        yield open_


@pytest.fixture
async def database(url: str, opened: Opener) -> Database:
    """Opened at `url`."""
    return await opened(url)
