"""The soak: one gateway under steady load for as many minutes as rounds are asked for, amid upstream resets, stalls,
429 bursts, clients that hang up and a Redis that is killed every minute. Does anything grow, leak or go missing?

The steady load comes from wrk, whose number of connections and the provider's delay set the rate; awkward requests
come from clients of their own. The provider's journal is read as a stream, so that half an hour fits in memory.
"""

import asyncio
import os
import random
import re
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from tests.campaigns import Outcome
from tests.campaigns.fleet import FIELDS, MODEL, NOTHING, Account, Fleet, servers, true_cost
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer
from tollkeeper.domain.errors import Unavailable
from tollkeeper.simulator.account import ServedRequest
from tollkeeper.storage.database import Database

QUESTION: Final = "A gateway under load and faults for many minutes: does anything grow, leak or go missing?"
STEADY_CONNECTIONS: Final = int(os.environ.get("SOAK_CONNECTIONS", "128"))
STEADY_DELAY_MS: Final = 20
"""128 connections and 20 ms are some 4,300 requests/s where one process does 8,500 at its best: half of it."""
AWKWARD_CLIENTS: Final = 12
PATIENCE_S: Final = 3.0
"""Of a client whose provider stalls."""
SAMPLE_S: Final = 2.0
REDIS_EVERY_S: Final = 60.0
REDIS_AWAY_S: Final = 1.0
REST_S: Final = 90.0
GROWTH_RATIO: Final = 1.05
GROWTH_BYTES: Final = 8 * 2**20
"""What the last quarter's memory may be above the second's: allocators are not exact."""
KEYS: Final = ("steady", "awkward")


class Sample(NamedTuple):
    """A gateway at one instant."""

    memory: int
    files: int


class Soak(NamedTuple):
    """What came of it."""

    minutes: int
    served: int
    presumed: int
    statuses: Counter[int]
    """Of awkward requests."""
    failed: int
    """Steady requests that were not answered with 200."""
    restarts: int
    memory: tuple[float, float]
    """Medians of the second and of the last quarter."""
    files: tuple[int, int]
    """The most under load, and at rest."""
    differences: tuple[str, ...]


def body(key: str, directive: str, *, stream: bool = False) -> dict[str, Any]:
    """A request that steers its own answer."""
    content = f"[[sim {directive}]]"
    return {
        "model": MODEL,
        "max_tokens": 64,
        "stream": stream,
        "user": key,
        "messages": [{"role": "user", "content": content}],
    }


def steady_load(
    folder: Path,
    url: str,
    secret: str,
    seconds: int,
    *,
    connections: int = STEADY_CONNECTIONS,
    delay_ms: int = STEADY_DELAY_MS,
) -> "subprocess.Popen[str]":
    """wrk, for the whole time."""
    script = folder / "steady.lua"
    text = msgspec.json.encode(body("steady", f"input=60 output=20 delay_ms={delay_ms}")).decode()
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = [==[{text}]==]\nwrk.headers['Content-Type'] = 'application/json'\n"
        f"wrk.headers['Authorization'] = 'Bearer {secret}'\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    return subprocess.Popen([*command, f"{url}/v1/chat/completions"], stdout=subprocess.PIPE, text=True)


def failures(told: str) -> int:
    """Answers that were no 200 and broken connections, as wrk tells them."""
    found = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    broken = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    return (int(found[1]) if found else 0) + (sum(map(int, broken.groups())) if broken else 0)


async def awkward(fleet: Fleet, rng: random.Random, until: asyncio.Event) -> None:
    """A client whose requests go wrong in every way, one after the other."""
    url = fleet.gateways[0].url + "/v1/chat/completions"
    headers = {"Authorization": f"Bearer {fleet.secrets['awkward']}"}
    while not until.is_set():
        numbers = f"input={rng.randint(20, 90)} output={rng.randint(1, 60)}"
        kind = rng.choice(("plain", "stream", "hang_up", "reset", "truncate", "stall", "burst", "error"))
        directives = {
            "stream": f"{numbers} chunk_delay_ms=3",
            "hang_up": f"{numbers} chunk_delay_ms=20",
            "reset": f"{numbers} fault=reset",
            "truncate": f"{numbers} chunk_delay_ms=3 fault=truncate",
            "stall": f"{numbers} fault=stall",
            "burst": f"{numbers} status=429 retry_after=1",
            "error": f"{numbers} status=500",
        }
        ask = body("awkward", directives.get(kind, numbers), stream=kind in ("stream", "hang_up", "truncate"))
        status = 0
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with asyncio.timeout(PATIENCE_S), fleet.session.post(url, json=ask, headers=headers) as response:
                status = response.status
                if kind == "hang_up":
                    await response.content.readany()
                    response.close()
                else:
                    await response.read()
        fleet.statuses[status] += 1
        await asyncio.sleep(rng.random() * 0.05)


async def restarts(redis: RedisServer, until: asyncio.Event) -> int:
    """Kill Redis every minute; how often."""
    count = 0
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(REDIS_EVERY_S):
                await until.wait()
        if until.is_set():
            return count
        redis.kill()
        await asyncio.sleep(REDIS_AWAY_S)
        await asyncio.to_thread(redis.start)
        count += 1


def sample(pid: int) -> Sample:
    """Resident bytes and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(pages * os.sysconf("SC_PAGE_SIZE"), sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))


async def soak(folder: Path, redis: RedisServer, postgres: PostgresServer, seed: int, minutes: int) -> Soak:
    """One gateway, from start to rest."""
    fleet = Fleet(folder, redis, postgres, gateways=1, sync="5s")
    await fleet.start()
    try:
        for key in KEYS:
            await fleet.make_tree(key, key=10**15)
        pid, until = fleet.gateways[0].process.pid, asyncio.Event()
        load = steady_load(folder, fleet.gateways[0].url, fleet.secrets["steady"], minutes * 60)
        clients = [
            asyncio.create_task(awkward(fleet, random.Random(f"{seed}-{n}"), until)) for n in range(AWKWARD_CLIENTS)
        ]
        killing = asyncio.create_task(restarts(redis, until))
        samples: list[Sample] = []
        while load.poll() is None:
            await asyncio.sleep(SAMPLE_S)
            samples.append(sample(pid))
        until.set()
        failed = failures(load.communicate()[0])
        await asyncio.gather(*clients)
        restarted = await killing
        wrong = await at_rest(fleet)
        rest = sample(pid)
        served, presumed, more = await compare(fleet)
    finally:
        await fleet.close()
    quarter = max(1, len(samples) // 4)
    before = statistics.median(s.memory for s in samples[quarter : 2 * quarter] or samples)
    after = statistics.median(s.memory for s in samples[-quarter:])
    if after > before * GROWTH_RATIO + GROWTH_BYTES:
        wrong.append(f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    most = max(s.files for s in samples)
    if rest.files > most:
        wrong.append(f"{rest.files} open files at rest, at most {most} under load")
    return Soak(
        minutes,
        served,
        presumed,
        fleet.statuses,
        failed,
        restarted,
        (before, after),
        (most, rest.files),
        (*wrong, *more),
    )


async def at_rest(fleet: Fleet) -> list[str]:
    """Wait until nothing is under way; what still is after `REST_S`."""
    deadline = time.monotonic() + REST_S
    while True:
        busy = ["the gateway is dead"]
        if fleet.gateways[0].process.poll() is None:
            busy = await asyncio.to_thread(fleet._busy, 0) + fleet._holds_left()
        if not busy or time.monotonic() > deadline:
            return busy
        await asyncio.sleep(0.5)


async def compare(fleet: Fleet, keys: Sequence[str] = KEYS) -> tuple[int, int, list[str]]:
    """Requests served, presumed charges, and where the database differs from the provider's journal."""
    await fleet.sync_all()
    database = await Database.open(fleet.database_url)
    try:
        rows = await database.spend.monthly_usage()
        listed = await database.spend.listed(limit=10**6)
    except Unavailable as error:
        return 0, 0, [f"the database could not be asked: {error}"]
    finally:
        await database.close()
    known: dict[str, Account] = defaultdict(Account)
    for row in rows:
        name = fleet.key_ids[row.key_id]
        known[name] = known[name].plus(Account(*(getattr(row, field) for field in FIELDS)))
    truth: dict[str, Account] = defaultdict(Account)
    presumed: dict[str, int] = {}
    for each in listed:
        if each.charge.status == "presumed":
            presumed[each.attempt] = each.charge.cost_nano
            named = next(r.name.split(":")[0] for r in each.charge.what_is_known().counters if "key" in r.name)
            name = fleet.key_ids[named]
            truth[name] = truth[name].plus(Account(each.charge.cost_nano, 1))
    wrong: list[str] = []
    served = 0
    for request in journal(fleet.journal):
        cost = 0 if request.usage is None else true_cost(request)
        if (guess := presumed.get(request.request_id)) is not None:
            if guess < cost:
                wrong.append(f"{request.request_id}: presumed {guess}, below its truth {cost}")
        elif request.usage is not None:
            served += 1
            used = (request.usage.input_tokens, request.usage.output_tokens, request.usage.cached_tokens)
            truth[request.user] = truth[request.user].plus(Account(cost, 1, *used))
        elif request.status >= 400:
            truth[request.user] = truth[request.user].plus(Account(0, 1))
    wrong += [
        f"{key}: provider {tuple(truth[key])}, database {tuple(known[key])}"
        for key in keys
        if truth.get(key, NOTHING) != known.get(key, NOTHING)
    ]
    return served, len(presumed), wrong


def journal(path: Path) -> Iterator[ServedRequest]:
    """What the provider wrote down, one by one."""
    decoder = msgspec.json.Decoder(ServedRequest)
    with path.open("rb") as lines:
        yield from map(decoder.decode, lines)


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """One row. A round is a minute."""
    with servers() as (folder, redis, postgres):
        found = asyncio.run(soak(folder, redis, postgres, seed, rounds))
    before, after = (value / 2**20 for value in found.memory)
    most, rest = found.files
    notes = (
        f"memory {before:.0f} MiB in the second quarter, {after:.0f} in the last; {most} open files under load, "
        f"{rest} at rest; Redis killed {found.restarts} times; {found.failed:,} steady requests failed; "
        f"awkward answers {dict(sorted(found.statuses.items()))}"
    )
    yield Outcome(
        "one gateway, everything on",
        found.minutes,
        f"{found.served:,} requests served, {found.served / found.minutes / 60:,.0f}/s, {found.presumed:,} presumed",
        len(found.differences),
        "; ".join((*found.differences[:3], notes)),
    )
