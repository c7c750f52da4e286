"""A gateway's producer that is killed: 100 records in Redis, 100 in the spool, 7 in its memory.

    python -m tests.logs.produce_and_die <redis url> <spool root>

Says *brought*, waits until Redis is away, says *spooled* and dies by SIGKILL.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.logs.conftest import make_pipeline, make_record, until
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.sinks import open_store
from tollkeeper.observability.logging import configure


async def main(url: str, spool: Path) -> None:
    configure("error", "json")  # to standard error
    client = RedisClient(url=url, read_timeout_s=1.0)
    await client.start()
    store = open_store((spool.parent / "unused").as_uri(), 5.0)
    pipeline = make_pipeline(store, "dying", client=client, spool_root=spool, ship=False)
    await pipeline.start()
    for i in range(100):
        pipeline.put(make_record(i))
    await pipeline._producer.flush()
    print("brought", flush=True)
    await until(lambda: client.state != "up")
    for i in range(100):
        pipeline.put(make_record(i))
    await until(lambda: pipeline.stats().spooled_bytes > 0 and pipeline.stats().pending == 0)
    for i in range(7):
        pipeline.put(make_record(i))
    print("spooled", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
