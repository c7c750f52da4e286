"""What does money cost? The public billing cache, the outbox, the number of keys, and the way into the database."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import uvloop
from tests.governance.parts import Clock, Parts
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

from benchmarks.table import table
from tollkeeper import BillingCache, Budget, NewKey, Policy
from tollkeeper.domain.admission import Demand, Grant, checks_for, counter_ref
from tollkeeper.domain.entries import Dispatch, dispatch_of, settle_entry
from tollkeeper.domain.policy import Principal, Scope, ScopeKind
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.domain.usage import Usage
from tollkeeper.governance import RedisStore
from tollkeeper.governance.outbox import open_outbox
from tollkeeper.observability.logging import configure
from tollkeeper.settings import StoreSettings
from tollkeeper.storage.database import Database

QUESTION = "Money: holds and usage through the billing cache, the outbox, a million keys, the sync"
NOTES = (
    "*Billing cache*: 64 tasks in flight, a key with a monthly budget, one process, Redis and SQLite on the same "
    "machine; CPU is this process's. *Outbox*: a dispatch line and an entry line, `fsync` in groups beside. *Keys*: "
    "Redis' own time (`INFO commandstats`) for a hold and its settlement, by keys all over a Redis that has marks "
    "and month of that many, each in an organisation of its own. *Sync*: 1,000 changed counters of one "
    "organisation in one transaction, or one counter of each of 1,000 organisations; medians of 9."
)
TASKS = 64
CALLS = 12_800
OUTBOX_LINES = 50_000
KEYS = (1_000, 10_000, 100_000, 1_000_000)
SAMPLE = 2_000
PER_CALL = 10_000
"""Trees made by one script."""
MAKE = """
local packed = struct.pack('<dddddd', 0, 0, 0, 0, 0, 0) .. 'run:1'
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%016d', n)
  redis.call('HSET', 'marks:{org_' .. id .. '}', 'run', 'run', 'sync', 'run:1', 'p_1', '1')
  redis.call('SET', 'cost:{org_' .. id .. '}:key_' .. id .. ':' .. ARGV[3], packed)
end
"""
COUNTERS = 1_000
ROUNDS = 9

Row = tuple[str, str, str]


async def _rate(call: Callable[[int], Awaitable[object]], calls: int = CALLS) -> tuple[float, float]:
    """Calls a second with 64 in flight, and CPU µs of this process for each."""

    async def worker(number: int) -> None:
        for i in range(number, calls, TASKS):
            await call(i)

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(n) for n in range(TASKS)))
    return calls / (time.perf_counter() - begun), (time.process_time() - cpu) / calls * 1e6


def _cells(what: str, measured: tuple[float, float]) -> Row:
    return what, f"{measured[0]:,.0f} /s", f"{measured[1]:.1f} µs CPU each"


async def cache(folder: Path, url: str | None) -> list[Row]:
    """The public class."""
    where = "memory" if url is None else "Redis"
    async with BillingCache(redis_url=url, data_dir=folder / where, sync_interval=3600) as billing:
        key, _ = await billing.accounts.create_key(NewKey("bench", policy=Policy(budgets=(Budget(10**15),))))

        async def held(_: int) -> None:
            await billing.settle(await billing.hold(key.id, "0.001"), "0.0005")

        async def used(_: int) -> None:
            await billing.add_usage(key.id, "0.0005")

        async def once(number: int) -> None:
            await billing.add_usage(key.id, "0.0005", idempotency_key=f"charge {number}")

        await held(0)
        return [
            _cells(f"{where}: hold + settle", await _rate(held)),
            _cells(f"{where}: add_usage", await _rate(used)),
            _cells(f"{where}: add_usage, idempotency key", await _rate(once)),
            _cells(f"{where}: within_budget", await _rate(lambda _: billing.within_budget(key.id))),
        ]


def _principal(number: int) -> Principal:
    key, root = f"key_{number:016d}", f"org_{number:016d}"
    return Principal(key, "", root, (Scope(ScopeKind.KEY, key, Policy(budgets=(Budget(10**15),))),))


async def outbox(folder: Path) -> Row:
    """Both lines of a request."""
    box, _ = open_outbox(folder)
    syncing = asyncio.create_task(box.fsync_loop(0.01))
    counters = tuple(counter_ref(check) for check in checks_for(_principal(1), time.time_ns() // 1000).counters)
    begun, cpu = time.perf_counter(), time.process_time()
    for number in range(1, OUTBOX_LINES + 1):
        dispatch = Dispatch(f"req_{number:032x}.1", 1000, counters, (), ())
        box.reserve()
        box.dispatch("org", dispatch)
        box.append("org", settle_entry(number, dispatch, 500, Usage(30, 12), 0))
        box.release()
        if number % 100 == 0:
            await asyncio.sleep(0)
            box.cover("org", number)
    each = (time.perf_counter() - begun) / OUTBOX_LINES * 1e6
    cpu_each = (time.process_time() - cpu) / OUTBOX_LINES * 1e6
    syncing.cancel()
    box.unlock()
    return "outbox, a request", f"{each:.1f} µs", f"{cpu_each:.1f} µs CPU each"


async def many_keys(server: RedisServer) -> list[Row]:
    """Redis' own time for a hold and its settlement, by how many keys it has counters of."""
    store = RedisStore(StoreSettings(redis_url=server.url, admission_timeout_s=60))
    await store.start()
    month = time.strftime("%Y:%m", time.gmtime())
    rows: list[Row] = []
    made = 0
    for entry, total in enumerate(KEYS, 2):
        for start in range(made, total, PER_CALL):
            last = min(total, start + PER_CALL) - 1
            server.command("EVAL", MAKE, "0", str(start), str(last), month)
        made = total
        chosen = range(entry, total, max(1, total // SAMPLE))[:SAMPLE]  # of every size others than before
        server.command("CONFIG", "RESETSTAT")
        for start in range(0, len(chosen), 200):
            await asyncio.gather(*(_settled(store, number) for number in chosen[start : start + 200]))
        memory_bytes = int(server.info("memory", "used_memory"))
        cells = f"{_evalsha_us(server) * 2:.1f} µs of Redis", f"{memory_bytes / total:,.0f} B a key"
        rows.append((f"{total:,} keys: hold + settle", *cells))
    await store.stop()
    return rows


def _evalsha_us(server: RedisServer) -> float:
    line = next(
        line for line in server.command("INFO", "commandstats").splitlines() if line.startswith(b"cmdstat_evalsha:")
    )
    return float(line.split(b"usec_per_call=")[1].split(b",")[0])


async def _settled(store: RedisStore, number: int) -> None:
    """One request of a key, as its producer's next entry."""
    who, now_us = _principal(number), store.now_us()
    checks = checks_for(who, now_us)
    marks = await store.marks(who.root)
    assert marks is not None
    entry = marks["p_1"] + 1
    demand = Demand(f"r{number}.{entry}", "p_1", 0, 1000, now_us + 10**8)
    grant = Grant(demand, checks, await store.admit(checks, demand))
    done = asyncio.get_running_loop().create_future()
    store.apply(who.root, "p_1", settle_entry(entry, dispatch_of(grant), 500, Usage(30, 12), 0), done.set_result)
    assert (await done).status == "ok"


async def sync_roots(folder: Path, redis: str | None, database_url: str, what: str) -> Row:
    """As many roots of which one counter each has changed."""
    database = await Database.open(database_url)
    parts = await Parts.start(folder, redis, Clock(time.time_ns() // 1000), database=database)
    principals = [_principal(number) for number in range(COUNTERS)]
    whole: list[float] = []
    cpu: list[float] = []
    for _ in range(ROUNDS):
        for who in principals:
            parts.ledger.charge(who, 500)
        assert await parts.ledger.flush(60)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        assert await parts.sync.sync_once() == COUNTERS
        whole.append((time.perf_counter() - begun) * 1000)
        cpu.append((time.process_time() - cpu_begun) * 1000)
    await parts.stop()
    return f"sync of 1,000 roots, {what}", f"{median(whole):.1f} ms", f"{median(cpu):.1f} ms CPU"


async def sync(folder: Path, redis: str | None, database_url: str, what: str) -> Row:
    """1,000 counters of one organisation that have changed since the last sync."""
    clock = Clock(time.time_ns() // 1000)
    database = await Database.open(database_url)
    parts = await Parts.start(folder, redis, clock, database=database)
    whole: list[float] = []
    principals = [
        Principal(f"key_{n:016d}", "", "org_bench", (Scope(ScopeKind.KEY, f"key_{n:016d}", Policy()),))
        for n in range(COUNTERS)
    ]
    for _ in range(ROUNDS):
        for who in principals:
            parts.ledger.charge(who, 500)
        assert await parts.ledger.flush(60)
        begun = time.perf_counter()
        assert await parts.sync.sync_once() == COUNTERS
        whole.append((time.perf_counter() - begun) * 1000)
    totals = {f"key_{n:016d}:2026:11": SpendTotals(n, 1) for n in range(COUNTERS)}
    alone: list[float] = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        assert await database.spend.save(RootSnapshot("org_alone", {"p_1": number + 1}, totals), clock())
        alone.append((time.perf_counter() - begun) * 1000)
    await parts.stop()
    return f"sync of 1,000 counters, {what}", f"{median(whole):.1f} ms", f"{median(alone):.1f} ms of the database"


def run() -> str:
    """The table."""
    configure("error", "json")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows += uvloop.run(cache(folder, None))
        server, postgres = RedisServer(folder), PostgresServer()
        server.start()
        try:
            rows += uvloop.run(cache(folder, server.url))
            rows.append(uvloop.run(outbox(folder / "outbox-alone")))
            postgres.start()
            for redis, url, what in (
                (None, f"sqlite:///{folder / 'sync.db'}", "memory to SQLite"),
                (server.url, postgres.create_database("bench"), "Redis to PostgreSQL"),
            ):
                (folder / "sync").mkdir()
                (folder / "roots").mkdir()
                rows.append(uvloop.run(sync(folder / "sync", redis, url, what)))
                rows.append(uvloop.run(sync_roots(folder / "roots", redis, url, what)))
                shutil.rmtree(folder / "sync")
                shutil.rmtree(folder / "roots")
            server.command("FLUSHALL")
            rows += uvloop.run(many_keys(server))
        finally:
            server.stop()
            postgres.stop()
    return table(("", "", ""), rows)
