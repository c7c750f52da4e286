"""`tollkeeper worker` and `tollkeeper logs verify` as an operator runs them."""

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.logs.conftest import make_pipeline, make_record, own_redis
from tests.servers.redis import RedisServer, free_port
from tollkeeper.domain.log_queue import Bounds
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.queues import RedisQueue
from tollkeeper.logs.sinks import open_store

__all__ = ["own_redis"]
START_TIMEOUT_S = 30.0


async def tollkeeper(folder: Path, redis_url: str, *words: str) -> asyncio.subprocess.Process:
    environ = {**os.environ, "REDIS_URL": redis_url, "TOLLKEEPER_DATA_DIR": str(folder / "data")}
    environ.update(TOLLKEEPER_DIGEST_KEY="d" * 40, LOG_STORE_URL=(folder / "logs").as_uri())
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", *words, env=environ, cwd=folder, stdout=asyncio.subprocess.PIPE
    )


async def proof(folder: Path, redis_url: str) -> tuple[int, dict[str, object]]:
    process = await tollkeeper(folder, redis_url, "logs", "verify", "--json")
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def test_a_worker_ships_what_gateways_left_and_verify_follows(own_redis: RedisServer, tmp_path: Path) -> None:
    store = open_store((tmp_path / "logs").as_uri(), 5.0)
    async with RedisClient(url=own_redis.url) as client:
        pipeline = make_pipeline(store, "gw", client=client, spool_root=tmp_path / "spool", ship=False)
        await pipeline.start()
        for i in range(500):
            pipeline.put(make_record(i))
        assert (await pipeline.stop()).pending == 0
        code, found = await proof(tmp_path, own_redis.url)
        assert (code, found["records"]) == (0, 0)
        assert found["producers"]["gw"]["pending"] == [[1, 500]]  # type: ignore[index]
        port = free_port()
        worker = await tollkeeper(tmp_path, own_redis.url, "worker", "--port", str(port))
        queue = RedisQueue(client, "judge", Bounds())
        async with asyncio.timeout(START_TIMEOUT_S):
            while (await queue.stats()).size:
                await asyncio.sleep(0.05)
        status, ready = await asyncio.to_thread(ask, port, "/readyz")
        assert (status, json.loads(ready)["checks"].keys()) == (200, {"redis", "log_store"})
        _, metrics = await asyncio.to_thread(ask, port, "/metrics")
        assert "tollkeeper_log_records_delivered_total 500.0" in metrics.splitlines()
        assert (
            "tollkeeper_log_depth " in metrics and 'tollkeeper_redis_servers{client="logs",state="up"} 1.0' in metrics
        )
        assert (await asyncio.to_thread(ask, port, "/v1/models"))[0] == 404
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0
    code, found = await proof(tmp_path, own_redis.url)
    assert (code, found["complete"], found["records"]) == (0, True, 500)
    (victim, *_) = (tmp_path / "logs").rglob("*.jsonl.gz")
    victim.unlink()
    code, found = await proof(tmp_path, own_redis.url)
    assert code == 1 and found["producers"]["gw"]["gaps"]  # type: ignore[index]


async def test_a_worker_whose_redis_is_away_lives_and_is_not_ready(tmp_path: Path) -> None:
    """It says what is missing, and goes on trying."""
    port = free_port()
    worker = await tollkeeper(tmp_path, f"redis://127.0.0.1:{free_port()}", "worker", "--port", str(port))
    async with asyncio.timeout(START_TIMEOUT_S):
        while (await asyncio.to_thread(ask, port, "/healthz"))[0] != 200:
            await asyncio.sleep(0.05)
    status, ready = await asyncio.to_thread(ask, port, "/readyz")
    checks = json.loads(ready)["checks"]
    assert (status, checks["redis"]["ok"], checks["log_store"]["ok"]) == (503, False, True)
    worker.kill()
    await worker.wait()


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


async def test_a_worker_without_redis_says_what_to_set(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", "worker", env=environ, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 1 and b"set REDIS_URL" in err
