"""What does money cost with 1,000, 100,000 and 1,000,000 counters: a hold and its settlement, the sync of those that
have changed, the start and the hourly comparison of all, and a gateway's memory?"""

import asyncio
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import uvloop
from sqlalchemy import text
from tests.governance.parts import Clock, Parts
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

from benchmarks.table import table
from tollkeeper.domain.admission import Grant
from tollkeeper.domain.policy import Budget, Policy, Principal, Scope, ScopeKind
from tollkeeper.domain.usage import Usage
from tollkeeper.observability.logging import configure
from tollkeeper.storage.database import Database

QUESTION = "Money by the number of counters: hold + settle, the sync of 1,000, the start and the hourly comparison"
NOTES = (
    "Each counter is a key's month in an organisation of its own; Redis and PostgreSQL, on the same machine, have "
    "the same of all. *Hold + settle*: 64 in flight, 1,000 keys spread over all. *Sync*: 1,000 of them have changed; "
    "medians of 5. *All*: what one gateway does at a start and hourly: every organisation is asked for changes, then "
    "every counter is compared with the database; pauses in which requests come first are in the seconds and not in "
    "the CPU, which is this process's. *Memory*: the most that the process had resident by then, the benchmark's own "
    "included."
)
COUNTERS = (1_000, 100_000, 1_000_000)
PER_CALL = 10_000
CHOSEN = 1_000
TASKS = 64
ROUNDS = 5
MAKE = """
local packed = struct.pack('<dddddd', 7, 0, 1, 0, 0, 0) .. 'run:1'
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%016d', n)
  redis.call('HSET', 'marks:{org_' .. id .. '}', 'run', 'run', 'sync', 'run:2', 'p_1', '1', '.server', ARGV[4],
    '.fence', ARGV[4] .. ' 1')
  redis.call('SET', 'cost:{org_' .. id .. '}:key_' .. id .. ':' .. ARGV[3], packed)
end
"""
FILL = (
    "INSERT INTO marks (root, producer, number) SELECT 'org_' || lpad(CAST(n AS text), 16, '0'), 'p_1', 1",
    "INSERT INTO fences (root, number) SELECT 'org_' || lpad(CAST(n AS text), 16, '0'), 1",
    "INSERT INTO spend (root, scope, period, cost_nano, requests, input_tokens, output_tokens, cached_tokens, "
    "updated_us) SELECT 'org_' || lpad(CAST(n AS text), 16, '0'), 'key_' || lpad(CAST(n AS text), 16, '0'), "
    "CAST(:month AS text), 7, 1, 0, 0, 0, 0",
)
FROM = " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n"


def _principal(number: int) -> Principal:
    key, root = f"key_{number:016d}", f"org_{number:016d}"
    return Principal(key, "", root, (Scope(ScopeKind.KEY, key, Policy(budgets=(Budget(10**15),))),))


async def _fill(server: RedisServer, database: Database, first: int, last: int) -> None:
    month = time.strftime("%Y:%m", time.gmtime())
    life = server.info("server", "run_id")
    for start in range(first, last, PER_CALL):
        end = min(last, start + PER_CALL) - 1
        server.command("EVAL", MAKE, "0", str(start), str(end), month, life)
        async with database._transactions.write() as transaction:
            for statement in FILL:
                bounds = {"first": start, "last": end} | ({"month": month} if ":month" in statement else {})
                await transaction.execute(text(statement + FROM), bounds)


async def _timed(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds, and seconds of this process's CPU."""
    begun, cpu = time.perf_counter(), time.process_time()
    await call()
    return time.perf_counter() - begun, time.process_time() - cpu


async def _spend_all(parts: Parts, chosen: list[Principal], name: str) -> None:
    async def worker(number: int) -> None:
        for at in range(number, len(chosen), TASKS):
            grant = await parts.ledger.admit(chosen[at], attempt=f"{name}.{at}", tokens=0, hold_nano=1000)
            assert isinstance(grant, Grant)
            parts.ledger.dispatched(grant)
            parts.ledger.settle(grant, 500, Usage(30, 12))

    await asyncio.gather(*(worker(number) for number in range(TASKS)))
    assert await parts.ledger.flush(60)


async def measure(folder: Path, server: RedisServer, url: str, first: int, total: int) -> tuple[str, ...]:
    """One size; counters below `first` are there already."""
    database = await Database.open(url, timeout_s=60)
    await database.migrate()
    await _fill(server, database, first, total)
    parts = await Parts.start(folder, server.url, Clock(time.time_ns() // 1000), database=database)
    chosen = [_principal(n) for n in range(0, total, total // CHOSEN)][:CHOSEN]
    await _spend_all(parts, chosen, "warm")
    await parts.sync.sync_once()
    rates, syncs = list[tuple[float, float]](), list[tuple[float, float]]()
    for number in range(ROUNDS):
        rates.append(await _timed(lambda number=number: _spend_all(parts, chosen, f"r{number}")))  # type: ignore[misc]
        syncs.append(await _timed(parts.sync.sync_once))

    all_s, all_cpu_s = await _timed(lambda: parts.sync._whole(parts.clock(), first=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    await parts.stop()
    rate, cpu = CHOSEN / median(s for s, _ in rates), median(c for _, c in rates) / CHOSEN * 1e6
    sync, sync_cpu = median(s for s, _ in syncs) * 1000, median(c for _, c in syncs) * 1000
    cells = (f"{rate:,.0f}", f"{cpu:.0f}", f"{sync:.0f}", f"{sync_cpu:.0f}", f"{all_s:.1f}", f"{all_cpu_s:.1f}")
    return f"{total:,} counters", *cells, f"{memory:.0f}"


def run() -> str:
    """The table."""
    configure("error", "json")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        server, postgres = RedisServer(Path(name)), PostgresServer()
        server.start()
        postgres.start()
        url = postgres.create_database("scale")
        try:
            for first, total in zip((0, *COUNTERS), COUNTERS, strict=False):
                folder = Path(name) / str(total)
                folder.mkdir()
                rows.append(uvloop.run(measure(folder, server, url, first, total)))
        finally:
            server.stop()
            postgres.stop()
    head = ("", "hold + settle /s", "CPU µs each", "sync ms", "CPU ms", "all s", "CPU s", "memory MiB")
    return table(head, rows)
