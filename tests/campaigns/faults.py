"""Money through faults: four gateways under load on real servers; in each round something dies, freezes or forgets.

After each round everything must agree again by itself: the database with the provider's own record, but for presumed
charges, which are listed and not below the truth. Dead gateways are started again on their data directories; nobody
lends a hand beyond that.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from tests.campaigns import Outcome
from tests.campaigns.fleet import RECOVERY_S, Fleet, Judgement, servers, true_cost
from tests.campaigns.victim import DEATHS
from tests.servers.gateway import GatewayProcess
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

QUESTION: Final = "Four gateways under load and faults: does every key's spend equal the provider's record?"
CLIENTS: Final = 24
QUIET_S: Final = (0.2, 0.8)
"""How long the load runs before and after a fault."""
FROZEN_S: Final = (0.3, 2.0)
PASSES: Final = (1, 40)
"""On which pass of a point a gateway dies there."""
RARE_PASSES: Final = (1, 4)
DIES_WITHIN_S: Final = 20.0
TIGHT_NANO: Final = 1_500_000
"""A budget that some dozens of requests use up."""

BEFORE_MONTH_END_US: Final = 60_000_000
"""Time for a fleet to start and to be under load before the month ends."""
MONTH_MARGIN_S: Final = 2.0
"""So far from the month's end a request is sure to be admitted in the month in which it is served."""

Fault = Callable[[Fleet, random.Random], Awaitable[None]]


async def pause(rng: random.Random, between: tuple[float, float] = QUIET_S) -> None:
    await asyncio.sleep(rng.uniform(*between))


# Gateways


async def kill_gateway(fleet: Fleet, rng: random.Random) -> None:
    """At any instant; started again on the same data directory."""
    gateway = rng.choice(fleet.gateways)
    gateway.kill()
    await pause(rng, (0, 0.5))
    gateway.launch()


async def kill_all_gateways(fleet: Fleet, rng: random.Random) -> None:
    for gateway in fleet.gateways:
        gateway.kill()
    for gateway in fleet.gateways:
        gateway.launch()


def dies_at(point: str) -> Fault:
    """A gateway is killed at that point of its code, at a random pass; the next life is an ordinary one."""

    async def die(fleet: Fleet, rng: random.Random) -> None:
        gateway = rng.choice(fleet.gateways)
        rare = point in DEATHS[-3:]
        gateway.kill()
        gateway.launch(
            {"VICTIM_DIES": f"{point}:{1 if point == 'closing' else rng.randint(*RARE_PASSES if rare else PASSES)}"}
        )
        await asyncio.to_thread(wait_for_death, gateway)
        gateway.launch()

    return die


def wait_for_death(gateway: GatewayProcess) -> None:
    """It dies by itself, or at last by us: then it was too idle to come to that point."""
    process = gateway.process
    deadline = time.monotonic() + DIES_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    gateway.kill()


# Redis


async def kill_redis(fleet: Fleet, rng: random.Random) -> None:
    fleet.redis.kill()
    await pause(rng, (0, 0.5))
    await asyncio.to_thread(fleet.redis.start)


async def truncate_redis(fleet: Fleet, rng: random.Random) -> None:
    """Its append-only file loses its end: what was acknowledged is forgotten, what was before is not."""
    fleet.redis.kill()
    fleet.redis.truncate(rng.uniform(0.3, 1.0))
    await asyncio.to_thread(fleet.redis.start)


async def empty_redis(fleet: Fleet, rng: random.Random) -> None:
    fleet.redis.kill()
    fleet.redis.forget()
    await asyncio.to_thread(fleet.redis.start)


async def flush_redis(fleet: Fleet, rng: random.Random) -> None:
    fleet.redis.command("FLUSHALL")


async def freeze_redis(fleet: Fleet, rng: random.Random) -> None:
    fleet.redis.freeze()
    await pause(rng, FROZEN_S)
    fleet.redis.thaw()


async def lose_replies(fleet: Fleet, rng: random.Random) -> None:
    """Redis does what it is told and nobody hears of it."""
    fleet.redis_proxy.swallowing = True
    await pause(rng, (0.02, 0.3))
    fleet.redis_proxy.swallowing = False
    fleet.redis_proxy.cut()


async def delay_redis(fleet: Fleet, rng: random.Random) -> None:
    """What was said on a connection that was given up reaches Redis late."""
    fleet.redis_proxy.hold_back()
    await pause(rng, (0.02, 0.3))
    fleet.redis_proxy.cut()
    await pause(rng, (0.1, 0.8))
    fleet.redis_proxy.release()


async def cut_redis(fleet: Fleet, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 5)):
        fleet.redis_proxy.cut()
        await pause(rng, (0.01, 0.2))


# PostgreSQL


async def kill_postgres(fleet: Fleet, rng: random.Random) -> None:
    """In the midst of the transactions of four sync workers."""
    await asyncio.to_thread(fleet.postgres.kill)
    await pause(rng, (0, 0.5))
    await asyncio.to_thread(fleet.postgres.start)


async def freeze_postgres(fleet: Fleet, rng: random.Random) -> None:
    fleet.postgres.freeze()
    await pause(rng, FROZEN_S)
    fleet.postgres.thaw()


async def lose_commits(fleet: Fleet, rng: random.Random) -> None:
    """Commits whose answer is lost."""
    fleet.database_proxy.swallowing = True
    await pause(rng, (0.05, 0.4))
    fleet.database_proxy.swallowing = False
    fleet.database_proxy.cut()


async def cut_postgres(fleet: Fleet, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 5)):
        fleet.database_proxy.cut()
        await pause(rng, (0.01, 0.2))


# Several at once


async def gateway_and_redis(fleet: Fleet, rng: random.Random) -> None:
    """A gateway dies, and while nobody has closed it Redis forgets what it held."""
    gateway = rng.choice(fleet.gateways)
    gateway.kill()
    await pause(rng, (0, 0.3))
    await rng.choice((empty_redis, flush_redis, truncate_redis))(fleet, rng)
    await pause(rng, (0, 0.3))
    gateway.launch()


async def redis_and_postgres(fleet: Fleet, rng: random.Random) -> None:
    """Redis forgets while the database is away."""
    await asyncio.to_thread(fleet.postgres.kill)
    await rng.choice((empty_redis, flush_redis, truncate_redis))(fleet, rng)
    await pause(rng)
    await asyncio.to_thread(fleet.postgres.start)


FAULTS: Final[dict[str, Fault]] = {
    "gateway killed": kill_gateway,
    "all gateways killed": kill_all_gateways,
    **{f"gateway dies: {point}": dies_at(point) for point in DEATHS},
    "Redis killed": kill_redis,
    "Redis' file truncated": truncate_redis,
    "Redis restarted empty": empty_redis,
    "FLUSHALL": flush_redis,
    "Redis frozen": freeze_redis,
    "Redis' replies lost": lose_replies,
    "Redis' connections cut": cut_redis,
    "Redis hears late": delay_redis,
    "PostgreSQL killed": kill_postgres,
    "PostgreSQL frozen": freeze_postgres,
    "commits' answers lost": lose_commits,
    "PostgreSQL's connections cut": cut_postgres,
    "gateway killed, Redis forgets": gateway_and_redis,
    "Redis forgets, PostgreSQL killed": redis_and_postgres,
}


class Played(NamedTuple):
    """One round."""

    fault: str
    requests: int
    judgement: Judgement
    recovered_s: float
    """From the end of the load until all agreed."""


async def play(fleet: Fleet, fault: str, seed: int, patience_s: float = RECOVERY_S) -> Played:
    """Load, the fault in its midst, load, and judgement."""
    rng, over = random.Random(f"{fault}/{seed}"), asyncio.Event()
    await fleet.make_tree(f"tight-{len(fleet.secrets)}", organisation=TIGHT_NANO, key=TIGHT_NANO + 1)
    loading = asyncio.create_task(fleet.load(rng, over, CLIENTS))
    try:
        await pause(rng)
        await FAULTS[fault](fleet, rng)
        await pause(rng)
    finally:
        over.set()
        requests = await loading
    begun_s = time.monotonic()
    found = await fleet.judge(patience_s)
    return Played(fault, requests, found, time.monotonic() - begun_s)


async def campaign(
    folder: Path, redis: RedisServer, postgres: PostgresServer, order: list[str], seed: int
) -> list[Played]:
    """A round of each fault in the order; a new fleet after a difference, so that each is found once."""
    played: list[Played] = []
    fleet: Fleet | None = None
    try:
        for number, fault in enumerate(order):
            if fleet is None:
                (folder / f"fleet-{number}").mkdir()
                fleet = Fleet(folder / f"fleet-{number}", redis, postgres)
                await fleet.start()
                await fleet.make_tree("free")
                await fleet.make_tree("roomy", organisation=10**12, team=10**12, key=10**12)
            last = await play(fleet, fault, seed * 1000 + number)
            played.append(last)
            if last.judgement.differences:
                print(f"  {fault}: {last}", file=sys.stderr, flush=True)
                await fleet.close()
                fleet = None
    finally:
        if fleet is not None:
            await fleet.close()
    return played


async def month_end(folder: Path, redis: RedisServer, postgres: PostgresServer, seed: int) -> Played:
    """All clocks are moved so that a month ends under load; then a gateway is killed and Redis forgets.

    A request counts in the month of its admission, so a month has at least what was served well within it.
    """
    rng, over = random.Random(f"month/{seed}"), asyncio.Event()
    now = datetime.now(UTC)
    first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)  # of the next month
    ends_us = time.time_ns() // 1000 + BEFORE_MONTH_END_US
    shift_us = int(first.timestamp()) * 1_000_000 - ends_us
    fleet = Fleet(folder, redis, postgres, environ={"VICTIM_SHIFT_US": str(shift_us)})
    await fleet.start()
    try:
        await fleet.make_tree("free")
        await fleet.make_tree("roomy", organisation=10**12, team=10**12, key=10**12)
        left_s = ends_us / 1e6 - time.time()
        await asyncio.sleep(max(0.0, left_s - MONTH_MARGIN_S - 1))
        loading = asyncio.create_task(fleet.load(rng, over, CLIENTS))
        await asyncio.sleep(max(0.0, ends_us / 1e6 - time.time()))
        await kill_gateway(fleet, rng)
        await flush_redis(fleet, rng)
        await asyncio.sleep(MONTH_MARGIN_S + 1)
        over.set()
        requests, begun_s = await loading, time.monotonic()
        found = await fleet.judge()
        wrong, spent = list(found.differences), await fleet.months()
        sure = {now.month: 0, first.month: 0}
        for served in fleet.served():
            after_us = served.time_us - ends_us
            if served.usage is not None and abs(after_us) > MONTH_MARGIN_S * 1e6:
                sure[first.month if after_us > 0 else now.month] += true_cost(served)
        wrong += [
            f"month {m}: {spent[m]}, but {nano} were served in it" for m, nano in sure.items() if spent[m] < nano
        ]
        if not all(sure.values()):
            wrong.append(f"nothing was served well within one of the months: {sure}")
        return Played("a month's end", requests, found._replace(differences=tuple(wrong)), time.monotonic() - begun_s)
    finally:
        await fleet.close()


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """Every fault as often as there are rounds, in a random order."""
    order = [fault for fault in FAULTS for _ in range(rounds)]
    random.Random(seed).shuffle(order)
    with servers() as (folder, redis, postgres):
        played = asyncio.run(campaign(folder, redis, postgres, order, seed))
        for number in range(rounds):
            (folder / f"month-{number}").mkdir()
            played.append(asyncio.run(month_end(folder / f"month-{number}", redis, postgres, seed * 1000 + number)))
    for fault in (*FAULTS, "a month's end"):
        mine = [p for p in played if p.fault == fault]
        found, slowest = [p.judgement for p in mine], max(p.recovered_s for p in mine)
        asked = f"{sum(p.requests for p in mine):,} asked, {sum(j.served for j in found):,} served"
        presumed = f"{sum(j.presumed for j in found):,} presumed; agreed after {slowest:.0f} s at most"
        yield Outcome(fault, len(mine), asked, sum(len(j.differences) for j in found), presumed)
