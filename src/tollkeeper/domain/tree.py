"""The state of one root's tree and every decision over it: the readable twin of the Lua scripts.

It is the specification, the engine of the memory store, and the oracle that the scripts are held equal to. It does
not know where it lives, what time it is, or how an answer travels.

- admit: all checks of key, team and organisation at once; nothing is written unless everything passes
- apply: one numbered entry
- seed, snapshot, clear: the way from and to the database
"""

from collections.abc import Iterable, Mapping
from typing import Final

from tollkeeper.domain.admission import (
    SLOT_LEASE_US,
    Checks,
    CounterCheck,
    CounterState,
    Demand,
    LimitKind,
    LogCheck,
    LogState,
    Refusal,
    Reply,
    Shadowed,
    Status,
)
from tollkeeper.domain.entries import (
    CLOSED,
    USED_KEEP_US,
    Applied,
    AppliedStatus,
    Dispatch,
    Entry,
    EntryKind,
    Used,
)
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.windows import LogPush, RunLog

NOTHING_SPENT: Final = SpendTotals()
PUSH_REMEMBERED_US: Final = 86_400_000_000
"""A push that comes again within a day, after a lost reply, adds nothing."""


class Counter:
    """The spend of one scope in one period, and what is held against it."""

    __slots__ = ("cached", "cost", "expires_us", "held", "input", "output", "requests")

    def __init__(self, expires_us: int, totals: SpendTotals = NOTHING_SPENT) -> None:
        self.expires_us = expires_us
        self.held = 0
        self.cost = totals.cost_nano
        self.requests = totals.requests
        self.input = totals.input_tokens
        self.output = totals.output_tokens
        self.cached = totals.cached_tokens

    def totals(self) -> SpendTotals:
        """Without what is held."""
        return SpendTotals(self.cost, self.requests, self.input, self.output, self.cached)


class Hold:
    """Money set aside for an attempt in flight. It never charges and never expires by itself."""

    __slots__ = ("amount", "counters", "producer", "runs", "slots")

    def __init__(
        self,
        amount: int,
        producer: str,
        counters: tuple[str, ...],
        slots: tuple[str, ...],
        runs: tuple[tuple[int, int], ...],
    ) -> None:
        self.amount, self.producer, self.counters, self.slots, self.runs = amount, producer, counters, slots, runs


class Tree:
    """One root. `run` is a nonce of this memory's life: None means that the tree is cold.

    `changed` maps counters that the database may not know yet to the generation of their flag; a snapshot begins a
    new `generation`, so what has changed since can be told from what it saw.
    """

    def __init__(self) -> None:
        self.run: str | None = None
        self.marks: dict[str, int] = {}
        self.holds: dict[str, Hold] = {}
        self.logs: dict[str, RunLog] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self.counters: dict[str, Counter] = {}
        self.changed: dict[str, str] = {}
        self.generation = 1
        self.pushed: dict[str, int] = {}
        self.used: dict[str, Used] = {}
        self.unsaved: dict[str, Used] = {}
        self.clock_jumps = 0

    # Admission

    def admit(self, now_us: int, checks: Checks, demand: Demand) -> Reply:
        """Decide. An empty attempt id asks for the state only."""
        if not checks.valid_from_us <= now_us < min(checks.valid_until_us, demand.not_after_us):
            return Reply(Status.LATE, now_us)
        if self.run is None:
            return Reply(Status.COLD, now_us)
        self._advance(now_us, checks)
        earlier = self.holds.get(demand.attempt)
        if earlier is not None:
            return self._reply(now_us, checks, earlier.runs)
        if not demand.attempt:
            return self._reply(now_us, checks)
        refusal = self._refusal(now_us, checks, demand)
        if refusal is not None:
            reply = self._reply(now_us, checks)
            return Reply(Status.REFUSED, now_us, reply.logs, reply.slots, reply.counters, refusal)
        shadowed = tuple(self._shadowed(checks, demand))
        reply = self._reply(now_us, checks, self._take(now_us, checks, demand))
        return Reply(Status.ADMITTED, now_us, reply.logs, reply.slots, reply.counters, None, shadowed)

    def _advance(self, now_us: int, checks: Checks) -> None:
        for check in checks.logs:
            log = self.logs.get(check.name)
            if log is not None:
                self.clock_jumps += log.advance(now_us)
        for slot in checks.slots:
            leases = self.slots.get(slot.name)
            if leases:
                for attempt in [a for a, until in leases.items() if until <= now_us]:
                    del leases[attempt]

    def _refusal(self, now_us: int, checks: Checks, demand: Demand) -> Refusal | None:
        """The refusal with the longest wait: never, then no known time, then the latest; the first of equals."""
        refusals: list[Refusal] = []
        for check in checks.logs:
            refusals += self._log_refusals(now_us, check, demand)
        for slot in checks.slots:
            in_flight = len(self.slots.get(slot.name, ()))
            if in_flight >= slot.limit and not slot.shadow:
                refusals.append(Refusal(LimitKind.CONCURRENCY, slot.scope, slot.limit, in_flight, 1, None))
        for counter in checks.counters:
            refusals += self._budget_refusal(now_us, counter, demand)
        return max(refusals, key=_severity, default=None)

    def _log_refusals(self, now_us: int, check: LogCheck, demand: Demand) -> Iterable[Refusal]:
        log = self.logs.get(check.name)
        for kind, unit, limit, asked, used in (
            (LimitKind.REQUESTS, 1, check.requests_limit, demand.requests, log.requests if log else 0),
            (LimitKind.TOKENS, 2, check.tokens_limit, demand.tokens, log.tokens if log else 0),
        ):
            if limit is None or used + asked <= limit:
                continue
            if asked > limit:
                yield Refusal(kind, check.scope, limit, used, asked, None, never=True)
            else:
                wait = log.wait_us(now_us, unit, used + asked - limit) if log else 0
                yield Refusal(kind, check.scope, limit, used, asked, wait)

    def _shadowed(self, checks: Checks, demand: Demand) -> Iterable[Shadowed]:
        """Limits in shadow that would have refused what is being admitted."""
        for check in checks.logs:
            log = self.logs.get(check.name)
            requests, tokens = (log.requests, log.tokens) if log else (0, 0)
            if check.requests_shadow is not None and requests + demand.requests > check.requests_shadow:
                yield Shadowed(LimitKind.REQUESTS, check.scope)
            if check.tokens_shadow is not None and tokens + demand.tokens > check.tokens_shadow:
                yield Shadowed(LimitKind.TOKENS, check.scope)
        for slot in checks.slots:
            if slot.shadow and len(self.slots.get(slot.name, ())) >= slot.limit:
                yield Shadowed(LimitKind.CONCURRENCY, slot.scope)

    def _budget_refusal(self, now_us: int, check: CounterCheck, demand: Demand) -> Iterable[Refusal]:
        if check.budget_nano is None:
            return
        counter = self.counters.get(check.name)
        used = counter.cost + counter.held if counter else 0
        if used + demand.hold_nano > check.budget_nano:
            ends, period = check.span.ends_us, check.span.period
            never = demand.hold_nano > check.budget_nano
            wait = None if never or ends is None else ends - now_us
            yield Refusal(
                LimitKind.BUDGET, check.scope, check.budget_nano, used, demand.hold_nano, wait, never, period
            )

    def _take(self, now_us: int, checks: Checks, demand: Demand) -> tuple[tuple[int, int], ...]:
        runs = []
        for check in checks.logs:
            log = self.logs.get(check.name)
            if log is None:
                log = self.logs[check.name] = RunLog(check.window_us, check.tick_us, now_us)
            runs.append((log.generation, log.add(now_us, demand.requests, demand.tokens)))
        for slot in checks.slots:
            self.slots.setdefault(slot.name, {})[demand.attempt] = now_us + SLOT_LEASE_US
        for counter in checks.counters:
            self._counter(counter.name, counter.span.expires_us or 0).held += demand.hold_nano
        hold = self.holds[demand.attempt] = Hold(
            demand.hold_nano,
            demand.producer,
            tuple([c.name for c in checks.counters]),
            tuple([s.name for s in checks.slots]),
            tuple(runs),
        )
        return hold.runs

    def _reply(self, now_us: int, checks: Checks, runs: tuple[tuple[int, int], ...] = ()) -> Reply:
        """The state of now. `runs` are those that hold the weight of the attempt, if it was admitted."""
        logs: list[LogState] = []
        for position, check in enumerate(checks.logs):
            log = self.logs.get(check.name)
            generation, index = runs[position] if position < len(runs) else (log.generation if log else 0, -1)
            logs.append(log.state(now_us, generation, index) if log else LogState(generation, index, 0, 0, 0))
        counters = []
        for counter in checks.counters:
            state = self.counters.get(counter.name)
            counters.append(CounterState(state.cost, state.held) if state else CounterState(0, 0))
        slots = tuple([len(self.slots.get(s.name, ())) for s in checks.slots])
        return Reply(Status.ADMITTED, now_us, tuple(logs), slots, tuple(counters))

    def _counter(self, name: str, expires_us: int) -> Counter:
        counter = self.counters.get(name)
        if counter is None:
            counter = self.counters[name] = Counter(expires_us)
        return counter

    # Settlement

    def apply(self, now_us: int, producer: str, entry: Entry) -> Applied:
        """Apply one entry, if it is the producer's next. After the mark check nothing can refuse it but *absent*."""
        if self.run is None:
            return Applied(AppliedStatus.COLD)
        mark = self.marks.get(producer, 0)
        if entry.number <= mark:
            return Applied(AppliedStatus.OK, mark)
        if entry.number != mark + 1:
            return Applied(AppliedStatus.GAP, mark)
        for ref in entry.counters:
            if 0 < ref.ends_us <= now_us and ref.name not in self.counters:
                return Applied(AppliedStatus.ABSENT, mark, ref.name)
        if entry.kind is EntryKind.CLOSE:
            self._close(producer)
            mark = CLOSED
        elif entry.kind is EntryKind.USAGE:
            self._use(now_us, f"{producer}:{entry.number}", entry)
            mark = entry.number
        else:
            self._charge(entry)
            mark = entry.number
        self.marks[producer] = mark
        return Applied(AppliedStatus.OK, mark)

    def _charge(self, entry: Entry) -> None:
        hold = self.holds.pop(entry.attempt, None)
        for ref in entry.counters:
            counter = self._counter(ref.name, ref.expires_us)
            if hold is not None:
                counter.held -= entry.hold_nano
            if entry.kind is EntryKind.VOID:
                continue
            self._add(ref.name, counter, entry)
        for run in entry.runs:
            log = self.logs.get(run.name)
            if log is not None:
                log.correct(run.generation, run.index, run.requests, run.tokens)
        for slot in entry.slots:
            self.slots.get(slot, {}).pop(entry.attempt, None)

    def _add(self, name: str, counter: Counter, entry: Entry) -> None:
        counter.cost += entry.cost_nano
        counter.requests += entry.requests
        counter.input += entry.input_tokens
        counter.output += entry.output_tokens
        counter.cached += entry.cached_tokens
        self.changed[name] = self._flag()

    def _use(self, now_us: int, by: str, entry: Entry) -> None:
        """Charge, unless the idempotency key is known by another entry. Counters are flagged all the same: what the
        database has of them may be from a memory that was lost, in which this entry came first."""
        known = self.used.get(entry.attempt)
        if known is None or known.until_us <= now_us:
            known = Used(entry.cost_nano, now_us + USED_KEEP_US, by)
            self.used[entry.attempt] = self.unsaved[entry.attempt] = known
        for ref in entry.counters:
            counter = self._counter(ref.name, ref.expires_us)
            if known.by == by:
                self._add(ref.name, counter, entry)
            self.changed[ref.name] = self._flag()

    def _close(self, producer: str) -> None:
        for attempt, hold in [(a, h) for a, h in self.holds.items() if h.producer == producer]:
            del self.holds[attempt]
            for name in hold.counters:
                if name in self.counters:
                    self.counters[name].held -= hold.amount
            for slot in hold.slots:
                self.slots.get(slot, {}).pop(attempt, None)

    def renew(self, now_us: int, attempts: Mapping[str, tuple[str, ...]]) -> None:
        """Heartbeat: prolong the slot leases of attempts in flight (attempt → slot names). Lost slots stay lost."""
        for attempt, slots in attempts.items():
            for slot in slots:
                leases = self.slots.get(slot)
                if leases is not None and attempt in leases:
                    leases[attempt] = now_us + SLOT_LEASE_US

    def claim(self, now_us: int, slots: Mapping[str, Iterable[str]]) -> None:
        """Lease slots for attempts that are in flight already (slot name → attempts), whatever the limits."""
        for slot, attempts in slots.items():
            self.slots.setdefault(slot, {}).update(dict.fromkeys(attempts, now_us + SLOT_LEASE_US))

    def push(self, now_us: int, push_id: str, pushes: Iterable[LogPush]) -> bool:
        """Add by force what an instance admitted alone while it could not ask; False: this push was here before."""
        if push_id in self.pushed:
            return False
        self.pushed[push_id] = now_us + PUSH_REMEMBERED_US
        for push in pushes:
            log = self.logs.get(push.name) or RunLog(push.window_us, push.tick_us, now_us)
            self.clock_jumps += log.advance(now_us)
            log.push(now_us, push)
            if log.runs:
                self.logs[push.name] = log
        return True

    def reset(self, logs: Iterable[str], slots: Iterable[str]) -> None:
        """Empty windows and free slots; money is untouched."""
        for name in logs:
            if name in self.logs:
                self.logs[name].clear()
        for name in slots:
            self.slots.pop(name, None)

    # The way from and to the database

    def seed(self, run: str, marks: Mapping[str, int], totals: Mapping[str, tuple[int, SpendTotals]]) -> bool:
        """Load a tree that does not dominate the database: absolutely, never by adding, and without holds.

        `totals` maps a counter's name to (expires_us, totals). False: this memory already dominates `marks`.
        """
        if self.run is not None and all(self.marks.get(p, 0) >= n for p, n in marks.items()):
            return False
        for name in {*self.changed, *(n for h in self.holds.values() for n in h.counters)}:
            self.counters.pop(name, None)
        for digest in self.unsaved:
            self.used.pop(digest, None)
        self.unsaved.clear()
        self.holds.clear()
        self.run, self.generation = run, 1
        self.marks = dict(marks)
        for name, (expires_us, spent) in totals.items():
            self.counters[name] = Counter(expires_us, spent)
        self.changed = dict.fromkeys(totals, self._flag())
        return True

    def remember(self, used: Mapping[str, Used]) -> None:
        """Before a seed: the idempotency keys that the database knows."""
        for digest, known in used.items():
            self.used[digest] = known
            self.unsaved.pop(digest, None)

    def changes(self) -> tuple[dict[str, SpendTotals], dict[str, str]]:
        """Totals of the counters that are flagged as changed, and their flags. A new generation begins."""
        totals = {name: self.counters[name].totals() for name in self.changed if name in self.counters}
        if self.changed:
            self.generation += 1
        return totals, dict(self.changed)

    def _flag(self) -> str:
        return f"{self.run}:{self.generation}"

    def restore(self, name: str, expires_us: int, totals: SpendTotals) -> None:
        """Bring back a counter of an ended period that has left the store; one that is there stays as it is."""
        if self.run is not None and name not in self.counters:
            self.counters[name] = Counter(expires_us, totals)

    def reassert(self, producer: str, dispatches: Iterable[Dispatch]) -> None:
        """Hold again what a producer still has in flight, after a loss."""
        if self.run is None:
            return
        for dispatch in dispatches:
            if dispatch.attempt in self.holds:
                continue
            for ref in dispatch.counters:
                self._counter(ref.name, ref.expires_us).held += dispatch.hold_nano
            runs = tuple([(r.generation, r.index) for r in dispatch.runs])
            names = tuple([ref.name for ref in dispatch.counters])
            self.holds[dispatch.attempt] = Hold(dispatch.hold_nano, producer, names, dispatch.slots, runs)

    def sweep(self, now_us: int) -> None:
        """Drop what has no more effect: the memory store's counterpart of key expiry."""
        for name in [n for n, log in self.logs.items() if log.last_us + 2 * log.window_us <= now_us]:
            del self.logs[name]
        for push_id in [i for i, until_us in self.pushed.items() if until_us <= now_us]:
            del self.pushed[push_id]
        for digest in [d for d, known in self.used.items() if known.until_us <= now_us]:
            del self.used[digest]
        for name in [n for n, c in self.counters.items() if 0 < c.expires_us <= now_us and n not in self.changed]:
            del self.counters[name]


def _severity(refusal: Refusal) -> tuple[int, int]:
    if refusal.never:
        return (3, 0)
    if refusal.wait_us is None:
        return (2 if refusal.kind is LimitKind.BUDGET else 1, 0)
    return (0, refusal.wait_us)
