"""Overflow of a gateway's log queue, as operators and clients see it: bodies go first, then the oldest records."""

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.logs.faulty_proxy import Fault, FaultyProxy
from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import RedisServer, own_redis
from tests.servers.s3 import S3Server, moto_server
from tollkeeper.domain.log_account import count
from tollkeeper.logs import objects
from tollkeeper.logs.encoding import SHED
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.verify import verify

__all__ = ["moto_server", "own_redis"]

LOGS = """
[logs]
bodies = "full"
buffer_bytes_max = 80000
flush_interval_s = 0.1
"""
ASKED = "x" * 4_000


class Flooded:
    """A gateway whose store is away from the first request on."""

    def __init__(self, gateway: GatewayProcess, proxy: FaultyProxy, store: LogStore) -> None:
        self.gateway, self.proxy, self.store = gateway, proxy, store
        self.secret = str(gateway.admin("POST", "/keys", {"name": "app"})["secret"])
        self.asked = 0

    async def ask(self, count: int) -> None:
        """One after the other, so that each is a chunk of its own."""
        for _ in range(count):
            await asyncio.to_thread(self._post)
        self.asked += count

    def _post(self) -> None:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 8}
        request = urllib.request.Request(
            f"{self.gateway.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.secret}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200 and answer.read()

    async def stats(self) -> Any:
        """Once every record asked for is numbered and in the queue, and the picture of the queue is young enough."""
        while True:
            stats: Any = await asyncio.to_thread(self.gateway.admin, "GET", "/logs/stats")
            queue = stats["queue"]
            if stats["produced"] == self.asked == queue["records"] + queue["dropped"]:
                return stats
            await asyncio.sleep(0.05)

    def metric(self, name: str) -> int:
        found = re.search(rf"^{name} (\d+)", self.gateway.get("/metrics").decode(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    async def delivered(self) -> list[Any]:
        """The store comes back, the gateway stops: all records, by number."""
        self.proxy.fault = Fault.NONE
        assert await asyncio.to_thread(self.gateway.stop) == 0
        records: list[Any] = []
        async for path in self.store.list():
            if objects.is_log_object(path):
                lines = objects.records_in(await self.store.read(path))
                records += map(json.loads, (lines or b"").splitlines())
        return sorted(records, key=lambda record: record["number"])


@pytest.fixture(params=["memory", "redis"])
async def flooded(request: pytest.FixtureRequest, tmp_path: Path, moto_server: S3Server) -> AsyncIterator[Flooded]:
    async with FaultyProxy(moto_server.port) as proxy:
        proxy.fault = Fault.ERROR_503
        url = moto_server.url()
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        environ = {**moto_server.environ, **endpoint, "LOG_STORE_URL": url}
        if request.param == "redis":
            redis: RedisServer = request.getfixturevalue("own_redis")
            environ["REDIS_URL"] = redis.url
        simulator = await asyncio.to_thread(SimulatorProcess, tmp_path)
        gateway = await asyncio.to_thread(GatewayProcess, tmp_path / "gateway", simulator.url, environ, LOGS)
        try:
            store = open_store(url, 10.0, moto_server.environ)
            yield await asyncio.to_thread(Flooded, gateway, proxy, store)
        finally:
            gateway.kill()
            simulator.kill()


async def test_an_overflow_sheds_bodies_first_and_keeps_every_record(flooded: Flooded) -> None:
    await flooded.ask(39)
    await flooded.stats()
    await flooded.ask(1)  # in a chunk of its own: a chunk sheds the bodies of all its records
    stats = await flooded.stats()
    shed = stats["queue"]["bodies_shed"]
    assert (stats["dropped"], stats["queue"]["dropped"]) == (0, 0) and 10 <= shed < 40
    assert stats["queue"]["bytes"] <= 80_000
    assert flooded.metric("tollkeeper_log_bodies_shed_total") == shed
    records = await flooded.delivered()
    assert [record["number"] for record in records] == list(range(1, 41))
    without = [record["number"] for record in records if record["bodies_omitted"] == SHED]
    assert len(without) == shed
    # from the oldest on, around what was leased, a run of records: it keeps its bodies, and may fill the bound so far
    # that the newest has to give its own
    assert sum(b != a + 1 for a, b in pairwise(without)) <= 1
    for record in records:
        assert record["key_name"] == "app" and record["status"] == 200 and record["cost_nano"] > 0
        if record["number"] in without:
            assert (record["request_body"], record["response_body"]) == (None, None)
        else:
            assert ASKED in record["request_body"] and record["response_body"] and not record["bodies_omitted"]
    assert (await verify(flooded.store)).complete


async def test_what_does_not_fit_without_bodies_is_dropped_from_the_oldest_on_and_named(flooded: Flooded) -> None:
    await flooded.ask(150)
    stats = await flooded.stats()
    dropped = stats["queue"]["dropped"]
    assert dropped > 0 and stats["queue"]["bytes"] <= 80_000
    assert flooded.metric("tollkeeper_log_records_dropped_total") == stats["dropped"] == dropped
    records = await flooded.delivered()
    report = await verify(flooded.store)
    (producer,) = report.producers.values()
    assert report.complete and (producer.last, producer.records) == (150, 150 - dropped)
    # from the oldest on, around at most one batch that was leased meanwhile: what is leased is never dropped
    assert count(producer.dropped) == dropped and len(producer.dropped) <= 2
    kept = [n for n in range(1, 151) if not any(first <= n <= last for first, last in producer.dropped)]
    assert [record["number"] for record in records] == kept
    assert producer.dropped[-1][1] < 150, "the newest is kept"
