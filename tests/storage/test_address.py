"""`DATABASE_URL`: what is read, what is refused, and that its password is never shown."""

import asyncio
import socket
import traceback
from pathlib import Path

import pytest

from tests.servers.postgres import PostgresServer
from tests.storage.conftest import Opener
from tollkeeper.domain.errors import ConfigurationError, DatabaseUnavailable
from tollkeeper.storage.address import Dialect, read_address

PASSWORD = "Tr0ub4dor"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///relative/toll.db", "relative/toll.db"),
        ("sqlite:////absolute/toll.db", "/absolute/toll.db"),
        ("sqlite+aiosqlite:////absolute/toll.db", "/absolute/toll.db"),
        ("sqlite:////with blank/100%/ü.db", "/with blank/100%/ü.db"),
    ],
)
def test_a_file_is_named_by_three_slashes_and_its_path(url: str, path: str) -> None:
    address = read_address(url)
    assert (address.dialect, address.path) == (Dialect.SQLITE, Path(path))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_both_names_of_postgresql_are_taken(scheme: str) -> None:
    address = read_address(f"{scheme}://u:{PASSWORD}@db.example:5433/toll?sslmode=require")
    assert address.dialect is Dialect.POSTGRESQL
    assert address.dsn == f"postgresql://u:{PASSWORD}@db.example:5433/toll?sslmode=require"
    assert address.shown == "PostgreSQL at db.example:5433/toll"


def test_several_hosts_go_to_the_driver_as_they_are() -> None:
    assert read_address("postgresql://u@one:1,two:2/toll").dsn == "postgresql://u@one:1,two:2/toll"


def test_a_password_is_encoded_for_the_driver() -> None:
    """A bare `@` or `%` in a password is understood, as far as it can be; encoded characters stay what they mean."""
    assert read_address("postgresql://u:a@b@h/d").dsn == "postgresql://u:a%40b@h/d"
    assert read_address("postgresql://u:50%off@h/d").dsn == "postgresql://u:50%25off@h/d"
    assert read_address("postgresql://u:a%2Fb@h/d").dsn == "postgresql://u:a%2Fb@h/d"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{PASSWORD}/x@host/db",
        f"postgresql://u:{PASSWORD}#x@host/db",
        f"postgresql://u:{PASSWORD}?x@host/db",
        f"postgresql://u:p@host:{PASSWORD}/db",
        f"postgresql://u:1/{PASSWORD}@host/db",
        f"postgresql://[{PASSWORD}/db",
        f"mysql://u:{PASSWORD}@host/db",
        f"u:{PASSWORD}@host/db",
        f"postgresql://u:{PASSWORD}@host/db?channel_binding=require",
        f"sqlite://{PASSWORD}",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///x.db?mode=ro",
        "",
    ],
)
def test_what_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as refused:
        read_address(url)
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}/db", "host.invalid/db", "/db?host=/nowhere/at/all", "127.0.0.1:{port}/db?sslmode=no"]
)
async def test_a_password_is_in_no_error(host: str, opened: Opener) -> None:
    """Refused connections, unknown hosts, missing sockets, wrong options: nothing of it shows the password."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        host = host.format(port=reserved.getsockname()[1])
        database = await opened(f"postgresql://u:{PASSWORD}@{host}", timeout_s=2)
        with pytest.raises(DatabaseUnavailable) as away:
            await database.ping()
    assert PASSWORD not in "".join(traceback.format_exception(away.value))
    assert PASSWORD not in str(away.value) and "PostgreSQL at" in str(away.value)


async def test_a_missing_database_is_named(postgres: PostgresServer, opened: Opener) -> None:
    database = await opened(postgres.url("nothing_here", password=PASSWORD))
    with pytest.raises(DatabaseUnavailable, match='database "nothing_here" does not exist') as away:
        await database.ping()
    assert PASSWORD not in "".join(traceback.format_exception(away.value))


async def test_opening_does_not_connect(opened: Opener) -> None:
    await asyncio.wait_for(opened("postgresql://host.invalid/db"), 1)


async def test_a_new_file_is_its_owners_alone(tmp_path: Path, opened: Opener) -> None:
    """The file and the log beside it can be read by nobody else; missing folders are made."""
    path = tmp_path / "some" / "where" / "toll.db"
    database = await opened(f"sqlite:///{path}")
    await database.migrate()
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in path.parent.iterdir()} == dict.fromkeys(
        ("toll.db", "toll.db-wal", "toll.db-shm"), "0o600"
    )
    assert path.parent.stat().st_mode & 0o077 == 0


# The driver's thread for a file that could not be opened may end after the test's event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", ["a folder", "below a file", "not a database"])
async def test_a_path_that_cannot_be_opened_is_named(kind: str, tmp_path: Path, opened: Opener) -> None:
    file = tmp_path / "file"
    file.write_text("this is no database " * 100)
    path = {"a folder": tmp_path, "below a file": file / "toll.db", "not a database": file}[kind]
    database = await opened(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnavailable, match=str(path)):
        await database.migrate()
