"""Promises 1, 2 and 3: on any schedule the Lua scripts on a real Redis and their Python twin answer the same, and the
windows agree with a brute-force oracle."""

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers.redis import RedisServer
from tollkeeper.domain.admission import Checks, CounterRef, Demand, Grant, Reply, Status, checks_for, counter_ref
from tollkeeper.domain.charges import UNCHARGED, Charge
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
    is_plain,
    presume_entry,
    settle_entry,
    void_entry,
)
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, Principal, Scope, ScopeKind, TokenBucket, Unit, Window
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.recovery import UNKNOWN
from tollkeeper.domain.usage import Usage
from tollkeeper.governance.memory import MemoryStore
from tollkeeper.governance.redis_keys import marks_key
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.governance.store import Held, SeedTotals, Store
from tollkeeper.settings import StoreSettings

START_US = 4_101_900_000_123_456
"""Far in the future, so that expiry by Redis' own clock takes nothing away."""
MODELS = (None, "gpt-4o", "gpt-4o-mini", "claude")
USERS = (None, "", "anna", "b:u:c", "anna")
roots = itertools.count()


def principal(root: str, key: Policy, team: Policy | None, organisation: Policy | None) -> Principal:
    scopes = [Scope(ScopeKind.KEY, "key_1", key)]
    if team is not None:
        scopes.append(Scope(ScopeKind.TEAM, "team_1", team))
    if organisation is not None:
        scopes.append(Scope(ScopeKind.ORGANISATION, root, organisation))
    return Principal("key_1", "k", root, tuple(scopes))


windows = st.builds(
    Window,
    st.sampled_from(Unit),
    st.integers(1, 40),
    st.sampled_from([60_000_000, 6_000_000, 7_000_001]),
    st.sampled_from([None, None, "gpt-*", "gpt-4o"]),
    st.sampled_from([False, False, True]),
    st.sampled_from([False, False, True]),
)


def policies_of(*rates: int) -> st.SearchStrategy[Policy]:
    """Policies whose buckets gain so much a minute."""
    buckets = st.builds(
        TokenBucket,
        st.sampled_from(Unit),
        st.sampled_from(rates),
        st.sampled_from([1, 3, 15, 40]),
        st.sampled_from([None, None, "gpt-*"]),
        st.sampled_from([False, False, True]),
        st.sampled_from([False, False, True]),
    )
    return st.builds(
        Policy,
        windows=st.lists(windows, max_size=4).map(tuple),
        concurrency=st.none() | st.integers(1, 4),
        concurrency_shadow=st.booleans(),
        budgets=st.lists(st.builds(Budget, st.integers(0, 200), st.sampled_from(Period)), max_size=2).map(tuple),
        buckets=st.lists(buckets, max_size=2).map(tuple),
    )


policies = policies_of(1, 2, 3)
"""So slow that no bucket is full by Redis' own clock before the test's."""
ends = st.tuples(
    st.integers(0, 20),
    st.integers(0, 80),
    st.integers(0, 30),
    st.sampled_from(["settle", "settle", "void", "flood"]),
    st.sampled_from([0, 2**40 - 1, 2**41, -(2**41)]),
)
together = st.tuples(
    st.just("together"),
    st.lists(ends, min_size=1, max_size=5),
    st.sampled_from([0, 0, 0, 0, 0, -2, -1, 1]),
    st.none() | st.tuples(st.integers(0, 4), st.sampled_from([-1, 0, 1, None])),
)
"""Not among the moves, from which the trials of mutants are drawn: they have schedules of their own for it."""
moves = st.one_of(
    st.tuples(
        st.just("wait"), st.sampled_from([0, 1, 37, 5_000, 10_000, 700_000, 6_000_000, 59_990_000, 60_000_000])
    ),
    st.tuples(st.just("back"), st.sampled_from([1, 900_000, 1_020_000, 90_000_000])),
    st.tuples(st.just("admit"), st.integers(0, 15), st.integers(0, 60)),
    st.tuples(st.just("admit"), st.integers(0, 15), st.integers(0, 60)),
    st.tuples(st.just("again"), st.integers(0, 20)),
    st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 80), st.integers(0, 30)),
    st.tuples(st.just("presume"), st.integers(0, 20)),
    st.tuples(st.just("void"), st.integers(0, 20)),
    st.tuples(st.just("resend"), st.integers(0, 20)),
    st.tuples(st.just("skip")),
    st.tuples(st.just("close"), st.sampled_from([2, 3, 9]), st.booleans()),
    *[
        st.tuples(
            st.just("rank"),
            st.integers(0, 5),
            st.integers(0, 4),
            st.integers(0, 60),
            st.booleans(),
            st.none() | st.tuples(st.sampled_from([2, 3, 9, 9]), st.integers(0, 2), st.booleans()),
        )
    ]
    * 3,
    st.tuples(st.just("drop"), st.sampled_from([2, 3, 9])),
    st.tuples(st.just("held")),
    st.tuples(st.just("reset")),
    st.tuples(st.just("seed"), st.integers(0, 3), st.integers(0, 50)),
    st.tuples(st.just("reassert")),
    st.tuples(st.just("reassert"), st.integers(-2, 1)),
    st.tuples(st.just("reassert"), st.integers(0, 3), st.sampled_from([2, 9])),
    st.tuples(st.just("gate"), st.integers(0, 15), st.sampled_from([0, 1, 700_000]), st.booleans()),
    st.tuples(st.just("gate"), st.integers(0, 15), st.sampled_from([0, 1, 700_000]), st.booleans()),
    st.tuples(st.just("ready"), st.integers(1, 3), st.sampled_from([True, True, False])),
    st.tuples(st.just("ready"), st.integers(1, 3), st.sampled_from([True, True, False])),
    st.tuples(st.just("life")),
    st.tuples(st.just("fence"), st.integers(1, 5), st.booleans()),
    st.tuples(st.just("flag"), st.booleans()),
    st.tuples(st.just("renew")),
    st.tuples(st.just("wait"), st.sampled_from([29_999_999, 30_000_000])),
    st.tuples(st.just("state")),
    st.tuples(st.just("snapshot"), st.booleans()),
)


class Pair:
    """Drives memory and Redis with the same moves and compares every answer."""

    def __init__(self, redis: RedisStore, who: Principal) -> None:
        self.now_us = START_US
        self.redis, self.memory = redis, MemoryStore(lambda: self.now_us)
        self.who, self.root = who, who.root
        self.memory.life = redis.client.life_of(marks_key(who.root))
        self.grants: list[tuple[Grant, Dispatch]] = []
        self.entries: list[Entry] = []
        self.number = 0
        self.attempts = self.gates = self.lives = 0
        self.run = ""

    def stores(self) -> tuple[Store, Store]:
        self.redis.time_us = self.now_us
        return self.redis, self.memory

    async def both(self, call: Callable[[Store], Any]) -> Any:
        one, two = [await call(store) for store in self.stores()]
        assert one == two
        return two

    async def apply(self, entry: Entry, producer: str = "p_1") -> Applied:
        answers: list[Applied | StoreUnavailable] = []
        arrived = asyncio.Event()

        def done(answer: Applied | StoreUnavailable) -> None:
            answers.append(answer)
            if len(answers) == 2:
                arrived.set()

        for store in self.stores():
            store.apply(self.root, producer, entry, done)
        await arrived.wait()
        assert isinstance(answers[0], Applied) and answers[0] == answers[1], answers
        return answers[0]

    async def admit(self, attempt: str, tokens: int, hold: int) -> tuple[Reply, Checks, Demand]:
        model, user = MODELS[self.attempts % len(MODELS)], USERS[self.attempts % len(USERS)]
        checks = checks_for(self.who, self.now_us, model, user)
        demand = Demand(attempt, "p_1", tokens, hold, self.now_us + 1000)
        reply: Reply = await self.both(lambda store: store.admit(checks, demand))
        return reply, checks, demand

    async def step(self, move: tuple[Any, ...]) -> None:
        kind, *args = move
        await getattr(self, f"on_{kind}")(*args)

    async def on_wait(self, us: int) -> None:
        self.now_us += us

    async def on_back(self, us: int) -> None:
        self.now_us -= us

    async def on_admit(self, tokens: int, hold: int) -> None:
        self.attempts += 1
        reply, checks, demand = await self.admit(f"a{self.attempts}.1", tokens, hold)
        if reply.status is Status.ADMITTED:
            grant = Grant(demand, checks, reply)
            self.grants.append((grant, dispatch_of(grant)))

    async def on_again(self, which: int) -> None:
        if self.grants:
            grant, _ = self.grants[which % len(self.grants)]
            demand = Demand(grant.demand.attempt, "p_1", 1, 1, self.now_us + 1000)
            held = (
                demand.attempt in self.memory.tree(self.root).holds
            )  # a charge of whoever presumed it may have ended it
            reply = await self.both(lambda store: store.admit(grant.checks, demand))
            assert not held or reply.status in (Status.ADMITTED, Status.LATE, Status.RECOVERING)

    async def end(self, which: int, make: Callable[[Grant, Dispatch, int], Entry]) -> None:
        if self.grants:
            grant, dispatch = self.grants.pop(which % len(self.grants))
            entry = make(grant, dispatch, self.number + 1)
            answer = await self.apply(entry)
            if answer.status == "ok":
                self.number += 1
                self.entries.append(entry)

    async def on_settle(self, which: int, cost: int, tokens: int) -> None:
        usage = Usage(input_tokens=tokens, output_tokens=1, cached_tokens=tokens // 2)
        await self.end(which, lambda g, d, n: settle_entry(n, d, cost, usage, tokens + 1 - g.demand.tokens))

    async def on_together(
        self, ends: list[tuple[int, int, int, str, int]], shift: int, past: tuple[int, int | None] | None
    ) -> None:
        """Ends that one turn of the event loop brings. `shift`: some of the numbers came before, or one is missing;
        `past`: one of the entries charges a counter of a period that ends about now, or never, too."""
        entries: list[Entry] = []
        taken: list[tuple[Grant, Dispatch]] = []
        for which, cost, tokens, kind, more in ends[: len(self.grants)]:
            taken.append(self.grants.pop(which % len(self.grants)))
            demand, dispatch = taken[-1][0].demand, taken[-1][1]
            number = self.number + 1 + shift + len(entries)
            usage = Usage(input_tokens=tokens, output_tokens=1, cached_tokens=tokens // 2)
            if kind == "settle":
                entries.append(settle_entry(number, dispatch, cost, usage, tokens + 1 - demand.tokens))
            elif kind == "void":
                entries.append(void_entry(number, dispatch, demand.requests, demand.tokens))
            else:
                entries.append(void_entry(number, dispatch, -more, more - demand.tokens))
        if not entries or entries[0].number < 1:
            self.grants += taken
            return
        if past is not None:
            which, ends_in = past[0] % len(entries), past[1]
            ref = CounterRef(f"key_1:21{self.number:02d}", 0, 0)
            if ends_in is not None:
                ref = CounterRef(ref.name, self.now_us + ends_in, START_US + 10**12 + 1)
            counters = (*entries[which].counters, ref)
            entries[which] = msgspec.structs.replace(entries[which], counters=counters)
        answers = await self.apply_together(entries)
        for entry, answer, back in zip(entries, answers, taken, strict=True):
            if answer.status == "ok" and entry.number > self.number:
                self.number += 1
                self.entries.append(entry)
            else:
                self.grants.append(back)

    async def apply_together(self, entries: list[Entry]) -> list[Applied]:
        """The memory's answers, which are Redis' too: in one step, or if that refuses, one after the other."""
        self.stores()
        answers: dict[int, Applied | StoreUnavailable] = {}
        arrived = asyncio.Event()

        def put(number: int, answer: Applied | StoreUnavailable) -> None:
            answers[number] = answer
            if len(answers) == len(entries):
                arrived.set()

        for number, entry in enumerate(entries):
            self.redis.apply(self.root, "p_1", entry, partial(put, number))
        await arrived.wait()
        tree = self.memory.tree(self.root)
        plain = all(is_plain(entry) for entry in entries)
        expected: list[Applied] = []
        if plain:
            expected = [tree.apply_all(self.now_us, "p_1", entries)] * len(entries)
        if not plain or expected[0].status is not AppliedStatus.OK:
            expected = [tree.apply(self.now_us, "p_1", entry, self.memory.life) for entry in entries]
        for number, one in enumerate(expected):
            answer = answers[number]
            assert isinstance(answer, Applied)
            # Some of a mixture may have gone together: then they are told one mark.
            assert answer == one or (not plain and (answer.status, answer.absent) == (one.status, one.absent))
        return expected

    async def on_presume(self, which: int) -> None:
        await self.end(which, lambda g, d, n: presume_entry(n, d))

    async def on_void(self, which: int) -> None:
        await self.end(which, lambda g, d, n: void_entry(n, d, g.demand.requests, g.demand.tokens))

    async def on_resend(self, which: int) -> None:
        if self.entries:
            await self.apply(self.entries[which % len(self.entries)])

    async def on_skip(self) -> None:
        await self.apply(Entry(self.number + 2, self.entries[0].kind if self.entries else EntryKind.VOID))

    async def on_close(self, dead: int, release: bool) -> None:
        """A producer that may never have been there."""
        make = close_entry if release else bury_entry
        if (await self.apply(make(self.number + 1, f"p_{dead}"))).status == "ok":
            self.number += 1

    async def on_rank(
        self, which: int, rank: int, cost: int, fresh: bool, origin: tuple[int, int, bool] | None
    ) -> None:
        """A charge with a rank, of an attempt that is held or was, or of one of its own."""
        counters: tuple[CounterRef, ...] = ()
        slots: tuple[str, ...] = ()
        attempt = f"r{which}"
        tree = self.memory.tree(self.root)
        if which == 3 and tree.holds:  # whoever holds it
            attempt, hold = next(iter(tree.holds.items()))
            counters = tuple([CounterRef(n, 0, tree.counters[n].expires_us) for n in hold.counters])
            slots = hold.slots
        elif self.grants and which < 3:
            _, dispatch = self.grants[which % len(self.grants)]
            attempt, counters, slots = dispatch.attempt, dispatch.counters, dispatch.slots
        else:
            counters = tuple([counter_ref(c) for c in checks_for(self.who, self.now_us).counters])
        origins = () if origin is None else (Origin(f"p_{origin[0]}", origin[1], origin[2]),)
        entry = Entry(
            self.number + 1,
            EntryKind.CORRECT,
            attempt,
            cost,
            which % 2,
            rank,
            which,
            cost % 3,
            counters=counters,
            slots=slots,
            rank=rank,
            fresh=fresh,
            origins=origins,
            note="why",
        )
        for _ in range(3):
            answer = await self.apply(entry)
            if answer.status == "unknown":
                await self.on_recall(attempt, rank, cost)
            elif answer.status == "ok":
                self.number += 1
                self.entries.append(entry)
                return
            else:
                return

    async def on_recall(self, attempt: str, rank: int, cost: int) -> None:
        memory = await self.both(lambda store: store.memory(self.root))
        if memory is None:
            return
        charge = Charge(rank % 2, cost, 1, 2, 3, 4, "" if cost % 2 else "{}") if cost % 3 else UNCHARGED
        marks = {"p_1": self.number} if cost % 5 else {"p_1": self.number + 1}
        if cost % 7 == 0:
            memory = msgspec.structs.replace(memory, drops=memory.drops + 1)
        if cost % 11 == 0:
            memory = msgspec.structs.replace(memory, run="another")
        await self.both(lambda store: store.recall(self.root, memory, attempt, charge, marks))

    async def on_drop(self, dead: int) -> None:
        await self.both(lambda store: store.drop_marks(self.root, [f"p_{dead}", "p_nobody"]))

    async def on_held(self) -> None:
        async def by_attempt(store: Store) -> list[Held]:  # Redis tells them in any order
            return sorted(await store.held(self.root), key=lambda hold: hold.attempt)

        await self.both(by_attempt)

    async def on_reset(self) -> None:
        checks = checks_for(self.who, self.now_us)
        logs, slots = [c.name for c in checks.logs], [s.name for s in checks.slots]
        buckets = [b.name for b in checks.buckets]
        await self.both(lambda store: store.reset(self.root, logs, slots, buckets))

    async def on_seed(self, ahead: int, cost: int) -> None:
        marks = {"p_1": self.number + ahead, "p_9": 1}
        name = checks_for(self.who, self.now_us).counters[0].name
        totals = {name: SeedTotals(self.now_us + 10**12, SpendTotals(cost, 1, 2, 3, 1))}
        if await self.both(
            lambda store: store.seed(
                self.root, f"run{self.attempts}", marks, totals, lost=cost % 4 == 1, keys_follow=cost % 5 == 4
            )
        ):
            self.run = f"run{self.attempts}"
            self.number += ahead
            self.grants.clear()

    async def on_gate(self, open_producers: int, grace_us: int, new_life: bool) -> None:
        """Who is waited for: any of three producers, and others that there may be (8)."""
        if new_life:
            await self.on_life()
        named = [f"p_{n}" for n in range(1, 4) if open_producers & 2 ** (n - 1)]
        named += [UNKNOWN] * (open_producers >= 8)
        self.gates += 1
        gate = await self.both(lambda store: store.gate(self.root, f"gate{self.gates}", grace_us, named))
        if gate is not None:
            self.run = gate.run

    async def on_ready(self, which: int, right: bool) -> None:
        await self.both(lambda store: store.ready(self.root, self.run if right else "another", f"p_{which}"))

    async def on_life(self) -> None:
        """The server lives another life, with the memory it had."""
        self.lives += 1
        self.memory.life = f"life{self.root}.{self.lives}"  # a name that no other pair on this server has used
        if hasattr(self.redis.client, "life"):
            self.redis.client.life = self.memory.life
        else:
            client = self.redis.client
            node = client._only or client._node_of(marks_key(self.root))
            node.lead.life = self.memory.life

    async def on_reassert(self, skew: int = 0, producer: int = 1) -> None:
        """As of the producer's last number; or late, when the store is beyond it or has buried it."""
        number, dispatches = self.number * (producer == 1) + skew, [dispatch for _, dispatch in self.grants]
        await self.both(lambda store: store.reassert(self.root, f"p_{producer}", number, dispatches))

    async def on_renew(self) -> None:
        leases = {self.root: {dispatch.attempt: dispatch.slots for _, dispatch in self.grants}}
        await self.both(lambda store: store.renew(leases))

    async def on_state(self) -> None:
        await self.admit("", 0, 0)

    async def on_snapshot(self, clear: bool) -> None:
        snapshot = await self.both(lambda store: store.snapshot(self.root))
        if clear and snapshot is not None:
            content = snapshot.content
            life, versions = snapshot.life, snapshot.versions
            await self.both(lambda store: store.clear(self.root, snapshot.run, life, versions, content.used))

    async def on_flag(self, unknown: bool) -> None:
        """Counters are flagged again, with flag or without; what does not exist is not."""
        names = [c.name for c in checks_for(self.who, self.now_us).counters]
        await self.both(lambda store: store.totals(self.root, names))
        await self.both(lambda store: store.flag(self.root, [*names, "key_9:total"] if unknown else names[:1]))

    async def on_fence(self, number: int, life: bool) -> None:
        """A number comes, perhaps after another life of the server has begun."""
        snapshot = await self.both(lambda store: store.snapshot(self.root))
        if life:
            await self.on_life()
        if snapshot is not None:
            await self.both(lambda store: store.fence(self.root, snapshot.run, snapshot.life, number))
            await self.both(lambda store: store.fence(self.root, "another", self.memory.life, number))
            await self.on_snapshot(clear=False)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=policies,
    team=st.none() | policies,
    organisation=st.none() | policies,
    schedule=st.lists(moves | together, max_size=40),
)
def test_scripts_equal_their_twin(
    redis_server: RedisServer,
    key: Policy,
    team: Policy | None,
    organisation: Policy | None,
    schedule: list[tuple[Any, ...]],
) -> None:
    """Any schedule of admissions, entries, resets, seeds, losses and clock moves: every answer is the same."""

    async def run() -> None:
        redis = RedisStore(StoreSettings(redis_url=redis_server.url))
        await redis.start()
        try:
            pair = Pair(redis, principal(f"org_{next(roots)}", key, team, organisation))
            cold = await pair.admit("a0.1", 1, 1)
            assert cold[0].status is Status.COLD
            await pair.on_seed(0, 7)
            for move in schedule:
                await pair.step(move)
            await pair.on_state()
            await pair.on_snapshot(clear=False)
        finally:
            await redis.stop()

    asyncio.run(run())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 30),
    arrivals=st.lists(st.tuples(st.integers(0, 9_000_000), st.integers(1, 12)), min_size=1, max_size=60),
)
def test_window_equals_brute_force(limit: int, arrivals: list[tuple[int, int]]) -> None:
    """Promise 1: decision for decision equal to an oracle that remembers every admission by itself; and in no
    interval of the window's length is more admitted than the limit."""
    who = principal("org_x", Policy(windows=(Window(Unit.TOKENS, limit, 60_000_000),)), None, None)
    now_us = START_US
    memory = MemoryStore(lambda: now_us)
    tree = memory.tree("org_x")
    tree.seed("run", {}, {})
    admitted: list[tuple[int, int, int]] = []
    for number, (gap, weight) in enumerate(arrivals):
        now_us += gap
        checks = checks_for(who, now_us)
        reply = tree.admit(now_us, checks, Demand(f"a{number}", "p", weight, 0, now_us + 1))
        counted = sum(w for _, stamp, w in admitted if stamp + 60_000_000 > now_us)
        fits = counted + weight <= limit
        assert (reply.status is Status.ADMITTED) is fits
        if fits:
            admitted.append((now_us, -(-now_us // 10_000) * 10_000, weight))
        elif weight <= limit:
            assert reply.refusal is not None and reply.refusal.wait_us is not None
            later = now_us + reply.refusal.wait_us
            assert sum(w for _, s, w in admitted if s + 60_000_000 > later) + weight <= limit
            assert sum(w for _, s, w in admitted if s + 60_000_000 > later - 1) + weight > limit
    for start, _, _ in admitted:
        assert sum(w for at, _, w in admitted if start <= at < start + 60_000_000) <= limit


def test_checks_encode_the_same_after_a_round_trip() -> None:
    """Entries travel through the outbox as JSON and come back equal."""
    entry = Entry(3, EntryKind.LATE, "a.1", origins=(Origin("p", 7, True),), note="x")
    assert msgspec.json.decode(msgspec.json.encode(entry), type=Entry) == entry
