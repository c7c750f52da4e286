"""Whole gateways with Redis: one is killed, the other ships what it left, and the proof covers both."""

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.test_worker import proof
from tests.logs.conftest import own_redis
from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import RedisServer

__all__ = ["own_redis"]
REQUESTS = 30


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[SimulatorProcess]:
    process = SimulatorProcess(tmp_path)
    yield process
    process.stop()


def gateway(folder: Path, simulator: SimulatorProcess, redis: RedisServer, name: str) -> GatewayProcess:
    environ = {
        "REDIS_URL": redis.url,
        "DATABASE_URL": f"sqlite:///{folder / 'tollkeeper.db'}",
        "LOG_STORE_URL": (folder / "logs").as_uri(),
    }
    return GatewayProcess(folder / name, simulator.url, environ)


def ask(gateway: GatewayProcess, secret: str) -> None:
    request = urllib.request.Request(
        f"{gateway.url}/v1/chat/completions",
        data=json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}).encode(),
        headers={"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200


async def test_a_killed_gateways_records_are_shipped_by_another(
    own_redis: RedisServer, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    """It is killed right after its last answer; what it had brought to Redis is delivered, and nothing twice."""
    first = gateway(tmp_path, simulator, own_redis, "first")
    try:
        created = first.admin("POST", "/keys", {"name": "one"})
        secret = str(created["secret"])
        for _ in range(REQUESTS):
            await asyncio.to_thread(ask, first, secret)
        await asyncio.sleep(0.05)  # the last record is brought on the next turn of its loop
        os.kill(first.process.pid, signal.SIGKILL)
        second = gateway(tmp_path, simulator, own_redis, "second")
        try:
            for _ in range(REQUESTS):
                await asyncio.to_thread(ask, second, secret)
        finally:
            second.stop()
    finally:
        first.kill()
    code, found = await proof(tmp_path, own_redis.url)
    assert (code, found["complete"], found["records"]) == (0, True, 2 * REQUESTS)
    assert len(found["producers"]) == 2  # type: ignore[arg-type]
