"""A producer that spends until it is killed. What it did is written to standard output before and after each step."""

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from tests.governance.parts import Clock, Parts, budget, one_key
from tollkeeper.domain.admission import Grant
from tollkeeper.domain.usage import Usage
from tollkeeper.observability.logging import configure


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def one(parts: Parts, number: int, rng: random.Random) -> None:
    attempt = f"{parts.ledger.producer}r{number}.1"
    grant = await parts.admit(one_key("org_crash", budget(10**15)), attempt, hold=1000)
    assert isinstance(grant, Grant)
    if rng.random() < 0.1:
        parts.ledger.void(grant)
        return
    tell("hold", attempt, 1000)  # told first: if we die now it was perhaps not dispatched
    parts.ledger.dispatched(grant)
    await asyncio.sleep(rng.random() * 0.004)
    cost = rng.randint(1, 1000)
    tell("settling", attempt, cost)
    parts.ledger.settle(grant, cost, Usage(input_tokens=3, output_tokens=2))
    tell("settled", attempt, cost)


async def main() -> None:
    configure("error", "json")
    clock = Clock(time.time_ns() // 1000)
    parts = await Parts.start(Path(sys.argv[1]), sys.argv[2] or None, clock)
    rng, running, number = random.Random(int(sys.argv[3])), set[asyncio.Task[None]](), 0
    tell("ready", parts.ledger.producer)
    syncing = asyncio.create_task(sync_often(parts))
    while not syncing.done():
        number += 1
        task = asyncio.create_task(one(parts, number, rng))
        running.add(task)
        task.add_done_callback(running.discard)
        if len(running) >= 20:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


async def sync_often(parts: Parts) -> None:
    while True:
        await asyncio.sleep(0.03)
        await parts.sync.sync_once()


asyncio.run(main())
