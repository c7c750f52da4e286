"""Hourly and at the start all counters are compared with the database: a lost flag leaves none behind."""

import time
from pathlib import Path

import pytest

from tests.governance.parts import Clock, Parts, budget, one_key
from tests.servers.redis import RedisServer
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.policy import Policy
from tollkeeper.governance import MemoryStore
from tollkeeper.governance.store import COUNTERS_PAGE
from tollkeeper.governance.sync import TURN_LEASE_S

WHO = one_key("org_a", budget(1000), Policy())


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Of the store."""
    if request.param == "memory":
        return None
    server: RedisServer = request.getfixturevalue("own_redis")
    server.command("FLUSHALL")
    return server.url


def lose_flags(parts: Parts, redis: RedisServer) -> None:
    """Nothing but the flags is lost: counters still say that they have one."""
    if isinstance(parts.store, MemoryStore):
        parts.store.tree("org_a").changed.clear()
    else:
        assert redis.command("DEL", "changed:{org_a}")


async def whole(parts: Parts) -> None:
    """As at the start and hourly."""
    assert await parts.sync._whole(parts.clock(), first=True)
    await parts.sync.sync_once()


async def test_a_counter_that_lost_its_flag_is_written(
    tmp_path: Path, url: str | None, own_redis: RedisServer
) -> None:
    """By the whole run, and by none before; later changes are flagged as ever."""
    parts = await Parts.start(tmp_path, url, Clock(time.time_ns() // 1000))
    await parts.spend(WHO, "a.1", hold=50, cost=20)
    assert await parts.ledger.flush(60)
    await parts.sync.sync_once()
    await parts.spend(WHO, "a.2", hold=50, cost=3)
    assert await parts.ledger.flush(60)
    lose_flags(parts, own_redis)
    await parts.sync.sync_once()
    assert set((await parts.spent("org_a")).values()) == {20}, "nothing says that there is more"
    await whole(parts)
    assert set((await parts.spent("org_a")).values()) == {23}
    (row,) = await parts.database.spend.monthly_usage(key="key_1")
    assert row.cost_nano == 23
    assert parts.sync._unflagged.value == 2
    await whole(parts)
    assert parts.sync._unflagged.value == 2, "what the database has is not brought again"
    await parts.spend(WHO, "a.3", hold=50, cost=4)
    assert await parts.ledger.flush(60)
    await parts.sync.sync_once()
    assert set((await parts.spent("org_a")).values()) == {27}
    await parts.stop()


async def test_many_counters_are_compared_in_pages(tmp_path: Path, url: str | None) -> None:
    """Of more roots and keys than a page has, in bounded pages; all that lag behind are written, the rest is not."""
    parts = await Parts.start(tmp_path, url, Clock(time.time_ns() // 1000))
    people = [one_key(f"org_{n}", Policy(), Policy()) for n in range(COUNTERS_PAGE + 20)]
    for n, who in enumerate(people):
        parts.ledger.charge(who, n + 1)
    assert await parts.ledger.flush(60)
    await parts.sync.sync_once()
    for who in people[::50]:
        parts.ledger.charge(who, 1000)
    assert await parts.ledger.flush(60)
    roots = {who.root for who in people[::50]}
    for root in roots:
        snapshot = await parts.store.snapshot(root)
        assert snapshot is not None
        await parts.store.clear(root, snapshot.run, snapshot.life, snapshot.versions)  # as if it had been written
    pages = [page async for page in parts.store.counters()]
    assert len(pages) > 1 and all(sum(map(len, page.values())) <= COUNTERS_PAGE for page in pages)
    assert {root for page in pages for root in page} == {who.root for who in people}
    await whole(parts)
    assert parts.sync._unflagged.value == 2 * len(roots)
    other = await Parts.start(tmp_path, url, Clock(time.time_ns() // 1000)) if url else parts
    await whole(other)
    assert other is parts or not other.ledger._outbox._covered, "others' roots leave nothing in its memory"
    for n, who in enumerate(people):
        assert set((await parts.spent(who.root)).values()) == {n + 1 + 1000 * (who.root in roots)}
    if other is not parts:
        await other.stop()
    await parts.stop()


async def test_one_of_several_gateways_compares_all(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each at its start, then one in an hour. One that dies over it has the turn for as long as its lease, and one
    that fails leaves it to the next; what cannot be asked keeps nobody from the rest of a sync."""
    own_redis.command("FLUSHALL")
    now_us = time.time_ns() // 1000
    one, other = [await Parts.start(tmp_path, own_redis.url, Clock(now_us)) for _ in range(2)]

    def turn_s() -> int:
        return int(own_redis.command("TTL", "comparing")[1:].strip())

    async def compare() -> None:
        during.append(turn_s())

    during: list[int] = []
    monkeypatch.setattr(one.sync, "_compare_all", compare)
    for parts in (one, other):
        assert await parts.sync._whole(now_us, first=True)
    assert 3_000 < turn_s() <= 3_600 and 0 < during[0] <= TURN_LEASE_S
    for parts in (one, other):
        assert not await parts.sync._whole(now_us, first=False)
    own_redis.command("DEL", "comparing")  # an hour later

    async def fails() -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(one.sync, "_compare_all", fails)
    with pytest.raises(StoreUnavailable):
        await one.sync._whole(now_us, first=False)
    assert 0 < turn_s() <= TURN_LEASE_S
    own_redis.command("DEL", "comparing")
    assert await other.sync._whole(now_us, first=False) and not await one.sync._whole(now_us, first=False)
    own_redis.command("DEL", "comparing")
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    assert not await other.sync._whole(now_us, first=False)
    own_redis.command("CONFIG", "SET", "maxmemory", "0")
    for parts in (one, other):
        await parts.stop()
