"""Negative controls: one rule of the settlement protocol is taken away, and the judge must notice.

Each rule has the faults that it is there for. The same faults with all rules in place must leave no difference, or a
control would prove nothing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.campaigns import Outcome
from tests.campaigns.fleet import Fleet, Judgement, servers
from tests.campaigns.victim import BROKEN
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

QUESTION: Final = "Does the judge notice when one rule of the protocol is taken away?"
GATEWAYS: Final = 2
CLIENTS: Final = 12
LOAD_S: Final = 0.8
TRIES: Final = 10
"""Bursts of load and faults until the difference must have shown."""
BROKEN_PATIENCE_S: Final = 3.0
SOUND_PATIENCE_S: Final = 60.0
SLOW_SAVE_S: Final = 0.3


async def late_messages(fleet: Fleet, rng: random.Random) -> None:
    """Entries reach Redis after their producer has sent them again."""
    fleet.redis_proxy.hold_back()
    await asyncio.sleep(0.2)
    fleet.redis_proxy.cut()
    await asyncio.sleep(0.5)
    fleet.redis_proxy.release()


async def going_back(fleet: Fleet, rng: random.Random) -> None:
    """Redis comes back with an older state: it is seeded over counters that are there."""
    await fleet.sync_all()
    await asyncio.sleep(0.2)
    fleet.redis.kill()
    fleet.redis.truncate(0.7)
    await asyncio.to_thread(fleet.redis.start)


async def late_saves(fleet: Fleet, rng: random.Random) -> None:
    """Nothing but two sync workers, one of which is held up between reading and writing."""


async def death_between_commits(fleet: Fleet, rng: random.Random) -> None:
    """Gateways are killed while they save, and Redis forgets what they did not save."""
    for gateway in fleet.gateways:
        gateway.kill()
    fleet.redis.command("FLUSHALL")
    for gateway in fleet.gateways:
        gateway.launch()
    for gateway in fleet.gateways:
        await asyncio.to_thread(gateway.wait_until_ready)


async def sudden_death(fleet: Fleet, rng: random.Random) -> None:
    """Gateways are killed with requests in flight."""
    for gateway in fleet.gateways:
        gateway.kill()
        gateway.launch()
    for gateway in fleet.gateways:
        await asyncio.to_thread(gateway.wait_until_ready)


class Control(NamedTuple):
    """The faults that a rule is there for; `slow`: which gateways save late."""

    faults: Callable[[Fleet, random.Random], Awaitable[None]]
    slow: tuple[int, ...] = ()


CONTROLS: Final[dict[str, Control]] = {
    "no mark check": Control(late_messages),
    "seeding adds": Control(going_back),
    "no guard": Control(late_saves, slow=(0,)),
    "two transactions": Control(death_between_commits, slow=(0, 1)),
    "no outbox": Control(sudden_death),
}
assert CONTROLS.keys() == BROKEN.keys()


async def play(
    folder: Path, redis: RedisServer, postgres: PostgresServer, rule: str, seed: int, *, broken: bool
) -> Judgement:
    """Bursts until a difference shows; the last judgement. Sound rules are given the time they need to recover."""
    control, rng = CONTROLS[rule], random.Random(f"{rule}/{seed}")
    environ = {"VICTIM_BROKEN": rule} if broken else {}
    fleet = Fleet(folder, redis, postgres, gateways=GATEWAYS, sync="50ms", environ=environ)
    fleet.environ_of = {n: {"VICTIM_SAVE_S": str(SLOW_SAVE_S)} for n in control.slow}
    await fleet.start()
    try:
        await fleet.make_tree("free")
        await fleet.make_tree("roomy", organisation=10**12, team=10**12, key=10**12)
        found = Judgement(("nothing was played",))
        for _ in range(TRIES if broken else 1):
            over = asyncio.Event()
            loading = asyncio.create_task(fleet.load(rng, over, CLIENTS))
            await asyncio.sleep(LOAD_S)
            await control.faults(fleet, rng)
            await asyncio.sleep(LOAD_S)
            over.set()
            await loading
            found = await fleet.judge(BROKEN_PATIENCE_S if broken else SOUND_PATIENCE_S)
            if noticed(found):
                break
        return found
    finally:
        await fleet.close()


def noticed(found: Judgement) -> bool:
    """Whether the money differs; any other difference may only be a fleet too busy to come to rest."""
    return any("provider" in difference for difference in found.differences)


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """A difference here is a broken rule that nobody noticed, or a sound one that was accused."""
    with servers() as (folder, redis, postgres):
        for rule in CONTROLS:
            for broken in (True, False):
                wrong, notes = 0, ""
                for number in range(rounds):
                    own = folder / f"{rule}-{broken}-{number}".replace(" ", "-")
                    own.mkdir()
                    found = asyncio.run(play(own, redis, postgres, rule, seed * 1000 + number, broken=broken))
                    wrong += (not noticed(found)) if broken else bool(found.differences)
                    notes = found.differences[0] if found.differences else notes
                yield Outcome(f"{rule}: {'taken away' if broken else 'in place'}", rounds, "", wrong, notes)
