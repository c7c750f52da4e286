"""Transactions with deadlines: the one place where drivers are called and where their errors are translated.

Three kinds: `read` (each statement stands alone), `snapshot` (all statements see one state of the database) and
`write`. It knows nothing of the tables.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Connection, CursorResult, Executable, Row, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tollkeeper.domain.errors import DatabaseUnavailable, TollkeeperError
from tollkeeper.storage.address import Address, Dialect

T = TypeVar("T")

ABANDON_AFTER_S: Final = 0.25
"""A statement that has not even ended this long after its connection was cut is left behind."""

_BEGIN: Final = "tollkeeper_begin"
_FOREIGN: Final = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    sqlite3.Error,
    OSError,
)
_SERVER_LIMITS: Final = text(
    "SELECT set_config('statement_timeout', :ms, true), set_config('idle_in_transaction_session_timeout', :ms, true)"
)
"""Where a client dies or freezes inside a transaction, the server must let go of its locks by itself."""


class Transaction:
    """An open transaction. Every call has the deadline; one that passes it cuts the connection."""

    def __init__(self, connection: AsyncConnection, driver: Any, timeout_s: float, dialect: Dialect) -> None:
        self.dialect = dialect
        self.expired = False
        self._connection = connection
        self._driver = driver
        self._timeout_s = timeout_s

    async def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Run a statement; a list of parameters runs it for each in one batch."""
        async with self._deadline():
            return await self._connection.execute(statement, parameters)

    async def rows(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """All rows of a query."""
        return (await self.execute(statement, parameters)).all()

    async def row(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """The first row of a query, if any."""
        return (await self.execute(statement, parameters)).first()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run synchronous SQLAlchemy code (Alembic) on this connection; the deadline holds for all of it."""
        async with self._deadline():
            return await self._connection.run_sync(work)

    async def commit(self) -> None:
        async with self._deadline():
            await self._connection.commit()

    async def release(self) -> None:
        """Give the connection back; what was not committed is rolled back."""
        async with self._deadline():
            await self._connection.close()

    def cut(self) -> None:
        """End what the connection is doing, at once and without a word to the server."""
        with suppress(Exception):  # a connection that is closed already
            if self.dialect is Dialect.POSTGRESQL:
                self._driver.terminate()
            else:
                self._driver._conn.interrupt()  # the one call of SQLite that any thread may make

    async def dispose(self) -> None:
        """Take the connection out of the pool."""
        with suppress(*_FOREIGN):
            await self._connection.invalidate()
        with suppress(*_FOREIGN):
            await self._connection.close()

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        # Cutting the connection ends the driver's wait with an error. Cancelling it instead would make asyncpg ask
        # the silent server, on a new connection, to cancel; so that is only for a driver that does not even end.
        def expire() -> None:
            self.expired = True
            self.cut()

        timer = asyncio.get_running_loop().call_later(self._timeout_s, expire)
        try:
            async with asyncio.timeout(self._timeout_s + ABANDON_AFTER_S):
                yield
        finally:
            timer.cancel()


class Transactions:
    """Opens transactions on one engine. All errors of drivers come out as `DatabaseUnavailable`."""

    def __init__(self, engine: AsyncEngine, address: Address, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._engine = engine
        self._disposals: set[asyncio.Task[None]] = set()
        if address.dialect is Dialect.SQLITE:
            event.listen(engine.sync_engine, "begin", _begin_sqlite)
            self._read = engine
            self._snapshot = engine.execution_options(**{_BEGIN: "BEGIN"})
            self._write = engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
            # SQLite's own lock is polled and unfair: within the process writers queue here, without a connection.
            self._writers: AbstractAsyncContextManager[Any] = asyncio.Lock()
        else:
            self._read = engine.execution_options(isolation_level="AUTOCOMMIT")
            self._snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._write = engine.execution_options(isolation_level="READ COMMITTED")
            self._writers = nullcontext()

    def read(self) -> AbstractAsyncContextManager[Transaction]:
        """Statements that stand alone: one round trip each."""
        return self._open(self._read, self.timeout_s)

    def snapshot(self) -> AbstractAsyncContextManager[Transaction]:
        """Statements that all see the same state."""
        return self._open(self._snapshot, self.timeout_s)

    @asynccontextmanager
    async def write(self, *, timeout_s: float | None = None) -> AsyncIterator[Transaction]:
        """A transaction that is committed at the end of the block and rolled back if the block raises.

        Each statement sees what was committed before it began. In SQLite it is the only writer from its start.
        `DatabaseUnavailable` at the end of the block leaves open whether it was committed.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        async with self._writer(timeout_s), self._open(self._write, timeout_s) as transaction:
            if self.address.dialect is Dialect.POSTGRESQL:
                await transaction.execute(_SERVER_LIMITS, {"ms": str(max(1, int(timeout_s * 1000)))})
            yield transaction
            await transaction.commit()

    async def close(self) -> None:
        """Close all connections; never longer than the deadline."""
        if self._disposals:
            await asyncio.wait(self._disposals, timeout=self.timeout_s)
        with suppress(*_FOREIGN):
            async with asyncio.timeout(self.timeout_s):
                await self._engine.dispose()

    @asynccontextmanager
    async def _writer(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                await self._writers.__aenter__()
        except TimeoutError:
            raise DatabaseUnavailable(
                f"{self.address.shown}: other writers did not finish in {timeout_s:g} s"
            ) from None
        try:
            yield
        finally:
            await self._writers.__aexit__(None, None, None)

    @asynccontextmanager
    async def _open(self, engine: AsyncEngine, timeout_s: float) -> AsyncIterator[Transaction]:
        transaction = await self._connect(engine, timeout_s)
        try:
            try:
                yield transaction
            except TollkeeperError:
                await transaction.release()
                raise
            await transaction.release()
        except TollkeeperError:
            raise
        except BaseException as error:
            # Whatever state it is in, this connection serves nobody again.
            transaction.cut()
            self._dispose_later(transaction)
            if transaction.expired or isinstance(error, _FOREIGN):
                raise self._unavailable(error, expired=transaction.expired, timeout_s=timeout_s) from error
            raise

    async def _connect(self, engine: AsyncEngine, timeout_s: float) -> Transaction:
        try:
            async with asyncio.timeout(self.timeout_s):
                connection = await engine.connect()
                raw = await connection.get_raw_connection()
        except TollkeeperError:
            raise
        except _FOREIGN as error:
            raise self._unavailable(error, expired=False, timeout_s=self.timeout_s) from error
        return Transaction(connection, raw.driver_connection, timeout_s, self.address.dialect)

    def _dispose_later(self, transaction: Transaction) -> None:
        # At most one task for each connection of the pool, so their number is bounded.
        task = asyncio.get_running_loop().create_task(transaction.dispose())
        self._disposals.add(task)
        task.add_done_callback(self._disposals.discard)

    def _unavailable(self, error: BaseException, *, expired: bool, timeout_s: float) -> DatabaseUnavailable:
        where = self.address.shown
        if isinstance(error, PoolTimeout):
            return DatabaseUnavailable(f"{where}: no connection became free in {timeout_s:g} s")
        if expired or isinstance(error, TimeoutError):
            return DatabaseUnavailable(f"{where} did not answer in {timeout_s:g} s")
        if isinstance(error, DBAPIError) and error.orig is not None:
            error = error.orig.__cause__ or error.orig
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if isinstance(error, asyncpg.UndefinedTableError) or reason.startswith("no such table"):
            reason += " (run `tollkeeper migrate`)"
        return DatabaseUnavailable(self.address.without_secrets(f"{where}: {reason}"))


def _begin_sqlite(connection: Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN)
    if statement is not None:
        connection.exec_driver_sql(statement)
