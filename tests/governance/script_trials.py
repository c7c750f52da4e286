"""Random schedules for the scripts under Lua in this process, compared with their twins to the last field.

`test_lupa.py` lets Hypothesis explore them; `mutants.py` plays a fixed set against each mutant.
"""

import asyncio
import struct
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
from hypothesis import strategies as st

from tests.governance.limiter_trials import (
    BucketTrial,
    Move,
    WindowTrial,
    bucket_moves,
    window_moves,
)
from tests.governance.lua_redis import LuaClient, LuaRedis
from tests.governance.test_twin import START_US, Pair, moves, policies, principal
from tollkeeper.domain.admission import Checks, Demand, Grant, Reply, Status, checks_for
from tollkeeper.domain.entries import CounterRef, Entry, EntryKind, close_entry, dispatch_of, void_entry
from tollkeeper.domain.policy import Policy, Principal
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.tree import Tree
from tollkeeper.domain.windows import RunLog
from tollkeeper.governance.limit_stores import LimitStore, MemoryLimits, RedisLimits
from tollkeeper.governance.redis_store import (
    ROOT_SLOT,
    RedisStore,
    changed_key,
    counter_key,
    hold_key,
    log_key,
    marks_key,
    slot_key,
)
from tollkeeper.governance.store import SeedTotals, Store
from tollkeeper.settings import StoreSettings

HEADER = (
    *("generation", "offset", "first", "head", "tail", "requests", "tokens"),
    *("last", "last_requests", "last_tokens", "oldest", "expires"),
)


class LuaStore(RedisStore):
    """The real store on scripts in this process."""

    def __init__(self, lua: LuaRedis) -> None:
        super().__init__(StoreSettings(redis_url="redis://127.0.0.1:1"))
        self.lua = lua
        self.client = LuaClient(lua)  # type: ignore[assignment]

    def now_us(self) -> int:
        return self.time_us or self.lua.redis.clock_us()


class Log:
    """A packed log, read as window.lua describes it."""

    def __init__(self, raw: bytes) -> None:
        self.header = dict(zip(HEADER, map(int, struct.unpack("<12d", raw[:96])), strict=True))
        first, head, tail = self.header["first"], self.header["head"], self.header["tail"]
        body = raw[96:]
        assert len(body) == 17 * (tail - first), "no more and no less than the runs from `first` on"
        self.physical = tail - first
        self.runs = []
        for at in range(17 * (head - first), len(body), 17):
            fields = (body[at : at + 7], body[at + 7 : at + 12], body[at + 12 : at + 17])
            stamp, requests, tokens = (int.from_bytes(field, "little") for field in fields)
            self.runs.append([stamp + self.header["offset"], requests, tokens])

    def equals(self, twin: RunLog) -> None:
        """Same runs, and a header that agrees with them."""
        assert self.runs == [list(run) for run in twin.runs]
        header = self.header
        assert (header["generation"], header["head"]) == (twin.generation, twin.head)
        assert (header["requests"], header["tokens"]) == (twin.requests, twin.tokens)
        if self.runs:
            newest = (header["last"], header["last_requests"], header["last_tokens"])
            assert newest == tuple(self.runs[-1]) and header["last"] == twin.last_us
            assert header["oldest"] + header["offset"] == self.runs[0][0]
        live = len(self.runs)
        assert self.physical - live <= max(1024, live), "runs that have left are cut off"

    def lives_long_enough(self, window_us: int, expires_ms: int) -> None:
        """The key outlives its runs, and its header knows when it ends, to the ms."""
        assert -999 <= expires_ms * 1000 - self.header["expires"] <= 999
        if self.runs:
            assert expires_ms * 1000 + 999 >= self.header["last"] + window_us


extra_moves = st.one_of(
    st.tuples(st.just("orphan"), st.integers(0, 15), st.integers(0, 60)),
    st.tuples(st.just("bury"), st.sampled_from([1, 1, 1, 2])),
    st.tuples(st.just("edge"), st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1, 2])),
    st.tuples(st.just("past"), st.sampled_from([-1, 0, 1]), st.sampled_from([None, None, 0, 10**9])),
    st.tuples(st.just("bring"), st.integers(0, 90)),
    st.tuples(st.just("flood"), st.integers(0, 20), st.sampled_from([2**40 - 1, 2**40, 2**41, -(2**41)])),
    st.tuples(st.just("overvoid"), st.integers(0, 20), st.integers(0, 3)),
    st.tuples(st.just("forged"), st.integers(0, 20), st.sampled_from([-1, 1]), st.sampled_from([-1, 0, 1])),
)


def schedules(of: st.SearchStrategy[Move], least: int) -> st.SearchStrategy[list[Move]]:
    """Schedules of moves. Left alone, Hypothesis makes most of them too short to get anywhere."""
    return st.integers(least, 60).flatmap(lambda number: st.lists(of, min_size=number, max_size=number))


def admissions(least: int) -> st.SearchStrategy[Any]:
    """Policies of key, team and organisation, a schedule, and whether scripts ask Redis for the time."""
    of = moves | extra_moves
    return st.tuples(policies, st.none() | policies, st.none() | policies, schedules(of, least), st.booleans())


def windows(least: int) -> st.SearchStrategy[Any]:
    """A window in µs and a schedule."""
    return st.tuples(st.sampled_from([60_000_000, 6_000_000, 7_001, 1_000]), schedules(window_moves, least))


def buckets(least: int) -> st.SearchStrategy[list[Move]]:
    """A schedule."""
    return schedules(bucket_moves(4), least)


class LuaPair(Pair):
    """`Pair` on Lua in this process, with moves that need a store to look into. With `server_time` the scripts ask
    for the time themselves and keys expire; a store's own expiry of slots is then not the twin's after the clock was
    set back, so it never is."""

    def __init__(self, lua: LuaRedis, who: Principal, *, server_time: bool) -> None:
        self.lua, self.server_time = lua, server_time
        super().__init__(LuaStore(lua), who)
        lua.begin(lambda: self.now_us if server_time else START_US)
        self.buried = 0

    def stores(self) -> Any:
        stores = super().stores()
        if self.server_time:
            self.redis.time_us = 0
            for name, log in list(self.tree.logs.items()):
                left = log.last_us + log.window_us <= self.now_us
                if left and self.lua.redis.peek(log_key(self.root, name).encode()) is None:
                    del self.tree.logs[name]  # as a sweep does
            for name, leases in self.tree.slots.items():
                if self.lua.redis.peek(slot_key(self.root, name).encode()) is None:
                    for attempt in [a for a, until_us in leases.items() if until_us <= self.now_us]:
                        del leases[attempt]
        return stores

    async def both(self, call: Callable[[Store], Any]) -> Any:
        one, two = [_plain(await call(store)) for store in self.stores()]
        assert one == two
        return two

    @property
    def tree(self) -> Tree:
        return self.memory.tree(self.root)

    async def on_back(self, us: int) -> None:
        if not self.server_time:
            await super().on_back(us)

    async def ask(self, checks: Checks, demand: Demand) -> None:
        reply = await self.both(lambda store: store.admit(checks, demand))
        if reply.status is Status.ADMITTED and demand.producer == "p_1":
            grant = Grant(demand, checks, reply)
            self.grants.append((grant, dispatch_of(grant)))

    async def on_orphan(self, tokens: int, hold: int) -> None:
        """A request of a producer that will die."""
        self.attempts += 1
        checks = checks_for(self.who, self.now_us)
        attempt = f"o{self.attempts}.1"
        await self.ask(checks, Demand(attempt, f"p_{self.buried + 2}", tokens, hold, self.now_us + 1000))

    async def on_bury(self, number: int) -> None:
        await self.apply(close_entry(number), producer=f"p_{self.buried + 2}")
        self.buried += number == 1

    async def on_edge(self, valid_from: int, not_after: int) -> None:
        """At the first and the last µs in which an admission may run."""
        self.attempts += 1
        checks = msgspec.structs.replace(checks_for(self.who, self.now_us), valid_from_us=self.now_us + valid_from)
        await self.ask(checks, Demand(f"e{self.attempts}.1", "p_1", 1, 1, self.now_us + not_after))

    async def on_past(self, ends: int, expires: int | None) -> None:
        """A charge to a counter of a period that ends about now."""
        self.attempts += 1
        ref = CounterRef(f"key_1:20{self.attempts:02d}", self.now_us + ends, START_US + (expires or 10**12 + 1))
        if expires == 0:
            ref = CounterRef("key_1:total", 0, 0)
        counters = (*[CounterRef(n, 0, c.expires_us) for n, c in self.tree.counters.items()][:2], ref)
        entry = Entry(self.number + 1, EntryKind.SETTLE, "gone.1", 3, 1, 5, 7, self.attempts % 2, counters)
        if (await self.apply(entry)).status == "ok":
            self.number += 1

    async def on_bring(self, cost: int) -> None:
        seed = SeedTotals(START_US + 10**13 + 1, SpendTotals(cost, 1, 2, 3, 4))
        for _ in range(2):
            await self.both(lambda store: store.restore(self.root, f"key_1:old{cost % 3}", seed))

    async def on_flood(self, which: int, tokens: int) -> None:
        """A truth so large that it no longer fits, or so small that it would be negative."""
        await self.end(which, lambda g, d, n: void_entry(n, d, -g.demand.requests, -tokens))

    async def on_overvoid(self, which: int, more: int) -> None:
        """More than the run has; the grant stays, so that it may come again."""
        if self.grants:
            grant, dispatch = self.grants[which % len(self.grants)]
            entry = void_entry(self.number + 1, dispatch, grant.demand.requests + more, grant.demand.tokens + more)
            if (await self.apply(msgspec.structs.replace(entry, attempt="none.1", slots=()))).status == "ok":
                self.number += 1

    async def on_forged(self, which: int, generation: int, index: int) -> None:
        """A correction of a run that never was: of another generation, or beside the one that was."""
        if self.grants:
            _, dispatch = self.grants[which % len(self.grants)]
            entry = void_entry(self.number + 1, dispatch, 1, 1)
            runs = [msgspec.structs.replace(r, index=r.index + index * 2) for r in entry.runs]
            if not index:
                runs = [msgspec.structs.replace(r, generation=r.generation + generation) for r in entry.runs]
            entry = msgspec.structs.replace(entry, attempt="none.1", slots=(), runs=tuple(runs))
            if (await self.apply(entry)).status == "ok":
                self.number += 1

    # Everything that is stored

    def compare(self) -> None:
        redis, tree, root = self.lua.redis, self.tree, self.root
        texts = {k.decode(): v.decode() for k, v in redis.values.get(marks_key(root).encode(), {}).items()}
        assert texts.pop("run", None) == tree.run and {k: int(v) for k, v in texts.items()} == tree.marks
        flags = redis.values.get(changed_key(root).encode(), {})
        assert {k.decode(): v.decode() for k, v in flags.items()} == tree.changed
        self.compare_holds()
        self.compare_counters()
        for name, log in tree.logs.items():
            self.compare_log(log_key(root, name).encode(), log)
        for name, leases in tree.slots.items():
            key = slot_key(root, name).encode()
            stored = {k.decode(): v for k, v in (redis.peek(key) or {}).items()}
            now_us = self.now_us if self.server_time else 0
            assert {a: t for a, t in stored.items() if t > now_us} == {a: t for a, t in leases.items() if t > now_us}
            if stored:
                assert redis.expires_ms[key] >= START_US // 1000

    def compare_holds(self) -> None:
        stored = self.lua.redis.values.get(hold_key(self.root).encode(), {})
        assert list(stored) == [a.encode() for a in self.tree.holds]
        for attempt, hold in self.tree.holds.items():
            slots = ",".join(s or ROOT_SLOT for s in hold.slots)
            runs = ",".join(f"{generation}:{index}" for generation, index in hold.runs)
            text = f"{hold.amount}\n{hold.producer}\n{','.join(hold.counters)}\n{slots}\n{runs}"
            assert stored[attempt.encode()].decode() == text

    def compare_counters(self) -> None:
        prefix = counter_key(self.root, "").encode()
        stored = {k[len(prefix) :].decode(): v for k, v in self.lua.redis.values.items() if k.startswith(prefix)}
        fields = ("held", "cost", "requests", "input", "output", "cached")
        assert set(stored) == set(self.tree.counters)
        for name, counter in self.tree.counters.items():
            for field in fields:
                assert int(stored[name].get(field.encode(), 0)) == getattr(counter, field)
            expires_ms = self.lua.redis.expires_ms.get(prefix + name.encode())
            if not name.startswith("key_1:old"):
                assert expires_ms == (-(-counter.expires_us // 1000) if counter.expires_us else None)

    def compare_log(self, key: bytes, twin: RunLog) -> None:
        raw = self.lua.redis.peek(key)
        if raw is None:
            assert not twin.runs or twin.last_us + twin.window_us <= self.now_us
            return
        log = Log(raw)
        log.equals(twin)
        if self.server_time:
            log.lives_long_enough(twin.window_us, self.lua.redis.expires_ms[key])


def _plain(answer: Any) -> Any:
    """The index of a run in a log that has expired does not matter: a correction of generation 0 does nothing."""
    if not isinstance(answer, Reply):
        return answer
    logs = [log if log.generation else msgspec.structs.replace(log, index=-1) for log in answer.logs]
    return msgspec.structs.replace(answer, logs=tuple(logs))


async def play_admission(
    lua: LuaRedis, example: tuple[Policy, Policy | None, Policy | None, list[Move], bool]
) -> None:
    """One schedule of admissions, entries and all that befalls a tree."""
    key, team, organisation, schedule, server_time = example
    pair = LuaPair(lua, principal("org_1", key, team, organisation), server_time=server_time)
    assert (await pair.admit("a0.1", 1, 1))[0].status is Status.COLD
    await pair.on_reassert()
    assert await pair.both(lambda store: store.snapshot("org_1")) is None
    await pair.apply(close_entry(1), producer="p_2")
    await pair.apply(Entry(1, EntryKind.VOID))
    await pair.on_seed(0, 7)
    for move in schedule:
        await pair.step(move)
        pair.compare()
    await pair.on_state()
    await pair.on_snapshot(clear=True)
    pair.compare()


async def play_window(lua: LuaRedis, example: tuple[int, list[Move]]) -> None:
    """One schedule of a sliding window; the scripts ask for the time themselves, and keys expire."""
    window_us, schedule = example
    memory: list[MemoryLimits] = []
    trial = WindowTrial([lambda now_us: _memory(memory, now_us), lambda _: _scripts(lua)], window_us, "x")
    lua.begin(lambda: trial.now_us)
    key = f"ratelimit:{{x}}:{window_us}".encode()
    for move in schedule:
        await trial.step(move)
        twin, raw = memory[0]._logs.get(key.decode()), lua.redis.peek(key)
        if raw is None or twin is None:
            assert twin is None or not twin.runs or twin.last_us + window_us <= trial.now_us
            continue
        twin.generation, twin.head = Log(raw).header["generation"], Log(raw).header["head"]
        Log(raw).equals(twin)
        Log(raw).lives_long_enough(window_us, lua.redis.expires_ms[key])


async def play_bucket(lua: LuaRedis, schedule: list[Move]) -> None:
    """One schedule of a token bucket."""
    memory: list[MemoryLimits] = []
    trial = BucketTrial([lambda now_us: _memory(memory, now_us), lambda _: _scripts(lua)], "x")
    lua.begin(lambda: trial.now_us)
    for move in schedule:
        await trial.step(move)
        twin, raw = memory[0]._buckets.get("tokenbucket:{x}"), lua.redis.peek(b"tokenbucket:{x}")
        if raw is None or twin is None:
            assert twin is None or twin.full_us <= trial.now_us
            continue
        micro, sixtieths, last_us, full_us = map(int, struct.unpack("<4d", raw))
        assert 0 <= sixtieths < 60
        assert (micro * 60 + sixtieths, last_us, full_us) == (twin.level, twin.last_us, twin.full_us)
        assert 0 <= lua.redis.expires_ms[b"tokenbucket:{x}"] * 1000 + 999 - full_us < 2000


async def play_replies(lua: LuaRedis, script: str) -> None:
    """What clients do not tell apart: deadlines to the µs, replies as they are on the wire, asks without an id."""
    lua.begin(lambda: START_US)

    def ask(deadline_us: int, weight: int, key: str = "k", given_us: int = 0) -> Any:
        numbers = (60_000_000, 10_000, 5, weight) if script == "allow" else (60, 5, weight)
        return lua.run(script, [key], [struct.pack(f"<{len(numbers) + 4}d", given_us, deadline_us, *numbers, 0, 0)])

    full = [5, 60_006_544] if script == "allow" else [0, 5_000_000]
    assert ask(START_US, 1) == ask(START_US - 1, 1) == ask(1, 1) == [-1, START_US, 0, 0, 0]
    assert ask(0, 6)[0] == 0 and ask(0, 6)[3] == -1
    assert ask(START_US + 1, 5) == [1, START_US, full[0], 0, full[1]]
    assert ask(0, 1) == [0, START_US, full[0], full[1] if script == "allow" else 1_000_000, full[1]]
    assert ask(0, 0, "other", 1)[1] == 1


def _memory(made: list[MemoryLimits], now_us: Callable[[], int]) -> LimitStore:
    made.append(MemoryLimits(now_us))
    return made[-1]


def _scripts(lua: LuaRedis) -> LimitStore:
    return RedisLimits(LuaClient(lua), deadline_s=1e6)


def play(sources: Mapping[str, str] | None, work: Callable[[LuaRedis], Coroutine[Any, Any, None]]) -> None:
    """Run `work` on a fresh Lua."""
    asyncio.run(work(LuaRedis(lambda: START_US, sources)))
