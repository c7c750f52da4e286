"""Makes SQLAlchemy's engine for an address: drivers, pool, and what each new connection is told. Opens nothing."""

import asyncio
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import asyncpg
from sqlalchemy import URL, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.storage.address import Address

WAL_ATTEMPTS: Final = 100
BUSY_SHARE: Final = 0.8
"""The share of the deadline that SQLite waits for another process's lock, so that its own error arrives in time."""


def make_engine(address: Address, *, pool_size: int, timeout_s: float) -> AsyncEngine:
    """An engine that connects when first used, with at most `pool_size` connections."""
    if address.path is not None:
        return _sqlite(address.path, pool_size, timeout_s)
    return _postgresql(address, pool_size, timeout_s)


def _postgresql(address: Address, pool_size: int, timeout_s: float) -> AsyncEngine:
    async def connect() -> Any:
        return await asyncpg.connect(
            address.dsn, timeout=timeout_s, server_settings={"application_name": "tollkeeper"}
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _alive(connection: Any, _record: Any, _proxy: Any) -> None:
        # The driver knows of a closed socket already, so a restarted server costs no request and no ping.
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine


class _WhollyClosed(sqlite3.Connection):
    """Gives SQLite's lock back when it is closed.

    SQLite keeps a connection open, with its lock, as long as a statement of it is under way; that of a cancelled task
    lives on in the traceback of its error, until Python collects that: seconds or minutes in which nobody can write.
    A ROLLBACK would not do: after `interrupt` it, too, is interrupted until the last statement has ended. Statements
    are those of cursors that were asked for; SQLAlchemy makes no others.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._cursors = WeakSet[sqlite3.Cursor]()

    def cursor(self, *args: Any, **named: Any) -> Any:
        cursor = super().cursor(*args, **named)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()
        super().close()


def _sqlite(path: Path, pool_size: int, timeout_s: float) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        # The driver must begin nothing by itself: transactions are begun by `transactions.py`.
        connect_args={"isolation_level": None, "timeout": timeout_s * BUSY_SHARE, "factory": _WhollyClosed},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def _file(*_: Any) -> None:
        prepare_file(path)

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        _use_write_ahead_log(cursor, timeout_s * BUSY_SHARE)
        # FULL: a mark that was committed must survive a power cut, since the outbox forgets what it covers.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return engine


def _use_write_ahead_log(cursor: Any, timeout_s: float) -> None:
    """Switch a new file over, or find that another connection has done so.

    SQLite does not wait for locks here, whatever its busy timeout: of several that switch at once, all but one learn
    at once that the database is locked. Raises sqlite3.OperationalError if it stays so.
    """
    for attempt in range(1, WAL_ATTEMPTS + 1):
        try:
            cursor.execute("PRAGMA journal_mode")
            if cursor.fetchone()[0] == "wal":
                return
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if attempt == WAL_ATTEMPTS:
                raise
            await_only(asyncio.sleep(timeout_s / WAL_ATTEMPTS))


def prepare_file(path: Path) -> None:
    """Make the file and its folder for their owner alone, if they are missing. Raises DatabaseUnavailable.

    An existing file is never opened here: closing any descriptor of it drops the POSIX locks of every connection of
    this process, and another process would then delete the write-ahead log under us.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DatabaseUnavailable(f"cannot open the SQLite file {path}: {error.strerror}") from None
