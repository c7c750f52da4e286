"""Eight processes with 64 tasks each on one limit: a slice of `make campaign`, all faults at once.

Judged from outside by an oracle that knows Redis' time and the weight of every admitted ask, and nothing else.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.failover import failover
from tests.campaigns.load import LIMIT, both, frozen, trial
from tests.campaigns.oracle import Oracle
from tests.campaigns.workers import LOSSES, PROCESSES, Asked, Failed, Workers, pool
from tests.servers.redis import RedisCluster, RedisServer, SentinelGroup


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with pool() as made:
        yield made


@pytest.mark.parametrize("how", ["limiter", "admission"])
def test_exact_on_one_redis(workers: Workers, own_redis: RedisServer, how: str) -> None:
    """Clocks a minute off, scripts flushed, connections killed, replies lost: no window above the limit, no refusal
    while there is room, and no error, since asking again by id avoids each."""
    verdict = trial(workers, [own_redis], own_redis.url, how, 1, faults=both, skewed=True, lossy=True)
    assert verdict.differences == 0, verdict
    assert verdict.losses == PROCESSES * LOSSES and verdict.unsure >= PROCESSES, verdict
    assert verdict.reconnects >= verdict.losses and verdict.admitted >= LIMIT // 5, verdict


@pytest.mark.parametrize("how", ["limiter", "admission"])
def test_exact_on_a_cluster(workers: Workers, redis_cluster: RedisCluster, how: str) -> None:
    """The same on three primaries."""
    verdict = trial(workers, redis_cluster.servers, redis_cluster.url, how, 2, faults=both, skewed=True)
    assert verdict.differences == 0, verdict
    assert verdict.admitted >= LIMIT // 5 and verdict.reconnects > 0, verdict


def test_a_frozen_redis_runs_nothing_abandoned(workers: Workers, own_redis: RedisServer) -> None:
    """Stopped past every deadline and woken: none of the asks that were given up meanwhile takes effect."""
    found = frozen(workers, own_redis, 3)
    assert found.ran == 0 and found.abandoned > 50, found
    assert found.ids >= found.admitted > 500, found


def test_a_failover_forgets_no_more_than_was_not_replicated(workers: Workers, tmp_path: Path) -> None:
    """The primary is cut off from its replica and killed under load; its append-only file tells what it had."""
    group = SentinelGroup(tmp_path, aof=True)
    try:
        group.start()
        found = failover(workers, group, 4, cut_off_s=0.2)
    finally:
        group.stop()
    assert found.forgotten <= found.unreplicated and found.admitted > 500, found


def ask(at_us: int, weight: int = 1, *, admitted: bool = True, from_us: int | None = None) -> Asked:
    return Asked(admitted, at_us if from_us is None else from_us, at_us, weight, 0.0, 0)


def test_the_oracle_sees_what_is_wrong() -> None:
    """One weight too many in a window wherever it starts, and a refusal while there was room."""
    window_us = 6_000_000
    exact = [ask(1_000, 2), ask(3_000_000), ask(6_001_000, 2), ask(9_000_000, 1)]
    assert Oracle(exact, 3, window_us).overfull() == 0 and Oracle(exact, 3, window_us).fullest() == 3
    assert Oracle([*exact, ask(5_999_999)], 3, window_us).overfull() == 1
    assert Oracle([*exact, ask(7_000_000, from_us=2_000)], 3, window_us).overfull() == 0, "it may have been before"
    assert Oracle([*exact, ask(8_999_000, from_us=6_002_000)], 3, window_us).overfull() == 1, "it was in there"
    refused = ask(6_003_000, admitted=False)
    assert Oracle([*exact, refused], 3, window_us).unjustified() == 0
    assert Oracle([*exact, refused], 4, window_us).unjustified() == 1
    assert Oracle([*exact, refused, ask(6_500_000, from_us=5_000_000)], 4, window_us).unjustified() == 0
    given_up = Failed("r", "no answer", 0.0, sent=True, from_us=6_002_000, weight=1)
    assert Oracle([*exact, refused], 4, window_us, [given_up]).unjustified() == 0, "it may have run"
    assert Oracle([*exact, refused], 4, window_us, [given_up._replace(sent=False)]).unjustified() == 1
    assert Oracle([*exact, refused], 4, window_us, [given_up._replace(from_us=6_003_001)]).unjustified() == 1
