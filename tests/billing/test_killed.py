"""Promise 4 through the public class: real processes, `kill -9` at any instant, an empty Redis in between."""

import asyncio
import random
import subprocess
import sys
from decimal import Decimal

import pytest

from tests.billing.conftest import Shop, make_key

CHARGES = 150


@pytest.mark.parametrize("seed", [5])
async def test_killed_services_charge_each_usage_once(shop: Shop, seed: int) -> None:
    """Two services (one, in memory) charge overlapping lists under idempotency keys and are killed, again and again;
    in the end every usage that any of them was told of is repeated, and the database has each exactly once."""
    rng = random.Random(seed)
    shop.now_us = 0
    maker = await shop.open("maker")
    key = await make_key(maker)
    database_url = maker.settings.database_url
    await maker.shutdown()
    shop.open_ones.clear()
    url = shop.redis.url if shop.redis else ""
    lists = [("a", 1, CHARGES)] if shop.redis is None else [("a", 1, 100), ("b", 50, CHARGES)]
    for _ in range(3):
        children = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.billing.killed_child", str(shop.folder / disk)),
                    *(url, database_url, key, str(first), str(last)),
                ],
                stdout=subprocess.PIPE,
            )
            for disk, first, last in lists
        ]
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        await asyncio.sleep(rng.random() * 0.3)
        if rng.random() < 0.5:
            shop.forget_all()
            await asyncio.sleep(rng.random() * 0.1)
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
    for disk, first, last in lists:
        cache = await shop.open(disk)
        for start in range(first, last, 30):
            some = range(start, min(last, start + 30))
            await asyncio.gather(
                *(cache.add_usage(key, Decimal(n).scaleb(-9), idempotency_key=f"charge {n}") for n in some)
            )
        assert await cache._accounting.ledger.flush(10)
        await cache.sync()
    assert cache._database is not None
    months = await cache._database.spend.monthly_usage(key=key)
    assert sum(row.cost_nano for row in months) == sum(range(1, CHARGES))
    assert sum(row.requests for row in months) == CHARGES - 1
