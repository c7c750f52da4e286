"""How much does a failover over-admit? A primary is killed under load and its replica takes over.

Redis replicates behind its answers, so what was admitted and not yet replicated is forgotten: no limiter on a replica
set can be exact then. It must not be more than that, which the dead primary's append-only file tells.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.campaigns import Outcome
from tests.campaigns.workers import PATIENCE_S, PROCESSES, TASKS, Failed, Part, Workers, parts, pool
from tests.servers.redis import RedisServer, SentinelGroup, wait_until
from tollkeeper import RedisClient, SlidingWindowLimiter

QUESTION: Final = f"{PROCESSES} processes with {TASKS} tasks each, and the primary dies: what is admitted twice?"
WINDOW_US: Final = 60_000_000
LIMIT: Final = 10**9
"""Never reached: what counts is what the window knows in the end."""
KILL_S: Final = 0.8
GOES_ON_S: Final = 2.0
"""How long the load runs on the new primary."""
PAUSE_S: Final = 0.02
CUT_OFF_S: Final = 0.2
KEY: Final = "failover"


class Lost(NamedTuple):
    """Weights of one round. Unreplicated: what the dead primary had and its successor has not."""

    forgotten: int
    """Admitted, and not in the window of the new primary."""
    unreplicated: int
    admitted: int
    away_ms: int
    """The longest time in which nobody was answered."""


def usage(server: RedisServer) -> int:
    """What is in the window of one server."""

    async def ask() -> int:
        async with RedisClient(url=server.url) as client:
            return await SlidingWindowLimiter(client, window=WINDOW_US / 1e6).get_current_usage(KEY)

    return asyncio.run(ask())


def failover(workers: Workers, group: SentinelGroup, seed: int, *, cut_off_s: float = 0.0) -> Lost:
    """One round. `cut_off_s`: how long before its death the primary has lost its replica."""
    group.settle()
    primary = group.primary
    replica = next(server for server in group.servers if server is not primary)
    primary.command("FLUSHALL")
    group.settle()
    common: dict[str, Any] = {"url": group.url, "how": "limiter", "key": KEY, "limit": LIMIT, "window_us": WINDOW_US}
    chosen: list[Part] = parts(GOES_ON_S, seed, **common, pause_s=PAUSE_S)
    workers.begin(chosen)
    time.sleep(KILL_S + random.Random(seed).random() * 0.2 - cut_off_s)
    if cut_off_s:
        replica.command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(cut_off_s)
    primary.kill()
    wait_until(lambda: replica.info("replication", "role") == "master", "a new primary", PATIENCE_S)
    time.sleep(GOES_ON_S)
    reports = workers.end()
    asked = [a for report in reports for a in report.asked if a.admitted]
    failed: list[Failed] = [f for report in reports for f in report.failed if f.sent]
    known = usage(replica)
    old = RedisServer(primary.folder, aof=True)
    old.start()
    had = usage(old)
    old.stop()
    old.socket.unlink(missing_ok=True)
    on_new = sum(a.weight for a in asked if a.peer == replica.port)
    admitted = sum(a.weight for a in asked)
    answers = sorted(a.begun_s for a in asked)
    away_s = max(after - before for before, after in pairwise(answers))
    unsure = sum(f.weight for f in failed)  # sent and never answered: perhaps in a window, and admitted to no one
    return Lost(max(0, admitted - known), max(0, had - (known - on_new)) + unsure, admitted, int(away_s * 1000))


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """SIGKILL, with replication as fast as it is, and cut off before."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = stack.enter_context(pool())
        group = SentinelGroup(folder, aof=True)
        stack.callback(group.stop)
        group.start()
        for name, cut_off_s in (
            ("primary killed", 0.0),
            ("cut off from its replica for 0.2 s, then killed", CUT_OFF_S),
        ):
            found = [failover(workers, group, seed * 1000 + number, cut_off_s=cut_off_s) for number in range(rounds)]
            yield summary(name, found)


def summary(name: str, found: Sequence[Lost]) -> Outcome:
    """A round differs if more was forgotten than had not been replicated."""
    twice, most = sum(x.forgotten > 0 for x in found), max(x.forgotten for x in found)
    notes = f"forgotten in {twice} rounds, at most {most}; unreplicated at most "
    notes += f"{max(x.unreplicated for x in found)}; no answer for at most {max(x.away_ms for x in found)} ms"
    more = sum(x.forgotten > x.unreplicated for x in found)
    return Outcome(name, len(found), f"{sum(x.admitted for x in found):,} admitted", more, notes)
