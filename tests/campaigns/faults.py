"""Money through faults: four gateways under load on real servers; in each round something dies, freezes or forgets.

After each round everything must agree again by itself: the database with the provider's own record, but for presumed
charges, which are listed and not below the truth. Dead gateways are started again on their data directories; nobody
lends a hand beyond that. A fault counts how often it struck, and a round in which it did not is a difference.
"""

import asyncio
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg

from tests.campaigns import Outcome
from tests.campaigns.fleet import RECOVERY_S, Ask, Fleet, Judgement, servers, true_cost
from tests.campaigns.victim import DEATHS
from tests.servers.gateway import GatewayProcess
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer

QUESTION: Final = "Four gateways under load and faults: does every key's spend equal the provider's record?"
CLIENTS: Final = 24
QUIET_S: Final = (0.2, 0.8)
"""How long the load runs before and after a fault."""
ANSWERED_MIN: Final = 16
"""So many requests are answered, or nearly, before a fault strikes, however slow the machine is."""
FROZEN_S: Final = (0.3, 2.0)
PASSES: Final = (1, 40)
"""On which pass of a point a gateway dies there."""
RARE_PASSES: Final = (1, 4)
DIES_WITHIN_S: Final = 45.0
"""A gateway starts in this time, and comes to the point where it dies."""
COMMITTED: Final = re.compile(rb"COMMIT\0")
"""PostgreSQL's word for it."""
WRITERS_WAITING: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_xid IS NOT NULL AND wait_event_type = 'Lock'"
)
TIGHT_NANO: Final = 1_500_000
"""A budget that some dozens of requests use up."""

KEYS_MAX: Final = 32
"""Of one fleet: each round adds one, and the judge asks for all."""
STRIKES_WITHIN_S: Final = 60.0
"""So long is waited for the instant at which a fault strikes."""

BEFORE_MONTH_END_US: Final = 150_000_000
"""Time for a fleet to start before the month ends; what is left of it is skipped."""
MONTH_MARGIN_S: Final = 2.0
"""So far from the month's end a request is sure to be admitted in the month in which it is served."""

Fault = Callable[[Fleet, random.Random], Awaitable[int]]
"""Returns how often it struck, as could be seen."""


async def pause(rng: random.Random, between: tuple[float, float] = QUIET_S) -> None:
    await asyncio.sleep(rng.uniform(*between))


async def grown(count: Callable[[], int]) -> int:
    """Wait until a count is above what it is now; by how much."""
    before, deadline = count(), time.monotonic() + STRIKES_WITHIN_S
    while count() == before and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
    return count() - before


# Gateways


async def kill_gateway(fleet: Fleet, rng: random.Random) -> int:
    """At any instant; started again on the same data directory."""
    gateway = rng.choice(fleet.gateways)
    struck = gateway.kill()
    await pause(rng, (0, 0.5))
    gateway.launch()
    return struck


async def kill_all_gateways(fleet: Fleet, rng: random.Random) -> int:
    struck = sum(gateway.kill() for gateway in fleet.gateways)
    for gateway in fleet.gateways:
        gateway.launch()
    return struck


def dies_at(point: str) -> Fault:
    """A gateway is killed at that point of its code, at a random pass; the next life is an ordinary one."""

    async def die(fleet: Fleet, rng: random.Random) -> int:
        gateway = rng.choice(fleet.gateways)
        passes = rng.randint(*(RARE_PASSES if point in DEATHS[-3:] else PASSES))
        struck = False
        while not struck and passes:
            gateway.kill()
            gateway.launch({"VICTIM_DIES": f"{point}:{1 if point == 'closing' else passes}"})
            struck = await asyncio.to_thread(died, gateway)
            passes //= 4  # it came there too seldom
        gateway.kill()
        gateway.launch()
        return struck

    return die


def died(gateway: GatewayProcess) -> bool:
    """Whether it dies by itself."""
    try:
        return gateway.process.wait(DIES_WITHIN_S) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        return False


# Redis


async def kill_redis(fleet: Fleet, rng: random.Random) -> int:
    fleet.redis.kill()
    await pause(rng, (0, 0.5))
    await asyncio.to_thread(fleet.redis.start)
    return 1


async def truncate_redis(fleet: Fleet, rng: random.Random) -> int:
    """Its append-only file loses its end: what was acknowledged is forgotten, what was before is not."""
    fleet.redis.kill()
    gone = fleet.redis.truncate(rng.uniform(0.3, 1.0))
    await asyncio.to_thread(fleet.redis.start)
    return gone > 0


async def empty_redis(fleet: Fleet, rng: random.Random) -> int:
    struck = holds_something(fleet)
    fleet.redis.kill()
    fleet.redis.forget()
    await asyncio.to_thread(fleet.redis.start)
    return struck


async def flush_redis(fleet: Fleet, rng: random.Random) -> int:
    struck = holds_something(fleet)
    fleet.redis.command("FLUSHALL")
    return struck


def holds_something(fleet: Fleet) -> bool:
    return fleet.redis.command("DBSIZE") != b":0\r\n"


async def freeze_redis(fleet: Fleet, rng: random.Random) -> int:
    """It struck if gateways asked meanwhile."""
    fleet.redis.freeze()
    asked = await grown(lambda: fleet.redis_proxy.heard)
    await pause(rng, FROZEN_S)
    fleet.redis.thaw()
    return asked > 0


async def lose_replies(fleet: Fleet, rng: random.Random) -> int:
    """Redis does what it is told and nobody hears of it."""
    fleet.redis_proxy.swallowing = True
    lost = await grown(lambda: fleet.redis_proxy.lost)
    await pause(rng, (0.02, 0.3))
    fleet.redis_proxy.swallowing = False
    fleet.redis_proxy.cut()
    return lost > 0


async def delay_redis(fleet: Fleet, rng: random.Random) -> int:
    """What was said on a connection that was given up reaches Redis late."""
    fleet.redis_proxy.hold_back()
    kept = await grown(lambda: fleet.redis_proxy.kept)
    await pause(rng, (0.02, 0.3))
    fleet.redis_proxy.cut()
    await pause(rng, (0.1, 0.8))
    fleet.redis_proxy.release()
    return kept > 0


async def cut_redis(fleet: Fleet, rng: random.Random) -> int:
    return await cut_again_and_again(fleet.redis_proxy, rng)


async def cut_again_and_again(proxy: Proxy, rng: random.Random) -> int:
    """A few times; how often there was a connection."""
    struck = 0
    for _ in range(rng.randint(1, 5)):
        await grown(lambda: proxy.heard)
        struck += proxy.cut() > 0
        await pause(rng, (0.01, 0.2))
    return struck


# PostgreSQL


@asynccontextmanager
async def mid_transaction(fleet: Fleet) -> AsyncIterator[int]:
    """Gateways stand in the midst of a transaction: it has written marks, and waits for our lock to write totals."""
    connection = await asyncpg.connect(fleet.database_url)
    try:
        await connection.execute("BEGIN; LOCK TABLE spend IN SHARE MODE")
        deadline, waiting = time.monotonic() + STRIKES_WITHIN_S, 0
        while not waiting and time.monotonic() < deadline:
            await connection.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees one state only
            waiting = await connection.fetchval(WRITERS_WAITING)
        yield waiting
    finally:
        connection.terminate()


async def kill_postgres(fleet: Fleet, rng: random.Random) -> int:
    """In the midst of the sync workers' transactions."""
    async with mid_transaction(fleet) as struck:
        await asyncio.to_thread(fleet.postgres.kill)
    await pause(rng, (0, 0.5))
    await asyncio.to_thread(fleet.postgres.start)
    return struck


async def freeze_postgres(fleet: Fleet, rng: random.Random) -> int:
    """In the midst of transactions; these go on when it does."""
    async with mid_transaction(fleet) as struck:
        fleet.postgres.freeze()
        await pause(rng, FROZEN_S)
        fleet.postgres.thaw()
    return struck


async def lose_commits(fleet: Fleet, rng: random.Random) -> int:
    """Commits whose answer is lost."""
    lost = fleet.database_proxy.swallow_from(COMMITTED)
    await asyncio.wait({lost}, timeout=STRIKES_WITHIN_S)
    await pause(rng, (0.05, 0.4))
    fleet.database_proxy.swallowing = False
    fleet.database_proxy.cut()
    return lost.done()


async def cut_postgres(fleet: Fleet, rng: random.Random) -> int:
    return await cut_again_and_again(fleet.database_proxy, rng)


# Several at once


async def gateway_and_redis(fleet: Fleet, rng: random.Random) -> int:
    """A gateway dies, and while nobody has closed it Redis forgets what it held."""
    gateway = rng.choice(fleet.gateways)
    killed = gateway.kill()
    await pause(rng, (0, 0.3))
    struck = await rng.choice((empty_redis, flush_redis, truncate_redis))(fleet, rng)
    await pause(rng, (0, 0.3))
    gateway.launch()
    return killed and struck


async def redis_and_postgres(fleet: Fleet, rng: random.Random) -> int:
    """Redis forgets while the database is away."""
    await asyncio.to_thread(fleet.postgres.kill)
    struck = await rng.choice((empty_redis, flush_redis, truncate_redis))(fleet, rng)
    await pause(rng)
    await asyncio.to_thread(fleet.postgres.start)
    return struck


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
    struck: int


async def play(fleet: Fleet, fault: str, seed: int, patience_s: float = RECOVERY_S) -> Played:
    """Load, the fault in its midst, load, and judgement."""
    rng, over = random.Random(f"{fault}/{seed}"), asyncio.Event()
    await fleet.make_tree(f"tight-{len(fleet.secrets)}", organisation=TIGHT_NANO, key=TIGHT_NANO + 1)
    loading = asyncio.create_task(fleet.load(rng, over, CLIENTS))
    try:
        await pause(rng)
        await grown(lambda: fleet.statuses[200] // ANSWERED_MIN)
        struck = await FAULTS[fault](fleet, rng)
        await pause(rng)
    finally:
        over.set()
        requests = await loading
    begun_s = time.monotonic()
    found = await fleet.judge(patience_s)
    if not struck:
        found = found._replace(differences=(*found.differences, "the fault never struck"))
    return Played(fault, requests, found, time.monotonic() - begun_s, struck)


async def campaign(
    folder: Path, redis: RedisServer, postgres: PostgresServer, order: list[str], seed: int, *, retries: bool = False
) -> list[Played]:
    """A round of each fault in the order; a new fleet after a difference, so that each is found once, and when the
    fleet has many keys."""
    played: list[Played] = []
    fleet: Fleet | None = None
    try:
        for number, fault in enumerate(order):
            if fleet is None:
                (folder / f"fleet-{number}").mkdir()
                fleet = Fleet(folder / f"fleet-{number}", redis, postgres, retries=retries)
                await fleet.start()
                await fleet.make_tree("free")
                await fleet.make_tree("roomy", organisation=10**12, team=10**12, key=10**12)
            last = await play(fleet, fault, seed * 1000 + number)
            played.append(last)
            said = last if last.judgement.differences else f"{last.requests} requests, {last.recovered_s:.0f} s"
            print(f"  round {number + 1}, {fault}: {said}", file=sys.stderr, flush=True)
            if last.judgement.differences or len(fleet.secrets) >= KEYS_MAX:
                await fleet.close()
                fleet = None
    finally:
        if fleet is not None:
            await fleet.close()
    return played


# A month's end


async def nothing(fleet: Fleet, rng: random.Random) -> int:
    return 1


AT_MONTH_END: Final[dict[str, Fault]] = {
    "nothing": nothing,
    "gateway killed": kill_gateway,
    "all gateways killed": kill_all_gateways,
    "FLUSHALL": flush_redis,
    "Redis' file truncated": truncate_redis,
    "Redis restarted empty": empty_redis,
    "Redis' replies lost": lose_replies,
    "PostgreSQL killed": kill_postgres,
    "gateway killed, Redis forgets": gateway_and_redis,
}
CROSSERS: Final = 40
CROSSING: Final = (
    Ask("crossing", 50, 20, 30, delay_ms=15_000),
    Ask("crossing", 50, 30, 30, stream=True, delay_ms=3200),
)
"""Admitted in the month that ends, answered in the next one, on a slow machine, too."""


async def month_end(
    folder: Path, redis: RedisServer, postgres: PostgresServer, fault: str, seed: int, *, retries: bool = False
) -> Played:
    """All clocks are moved so that a month ends under load and the fault strikes around that instant.

    A request counts in the month of its admission: a month has at least what was served well within it, and of a key
    whose requests all cross the boundary the next month has nothing.
    """
    rng, over = random.Random(f"month/{fault}/{seed}"), asyncio.Event()
    now = datetime.now(UTC)
    first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)  # of the next month
    ends_us = time.time_ns() // 1000 + BEFORE_MONTH_END_US
    shift_us = int(first.timestamp()) * 1_000_000 - ends_us
    fleet = Fleet(folder, redis, postgres, shift_us=shift_us, retries=retries)

    def left_s() -> float:
        return ends_us / 1e6 - time.time()

    await fleet.start()
    try:
        await fleet.make_tree("crossing", organisation=10**12, key=10**12)
        others = ("free", "roomy", "tight")
        await fleet.make_tree("free")
        await fleet.make_tree("roomy", organisation=10**12, team=10**12, key=10**12)
        await fleet.make_tree("tight", organisation=TIGHT_NANO, key=TIGHT_NANO + 1)
        loading = asyncio.create_task(fleet.load(rng, over, CLIENTS, others))
        crossing = [
            asyncio.create_task(fleet.ask(CROSSING[n % len(CROSSING)], n % fleet.count)) for n in range(CROSSERS)
        ]
        held = await grown(lambda: fleet.holds_of("crossing") // CROSSERS)
        await grown(lambda: fleet.statuses[200] // ANSWERED_MIN)  # or the old month may have nothing to compare
        assert left_s() > MONTH_MARGIN_S, "the fleet took too long to start: the month is over"
        skipped_us = int((left_s() - MONTH_MARGIN_S) * 1e6)
        fleet.advance(skipped_us)
        ends_us -= skipped_us
        await asyncio.sleep(max(0.0, left_s() + rng.uniform(-0.3, 0.3)))
        struck = await AT_MONTH_END[fault](fleet, rng)
        await asyncio.sleep(max(0.0, left_s() + MONTH_MARGIN_S))
        await grown(lambda: fleet.statuses[200] // ANSWERED_MIN)
        over.set()
        requests = await loading + CROSSERS
        await asyncio.gather(*crossing)
        begun_s = time.monotonic()
        found = await fleet.judge()
        wrong = [*found.differences, *await wrong_months(fleet, now.month, first.month, ends_us)]
        if not (struck and held):
            wrong.append("the fault never struck, or nothing was held across the month's end")
        name = f"a month's end, {fault}"
        return Played(name, requests, found._replace(differences=tuple(wrong)), time.monotonic() - begun_s, struck)
    finally:
        await fleet.close()


async def wrong_months(fleet: Fleet, ended: int, begun: int, ends_us: int) -> list[str]:
    """What the database has in the wrong month."""
    spent = await fleet.months()
    sure = Counter[tuple[str, int]]()
    for served in fleet.served():
        after_us = served.time_us - ends_us
        if served.user != "crossing" and served.usage is not None and abs(after_us) > MONTH_MARGIN_S * 1e6:
            sure[served.user, begun if after_us > 0 else ended] += true_cost(served)
    wrong = [
        f"{user}, month {month}: {spent[user][month]}, but {nano} were served in it"
        for (user, month), nano in sure.items()
        if spent[user][month] < nano
    ]
    if spent["crossing"][begun]:
        wrong.append(f"{spent['crossing'][begun]} of what was admitted in the last month was charged to the next")
    if not spent["crossing"][ended]:
        wrong.append("nothing was charged to the month in which all that crossed its end was admitted")
    if {month for _, month in sure} != {ended, begun}:
        wrong.append(f"nothing was served well within one of the months: {sure}")
    return wrong


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """Every fault as often as there are rounds, in a random order, without and with retries; then months' ends."""
    with servers() as (folder, redis, postgres):
        for retries in (False, True):
            order = [fault for fault in FAULTS for _ in range(rounds)]
            random.Random(seed).shuffle(order)
            own = folder / f"retries-{retries}"
            own.mkdir()
            played = asyncio.run(campaign(own, redis, postgres, order, seed, retries=retries))
            for fault in FAULTS:
                yield summary(fault, [p for p in played if p.fault == fault], retries=retries)
            played = []
            for number, fault in enumerate([fault for fault in AT_MONTH_END for _ in range(rounds)]):
                (own / f"month-{number}").mkdir()
                month = month_end(
                    own / f"month-{number}", redis, postgres, fault, seed * 1000 + number, retries=retries
                )
                played.append(asyncio.run(month))
            for fault in {p.fault: None for p in played}:
                yield summary(fault, [p for p in played if p.fault == fault], retries=retries)


def summary(fault: str, mine: list[Played], *, retries: bool) -> Outcome:
    found, slowest = [p.judgement for p in mine], max(p.recovered_s for p in mine)
    asked = f"{sum(p.requests for p in mine):,} asked, {sum(j.served for j in found):,} served"
    notes = f"struck {sum(p.struck for p in mine)} times; {sum(j.presumed for j in found):,} presumed; "
    notes += f"agreed after {slowest:.0f} s at most"
    return Outcome(
        f"{fault}, with retries" if retries else fault,
        len(mine),
        asked,
        sum(len(j.differences) for j in found),
        notes,
    )
