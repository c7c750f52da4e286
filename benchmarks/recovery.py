"""After a loss of Redis: how soon does an organisation's budget open again, by how many idempotency keys the database
remembers of it, and how does usage with a key do meanwhile?"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import uvloop
from sqlalchemy import text
from tests.governance.parts import Clock, Parts, budget, one_key
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

from benchmarks.table import table
from tollkeeper.domain.admission import Grant
from tollkeeper.domain.entries import Charged
from tollkeeper.domain.errors import Unavailable
from tollkeeper.observability.logging import configure
from tollkeeper.storage.database import Database

QUESTION = "After a loss of Redis: until a budget opens, by idempotency keys of its organisation"
NOTES = (
    "Redis and PostgreSQL on the same machine; `FLUSHALL`, then a request under a budget is asked for until it is "
    "admitted, and `add_usage` is called with a new key every 20 ms until all keys are loaded, and for a second at "
    "least. *Pending* is usage whose caller was not told within a second whether its key was used before."
)
KEYS = (0, 10_000, 100_000, 1_000_000)
REMEMBER = """
INSERT INTO usage_keys (root, digest, cost_nano, until_us, entry)
SELECT 'org_bench', md5(CAST(n AS text)), 5, CAST(:until_us AS bigint), 'p_gone:' || n
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
"""
PER_STATEMENT = 50_000
WHO = one_key("org_bench", budget(10**15))
PAUSE_S = 0.02
AT_LEAST_S = 1.0
LATEST_S = 300.0


async def _until_open(parts: Parts) -> float:
    """Seconds until a request is admitted under the budget."""
    begun = time.perf_counter()
    for number in range(10**6):
        try:
            grant = await parts.admit(WHO, f"r{begun}.{number}", hold=1)
        except Unavailable:
            await asyncio.sleep(PAUSE_S)
            continue
        assert isinstance(grant, Grant)
        parts.ledger.void(grant)
        break
    return time.perf_counter() - begun


async def _usage(parts: Parts, done: asyncio.Event, name: str) -> tuple[list[float], int]:
    """Milliseconds of each call, and how many were pending."""
    took, pending, begun = list[float](), 0, time.perf_counter()
    while not done.is_set() or time.perf_counter() - begun < AT_LEAST_S:
        at = time.perf_counter()
        charged = await parts.ledger.charge_once(WHO, 5, f"{name} {len(took)}")
        pending += charged is Charged.PENDING
        took.append((time.perf_counter() - at) * 1000)
        await asyncio.sleep(PAUSE_S)
    return took, pending


async def _all_loaded(server: RedisServer, keys: int) -> float:
    begun = time.perf_counter()
    while int(server.command("DBSIZE")[1:].strip()) < keys:
        assert time.perf_counter() - begun < LATEST_S
        await asyncio.sleep(PAUSE_S)
    return time.perf_counter() - begun


async def lose(folder: Path, server: RedisServer, url: str, keys: int) -> tuple[str, ...]:
    """One loss."""
    database = await Database.open(url)
    parts = await Parts.start(folder, server.url, Clock(time.time_ns() // 1000), database=database)
    await parts.ledger.charge_once(WHO, 5, "first")
    assert await parts.ledger.flush(60)
    await parts.sync.sync_once()
    until_us = time.time_ns() // 1000 + 3_600_000_000
    for first in range(1, keys, PER_STATEMENT):
        bounds = {"first": first, "last": min(keys, first + PER_STATEMENT - 1)}
        async with database._transactions.write() as transaction:
            await transaction.execute(text(REMEMBER), {"until_us": until_us, **bounds})
    server.command("FLUSHALL")
    done, cpu = asyncio.Event(), time.process_time()
    using = asyncio.create_task(_usage(parts, done, f"{keys}"))
    opened, loaded = await asyncio.gather(_until_open(parts), _all_loaded(server, keys))
    spent = time.process_time() - cpu
    done.set()
    took, pending = await using
    assert await parts.ledger.flush(60)
    await parts.stop()
    cells = (f"{opened:.2f}", f"{loaded:.1f}", f"{spent:.1f}", f"{median(took):.1f}", f"{max(took):.0f}")
    return f"{keys:,} keys", *cells, f"{pending} of {len(took)}"


def run() -> str:
    """The table."""
    configure("error", "json")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        server, postgres = RedisServer(Path(name)), PostgresServer()
        server.start()
        postgres.start()
        try:
            for keys in KEYS:
                folder = Path(name) / str(keys)
                folder.mkdir()
                server.command("FLUSHALL")
                rows.append(uvloop.run(lose(folder, server, postgres.create_database(f"keys{keys}"), keys)))
        finally:
            server.stop()
            postgres.stop()
    head = ("", "open s", "loaded s", "CPU s", "add_usage p50 ms", "most ms", "pending")
    return table(head, rows)
