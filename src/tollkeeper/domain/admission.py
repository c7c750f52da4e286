"""Admission: what is asked of the store, and what it answers.

`checks_for` turns a principal's policies into one flat list of checks; the store (`tree.py` or the Lua script
that is its twin) decides over all of them at once. Names in checks are suffixes of store keys below the root's
hash tag: a scope is its id, the root itself is the empty scope.
"""

from enum import StrEnum
from typing import Final

import msgspec

from tollkeeper.domain.periods import Period, Span, span_at
from tollkeeper.domain.policy import Principal, ScopeKind, Unit

TICKS_PER_WINDOW: Final = 6000
"""Stamps are rounded up to window/6000, which bounds a log to 6,000 runs and never over-admits."""
SLOT_LEASE_US: Final = 30_000_000
"""A concurrency slot that no heartbeat has renewed for 30 s is free: its holder is dead."""
WEIGHT_MAX: Final = 2**40 - 1
"""Largest sum of weights within one tick of a log: what its 5-byte fields hold."""


class LimitKind(StrEnum):
    """What can refuse a request."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


class LogCheck(msgspec.Struct, frozen=True):
    """The windows of one length of one scope: they share a log of runs. None: that unit is not limited."""

    name: str
    scope: ScopeKind
    window_us: int
    requests_limit: int | None
    tokens_limit: int | None

    @property
    def tick_us(self) -> int:
        """Stamps are multiples of this."""
        return max(1, self.window_us // TICKS_PER_WINDOW)


class SlotCheck(msgspec.Struct, frozen=True):
    """At most `limit` attempts in flight in a scope."""

    name: str
    scope: ScopeKind
    limit: int


class CounterCheck(msgspec.Struct, frozen=True):
    """The spend of one scope in one period. Every scope's month is counted; `budget_nano` None refuses nothing."""

    name: str
    scope: ScopeKind
    span: Span
    budget_nano: int | None


class Checks(msgspec.Struct, frozen=True):
    """All that one request of a principal is checked against, valid while `valid_from_us <= now < valid_until_us`."""

    root: str
    logs: tuple[LogCheck, ...]
    slots: tuple[SlotCheck, ...]
    counters: tuple[CounterCheck, ...]
    valid_from_us: int
    valid_until_us: int


def checks_for(principal: Principal, now_us: int) -> Checks:
    """The checks of all scopes of a principal in the periods that hold `now_us`."""
    logs: list[LogCheck] = []
    slots: list[SlotCheck] = []
    counters: list[CounterCheck] = []
    for scope in principal.scopes:
        prefix = "" if scope.kind is ScopeKind.ORGANISATION else f"{scope.id}:"
        policy = scope.policy
        for window_us in sorted({w.window_us for w in policy.windows}):
            limits = {
                unit: min(w.limit for w in policy.windows if w.window_us == window_us and w.unit is unit)
                for unit in {w.unit for w in policy.windows if w.window_us == window_us}
            }
            logs.append(
                LogCheck(
                    f"{prefix}{window_us}",
                    scope.kind,
                    window_us,
                    limits.get(Unit.REQUESTS),
                    limits.get(Unit.TOKENS),
                )
            )
        if policy.concurrency is not None:
            slots.append(SlotCheck(prefix.rstrip(":"), scope.kind, policy.concurrency))
        budgets = {Period.MONTH: None} | {
            period: min(b.limit_nano for b in policy.budgets if b.period is period)
            for period in Period
            if any(b.period is period for b in policy.budgets)
        }
        for period, budget in budgets.items():
            span = span_at(period, now_us)
            counters.append(CounterCheck(f"{prefix}{span.label}", scope.kind, span, budget))
    ends = [c.span.ends_us for c in counters if c.span.ends_us is not None]
    return Checks(
        principal.root,
        tuple(logs),
        tuple(slots),
        tuple(counters),
        max(c.span.starts_us for c in counters),
        min(ends),
    )


class Demand(msgspec.Struct, frozen=True):
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
    """The answer's kind. *late*: asked too late or outside the checks' periods. *cold*: the tree is not loaded."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    LATE = "late"
    COLD = "cold"


class LogState(msgspec.Struct, frozen=True):
    """A log after the decision. `generation` and `index` name the run that holds this request's weight.

    `empty_in_us` is the time until nothing is left in the window if nothing else arrives.
    """

    generation: int
    index: int
    requests: int
    tokens: int
    empty_in_us: int


class CounterState(msgspec.Struct, frozen=True):
    """A counter after the decision, in nano-dollars."""

    spent: int
    held: int


class Refusal(msgspec.Struct, frozen=True):
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


class Reply(msgspec.Struct, frozen=True):
    """The store's answer, in the order of the checks. `now_us` is the store's time of the decision."""

    status: Status
    now_us: int
    logs: tuple[LogState, ...] = ()
    slots: tuple[int, ...] = ()
    counters: tuple[CounterState, ...] = ()
    refusal: Refusal | None = None


class LimitState(msgspec.Struct, frozen=True):
    """One limit as headers, the CLI and the API show it. `reset_us`: until it is wholly free again, if known."""

    kind: LimitKind
    scope: ScopeKind
    limit: int
    used: int
    reset_us: int | None
    window_us: int | None = None
    period: Period | None = None
    held: int = 0

    @property
    def remaining(self) -> int:
        """Never below zero, though a late truth can push `used` above the limit."""
        return max(0, self.limit - self.used)


def limit_states(checks: Checks, reply: Reply) -> list[LimitState]:
    """Every limit of a request with its state; for budgets `used` is spent + held."""
    states: list[LimitState] = []
    for log, state in zip(checks.logs, reply.logs, strict=True):
        for kind, limit, used in (
            (LimitKind.REQUESTS, log.requests_limit, state.requests),
            (LimitKind.TOKENS, log.tokens_limit, state.tokens),
        ):
            if limit is not None:
                states.append(LimitState(kind, log.scope, limit, used, state.empty_in_us, log.window_us))
    for slot, in_flight in zip(checks.slots, reply.slots, strict=True):
        states.append(LimitState(LimitKind.CONCURRENCY, slot.scope, slot.limit, in_flight, None))
    for counter, money in zip(checks.counters, reply.counters, strict=True):
        if counter.budget_nano is not None:
            ends = counter.span.ends_us
            states.append(
                LimitState(
                    LimitKind.BUDGET,
                    counter.scope,
                    counter.budget_nano,
                    money.spent + money.held,
                    None if ends is None else max(0, ends - reply.now_us),
                    period=counter.span.period,
                    held=money.held,
                )
            )
    return states


class Grant(msgspec.Struct, frozen=True):
    """An admitted attempt: it must end in exactly one settle or void."""

    demand: Demand
    checks: Checks
    reply: Reply


class Denial(msgspec.Struct, frozen=True):
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
