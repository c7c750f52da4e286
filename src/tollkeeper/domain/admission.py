"""Admission: what is asked of the store, and what it answers.

`checks_for` turns a principal's policies into one flat list of checks; the store (`tree.py` or the Lua script
that is its twin) decides over all of them at once. Names in checks are suffixes of store keys below the root's
hash tag: a scope is its id, the root itself is the empty scope. What is made for every request is kept from the
garbage collector (`gc=False`): frozen values cannot form cycles.
"""

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property
from hashlib import blake2b
from typing import Final
from urllib.parse import quote

import msgspec

from tollkeeper.domain.periods import Period, Span, span_at
from tollkeeper.domain.policy import MINUTE_US, Policy, Principal, ScopeKind, TokenBucket, Unit, Window, name_matches

TICKS_PER_WINDOW: Final = 6000
"""Stamps are rounded up to window/6000, which bounds a log to 6,000 runs and never over-admits."""
SLOT_LEASE_US: Final = 30_000_000
"""A concurrency slot that no heartbeat has renewed for 30 s is free: its holder is dead."""
PER_TOKEN: Final = 60_000_000
"""A bucket's level is in sixtieths of micro-tokens: so many are a token."""
WEIGHT_MAX: Final = 2**40 - 1
"""Largest sum of weights within one tick of a log: what its 5-byte fields hold."""


class LimitKind(StrEnum):
    """What can refuse a request."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


class LogCheck(msgspec.Struct, frozen=True):
    """The windows of one scope that count the same requests over the same length: they share a log of runs.

    None: that unit is not limited. Shadow limits are only reported. `model` is the pattern of the models counted.
    """

    name: str
    scope: ScopeKind
    window_us: int
    requests_limit: int | None
    tokens_limit: int | None
    requests_shadow: int | None = None
    tokens_shadow: int | None = None
    model: str | None = None
    per_user: bool = False

    @property
    def tick_us(self) -> int:
        """Stamps are multiples of this."""
        return max(1, self.window_us // TICKS_PER_WINDOW)


class BucketCheck(msgspec.Struct, frozen=True):
    """A token bucket; `rate` is a minute's. One in shadow is taken from only where it would have admitted."""

    name: str
    scope: ScopeKind
    unit: Unit
    rate: int
    burst: int
    model: str | None = None
    per_user: bool = False
    shadow: bool = False


class SlotCheck(msgspec.Struct, frozen=True):
    """At most `limit` attempts in flight in a scope; one in shadow is only reported."""

    name: str
    scope: ScopeKind
    limit: int
    shadow: bool = False


class CounterCheck(msgspec.Struct, frozen=True):
    """The spend of one scope in one period. Every scope's month is counted; `budget_nano` None refuses nothing.

    `soft_nano` is a soft budget, only reported; `thresholds` are worth a warning each when `spent` reaches them.
    """

    name: str
    scope: ScopeKind
    span: Span
    budget_nano: int | None
    soft_nano: int | None = None
    thresholds: tuple[int, ...] = ()


class CounterRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A counter that an attempt is charged to: the periods are those of its admission. 0 stands for never."""

    name: str
    ends_us: int
    expires_us: int


def counter_ref(check: CounterCheck) -> CounterRef:
    """The counter of a check, as entries name it."""
    return CounterRef(check.name, check.span.ends_us or 0, check.span.expires_us or 0)


class Checks(msgspec.Struct, frozen=True, dict=True):
    """All that one request of a principal is checked against, valid while `valid_from_us <= now < valid_until_us`.

    Made once, asked many thousand times: what follows from it is kept.
    """

    root: str
    logs: tuple[LogCheck, ...]
    slots: tuple[SlotCheck, ...]
    counters: tuple[CounterCheck, ...]
    valid_from_us: int
    valid_until_us: int

    warns: bool = False
    """Whether any counter has thresholds."""
    buckets: tuple[BucketCheck, ...] = ()

    @cached_property
    def has_budget(self) -> bool:
        """Whether any budget can refuse."""
        return any(counter.budget_nano is not None for counter in self.counters)

    @cached_property
    def has_shadow(self) -> bool:
        """Whether any limit is only reported."""
        limits = [limit for log in self.logs for limit in (log.requests_shadow, log.tokens_shadow)]
        flags = [bucket.shadow for bucket in self.buckets] + [slot.shadow for slot in self.slots]
        return any(flags) or any(limit is not None for limit in limits)

    @cached_property
    def shown(self) -> "Shown":
        """The limits of which one is the tightest."""
        return Shown(
            _comparable([(i, log.requests_limit, log.window_us) for i, log in enumerate(self.logs)]),
            _comparable([(i, log.tokens_limit, log.window_us) for i, log in enumerate(self.logs)]),
            tuple([(i, c.budget_nano) for i, c in enumerate(self.counters) if c.budget_nano is not None]),
        )

    @cached_property
    def counter_refs(self) -> tuple[CounterRef, ...]:
        """What an attempt is charged to, as entries name it."""
        return tuple([counter_ref(counter) for counter in self.counters])

    @cached_property
    def counter_names(self) -> tuple[str, ...]:
        """What an attempt is charged to."""
        return tuple([counter.name for counter in self.counters])

    @cached_property
    def slot_names(self) -> tuple[str, ...]:
        """What an attempt in flight occupies; the root's own is empty."""
        return tuple([slot.name for slot in self.slots])


class Shown(msgspec.Struct, frozen=True):
    """Which limits, but buckets, an answer's headers choose from: of requests and of tokens those of one minute if
    there are such, else of all windows; and the budgets. Each as (index of the log or counter, limit)."""

    requests: tuple[tuple[int, int], ...]
    tokens: tuple[tuple[int, int], ...]
    budgets: tuple[tuple[int, int], ...]


def _comparable(windows: list[tuple[int, int | None, int]]) -> tuple[tuple[int, int], ...]:
    limited = [(index, limit, window_us) for index, limit, window_us in windows if limit is not None]
    minutes = [its for its in limited if its[2] == MINUTE_US]
    return tuple([(index, limit) for index, limit, _ in minutes or limited])


def checks_for(principal: Principal, now_us: int, model: str | None = None, user: str | None = None) -> Checks:
    """The checks of all scopes of a principal in the periods that hold `now_us`.

    `model` is the request's model; None takes the windows of all models. `user` is the end user; None leaves the
    windows of users out, as for looking at limits; a request without one has the user "".
    """
    logs: list[LogCheck] = []
    slots: list[SlotCheck] = []
    counters: list[CounterCheck] = []
    buckets: list[BucketCheck] = []
    for scope in principal.scopes:
        prefix = "" if scope.kind is ScopeKind.ORGANISATION else f"{scope.id}:"
        policy = scope.policy
        logs += _log_checks(policy, scope.kind, prefix, model, user)
        buckets += _bucket_checks(policy, scope.kind, prefix, model, user)
        if policy.concurrency is not None:
            name = prefix.rstrip(":")
            slots.append(SlotCheck(name, scope.kind, policy.concurrency, policy.concurrency_shadow))
        counters += _counter_checks(policy, scope.kind, prefix, now_us)
    ends = [c.span.ends_us for c in counters if c.span.ends_us is not None]
    raised = [b.raised.until_us for s in principal.scopes for b in s.policy.budgets if b.raised is not None]
    return Checks(
        principal.root,
        tuple(logs),
        tuple(slots),
        tuple(counters),
        max([c.span.starts_us for c in counters] + [until for until in raised if until <= now_us]),
        min(ends + [until for until in raised if until > now_us]),
        any(c.thresholds for c in counters),
        tuple(buckets),
    )


def _counter_checks(policy: Policy, scope: ScopeKind, prefix: str, now_us: int) -> Iterable[CounterCheck]:
    """One counter for the month, and one for each period that has a budget."""
    for period in dict.fromkeys([Period.MONTH, *(b.period for b in policy.budgets)]):
        budgets = [b for b in policy.budgets if b.period is period]
        span = span_at(period, now_us)
        yield CounterCheck(
            f"{prefix}{span.label}",
            scope,
            span,
            min((b.limit_at(now_us) for b in budgets if not b.soft), default=None),
            min((b.limit_at(now_us) for b in budgets if b.soft), default=None),
            tuple(sorted({t for b in budgets for t in b.thresholds_at(now_us)})),
        )


def _log_checks(policy: Policy, scope: ScopeKind, prefix: str, model: str | None, user: str | None) -> list[LogCheck]:
    shared: dict[tuple[int, str, bool], list[Window]] = {}
    for window in policy.windows:
        if not _applies(window, model, user):
            continue
        shared.setdefault((window.window_us, window.model or "", window.per_user), []).append(window)
    checks = []
    for (window_us, pattern, per_user), windows in sorted(shared.items()):
        name = f"{prefix}{window_us}{_suffix(pattern, user if per_user else None)}"
        checks.append(
            LogCheck(
                name,
                scope,
                window_us,
                _least(windows, Unit.REQUESTS, shadow=False),
                _least(windows, Unit.TOKENS, shadow=False),
                _least(windows, Unit.REQUESTS, shadow=True),
                _least(windows, Unit.TOKENS, shadow=True),
                pattern or None,
                per_user,
            )
        )
    return checks


def _bucket_checks(
    policy: Policy, scope: ScopeKind, prefix: str, model: str | None, user: str | None
) -> Iterable[BucketCheck]:
    """One for each bucket that applies; the same twice is one."""
    for bucket in dict.fromkeys(policy.buckets):
        if _applies(bucket, model, user):
            name = f"{prefix}{bucket.unit.value}:{bucket.rate}:{bucket.burst}"
            name += _suffix(bucket.model or "", user if bucket.per_user else None) + ":shadow" * bucket.shadow
            yield BucketCheck(
                name,
                scope,
                bucket.unit,
                bucket.rate,
                bucket.burst,
                bucket.model,
                bucket.per_user,
                bucket.shadow,
            )


def _applies(limit: Window | TokenBucket, model: str | None, user: str | None) -> bool:
    if limit.per_user and user is None:
        return False
    return limit.model is None or model is None or name_matches(model, (limit.model,))


def _suffix(pattern: str, user: str | None) -> str:
    """What tells the log or bucket of some models or of one end user from the scope's own."""
    suffix = f":m:{quote(pattern, safe='*')}" if pattern else ""
    if user is not None:
        suffix += f":u:{blake2b(user.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"
    return suffix


def _least(windows: list[Window], unit: Unit, *, shadow: bool) -> int | None:
    return min((w.limit for w in windows if w.unit is unit and w.shadow is shadow), default=None)


class Demand(msgspec.Struct, frozen=True, gc=False):
    """One attempt that asks for admission.

    `hold_nano` is the upper bound of its cost, `tokens` the estimate of its tokens. `not_after_us` is in the
    store's time: from then on the answer is *late* and nothing changes.
    """

    attempt: str
    producer: str
    tokens: int
    hold_nano: int
    not_after_us: int
    requests: int = 1


class Status(StrEnum):
    """The answer's kind. *late*: asked too late or outside the checks' periods. *cold*: the tree is not loaded.
    *recovering*: after a loss, not every producer has sent again what this tree may lack. *buried*: this producer was
    taken for dead and closed."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    LATE = "late"
    COLD = "cold"
    RECOVERING = "recovering"
    BURIED = "buried"


class LogState(msgspec.Struct, frozen=True, gc=False):
    """A log after the decision. `generation` and `index` name the run that holds this request's weight.

    `empty_in_us` is the time until nothing is left in the window if nothing else arrives.
    """

    generation: int
    index: int
    requests: int
    tokens: int
    empty_in_us: int


class BucketState(msgspec.Struct, frozen=True, gc=False):
    """A bucket after the decision, in the numbers of domain/bucket.py. The first four tell what it was when tokens
    were taken for this request; `generation` 0: none were."""

    generation: int
    last_us: int
    level: int
    returned: int
    full_in_us: int


class CounterState(msgspec.Struct, frozen=True, gc=False):
    """A counter after the decision, in nano-dollars."""

    spent: int
    held: int


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Which limit refused, and the wait.

    `wait_us`: when the request would pass all its limits if nothing else arrived or settled; None when time alone
    does not help (concurrency), or never would (`never`: its weight is above the limit itself).
    """

    kind: LimitKind
    scope: ScopeKind
    limit: int
    used: int
    asked: int
    wait_us: int | None
    never: bool = False
    period: Period | None = None


class Shadowed(msgspec.Struct, frozen=True, gc=False):
    """A limit in shadow that would have refused an admitted request."""

    kind: LimitKind
    scope: ScopeKind


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The store's answer, in the order of the checks. `now_us` is the store's time of the decision.

    `shadowed` are the limits in shadow that would have refused what was admitted. `degraded` names the concerns that
    one instance decided alone because the store is away: `limits`, `budgets`, both or none. `unheard`: the same was
    asked before and its answer was lost, so whatever this one says, the attempt may have been admitted, or yet be.
    """

    status: Status
    now_us: int
    logs: tuple[LogState, ...] = ()
    slots: tuple[int, ...] = ()
    counters: tuple[CounterState, ...] = ()
    refusal: Refusal | None = None
    shadowed: tuple[Shadowed, ...] = ()
    degraded: str = ""
    buckets: tuple[BucketState, ...] = ()
    unheard: bool = False


class LimitState(msgspec.Struct, frozen=True, gc=False):
    """One limit as headers, the CLI and the API show it. `reset_us`: until it is wholly free again, if known.

    `model`, `per_user` and `shadow` are as in `Window`. With a `rate` (a minute's) it is a bucket with that burst.
    """

    kind: LimitKind
    scope: ScopeKind
    limit: int
    used: int
    reset_us: int | None
    window_us: int | None = None
    period: Period | None = None
    held: int = 0
    model: str | None = None
    per_user: bool = False
    shadow: bool = False
    rate: int | None = None

    @property
    def remaining(self) -> int:
        """Never below zero, though a late truth can push `used` above the limit."""
        return max(0, self.limit - self.used)


def limit_states(checks: Checks, reply: Reply, *, with_shadow: bool = False) -> list[LimitState]:
    """Every limit of a request with its state; for budgets `used` is spent + held."""
    states: list[LimitState] = []
    for log, state in zip(checks.logs, reply.logs, strict=True):
        states += _log_states(log, state, with_shadow)
    for bucket, left in zip(checks.buckets, reply.buckets, strict=True):
        if with_shadow or not bucket.shadow:
            states.append(_bucket_state(bucket, left))
    for slot, in_flight in zip(checks.slots, reply.slots, strict=True):
        if slot.shadow and not with_shadow:
            continue
        states.append(LimitState(LimitKind.CONCURRENCY, slot.scope, slot.limit, in_flight, None, shadow=slot.shadow))
    for counter, money in zip(checks.counters, reply.counters, strict=True):
        for limit, shadow in ((counter.budget_nano, False), (counter.soft_nano, True)):
            if limit is not None and with_shadow >= shadow:
                states.append(_budget_state(counter, money, limit, reply.now_us, shadow=shadow))
    return states


def _budget_state(counter: CounterCheck, money: CounterState, limit: int, now_us: int, *, shadow: bool) -> LimitState:
    ends_us = counter.span.ends_us
    return LimitState(
        LimitKind.BUDGET,
        counter.scope,
        limit,
        money.spent + money.held,
        None if ends_us is None else max(0, ends_us - now_us),
        period=counter.span.period,
        held=money.held,
        shadow=shadow,
    )


def _log_states(log: LogCheck, state: LogState, with_shadow: bool) -> list[LimitState]:
    states = []
    for kind, used, limit, shadow in (
        (LimitKind.REQUESTS, state.requests, log.requests_limit, False),
        (LimitKind.TOKENS, state.tokens, log.tokens_limit, False),
        (LimitKind.REQUESTS, state.requests, log.requests_shadow, True),
        (LimitKind.TOKENS, state.tokens, log.tokens_shadow, True),
    ):
        if limit is not None and with_shadow >= shadow:
            states.append(
                LimitState(
                    kind,
                    log.scope,
                    limit,
                    used,
                    state.empty_in_us,
                    log.window_us,
                    model=log.model,
                    per_user=log.per_user,
                    shadow=shadow,
                )
            )
    return states


def _bucket_state(bucket: BucketCheck, state: BucketState) -> LimitState:
    return LimitState(
        LimitKind(bucket.unit.value),
        bucket.scope,
        bucket.burst,
        bucket.burst - state.level // PER_TOKEN,
        state.full_in_us,
        model=bucket.model,
        per_user=bucket.per_user,
        shadow=bucket.shadow,
        rate=bucket.rate,
    )


class Grant(msgspec.Struct, frozen=True, gc=False):
    """An admitted attempt: it must end in exactly one settle or void."""

    demand: Demand
    checks: Checks
    reply: Reply


class Denial(msgspec.Struct, frozen=True, gc=False):
    """A refused attempt: nothing was changed."""

    checks: Checks
    reply: Reply
    refusal: Refusal


def split_counter(name: str) -> tuple[str, str]:
    """A counter's name → (scope id, period label); the scope id of the root's own counters is empty.

    Ids carry a prefix (`key_`, `team_`), labels begin with a digit or are `total`.
    """
    scope, _, label = name.partition(":")
    if scope == "total" or scope.isdigit():
        return "", name
    return scope, label
