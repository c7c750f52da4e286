"""Rounds of faults: gateways produce, shippers carry, and everything around them fails at random.

Each round kills shippers by SIGKILL (after the lease, in the midst of an upload, after the object was written), kills
Redis (with an append-only file) and starts it again, and lets the store answer 500, 503 or 412, late, half, or not at
all. In the end the faults stop, one sound shipper carries what is left, and two judges look at the store: `verify`,
and `census`, which counts every record by itself. Broken shippers are played, too, and must be caught.

    python -m tests.logs.fault_rounds [rounds] [first seed]
"""

import asyncio
import gzip
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.logs import shipper_process
from tests.logs.conftest import make_pipeline, make_record
from tests.logs.faulty_proxy import Fault, FaultyProxy
from tests.logs.shipper_process import Broken, Death, Order
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server, start_moto, start_rclone
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.log_account import VerifyReport
from tollkeeper.domain.log_queue import Bounds
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.logs.queues import RedisQueue
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.verify import verify
from tollkeeper.logs.worker import LogWorker
from tollkeeper.observability.logging import configure
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

T = TypeVar("T")

GATEWAYS = 2
SHIPPERS = 2
RECORDS = 120
"""Of each gateway: twelve objects in all, if nothing goes wrong."""
EVENTS = 5
DURABLE = ("--appendfsync", "always")
"""With `everysec` a Redis whose disk stalls puts even the write to its file off, by up to two seconds, and a kill
then loses what it had acknowledged: 1 round in 100 on a busy machine, and `verify` names what was lost."""
SETTLE_TIMEOUT_S = 30.0
WARM_UP_S = 5.0
DEATHS: tuple[Death, ...] = ("never", "after lease", "before put", "after put")


class Outcome(msgspec.Struct):
    """What the judges found, and what was done."""

    report: VerifyReport
    census: Counter[tuple[str, int]]
    left: int
    """Records that only the last, sound shipper delivered."""
    produced: dict[str, int]
    events: list[str]

    @property
    def clean(self) -> bool:
        """Both judges: each record once. They must agree."""
        once = all(number == 1 for number in self.census.values())
        whole = {(name, n) for name, last in self.produced.items() for n in range(1, last + 1)} == set(self.census)
        verified = self.report.complete and self.report.records == sum(self.produced.values())
        assert verified == (once and whole), "the judges differ"
        return verified


class Round:
    """One round. `broken` shippers all die after every second batch, so that their fault shows."""

    def __init__(self, seed: int, redis: RedisServer, s3: S3Server, folder: Path, broken: Broken | None) -> None:
        self.random = random.Random(f"{seed}-{broken}")
        self.redis, self.s3, self.folder, self.broken = redis, s3, folder, broken
        self.url = s3.url()
        self.processes: list[Any] = []
        self.events: list[str] = []

    async def play(self) -> Outcome:
        async with FaultyProxy(self.s3.port) as proxy, RedisClient(url=self.redis.url, read_timeout_s=1.0) as client:
            self.proxy = proxy
            await patiently(lambda: client.call("FLUSHALL"))
            gateways = [self.gateway(client, n) for n in range(GATEWAYS)]
            for pipeline in gateways:
                await pipeline.start()
            for _ in range(SHIPPERS):
                self.start_shipper()
            try:
                await self.warm_up(client, gateways[0])
                producing = [asyncio.create_task(self.produce(pipeline)) for pipeline in gateways]
                for _ in range(EVENTS):
                    await asyncio.sleep(self.random.uniform(0.05, 0.25))
                    await self.happen()
                await asyncio.gather(*producing)
                self.proxy.fault = Fault.NONE
                await self.settle(client, gateways)
            finally:
                self.end_shippers()
            produced = {pipeline._name: pipeline.stats().produced for pipeline in gateways}
            store = open_store(self.url, 10.0, self.s3.environ)
            report = await patiently(lambda: verify(store, produced, [RedisQueue(client, "judge", Bounds())]))
            return Outcome(report, await census(store), self.left, produced, self.events)

    def gateway(self, client: RedisClient, number: int) -> LogPipeline:
        unused = open_store((self.folder / "unused").as_uri(), 1.0)
        name = f"gw{number}-{self.random.randrange(10**9)}"
        return make_pipeline(unused, name, client=client, spool_root=self.folder / "spool", ship=False)

    async def warm_up(self, client: RedisClient, pipeline: LogPipeline) -> None:
        """Until a shipper is at work, or died of its first batch."""
        pipeline.put(make_record(0))
        queue = RedisQueue(client, "judge", Bounds())
        deadline = time.monotonic() + WARM_UP_S
        while (await patiently(queue.stats)).waiting or not pipeline.stats().produced:
            await asyncio.sleep(0.01)
            if time.monotonic() > deadline:
                return
            self.restart()

    async def produce(self, pipeline: LogPipeline) -> None:
        for i in range(RECORDS):
            pipeline.put(make_record(i, user="x" * self.random.randrange(400)))
            if self.random.random() < 0.2:
                await asyncio.sleep(self.random.uniform(0, 0.05))

    def start_shipper(self) -> None:
        death = self.random.choice(DEATHS) if self.broken is None else _deadly(self.broken)
        environ = {**self.s3.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}"}
        order = Order(self.redis.url, self.url, environ, death, self.random.randint(1, 3), self.broken)
        self.processes.append(shipper_process.start(order))

    async def happen(self) -> None:
        """Something goes wrong; what died is started again."""
        event = self.random.choice(["store", "store", "shipper", "upload", "redis"])
        if event == "store":
            self.proxy.fault = self.random.choice(list(Fault))
            event = f"store {self.proxy.fault}"
            await asyncio.sleep(self.random.uniform(0.05, 0.3))
            self.proxy.fault = Fault.NONE
        elif event == "shipper":
            self.random.choice(self.processes).kill()
        elif event == "upload":
            self.proxy.on_put_body = self.kill_all
            await asyncio.sleep(0.1)
            self.proxy.on_put_body = None
        else:
            self.redis.kill()
            await asyncio.sleep(self.random.uniform(0, 0.2))
            await asyncio.to_thread(self.redis.start)
        self.events.append(event)
        self.restart()

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()

    def restart(self) -> None:
        for process in [p for p in self.processes if not p.is_alive()]:
            self.processes.remove(process)
            self.start_shipper()

    def end_shippers(self) -> None:
        self.kill_all()
        for process in self.processes:
            process.join()

    async def settle(self, client: RedisClient, gateways: list[LogPipeline]) -> None:
        """Gateways stop; what is left is shipped by the shippers of this round, and at last by a sound one."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        for pipeline in gateways:
            while pipeline.stats().spooled_bytes or pipeline.stats().pending:
                assert time.monotonic() < deadline, "the spool was not brought back"
                await asyncio.sleep(0.02)
            stats = await pipeline.stop()
            assert stats.dropped == 0
        await asyncio.sleep(0.3)
        self.end_shippers()
        worker = LogWorker(
            settings=LogSettings(flush_interval_s=0.01, timeout_s=5.0, object_records_max=20, lease_s=5.0),
            url="",
            metrics=Metrics(),
            now_us=lambda: 0,
            client=client,
            store=open_store(self.url, 5.0, self.s3.environ),
        )
        await worker.start()
        while (await patiently(worker.queues[0].stats)).size:
            assert time.monotonic() < deadline, "not everything was shipped"
            await asyncio.sleep(0.05)
        await worker.stop()
        self.left = worker.shipper.delivered


def _deadly(broken: Broken) -> Death:
    return "after put" if broken == "random names" else "before put"


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, once Redis has loaded its file and is back."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            assert time.monotonic() < deadline, "Redis did not come back"
            await asyncio.sleep(0.05)


async def census(store: LogStore) -> Counter[tuple[str, int]]:
    """How often each record is there, counted without any of the code under test but listing and reading."""
    seen: Counter[tuple[str, int]] = Counter()
    async for path in store.list():
        if path.startswith("dt="):
            for line in gzip.decompress(await store.read(path)).splitlines():
                record = msgspec.json.decode(line)
                seen[record["producer"], record["number"]] += 1
    return seen


async def play(seed: int, redis: RedisServer, s3: S3Server, folder: Path, broken: Broken | None = None) -> Outcome:
    """One round in a folder of its own."""
    own = folder / f"round-{seed}-{broken}"
    own.mkdir()
    return await Round(seed, redis, s3, own, broken).play()


def main() -> int:
    """Rounds on both S3 servers in turn; stops at the first that is not clean."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    configure("error", "json")
    with tempfile.TemporaryDirectory(prefix="tk-") as name:
        folder = Path(name)
        (folder / "redis").mkdir()
        (folder / "rclone").mkdir()
        redis = RedisServer(folder / "redis", aof=True, more=DURABLE)
        redis.start()
        servers = [start_moto(), start_rclone(folder / "rclone")]
        happened: Counter[str] = Counter()
        left = 0
        try:
            for seed in range(first, first + rounds):
                outcome = asyncio.run(play(seed, redis, servers[seed % 2], folder))
                happened.update(outcome.events)
                left += outcome.left
                if not outcome.clean:
                    print(f"round {seed}: {outcome.events}: {outcome.report}")
                    return 1
                if seed % 20 == 0:
                    print(f"{seed - first + 1} rounds clean", flush=True)
        finally:
            redis.stop()
            for server in servers:
                server.kill()
    total = rounds * (GATEWAYS * RECORDS + 1)
    print(
        f"{rounds} rounds clean: {total} records, each once, {total - left} shipped amid the faults: {dict(happened)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
