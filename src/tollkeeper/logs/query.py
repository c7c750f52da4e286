"""SQL over the log store: the objects of an interval as the table `logs` of a DuckDB that can touch nothing else.

Objects are found by listing (`extent.py`), those of a bucket fetched into a temporary folder by obstore, so DuckDB
needs neither network nor an extension. Time, memory, bytes fetched and rows are bounded.
"""

import asyncio
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import InvalidInput, Unavailable
from tollkeeper.logs import duck, schema
from tollkeeper.logs.extent import extents
from tollkeeper.logs.sinks import LogStore, StoredObject

OBJECTS_MAX: Final = 50_000
FETCHED_BYTES_MAX: Final = 8 * 2**30
"""Of a bucket's objects, for one query."""
TIMEOUT_S: Final = 60.0
ROWS_MAX: Final = 1_000_000
WHAT: Final = "querying logs"
FOLDERS: Final = {"dt": "DATE", "hour": "BIGINT"}
ADDED: Final = {"time": "make_timestamptz(time_us)", "cost_usd": "CAST(cost_nano AS DECIMAL(19, 0)) * 0.000000001"}
"""Columns that the table has beside the record's, and what they are made of. Money stays exact: DECIMAL(29, 9)."""


class QueryFailed(InvalidInput):
    """The SQL, in DuckDB's words."""


class QueryStopped(Unavailable):
    """The query took more time, memory or disk than it may."""


class Interval(msgspec.Struct, frozen=True):
    """The records of the table: [since, until) in Unix µs, of a key by name or id; None is no bound."""

    since_us: int | None = None
    until_us: int | None = None
    key: str | None = None


EVERYTHING: Final = Interval()


class Rows(msgspec.Struct, frozen=True):
    """A result. `more`: there are rows above the limit. `objects` were read."""

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool
    objects: int


async def query(
    store: LogStore,
    sql: str,
    interval: Interval = EVERYTHING,
    *,
    limit: int = 1000,
    timeout_s: float = TIMEOUT_S,
) -> Rows:
    """Run one SELECT. `timeout_s` is the query's own time, without the fetching.

    Raises QueryFailed, QueryStopped, InvalidInput, ConfigurationError, `LogStoreUnavailable`.
    """
    (rows,) = await queries(store, (sql,), interval, limit=limit, timeout_s=timeout_s)
    return rows


async def queries(
    store: LogStore, sqls: Sequence[str], interval: Interval, *, limit: int, timeout_s: float = TIMEOUT_S
) -> list[Rows]:
    """`query` for several over the same objects, fetched once."""
    if not 1 <= limit <= ROWS_MAX:
        raise InvalidInput(f"limit: must be from 1 to {ROWS_MAX}")
    for sql in sqls:
        check(sql)
    items = [extent.item async for extent in extents(store, interval.since_us, interval.until_us)]
    if len(items) > OBJECTS_MAX:
        raise InvalidInput(f"{len(items)} objects; at most {OBJECTS_MAX} are queried: give --since and --until")
    with tempfile.TemporaryDirectory(prefix="tollkeeper-") as folder:
        paths = await _staged(store, items, Path(folder))
        return await asyncio.to_thread(_run, sqls, paths, Path(folder), interval, limit, timeout_s)


def check(sql: str) -> None:
    """Raises QueryFailed unless it is one SELECT or EXPLAIN."""
    duckdb = duck.load(WHAT)
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryFailed(_words(error)) from None
    kinds = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1 or statements[0].type not in kinds:
        raise QueryFailed("give one SELECT over the table logs; nothing else is run")


async def _staged(store: LogStore, items: Sequence[StoredObject], folder: Path) -> list[Path]:
    """Where each object is, fetched if need be; empty ones are left out, as DuckDB takes none."""
    items = [item for item in items if item.bytes]
    local = [store.local_path(item.path) for item in items]
    fetched = sum(item.bytes for item, path in zip(items, local, strict=True) if path is None)
    if fetched > FETCHED_BYTES_MAX:
        raise InvalidInput(
            f"{fetched / 2**30:.1f} GiB of objects; at most {FETCHED_BYTES_MAX >> 30} are fetched: give --since "
            "and --until"
        )
    slots = asyncio.Semaphore(store.reads_max)

    async def stage(item: StoredObject, path: Path | None) -> Path:
        if path is not None:
            return path
        async with slots:
            body = await store.read(item.path)
        target = folder / item.path
        await asyncio.to_thread(_write, target, body)
        return target

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stage(item, path)) for item, path in zip(items, local, strict=True)]
    return [task.result() for task in tasks]


def _write(target: Path, body: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(body)


def _run(
    sqls: Sequence[str], paths: Sequence[Path], folder: Path, interval: Interval, limit: int, timeout_s: float
) -> list[Rows]:
    duckdb = duck.load(WHAT)
    with duck.connect(WHAT, paths, folder) as connection:
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            with suppress(duckdb.Error):
                connection.interrupt()

        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        try:
            timer.start()
            connection.execute(f"CREATE VIEW logs AS {_table(paths, interval)}")
            return [_rows(connection.execute(sql), limit, len(paths)) for sql in sqls]
        except (duckdb.InterruptException, duckdb.OutOfMemoryException) as error:
            why = f"stopped after {timeout_s:g} s" if timed_out.is_set() else _words(error)
            raise QueryStopped(f"{why}; give --since and --until, or ask for less") from None
        except duckdb.Error as error:
            raise QueryFailed(_words(error)) from None
        finally:
            timer.cancel()


def _rows(result: Any, limit: int, objects: int) -> Rows:
    rows = result.fetchmany(limit + 1)
    return Rows(tuple(column[0] for column in result.description), rows[:limit], len(rows) > limit, objects)


def _table(paths: Sequence[Path], interval: Interval) -> str:
    """The SELECT behind the view. Columns that no object has are NULL; those that we do not know are left out."""
    columns = schema.columns()
    nothing = ", ".join(f"NULL::{kind} AS {name}" for name, kind in (columns | FOLDERS).items())
    parts = [f"SELECT {nothing} WHERE false"]
    hive = f"hive_partitioning=true, hive_types={duck.struct_of(FOLDERS)}"
    lines = [path for path in paths if path.suffix != ".parquet"]
    if lines:
        parts.append(
            f"FROM read_json({duck.listed(lines)}, format='newline_delimited', compression='gzip', "
            f"columns={duck.struct_of(columns)}, {hive})"
        )
    files = [path for path in paths if path.suffix == ".parquet"]
    if files:
        parts.append(f"FROM read_parquet({duck.listed(files)}, union_by_name=true, {hive})")
    conditions = ["true"]
    if interval.since_us is not None:
        conditions.append(f"time_us >= {interval.since_us:d}")
    if interval.until_us is not None:
        conditions.append(f"time_us < {interval.until_us:d}")
    if interval.key is not None:
        key = duck.quoted(interval.key)
        conditions.append(f"(key_id = {key} OR key_name = {key})")
    names = ", ".join([*columns, *FOLDERS, *(f"{made} AS {name}" for name, made in ADDED.items())])
    return f"SELECT {names} FROM ({' UNION ALL BY NAME '.join(parts)}) WHERE {' AND '.join(conditions)}"  # noqa: S608


def _words(error: Exception) -> str:
    """DuckDB's message without its class, so that it reads as an error of the query."""
    return str(error).strip() or type(error).__name__
