"""Promise 4 against strangers: what is not ours under a key of ours neither loses money nor charges it twice, and
holds up nobody else. On a real Redis, whose keys are overwritten by hand."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.governance.parts import Clock, Parts, budget, one_key
from tests.servers.redis import RedisServer
from tollkeeper.domain.admission import Denial, Grant
from tollkeeper.domain.entries import Entry
from tollkeeper.domain.errors import StoreDamaged, StoreUnavailable, Unavailable
from tollkeeper.domain.policy import Policy, Principal, Scope, TokenBucket, Unit
from tollkeeper.domain.usage import Usage
from tollkeeper.governance.redis_connection import ReplyError
from tollkeeper.governance.redis_replies import told_error
from tollkeeper.governance.store import Done

ROOT = "org_a"
WHO = one_key(ROOT, budget(1000, concurrency=50), Policy())
BUCKET = one_key(ROOT, Policy(buckets=(TokenBucket(Unit.TOKENS, rate=600, burst=10_000),)))
OTHER = Principal("key_2", "two", ROOT, (Scope(WHO.scopes[0].kind, "key_2", Policy()), WHO.scopes[1]))


def month() -> str:
    moment = time.gmtime()
    return f"{moment.tm_year}:{moment.tm_mon:02d}"


KEY, ORG = f"key_1:{month()}", month()
DAMAGE = {
    "a counter is a list": (f"cost:{{{ROOT}}}:{KEY}", "RPUSH x"),
    "a counter was cut": (f"cost:{{{ROOT}}}:{KEY}", "SET short"),
    "the organisation's counter was cut": (f"cost:{{{ROOT}}}:{ORG}", "SET 0123456789012345678901234567890123456789"),
    "marks are a string": (f"marks:{{{ROOT}}}", "SET x"),
    "holds are a list": (f"hold:{{{ROOT}}}", "RPUSH x"),
    "flags are a string": (f"changed:{{{ROOT}}}", "SET x"),
    "records are a list": (f"charges:{{{ROOT}}}", "RPUSH x"),
    "idempotency keys are a list": (f"unsaved:{{{ROOT}}}", "RPUSH x"),
}


@pytest.fixture
def clock() -> Clock:
    """The real time: Redis has its own clock."""
    return Clock(time.time_ns() // 1000)


@pytest.fixture
async def parts(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> AsyncIterator[Parts]:
    made = await Parts.start(tmp_path, own_redis.url, clock)
    yield made
    await made.stop()


def overwrite(server: RedisServer, key: str, how: str) -> None:
    """Whatever is there, and however it got there."""
    command, value = how.split()
    server.command("DEL", key)
    assert not server.command(command, key, value).startswith(b"-")


async def eventually(parts: Parts, who: Principal, name: str, *, hold: int) -> Grant | Denial:
    """Ask until there is a decision, as a client that tries again; each is a request of its own."""
    for number in range(100):
        try:
            return await parts.admit(who, f"{name}-{number}.1", hold=hold)
        except Unavailable:
            await asyncio.sleep(0.02)
    raise AssertionError("no decision")


async def granted(parts: Parts, who: Principal, name: str, *, hold: int) -> Grant:
    grant = await eventually(parts, who, name, hold=hold)
    assert isinstance(grant, Grant)
    parts.ledger.dispatched(grant)
    return grant


async def spend(parts: Parts, name: str, *, hold: int, cost: int) -> None:
    """One whole request."""
    parts.ledger.settle(await granted(parts, WHO, name, hold=hold), cost, Usage())


def overview(parts: Parts, name: str) -> int:
    """A counter without labels."""
    lines = parts.metrics.exposition().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(name + " "))))


@pytest.mark.parametrize("when", ["at rest", "with requests in flight"])
@pytest.mark.parametrize("what", DAMAGE)
async def test_money_is_as_it_was(parts: Parts, own_redis: RedisServer, tmp_path: Path, what: str, when: str) -> None:
    """Spend that only outboxes know, of two gateways; a request in flight in each. Afterwards every nano-dollar is in
    the database once, the budget counts all of it, and nothing was set aside."""
    peer = await Parts.start(tmp_path, own_redis.url, parts.clock)
    await spend(parts, "synced", hold=100, cost=10)
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    await spend(parts, "unsynced", hold=100, cost=100)
    await spend(peer, "peer", hold=100, cost=30)
    await peer.ledger.charge_once(WHO, 7, "a key")
    flying = [await granted(one, WHO, f"flying{n}", hold=200) for n, one in enumerate((parts, peer))]
    assert await parts.ledger.flush(5) and await peer.ledger.flush(5)
    overwrite(own_redis, *DAMAGE[what])
    if when == "with requests in flight":
        for one, grant in zip((parts, peer), flying, strict=True):
            one.ledger.settle(grant, 50, Usage(), presumed=one is peer)
        assert await parts.ledger.flush(10) and await peer.ledger.flush(10)
        spent = 10 + 100 + 30 + 7 + 50 + 200
    else:
        spent = 10 + 100 + 30 + 7 + 400
    over = await eventually(parts, WHO, "over", hold=1001 - spent)
    fits = await eventually(parts, WHO, "fits", hold=1000 - spent)
    assert isinstance(over, Denial) and isinstance(fits, Grant)
    parts.ledger.void(fits)
    if when == "at rest":
        for one, grant in zip((parts, peer), flying, strict=True):
            one.ledger.settle(grant, 50, Usage(), presumed=one is peer)
    total = 10 + 100 + 30 + 7 + 50 + 200
    for number in range(100):  # damage that only a sync meets is mended by it, and who is asked waits for the others
        asked = await eventually(peer, WHO, f"next{number}", hold=1)
        if isinstance(asked, Grant):
            peer.ledger.void(asked)
        for one in (parts, peer):
            assert await one.ledger.flush(10)
            await one.sync.sync_once()
        if await parts.spent(ROOT) == {KEY: total, ORG: total}:
            break
        await asyncio.sleep(0.02)
    assert await parts.spent(ROOT) == {KEY: total, ORG: total}
    assert await parts.database.spend.listed(status="quarantined") == []
    assert not await parts.store.held(ROOT)
    assert overview(parts, "tollkeeper_store_keys_mended_total") + overview(
        peer, "tollkeeper_store_keys_mended_total"
    )
    await peer.stop()


@pytest.mark.parametrize(
    ("pattern", "how"),
    [
        ("ratelimit:*", "RPUSH x"),
        ("ratelimit:*", "SET short"),
        ("tokenbucket:*", "RPUSH x"),
        ("tokenbucket:*", "SET short"),
        ("slots:*", "SET x"),
    ],
)
async def test_a_limit_that_was_overwritten(parts: Parts, own_redis: RedisServer, pattern: str, how: str) -> None:
    """A settlement charges all the same, and once; the next admission has the limit forget what it cannot read."""
    who = BUCKET if pattern.startswith("token") else WHO
    grant = await granted(parts, who, "flying", hold=200)
    found = own_redis.command("KEYS", pattern).decode().split("\r\n")
    (key,) = [word for word in found if word.startswith(pattern[:-1])]
    overwrite(own_redis, key, how)
    recoveries = overview(parts, "tollkeeper_root_recoveries_total")
    parts.ledger.settle(grant, 50, Usage(input_tokens=1))
    assert await parts.ledger.flush(5)
    assert overview(parts, "tollkeeper_root_recoveries_total") == recoveries, "it was not even sent again"
    again = await granted(parts, who, "again", hold=200)
    assert overview(parts, "tollkeeper_store_keys_mended_total") == 1
    parts.ledger.settle(again, 5, Usage())
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    assert (await parts.spent(ROOT))[KEY] == 55


async def test_an_entry_that_is_refused_again_and_again(parts: Parts, own_redis: RedisServer) -> None:
    """Somebody goes on overwriting a counter: the entry is set aside with its amount and the reason, later ones of
    the root go on, and when the stranger is gone an operator's word charges it."""
    apply, stranger = parts.store.apply, True

    def apply_too_late(root: str, producer: str, entry: Entry, done: Done) -> None:
        if stranger and any(ref.name == KEY for ref in entry.counters):
            overwrite(own_redis, f"cost:{{{ROOT}}}:{KEY}", "RPUSH x")
        apply(root, producer, entry, done)

    grant, other = await granted(parts, WHO, "poison", hold=200), await granted(parts, OTHER, "later", hold=5)
    poison = grant.demand.attempt
    parts.store.apply = apply_too_late  # type: ignore[method-assign]
    parts.ledger.settle(grant, 150, Usage(input_tokens=30))
    parts.ledger.settle(other, 3, Usage())
    assert await parts.ledger.flush(20)
    assert overview(parts, "tollkeeper_entries_refused_total") == 1
    await parts.sync.sync_once()
    assert await parts.spent(ROOT) == {f"key_2:{month()}": 3, ORG: 3}
    (listed,) = await parts.database.spend.listed(status="quarantined")
    assert (listed.attempt, listed.charge.cost_nano, listed.charge.input_tokens) == (f"?{poison}", 150, 30)
    known = listed.charge.what_is_known()
    assert "settle refused" in known.note and "WRONGTYPE" in known.note
    assert {ref.name for ref in known.counters} == {KEY, ORG}
    stranger = False
    charge = msgspec.structs.replace(listed.charge, rank=0)
    parts.ledger.correct(ROOT, poison, charge, "it did cost that")
    assert await parts.ledger.flush(20)
    await parts.sync.sync_once()
    assert await parts.spent(ROOT) == {KEY: 150, f"key_2:{month()}": 3, ORG: 153}


async def test_no_entry_is_poison_while_the_server_refuses_all(parts: Parts, own_redis: RedisServer) -> None:
    """A replica, or a full Redis: entries wait as long as that lasts."""
    grant = await granted(parts, WHO, "waits", hold=200)
    own_redis.command("REPLICAOF", "127.0.0.1", "1")
    parts.ledger.settle(grant, 50, Usage())
    assert not await parts.ledger.flush(3)
    own_redis.command("REPLICAOF", "NO", "ONE")
    assert await parts.ledger.flush(10)
    await parts.sync.sync_once()
    assert await parts.spent(ROOT) == {KEY: 50, ORG: 50}
    assert overview(parts, "tollkeeper_entries_refused_total") == 0
    assert overview(parts, "tollkeeper_store_keys_mended_total") == 0


@pytest.mark.parametrize(
    ("text", "damaged"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value script: ab, on @user_script:6.", True),
        ("ERR user_script:12: data string too short script: ab, on @user_script:12.", True),
        ("ERR Error running script (call to f_ab): @user_script:12: user_script:12: data string too short", True),
        ("ERR Error running script (call to f_ab): @user_script:6: WRONGTYPE Operation against a key", True),
        ("OOM command not allowed when used memory > 'maxmemory'. script: ab, on @user_script:6.", False),
        ("ERR Error running script (call to f_ab): @user_script:6: -OOM command not allowed", False),
        ("READONLY You can't write against a read only replica. script: ab, on @user_script:6.", False),
        ("ERR user_script:3: not enough memory script: ab, on @user_script:3.", False),
        ("ERR unknown command 'GETX' script: ab, on @user_script:6.", False),
        ("ERR syntax error script: ab, on @user_script:6.", False),
        ("LOADING Redis is loading the dataset in memory", False),
        ("MISCONF Redis is configured to save RDB snapshots", False),
        ("CLUSTERDOWN The cluster is down", False),
        ("NOPERM this user has no permissions to access one of the keys", False),
    ],
)
def test_what_is_one_roots_trouble(text: str, damaged: bool) -> None:
    """As Redis 6, 7 and Valkey word it: a wrong type and a script's own error; not what every root would get."""
    told = told_error(ReplyError(text))
    assert isinstance(told, StoreDamaged) is damaged and isinstance(told, StoreUnavailable)
