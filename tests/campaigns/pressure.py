"""One gateway with as many requests as it can serve, and one fault: do its clients notice, and does it come back?

What a gateway has to catch up with, while the load goes on, must not be overtaken by it. A fault of Redis or of the
database must not fail one request. A gateway that is killed must serve all of them as soon as it says that it is
ready again, with all that it left behind.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.campaigns import Outcome
from tests.campaigns.fleet import Fleet, servers
from tests.campaigns.soak import at_rest, compare, failures, steady_load
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

QUESTION: Final = "A gateway under all the load it can take, and one fault: do its clients notice?"
CONNECTIONS: Final = 32
BEFORE_S: Final = 2.0
AFTER_S: Final = 6.0
FROZEN_S: Final = 1.5
"""Longer than the gateway waits for an answer of Redis."""
AWAY_S: Final = 2.0
READY_S: Final = 60.0
ENVIRON: Final = {"TOLLKEEPER_OUTAGE_BUDGETS": "bounded"}
LIMITS: Final = {"max_parallel": 1_000, "budgets": {"month": "1000000"}}
"""Slots for a tenth of a second: if none is released for longer, requests are refused."""


class Trial(NamedTuple):
    """What came of one fault."""

    served: int
    failed: int
    """Requests that were not answered with 200; of a gateway that is killed, those after its next start."""
    ready_s: float
    """From the start of the next gateway until it was ready; 0: none was killed."""
    differences: tuple[str, ...]


def cut(redis: RedisServer, postgres: PostgresServer) -> None:
    redis.command("CLIENT", "KILL", "TYPE", "normal")


def flush(redis: RedisServer, postgres: PostgresServer) -> None:
    redis.command("FLUSHALL")


def freeze(redis: RedisServer, postgres: PostgresServer) -> None:
    redis.freeze()
    time.sleep(FROZEN_S)
    redis.thaw()


def kill(redis: RedisServer, postgres: PostgresServer) -> None:
    redis.kill()
    redis.forget()
    time.sleep(AWAY_S)
    redis.start()


def freeze_postgres(redis: RedisServer, postgres: PostgresServer) -> None:
    postgres.freeze()
    time.sleep(AWAY_S)
    postgres.thaw()


def kill_postgres(redis: RedisServer, postgres: PostgresServer) -> None:
    postgres.kill()
    time.sleep(AWAY_S)
    postgres.start()


FAULTS: Final[dict[str, Callable[[RedisServer, PostgresServer], None]]] = {
    "Redis' connections cut": cut,
    "FLUSHALL": flush,
    "Redis frozen": freeze,
    "Redis killed, and empty again": kill,
    "PostgreSQL frozen": freeze_postgres,
    "PostgreSQL killed": kill_postgres,
}
DEATHS: Final[dict[str, Callable[[RedisServer, PostgresServer], None] | None]] = {
    "gateway killed": None,
    "gateway killed, FLUSHALL": flush,
}


async def trial(
    folder: Path,
    redis: RedisServer,
    postgres: PostgresServer,
    name: str,
    *,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
) -> Trial:
    """One fault, on a fleet of one."""
    fleet = Fleet(folder / name.replace(" ", "-"), redis, postgres, gateways=1, sync="5s", environ=ENVIRON)
    fleet.folder.mkdir()
    await fleet.start()
    try:
        made = await fleet.admin("POST", "/keys", {"name": "steady", "limits": LIMITS})
        fleet.secrets["steady"], fleet.key_ids[str(made["id"])] = str(made["secret"]), "steady"
        failed, ready_s = await (_death if name in DEATHS else _fault)(fleet, name, before_s, after_s)
        wrong = await at_rest(fleet)
        served, _, more = await compare(fleet, ("steady",))
    finally:
        await fleet.close()
    if failed:
        wrong.append(f"{failed} requests failed")
    return Trial(served, failed, ready_s, (*wrong, *more))


def _load(fleet: Fleet, seconds: float) -> "subprocess.Popen[str]":
    gateway = fleet.gateways[0]
    return steady_load(
        fleet.folder, gateway.url, fleet.secrets["steady"], round(seconds), connections=CONNECTIONS, delay_ms=0
    )


async def _ended(load: "subprocess.Popen[str]") -> int:
    told: tuple[str, Any] = await asyncio.to_thread(load.communicate)
    return failures(told[0])


async def _fault(fleet: Fleet, name: str, before_s: float, after_s: float) -> tuple[int, float]:
    away_s = 0.0 if FAULTS[name] in (cut, flush) else AWAY_S
    load = _load(fleet, before_s + away_s + after_s)
    await asyncio.sleep(before_s)
    await asyncio.to_thread(FAULTS[name], fleet.redis, fleet.postgres)
    return await _ended(load), 0.0


async def _death(fleet: Fleet, name: str, before_s: float, after_s: float) -> tuple[int, float]:
    gateway = fleet.gateways[0]
    load = _load(fleet, before_s + 1)
    await asyncio.sleep(before_s)
    gateway.process.kill()
    await asyncio.to_thread(gateway.process.wait)
    strike = DEATHS[name]
    if strike is not None:
        await asyncio.to_thread(strike, fleet.redis, fleet.postgres)
    await _ended(load)
    begun_s = time.monotonic()
    gateway.launch()
    async with asyncio.timeout(READY_S):
        await asyncio.to_thread(gateway.wait_until_ready)
    ready_s = time.monotonic() - begun_s
    return await _ended(_load(fleet, after_s)), ready_s


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """A row for each fault. Nothing is random here, so a seed changes nothing."""
    for name in (*FAULTS, *DEATHS):
        with servers() as (folder, redis, postgres):
            found = []
            for number in range(rounds):
                (folder / str(number)).mkdir()
                found.append(asyncio.run(trial(folder / str(number), redis, postgres, name)))
        slowest_s = max(each.ready_s for each in found)
        differences = [difference for each in found for difference in each.differences]
        yield Outcome(
            name,
            rounds,
            f"{sum(each.served for each in found):,} requests served",
            len(differences),
            "; ".join([*differences[:3], *([f"ready after {slowest_s:.1f} s"] if slowest_s else [])]),
        )
