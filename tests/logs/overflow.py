"""Overflow: far more records than the bound while the store is away; then it comes back.

Shows that memory stays flat in the gateway and in Redis, that drops are counted exactly and told with their ranges,
that the newest records are kept, and that everything pending arrives once the store is back.

    python -m tests.logs.overflow [records] [bound]
"""

import asyncio
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.logs.conftest import make_pipeline, make_record
from tests.logs.faulty_proxy import Fault, FaultyProxy
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server, start_moto
from tollkeeper.domain.log_account import ProducerReport, count
from tollkeeper.domain.log_queue import Bounds
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs import shipper
from tollkeeper.logs.queues import RedisQueue
from tollkeeper.logs.sinks import open_store
from tollkeeper.logs.verify import verify
from tollkeeper.observability.logging import configure

TICK_RECORDS = 50
"""Produced between two turns of the loop."""
OBJECT_RECORDS = 10_000


class Result(msgspec.Struct):
    """What happened, in records, bytes and seconds."""

    report: ProducerReport
    complete: bool
    dropped: int
    kept: int
    redis_full_bytes: int
    redis_peak_bytes: int
    process_full_bytes: int
    process_peak_bytes: int
    produce_s: float
    worst_turn_s: float
    ship_s: float


async def overflow(records: int, bound: int, redis: RedisServer, s3: S3Server, folder: Path) -> Result:
    """Fill once, then flood with the rest, the store away all the time; then let it come back."""
    url = s3.url()
    async with FaultyProxy(s3.port) as proxy, RedisClient(url=redis.url, read_timeout_s=5.0) as client:
        proxy.fault = Fault.ERROR_503
        store = open_store(url, 10.0, {**s3.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"})
        pipeline = make_pipeline(
            store,
            "gw",
            client=client,
            spool_root=folder / "spool",
            records_max=bound,
            object_records_max=min(OBJECT_RECORDS, bound // 10),
            timeout_s=10.0,
        )
        await pipeline.start()
        worst_s = 0.0

        async def produce(number: int) -> None:
            nonlocal worst_s
            for i in range(number):
                pipeline.put(make_record(i))
                if i % TICK_RECORDS == TICK_RECORDS - 1:
                    begun = time.perf_counter()
                    await asyncio.sleep(0)
                    worst_s = max(worst_s, time.perf_counter() - begun)
            await pipeline._producer.flush()

        await produce(bound)
        full = memory(redis), peak_bytes()
        begun = time.perf_counter()
        peak = 0
        for _ in range(10):
            await produce((records - bound) // 10)
            peak = max(peak, memory(redis))
        produce_s = time.perf_counter() - begun
        flooded = peak_bytes()
        stats = pipeline.stats()
        proxy.fault = Fault.NONE
        begun = time.perf_counter()
        queue = RedisQueue(client, "judge", Bounds())
        while (await queue.stats()).size:
            await asyncio.sleep(0.05)
        ship_s = time.perf_counter() - begun
        await pipeline.stop()
        report = await verify(open_store(url, 10.0, s3.environ), {"gw": records}, [queue])
        of_gateway = report.producers["gw"]
        return Result(
            report=of_gateway,
            complete=report.complete,
            dropped=stats.dropped,
            kept=count(((records - bound + 1, records),)),
            redis_full_bytes=full[0],
            redis_peak_bytes=peak,
            process_full_bytes=full[1],
            process_peak_bytes=flooded,
            produce_s=produce_s,
            worst_turn_s=worst_s,
            ship_s=ship_s,
        )


def memory(redis: RedisServer) -> int:
    """Bytes that Redis uses."""
    found = re.search(rb"used_memory:(\d+)", redis.command("INFO", "memory"))
    assert found is not None
    return int(found[1])


def peak_bytes() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """One run at full size."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    bound = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    configure("error", "json")
    shipper.BACKOFF_MAX_S = 2.0  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="tk-") as name:
        redis = RedisServer(Path(name))
        redis.start()
        s3 = start_moto()
        try:
            result = asyncio.run(overflow(records, bound, redis, s3, Path(name)))
        finally:
            redis.stop()
            s3.kill()
    report = result.report
    print(
        f"{records} records into {bound}: dropped {result.dropped} = {list(report.dropped)}, "
        f"delivered {report.records}; "
        f"Redis {result.redis_full_bytes >> 20} MiB full, {result.redis_peak_bytes >> 20} at most; gateway "
        f"{result.process_full_bytes >> 20} MiB, {result.process_peak_bytes >> 20} at most; "
        f"{result.produce_s:.1f} s to produce, slowest turn of the loop {result.worst_turn_s * 1000:.0f} ms; "
        f"{result.ship_s:.1f} s to ship what was kept"
    )
    exact = result.complete and result.dropped + report.records == records == report.last
    return 0 if exact and report.records == bound and count(report.dropped) == records - bound else 1


if __name__ == "__main__":
    sys.exit(main())
