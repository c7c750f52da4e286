"""What does a window cost in Redis when it is full? Bytes of a key and time of a call, by entries in the window."""

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from unittest import mock

import uvloop
from tests.servers.redis import RedisServer

from benchmarks.contenders import THEIRS, WINDOW_US, Ask, Contender, peers
from benchmarks.table import table
from tollkeeper import RedisClient, SlidingWindowLimiter
from tollkeeper.governance.limit_stores import RedisLimits
from tollkeeper.observability.logging import configure

QUESTION = "A key with 10, 1,000 and 100,000 entries in its minute: bytes, and Redis time of a call"
NOTES = (
    "Entries are spread evenly over the minute; the clock that each limiter goes by is turned for it. *Bytes*: "
    "`MEMORY USAGE` of all its keys. *Redis µs*: what `INFO commandstats` counts for the script call; *allowed*: "
    "the window stays full, one entry leaves for each that comes; *refused*: it is full; *after a pause*: the one "
    "call that finds everything expired. *With ids* adds what remembering the ids of the last six seconds costs "
    "at that rate. pyrate-limiter's removal of old entries is no part of the question; it was left out. "
    "throttled-py keeps two counters, and estimates."
)
SIZES: Final = (10, 1_000, 100_000)
CALLS: Final = 500
CHUNKS: Final = 200
"""Entries are made so many at a time; those of a chunk may share a stamp."""
ROOM_US: Final = 20_000_000
"""Waited before the allowed calls, which then come a little slower, so that stamps rounded up do not refuse them."""
IDS_S: Final = 6
NEVER: Final = 10**9


class Clock:
    """What all limiters here are told, µs."""

    def __init__(self) -> None:
        self.now_us = time.time_ns() // 1000

    @contextmanager
    def turned(self) -> Iterator[None]:
        """For those that ask this process's clock."""
        with (
            mock.patch("time.time", lambda: self.now_us / 1e6),
            mock.patch("time.time_ns", lambda: self.now_us * 1000),
            mock.patch("pyrate_limiter.buckets.redis_bucket.time_ns", lambda: self.now_us * 1000)
            if peers()
            else mock.MagicMock(),
        ):
            yield


class Figures(NamedTuple):
    """Of one limiter at one size."""

    size: int
    octets: int
    allowed_us: float
    refused_us: float
    pause_us: float


def ours(clock: Clock) -> Contender:
    """Without ids: their keys are counted apart."""

    @asynccontextmanager
    async def made(socket: Path) -> AsyncIterator[Ask]:
        async with RedisClient(url=f"unix://{socket}") as client:
            store = RedisLimits(client, deadline_s=1e6, time_us=lambda: clock.now_us)
            yield SlidingWindowLimiter(store, idempotent=False).allow

    return made


def octets(server: RedisServer) -> int:
    """Of all keys."""
    script = (
        "local n = 0; for _, k in ipairs(redis.call('KEYS', '*')) do "
        "n = n + redis.call('MEMORY', 'USAGE', k, 'SAMPLES', 0) end; return n"
    )
    return int(server.command("EVAL", script, "0")[1:])


async def id_octets(server: RedisServer) -> int:
    """What remembering one id costs."""
    async with RedisClient(url=server.url) as client:
        before = octets(server)
        await SlidingWindowLimiter(client, prefix="with").allow("customer", NEVER)
        with_id = octets(server) - before
        await SlidingWindowLimiter(client, prefix="less", idempotent=False).allow("customer", NEVER)
        return with_id - (octets(server) - before - with_id)


def script_us(server: RedisServer) -> float:
    """Mean of the script calls since the last question."""
    found = re.search(
        rb"cmdstat_evalsha:calls=\d+,usec=\d+,usec_per_call=([\d.]+)", server.command("INFO", "commandstats")
    )
    server.command("CONFIG", "RESETSTAT")
    return float(found[1]) if found else 0.0


async def measure(contender: Contender, clock: Clock, server: RedisServer, size: int, *, exact: bool) -> Figures:
    """Fill, look, ask in vain, ask as one entry after the other leaves, wait, ask."""
    step_us = WINDOW_US / size
    start_us, asked, chunk = clock.now_us, 0, max(1, size // CHUNKS)

    async def one(ask: Ask) -> bool:
        nonlocal asked
        asked += 1
        clock.now_us = start_us + int(asked * step_us)
        return bool(await ask("customer", size))

    async with contender(server.socket) as ask:
        with clock.turned():
            await one(ask)  # alone: what connects and learns takes its time
            for first in range(1, size, chunk):
                await asyncio.gather(*(one(ask) for _ in range(min(chunk, size - first))))
            used = octets(server)
            script_us(server)
            refused = [not await ask("customer", size) for _ in range(CALLS)]
            refused_us = script_us(server)
            start_us, asked, step_us = clock.now_us + ROOM_US, 0, 1.01 * step_us
            allowed = [await one(ask) for _ in range(CALLS)]
            allowed_us = script_us(server)
            if exact and not all(refused + allowed):
                raise RuntimeError(
                    f"{size} entries, wrong answers: {refused.count(False)} allowed, {allowed.count(False)} refused"
                )
            clock.now_us += WINDOW_US + 1_000_000
            await ask("customer", size)
            return Figures(size, used, allowed_us, refused_us, script_us(server))


def run() -> str:
    """The table."""
    configure("error", "json")
    clock = Clock()
    contenders = {"tollkeeper": ours(clock), **(THEIRS if peers() else {})}
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            each_id = uvloop.run(id_octets(server))
            for name, contender in contenders.items():
                for size in SIZES:
                    server.command("FLUSHALL")
                    figures = uvloop.run(measure(contender, clock, server, size, exact="counter" not in name))
                    rows.append(row(name, figures))
                    if contender is contenders["tollkeeper"]:
                        used = figures.octets + each_id * size * IDS_S // 60
                        rows.append((f"{name}, with ids, {size:,}", f"{used:,}", f"{used / size:,.1f}", "", "", ""))
        finally:
            server.stop()
    return table(("", "bytes", "bytes an entry", "Redis µs: allowed", "refused", "after a pause"), rows)


def row(name: str, figures: Figures) -> tuple[str, ...]:
    """A line."""
    times = (figures.allowed_us, figures.refused_us, figures.pause_us)
    return (
        f"{name}, {figures.size:,}",
        f"{figures.octets:,}",
        f"{figures.octets / figures.size:,.1f}",
        *(f"{value:,.1f}" for value in times),
    )
