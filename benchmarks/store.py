"""What does a decision cost? The public ledger on memory and Redis, and the scripts inside Redis."""

import asyncio
import re
import tempfile
import time
from pathlib import Path
from statistics import median

import uvloop
from tests.governance.parts import Clock, Parts
from tests.servers.redis import RedisServer

from benchmarks.table import table
from tollkeeper.domain.admission import Demand, Grant, checks_for
from tollkeeper.domain.entries import dispatch_of, settle_entry
from tollkeeper.domain.policy import Budget, Policy, Principal, Scope, ScopeKind, Unit, Window
from tollkeeper.domain.usage import Usage
from tollkeeper.governance import RedisStore
from tollkeeper.observability.logging import configure
from tollkeeper.settings import StoreSettings

QUESTION = "One admission with its settlement: requests and tokens per minute, a budget, a hold"
NOTES = (
    "*Ledger*: admit, dispatch line, settle, outbox written, 64 tasks in flight, one process with Redis on the same "
    "machine. *Redis time*: what `INFO commandstats` counts for a script call, arguments and replies included; the "
    "median of batches of 80; a script that does nothing is given for scale. Settlements of one turn of the event "
    "loop are applied together: *alone* is one, *of eight* each of eight."
)
REQUESTS, TASKS = 30_000, 64
SCRIPT_CALLS, BATCH, TOGETHER = 20_000, 80, 8
PRODUCER = "p_1234567890abcdef"


def policy() -> Policy:
    """Never reached."""
    return Policy(windows=(Window(Unit.REQUESTS, 10**9), Window(Unit.TOKENS, 10**9)), budgets=(Budget(10**15),))


def principal(scopes: int) -> Principal:
    """A key, and with three scopes its team and organisation, all under limits."""
    all_scopes = (
        Scope(ScopeKind.KEY, "key_bench", policy()),
        Scope(ScopeKind.TEAM, "team_bench", policy()),
        Scope(ScopeKind.ORGANISATION, "org_bench", policy()),
    )
    return Principal("key_bench", "bench", "org_bench", all_scopes[:scopes])


async def ledger(folder: Path, url: str | None, scopes: int) -> tuple[float, float]:
    """Requests a second, and CPU µs of this process for each."""
    parts = await Parts.start(folder, url, Clock(time.time_ns() // 1000))
    who = principal(scopes)
    await parts.spend(who, "warm.1", hold=10, cost=1)

    async def worker(number: int) -> None:
        for i in range(REQUESTS // TASKS):
            await parts.spend(who, f"req_{number:016x}{i:016x}.1", hold=1000, cost=500)

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(n) for n in range(TASKS)))
    elapsed, used = time.perf_counter() - begun, time.process_time() - cpu
    await parts.stop()
    return REQUESTS / elapsed, used / REQUESTS * 1e6


def _redis_us(server: RedisServer) -> float:
    match = re.search(rb"cmdstat_evalsha:calls=\d+,usec=(\d+)", server.command("INFO", "commandstats"))
    assert match is not None
    return int(match[1]) / BATCH


async def scripts(server: RedisServer, scopes: int) -> tuple[float, ...]:
    """Redis time in µs of a call that does nothing, an admission, a settlement alone, and one of eight. Medians of
    batches, so that a batch in which the machine did something else does not count."""
    store = RedisStore(StoreSettings(redis_url=server.url, admission_timeout_s=60))
    await store.start()
    nothing = await store.client.send("SCRIPT", "LOAD", "return 0")
    await store.seed("org_bench", "run", {}, {}, lost=False)
    checks = checks_for(principal(scopes), store.now_us())
    times: tuple[list[float], ...] = ([], [], [], [])
    for start in range(0, SCRIPT_CALLS, BATCH):
        together = TOGETHER if start // BATCH % 2 else 1
        server.command("CONFIG", "RESETSTAT")
        await asyncio.gather(*(store.client.send("EVALSHA", nothing, "1", "x") for _ in range(BATCH)))
        times[0].append(_redis_us(server))
        numbers = range(start, start + BATCH)
        demands = [Demand(f"req_{n:032x}.1", PRODUCER, 100, 1000, store.now_us() + 10**8) for n in numbers]
        server.command("CONFIG", "RESETSTAT")
        replies = await asyncio.gather(*(store.admit(checks, demand) for demand in demands))
        times[1].append(_redis_us(server))
        grants = [Grant(demand, checks, reply) for demand, reply in zip(demands, replies, strict=True)]
        entries = [
            settle_entry(number, dispatch_of(grant), 500, Usage(30, 12), -58)
            for number, grant in enumerate(grants, start + 1)
        ]
        done: list[object] = []
        server.command("CONFIG", "RESETSTAT")
        for first in range(0, BATCH, together):
            for entry in entries[first : first + together]:
                store.apply("org_bench", PRODUCER, entry, done.append)
            await asyncio.sleep(0)
        while len(done) < BATCH:
            await asyncio.sleep(0)
        times[3 if together > 1 else 2].append(_redis_us(server))
    await store.stop()
    return tuple(map(median, times))


def run() -> str:
    """The table."""
    configure("error", "json")
    rows: list[tuple[str, ...]] = []
    for scopes in (1, 3):
        with tempfile.TemporaryDirectory() as name:
            rate, cpu = uvloop.run(ledger(Path(name), None, scopes))
            rows.append((f"memory, {scopes} scope{'s' * (scopes > 1)}", f"{rate:,.0f}", f"{cpu:.1f}", "", "", "", ""))
    for scopes in (1, 3):
        with tempfile.TemporaryDirectory() as name:
            server = RedisServer(Path(name))
            server.start()
            try:
                rate, cpu = uvloop.run(ledger(Path(name), server.url, scopes))
                server.command("FLUSHALL")
                times = uvloop.run(scripts(server, scopes))
            finally:
                server.stop()
            cells = (f"{rate:,.0f}", f"{cpu:.1f}", *(f"{value:.1f}" for value in times))
            rows.append((f"Redis, {scopes} scope{'s' * (scopes > 1)}", *cells))
    head = ("", "ledger requests/s", "CPU µs each", "Redis µs: nothing", "admission", "settlement alone", "of eight")
    return table(head, rows)
