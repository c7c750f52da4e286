"""SQL over the log store: the objects of an interval as the table `logs` of a DuckDB that can touch nothing else.

Objects are found by listing (`extent.py`), those of a bucket fetched into a temporary folder by obstore, so DuckDB
needs neither network nor an extension. Small objects, of which there are many where little is logged, are put
together before: DuckDB takes some milliseconds for a file, whatever is in it. Time, memory, bytes fetched and rows
are bounded.
"""

import asyncio
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import InvalidInput, Unavailable
from tollkeeper.logs import duck, objects, schema
from tollkeeper.logs.extent import extents
from tollkeeper.logs.sinks import LogStore, StoredObject

OBJECTS_MAX: Final = 50_000
FETCHED_BYTES_MAX: Final = 8 * 2**30
"""Of a bucket's objects, for one query."""
SMALL_BYTES_MAX: Final = 256 * 2**10
"""Objects up to this size are put together."""
TOGETHER_BYTES_MAX: Final = 8 * 2**20
"""The files that they are put together in; DuckDB reads several at once."""
READ_TOGETHER: Final = 64
"""Small objects in memory at the same time."""
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
    objects: int = 0


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
        raise InvalidInput(
            f"{len(items)} objects; at most {OBJECTS_MAX} are queried: give --since and --until, or "
            "have small objects put together (logs.compact_after_s)"
        )
    with tempfile.TemporaryDirectory(prefix="tollkeeper-") as folder:
        staged = await _staged(store, items, Path(folder))
        try:
            found = await asyncio.to_thread(_run, sqls, list(staged), Path(folder), interval, limit, timeout_s)
        except QueryFailed as error:
            raise QueryFailed(await _named(store, str(error), staged)) from None
    read = sum(1 for item in items if item.bytes)
    return [msgspec.structs.replace(rows, objects=read) for rows in found]


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


Staged = dict[Path, list[StoredObject]]
"""Files, each with the objects that are in it."""


async def _staged(store: LogStore, items: Sequence[StoredObject], folder: Path) -> Staged:
    """The records of all objects, in folders of the objects' names; empty ones are left out, as DuckDB takes none."""
    items = [item for item in items if item.bytes]
    fetched = sum(item.bytes for item in items if store.local_path(item.path) is None)
    if fetched > FETCHED_BYTES_MAX:
        raise InvalidInput(
            f"{fetched / 2**30:.1f} GiB of objects; at most {FETCHED_BYTES_MAX >> 30} are fetched: give --since "
            "and --until"
        )
    together: dict[str, list[StoredObject]] = {}
    alone: list[StoredObject] = []
    for item in items:
        if item.bytes <= SMALL_BYTES_MAX and item.path.endswith(".jsonl.gz"):
            together.setdefault(item.path.rpartition("/")[0], []).append(item)
        else:
            alone.append(item)
    slots = asyncio.Semaphore(store.reads_max)

    async def read(item: StoredObject) -> bytes:
        async with slots:
            return await store.read(item.path)

    async def stage(item: StoredObject) -> Staged:
        path = store.local_path(item.path)
        if path is None:
            path = folder / item.path
            await asyncio.to_thread(_append, path, [await read(item)])
        return {path: [item]}

    async def join(share: list[StoredObject], target: Path) -> Staged:
        local = [path for item in share if (path := store.local_path(item.path)) is not None]
        await asyncio.to_thread(_append, target, (path.read_bytes() for path in local))
        fetched = [item for item in share if store.local_path(item.path) is None]
        for start in range(0, len(fetched), READ_TOGETHER):
            bodies = await asyncio.gather(*map(read, fetched[start : start + READ_TOGETHER]))
            await asyncio.to_thread(_append, target, bodies)
        return {target: share}

    shares = [
        (share, folder / place / f"together-{number}.jsonl.gz")
        for place, small in together.items()
        for number, share in enumerate(_shares(small))
    ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stage(item)) for item in alone]
            tasks += [group.create_task(join(share, target)) for share, target in shares]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {path: items for task in tasks for path, items in task.result().items()}


async def _named(store: LogStore, message: str, staged: Staged) -> str:
    """An error of DuckDB that names a file, by the object of it that is broken."""
    for file, items in staged.items():
        if str(file) in message:
            for item in items:
                if objects.records_in(await store.read(item.path)) is None:
                    return message.replace(str(file), item.path)
    return message


def _shares(items: Sequence[StoredObject]) -> Iterator[list[StoredObject]]:
    share: list[StoredObject] = []
    size = 0
    for item in items:
        if share and size + item.bytes > TOGETHER_BYTES_MAX:
            yield share
            share, size = [], 0
        share.append(item)
        size += item.bytes
    if share:
        yield share


def _append(target: Path, bodies: Iterable[bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        file.writelines(bodies)


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
            return [_rows(connection.execute(sql), limit) for sql in sqls]
        except (duckdb.InterruptException, duckdb.OutOfMemoryException) as error:
            why = f"stopped after {timeout_s:g} s" if timed_out.is_set() else _words(error)
            raise QueryStopped(f"{why}; give --since and --until, or ask for less") from None
        except duckdb.Error as error:
            raise QueryFailed(_words(error)) from None
        finally:
            timer.cancel()


def _rows(result: Any, limit: int) -> Rows:
    rows = result.fetchmany(limit + 1)
    return Rows(tuple(column[0] for column in result.description), rows[:limit], len(rows) > limit)


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
