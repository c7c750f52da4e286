"""The client and the store on Sentinel and on a Cluster of three primaries, while those change under traffic."""

import asyncio
import struct
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from tests.governance.test_twin import Pair, moves, policies, principal, roots
from tests.servers.redis import RedisCluster, RedisServer, SentinelGroup
from tests.waiting import at_once
from tollkeeper import RedisClient
from tollkeeper.domain.admission import Demand, Grant, Status, checks_for
from tollkeeper.domain.entries import Applied, dispatch_of, settle_entry
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.policy import Policy
from tollkeeper.domain.usage import Usage
from tollkeeper.governance.doctor import inspect
from tollkeeper.governance.redis_keys import counter_key
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.settings import Settings, StoreSettings

PLAIN = Policy()
MOVING = ("ASK", "MOVED", "TRYAGAIN")


def peer(client: RedisClient) -> int:
    found = client.nodes[0].lead.peer
    assert found is not None
    return found[1]


async def count_on(client: RedisClient, key: str, stop: asyncio.Event) -> tuple[int, int, float]:
    """INCR until told to stop: how many were answered, how many were lost, the longest time without an answer (s)."""
    good = lost = 0
    last = time.monotonic()
    longest_s = 0.0
    while not stop.is_set():
        try:
            await client.call("INCR", key, key=key)
        except StoreUnavailable as error:
            lost += error.sent
            await asyncio.sleep(0.005)
            continue
        good += 1
        longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()
        await asyncio.sleep(0.001)
    return good, lost, longest_s


# Sentinel


async def test_the_sentinels_primary_is_used(sentinel_group: SentinelGroup) -> None:
    """Though the first sentinel of the URL is dead."""
    sentinel_group.settle()
    async with RedisClient(url=sentinel_group.url) as client:
        assert await client.call("SET", "k", 1) == b"OK" and peer(client) == sentinel_group.primary.port
        assert (await client.health()).ok and client.state == "up"


async def test_an_unknown_service_is_named(sentinel_group: SentinelGroup) -> None:
    client = RedisClient(url=sentinel_group.url.replace("/main", "/other"))
    try:
        await client.start()
    except StoreUnavailable as error:
        assert "knows no service 'other'" in str(error) and not error.sent
    else:
        raise AssertionError("started")
    finally:
        await client.stop()


async def test_a_failover_is_followed_under_traffic(sentinel_group: SentinelGroup) -> None:
    """The old primary lives on as a replica that refuses writes: the client moves over, and no call runs twice."""
    sentinel_group.settle()
    async with RedisClient(url=sentinel_group.url, read_timeout_s=3) as client:
        await client.call("DEL", "moved")
        old, stop = sentinel_group.primary.port, asyncio.Event()
        counting = asyncio.create_task(count_on(client, "moved", stop))
        await asyncio.sleep(0.1)
        assert sentinel_group.ask("SENTINEL", "FAILOVER", "main").startswith(b"+OK")
        async with asyncio.timeout(10):
            while client.state != "up" or peer(client) == old:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        stop.set()
        good, lost, longest_s = await counting
        # What the old primary took after the new one was chosen is not replicated: never more than was answered.
        assert int(await client.call("GET", "moved")) <= good + lost and longest_s < 5


async def test_a_dead_primary_is_succeeded(sentinel_group: SentinelGroup) -> None:
    sentinel_group.settle()
    async with RedisClient(url=sentinel_group.url, read_timeout_s=1, dial_timeout_s=0.5) as client:
        old = sentinel_group.primary
        old.kill()
        async with asyncio.timeout(30):
            while client.state != "up" or peer(client) == old.port:
                await asyncio.sleep(0.02)
        assert await client.call("SET", "after", 1) == b"OK"
    sentinel_group.settle()


# Cluster


async def test_keys_go_to_their_servers(redis_cluster: RedisCluster) -> None:
    async with RedisClient(url=redis_cluster.url) as client:
        assert len(client.nodes) == 3 and client.state == "up"
        await asyncio.gather(*(client.call("SET", f"k{n}", n, key=f"k{n}") for n in range(300)))
        assert [await client.call("GET", f"k{n}") for n in range(0, 300, 7)] == [
            str(n).encode() for n in range(0, 300, 7)
        ], "a call that does not name its key finds its server by redirection"
        health = await client.health()
        assert health.ok and len(health.nodes) == 3


async def test_scripts_flushed_on_every_server(redis_cluster: RedisCluster) -> None:
    async with RedisClient(url=redis_cluster.url) as client:
        text = "return redis.call('INCR', KEYS[1])"
        for turn in range(1, 4):
            for server in redis_cluster.servers:
                server.command("SCRIPT", "FLUSH")
            assert await asyncio.gather(*(client.run(text, [f"flush{n}"], []) for n in range(30))) == [turn] * 30


async def test_examination_covers_every_primary(redis_cluster: RedisCluster) -> None:
    chosen = Settings(store=StoreSettings(redis_url=redis_cluster.url))
    findings = {f.part: f for f in await inspect(chosen, lambda: time.time_ns() // 1000)}
    assert findings["redis persistence"].state == "warn" and findings["redis role"].state == "ok"
    redis_cluster.servers[1].command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        findings = {f.part: f for f in await inspect(chosen, lambda: time.time_ns() // 1000)}
        eviction = findings["redis eviction"]
        assert eviction.state == "fail" and str(redis_cluster.servers[1].port) in eviction.text
    finally:
        redis_cluster.servers[1].command("CONFIG", "SET", "maxmemory-policy", "noeviction")


def without_instants(policy: Policy) -> Policy:
    """Windows of milliseconds expire by Redis' own clock while a busy machine makes the schedule wait."""
    return msgspec.structs.replace(policy, windows=tuple(w for w in policy.windows if w.window_us >= 1_000_000))


lasting = policies.map(without_instants)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=lasting,
    team=st.none() | lasting,
    organisation=st.none() | lasting,
    schedule=st.lists(moves, max_size=30),
)
def test_scripts_equal_their_twin_on_a_cluster(
    redis_cluster: RedisCluster,
    key: Policy,
    team: Policy | None,
    organisation: Policy | None,
    schedule: list[tuple[Any, ...]],
) -> None:
    """As on one server: three roots a schedule, so that all primaries take part."""

    async def run() -> None:
        store = RedisStore(StoreSettings(redis_url=redis_cluster.url))
        await store.start()
        try:
            for _ in range(3):
                pair = Pair(store, principal(f"org_c{next(roots)}", key, team, organisation))
                await pair.on_seed(0, 7)
                for move in schedule:
                    await pair.step(move)
                await pair.on_state()
                await pair.on_snapshot(clear=False)
        finally:
            await store.stop()

    asyncio.run(run())


class Books:
    """Admits and settles on one root without pause, as the ledger does: in order, unanswered entries sent again."""

    def __init__(self, store: RedisStore, root: str) -> None:
        self.store, self.root = store, root
        self.checks = checks_for(principal(root, PLAIN, None, None), store.now_us())
        self.settled = self.refused = self.resent = 0

    async def open(self) -> None:
        await self.store.seed(self.root, "run", {}, {}, lost=False)

    async def work(self, stop: asyncio.Event, pause_s: float = 0.0) -> None:
        while not stop.is_set():
            attempt = f"a{self.settled + self.refused}.1"
            demand = Demand(attempt, "p_1", 10, 100, self.store.now_us() + 10_000_000)
            try:
                reply = await self.store.admit(self.checks, demand)
            except StoreUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            assert reply.status is Status.ADMITTED
            await self.settle(Grant(demand, self.checks, reply))
            await asyncio.sleep(pause_s)

    async def settle(self, grant: Grant) -> None:
        entry = settle_entry(self.settled + 1, dispatch_of(grant), 7, Usage(6, 4), 0)
        while True:
            answered: asyncio.Future[Applied | StoreUnavailable] = asyncio.get_running_loop().create_future()
            self.store.apply(self.root, "p_1", entry, answered.set_result)
            answer = await answered
            if isinstance(answer, Applied):
                assert answer.mark == self.settled + 1
                self.settled += 1
                return
            self.resent += 1
            await asyncio.sleep(0.01)

    async def prove(self) -> None:
        """Every settlement is charged once."""
        key = counter_key(self.root, self.checks.counters[0].name)
        cost, held = struct.unpack_from("<2d", await self.store.client.call("GET", key, key=key))
        assert cost == 7 * self.settled
        assert held % 100 == 0 and held // 100 <= self.refused


def move_slot(cluster: RedisCluster, slot: int, source: RedisServer, target: RedisServer) -> None:
    """As `redis-cli --cluster reshard` does it."""
    target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", cluster.node_id(source))
    source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", cluster.node_id(target))
    time.sleep(0.02)
    while keys := source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1").decode().split("\r\n")[2:-1]:
        moved = source.command("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
        assert moved.startswith((b"+OK", b"+NOKEY")), moved
        time.sleep(0.005)
    for server in (target, source):
        server.command("CLUSTER", "SETSLOT", str(slot), "NODE", cluster.node_id(target))


async def test_resharding_under_traffic(redis_cluster: RedisCluster) -> None:
    """One slot goes round all servers while its root is admitted and settled: no error, every charge once."""
    store = RedisStore(StoreSettings(redis_url=redis_cluster.url, admission_timeout_s=3))
    await store.start()
    books, stop = Books(store, "org_reshard"), asyncio.Event()
    try:
        await books.open()
        working = asyncio.create_task(books.work(stop))
        slot = key_slot(b"{org_reshard}")
        for _ in range(4):
            await asyncio.sleep(0.1)
            source = redis_cluster.owner(slot)
            target = redis_cluster.servers[(redis_cluster.servers.index(source) + 1) % 3]
            await asyncio.to_thread(move_slot, redis_cluster, slot, source, target)
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.wait_for(working, 5)
        assert books.settled > 100 and books.refused == 0
        errors = [server.info("errorstats", f"errorstat_{e}") for server in redis_cluster.servers for e in MOVING]
        assert len([count for count in errors if count]) >= 3, "redirections took place"
        await books.prove()
    finally:
        await store.stop()
        redis_cluster.settle()


async def test_ordered_sends_survive_a_move_in_order(redis_cluster: RedisCluster) -> None:
    """A slot without keys changes hands at once (MOVED): what is in flight follows, in order."""
    async with RedisClient(url=redis_cluster.url) as client:
        for turn in range(5):
            key = f"ordered{turn}"
            slot = key_slot(key.encode())
            source = redis_cluster.owner(slot)
            target = redis_cluster.servers[(redis_cluster.servers.index(source) + 1) % 3]
            for server in (target, source):
                server.command("CLUSTER", "SETSLOT", str(slot), "NODE", redis_cluster.node_id(target))
            futures = []
            for n in range(200):
                futures.append(client.send("RPUSH", key, n, key=key))
                if n % 5 == 0:
                    await asyncio.sleep(0)
            assert await asyncio.gather(*futures) == list(range(1, 201))
            assert await client.call("LRANGE", key, 0, -1, key=key) == [str(n).encode() for n in range(200)]
    redis_cluster.settle()


async def test_a_lost_server_leaves_the_others_at_work(redis_cluster: RedisCluster) -> None:
    """Calls for its slots fail at once; the others do not notice; it comes back by itself."""
    async with RedisClient(url=redis_cluster.url, read_timeout_s=0.3, dial_timeout_s=0.3) as client:
        frozen = redis_cluster.servers[2]
        names = {
            s.port: next(f"f{n}" for n in range(999) if redis_cluster.owner(key_slot(f"f{n}".encode())) is s)
            for s in redis_cluster.servers
        }
        frozen.freeze()
        try:
            with pytest.raises(StoreUnavailable):
                await client.call("GET", names[frozen.port], key=names[frozen.port], idempotent=True)
            with pytest.raises(StoreUnavailable):
                await at_once(client.call("GET", names[frozen.port], key=names[frozen.port], idempotent=True))
            for server in redis_cluster.servers[:2]:
                assert await client.call("SET", names[server.port], 1, key=names[server.port]) == b"OK"
            assert client.state == "away" and sorted(client.states.values()) == ["away", "up", "up"]
            assert not (await client.health()).ok
        finally:
            frozen.thaw()
        async with asyncio.timeout(10):
            while client.state != "up":
                await asyncio.sleep(0.02)
        assert await client.call("SET", names[frozen.port], 1, key=names[frozen.port]) == b"OK"
    redis_cluster.settle()


async def test_a_cluster_that_is_none_is_refused(redis_server: RedisServer, own_redis: RedisServer) -> None:
    client = RedisClient(url="redis+cluster://127.0.0.1:1")
    try:
        await client.start()
    except StoreUnavailable as error:
        assert "127.0.0.1:1" in str(error)
    else:
        raise AssertionError("started")
    health = await client.health()
    assert not health.ok and client.state == "away"
    try:
        await client.call("PING")
    except StoreUnavailable as error:
        assert not error.sent
    await client.stop()
