"""What one instance may admit alone while the store is away, and what it must tell the store afterwards.

Of each limit it takes its share: the instances alive at the last count divide what was not known to be used. A
`Fallback` is one root's; it decides on a `Tree` of its own, with the limits cut down to shares and what was known to
be used filled in beforehand, stamped when it was seen, so that it leaves the windows by itself. docs/outages.md
derives the bounds. Nothing here knows why the store is away or how an answer travels.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final
from zlib import crc32

import msgspec

from tollkeeper.domain.admission import (
    SLOT_LEASE_US,
    BucketCheck,
    Checks,
    CounterCheck,
    CounterState,
    Demand,
    LimitKind,
    LogCheck,
    LogState,
    Refusal,
    Reply,
    SlotCheck,
    Status,
)
from tollkeeper.domain.bucket import Bucket
from tollkeeper.domain.entries import Entry
from tollkeeper.domain.policy import COUNT_MAX, Unit
from tollkeeper.domain.tree import Leases, Tree
from tollkeeper.domain.windows import LogPush, RunLog

HEADROOM_FRESH_US: Final = 10_000_000
"""A budget's headroom counts if it was seen at most this long before the outage began."""
RETRY_US: Final = 1_000_000
"""The wait of a request that does not fit this instance's share, but may fit the limit once the store is back."""
PUSH_RUNS_MAX: Final = 64
"""Runs of one log in a push. More are joined, under the later stamp, which is stricter by at most window/64."""


class OutageMode(StrEnum):
    """What passes of a concern while the store is away: nothing, everything, or this instance's share."""

    CLOSED = "closed"
    OPEN = "open"
    BOUNDED = "bounded"


class OutageModes(msgspec.Struct, frozen=True):
    """One mode for limits (windows, slots), one for budgets."""

    limits: OutageMode = OutageMode.BOUNDED
    budgets: OutageMode = OutageMode.BOUNDED


class Fleet(msgspec.Struct, frozen=True):
    """The live instances as they were last counted, and which of them this one is (0 … size-1)."""

    size: int = 1
    rank: int = 0

    def share(self, whole: int, name: str) -> int:
        """This instance's part of `whole`: all parts together are `whole`, and no part shrinks when it grows.

        What does not divide evenly goes to different instances for different names.
        """
        even, odd = divmod(whole, self.size)
        return even + ((self.rank + crc32(name.encode())) % self.size < odd)


class Decision(msgspec.Struct, frozen=True, gc=False):
    """An answer given alone. `checks` are those decided by. `closed` says why the request cannot be decided."""

    checks: Checks
    reply: Reply
    closed: str | None = None


class _SeenLog(msgspec.Struct, frozen=True, gc=False):
    """A log as the store last told of it."""

    seen_us: int
    state: LogState
    window_us: int
    tick_us: int

    @property
    def newest_us(self) -> int:
        """The stamp of its newest run."""
        return self.seen_us + self.state.empty_in_us - self.window_us


class Fallback:
    """One root. It is kept from one outage to the next: what was admitted in the last one counts until its window has
    passed, or until the store has told of the log again."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.tree.run = "alone"
        self.began_us = 0
        self.admitted = 0
        """How many attempts were admitted alone, ever."""
        self._fleet = Fleet()
        self._logs: dict[str, _SeenLog] = {}
        self._buckets: set[str] = set()  # begun in this outage
        self._slots: dict[str, tuple[int, int]] = {}  # (when seen, in flight)
        self._counters: dict[str, tuple[int, CounterState]] = {}
        self._pushed: dict[str, dict[int, tuple[int, int]]] = {}  # log → index of run → weights the store has
        self._plans: dict[int, tuple[Checks, Checks, str | None]] = {}
        self._told: set[str] = set()  # logs whose last sums went into a push

    def begin(self, now_us: int, seen: Iterable[tuple[Checks, Reply]], fleet: Fleet) -> None:
        """An outage begins: `seen` are the last replies of the store for each set of checks."""
        self.began_us = now_us
        self.tree.sweep(now_us)
        self._forget(now_us)
        self.learn(seen)
        self.recount(fleet)

    def _forget(self, now_us: int) -> None:
        """What has no more effect on any decision."""
        self._logs = {n: k for n, k in self._logs.items() if k.newest_us + k.window_us > now_us}
        self._slots = {n: k for n, k in self._slots.items() if k[0] + SLOT_LEASE_US > now_us}
        self._counters = {n: k for n, k in self._counters.items() if now_us - k[0] <= HEADROOM_FRESH_US}
        self._pushed = {n: k for n, k in self._pushed.items() if n in self.tree.logs}
        self._told &= set(self._logs)
        self._buckets.clear()

    def learn(self, seen: Iterable[tuple[Checks, Reply]]) -> None:
        """Keep the newest that the store told of each log, slot set and counter.

        What is newer than what this instance admitted alone includes it.
        """
        for checks, reply in seen:
            for log, state in zip(checks.logs, reply.logs, strict=True):
                known = self._logs.get(log.name)
                if known is None or known.seen_us < reply.now_us:
                    self._logs[log.name] = _SeenLog(reply.now_us, state, log.window_us, log.tick_us)
                    self._told.discard(log.name)
                    self.tree.logs.pop(log.name, None)
                    self._pushed.pop(log.name, None)
            for slot, used in zip(checks.slots, reply.slots, strict=True):
                if self._slots.get(slot.name, (0, 0))[0] < reply.now_us:
                    self._slots[slot.name] = (reply.now_us, used)
                    self.tree.slots.pop(slot.name, None)
            for counter, money in zip(checks.counters, reply.counters, strict=True):
                if counter.name not in self._counters or self._counters[counter.name][0] < reply.now_us:
                    self._counters[counter.name] = (reply.now_us, money)
                    self.tree.counters.pop(counter.name, None)

    def recount(self, fleet: Fleet) -> None:
        """The number of live instances has changed."""
        self._fleet = fleet
        self._plans.clear()

    # Deciding

    def admit(self, now_us: int, checks: Checks, demand: Demand, modes: OutageModes) -> Decision:
        """Decide over this instance's shares. The names in the answer's checks are those of the store."""
        known = self._plans.get(id(checks))
        if known is None or known[0] is not checks:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            known = self._plans[id(checks)] = (checks, *self._plan(checks, modes))
        _, shares, closed = known
        if closed is not None:
            return Decision(shares, Reply(Status.REFUSED, now_us), closed)
        self._prefill(now_us, checks, shares)
        reply = self.tree.admit(now_us, shares, demand)
        degraded = degraded_concerns(checks)
        if reply.refusal is None:
            self.admitted += 1
            return Decision(shares, msgspec.structs.replace(reply, degraded=degraded))
        if reply.refusal.kind is LimitKind.BUDGET:
            refusal = self._true_refusal(now_us, checks, demand)
            if refusal is None:
                return Decision(shares, reply, "its share of the budget's last known headroom is used up")
        else:
            refusal = _for_now(reply.refusal, checks, demand)
        return Decision(shares, msgspec.structs.replace(reply, refusal=refusal, degraded=degraded))

    def ended(self, now_us: int, producer: str, entry: Entry) -> None:
        """An attempt that was admitted here has ended: its hold and slot are free, its weights become the truth."""
        if entry.attempt in self.tree.holds:
            self.tree.marks[producer] = entry.number - 1  # whoever numbers the entries knows their order
            self.tree.apply(now_us, producer, msgspec.structs.replace(entry, fresh=True))

    def _plan(self, checks: Checks, modes: OutageModes) -> tuple[Checks, str | None]:
        """The checks cut down to shares, and why requests cannot be decided at all, if so."""
        concerns, bounded = degraded_concerns(checks), modes.limits is OutageMode.BOUNDED
        for concern, mode in (("limits", modes.limits), ("budgets", modes.budgets)):
            if mode is OutageMode.CLOSED and concern in concerns:
                return checks, f"{concern} cannot be checked"
        counters, closed = [], None
        for counter in checks.counters:
            budget = None
            if counter.budget_nano is not None and modes.budgets is OutageMode.BOUNDED:
                headroom = self._headroom(counter)
                if headroom is None:
                    closed = "what is left of a budget was not known when the outage began"
                budget = (headroom or 0) // self._fleet.size
            counters.append(msgspec.structs.replace(counter, budget_nano=budget, soft_nano=None, thresholds=()))
        shares = msgspec.structs.replace(
            checks,
            logs=tuple([self._log_share(log, modes.limits) for log in checks.logs]),
            buckets=tuple([self._bucket_share(b) for b in checks.buckets if bounded and not b.shadow]),
            slots=tuple([self._slot_share(slot, modes.limits) for slot in checks.slots]),
            counters=tuple(counters),
            warns=False,
        )
        return shares, closed

    def _log_share(self, log: LogCheck, mode: OutageMode) -> LogCheck:
        """In mode *open* it counts all the same, so that the store can be told."""
        limits = (log.requests_limit, log.tokens_limit) if mode is OutageMode.BOUNDED else (None, None)
        requests, tokens = [None if limit is None else self._fleet.share(limit, log.name) for limit in limits]
        return msgspec.structs.replace(
            log, requests_limit=requests, tokens_limit=tokens, requests_shadow=None, tokens_shadow=None
        )

    def _bucket_share(self, bucket: BucketCheck) -> BucketCheck:
        """Of burst and rate. It is empty at first: what was just used up is not there again."""
        rate, burst = self._fleet.share(bucket.rate, bucket.name), self._fleet.share(bucket.burst, bucket.name)
        return msgspec.structs.replace(bucket, rate=max(1, rate), burst=burst)

    def _slot_share(self, slot: SlotCheck, mode: OutageMode) -> SlotCheck:
        bounded = mode is OutageMode.BOUNDED and not slot.shadow
        limit = self._fleet.share(slot.limit, slot.name) if bounded else COUNT_MAX
        return msgspec.structs.replace(slot, limit=limit, shadow=False)

    def _headroom(self, counter: CounterCheck) -> int | None:
        """What was left of a budget when the outage began; None if nobody here knows."""
        assert counter.budget_nano is not None
        if counter.span.starts_us > self.began_us:
            return counter.budget_nano  # the period began since: nothing can have been spent elsewhere
        seen_us, money = self._counters.get(counter.name, (0, CounterState(0, 0)))
        if self.began_us - seen_us > HEADROOM_FRESH_US:
            return None
        return max(0, counter.budget_nano - money.spent - money.held)

    def _prefill(self, now_us: int, checks: Checks, shares: Checks) -> None:
        """Before the first decision over a log or slot set: this instance's share of what was known to be used."""
        for whole, part in zip(checks.logs, shares.logs, strict=True):
            if part.name not in self.tree.logs:
                self.tree.logs[part.name] = self._log_with_known(now_us, whole)
        for bucket in shares.buckets:
            if bucket.name not in self._buckets:
                self._buckets.add(bucket.name)
                empty = self.tree.buckets[bucket.name] = Bucket()
                empty.at(now_us, bucket.rate, bucket.burst)
                empty.set(now_us, bucket.rate, bucket.burst, 0, now_us)
        for slot, slot_share in zip(checks.slots, shares.slots, strict=True):
            seen_us, used = self._slots.get(slot.name, (0, 0))
            if slot.name not in self.tree.slots and seen_us + SLOT_LEASE_US > now_us:
                taken = slot_share.limit - self._fleet.share(max(0, slot.limit - used), slot.name)
                leases = self.tree.slots[slot.name] = Leases()
                for n in range(min(taken, used)):
                    leases.lease(f"~{n}", seen_us + SLOT_LEASE_US)

    def _log_with_known(self, now_us: int, check: LogCheck) -> RunLog:
        log = RunLog(check.window_us, check.tick_us, now_us)
        known = self._logs.get(check.name)
        if known is None or known.newest_us + check.window_us <= now_us:
            return log
        weights = [
            used if limit is None else self._share_used(check.name, limit, used)
            for limit, used in (
                (check.requests_limit, known.state.requests),
                (check.tokens_limit, known.state.tokens),
            )
        ]
        index = log.add(known.newest_us, *weights)
        self._pushed[check.name] = {index: (log.runs[0][1], log.runs[0][2])}
        return log

    def _share_used(self, name: str, limit: int, used: int) -> int:
        return self._fleet.share(limit, name) - self._fleet.share(max(0, limit - used), name)

    def _true_refusal(self, now_us: int, checks: Checks, demand: Demand) -> Refusal | None:
        """The refusal of a budget that does not have room for this even as a whole, as far as is known here."""
        for check in checks.counters:
            headroom = self._headroom(check) if check.budget_nano is not None else None
            if headroom is None or demand.hold_nano <= headroom:
                continue
            budget = check.budget_nano or 0
            never = demand.hold_nano > budget
            wait_us = None if never or check.span.ends_us is None else check.span.ends_us - now_us
            used, period = budget - headroom, check.span.period
            return Refusal(
                LimitKind.BUDGET, check.scope, budget, used, demand.hold_nano, wait_us, never=never, period=period
            )
        return None

    # Telling the store

    def pushes(self) -> list[LogPush]:
        """What the store must be told, each thing once: weights admitted here, and the sums it last told itself, in
        case it has lost them. Whoever takes them must deliver them, under one id however often it takes."""
        found = []
        for name in {*self.tree.logs, *self._logs}:
            log, known = self.tree.logs.get(name), self._logs.get(name)
            runs = self._unpushed(name, log) if log is not None else []
            if not runs and (known is None or name in self._told):
                continue
            self._told.add(name)
            window_us, tick_us = (log.window_us, log.tick_us) if log else (known.window_us, known.tick_us)  # type: ignore[union-attr]
            state = known.state if known else LogState(0, -1, 0, 0, 0)
            newest_us = known.newest_us if known else 0
            found.append(
                LogPush(
                    name, window_us, tick_us, state.generation, newest_us, state.requests, state.tokens, _joined(runs)
                )
            )
        return found

    def _unpushed(self, name: str, log: RunLog) -> list[tuple[int, int, int]]:
        pushed = self._pushed.setdefault(name, {})
        runs = []
        for index, (stamp_us, requests, tokens) in enumerate(log.runs, log.head):
            had_requests, had_tokens = pushed.get(index, (0, 0))
            more = max(0, requests - had_requests), max(0, tokens - had_tokens)
            if any(more):
                runs.append((stamp_us, *more))
                pushed[index] = (had_requests + more[0], had_tokens + more[1])
        for index in [index for index in pushed if index < log.head]:
            del pushed[index]
        return runs


PLANS_MAX: Final = 10_000


def degraded_concerns(checks: Checks) -> str:
    """Which concerns a request has, as the header names them: `limits`, `budgets`, both or none."""
    limits = checks.logs or checks.buckets or checks.slots
    budgets = any(counter.budget_nano is not None for counter in checks.counters)
    return ", ".join([name for name, there in (("limits", limits), ("budgets", budgets)) if there])


def _for_now(refusal: Refusal, checks: Checks, demand: Demand) -> Refusal:
    """*Never* is said only of what would not fit the whole limit either."""
    if not refusal.never:
        return refusal
    for log in checks.logs:
        for limit, asked in ((log.requests_limit, demand.requests), (log.tokens_limit, demand.tokens)):
            if limit is not None and asked > limit:
                return refusal
    for bucket in checks.buckets:
        if (demand.tokens if bucket.unit is Unit.TOKENS else demand.requests) > bucket.burst:
            return refusal
    return msgspec.structs.replace(refusal, never=False, wait_us=RETRY_US)


def _joined(runs: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    size = max(1, -(-len(runs) // PUSH_RUNS_MAX))
    chunks = [runs[at : at + size] for at in range(0, len(runs), size)]
    return tuple([(chunk[-1][0], sum(run[1] for run in chunk), sum(run[2] for run in chunk)) for chunk in chunks])
