"""Random schedules for the scripts under Lua in this process, compared with their twins to the last field.

`test_lupa.py` lets Hypothesis explore them; `mutants.py` plays a fixed set against each mutant.
"""

import asyncio
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
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
from tests.governance.lua_redis import LuaClient, LuaRedis, word
from tests.governance.test_twin import START_US, Pair, moves, policies_of, principal, together
from tollkeeper.domain.admission import Checks, CounterRef, Demand, Grant, Reply, Status, checks_for, counter_ref
from tollkeeper.domain.bucket import Bucket
from tollkeeper.domain.charges import UNCHARGED
from tollkeeper.domain.entries import (
    BURIED,
    Applied,
    Entry,
    EntryKind,
    Origin,
    Used,
    bury_entry,
    close_entry,
    dispatch_of,
    included,
    quarantined,
    settle_entry,
    usage_entry,
    used_from,
    void_entry,
)
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.periods import Period, Span
from tollkeeper.domain.policy import Budget, Policy, Principal, Unit, Window
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.tree import Tree
from tollkeeper.domain.usage import Usage
from tollkeeper.domain.windows import LogPush, RunLog
from tollkeeper.governance.limit_stores import LimitStore, MemoryLimits, RedisLimits
from tollkeeper.governance.redis_keys import (
    ROOT_SLOT,
    bucket_key,
    changed_key,
    charges_key,
    counter_key,
    hold_key,
    log_key,
    looked_key,
    marks_key,
    pushed_key,
    slot_key,
    unsaved_key,
    used_key,
)
from tollkeeper.governance.redis_plan import settlements_call
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.governance.store import SeedTotals, Store
from tollkeeper.settings import StoreSettings

HEADER = (
    *("generation", "offset", "first", "head", "tail", "requests", "tokens"),
    *("last", "last_requests", "last_tokens", "oldest", "expires"),
)


_MINUTE = 60_000_000
_STATUS_NUMBER = {"ok": 0, "gap": 1, "cold": 2, "absent": 3}


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
        self.header = dict(zip(HEADER, map(int, struct.unpack("<12d", raw[-96:])), strict=True))
        self.body = raw[:-96]
        self.live = self.header["tail"] - self.header["head"]
        self.dead = self.header["head"] - self.header["first"]
        assert len(self.body) == 17 * (self.live + self.dead), "no more and no less than the runs from `first` on"

    def runs(self) -> list[list[int]]:
        """Those in the window."""
        runs = []
        for at in range(17 * self.dead, len(self.body), 17):
            fields = (self.body[at : at + 7], self.body[at + 7 : at + 12], self.body[at + 12 : at + 17])
            stamp, requests, tokens = (int.from_bytes(field, "little") for field in fields)
            runs.append([stamp + self.header["offset"], requests, tokens])
        return runs

    def equals(self, twin: RunLog) -> None:
        """Same runs, and a header that agrees with them."""
        runs, header = self.runs(), self.header
        assert runs == [list(run) for run in twin.runs]
        assert (header["generation"], header["head"]) == (twin.generation, twin.head)
        assert (header["requests"], header["tokens"]) == (twin.requests, twin.tokens)
        if runs:
            newest = (header["last"], header["last_requests"], header["last_tokens"])
            assert newest == tuple(runs[-1]) and header["last"] == twin.last_us
            assert header["oldest"] + header["offset"] == runs[0][0]

    def lives_long_enough(self, window_us: int, expires_ms: int) -> None:
        """The key outlives its runs, and its header knows when it ends, to the ms."""
        assert -999 <= expires_ms * 1000 - self.header["expires"] <= 999
        if self.live:
            assert expires_ms * 1000 + 999 >= self.header["last"] + window_us

    def follows(self, before: "Log | None") -> None:
        """Runs that have left are cut off when there are 1,024 of them and more than are left; not earlier, which
        would copy a log again and again, and not later."""
        assert self.dead < 1024 or self.dead <= self.live
        if before is not None and before.live and self.live > 1 and before.header["first"] != self.header["first"]:
            cut = self.header["first"] - before.header["first"]
            assert cut >= 1024 and cut > self.live


class CheckedLua(LuaRedis):
    """Holds every reply to what its script's header says, beyond what clients can tell apart."""

    def run(self, script: str, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> Any:
        names = [word(key) for key in keys]
        before = getattr(self, f"before_{script}", lambda *_: None)(names, arguments)
        reply = super().run(script, keys, arguments)
        getattr(self, f"after_{script}", lambda *_: None)(names, arguments, before, reply)
        return reply

    def there(self, key: bytes) -> bool:
        return self.redis.peek(key) is not None

    def after_admit(self, keys: list[bytes], arguments: Sequence[Any], _: Any, reply: list[int]) -> None:
        logs, buckets, slots, counters = map(int, struct.unpack_from("<4d", arguments[0], 56))
        assert reply[0] in (-4, -3, -2, -1, 0, 1)
        filled = {0: 8}.get(reply[0], 2) + (5 * (logs + buckets) + slots + 2 * counters) * (reply[0] >= 0)
        named = list(zip(reply[filled::2], reply[filled + 1 :: 2], strict=True))
        assert not named or reply[0] == 1
        if reply[0] == 0:
            check, unit, _used, _asked, wait, never = reply[2:8]
            named.append((check, unit))
            assert never in (0, 1) and wait >= (0 if wait != -1 else -1) and not (never and wait != -1)
        for check, unit in named:
            assert 1 <= check <= logs + buckets + slots + counters
            assert unit in (1, 2) if check <= logs + buckets else unit == 0

    def after_apply(self, keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: list[int]) -> None:
        assert len(reply) == 3 and reply[0] in (0, 1, 2, 3, 4, 5)
        assert reply[2] > 0 if reply[0] == 3 else reply[2] == 0 or reply[0] == 5
        if reply[0] == 5:
            self.names_what_is_damaged(keys, reply[2])

    def names_what_is_damaged(self, keys: Sequence[bytes], position: int) -> None:
        """One of the entry's own counters, from 1; or 0, and it is none of those."""
        short = [key for key, value in self.redis.values.items() if key[:5] == b"cost:" and len(value) < 48]
        named = [key for key in keys if key[:5] == b"cost:"]
        assert named[position - 1] in short if position else short and not {*short} & {*named}

    after_charge = after_apply
    after_once = after_apply
    after_bury = after_apply
    after_quarantine = after_apply

    def after_logack(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: int) -> None:
        assert reply in (0, 1)

    after_logrenew = after_logack

    def after_loglease(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: list[Any]) -> None:
        assert not reply or reply[2] in (0, 1)

    def after_seed(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: int) -> None:
        assert reply in (0, 1)

    def after_recall(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: int) -> None:
        assert reply in (-1, 0, 1)

    def after_looked(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: int) -> None:
        assert reply in (0, 1, 2)

    def after_bring(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: int) -> None:
        assert reply in (0, 1)

    def after_fence(self, _keys: list[bytes], _arguments: Sequence[Any], _: Any, reply: int) -> None:
        assert reply in (0, 1)

    def before_clear(self, keys: list[bytes], _: Sequence[Any]) -> int:
        return len(self.redis.values.get(keys[1], ()))

    def after_clear(self, keys: list[bytes], _: Sequence[Any], before: int, reply: int) -> None:
        assert reply == before - len(self.redis.values.get(keys[1], ()))

    def before_reset(self, keys: list[bytes], arguments: Sequence[Any]) -> int:
        return sum(self.there(key) for key in keys[: int(arguments[0])])

    def after_reset(self, _keys: list[bytes], _arguments: Sequence[Any], before: int, reply: int) -> None:
        assert reply == before

    def before_restore(self, keys: list[bytes], _: Sequence[Any]) -> bool:
        return self.there(keys[0]) and not self.there(keys[1])

    after_restore = after_reset

    def before_reassert(self, keys: list[bytes], arguments: Sequence[Any]) -> int:
        mark = self.redis.execute(b"HGET", keys[0], word(arguments[3]))
        if not self.there(keys[0]) or int(mark or 0) > int(arguments[4]):
            return -1
        return int(self.redis.execute(b"HGET", keys[1], word(arguments[0])) is None)

    after_reassert = after_reset

    def before_push(self, keys: list[bytes], arguments: Sequence[Any]) -> tuple[bool, set[bytes]]:
        new = word(arguments[1]) not in self.redis.values.get(keys[0], {})
        return new, {key for key in keys[1:] if not self.there(key)}

    def after_push(self, _keys: list[bytes], _arguments: Sequence[Any], before: Any, reply: int) -> None:
        new, absent = before
        assert reply == int(new)
        for key in absent:
            raw = self.redis.peek(key)
            assert raw is None or Log(raw).live, "a log is made only for what is in it"


ages = st.sampled_from([-5_000_000, 0, 1, 9_999, 1_000_000, 6_000_000, 59_999_999, 60_000_000, 60_000_001])
extra_moves = st.one_of(
    st.tuples(st.just("orphan"), st.integers(0, 15), st.integers(0, 60)),
    st.tuples(st.just("bury"), st.sampled_from([1, 1, 1, 2])),
    st.tuples(st.just("edge"), st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1, 2])),
    st.tuples(st.just("past"), st.sampled_from([-1, 0, 1]), st.sampled_from([None, None, 0, 10**12])),
    st.tuples(st.just("bring"), st.integers(0, 90)),
    st.tuples(st.just("lose"), st.integers(0, 50)),
    st.tuples(st.just("more"), st.integers(0, 50), st.integers(-1, 2)),
    st.tuples(st.just("stranger"), st.integers(0, 2), st.integers(-1, 2)),
    st.tuples(st.just("flood"), st.integers(0, 20), st.sampled_from([2**40 - 1, 2**40, 2**41, -(2**41)])),
    st.tuples(st.just("overvoid"), st.integers(0, 20), st.integers(0, 3)),
    st.tuples(
        st.just("push"),
        st.integers(0, 5),
        st.sampled_from([0, 0, 1]),
        st.integers(0, 9),
        st.lists(st.tuples(ages, st.integers(0, 4), st.integers(0, 40)), max_size=4),
    ),
    st.tuples(st.just("claim"), st.integers(0, 3)),
    st.tuples(st.just("use"), st.integers(0, 3), st.integers(0, 2), st.integers(-1, 1)),
    st.tuples(st.just("use"), st.integers(0, 3), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("use"), st.integers(0, 3), st.integers(0, 2), st.just(0), st.integers(-1, 1)),
    st.tuples(st.just("use"), st.integers(0, 3), st.integers(0, 2), st.just(0), st.just(0), st.booleans()),
    st.tuples(st.just("told"), st.integers(0, 3), st.integers(1, 9), st.integers(0, 2), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("use_late"), st.integers(0, 3), st.sampled_from([-1, 0, 1])),
    st.tuples(st.just("keep"), st.sampled_from([-1, 0, 1])),
    st.tuples(st.just("remember"), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("looked"), st.integers(0, 3), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("looked"), st.integers(0, 3), st.integers(0, 2), st.just(True)),
    st.tuples(st.just("carry"), st.integers(0, 3), st.integers(1, 2), st.sampled_from([0, 0, 1]), st.booleans()),
    st.tuples(st.just("aside"), st.integers(0, 20), st.sampled_from([-1, 0, 0, 0, 1])),
    st.tuples(st.just("forged"), st.integers(0, 20), st.sampled_from([-1, 1]), st.sampled_from([-1, 0, 1, 2])),
)


def schedules(of: st.SearchStrategy[Move], least: int) -> st.SearchStrategy[list[Move]]:
    """Schedules of moves. Left alone, Hypothesis makes most of them too short to get anywhere."""
    return st.integers(least, 60).flatmap(lambda number: st.lists(of, min_size=number, max_size=number))


def admissions(least: int) -> st.SearchStrategy[Any]:
    """Policies of key, team and organisation, a schedule, and whether scripts ask Redis for the time."""
    of, policies = moves | extra_moves, policies_of(1, 7, 60, 6_000, 100_000)
    return st.tuples(policies, st.none() | policies, st.none() | policies, schedules(of, least), st.booleans())


def _flat(rounds: list[tuple[list[tuple[Move, Move]], list[Move], list[Move]]]) -> list[Move]:
    found: list[Move] = []
    for arrived, ends, others in rounds:
        for wait, admit in arrived:
            found += (wait, admit)
        found += [*ends, *others]
    return found


def togethers(rounds: int) -> st.SearchStrategy[Any]:
    """The same, of little but admissions, apart in time, and ends that come together."""
    admit = st.tuples(st.just("admit"), st.integers(0, 15), st.integers(0, 20))
    short = st.tuples(st.just("wait"), st.sampled_from([0, 10_000, 10_000, 20_000]))
    long = st.tuples(st.just("wait"), st.sampled_from([700_000, 5_950_000, 59_990_000, 60_000_000]))
    others = st.sampled_from(
        [("snapshot", True), ("snapshot", False), ("reset",), ("void", 0), ("skip",), ("state",)]
    )
    ends = st.lists(together, min_size=1, max_size=2)
    arrivals = st.lists(st.tuples(short, admit), min_size=1, max_size=6)
    one = st.tuples(arrivals, ends, st.lists(others | others | long, max_size=2))
    flat = st.lists(one, min_size=rounds, max_size=20).map(_flat)
    windows = st.builds(Window, st.sampled_from(Unit), st.integers(20, 1_000), st.sampled_from([_MINUTE, 6_000_000]))
    policies = st.builds(
        Policy,
        windows=st.lists(windows, min_size=1, max_size=3).map(tuple),
        concurrency=st.none() | st.integers(3, 9),
        budgets=st.lists(st.builds(Budget, st.integers(50, 9_000), st.sampled_from(Period)), max_size=2).map(tuple),
    )
    return st.tuples(policies, st.none() | policies, st.none(), flat, st.booleans())


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

    async def apply(self, entry: Entry, producer: str = "p_1") -> Applied:
        answers: list[Applied | StoreUnavailable] = []
        for store in self.stores():
            store.apply(self.root, producer, entry, answers.append)
        await asyncio.sleep(0)  # the end of the turn
        await asyncio.sleep(0)  # callbacks of a future that is done
        assert len(answers) == 2 and answers[0] == answers[1], answers
        assert isinstance(answers[0], Applied)
        return answers[0]

    async def apply_together(self, entries: list[Entry]) -> list[Applied]:
        """The step itself, without what is done when it refuses."""
        entries = [msgspec.structs.replace(entry, buckets=()) for entry in entries]
        store, _ = self.stores()
        reply = self.lua.run("batch", *settlements_call(store.time_us, self.root, "p_1", entries))
        said = self.tree.apply_all(self.now_us, "p_1", entries)
        assert reply == [_STATUS_NUMBER[said.status], said.mark], (reply, said)
        return [said] * len(entries)

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
        """By itself, and by whoever closes it."""
        dead = f"p_{self.buried + 2}"
        make = close_entry if self.attempts % 2 else bury_entry
        await self.apply(make(number, dead), producer=f"c_{self.buried}")
        await self.apply(Entry(1, EntryKind.VOID), producer=dead)
        self.buried += number == 1

    async def on_edge(self, valid_from: int, not_after: int) -> None:
        """At the first and the last µs in which an admission may run; its periods end in the midst of a ms."""
        self.attempts += 1
        checks = checks_for(self.who, self.now_us)
        spans = [c.span if c.span.ends_us is None else _odd(c.span) for c in checks.counters]
        counters = [msgspec.structs.replace(c, span=s) for c, s in zip(checks.counters, spans, strict=True)]
        valid_from_us = self.now_us + valid_from
        checks = msgspec.structs.replace(checks, valid_from_us=valid_from_us, counters=tuple(counters))
        await self.ask(checks, Demand(f"e{self.attempts}.1", "p_1", 1, 1, self.now_us + not_after))

    async def on_past(self, ends: int, expires: int | None) -> None:
        """A charge to a counter of a period that ends about now."""
        self.attempts += 1
        ref = CounterRef(f"key_1:20{self.attempts:02d}", self.now_us + ends, START_US + (expires or 10**12 + 1))
        if expires == 0:
            ref = CounterRef("key_1:total", 0, 0)
        others = [CounterRef(n, 0, c.expires_us) for n, c in self.tree.counters.items() if n != ref.name]
        counters = (*others[:2], ref)
        entry = Entry(self.number + 1, EntryKind.SETTLE, "gone.1", 3, 1, 5, 7, self.attempts % 2, counters)
        if (await self.apply(entry)).status == "ok":
            self.number += 1

    async def on_ended(self, ends: int) -> None:
        """A correction in a period that ends about now, of a counter that is not there, beside one without an end."""
        self.attempts += 1
        ref = CounterRef(f"key_1:18{self.attempts:02d}", self.now_us + ends, START_US + 10**12 + 1)
        counters = (ref, CounterRef("key_1:total", 0, 0))
        entry = Entry(self.number + 1, EntryKind.CORRECT, f"w{self.attempts}", 3, 1, 5, 7, 0, counters)
        if (await self.apply(msgspec.structs.replace(entry, rank=2, fresh=True))).status == "ok":
            self.number += 1

    async def on_bring(self, cost: int) -> None:
        seed = SeedTotals(START_US + 10**13 + 1, SpendTotals(cost, 1, 2, 3, 4))
        for _ in range(2):
            await self.both(lambda store: store.restore(self.root, f"key_1:old{cost % 3}", seed))

    async def on_flood(self, which: int, tokens: int) -> None:
        """A truth so large that it no longer fits, or so small that it would be negative."""
        await self.end(which, lambda g, d, n: void_entry(n, d, -tokens - 1, -tokens))

    async def on_overvoid(self, which: int, more: int) -> None:
        """More than the run has; the grant stays, so that it may come again."""
        if self.grants:
            grant, dispatch = self.grants[which % len(self.grants)]
            entry = void_entry(self.number + 1, dispatch, grant.demand.requests + more, grant.demand.tokens + more)
            if (await self.apply(msgspec.structs.replace(entry, attempt="none.1", slots=()))).status == "ok":
                self.number += 1

    async def on_push(self, number: int, generation: int, known: int, runs: list[tuple[int, int, int]]) -> None:
        """What was admitted without the store, some of it out of the window by now, some stamped ahead of its clock;
        a push may come again."""
        pushes = []
        for check in checks_for(self.who, self.now_us, None, "anna").logs:
            log = self.tree.logs.get(check.name)
            made_us = log.generation + generation if log else 0
            stamped = tuple((self.now_us - age, requests, tokens) for age, requests, tokens in runs)
            seen_us = self.now_us - 1_000 * known
            pushes.append(
                LogPush(check.name, check.window_us, check.tick_us, made_us, seen_us, known, 5 * known, stamped)
            )
        if any(until_us - 1_000 <= self.now_us for until_us in self.tree.pushed.values()):  # Redis forgets to the ms
            self.tree.pushed.clear()
            self.lua.redis.values.pop(pushed_key(self.root).encode(), None)
        await self.both(lambda store: store.push(self.root, f"push{number}", pushes))

    async def on_claim(self, number: int) -> None:
        """Attempts in flight that the store has no leases of, or has."""
        slots = {slot.name: [f"c{n}.1" for n in range(number)] for slot in checks_for(self.who, self.now_us).slots}
        if number:
            await self.both(lambda store: store.claim(self.root, slots))

    async def on_forged(self, which: int, generation: int, index: int) -> None:
        """A correction of a run that never was: of another generation, or beside the one that was."""
        if self.grants:
            _, dispatch = self.grants[which % len(self.grants)]
            entry = void_entry(self.number + 1, dispatch, 1, 1)
            runs = [msgspec.structs.replace(r, index=r.index + index) for r in entry.runs]
            if not index:
                runs = [msgspec.structs.replace(r, generation=r.generation + generation) for r in entry.runs]
            entry = msgspec.structs.replace(entry, attempt="none.1", slots=(), runs=tuple(runs))
            if (await self.apply(entry)).status == "ok":
                self.number += 1

    async def on_aside(self, which: int, skew: int) -> None:
        """An entry that the store refuses is set aside under its number, and not under another."""
        if self.grants:
            at = which % len(self.grants)
            settled = settle_entry(self.number + 1 + skew, self.grants[at][1], 7, Usage(1, 2, 3), 0)
            answer = await self.apply(quarantined(settled, "p_1", "WRONGTYPE"))
            if answer.status == "ok" and skew == 0:
                self.number += 1
                self.grants.pop(at)

    async def on_told(self, key: int, cost: int, more: int, gate: int) -> None:
        """Under one key come an entry whose caller was not told and one whose caller was, while the tree waits for
        producers (1), to the µs at which it does no more (2), or as it is (0); then the second again, for another."""
        if gate:
            await self.on_gate(7, 1_000_000, new_life=True)
        await self.on_use(key, cost, 0)
        if gate == 2:
            self.now_us = self.tree.gate_us - 1 + more
        await self.on_use(key, cost + more, 0, told=True)
        await self.on_use(key, cost + 1, 0, told=True)

    async def on_use(self, key: int, cost: int, skew: int, had: int = 0, told: bool = False) -> None:
        """A charge under one of a few idempotency keys, by one of two producers, in its order or not; issued again
        for another producer: `had` is the number it had there, above (1) or not (-1) what was applied of it."""
        self.attempts += 1
        producer = "p_1" if self.attempts % 2 else "u_1"
        number = self.number if producer == "p_1" else self.tree.marks.get(producer, 0)
        checks = checks_for(self.who, self.now_us)
        entry = usage_entry(number + 1 + skew, f"d{key}", cost, tuple([counter_ref(c) for c in checks.counters]))
        if had:
            reached = included(self.tree.marks.get("u_1", 0))
            known_to = Origin("u_1" if producer == "p_1" else "p_1", reached + int(had > 0))
            entry = msgspec.structs.replace(entry, origins=(Origin("x_1", 7), known_to))
        entry = msgspec.structs.replace(entry, told=told)
        answer = await self.apply(entry, producer)
        if answer.status == "ok" and producer == "p_1" and skew == 0:
            self.number += 1
            self.entries.append(entry)
        await self.both(lambda store: store.used(self.root, f"d{key}"))

    async def on_use_late(self, key: int, ends: int) -> None:
        """For a counter of a period that ends about now, beside one that has no end."""
        ref = CounterRef(f"key_1:19{key:02d}", self.now_us + ends, START_US + 10**12 + 1)
        entry = usage_entry(self.number + 1, f"d{key}", 5, (CounterRef("key_1:total", 0, 0), ref))
        if (await self.apply(entry)).status == "ok":
            self.number += 1

    async def on_keep(self, more: int) -> None:
        """To the µs in which the oldest idempotency key may be forgotten, or beside it."""
        untils = [k.until_us for k in self.tree.used.values() if k.until_us > self.now_us]
        if untils:
            self.now_us = min(untils) + more

    async def on_remember(self, key: int, cost: int) -> None:
        """The database knows some idempotency keys: by a stranger, and by an entry that is to come."""
        used = {
            f"d{key}": Used(cost, self.now_us + 10**9 + 1, "x_1:1"),
            f"d{key + 1}": Used(cost, self.now_us + 10**9, f"p_1:{self.number + 1}"),
            f"d{key + 2}": Used(cost + 1, self.now_us + 10**9, "x_1:1", ("key_1:total", "key_1:gone")),
            f"d{key + 3}": Used(cost, self.now_us + 10**9, f"p_1:{self.number}", tuple(self.tree.counters)[:2]),
        }
        await self.both(lambda store: store.remember(self.root, used))

    async def on_looked(self, key: int, cost: int, right: bool) -> None:
        """One key is looked up while all are on their way, or in another memory; the database may not know it."""
        known = Used(cost, self.now_us + 10**9 + 1, "x_1:1") if cost else None
        run = self.tree.run if right and self.tree.run else "another"
        await self.both(lambda store: store.looked_up(self.root, run, f"d{key}", known))

    async def on_carry(self, key: int, bearer: int, lease_us: int, last: bool) -> None:
        """Some of them are brought, by one of two; the other waits, to the µs."""
        used = {f"d{n}": Used(n + 1, self.now_us + 10**9 + n, "x_1:1") for n in range(key)}
        for run in ("another", self.tree.run or ""):
            bring = _bringing(self.root, run, f"p_{bearer}", used, lease_us, last)
            await self.both(bring)

    async def on_lose(self, cost: int) -> None:
        """The store restarts empty, is seeded, and what is in flight is held again; each step may be repeated."""
        snapshot = await self.both(lambda store: store.snapshot(self.root))
        self.lua.redis.values.clear()
        self.lua.redis.expires_ms.clear()
        self.memory._trees.clear()
        await self.on_bring(cost)
        await self.on_reassert()
        grants = list(self.grants)
        self.attempts += 1
        await self.on_seed(0, cost)
        self.grants = grants
        await self.on_reassert()
        await self.on_reassert()
        if snapshot is not None:  # what was read from the lost memory clears nothing in this one
            used = snapshot.content.used
            await self.both(
                lambda store: store.clear(self.root, snapshot.run, snapshot.life, snapshot.versions, used)
            )

    async def on_more(self, cost: int, mark: int) -> None:
        """A database that knows several counters, one without an end, and producers that this memory does not."""
        self.attempts += 1
        names = [c.name for c in checks_for(self.who, self.now_us).counters]
        totals = {
            name: SeedTotals(START_US + 10**12 + n, SpendTotals(cost + n, 2 + n, 30 + n, 400 + n, 5000 + n))
            for n, name in enumerate([*names, "key_1:total"])
        }
        totals["key_1:total"] = SeedTotals(0, SpendTotals(cost, 1, 2, 3, 4))
        marks = {"p_1": self.number}
        if mark >= 0:
            marks[f"n_{self.attempts % 3}"] = mark
        if await self.both(
            lambda store: store.seed(
                self.root, f"more{self.attempts}", marks, totals, lost=cost % 4 == 1, keys_follow=cost % 5 == 4
            )
        ):
            self.run = f"more{self.attempts}"
            await self.on_reassert()

    async def on_stranger(self, entries: int, gap: int) -> None:
        """A producer that nobody has heard of: its entries, some without counters, then its close."""
        self.attempts += 1
        producer = f"q_{self.attempts}"
        refs = [CounterRef(name, 0, counter.expires_us) for name, counter in self.tree.counters.items()]
        for number in range(1, entries + 1):
            counters = tuple(refs[:1]) if number % 2 else ()
            await self.apply(Entry(number, EntryKind.SETTLE, "x.1", 5, 1, 2, 3, number - 1, counters), producer)
        for number in (2, 1, 1):
            ranked = Entry(
                number, EntryKind.PRESUME, f"s{number}.1", 4, 1, counters=tuple(refs[:1]), rank=1, fresh=True
            )
            await self.apply(ranked, f"r_{producer}")
        closer = f"c_{producer}"
        await self.apply(close_entry(1 + gap, producer), closer)
        await self.apply(close_entry(1, producer), closer)
        await self.apply(Entry(entries + 1, EntryKind.SETTLE, "x.1", 5, 1, 2, 3, 0, ()), producer)

    async def on_known(self, marks: Sequence[tuple[str, int, bool]]) -> None:
        """A database that knows how far producers got, and which are buried; an attempt is recalled, and the tree is
        seeded if it has less."""
        self.attempts += 1
        known = {"p_1": self.number} | {p: number + BURIED * buried for p, number, buried in marks}
        memory = await self.both(lambda store: store.memory(self.root))
        await self.both(lambda store: store.recall(self.root, memory, f"k{self.attempts}.1", UNCHARGED, known))
        if await self.both(lambda store: store.seed(self.root, f"known{self.attempts}", known, {}, lost=False)):
            self.run = f"known{self.attempts}"
            self.grants.clear()

    async def on_refund(self, which: int, tokens: int) -> None:
        """So many tokens come back to the buckets of an attempt, which stays."""
        if self.grants:
            _, dispatch = self.grants[which % len(self.grants)]
            entry = void_entry(self.number + 1, dispatch, 1, 1)
            buckets = tuple([msgspec.structs.replace(b, tokens=tokens) for b in entry.buckets])
            entry = msgspec.structs.replace(entry, attempt="none.1", runs=(), slots=(), buckets=buckets)
            if (await self.apply(entry)).status == "ok":
                self.number += 1

    # Everything that is stored

    def compare(self) -> None:
        redis, tree, root = self.lua.redis, self.tree, self.root
        texts = {k.decode(): v.decode() for k, v in redis.values.get(marks_key(root).encode(), {}).items()}
        gate = (texts.pop(".server", None), int(texts.pop(".gate", 0)), texts.pop(".waits", ""))
        assert gate == (tree.server, tree.gate_us, ",".join(tree.waits))
        assert int(texts.pop(".drops", 0)) == tree.drops
        assert texts.pop(".fence", "") == " ".join([f"{life} {number}" for life, number in tree.numbers.items()])
        records = redis.values.get(charges_key(root).encode(), {})
        assert {k.decode(): v.decode() for k, v in records.items()} == {a: c.text() for a, c in tree.charges.items()}
        keys = texts.pop(".keys", None)
        assert keys == (None if tree.keys is None else f"{tree.keys[0]} {tree.keys[1]}")
        sync = texts.pop("sync", None)
        assert sync == (tree._flag() if tree.run else None)
        assert texts.pop("run", None) == tree.run and {k: int(v) for k, v in texts.items()} == tree.marks
        flags = redis.values.get(changed_key(root).encode(), {})
        assert {k.decode(): v.decode() for k, v in flags.items()} == tree.changed
        assert set(redis.values.get(looked_key(root).encode(), {})) == {d.encode() for d in tree.looked}
        for forever in (marks_key(root), hold_key(root), changed_key(root)):
            assert forever.encode() not in redis.expires_ms
        self.compare_holds()
        self.compare_counters()
        self.compare_used()
        for name, log in tree.logs.items():
            self.compare_log(log_key(root, name).encode(), log)
        for name, bucket in tree.buckets.items():
            compare_bucket(self.lua, bucket_key(root, name).encode(), bucket, self.now_us, expires=self.server_time)
        for name, leases in tree.slots.items():
            key = slot_key(root, name).encode()
            stored = {k.decode(): v for k, v in (redis.peek(key) or {}).items()}
            now_us = self.now_us if self.server_time else 0
            assert {a: t for a, t in stored.items() if t > now_us} == {a: t for a, t in leases.items() if t > now_us}
            if stored and self.server_time:
                assert self.now_us // 1000 <= redis.expires_ms[key] <= self.now_us // 1000 + 30_000

    def compare_holds(self) -> None:
        stored = self.lua.redis.values.get(hold_key(self.root).encode(), {})
        assert list(stored) == [a.encode() for a in self.tree.holds]
        for attempt, hold in self.tree.holds.items():
            slots = ",".join(s or ROOT_SLOT for s in hold.slots)
            numbers = [number for part in (hold.runs, hold.buckets) for taken in part for number in taken]
            runs = struct.pack(f"<{len(numbers)}d", *numbers)
            text = f"{hold.amount}\n{hold.producer}\n{','.join(hold.counters)}\n{slots}\n"
            assert stored[attempt.encode()] == text.encode() + runs

    def compare_counters(self) -> None:
        prefix = counter_key(self.root, "").encode()
        stored = {k[len(prefix) :].decode(): v for k, v in self.lua.redis.values.items() if k.startswith(prefix)}
        fields = ("cost", "held", "requests", "input", "output", "cached")
        assert set(stored) == set(self.tree.counters)
        for name, counter in self.tree.counters.items():
            numbers, flag = struct.unpack("<6d", stored[name][:48]), stored[name][48:].decode()
            assert numbers == tuple([getattr(counter, field) for field in fields])
            assert self.tree.changed.get(name) == flag or flag != self.tree._flag()
            expires_ms = self.lua.redis.expires_ms.get(prefix + name.encode())
            if name.startswith("key_1:old"):
                assert expires_ms is not None
            else:
                assert expires_ms == (-(-counter.expires_us // 1000) if counter.expires_us else None)

    def compare_used(self) -> None:
        redis, prefix = self.lua.redis, used_key(self.root, "").encode()
        texts = {k[len(prefix) :].decode(): v.decode() for k, v in redis.values.items() if k.startswith(prefix)}
        stored = {digest: used_from(text) for digest, text in texts.items()}
        for digest, known in self.tree.used.items():
            assert stored.get(digest) == known or known.until_us <= self.now_us
            if digest in stored:
                assert redis.expires_ms[prefix + digest.encode()] == -(-known.until_us // 1000)
        assert set(stored) <= set(self.tree.used)
        unsaved = redis.values.get(unsaved_key(self.root).encode(), {})
        assert {k.decode(): used_from(v.decode()) for k, v in unsaved.items()} == self.tree.unsaved

    def compare_log(self, key: bytes, twin: RunLog) -> None:
        raw = self.lua.redis.peek(key)
        if raw is None:
            assert not twin.runs or twin.last_us + twin.window_us <= self.now_us
            return
        log = Log(raw)
        log.equals(twin)
        if self.server_time:
            log.lives_long_enough(twin.window_us, self.lua.redis.expires_ms[key])


def _bringing(
    root: str, run: str, bearer: str, used: Mapping[str, Used], lease_us: int, last: bool
) -> Callable[[Store], Any]:
    return lambda store: store.bring(root, run, bearer, used, lease_us=lease_us, last=last)


def _odd(span: Span) -> Span:
    assert span.ends_us is not None
    return msgspec.structs.replace(span, ends_us=span.ends_us + 1)


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
    assert await pair.both(lambda store: store.flag("org_1", ["key_1:total"])) == 0
    await pair.apply(close_entry(1, "p_3"), producer="p_2")
    await pair.apply(Entry(1, EntryKind.PRESUME, "x.1", rank=1), producer="p_2")
    assert await pair.both(lambda store: store.memory("org_1")) is None
    await pair.apply(Entry(1, EntryKind.VOID))
    await pair.apply(usage_entry(1, "d0", 1, ()))
    await pair.on_seed(0, 7)
    for move in schedule:
        await pair.step(move)
        pair.compare()
    await pair.on_state()
    await pair.on_snapshot(clear=True)
    pair.compare()


async def play_step(lua: LuaRedis) -> None:
    """What schedules seldom reach: several entries in one step on a cold tree, of a producer that nobody knows, on a
    counter that is none, and with a run that a log does not have yet."""
    policy = Policy(windows=(Window(Unit.TOKENS, 99),), budgets=(Budget(99, Period.TOTAL),))
    pair = LuaPair(lua, principal("org_1", policy, None, None), server_time=False)
    store, _ = pair.stores()

    def step(*entries: Entry) -> Any:
        return lua.run("batch", *settlements_call(store.time_us, "org_1", "p_new", entries))

    void = Entry(1, EntryKind.VOID, "x.1")
    assert step(void, msgspec.structs.replace(void, number=2)) == [2, 0]
    await pair.on_seed(0, 7)
    for ahead in (2, 9):
        assert step(msgspec.structs.replace(void, number=ahead)) == [1, 0]
    assert step(void, msgspec.structs.replace(void, number=2)) == [0, 2]
    await pair.on_admit(9, 9)
    (grant, dispatch) = pair.grants[0]
    log = pair.tree.logs[dispatch.runs[0].name]
    later = [msgspec.structs.replace(run, index=run.index + 1) for run in dispatch.runs]
    settled = settle_entry(3, msgspec.structs.replace(dispatch, runs=tuple(later)), 5, Usage(1), 3)
    assert step(settled, Entry(4, EntryKind.VOID, "x.2")) == [0, 4]
    Log(lua.redis.values[log_key("org_1", dispatch.runs[0].name).encode()]).equals(log)
    counter = counter_key("org_1", grant.checks.counters[0].name).encode()
    for length, said in ((47, [5, 4]), (48, [0, 5])):
        lua.redis.values[counter] = lua.redis.values[counter][:length].ljust(length, b"\0")
        before = dict(lua.redis.values)
        assert step(msgspec.structs.replace(settled, number=5)) == said
        assert said[0] == 0 or lua.redis.values == before


async def play_window(lua: LuaRedis, example: tuple[int, list[Move]]) -> None:
    """One schedule of a sliding window; the scripts ask for the time themselves, and keys expire."""
    window_us, schedule = example
    memory: list[MemoryLimits] = []
    trial = WindowTrial([lambda now_us: _memory(memory, now_us), lambda _: _scripts(lua)], window_us, "x")
    lua.begin(lambda: trial.now_us)
    key = f"ratelimit:{{x}}:{window_us}".encode()
    before: Log | None = None
    for number, move in enumerate(schedule):
        await trial.step(move)
        twin, raw = memory[0]._logs.get(key.decode()), lua.redis.peek(key)
        if raw is None or twin is None:
            assert twin is None or not twin.runs or twin.last_us + window_us <= trial.now_us
            before = None
            continue
        log = Log(raw)
        log.follows(before)
        log.lives_long_enough(window_us, lua.redis.expires_ms[key])
        before = log
        if number < 200 or number % 100 == 0:
            twin.generation, twin.head = log.header["generation"], log.header["head"]
            log.equals(twin)


async def play_bucket(lua: LuaRedis, schedule: list[Move]) -> None:
    """One schedule of a token bucket."""
    memory: list[MemoryLimits] = []
    trial = BucketTrial([lambda now_us: _memory(memory, now_us), lambda _: _scripts(lua)], "x")
    lua.begin(lambda: trial.now_us)
    for move in schedule:
        await trial.step(move)
        twin = memory[0]._buckets.get("tokenbucket:{x}")
        if twin is None:
            assert lua.redis.peek(b"tokenbucket:{x}") is None
        else:
            compare_bucket(lua, b"tokenbucket:{x}", twin, trial.now_us, expires=True)


def compare_bucket(lua: LuaRedis, key: bytes, twin: Bucket, now_us: int, *, expires: bool) -> None:
    """The stored fields are the twin's, and the key is there until the bucket is full."""
    raw = lua.redis.peek(key)
    if raw is None:
        assert twin.full_us <= now_us
        return
    micro, sixtieths, last_us, full_us, generation, returned = map(int, struct.unpack("<6d", raw))
    assert 0 <= sixtieths < 60
    assert (micro * 60 + sixtieths, last_us, full_us) == (twin.level, twin.last_us, twin.full_us)
    assert (generation, returned) == (twin.generation, twin.returned)
    if expires:
        assert 0 <= lua.redis.expires_ms[key] * 1000 + 999 - full_us < 2000


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
    now_ms = START_US // 1000
    assert lua.redis.expires_ms[b"k"] == now_ms + (120_000 if script == "allow" else 5_000)
    if script == "allow":  # two windows of 7.001 ms, rounded up
        lua.run("allow", ["odd"], [struct.pack("<8d", 0, 0, 7_001, 1, 5, 1, 0, 0)])
        assert lua.redis.expires_ms[b"odd"] == now_ms + 15


async def play_limits_of_nothing(lua: LuaRedis) -> None:
    """Limits of zero refuse, in shadow they report; a lease is rounded up to the ms."""
    lua.begin(lambda: START_US)
    lua.redis.execute(b"HSET", b"m", b"run", b"r")

    def admit(attempt: str, *limits: int) -> Any:
        moving = struct.pack("<7d", 0, 0, START_US + 1, 1, 1, 0, 1_500)
        plan = struct.pack("<12d", 1, 0, 1, 0, 60_000_000, 10_000, *limits, 1, 0)
        return lua.run("admit", ["m", "h", "log", "slots"], [moving + plan, attempt, "0\np\n\n.\n", "p", ""])

    state = [0, -1, 0, 0, 0, 0]
    assert admit("a", 0, -1, -1, -1) == [0, START_US, 1, 1, 0, 1, -1, 1, *state]
    assert admit("a", -1, 0, -1, -1) == [0, START_US, 1, 2, 0, 1, -1, 1, *state]
    assert admit("a", -1, -1, 0, 0) == [1, START_US, START_US, 0, 1, 1, 60_006_544, 1, 1, 1, 1, 2]
    assert lua.redis.expires_ms[b"slots"] == START_US // 1000 + 2
    assert admit("b", -1, -1, -1, -1) == [0, START_US, 2, 0, 1, 1, -1, 0, START_US, -1, 1, 1, 60_006_544, 1]


async def play_heavy_runs(lua: LuaRedis) -> None:
    """What is cut off takes no byte of what stays, though every byte of a run is in use."""
    now_us = START_US
    lua.begin(lambda: now_us)
    lua.redis.execute(b"HSET", b"m", b"run", b"r")
    plan = struct.pack("<10d", 1, 0, 0, 0, 1_000, 1, -1, -1, -1, -1)
    heavy = 2**40 - 1
    for number in range(1_200):
        now_us += 10
        moving = struct.pack("<7d", 0, 0, now_us + 1, heavy, heavy, 0, 1)
        lua.run("admit", ["m", "h", "log"], [moving + plan, f"a{number}", "0\np\n\n\n", "p", ""])
    log = Log(lua.redis.values[b"log"])
    assert log.header["first"] > 1_000 and {tuple(run[1:]) for run in log.runs()} == {(heavy, heavy)}


def _memory(made: list[MemoryLimits], now_us: Callable[[], int]) -> LimitStore:
    made.append(MemoryLimits(now_us))
    return made[-1]


def _scripts(lua: LuaRedis) -> LimitStore:
    return RedisLimits(LuaClient(lua), deadline_s=1e6)


def play(sources: Mapping[str, str] | None, work: Callable[[LuaRedis], Coroutine[Any, Any, None]]) -> None:
    """Run `work` on a fresh Lua."""
    asyncio.run(work(CheckedLua(lambda: START_US, sources)))
