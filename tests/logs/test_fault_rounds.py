"""Promise 5 under fire: a few rounds of the fault campaign, and proof that it would notice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.logs.fault_rounds import DURABLE, play
from tests.logs.shipper_process import Broken
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server

TRIES = 5


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", aof=True, more=DURABLE)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("seed", range(4))
async def test_each_record_is_there_once_whatever_failed(
    seed: int, durable_redis: RedisServer, moto_server: S3Server, rclone_server: S3Server, tmp_path: Path
) -> None:
    outcome = await play(seed, durable_redis, (moto_server, rclone_server)[seed % 2], tmp_path)
    assert outcome.clean, (outcome.events, outcome.report)


@pytest.mark.parametrize("broken", ["random names", "ack before put", "pop before put"])
async def test_a_broken_shipper_is_noticed(
    broken: Broken, durable_redis: RedisServer, moto_server: S3Server, tmp_path: Path
) -> None:
    """The negative controls: without deterministic names, or with an acknowledgement before the object is there, the
    same rounds are not clean."""
    for seed in range(TRIES):
        outcome = await play(seed, durable_redis, moto_server, tmp_path, broken)
        if not outcome.clean:
            found = [
                p for p in outcome.report.producers.values() if (p.doubles if broken == "random names" else p.gaps)
            ]
            assert found
            return
    raise AssertionError(f"{TRIES} rounds with {broken} were clean")
