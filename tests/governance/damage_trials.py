"""Every key that an entry touches, overwritten in every way: the script changes nothing, or all that is money.

Plays the scripts under Lua in this process. What is then mended, and how, is tried on a real Redis (test_damage.py).
"""

import asyncio
import copy
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tests.governance.lua_redis import LuaRedis
from tests.governance.script_trials import Log, LuaStore
from tests.governance.test_twin import START_US
from tollkeeper.domain.admission import CounterRef, Demand, Grant, checks_for
from tollkeeper.domain.charges import UNCHARGED
from tollkeeper.domain.entries import (
    Applied,
    AppliedStatus,
    Dispatch,
    Entry,
    EntryKind,
    Origin,
    bury_entry,
    close_entry,
    dispatch_of,
    presume_entry,
    quarantined,
    settle_entry,
    usage_entry,
    void_entry,
)
from tollkeeper.domain.errors import StoreDamaged, StoreUnavailable
from tollkeeper.domain.policy import Policy, Principal, Scope, ScopeKind, TokenBucket, Unit, Window
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.usage import Usage
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance.redis_keys import (
    changed_key,
    charges_key,
    counter_key,
    hold_key,
    log_key,
    marks_key,
    unsaved_key,
)
from tollkeeper.governance.store import SeedTotals

ROOT: Final = "org_1"
POLICY: Final = Policy(
    windows=(Window(Unit.TOKENS, 10**6),), buckets=(TokenBucket(Unit.TOKENS, 60, 10**6),), concurrency=9
)
WHO: Final = Principal(
    "key_1", "one", ROOT, (Scope(ScopeKind.KEY, "key_1", POLICY), Scope(ScopeKind.ORGANISATION, ROOT, Policy()))
)
MONEY: Final = (b"marks:", b"hold:", b"cost:", b"charges:", b"changed:", b"unsaved:", b"used:")
HASHES: Final = tuple(key(ROOT).encode() for key in (marks_key, hold_key, changed_key, charges_key, unsaved_key))


async def play_damage(lua: LuaRedis) -> None:
    """One tree; each kind of entry on each damage of it."""
    store = LuaStore(lua)
    store.time_us = START_US
    entries = await _tree(lua, store)
    whole, expires = copy.deepcopy(lua.redis.values), dict(lua.redis.expires_ms)
    for entry in entries:
        lua.redis.values, lua.redis.expires_ms = copy.deepcopy(whole), dict(expires)
        assert await _apply(store, entry) == Applied(AppliedStatus.OK, 1), entry
        right = lua.redis.values
        for key, value in _damages(whole):
            lua.redis.values, lua.redis.expires_ms = copy.deepcopy(whole) | {key: copy.deepcopy(value)}, dict(expires)
            damaged = copy.deepcopy(lua.redis.values)
            answer = await _apply(store, entry)
            if isinstance(answer, StoreDamaged):
                assert lua.redis.values == damaged, (entry.kind, key)
                touches = key.startswith(MONEY)
                assert touches, f"{entry.kind} is held up by {key!r}"
            else:
                assert answer == Applied(AppliedStatus.OK, 1), (entry.kind, key, answer)
                if entry.kind is EntryKind.QUARANTINE and key == hold_key(ROOT).encode():
                    right_then = damaged  # a hold that cannot be read is still held
                else:
                    right_then = right
                assert _costs(lua.redis.values, but=key) == _costs(right_then, but=key), (entry.kind, key, value)
                assert _others(lua.redis.values, but=key) == _others(right, but=key), (entry.kind, key, value)
                assert lua.redis.values[key] == value or key in HASHES or len(value) >= 48, (entry.kind, key)
    await _together(lua, store, whole, entries)
    await _hold_again(lua, store, whole)
    await _seed(lua, store, whole)
    await _push(lua, store, whole)


async def _tree(lua: LuaRedis, store: LuaStore) -> list[Entry]:
    """Requests in flight of two producers, and one entry of each kind, the first of its producer."""
    lua.begin(lambda: START_US)
    await store.seed(ROOT, "run", {}, {}, lost=True)
    checks = checks_for(WHO, START_US)
    flying: list[Dispatch] = []
    for producer in ("p_2", "p_2", "p_dead"):
        demand = Demand(f"{producer}{len(flying)}.1", producer, 100, 50, START_US + 10**6)
        flying.append(dispatch_of(Grant(demand, checks, await store.admit(checks, demand))))
    one, two, orphan = flying
    store.apply(ROOT, "p_0", settle_entry(1, one, 5, Usage(), 0), lambda _: None)
    store.apply(ROOT, "p_0", presume_entry(2, two), lambda _: None)
    store.apply(ROOT, "p_0", usage_entry(3, "untold", 9, one.counters), lambda _: None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    snapshot = await store.snapshot(ROOT)  # a new generation: the next charge has to flag again
    assert snapshot is not None
    demand = Demand("last.1", "p_1", 100, 50, START_US + 10**6)
    last = dispatch_of(Grant(demand, checks, await store.admit(checks, demand)))
    lua.redis.execute(b"HSET", charges_key(ROOT).encode(), b"known.1", UNCHARGED.text().encode())
    correct = msgspec.structs.replace(presume_entry(1, last), attempt="known.1", rank=10**6, fresh=False, cost_nano=3)
    return [
        settle_entry(1, last, 7, Usage(30, 12, 5), -40),
        void_entry(1, last, 1, 100),
        presume_entry(1, last),
        msgspec.structs.replace(presume_entry(1, last), counters=()),
        correct,
        msgspec.structs.replace(presume_entry(1, orphan), origins=(Origin("p_dead", 1),)),
        usage_entry(1, "digest", 9, last.counters),
        msgspec.structs.replace(usage_entry(1, "untold", 4, last.counters[:1]), told=True),  # the other charge goes
        bury_entry(1, "p_dead"),
        close_entry(1, "p_dead"),
        quarantined(settle_entry(1, last, 7, Usage(30, 12, 5), 0), "p_1", "refused"),
        quarantined(close_entry(1, "p_dead"), "p_1", "refused"),
    ]


def _damages(whole: dict[bytes, Any]) -> Iterator[tuple[bytes, Any]]:
    for key in sorted({*whole, *HASHES, b"used:{org_1}:digest"}):
        yield key, b"x"
        yield key, [b"x"]
        if key.startswith(b"cost:"):
            yield key, whole[key][:16]
            yield key, whole[key][:47]


def _costs(values: dict[bytes, Any], *, but: bytes) -> dict[bytes, Any]:
    """Counters that are not damaged."""
    return {key: value for key, value in values.items() if key.startswith(b"cost:") and key != but}


def _others(values: dict[bytes, Any], *, but: bytes) -> dict[bytes, Any]:
    """What else is money."""
    costs = _costs(values, but=b"")
    return {key: value for key, value in values.items() if key.startswith(MONEY) and key not in (but, *costs)}


async def _apply(store: LuaStore, entry: Entry) -> Applied | StoreUnavailable:
    answers: list[Applied | StoreUnavailable] = []
    store.apply(ROOT, "p_1", entry, answers.append)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (answer,) = answers
    return answer


async def _together(lua: LuaRedis, store: LuaStore, whole: dict[bytes, Any], entries: list[Entry]) -> None:
    """Two ends of one turn find what they would find one after the other."""
    settled = msgspec.structs.replace(entries[0], buckets=())
    ended = Entry(2, EntryKind.VOID, "other.1", counters=settled.counters[:1], slots=settled.slots)
    for key, value in _damages(whole):
        found: list[tuple[list[Applied | StoreUnavailable], dict[bytes, Any]]] = []
        for turns in (2, 1):
            lua.redis.values = copy.deepcopy(whole) | {key: copy.deepcopy(value)}
            answers: list[Applied | StoreUnavailable] = []
            for entry in (settled, ended):
                store.apply(ROOT, "p_1", entry, answers.append)
                for _ in range(4 * (turns - 1)):
                    await asyncio.sleep(0)
            for _ in range(6):
                await asyncio.sleep(0)
            found.append((answers, lua.redis.values))
        (apart, left_apart), (at_once, left_at_once) = found
        assert left_apart == left_at_once, key
        assert [_said(answer) for answer in apart] == [_said(answer) for answer in at_once], key


def _said(answer: Applied | StoreUnavailable) -> str:
    return answer.status if isinstance(answer, Applied) else type(answer).__name__


async def _hold_again(lua: LuaRedis, store: LuaStore, whole: dict[bytes, Any]) -> None:
    """A hold is put on all of its counters, or on none; one of 48 bytes is one."""
    name = next(key for key in whole if key.startswith(b"cost:")).decode().removeprefix(counter_key(ROOT, ""))
    refs = (CounterRef("before", 0, 0), CounterRef(name, 0, 0), CounterRef("after", 0, 0))
    again = Dispatch("again.1", 50, refs, (), ())
    for value in (b"x", whole[counter_key(ROOT, name).encode()][:47], [b"x"]):
        lua.redis.values = copy.deepcopy(whole) | {counter_key(ROOT, name).encode(): value}
        damaged = copy.deepcopy(lua.redis.values)
        try:
            await store.reassert(ROOT, "p_1", 9, [again])
        except StoreDamaged:
            assert lua.redis.values == damaged
        else:
            raise AssertionError(value)
    lua.redis.values = copy.deepcopy(whole) | {counter_key(ROOT, name).encode(): struct.pack("<6d", 1, 2, 3, 4, 5, 6)}
    await store.reassert(ROOT, "p_1", 9, [again])
    assert lua.redis.values[counter_key(ROOT, name).encode()] == struct.pack("<6d", 1, 52, 3, 4, 5, 6)


async def _seed(lua: LuaRedis, store: LuaStore, whole: dict[bytes, Any]) -> None:
    """A tree that must be loaded keeps all that it has, or is loaded whole: one without its counters, but with its
    marks, would pass for one that has spent nothing."""
    hold, marks = hold_key(ROOT).encode(), marks_key(ROOT).encode()
    totals = {"total": SeedTotals(0, SpendTotals(7, 1, 2, 3, 4))}
    loaded = []
    strange = (hold, whole[hold] | {b"strange.1": b"no hold"})
    for key, value in [(hold, whole[hold]), strange, *[(k, v) for k, v in _damages(whole) if k in HASHES]]:
        lua.redis.values = copy.deepcopy(whole) | {key: copy.deepcopy(value)}
        damaged = copy.deepcopy(lua.redis.values)
        try:
            assert await store.seed(ROOT, "another", {"z": 1}, totals, lost=True)
        except StoreDamaged:
            assert lua.redis.values == damaged, key
            assert key in HASHES and not isinstance(value, dict)
        else:
            assert lua.redis.values[marks] == {b"run": b"another", b"sync": b"another:1", b"z": b"1"}
            loaded.append({k: v for k, v in lua.redis.values.items() if k.startswith(MONEY) and k not in HASHES})
            assert loaded[-1] == loaded[0] and counter_key(ROOT, "total").encode() in loaded[0]
            assert len([k for k in loaded[0] if k.startswith(b"cost:")]) == 1, "what the holds name is gone"
    assert len(loaded) == 4, "as it was, with a strange hold, and with records that are none, in two ways"


async def _push(lua: LuaRedis, store: LuaStore, whole: dict[bytes, Any]) -> None:
    """A log that is none of ours stays as it is; the others get what is theirs, once."""
    names = ("60000000", "key_1:60000000", "6000000")
    runs = ((START_US - 5, 1, 2), (START_US - 4, 1, 2))
    pushes = [LogPush(name, int(name.split(":")[-1]), 10_000, 0, 0, 0, 0, runs) for name in names]
    keys = [log_key(ROOT, name).encode() for name in names]
    for key in keys:
        for value in (b"x", [b"x"]):
            lua.redis.values = copy.deepcopy(whole) | {key: copy.deepcopy(value)}
            for first in (True, False):
                assert await store.push(ROOT, "away", pushes) is first
                assert lua.redis.values[key] == value
                for other in {*keys} - {key}:
                    had = Log(whole[other]).header["requests"] if other in whole else 0
                    assert Log(lua.redis.values[other]).header["requests"] == had + 2
