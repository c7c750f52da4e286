"""One contract suite: memory with SQLite, Redis with PostgreSQL, Cluster with SQLite; the clock is passed in."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.postgres import PostgresServer, postgres
from tests.servers.redis import RedisCluster, RedisServer, redis_cluster, redis_server
from tollkeeper import BillingCache
from tollkeeper.app.billing import wall_clock_us
from tollkeeper.domain.accounts import KeyChange, NewKey
from tollkeeper.domain.money import NANO_PER_USD
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import UNLIMITED, Budget, Policy
from tollkeeper.governance.memory import MemoryStore
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.storage.database import Database

__all__ = ["postgres", "redis_cluster", "redis_server"]

NOW_US = 4_102_444_800_000_000 + 14 * 86_400_000_000
"""15 January 2100: far enough in the future that Redis' own clock expires nothing."""
DAY_US = 86_400_000_000
DIGEST_KEY = "d" * 64


def usd_budget(usd: str, period: Period = Period.MONTH, **more: object) -> Budget:
    return Budget(int(float(usd) * NANO_PER_USD), period, **more)  # type: ignore[arg-type]


class Shop:
    """Where billing caches are opened: one database, one store, one clock. Its keys are made through `accounts`."""

    def __init__(self, folder: Path, redis: RedisServer | RedisCluster | None, database_url: str | None) -> None:
        self.folder, self.redis, self.database_url = folder, redis, database_url
        self.now_us = NOW_US
        self.open_ones: list[BillingCache] = []
        self.webhook: dict[str, Any] = {}

    async def open(self, disk: str = "a") -> BillingCache:
        """A process of its own, as far as store, database and outbox can tell. `disk` names its data directory."""
        cache = BillingCache(
            redis_url=self.redis.url if self.redis else None,
            database_url=self.database_url or f"sqlite:///{self.folder / 'accounts.db'}",
            data_dir=self.folder / disk,
            digest_key=DIGEST_KEY,
            **self.webhook,
            now_us=lambda: self.now_us or wall_clock_us(),
        )
        await cache.start()
        cache._accounting.ledger._timeout_us = 10_000_000  # a busy machine is no outage
        self.open_ones.append(cache)
        self._set(cache)
        return cache

    def set_clock(self, now_us: int) -> None:
        """For the store's scripts too."""
        self.now_us = now_us
        for cache in self.open_ones:
            self._set(cache)

    def _set(self, cache: BillingCache) -> None:
        store = cache._accounting.store
        if isinstance(store, RedisStore):
            store.time_us = self.now_us

    def forget_all(self) -> None:
        """Redis, if there is one, loses everything."""
        if self.redis is not None:
            for server in [self.redis] if isinstance(self.redis, RedisServer) else self.redis.servers:
                server.command("FLUSHALL")

    def forget(self, cache: BillingCache) -> None:
        """The store loses everything."""
        self.forget_all()
        if self.redis is None:
            store = cache._accounting.store
            assert isinstance(store, MemoryStore)
            store._trees.clear()

    async def crash(self, cache: BillingCache) -> None:
        """As `kill -9`: nothing more is sent or written; what the kernel has, stays. In memory the state is gone."""
        ledger, sync = cache._accounting.ledger, cache._accounting.sync
        assert ledger.watch is not None
        tasks = [*ledger._tasks, *ledger.watch._tasks, cache._principals._task, sync._task]
        if cache._accounting.webhooks is not None:
            tasks.append(cache._accounting.webhooks._task)
        for task in tasks:
            assert task is not None
            task.cancel()
        await asyncio.gather(*[t for t in tasks if t], return_exceptions=True)
        ledger._outbox.unlock()
        for outbox in ledger.dead:
            outbox.unlock()
        await cache._accounting.store.stop()
        assert cache._database is not None
        await cache._database.close()
        cache._accounting._parts.pop_all()
        await _unlock_only(cache)
        self.open_ones.remove(cache)

    async def close(self) -> None:
        for cache in self.open_ones:
            await cache.shutdown()
        self.open_ones.clear()


async def _unlock_only(cache: BillingCache) -> None:
    callbacks = cache._parts.pop_all()
    first = next(iter(callbacks._exit_callbacks), None)  # type: ignore[attr-defined]
    if first is not None and cache.settings.embedded:
        first[1](None, None, None)
    cache._database = None


@pytest.fixture(params=["memory+sqlite", "redis+postgresql", "cluster+sqlite"])
async def shop(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    store, database = request.param.split("+")
    redis: RedisServer | RedisCluster | None = None
    database_url = None
    if store != "memory":
        redis = request.getfixturevalue("redis_server" if store == "redis" else "redis_cluster")
        for server in [redis] if isinstance(redis, RedisServer) else redis.servers:
            server.command("FLUSHALL")
    if database == "postgresql":
        server_: PostgresServer = request.getfixturevalue("postgres")
        if "billing" not in server_.databases:
            await _migrate(server_.create_database("billing"))
        name = f"billing_{tmp_path.name.replace('-', '_').replace('[', '_').lower()}"[-60:].replace("]", "")
        database_url = server_.create_database(name, template="billing")
    else:
        migrated = tmp_path_factory.getbasetemp() / "billing.db"
        if not migrated.exists():
            await _migrate(f"sqlite:///{migrated}")
        shutil.copyfile(migrated, tmp_path / "accounts.db")
    made = Shop(tmp_path, redis, database_url)
    yield made
    await made.close()


async def _migrate(url: str) -> None:
    database = await Database.open(url)
    await database.migrate()
    await database.close()


@pytest.fixture
async def cache(shop: Shop) -> BillingCache:
    return await shop.open()


class Family:
    """A key in a team of an organisation."""

    def __init__(self, key: str, team: str, organisation: str) -> None:
        self.key, self.team, self.organisation = key, team, organisation


async def make_key(cache: BillingCache, *budgets: Budget, name: str = "solo") -> str:
    """A key with an organisation of its own."""
    key, _ = await cache.accounts.create_key(NewKey(name=name, policy=Policy(budgets=budgets)))
    return key.id


async def make_family(
    cache: BillingCache, key: Policy = UNLIMITED, team: Policy = UNLIMITED, organisation: Policy = UNLIMITED
) -> Family:
    org = await cache.accounts.create_organisation("acme", organisation)
    crew = await cache.accounts.create_team("red", org.id, team)
    made, _ = await cache.accounts.create_key(NewKey(name="app", team=crew.id, policy=key))
    return Family(made.id, crew.id, org.id)


async def set_budgets(cache: BillingCache, key: str, *budgets: Budget) -> None:
    await cache.accounts.update_key(key, KeyChange(policy=Policy(budgets=budgets)))
    await cache.refresh()
