"""Random schedules through the scripts on a real Redis, the scripts under Lua here, their Python twin and oracles.

A round is `SCHEDULES` schedules of each kind. The tests play the same kinds with fewer; what differs is made short by
Hypothesis and printed. Seeds are fixed, so a campaign plays the same schedules again.
"""

import asyncio
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.campaigns import Outcome
from tests.governance.limiter_trials import BucketTrial, WindowTrial, bucket_moves, window_moves
from tests.governance.lua_redis import LuaClient, LuaRedis
from tests.governance.script_trials import admissions, play_admission, schedules, togethers
from tests.governance.test_oracle import anywhere, buckets, play_oracle, play_pair, uncorrected, windows
from tests.governance.test_twin import START_US, Pair, moves, policies, principal, together
from tests.servers.redis import RedisServer
from tollkeeper import RedisClient
from tollkeeper.domain.policy import Policy, TokenBucket, Unit
from tollkeeper.governance.limit_stores import MemoryLimits, RedisLimits
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.settings import StoreSettings

QUESTION: Final = "Do scripts on Redis, scripts under Lua, their twin and brute-force oracles decide alike?"
SCHEDULES: Final = 100
FLUSH_EVERY: Final = 500
NEVER_S: Final = 1e6

names = itertools.count()


class Kind(NamedTuple):
    """One kind of schedule. The schedule is the last of an example's lists."""

    name: str
    examples: st.SearchStrategy[Any]
    play: Callable[["Bench", Any], Any]


class Bench:
    """A Redis with connections that last, and a Lua."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.lua, self.played = server, LuaRedis(lambda: START_US), 0

    async def start(self) -> None:
        self.client = RedisClient(url=self.server.url)
        self.store = RedisStore(StoreSettings(redis_url=self.server.url))
        await self.client.start()
        await self.store.start()

    async def stop(self) -> None:
        await self.client.stop()
        await self.store.stop()

    def fresh(self) -> str:
        """A name that nobody has used on this Redis."""
        self.played += 1
        if self.played % FLUSH_EVERY == 0:
            self.server.command("FLUSHALL")
        return f"x{next(names)}"

    def limits(self) -> list[Callable[[Callable[[], int]], Any]]:
        """The limiters' stores: twin, Lua, Redis."""

        def under_lua(now_us: Callable[[], int]) -> RedisLimits:
            self.lua.begin(now_us)
            return RedisLimits(LuaClient(self.lua), deadline_s=NEVER_S)

        return [
            MemoryLimits,
            under_lua,
            lambda now_us: RedisLimits(self.client, deadline_s=NEVER_S, time_us=now_us),
        ]


async def _window(bench: Bench, example: tuple[int, list[Any]]) -> None:
    window_us, schedule = example
    trial = WindowTrial(bench.limits(), window_us, bench.fresh())
    for move in schedule:
        await trial.step(move)


async def _bucket(bench: Bench, example: tuple[int, list[Any]]) -> None:
    trial = BucketTrial(bench.limits(), bench.fresh())
    for move in example[-1]:
        await trial.step(move)


async def _oracle_lua(bench: Bench, example: tuple[Policy, Policy, list[Any]]) -> None:
    await play_oracle(bench.lua, *example)


async def _oracle_redis(bench: Bench, example: tuple[Policy, Policy, list[Any]]) -> None:
    key, organisation, schedule = example
    who = principal(f"org_{bench.fresh()}", key, None, organisation)
    await play_pair(Pair(bench.store, who), key, organisation, schedule)


async def _tree(bench: Bench, example: Any) -> None:
    await play_admission(bench.lua, example)


async def _redis(bench: Bench, example: tuple[Policy, Policy | None, Policy | None, list[Any]]) -> None:
    key, team, organisation, schedule = example
    pair = Pair(bench.store, principal(f"org_{bench.fresh()}", key, team, organisation))
    await pair.on_seed(0, 7)
    for move in schedule:
        await pair.step(move)
    await pair.on_state()


slow_buckets = st.builds(TokenBucket, st.sampled_from(Unit), st.sampled_from([1, 2]), st.sampled_from([1, 7, 40]))
"""Redis forgets a bucket by its own clock, which tests cannot set: none that is full soon."""
bucketless = policies.map(lambda policy: msgspec.structs.replace(policy, buckets=()))
"""For the same reason, where times are such that a bucket may be a microsecond from being full."""


def _limited(of: st.SearchStrategy[TokenBucket], most: int = 2) -> st.SearchStrategy[Policy]:
    return st.builds(
        Policy, windows=st.lists(windows, max_size=3).map(tuple), buckets=st.lists(of, max_size=most).map(tuple)
    )


def _oracles(
    limited: st.SearchStrategy[Policy], of: st.SearchStrategy[Any]
) -> st.SearchStrategy[tuple[Policy, Policy, list[Any]]]:
    return st.tuples(limited, limited, schedules(of, 5))


_corrected = st.one_of(anywhere, anywhere, anywhere, st.just(("reset",)))
KINDS: Final = (
    Kind(
        "sliding window: Redis, Lua, twin, oracle",
        st.tuples(st.sampled_from([60_000_000, 7_000_001]), schedules(window_moves, 5)),
        _window,
    ),
    Kind("token bucket: Redis, Lua, twin, oracle", st.tuples(st.just(0), schedules(bucket_moves(1), 5)), _bucket),
    Kind(
        "windows and buckets, clocks set: Lua, twin, oracles",
        _oracles(_limited(buckets), uncorrected),
        _oracle_lua,
    ),
    Kind(
        "windows and buckets, clocks set: Redis, twin, oracles",
        _oracles(_limited(slow_buckets), uncorrected),
        _oracle_redis,
    ),
    Kind(
        "the same with settlements, voids, resets: Lua, twin, oracles",
        _oracles(_limited(buckets), _corrected),
        _oracle_lua,
    ),
    Kind(
        "windows with settlements, voids, resets: Redis, twin, oracles",
        _oracles(_limited(slow_buckets, 0), _corrected),
        _oracle_redis,
    ),
    Kind("a tree and all that befalls it: Lua, twin, each stored field", admissions(5), _tree),
    Kind("settlements that come together: Lua, twin, each stored field", togethers(1), _tree),
    Kind(
        "a tree without buckets and all that befalls it: Redis, twin",
        st.tuples(bucketless, st.none() | bucketless, st.none() | bucketless, schedules(moves | together, 5)),
        _redis,
    ),
)


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """Every kind."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        server = RedisServer(Path(folder))
        server.start()
        bench = Bench(server)
        try:
            runner.run(bench.start())
            for kind in KINDS:
                yield explore(runner, bench, kind, seed, rounds)
            runner.run(bench.stop())
        finally:
            server.stop()


def explore(runner: asyncio.Runner, bench: Bench, kind: Kind, seed: int, rounds: int) -> Outcome:
    """The schedules of one kind; those that Hypothesis tries to make a difference short are counted, too."""
    played = steps = 0

    @seeded(seed)
    @settings(
        max_examples=SCHEDULES * rounds,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(kind.examples)
    def search(example: Any) -> None:
        nonlocal played, steps
        played += 1
        steps += len(next(part for part in reversed(example) if isinstance(part, list)))
        runner.run(kind.play(bench, example))

    why = ""
    try:
        search()
    except Exception as error:
        why = " ".join(f"{error!r} {' '.join(getattr(error, '__notes__', []))}".split())
        print(f"{kind.name}: {why}", file=sys.stderr)
    return Outcome(kind.name, rounds, f"{played:,} schedules, {steps:,} steps", int(bool(why)), why[:200])
