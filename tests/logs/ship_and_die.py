"""A gateway's shipper as a process of its own, that can be told to die by SIGKILL at the worst moments.

    python -m tests.logs.ship_and_die <url> <count> <when: never | before | after | pause>

It puts the same `count` records each time, as a producer that recovered its buffer would, and ships batches of 10.
`before` and `after` (the third object is written, not yet acknowledged) kill; `pause` ships slowly, to be killed.
"""

import asyncio
import os
import signal
import sys

from tests.logs.conftest import make_pipeline, make_record
from tollkeeper.logs.sinks import LogStore, open_store


def die_at(store: LogStore, when: str, nth: int) -> None:
    create = store.create
    calls = 0

    async def create_and_die(path: str, body: bytes, sha256: str) -> bool:
        nonlocal calls
        calls += 1
        if when == "before" and calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        created = await create(path, body, sha256)
        if when == "after" and calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "pause":
            await asyncio.sleep(0.01)
        return created

    store.create = create_and_die  # type: ignore[method-assign]


async def main(url: str, count: int, when: str) -> None:
    store = open_store(url, 5.0)
    if when != "never":
        die_at(store, when, 3)
    pipeline = make_pipeline(store, "crash", object_records_max=10)
    for i in range(count):
        pipeline.put(make_record(i))
    await pipeline.start()
    stats = await pipeline.stop()
    assert stats.pending == 0 and stats.conflicts == 0, stats


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
