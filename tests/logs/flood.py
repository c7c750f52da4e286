"""A producer of records as a process of its own, as another gateway on the same queue:

    python -m tests.logs.flood <redis url> <producer> <records> <bound> <records a second>

Prints what it produced and how many its chunks pressed out.
"""

import asyncio
import sys
import time
from pathlib import Path

from tests.logs.conftest import make_pipeline, make_record
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.sinks import open_store
from tollkeeper.observability.logging import configure

TURN_RECORDS = 50


async def flood(url: str, producer: str, records: int, bound: int, rate: float) -> None:
    """Never ships."""
    async with RedisClient(url=url, read_timeout_s=5.0) as client:
        store = open_store((Path.cwd() / "unused").as_uri(), 5.0)
        pipeline = make_pipeline(store, producer, client=client, records_max=bound, ship=False)
        await pipeline.start()
        begun = time.monotonic()
        for i in range(records):
            pipeline.put(make_record(i))
            if i % TURN_RECORDS == TURN_RECORDS - 1:
                ahead_s = i / rate - (time.monotonic() - begun)
                await asyncio.sleep(max(0.0, ahead_s))
                await pipeline._producer.flush()
        stats = await pipeline.stop()
        print(stats.produced, stats.dropped, stats.pending)


if __name__ == "__main__":
    configure("error", "json")
    url, producer, records, bound, rate = sys.argv[1:]
    asyncio.run(flood(url, producer, int(records), int(bound), float(rate)))
