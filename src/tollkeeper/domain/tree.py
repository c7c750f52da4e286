"""The state of one root's tree and every decision over it: the readable twin of the Lua scripts.

It is the specification, the engine of the memory store, and the oracle that the scripts are held equal to. It does
not know where it lives, what time it is, or how an answer travels.

- admit: all checks of key, team and organisation at once; nothing is written unless everything passes
- apply: one numbered entry
- seed, snapshot, clear: the way from and to the database
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from tollkeeper.domain.admission import (
    PER_TOKEN,
    SLOT_LEASE_US,
    BucketCheck,
    BucketState,
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
from tollkeeper.domain.bucket import Bucket, Taken, until
from tollkeeper.domain.charges import QUARANTINED, UNCHARGED, Charge, charge_of
from tollkeeper.domain.entries import (
    BURIED,
    RANKED,
    SETTLE,
    USED_KEEP_US,
    VOID,
    Applied,
    AppliedStatus,
    Dispatch,
    Entry,
    EntryKind,
    Used,
    dominates,
    included,
    is_buried,
)
from tollkeeper.domain.policy import Unit
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.recovery import UNKNOWN, Gate, Looked, Ready
from tollkeeper.domain.windows import LogPush, RunLog

NOTHING_SPENT: Final = SpendTotals()
NEVER_US: Final = 2**63
ADMITTED: Final = Status.ADMITTED
APPLIED: Final = AppliedStatus.OK
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


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Money set aside for an attempt in flight. It never charges and never expires by itself."""

    amount: int
    producer: str
    counters: tuple[str, ...]
    slots: tuple[str, ...]
    runs: tuple[tuple[int, int], ...]
    buckets: tuple[Taken, ...] = ()


class Leases(dict[str, int]):
    """Attempts in flight in a scope → the ends of their leases (µs). None ends before `lapse_us`: until then all of
    them count, and nobody need go through them."""

    __slots__ = ("lapse_us",)

    def __init__(self) -> None:
        self.lapse_us = NEVER_US

    def lease(self, attempt: str, until_us: int) -> None:
        """Begin or prolong one."""
        self[attempt] = until_us
        self.lapse_us = min(self.lapse_us, until_us)

    def count(self, now_us: int) -> int:
        """Those that have not ended."""
        if now_us < self.lapse_us:
            return len(self)
        self.lapse_us = min(self.values(), default=NEVER_US)
        return sum([until_us > now_us for until_us in self.values()])

    def drop_ended(self, now_us: int) -> None:
        """Forget those that have ended."""
        if now_us >= self.lapse_us:
            for attempt in [a for a, until_us in self.items() if until_us <= now_us]:
                del self[attempt]
            self.lapse_us = min(self.values(), default=NEVER_US)


class Tree:
    """One root. `run` is a nonce of this memory's life: None means that the tree is cold.

    After a loss nothing is admitted under a budget until every producer in `waits` has sent again, or until
    `gate_us`. `server` is the life of the server in which that was last asked.

    `changed` maps counters that the database may not know yet to the generation of their flag; a snapshot begins a
    new `generation`, so what has changed since can be told from what it saw. Records of attempts (`charges`) are
    flagged as `!` and the attempt; `drops` counts those that left when the database had them.
    """

    def __init__(self) -> None:
        self.run: str | None = None
        self.numbers: dict[str, int] = {}  # life of the server: this memory's number in the database
        self.server: str | None = None
        self.waits: tuple[str, ...] = ()
        self.gate_us = 0
        self.marks: dict[str, int] = {}
        self.charges: dict[str, Charge] = {}
        self.drops = 0
        self.holds: dict[str, Hold] = {}
        self.logs: dict[str, RunLog] = {}
        self.buckets: dict[str, Bucket] = {}
        self.slots: dict[str, Leases] = {}
        self.counters: dict[str, Counter] = {}
        self.changed: dict[str, str] = {}
        self.generation = 1
        self.pushed: dict[str, int] = {}
        self.used: dict[str, Used] = {}
        self.unsaved: dict[str, Used] = {}
        self.keys: tuple[str, int] | None = (
            None  # those that the database remembers follow: who brings them, until when
        )
        self.looked: set[str] = set()  # of these, those that were looked up by themselves
        self.clock_jumps = 0

    # Admission

    def admit(self, now_us: int, checks: Checks, demand: Demand, server: str = "") -> Reply:
        """Decide. An empty attempt id asks for the state only. `server` is empty if no budget is checked."""
        if now_us < checks.valid_from_us or now_us >= checks.valid_until_us or now_us >= demand.not_after_us:
            return Reply(Status.LATE, now_us)
        closed = self._closed_to(now_us, demand, server)
        if closed is not None:
            return Reply(closed, now_us)
        self._advance(now_us, checks)
        if not demand.attempt or demand.attempt in self.holds:
            return self._reply(now_us, checks, self.holds.get(demand.attempt))
        refusals = self._refusals(now_us, checks, demand)
        if refusals:
            reply = self._reply(now_us, checks)
            return msgspec.structs.replace(reply, status=Status.REFUSED, refusal=max(refusals, key=_severity))
        shadowed = tuple(self._shadowed(now_us, checks, demand)) if checks.has_shadow else ()
        reply = self._reply(now_us, checks, self._take(now_us, checks, demand))
        return msgspec.structs.replace(reply, shadowed=shadowed) if shadowed else reply

    def _closed_to(self, now_us: int, demand: Demand, server: str) -> Status | None:
        if self.run is None:
            return Status.COLD
        if demand.attempt and self.marks.get(demand.producer, 0) >= BURIED:
            return Status.BURIED
        if server and (server != self.server or now_us < self.gate_us):
            return Status.RECOVERING
        return None

    def _advance(self, now_us: int, checks: Checks) -> None:
        for check in checks.logs:
            log = self.logs.get(check.name)
            if log is not None:
                self.clock_jumps += log.advance(now_us)

    def _in_flight(self, now_us: int, slot: str) -> int:
        leases = self.slots.get(slot)
        return 0 if leases is None else leases.count(now_us)

    def _leases(self, slot: str) -> Leases:
        leases = self.slots.get(slot)
        if leases is None:
            leases = self.slots[slot] = Leases()
        return leases

    def _refusals(self, now_us: int, checks: Checks, demand: Demand) -> list[Refusal]:
        """One from each limit that the demand does not fit. Most requests fit all: that is asked in line, and only
        what does not fit is looked into."""
        refusals: list[Refusal] = []
        for check in checks.logs:
            log = self.logs.get(check.name)
            requests, tokens = (log.requests, log.tokens) if log else (0, 0)
            limit = check.requests_limit
            if limit is not None and requests + demand.requests > limit:
                refusals.append(_log_refusal(now_us, check, log, 1, limit, requests, demand.requests))
            limit = check.tokens_limit
            if limit is not None and tokens + demand.tokens > limit:
                refusals.append(_log_refusal(now_us, check, log, 2, limit, tokens, demand.tokens))
        for bucket in checks.buckets:
            refusals += self._bucket_refusal(now_us, bucket, demand)
        for slot in checks.slots:
            in_flight = 0 if slot.shadow else self._in_flight(now_us, slot.name)
            if in_flight >= slot.limit and not slot.shadow:
                refusals.append(Refusal(LimitKind.CONCURRENCY, slot.scope, slot.limit, in_flight, 1, None))
        for counter in checks.counters:
            budget = counter.budget_nano
            if budget is not None:
                money = self.counters.get(counter.name)
                used = money.cost + money.held if money else 0
                if used + demand.hold_nano > budget:
                    refusals.append(_budget_refusal(now_us, counter, budget, used, demand.hold_nano))
        return refusals

    def _bucket_refusal(self, now_us: int, check: BucketCheck, demand: Demand) -> Iterable[Refusal]:
        level, last_us = self._bucket(check.name).at(now_us, check.rate, check.burst)
        tokens = _weight(check, demand)
        if tokens * PER_TOKEN <= level or check.shadow:
            return
        never = tokens > check.burst
        wait_us = None if never else until(tokens * PER_TOKEN, level, check.rate, last_us - now_us)
        used = check.burst - level // PER_TOKEN
        yield Refusal(LimitKind(check.unit.value), check.scope, check.burst, used, tokens, wait_us, never)

    def _bucket(self, name: str) -> Bucket:
        bucket = self.buckets.get(name)
        if bucket is None:
            bucket = self.buckets[name] = Bucket()
        return bucket

    def _shadowed(self, now_us: int, checks: Checks, demand: Demand) -> Iterable[Shadowed]:
        """Limits in shadow that would have refused what is being admitted."""
        for check in checks.logs:
            log = self.logs.get(check.name)
            requests, tokens = (log.requests, log.tokens) if log else (0, 0)
            if check.requests_shadow is not None and requests + demand.requests > check.requests_shadow:
                yield Shadowed(LimitKind.REQUESTS, check.scope)
            if check.tokens_shadow is not None and tokens + demand.tokens > check.tokens_shadow:
                yield Shadowed(LimitKind.TOKENS, check.scope)
        for bucket in checks.buckets:
            level, _ = self._bucket(bucket.name).at(now_us, bucket.rate, bucket.burst)
            if bucket.shadow and _weight(bucket, demand) * PER_TOKEN > level:
                yield Shadowed(LimitKind(bucket.unit.value), bucket.scope)
        for slot in checks.slots:
            if slot.shadow and self._in_flight(now_us, slot.name) >= slot.limit:
                yield Shadowed(LimitKind.CONCURRENCY, slot.scope)

    def _take(self, now_us: int, checks: Checks, demand: Demand) -> Hold:
        runs = []
        for check in checks.logs:
            log = self.logs.get(check.name)
            if log is None:
                log = self.logs[check.name] = RunLog(check.window_us, check.tick_us, now_us)
            runs.append((log.generation, log.add(now_us, demand.requests, demand.tokens)))
        taken = tuple([self._take_tokens(now_us, c, demand) for c in checks.buckets]) if checks.buckets else ()
        for slot in checks.slots:
            leases = self._leases(slot.name)
            leases.drop_ended(now_us)
            leases.lease(demand.attempt, now_us + SLOT_LEASE_US)
        for counter in checks.counters:
            money = self.counters.get(counter.name)
            if money is None:
                money = self._counter(counter.name, counter.span.expires_us or 0)
            money.held += demand.hold_nano
        hold = self.holds[demand.attempt] = Hold(
            demand.hold_nano, demand.producer, checks.counter_names, checks.slot_names, tuple(runs), taken
        )
        return hold

    def _take_tokens(self, now_us: int, check: BucketCheck, demand: Demand) -> Taken:
        bucket, tokens = self._bucket(check.name), _weight(check, demand)
        level, last_us = bucket.at(now_us, check.rate, check.burst)
        if tokens * PER_TOKEN > level:  # it is in shadow
            return 0, last_us, level, bucket.returned
        level -= tokens * PER_TOKEN
        if tokens:
            bucket.set(now_us, check.rate, check.burst, level, last_us)
        return bucket.generation, last_us, level, bucket.returned

    def _reply(self, now_us: int, checks: Checks, hold: Hold | None = None) -> Reply:
        """The state of now. `hold` tells which runs and buckets hold the weight of an attempt that was admitted."""
        if hold is not None and not (len(hold.runs) == len(checks.logs) and len(hold.buckets) == len(checks.buckets)):
            hold = None  # it was admitted by other checks
        logs: list[LogState] = []
        for position, check in enumerate(checks.logs):
            log = self.logs.get(check.name)
            generation, index = (log.generation if log else 0, -1) if hold is None else hold.runs[position]
            logs.append(log.state(now_us, generation, index) if log else LogState(generation, index, 0, 0, 0))
        buckets: tuple[BucketState, ...] = ()
        if checks.buckets:
            buckets = tuple([self._bucket_state(now_us, c, hold, n) for n, c in enumerate(checks.buckets)])
        slots = []
        for slot in checks.slots:
            slots.append(self._in_flight(now_us, slot.name))
        counters = []
        for counter in checks.counters:
            state = self.counters.get(counter.name)
            counters.append(CounterState(state.cost, state.held) if state else CounterState(0, 0))
        return Reply(ADMITTED, now_us, tuple(logs), tuple(slots), tuple(counters), None, (), "", buckets)

    def _bucket_state(self, now_us: int, check: BucketCheck, hold: Hold | None, position: int) -> BucketState:
        bucket = self._bucket(check.name)
        level, last_us = bucket.at(now_us, check.rate, check.burst)
        full_in_us = until(check.burst * PER_TOKEN, level, check.rate, last_us - now_us)
        taken = (0, last_us, level, bucket.returned) if hold is None else hold.buckets[position]
        return BucketState(*taken, full_in_us)

    def _counter(self, name: str, expires_us: int) -> Counter:
        counter = self.counters.get(name)
        if counter is None:
            counter = self.counters[name] = Counter(expires_us)
        return counter

    # Settlement

    def apply(self, now_us: int, producer: str, entry: Entry, server: str = "") -> Applied:
        """Apply one entry, if it is the producer's next. After the mark check nothing can refuse it but *absent* and
        *unknown*."""
        if self.run is None:
            return Applied(AppliedStatus.COLD)
        mark = self.marks.get(producer, 0)
        if entry.number <= mark:
            return Applied(AppliedStatus.OK, mark)
        if entry.number != mark + 1:
            return Applied(AppliedStatus.GAP, mark)
        if entry.kind is SETTLE or entry.kind is VOID:
            missing = self._absent(now_us, mark, entry)
            if missing is None:
                self._charge(now_us, entry)
        elif entry.kind in RANKED:
            missing = self._rank(now_us, mark, entry)
        elif entry.kind is EntryKind.USAGE and self.keys is not None and entry.attempt not in self.looked:
            missing = Applied(AppliedStatus.UNKNOWN, mark)
        else:
            aside = entry.kind is EntryKind.QUARANTINE
            missing = None if aside else self._absent(now_us, mark, entry)
            if missing is None:
                self._do(now_us, producer, entry, server)
        if missing is None:
            self.marks[producer] = entry.number
            return Applied(APPLIED, entry.number)
        return missing

    def apply_all(self, now_us: int, producer: str, entries: Sequence[Entry]) -> Applied:
        """Apply consecutive entries of the kinds settle and void in one step: all, or none if one is refused."""
        if self.run is None:
            return Applied(AppliedStatus.COLD)
        mark, last = self.marks.get(producer, 0), entries[-1].number
        if last <= mark:
            return Applied(AppliedStatus.OK, mark)
        if entries[0].number != mark + 1:
            return Applied(AppliedStatus.GAP, mark)
        for entry in entries:
            absent = self._absent(now_us, mark, entry)
            if absent is not None:
                return Applied(AppliedStatus.ABSENT, mark)
        for entry in entries:
            self._charge(now_us, entry)
        self.marks[producer] = last
        return Applied(AppliedStatus.OK, last)

    def _do(self, now_us: int, producer: str, entry: Entry, server: str) -> None:
        if entry.kind in (EntryKind.BURY, EntryKind.CLOSE):
            self._bury(entry)
        elif entry.kind is EntryKind.QUARANTINE:
            self._set_aside(entry)
        elif entry.kind is EntryKind.USAGE:
            self._use(now_us, f"{producer}:{entry.number}", entry, server)
        else:
            self._charge(now_us, entry)

    def _absent(self, now_us: int, mark: int, entry: Entry) -> Applied | None:
        for ref in entry.counters:
            if 0 < ref.ends_us <= now_us and ref.name not in self.counters:
                return Applied(AppliedStatus.ABSENT, mark, ref.name)
        return None

    def _rank(self, now_us: int, mark: int, entry: Entry) -> Applied | None:
        """A higher rank replaces what the attempt was charged with; what is in the way of that, or None."""
        before = self.charges.get(entry.attempt)
        if before is None and not entry.fresh:
            return Applied(AppliedStatus.UNKNOWN, mark)
        fate = self._fate(entry)
        had = before or UNCHARGED
        rises = fate is True and entry.rank > had.rank
        absent = self._absent(now_us, mark, entry) if rises else None
        if absent is not None:
            return absent
        self._let_go(entry)
        if rises:
            for ref in entry.counters:
                counter = self._counter(ref.name, ref.expires_us)
                counter.cost += entry.cost_nano - had.cost_nano
                counter.requests += entry.requests - had.requests
                counter.input += entry.input_tokens - had.input_tokens
                counter.output += entry.output_tokens - had.output_tokens
                counter.cached += entry.cached_tokens - had.cached_tokens
                self.changed[ref.name] = self._flag()
            self.charges[entry.attempt] = charge_of(entry)
        if rises or before is not None:
            self.changed[f"!{entry.attempt}"] = self._flag()
        if fate is None:
            self._list_aside(entry)
        return None

    def _list_aside(self, entry: Entry) -> None:
        self.charges[QUARANTINED + entry.attempt] = charge_of(entry)
        self.changed[f"!{QUARANTINED}{entry.attempt}"] = self._flag()

    def _set_aside(self, entry: Entry) -> None:
        """Release the hold and list the amount. A tree is never damaged, so this is for the scripts' sake."""
        self._list_aside(entry)
        hold = self.holds.pop(entry.attempt, None)
        for name in hold.counters if hold else ():
            if hold is not None and name in self.counters:
                self.counters[name].held -= hold.amount

    def _fate(self, entry: Entry) -> bool | None:
        """Whether an entry counts; not if it was counted under the number it had. None: nobody can tell."""
        counts = True
        for origin in entry.origins:
            reached = included(self.marks.get(origin.producer, 0))
            if origin.producer not in self.marks or (origin.held and origin.number < reached):
                return None
            counts = counts and (origin.held or origin.number > reached)
        return counts if entry.rank else None

    def _let_go(self, entry: Entry) -> None:
        """Release the attempt's hold; that of an orphan only if no living producer has it by now."""
        hold = self.holds.get(entry.attempt)
        orphans = [origin.producer for origin in entry.origins if origin.held]
        if hold is None or (orphans and hold.producer != orphans[-1]):
            return
        del self.holds[entry.attempt]
        for name in hold.counters:
            if name in self.counters:
                self.counters[name].held -= hold.amount
        for slot in entry.slots:
            self._free(slot, entry.attempt)

    def _charge(self, now_us: int, entry: Entry) -> None:
        hold = self.holds.pop(entry.attempt, None)
        for ref in entry.counters:
            counter = self._counter(ref.name, ref.expires_us)
            if hold is not None:
                counter.held -= entry.hold_nano
            if entry.kind is not VOID:
                self._add(ref.name, counter, entry)
        for run in entry.runs:
            log = self.logs.get(run.name)
            if log is not None:
                log.correct(run.generation, run.index, run.requests, run.tokens)
        for b in entry.buckets:
            taken = (b.generation, b.last_us, b.level, b.returned)
            self._bucket(b.name).correct(now_us, b.rate, b.burst, taken, b.tokens)
        for slot in entry.slots:
            self._free(slot, entry.attempt)

    def _free(self, slot: str, attempt: str) -> None:
        leases = self.slots.get(slot)
        if leases is not None:
            leases.pop(attempt, None)

    def _add(self, name: str, counter: Counter, entry: Entry) -> None:
        counter.cost += entry.cost_nano
        counter.requests += entry.requests
        counter.input += entry.input_tokens
        counter.output += entry.output_tokens
        counter.cached += entry.cached_tokens
        self.changed[name] = self._flag()

    def _use(self, now_us: int, by: str, entry: Entry, server: str) -> None:
        """Charge, unless the idempotency key is known by another entry, or the entry was counted under the number it
        had: its key may be forgotten by now. Counters are flagged all the same: what the database has of them may be
        from a lost memory, in which this entry came first.

        While the tree waits for producers, what comes first is not what was first: an entry whose caller was told
        replaces one whose caller was not.
        """
        is_open = server == self.server and now_us >= self.gate_us
        known = self.used.get(entry.attempt)
        counted = any(origin.number <= included(self.marks.get(origin.producer, 0)) for origin in entry.origins)
        if known is not None and known.until_us <= now_us:
            known = None
        overrules = entry.told and not counted and not is_open
        other = known is not None and known.by != by and known.cost_nano != entry.cost_nano
        if known is not None and known.counters and other and overrules:
            self._take_back(known)
            known = None
        if known is None and not counted:
            names = () if entry.told or is_open else tuple([ref.name for ref in entry.counters])
            known = Used(entry.cost_nano, now_us + USED_KEEP_US, by, names)
            self.used[entry.attempt] = self.unsaved[entry.attempt] = known
        for ref in entry.counters:
            counter = self._counter(ref.name, ref.expires_us)
            if known is not None and known.by == by and not counted:
                self._add(ref.name, counter, entry)
            self.changed[ref.name] = self._flag()

    def _take_back(self, known: Used) -> None:
        """What an entry charged; if it did so here: the database may name one that is yet to come."""
        producer, _, number = known.by.rpartition(":")
        if int(number) > included(self.marks.get(producer, 0)):
            return
        for name in known.counters:
            counter = self.counters.get(name)
            if counter is not None:
                counter.cost -= known.cost_nano
                counter.requests -= 1
                self.changed[name] = self._flag()

    def _bury(self, entry: Entry) -> None:
        reached = self.marks.get(entry.dead, 0)
        if not is_buried(reached):
            self.marks[entry.dead] = BURIED + reached
        if entry.kind is not EntryKind.CLOSE:
            return
        for attempt, hold in [(a, h) for a, h in self.holds.items() if h.producer == entry.dead]:
            del self.holds[attempt]
            for name in hold.counters:
                if name in self.counters:
                    self.counters[name].held -= hold.amount
            for slot in hold.slots:
                self._free(slot, attempt)

    def renew(self, now_us: int, attempts: Mapping[str, tuple[str, ...]]) -> None:
        """Heartbeat: prolong the slot leases of attempts in flight (attempt → slot names). Lost slots stay lost."""
        for attempt, slots in attempts.items():
            for slot in slots:
                leases = self.slots.get(slot)
                if leases is not None and attempt in leases:
                    leases.lease(attempt, now_us + SLOT_LEASE_US)

    def claim(self, now_us: int, slots: Mapping[str, Iterable[str]]) -> None:
        """Lease slots for attempts that are in flight already (slot name → attempts), whatever the limits."""
        for slot, attempts in slots.items():
            leases = self._leases(slot)
            for attempt in attempts:
                leases.lease(attempt, now_us + SLOT_LEASE_US)

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

    def reset(self, logs: Iterable[str], slots: Iterable[str], buckets: Iterable[str] = ()) -> None:
        """Empty windows, fill buckets and free slots; money is untouched."""
        for name in buckets:
            self.buckets.pop(name, None)
        for name in logs:
            if name in self.logs:
                self.logs[name].clear()
        for name in slots:
            self.slots.pop(name, None)

    # The way from and to the database

    def seed(
        self,
        run: str,
        marks: Mapping[str, int],
        totals: Mapping[str, tuple[int, SpendTotals]],
        server: str = "",
        *,
        keys_follow: bool = False,
    ) -> bool:
        """Load a tree that does not dominate the database: absolutely, never by adding, and without holds.

        `server` is given if nothing can have been lost, so that nobody need be waited for. `totals` maps a counter's
        name to (expires_us, totals). If `keys_follow`, the database remembers more idempotency keys than are here.
        False: this memory already dominates `marks`.
        """
        if self.run is not None and dominates(self.marks, marks):
            return False
        for name in {*self.changed, *(n for h in self.holds.values() for n in h.counters)}:
            self.counters.pop(name, None)
        for digest in self.unsaved:
            self.used.pop(digest, None)
        self.unsaved.clear()
        self.holds.clear()
        self.run, self.generation = run, 1
        self.server, self.waits, self.gate_us = server or None, (), 0
        self.numbers = {}
        self.keys = ("", 0) if keys_follow else None
        self.looked.clear()
        self.marks = dict(marks)
        self.charges.clear()
        self.drops = 0
        for name, (expires_us, spent) in totals.items():
            self.counters[name] = Counter(expires_us, spent)
        self.changed = dict.fromkeys(totals, self._flag())
        return True

    def fence(self, run: str, life: str, number: int) -> bool:
        """Number this memory, as it is in one life of the server; False: it is another by now."""
        if self.run is None or run != self.run:
            return False
        self.numbers = {life: max(number, self.numbers.get(life, 0))}
        return True

    def flag(self, names: Iterable[str]) -> int:
        """Flag counters of which the database was seen to have other sums. Returns how many had no flag."""
        if self.run is None:
            return 0
        known = [name for name in names if name in self.counters]
        fresh = len(set(known) - self.changed.keys())
        self.changed.update(dict.fromkeys(known, self._flag()))
        return fresh

    def remember(self, used: Mapping[str, Used]) -> None:
        """Before a seed: the idempotency keys that the database knows."""
        for digest, known in used.items():
            self.used[digest] = known
            self.unsaved.pop(digest, None)

    def looked_up(self, run: str, digest: str, known: Used | None) -> Looked:
        """An idempotency key as the database has it, or that it has none, by a look that began in this run."""
        if run != self.run:
            return Looked.ANOTHER_RUN
        if self.keys is None:
            return Looked.ALL_THERE
        if digest not in self.looked:
            self.looked.add(digest)
            self.used.pop(digest, None)
            if known is not None:
                self.used[digest] = known
        return Looked.KNOWN

    def bring(
        self, now_us: int, run: str, bearer: str, until_us: int, used: Mapping[str, Used], *, last: bool
    ) -> bool:
        """Some of the keys that follow a seed; what was looked up may have changed since, and stays. Until `until_us`
        nobody else need bring them. False: another memory, all are there, or another brings them."""
        if run != self.run or self.keys is None or (self.keys[0] != bearer and now_us < self.keys[1]):
            return False
        self.used.update({digest: known for digest, known in used.items() if digest not in self.looked})
        self.keys = None if last else (bearer, until_us)
        if last:
            self.looked.clear()
        return True

    def changes(self) -> tuple[dict[str, SpendTotals], dict[str, Charge], dict[str, str]]:
        """Totals of counters and records of attempts that are flagged as changed, and their flags. A new generation
        begins."""
        totals = {name: self.counters[name].totals() for name in self.changed if name in self.counters}
        records = {n[1:]: self.charges[n[1:]] for n in self.changed if n[0] == "!" and n[1:] in self.charges}
        if self.changed:
            self.generation += 1
        return totals, records, dict(self.changed)

    def clear(self, run: str, versions: Mapping[str, str], used: Mapping[str, Used]) -> None:
        """Clear the flags that have not changed since; records leave with theirs."""
        if self.run != run:
            return
        for digest, known in used.items():
            if self.unsaved.get(digest) == known:
                del self.unsaved[digest]
        for name, version in versions.items():
            if self.changed.get(name) == version:
                del self.changed[name]
                if name[0] == "!" and self.charges.pop(name[1:], None) is not None:
                    self.drops += 1

    def recall(self, run: str, drops: int, attempt: str, charge: Charge, marks: Mapping[str, int]) -> bool | None:
        """Bring back the record of an attempt as the database has it at `marks`.

        `run` and `drops` are as they were before the database was asked. False: ask again; None: this memory does
        not have all that the database has.
        """
        if self.run != run or self.drops != drops:
            return False
        if not dominates(self.marks, marks):
            return None
        self.charges.setdefault(attempt, charge)
        return True

    def drop(self, producers: Iterable[str]) -> None:
        """Forget the marks of buried producers."""
        for producer in producers:
            if is_buried(self.marks.get(producer, 0)):
                del self.marks[producer]

    def _flag(self) -> str:
        return f"{self.run}:{self.generation}"

    def gate(self, server: str, run: str, until_us: int, open_producers: Iterable[str]) -> Gate | None:
        """Who is waited for: in a new life of the server every open producer, else those of before that are open.

        A new life is a new run, because its memory may have gone back to an earlier state. A list with `UNKNOWN` may
        lack some: it takes nobody off those that are waited for, and when a whole one comes, all of it is waited for.
        None: the tree is cold.
        """
        if self.run is None:
            return None
        named = tuple(open_producers)
        if server != self.server:
            self.server, self.run, self.generation = server, run, 1
            self.waits, self.gate_us = named, until_us
        elif UNKNOWN not in named:
            self.waits = named if UNKNOWN in self.waits else tuple([p for p in self.waits if p in named])
        if not self.waits:
            self.gate_us = 0
        return Gate(self.run, self.gate_us, self.waits)

    def ready(self, now_us: int, run: str, producer: str) -> Ready:
        """A producer has sent again all it has to this run, and holds again what is in flight."""
        if run != self.run:
            return Ready.ANOTHER_RUN
        if producer not in self.waits:
            return Ready.COUNTED
        self.waits = tuple([p for p in self.waits if p != producer])
        late = now_us >= self.gate_us
        if not self.waits:
            self.gate_us = 0
        return Ready.LATE if late else Ready.COUNTED

    def restore(self, name: str, expires_us: int, totals: SpendTotals) -> None:
        """Bring back a counter of an ended period that has left the store; one that is there stays as it is."""
        if self.run is not None and name not in self.counters:
            self.counters[name] = Counter(expires_us, totals)

    def reassert(self, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
        """Hold again what a producer still has in flight, after a loss or under a new name.

        `number` is the last that it had given when it had these in flight. False, and nothing is changed, if the tree
        is cold or has gone beyond that: the end of one of them may be here already, and would never release it.
        """
        if self.run is None or self.marks.get(producer, 0) > number:
            return not dispatches
        for dispatch in dispatches:
            if dispatch.attempt not in self.holds:
                for ref in dispatch.counters:
                    self._counter(ref.name, ref.expires_us).held += dispatch.hold_nano
            runs = tuple([(r.generation, r.index) for r in dispatch.runs])
            names = tuple([ref.name for ref in dispatch.counters])
            taken = tuple([(b.generation, b.last_us, b.level, b.returned) for b in dispatch.buckets])
            self.holds[dispatch.attempt] = Hold(dispatch.hold_nano, producer, names, dispatch.slots, runs, taken)
        return True

    def sweep(self, now_us: int) -> None:
        """Drop what has no more effect: the memory store's counterpart of key expiry."""
        for name in [n for n, log in self.logs.items() if log.last_us + 2 * log.window_us <= now_us]:
            del self.logs[name]
        for name in [n for n, bucket in self.buckets.items() if bucket.full_us <= now_us]:
            del self.buckets[name]
        for push_id in [i for i, until_us in self.pushed.items() if until_us <= now_us]:
            del self.pushed[push_id]
        for digest in [d for d, known in self.used.items() if known.until_us <= now_us]:
            del self.used[digest]
        for name in [n for n, c in self.counters.items() if 0 < c.expires_us <= now_us and n not in self.changed]:
            del self.counters[name]


def _weight(check: BucketCheck, demand: Demand) -> int:
    return demand.tokens if check.unit is Unit.TOKENS else demand.requests


def _log_refusal(
    now_us: int, check: LogCheck, log: RunLog | None, unit: int, limit: int, used: int, asked: int
) -> Refusal:
    """Of a window; `unit` as for `RunLog.wait_us`."""
    kind = LimitKind.REQUESTS if unit == 1 else LimitKind.TOKENS
    never = asked > limit
    wait_us = None if never or log is None else log.wait_us(now_us, unit, used + asked - limit)
    return Refusal(kind, check.scope, limit, used, asked, wait_us, never)


def _budget_refusal(now_us: int, check: CounterCheck, budget: int, used: int, asked: int) -> Refusal:
    ends, never = check.span.ends_us, asked > budget
    wait_us = None if never or ends is None else ends - now_us
    return Refusal(LimitKind.BUDGET, check.scope, budget, used, asked, wait_us, never, check.span.period)


def _severity(refusal: Refusal) -> tuple[int, int]:
    """The longest wait is told: never, then no known time, then the latest; the first of equals."""
    if refusal.never:
        return (3, 0)
    if refusal.wait_us is None:
        return (2 if refusal.kind is LimitKind.BUDGET else 1, 0)
    return (0, refusal.wait_us)
