"""Eight processes with 64 tasks each on one limit, while Redis, connections and clocks misbehave."""

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.campaigns import Outcome
from tests.campaigns.oracle import Oracle
from tests.campaigns.workers import PATIENCE_S, PROCESSES, ROOT, TASKS, Report, Workers, parts, pool
from tests.servers.redis import RedisCluster, RedisServer, wait_until
from tollkeeper.domain.names import key_part

QUESTION: Final = f"{PROCESSES} processes with {TASKS} tasks each on one limit: is it exact, is any error seen?"
WINDOW_US: Final = 500_000
LIMIT: Final = 400
FROZEN_S: Final = 1.2
FROZEN_DEADLINE_S: Final = 0.4
FROZEN_PAUSE_S: Final = 0.3
ABANDONED_MIN: Final = 64
"""So many asks are sent to a frozen Redis and given up, before it goes on."""
AWAKE_S: Final = 1.0

Fault = Callable[[Sequence[RedisServer], random.Random], int]
"""What happens to servers once: how many it hit."""


class Verdict(NamedTuple):
    """What the oracle says of one round."""

    overfull: int
    unjustified: int
    errors: int
    asked: int
    admitted: int
    fullest: int
    reconnects: int
    unsure: int
    """Admitted with a lost connection between question and answer."""
    losses: int
    """How often the reply of an admission was lost for certain."""
    why: str
    """The commonest error and how often it was seen."""

    @property
    def differences(self) -> int:
        return self.overfull + self.unjustified + self.errors


def flush_scripts(servers: Sequence[RedisServer], rng: random.Random) -> int:
    """Redis forgets all scripts."""
    for server in servers:
        server.command("SCRIPT", "FLUSH")
    time.sleep(rng.uniform(0.02, 0.1))
    return len(servers)


def kill_connections(servers: Sequence[RedisServer], rng: random.Random) -> int:
    """CLIENT KILL for everyone. The next may come when all processes are back: kill after kill is an outage."""
    killed = [int(server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")[1:]) for server in servers]
    time.sleep(rng.uniform(0.25, 0.5))
    wait_until(lambda: min(map(clients, servers)) > PROCESSES, "clients are back", PATIENCE_S)  # and who asks
    return sum(killed)


def clients(server: RedisServer) -> int:
    """How many are connected, this one included."""
    return int(server.info("clients", "connected_clients"))


both = (flush_scripts, kill_connections)


@contextmanager
def struck(faults: Sequence[Fault], servers: Sequence[RedisServer], seed: int) -> Iterator[None]:
    """Now this fault, now that, to the end of the block, and until each has hit something."""
    rng, over, hits = random.Random(f"{seed}/fault"), threading.Event(), [0] * len(faults)

    def repeat() -> None:
        while faults and not (over.is_set() and all(hits)):
            number = rng.randrange(len(faults))
            hits[number] += faults[number](servers, rng)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def judge(reports: Sequence[Report], limit: int, window_us: int) -> Verdict:
    asked = [a for report in reports for a in report.asked]
    failed = [f for report in reports for f in report.failed]
    oracle = Oracle(asked, limit, window_us, failed)
    return Verdict(
        oracle.overfull(),
        oracle.unjustified(),
        len(failed),
        len(asked),
        len(oracle.admitted),
        oracle.fullest(),
        sum(report.reconnects for report in reports),
        sum(a.from_us != a.until_us for a in oracle.admitted),
        sum(report.losses for report in reports),
        "; ".join(f"{count} × {why}" for why, count in Counter(f.why for f in failed).most_common(1)),
    )


def seed_root(servers: Sequence[RedisServer]) -> None:
    """The tree that admissions ask, warm and empty."""
    for server in servers:
        server.command("FLUSHALL")
        server.command("HSET", f"marks:{{{ROOT}}}", "run", "load")  # MOVED where it does not belong


def trial(
    workers: Workers,
    servers: Sequence[RedisServer],
    url: str,
    how: str,
    seed: int,
    *,
    seconds: float = 1.5,
    faults: Sequence[Fault] = (),
    skewed: bool = False,
    lossy: bool = False,
    **more: Any,
) -> Verdict:
    """One round. `skewed`: each process's clock is up to a minute off; `lossy`: replies get lost."""
    rng = random.Random(seed)
    seed_root(servers)
    common: dict[str, Any] = {"url": url, "how": how, "key": f"load{seed}", "limit": LIMIT, "window_us": WINDOW_US}
    chosen = parts(seconds, seed, **common, lossy=str(servers[0].socket) if lossy else "", **more)
    if skewed:
        chosen = [part._replace(skew_s=rng.choice((-60, 60)) * rng.random() ** 0.2) for part in chosen]
    workers.begin(chosen)
    with struck(faults, servers, seed):
        time.sleep(seconds)
    return judge(workers.end(), LIMIT, WINDOW_US)


class Frozen(NamedTuple):
    """What became of the asks that were given up: `ran` must be zero."""

    abandoned: int
    """Sent after the stop, and given up."""
    ran: int
    ids: int
    """Request ids that Redis remembers: all that ran, whoever was told."""
    admitted: int


def frozen(workers: Workers, server: RedisServer, seed: int) -> Frozen:
    """Redis is stopped past every deadline and goes on: does an ask run that was begun after the stop and given up?

    Asked of Redis itself: each request that runs leaves its id.
    """
    server.command("FLUSHALL")
    window_us = 60_000_000
    chosen = parts(
        FROZEN_S,
        seed,
        url=server.url,
        how="limiter",
        key="frozen",
        limit=10**9,
        window_us=window_us,
        deadline_s=FROZEN_DEADLINE_S,
        pause_s=FROZEN_PAUSE_S,  # so that most asks are made after the stop
        tells=True,
    )
    workers.begin(chosen)
    time.sleep(FROZEN_DEADLINE_S)
    server.freeze()
    stopped_s = time.monotonic()
    time.sleep(FROZEN_S)
    workers.given_up(stopped_s, ABANDONED_MIN)
    server.thaw()
    time.sleep(AWAKE_S)
    reports = workers.end()
    given_up = [f for report in reports for f in report.failed if f.sent and f.begun_s > stopped_s]
    keys = [f"ratelimit:{{frozen}}:{window_us}:{key_part(f.request)}" for f in given_up]
    ran = sum(server.command("EXISTS", key) == b":1\r\n" for key in keys)
    ids = int(server.command("DBSIZE")[1:]) - 1
    return Frozen(len(given_up), ran, ids, sum(len(report.asked) for report in reports))


TRIALS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "clocks up to 60 s off": {"skewed": True},
    "SCRIPT FLUSH": {"faults": [flush_scripts]},
    "CLIENT KILL": {"faults": [kill_connections]},
    "flushes and kills, clocks off": {"faults": both, "skewed": True},
    "lost replies": {"lossy": True},
}


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """All trials, through the limiter and through admission, on one Redis and on a cluster."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = stack.enter_context(pool())
        (folder / "one").mkdir()
        server = RedisServer(folder / "one")
        stack.callback(server.stop)
        server.start()
        cluster = RedisCluster(folder)
        stack.callback(cluster.stop)
        cluster.start()
        for where, servers, url in (("Redis", [server], server.url), ("cluster", cluster.servers, cluster.url)):
            for how in ("limiter", "admission"):
                for name, options in TRIALS.items():
                    if where == "cluster" and "lossy" in options:
                        continue  # the nodes tell clients their own addresses, past any proxy
                    found = [
                        trial(workers, servers, url, how, seed * 1000 + number, **options) for number in range(rounds)
                    ]
                    yield summary(f"{how} on {where}: {name}", found)
        frosts = [frozen(workers, server, seed * 1000 + number) for number in range(rounds)]
        notes = f"{sum(f.abandoned for f in frosts):,} sent while it was stopped and given up"
        asked = f"{sum(f.admitted for f in frosts):,} admitted"
        yield Outcome("limiter on Redis: stopped past the deadline", rounds, asked, sum(f.ran for f in frosts), notes)


def summary(name: str, found: Sequence[Verdict]) -> Outcome:
    asked, admitted = sum(v.asked for v in found), sum(v.admitted for v in found)
    fullest, reconnects = max(v.fullest for v in found), sum(v.reconnects for v in found)
    wrong = [f"{sum(getattr(v, n) for v in found)} {n}" for n in ("overfull", "unjustified", "errors")]
    notes = f"fullest window {fullest} of {LIMIT}; {reconnects} reconnections"
    wrong += [v.why for v in found if v.why]
    differences = sum(v.differences for v in found)
    return Outcome(
        name,
        len(found),
        f"{asked:,} asks, {admitted:,} admitted",
        differences,
        f"{notes}; {', '.join(wrong)}" if differences else notes,
    )
