"""What does one question to a rate limiter cost? Ours next to others on the same Redis, in the same run."""

import asyncio
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop
from tests.servers.redis import RedisServer

from benchmarks.contenders import LIMIT, MEMORY, MEMORY_THEIRS, OURS, THEIRS, Ask, Contender, peers
from benchmarks.table import table
from tollkeeper.domain.admission import Demand, checks_for
from tollkeeper.domain.policy import Budget, Policy, Principal, Scope, ScopeKind, Unit, Window
from tollkeeper.governance import MemoryStore
from tollkeeper.governance.limit_stores import wall_clock_us
from tollkeeper.observability.logging import configure

QUESTION = "One question to a rate limiter: may this key have one more of so many a minute?"
NOTES = (
    "1,000 keys in turn, all allowed, uvloop, one client process on one core and Redis on the other. *Closed loop*: "
    "64 tasks ask again as soon as they have their answer. *Open loop*: 10,000 questions a second, whether or not "
    "earlier ones are answered; latency counts from the instant the question was due, so that one which was sent "
    "late, because the process was busy, counts as late; *—*: fewer were answered. Client CPU is the process's, "
    "Redis CPU its main thread's. Medians of the rounds. The *bare protocol* has no reconnection, deadline, id or "
    "TLS: it is what asyncio can do at best. By default our limiter gives each question an id, so that a lost reply "
    "can be asked for again; `idempotent=False` does not. "
    "throttled-py's window is an estimate from two counters, the others count every admission. Peers' versions: "
    "requirements-peers.txt. *Admission* is a gateway's: requests and tokens per minute, a budget, a hold."
)
ROUNDS: Final = 3
CLOSED_S, OPEN_S, WARM_S = 1.0, 1.0, 0.2
IN_FLIGHT, PER_SECOND = 64, 10_000
BACKLOG_MAX: Final = 5_000
"""Questions without an answer in the open loop; who has more cannot keep up."""
LIMIT_NEVER_REACHED: Final = 10**9
KEYS: Final = [f"customer-{n:04}" for n in range(1_000)]


class Closed(NamedTuple):
    """One round."""

    per_second: float
    client_us: float
    redis_us: float


class Open(NamedTuple):
    """Latencies in ms."""

    p50: float
    p99: float


def redis_cpu_s(server: RedisServer) -> float:
    """Of its main thread, since it was started."""
    fields = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    return sum(float(server.info("cpu", field)) for field in fields)


async def closed(ask: Ask, server: RedisServer | None) -> Closed:
    """As fast as 64 tasks can ask."""
    asked = 0

    async def task(first: int, until_s: float) -> None:
        nonlocal asked
        number = first
        while time.perf_counter() < until_s:
            for _ in range(20):
                await ask(KEYS[number % len(KEYS)], LIMIT_NEVER_REACHED)
                number += IN_FLIGHT
            asked += 20

    await asyncio.gather(*(task(n, time.perf_counter() + WARM_S) for n in range(IN_FLIGHT)))
    asked, redis = 0, redis_cpu_s(server) if server else 0.0
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(task(n, begun + CLOSED_S) for n in range(IN_FLIGHT)))
    elapsed, used = time.perf_counter() - begun, time.process_time() - cpu
    redis = (redis_cpu_s(server) if server else 0.0) - redis
    return Closed(asked / elapsed, used / asked * 1e6, redis / asked * 1e6)


async def opened(ask: Ask) -> Open | None:
    """None: it did not keep up."""
    clock, latencies = time.perf_counter, []
    running: set[asyncio.Task[None]] = set()

    async def one(number: int, due_s: float) -> None:
        await ask(KEYS[number % len(KEYS)], LIMIT_NEVER_REACHED)
        latencies.append(clock() - due_s)

    begun, number, total = clock(), 0, int(PER_SECOND * OPEN_S)
    while number < total and len(running) < BACKLOG_MAX:
        due = min(total, int((clock() - begun) * PER_SECOND))
        for number in range(number, due):  # noqa: B020 - it goes on where it was
            task = asyncio.ensure_future(one(number, begun + number / PER_SECOND))
            running.add(task)
            task.add_done_callback(running.discard)
        number = due
        await asyncio.sleep(0)  # not a timer: those of the loop tick in milliseconds, which would count as latency
    kept_up = len(running) < BACKLOG_MAX
    await asyncio.gather(*running)
    if not kept_up:
        return None
    cuts = statistics.quantiles(latencies, n=100)
    return Open(cuts[49] * 1e3, cuts[98] * 1e3)


async def trial(contender: Contender, server: RedisServer, *, remote: bool) -> tuple[Closed, Open | None]:
    """Both loops."""
    async with contender(server.socket) as ask:
        figures = await closed(ask, server if remote else None)
        gc.collect()
        gc.freeze()  # as the gateway does once it is up: what was imported is not looked through again
        try:
            return figures, await opened(ask) if remote else None
        finally:
            gc.unfreeze()


async def admissions() -> tuple[Closed, None]:
    """A gateway's admission in the memory store."""
    store = MemoryStore(wall_clock_us)
    windows = (Window(Unit.REQUESTS, 10**9), Window(Unit.TOKENS, 10**9))
    who = Principal(
        "key_b", "b", "org_b", (Scope(ScopeKind.KEY, "key_b", Policy(windows=windows, budgets=(Budget(10**15),))),)
    )
    await store.seed("org_b", "run", {}, {}, lost=False)
    checks, never = checks_for(who, wall_clock_us()), 2**53
    number = 0

    def ask(key: str, limit: int) -> Awaitable[Any]:
        nonlocal number
        number += 1
        return store.admit(checks, Demand(f"req_{number:032x}.1", "p_1", 100, 1000, never))

    return await closed(ask, None), None


def pin(pid: int, core: int) -> None:
    """All threads of a process to one core, where there is more than one."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {core})


def run() -> str:
    """The table."""
    configure("error", "json")
    pin(0, 0)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        assert server.process is not None
        pin(server.process.pid, 1)
        try:
            return measure(server)
        finally:
            server.stop()


def measure(server: RedisServer) -> str:
    """Rounds over all in turn, so that noise hits all alike."""
    on_redis = {**OURS, **LIMIT, **(THEIRS if peers() else {})}
    in_memory = {**MEMORY, **(MEMORY_THEIRS if peers() else {})}
    trials: dict[str, Callable[[], Any]] = {
        **{name: partial(trial, c, server, remote=True) for name, c in on_redis.items()},
        **{f"memory: {name}": partial(trial, c, server, remote=False) for name, c in in_memory.items()},
        "memory: tollkeeper, admission": admissions,
    }
    found: dict[str, list[tuple[Closed, Open | None]]] = {name: [] for name in trials}
    for _ in range(ROUNDS):
        for name, make in trials.items():
            server.command("FLUSHALL")
            found[name].append(uvloop.run(make()))
    base = {kind: _rate(found[f"{kind}tollkeeper"]) for kind in ("", "memory: ")}
    rows = [
        _row(name, rounds, base["memory: " if name.startswith("memory") else ""]) for name, rounds in found.items()
    ]
    head = ("", "closed loop/s", "÷ ours", "client CPU µs", "Redis CPU µs", "open loop p50 ms", "p99 ms")
    return table(head, rows)


def _rate(rounds: list[tuple[Closed, Open | None]]) -> float:
    return statistics.median(figures.per_second for figures, _ in rounds)


def _row(name: str, rounds: list[tuple[Closed, Open | None]], base: float) -> tuple[str, ...]:
    rate = _rate(rounds)
    client = statistics.median(figures.client_us for figures, _ in rounds)
    redis = statistics.median(figures.redis_us for figures, _ in rounds)
    opens = [figures for _, figures in rounds if figures is not None]
    cells = (f"{rate:,.0f}", f"{rate / base:.2f}", f"{client:.1f}")
    if name.startswith("memory"):
        return (name, *cells, "", "", "")
    if len(opens) < len(rounds):
        return (name, *cells, f"{redis:.1f}", "—", "—")
    p50, p99 = (statistics.median(getattr(figures, field) for figures in opens) for field in ("p50", "p99"))
    return (name, *cells, f"{redis:.1f}", f"{p50:.2f}", f"{p99:.2f}")
