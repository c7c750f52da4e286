"""A service that charges a list of usages under idempotency keys, over and over, until it is killed."""

import asyncio
import os
import sys

from tollkeeper import BillingCache
from tollkeeper.observability.logging import configure


async def main() -> None:
    configure("error", "json")
    data_dir, redis_url, database_url, key, first, last = sys.argv[1:]
    cache = BillingCache(
        redis_url=redis_url or None, database_url=database_url, data_dir=data_dir, sync_interval=0.05
    )
    async with cache as billing:
        os.write(1, b"ready\n")
        while True:
            usages = [(f"0.{n:09d}", f"charge {n}") for n in range(int(first), int(last))]
            await asyncio.gather(*(billing.add_usage(key, usd, idempotency_key=name) for usd, name in usages))


if __name__ == "__main__":
    asyncio.run(main())
