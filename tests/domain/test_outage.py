"""The bounds of docs/outages.md, on any schedule of one outage: a store, instances that decide alone, and a count of
what was admitted that knows nothing of how."""

from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tollkeeper.domain.admission import (
    PER_TOKEN,
    BucketCheck,
    Checks,
    CounterCheck,
    Demand,
    Grant,
    LogCheck,
    Reply,
    SlotCheck,
    Status,
)
from tollkeeper.domain.entries import dispatch_of, settle_entry, void_entry
from tollkeeper.domain.outage import PUSH_RUNS_MAX, RETRY_US, Fallback, Fleet, OutageMode, OutageModes
from tollkeeper.domain.periods import Period, span_at
from tollkeeper.domain.policy import ScopeKind, Unit
from tollkeeper.domain.tree import Tree
from tollkeeper.domain.usage import Usage

NOW_US = 1_795_000_000_000_000
WINDOW_US = 6_000_000
FOREVER_US = 2**52
BOUNDED = OutageModes()
PAIR = Fleet(2, 0)


def checks_of(
    limit: int | None = None, *, tokens: int | None = None, slots: int | None = None, budget: int | None = None
) -> Checks:
    span = span_at(Period.MONTH, NOW_US)
    windowed = limit is not None or tokens is not None
    return Checks(
        "org",
        (LogCheck("key_1:6000000", ScopeKind.KEY, WINDOW_US, limit, tokens),) if windowed else (),
        (SlotCheck("key_1", ScopeKind.KEY, slots),) if slots is not None else (),
        (CounterCheck(f"key_1:{span.label}", ScopeKind.KEY, span, budget),),
        0,
        FOREVER_US,
    )


def demand(attempt: str, *, requests: int = 1, tokens: int = 0, hold: int = 0) -> Demand:
    return Demand(attempt, "p_1", tokens, hold, FOREVER_US, requests)


class Model:
    """Some instances, one store. Whatever is admitted is written down with its time."""

    def __init__(self, size: int, limit: int) -> None:
        self.now_us, self.checks, self.limit, self.size = NOW_US, checks_of(limit), limit, size
        self.store = self.fresh()
        self.up = True
        self.seen: list[list[tuple[Checks, Reply]]] = [[] for _ in range(size)]
        self.fallbacks = [Fallback() for _ in range(size)]
        self.alone = [False] * size
        self.admitted: list[tuple[int, int]] = []
        self.number = 0
        self.by_alone = [0] * size
        self.late_ones: list[int] | None = None

    @staticmethod
    def fresh() -> Tree:
        tree = Tree()
        tree.run = "run"
        return tree

    def step(self, move: tuple[Any, ...]) -> None:
        getattr(self, f"on_{move[0]}")(*move[1:])

    def on_wait(self, us: int) -> None:
        self.now_us += us

    def on_ask(self, instance: int, weight: int) -> None:
        self.number += 1
        wanted = demand(f"a{self.number}", requests=weight)
        instance %= self.size
        if self.alone[instance]:
            reply = self.fallbacks[instance].admit(self.now_us, self.checks, wanted, BOUNDED).reply
        elif self.up:
            reply = self.store.admit(self.now_us, self.checks, wanted)
            self.seen[instance] = [(self.checks, reply)]
            if self.late_ones is None and any(self.alone):
                self.late_ones = [n for n in range(self.size) if self.alone[n]]
        else:
            return
        if reply.status is Status.ADMITTED:
            self.admitted.append((self.now_us, weight))
            self.by_alone[instance] += weight * self.alone[instance]

    def on_look(self) -> None:
        """Every instance learns how things are."""
        for instance in range(self.size):
            if self.up and not self.alone[instance]:
                self.seen[instance] = [(self.checks, self.store.admit(self.now_us, self.checks, demand("")))]

    def on_away(self) -> None:
        self.up = False
        for rank, fallback in enumerate(self.fallbacks):
            fallback.begin(self.now_us, self.seen[rank], Fleet(self.size, rank))
            self.alone[rank] = True

    def on_back(self, lost: bool) -> None:
        self.up = True
        self.now_us += 1
        if lost:
            self.store = self.fresh()

    def on_hand_over(self, instance: int) -> None:
        instance %= self.size
        if not (self.up and self.alone[instance]):
            return
        pushes = self.fallbacks[instance].pushes()
        for _ in range(2):
            self.store.push(self.now_us, f"p{instance}", pushes)
        assert self.fallbacks[instance].pushes() == []
        self.alone[instance] = False

    @property
    def late(self) -> int:
        """What those admitted alone who had not told the store when it began to admit for others."""
        return sum(self.by_alone[n] for n in self.late_ones or ())

    def most(self) -> int:
        """The largest weight admitted in any interval of a window's length."""
        return max(
            (sum(w for t, w in self.admitted if start <= t < start + WINDOW_US) for start, _ in self.admitted),
            default=0,
        )


waits = st.tuples(st.just("wait"), st.sampled_from([0, 1, 999, 500_000, 3_000_000, WINDOW_US - 1, WINDOW_US]))
asks = st.tuples(st.just("ask"), st.integers(0, 3), st.integers(1, 4))
hands = st.tuples(st.just("hand_over"), st.integers(0, 3))
busy = st.lists(st.one_of(asks, asks, asks, waits), max_size=40)
returning = st.lists(st.one_of(asks, asks, waits, hands), max_size=60)


def play(model: Model, *parts: list[tuple[Any, ...]]) -> None:
    for move in (move for part in parts for move in part):
        model.step(move)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(0, 30), busy, busy, st.booleans(), returning)
@example(
    4,
    8,
    [("ask", 0, 4), ("ask", 0, 4)],
    [("ask", n, 2) for n in range(4)],
    True,
    [("hand_over", 0), *[("ask", 0, 4)] * 3],
)
def test_never_more_than_twice_the_limit(
    size: int, limit: int, before: Any, during: Any, lost: bool, after: Any
) -> None:
    """In any window that an outage touches: the limit once by the store and once by all instances alone; and, if the
    store comes back with nothing, what those admitted alone who told it so after it had begun to admit for others."""
    model = Model(size, limit)
    play(model, before, [("away",)], during, [("back", lost)], after)
    assert model.most() <= 2 * limit + (model.late if lost else 0)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(0, 30), busy, busy, st.booleans(), returning)
def test_exact_when_everybody_knows(size: int, limit: int, before: Any, during: Any, lost: bool, after: Any) -> None:
    """Instances that have all seen what was used keep the limit through the outage and a store that comes back with
    nothing: what was just filled is not filled again."""
    model = Model(size, limit)
    play(model, before, [("look",), ("away",)], during, [("back", lost)], after)
    assert model.most() <= limit + model.late


class BucketModel(Model):
    """The same with a token bucket, and when the outage lasted for anybody."""

    def __init__(self, size: int, rate: int, burst: int) -> None:
        super().__init__(size, 0)
        self.checks = with_bucket(rate, burst)
        self.began_us, self.ended_us = NOW_US, FOREVER_US

    def on_away(self) -> None:
        super().on_away()
        self.began_us = self.now_us

    def on_hand_over(self, instance: int) -> None:
        super().on_hand_over(instance)
        if not any(self.alone) and self.ended_us == FOREVER_US:
            self.ended_us = self.now_us


def with_bucket(rate: int, burst: int) -> Checks:
    bucket = BucketCheck("key_1:requests", ScopeKind.KEY, Unit.REQUESTS, rate, burst)
    return msgspec.structs.replace(checks_of(), buckets=(bucket,))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([1, 3, 60, 600]),
    st.integers(1, 20),
    busy,
    busy,
    st.booleans(),
    returning,
)
@example(1, 60, 4, [("ask", 0, 4)], [("ask", 0, 1), ("wait", 4_000_000), ("ask", 0, 4)], True, [("ask", 0, 4)])
def test_the_bound_of_token_buckets(
    size: int, rate: int, burst: int, before: Any, during: Any, lost: bool, after: Any
) -> None:
    """Alone all instances together let through no more than flows in from the outage's beginning on; and in any
    interval, whatever the store remembers, no more than two bursts and what flows in, for the time that somebody was
    alone twice. An instance gains at least one a minute."""
    model = BucketModel(size, rate, burst)
    play(model, before, [("away",)])
    already = len(model.admitted)
    play(model, during)
    a_minute = max(rate, sum(max(1, Fleet(size, rank).share(rate, "key_1:requests")) for rank in range(size)))
    for number, (time_us, _) in enumerate(model.admitted[already:], already + 1):
        alone = sum(weight for _, weight in model.admitted[already:number])
        assert alone * PER_TOKEN <= a_minute * (time_us - model.began_us)
    play(model, [("back", lost)], after)
    for first, (start_us, _) in enumerate(model.admitted):
        weight = 0
        for end_us, more in model.admitted[first:]:
            weight += more
            alone_us = max(0, min(end_us, model.ended_us) - max(start_us, model.began_us))
            assert (weight - 2 * burst) * PER_TOKEN <= a_minute * (end_us - start_us + alone_us)


def test_a_buckets_share_starts_empty_in_every_outage() -> None:
    """What was just used up is not there again, in a second outage neither; the wait is told; what does not fit the
    share may pass later, what does not fit the bucket never."""
    checks = with_bucket(60, 4)
    fallback = Fallback()
    now_us = NOW_US
    for _ in range(2):
        fallback.begin(now_us, [], PAIR)
        refused = fallback.admit(now_us, checks, demand("a1"), BOUNDED).reply.refusal
        assert refused is not None and (refused.wait_us, refused.never) == (2_000_000, False)
        now_us += 2_000_000
        assert fallback.admit(now_us - 1, checks, demand("a2"), BOUNDED).reply.refusal is not None
        assert fallback.admit(now_us, checks, demand(f"a{now_us}"), BOUNDED).reply.status is Status.ADMITTED
        now_us += 60_000_000
    above_share = fallback.admit(now_us, checks, demand("b", requests=3), BOUNDED).reply.refusal
    above_burst = fallback.admit(now_us, checks, demand("c", requests=5), BOUNDED).reply.refusal
    assert above_share is not None and (above_share.never, above_share.wait_us) == (False, RETRY_US)
    assert above_burst is not None and above_burst.never


def test_open_asks_no_bucket_and_closed_names_it() -> None:
    """A bucket is a limit: *open* lets everything through and tells the store nothing, *closed* refuses."""
    checks = with_bucket(1, 1)
    fallback = alone(checks)
    for number in range(9):
        reply = fallback.admit(NOW_US, checks, demand(f"a{number}"), OutageModes(OutageMode.OPEN)).reply
        assert (reply.status, reply.degraded, reply.buckets) == (Status.ADMITTED, "limits", ())
    assert fallback.pushes() == []
    closed = alone(checks).admit(NOW_US, checks, demand("a1"), OutageModes(limits=OutageMode.CLOSED)).closed
    assert closed == "limits cannot be checked"


def test_buckets_in_shadow_report_nothing() -> None:
    """As other limits in shadow: an empty share is no reason for a report."""
    checks = with_bucket(1, 1)
    checks = msgspec.structs.replace(checks, buckets=(msgspec.structs.replace(checks.buckets[0], shadow=True),))
    reply = alone(checks).admit(NOW_US, checks, demand("a1"), BOUNDED).reply
    assert (reply.status, reply.shadowed) == (Status.ADMITTED, ())


def test_shares_of_a_fleet_are_the_whole() -> None:
    """For any number of instances the shares of a limit add up to it, and none shrinks when the limit grows."""
    for size in range(1, 9):
        for name in ("60000000", "key_1:60000000", "key_2"):
            before = [0] * size
            for whole in range(40):
                shares = [Fleet(size, rank).share(whole, name) for rank in range(size)]
                assert sum(shares) == whole
                assert all(new >= old for new, old in zip(shares, before, strict=True))
                before = shares


def alone(checks: Checks, reply: Reply | None = None, fleet: Fleet = PAIR) -> Fallback:
    """An instance at the beginning of an outage."""
    fallback = Fallback()
    fallback.begin(NOW_US, [] if reply is None else [(checks, reply)], fleet)
    return fallback


def seen(checks: Checks, *demands: Demand, at_us: int = NOW_US) -> Reply:
    """The store's last reply, to the last of these."""
    tree = Model.fresh()
    return [tree.admit(at_us, checks, each) for each in demands][-1]


def test_what_was_used_leaves_its_window() -> None:
    """It counts from when its newest run was stamped, and no longer; the wait says when."""
    checks = checks_of(4)
    reply = seen(checks, demand("s1", requests=4), at_us=NOW_US - 1_000_000)
    fallback = alone(checks, reply)
    refused = fallback.admit(NOW_US, checks, demand("a1"), BOUNDED).reply
    assert refused.refusal is not None and refused.refusal.wait_us == WINDOW_US - 1_000_000
    later_us = NOW_US + refused.refusal.wait_us
    assert fallback.admit(later_us, checks, demand("a2"), BOUNDED).reply.status is Status.ADMITTED


def test_never_is_not_said_of_what_fits_the_whole_limit() -> None:
    """A request above the share may pass as soon as the store is back; one above the limit never."""
    checks = checks_of(10)
    fallback = alone(checks)
    above_share = fallback.admit(NOW_US, checks, demand("a1", requests=9), BOUNDED).reply.refusal
    assert above_share is not None and (above_share.never, above_share.wait_us) == (False, RETRY_US)
    above_limit = fallback.admit(NOW_US, checks, demand("a2", requests=11), BOUNDED).reply.refusal
    assert above_limit is not None and above_limit.never


def test_ends_give_back() -> None:
    """A void returns weight, slot and hold to the share; a settlement leaves the truth."""
    checks = checks_of(100, tokens=100, slots=2, budget=100)
    fallback = alone(checks, seen(checks, demand("")))
    first = demand("a1", tokens=50, hold=50)
    decision = fallback.admit(NOW_US, checks, first, BOUNDED)
    assert decision.closed is None and decision.reply.refusal is None
    assert fallback.admit(NOW_US, checks, demand("a2", tokens=1), BOUNDED).reply.refusal is not None
    dispatch = dispatch_of(Grant(first, decision.checks, decision.reply))
    fallback.ended(NOW_US, "p_1", void_entry(7, dispatch, 1, 50))
    second = fallback.admit(NOW_US, checks, first, BOUNDED)
    assert second.reply.refusal is None and second.closed is None
    dispatch = dispatch_of(Grant(first, second.checks, second.reply))
    fallback.ended(NOW_US, "p_1", settle_entry(8, dispatch, 20, Usage(input_tokens=10), -40))
    third = fallback.admit(NOW_US, checks, demand("a3", tokens=40, hold=30), BOUNDED)
    assert third.reply.refusal is None and third.reply.logs[0].tokens == 50 and third.reply.counters[0].spent == 20
    assert (
        fallback.admit(NOW_US, checks, demand("a4", tokens=0, hold=1), BOUNDED).reply.refusal is not None
    )  # its slot


def test_headroom_is_divided_and_must_be_fresh() -> None:
    """A budget's share is of what was left at the last reply; one not seen for 10 s, or never, is closed; a period
    that began during the outage has all its budget left."""
    checks = checks_of(budget=100)
    known = seen(checks, demand("s1", hold=20), at_us=NOW_US - 10_000_000)
    fallback = alone(checks, known)
    assert fallback.admit(NOW_US, checks, demand("a1", hold=40), BOUNDED).closed is None
    assert fallback.admit(NOW_US, checks, demand("a2", hold=1), BOUNDED).closed is not None
    too_much = fallback.admit(NOW_US, checks, demand("a3", hold=81), BOUNDED)
    assert too_much.closed is None and too_much.reply.refusal is not None and too_much.reply.refusal.limit == 100
    stale = seen(checks, demand("s1", hold=20), at_us=NOW_US - 10_000_001)
    assert alone(checks, stale).admit(NOW_US, checks, demand("a1"), BOUNDED).closed is not None
    assert alone(checks).admit(NOW_US, checks, demand("a1"), BOUNDED).closed is not None
    (counter,) = checks.counters
    assert counter.span.ends_us is not None
    following = span_at(Period.MONTH, counter.span.ends_us)
    month = CounterCheck(f"key_1:{following.label}", ScopeKind.KEY, following, 100)
    new = Checks("org", (), (), (month,), 0, FOREVER_US)
    assert fallback.admit(following.starts_us, new, demand("a5", hold=50), BOUNDED).closed is None


def test_open_counts_and_closed_needs_a_concern() -> None:
    """*Open* checks nothing, yet the store is told; *closed* refuses only requests that have the concern."""
    is_open = OutageModes(OutageMode.OPEN, OutageMode.OPEN)
    checks = checks_of(1, slots=1, budget=1)
    fallback = alone(checks)
    for n in range(5):
        reply = fallback.admit(NOW_US, checks, demand(f"a{n}", hold=10), is_open).reply
        assert reply.status is Status.ADMITTED and reply.degraded == "limits, budgets"
    assert [run[1] for push in fallback.pushes() for run in push.runs] == [5]
    for mode, concern in (
        (OutageModes(limits=OutageMode.CLOSED), "limits"),
        (OutageModes(budgets=OutageMode.CLOSED), "budgets"),
    ):
        closed = alone(checks).admit(NOW_US, checks, demand("a1"), mode).closed
        assert closed == f"{concern} cannot be checked"
        none = checks_of()
        assert alone(none).admit(NOW_US, none, demand("a1"), mode).closed is None


def test_a_long_log_is_pushed_in_few_runs() -> None:
    """No more than PUSH_RUNS_MAX, nothing lost, and no stamp earlier than the truth."""
    checks = checks_of(10_000)
    fallback = alone(checks, fleet=Fleet())
    for n in range(1000):
        now_us = NOW_US + 1_000 * n
        assert fallback.admit(now_us, checks, demand(f"a{n}"), BOUNDED).reply.status is Status.ADMITTED
    (push,) = fallback.pushes()
    assert len(push.runs) <= PUSH_RUNS_MAX and sum(run[1] for run in push.runs) == 1000
    counted = 0
    for stamp_us, requests, _ in push.runs:
        counted += requests
        assert stamp_us >= NOW_US + 1_000 * (counted - 1)
