"""`tollkeeper worker` and `tollkeeper logs verify` as an operator runs them."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from tests.logs.conftest import make_pipeline, make_record, own_redis
from tests.servers.redis import RedisServer
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
        worker = await tollkeeper(tmp_path, own_redis.url, "worker")
        queue = RedisQueue(client, "judge", Bounds())
        async with asyncio.timeout(START_TIMEOUT_S):
            while (await queue.stats()).size:
                await asyncio.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0
    code, found = await proof(tmp_path, own_redis.url)
    assert (code, found["complete"], found["records"]) == (0, True, 500)
    (victim, *_) = (tmp_path / "logs").rglob("*.jsonl.gz")
    victim.unlink()
    code, found = await proof(tmp_path, own_redis.url)
    assert code == 1 and found["producers"]["gw"]["gaps"]  # type: ignore[index]


async def test_a_worker_without_redis_says_what_to_set(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", "worker", env=environ, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 1 and b"set REDIS_URL" in err
