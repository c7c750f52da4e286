"""The ledger of one gateway process: admits through the store, settles by numbered entries, recovers from losses.

It is the *producer* of the settlement protocol (ARCHITECTURE.md): it numbers entries per root, writes them to its
outbox, and sends them in order on the store's ordered connection. A lost reply, a gap or a cold tree starts the
recovery of that root: load it from the database if it must be, send again what is above the mark, hold again what is
in flight.
Decisions are the store's; the way into the database is `sync.py`'s.
"""

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.domain.admission import (
    Checks,
    CounterCheck,
    CounterState,
    Demand,
    Denial,
    Grant,
    LimitState,
    Reply,
    Status,
    checks_for,
    limit_states,
)
from tollkeeper.domain.entries import (
    Applied,
    AppliedStatus,
    Charged,
    Dispatch,
    Entry,
    Used,
    counter_ref,
    dispatch_of,
    presume_entry,
    settle_entry,
    usage_digest,
    usage_entry,
    void_entry,
)
from tollkeeper.domain.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidInput,
    OutboxUnavailable,
    StoreUnavailable,
    Unavailable,
)
from tollkeeper.domain.money import usd
from tollkeeper.domain.outage import OutageMode, OutageModes
from tollkeeper.domain.periods import Period, Span
from tollkeeper.domain.policy import Principal, ScopeKind
from tollkeeper.domain.ports import RootSnapshot, SpendLedger
from tollkeeper.domain.tree import NOTHING_SPENT
from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.governance.outage import Outage
from tollkeeper.governance.outbox import open_outbox
from tollkeeper.governance.seeding import seeds_of
from tollkeeper.governance.store import SeedTotals, Store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

FSYNC_INTERVAL_S: Final = 0.01
HEARTBEAT_S: Final = 10.0
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0
ASKS_MAX: Final = 4
"""How often one admission is asked before giving up: late at a period's end, or cold."""
CHECKS_MAX: Final = 50_000
ALWAYS_US: Final = 2**53
"""The end of no period."""
LIVE_US: Final = 60_000_000
"""An instance whose last heartbeat is older than this is not counted: counting one too many is the safe side."""
ALONE: Final = "a"
"""Ends the id of an attempt that is decided alone after the store did not answer: the first may still be admitted
there, and is voided."""
SHUT: Final = OutageModes(OutageMode.CLOSED, OutageMode.CLOSED)


class _Asked(NamedTuple):
    """Whose limits are asked for; None: those of all models, of no end user."""

    principal: Principal
    model: str | None
    user: str | None


class _Root:
    """What this process has sent to one root and not seen acknowledged."""

    __slots__ = ("acknowledged", "recovery", "suspect", "unacknowledged")

    def __init__(self) -> None:
        self.unacknowledged: deque[Entry] = deque()
        self.acknowledged = 0
        self.suspect = False  # the database was seen ahead of the store
        self.recovery: asyncio.Task[None] | None = None


class Ledger:
    """Keeps `ports.Governor`. `start` and `stop` belong to one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        spend: SpendLedger,
        outbox_dir: Path,
        metrics: Metrics,
        now_us: Callable[[], int],
        admission_timeout_s: float = 1.0,
        outage: OutageModes = SHUT,
    ) -> None:
        self.touched: set[str] = set()
        """Roots with entries since the sync worker last looked."""
        self._store, self._spend, self._now_us = store, spend, now_us
        self._timeout_us = int(admission_timeout_s * 1e6)
        self._outbox, self.dead = open_outbox(outbox_dir)
        self.producer = self._outbox.producer
        self._roots: dict[str, _Root] = {}
        self._live: dict[str, Grant] = {}
        self._abandoned = 0  # admissions without an answer that are still to be voided
        self._checks: dict[tuple[str, str | None, str | None], tuple[Principal, Checks]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logger("governance")
        self.outage = Outage(
            store=store, producer=self.producer, modes=outage, metrics=metrics, on_back=self._recover_soon
        )
        self._declare(metrics)

    def __repr__(self) -> str:
        return f"<Ledger {self.producer} live={len(self._live)} unacknowledged={self.unacknowledged}>"

    def _declare(self, metrics: Metrics) -> None:
        self._conflicts = metrics.counter(
            "tollkeeper_idempotency_conflicts_total", "Usage refused because its key stands for another amount."
        ).labels()
        admissions = metrics.counter("tollkeeper_admissions_total", "Decisions of the store by result.", "result")
        self._admitted, self._refused, self._failed = (
            admissions.labels(result) for result in ("admitted", "refused", "unavailable")
        )
        entries = metrics.counter("tollkeeper_entries_total", "Numbered entries written, by kind.", "kind")
        self._settled, self._presumed, self._voided, self._used = (
            entries.labels(kind) for kind in ("settle", "presume", "void", "usage")
        )
        self._recoveries = metrics.counter(
            "tollkeeper_root_recoveries_total", "Roots whose entries had to be sent again."
        ).labels()
        self._seeded = metrics.counter(
            "tollkeeper_roots_loaded_total", "Roots loaded into the store from the database."
        ).labels()
        metrics.gauge("tollkeeper_holds", "Attempts of this process in flight.", lambda: len(self._live))
        metrics.gauge(
            "tollkeeper_entries_unacknowledged", "Entries the store has not confirmed.", lambda: self.unacknowledged
        )
        metrics.gauge("tollkeeper_outbox_bytes", "Bytes kept in the outbox.", lambda: self._outbox.bytes_kept)

    @property
    def unacknowledged(self) -> int:
        """Entries that the store has not confirmed."""
        return sum(len(state.unacknowledged) for state in self._roots.values())

    @property
    def outbox_failure(self) -> str | None:
        """Why the outbox takes nothing, or None."""
        return self._outbox.failure

    async def start(self) -> None:
        """Begin: send again what an earlier clean stop left unsent, and keep leases and disk up to date."""
        self._outbox.reserve()
        self._outbox.release()
        self._spawn(self._outbox.fsync_loop(FSYNC_INTERVAL_S))
        self._spawn(self._heartbeat())
        for root in self._outbox.kept_roots():
            self.touched.add(root)
            self._recover_soon(root)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the store has confirmed every entry. False if it has not by then; nothing is lost."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._unsettled and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - at stop only
            await asyncio.sleep(0.005)
        return not self._unsettled

    @property
    def _unsettled(self) -> int:
        return self.unacknowledged + self._abandoned

    async def stop(self) -> None:
        """Stop the tasks and leave the outbox to the next start, which goes on with it if nothing is in flight."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.outage.stop()
        self._outbox.close(clean=not self._live)

    # Governor: admission

    async def admit(
        self, principal: Principal, *, attempt: str, tokens: int, hold_nano: int, model: str = "", user: str = ""
    ) -> Grant | Denial:
        root = principal.root
        self._outbox.know(root)
        demand = Demand(attempt, self.producer, tokens, hold_nano, 0)
        asked = _Asked(principal, model, user)
        if self.outage.takes(root):
            handing_over = self.outage.handing_over(root)
            if handing_over is not None:
                await asyncio.wait({handing_over}, timeout=self._timeout_us / 1e6)
            if self.outage.takes(root):
                return self._admit_alone(asked, demand)
        self._outbox.reserve()
        try:
            checks, demand, reply = await self._decide(asked, demand)
        except BaseException as error:
            self._abandon(asked, demand, sent=not isinstance(error, Unavailable) or getattr(error, "sent", False))
            if not isinstance(error, StoreUnavailable):
                self._failed.inc()
                raise
            self.outage.begin(root)
            if not self.outage.is_away(root):
                self._recover_soon(root)
            return self._admit_alone(asked, msgspec.structs.replace(demand, attempt=attempt + ALONE))
        self.outage.saw(checks, reply)
        return self._decided(checks, demand, reply)

    def _admit_alone(self, asked: "_Asked", demand: Demand) -> Grant | Denial:
        """The store is away: decide over this instance's share. Raises StoreUnavailable where that is not wanted."""
        self._outbox.reserve()
        now_us = self._store.now_us()
        demand = msgspec.structs.replace(demand, not_after_us=now_us + self._timeout_us)
        decision = self.outage.admit(self._checks_of(asked, now_us), demand)
        if decision.closed is not None:
            self._outbox.release()
            self._failed.inc()
            raise StoreUnavailable(f"the store is away and {decision.closed}", sent=False)
        return self._decided(decision.checks, demand, decision.reply)

    def _decided(self, checks: Checks, demand: Demand, reply: Reply) -> Grant | Denial:
        if reply.refusal is not None:
            self._outbox.release()
            self._refused.inc()
            return Denial(checks, reply, reply.refusal)
        self._admitted.inc()
        grant = self._live[demand.attempt] = Grant(demand, checks, reply)
        return grant

    async def _decide(self, asked: "_Asked", demand: Demand) -> tuple[Checks, Demand, Reply]:
        hint_us = 0
        for _ in range(ASKS_MAX):
            now_us = self._store.now_us()
            checks = self._checks_of(asked, hint_us or now_us)
            demand = Demand(
                demand.attempt, demand.producer, demand.tokens, demand.hold_nano, now_us + self._timeout_us
            )
            try:
                reply = await self._store.admit(checks, demand)
            except StoreUnavailable as error:
                self.outage.failed(checks.root, error)
                raise
            if reply.status is Status.COLD:
                await self.warm(checks.root)
            elif reply.status is Status.LATE:
                hint_us = reply.now_us
            else:
                return checks, demand, reply
        raise StoreUnavailable("the store could not decide in time", sent=False)

    def _checks_of(self, asked: "_Asked", now_us: int) -> Checks:
        principal = asked.principal
        model = asked.model if principal.limits_models else None
        user = asked.user if principal.limits_users else None
        key = (principal.key_id, model, user)
        known = self._checks.get(key)
        if known is not None and known[0] is principal and known[1].valid_from_us <= now_us < known[1].valid_until_us:
            return known[1]
        if len(self._checks) >= CHECKS_MAX:
            self._checks.clear()
        checks = checks_for(principal, now_us, model, user)
        self._checks[key] = (principal, checks)
        return checks

    def _abandon(self, asked: "_Asked", demand: Demand, *, sent: bool) -> None:
        """An admission that was never answered may have been granted: void it, once it can no longer run."""
        if not sent:
            self._outbox.release()
            return
        grant = Grant(demand, self._checks_of(asked, self._store.now_us()), Reply(Status.ADMITTED, 0))
        dispatch = Dispatch(
            demand.attempt,
            demand.hold_nano,
            tuple([counter_ref(check) for check in grant.checks.counters]),
            (),
            tuple([slot.name for slot in grant.checks.slots]),
        )
        self._live[demand.attempt] = grant
        self._abandoned += 1
        # no ask of it may run later than that
        asyncio.get_running_loop().call_later(self._timeout_us / 1e6, self._void_abandoned, grant, dispatch)

    def _void_abandoned(self, grant: Grant, dispatch: Dispatch) -> None:
        self._abandoned -= 1
        self._void(grant, dispatch)

    # Governor: settlement

    def dispatched(self, grant: Grant) -> None:
        self._outbox.dispatch(grant.checks.root, dispatch_of(grant))

    def settle(self, grant: Grant, cost_nano: int, usage: Usage, *, presumed: bool = False) -> None:
        root, dispatch = grant.checks.root, self._ending(grant)
        number = self._outbox.next_number(root)
        if presumed:
            self._presumed.inc()
            self._record(root, presume_entry(number, dispatch))
        else:
            self._settled.inc()
            delta = usage.total_tokens - grant.demand.tokens
            self._record(root, settle_entry(number, dispatch, cost_nano, usage, delta))

    def void(self, grant: Grant) -> None:
        self._void(grant, self._ending(grant))

    def _void(self, grant: Grant, dispatch: Dispatch) -> None:
        self._live.pop(grant.demand.attempt, None)
        self._voided.inc()
        root, demand = grant.checks.root, grant.demand
        number = self._outbox.next_number(root)
        self._record(root, void_entry(number, dispatch, demand.requests, demand.tokens))

    def _ending(self, grant: Grant) -> Dispatch:
        """An attempt ends once; a second end is a defect of the caller and must not charge again."""
        if self._live.pop(grant.demand.attempt, None) is None:
            raise InvalidInput(f"attempt {grant.demand.attempt} has ended already")
        known = self._outbox.in_flight.get(grant.demand.attempt)
        return known[1] if known else dispatch_of(grant)

    def _record(self, root: str, entry: Entry) -> None:
        self._outbox.append(root, entry)
        self._outbox.release()
        self.outage.ended(root, entry)
        self.touched.add(root)
        state = self._state(root)
        state.unacknowledged.append(entry)
        if state.recovery is None:
            self._store.apply(root, self.producer, entry, lambda answer: self._answered(root, answer))

    def _answered(self, root: str, answer: Applied | StoreUnavailable) -> None:
        if isinstance(answer, Applied) and answer.status is AppliedStatus.OK:
            self._acknowledge(self._state(root), answer.mark)
        else:
            self._recover_soon(root)

    @staticmethod
    def _acknowledge(state: _Root, mark: int) -> None:
        state.acknowledged = mark
        while state.unacknowledged and state.unacknowledged[0].number <= mark:
            state.unacknowledged.popleft()

    def _state(self, root: str) -> _Root:
        state = self._roots.get(root)
        if state is None:
            state = self._roots[root] = _Root()
        return state

    # Without the gateway

    async def hold(self, principal: Principal, amount_nano: int) -> Grant | Denial:
        """Admit an attempt of our own naming, on disk at once: it is presumed if this process dies before it ends."""
        outcome = await self.admit(principal, attempt=f"h_{secrets.token_hex(12)}", tokens=0, hold_nano=amount_nano)
        if isinstance(outcome, Grant):
            try:
                self.dispatched(outcome)
            except OutboxUnavailable:
                self.void(outcome)
                raise
        return outcome

    def charge(self, principal: Principal, cost_nano: int, usage: Usage = NO_USAGE) -> None:
        """Charge what was used without a hold, to the periods of now: durable and sent when this returns.

        No budget refuses it; they count it. Raises `OutboxUnavailable`, then nothing is charged.
        """
        root = principal.root
        self._outbox.know(root)
        self._outbox.reserve()
        checks = self._checks_of(_Asked(principal, None, None), self._store.now_us())
        counters = tuple([counter_ref(check) for check in checks.counters])
        self._settled.inc()
        unheld = Dispatch("", 0, counters, (), ())
        self._record(root, settle_entry(self._outbox.next_number(root), unheld, cost_nano, usage, 0))

    async def charge_once(self, principal: Principal, cost_nano: int, key: str) -> Charged:
        """As `charge`, but once for each idempotency key of the principal within 24 h.

        Raises `IdempotencyConflict` if the key stands for another amount, `OutboxUnavailable`: nothing is charged.
        """
        root = principal.root
        self._outbox.know(root)
        self._outbox.reserve()
        checks = self._checks_of(_Asked(principal, None, None), self._store.now_us())
        digest, number = usage_digest(principal.key_id, key), self._outbox.next_number(root)
        counters = tuple([counter_ref(check) for check in checks.counters])
        self._used.inc()
        self._record(root, usage_entry(number, digest, cost_nano, counters))
        known = await self._known(root, digest, number)
        if known is None:
            return Charged.PENDING
        if known.cost_nano != cost_nano:
            self._conflicts.inc()
            raise IdempotencyConflict(
                f"idempotency_key {key!r} was used for {usd(known.cost_nano)} USD, not {usd(cost_nano)}: give each "
                "charge a key of its own"
            )
        return Charged.NOW if known.by == f"{self.producer}:{number}" else Charged.BEFORE

    async def _known(self, root: str, digest: str, number: int) -> Used | None:
        """What the store knows of an idempotency key after our entry, which went out just before this asks."""
        ends_at = asyncio.get_running_loop().time() + self._timeout_us / 1e6
        while asyncio.get_running_loop().time() < ends_at:
            try:
                known = await self._store.used(root, digest)
                if known is not None:
                    return known
                await self.warm(root)
            except Unavailable as error:
                self._log.warning("usage_waits", root=root, entry=number, why=str(error))
                return None
        return None

    async def look(self, principal: Principal) -> tuple[Checks, Reply]:
        """All limits and counters of a principal as they are now; changes nothing. Raises `Unavailable`."""
        checks, _, reply = await self._decide(_Asked(principal, None, None), Demand("", self.producer, 0, 0, 0, 0))
        return checks, reply

    async def spent(self, root: str, scope: ScopeKind, name: str) -> CounterState:
        """One counter of any period. Zero may mean that it has left the store, or never was: the database knows."""
        check = CounterCheck(name, scope, Span(Period.TOTAL, name, 0, None), None)
        checks = Checks(root, (), (), (check,), 0, ALWAYS_US)
        for _ in range(ASKS_MAX):
            demand = Demand("", self.producer, 0, 0, self._store.now_us() + self._timeout_us, 0)
            reply = await self._store.admit(checks, demand)
            if reply.status is Status.COLD:
                await self.warm(root)
            elif reply.status is Status.ADMITTED:
                return reply.counters[0]
        raise StoreUnavailable("the store could not answer in time", sent=False)

    # Governor: limits

    async def limits(self, principal: Principal) -> list[LimitState]:
        checks, reply = await self.look(principal)
        return limit_states(checks, reply, with_shadow=True)

    async def reset_limits(self, principal: Principal) -> None:
        checks = self._checks_of(_Asked(principal, None, None), self._store.now_us())
        logs = [check.name for check in checks.logs if check.scope is ScopeKind.KEY]
        slots = [check.name for check in checks.slots if check.scope is ScopeKind.KEY]
        await self._store.reset(checks.root, logs, slots)

    # Recovery of a root

    def recover(self, root: str) -> None:
        """The database is ahead of the store: load the root anew and send again what it then lacks."""
        self._state(root).suspect = True
        self._recover_soon(root)

    async def warm(self, root: str) -> None:
        """Have the root loaded and all our entries in it. Raises StoreUnavailable if that takes too long."""
        recovery = self._recover_soon(root)
        await asyncio.wait({recovery}, timeout=self._timeout_us / 1e6)
        if not recovery.done():
            raise StoreUnavailable(f"the accounts of {root} are still being loaded", sent=False)

    def _recover_soon(self, root: str) -> "asyncio.Task[None]":
        state = self._state(root)
        if state.recovery is None:
            self._recoveries.inc()
            state.recovery = self._spawn(self._recover(root, state))
        return state.recovery

    async def _recover(self, root: str, state: _Root) -> None:
        delay_s = BACKOFF_MIN_S
        try:
            while True:
                await self.outage.back(root)
                why = "the store does not have the entries before ours"
                try:
                    await self._load(root, state)
                    before = state.acknowledged
                    if await self._resend(root, state):
                        return
                    if state.acknowledged > before:
                        continue
                except Unavailable as error:
                    why = str(error)
                self._log.warning("root_recovery_waits", root=root, why=why, retry_s=round(delay_s, 2))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
        finally:
            state.recovery = None

    async def _load(self, root: str, state: _Root) -> None:
        """Seed a tree that is cold, or that knows less than it has confirmed or than the database knows."""
        marks = await self._store.marks(root)
        behind = marks is None or marks.get(self.producer, 0) < state.acknowledged
        if not behind and not state.suspect:
            return
        snapshot = await self._spend.load(root)
        seeds = seeds_of(snapshot, self._store.now_us())
        # Read after the marks and put there before the seed: more than these marks include is harmless, less is not.
        await self._store.remember(root, await self._spend.used(root, self._store.now_us()))
        if await self._store.seed(root, secrets.token_hex(8), snapshot.marks, seeds):
            self._seeded.inc()
            self._log.info("root_loaded", root=root, counters=len(seeds), cold=marks is None)
        state.suspect = False

    async def _resend(self, root: str, state: _Root) -> bool:
        """Send everything above the mark, in order; True when nothing is left to send."""
        marks = await self._store.marks(root)
        if marks is None:
            return False
        mark = marks.get(self.producer, 0)
        self._acknowledge(state, mark)
        kept = state.unacknowledged
        entries = list(kept) if kept and kept[0].number == mark + 1 else self._outbox.entries_above(root, mark)
        for entry in entries:
            if not await self.apply_one(root, self.producer, entry):
                return False
            self._acknowledge(state, entry.number)
        in_flight = [d for r, d in self._outbox.in_flight.values() if r == root]
        await self._restore_ended(root, in_flight)
        await self._store.reassert(root, self.producer, in_flight)
        await self.outage.hand_over(root, self._live_of(root))
        return not state.unacknowledged

    async def _restore_ended(self, root: str, in_flight: list[Dispatch]) -> None:
        """Bring back the counters of ended periods that holds are about to be put on: a counter that began with a
        hold would pass for whole, and its sum would go into the database over the true one."""
        now_us = self._store.now_us()
        ended = {ref.name: ref for d in in_flight for ref in d.counters if 0 < ref.ends_us <= now_us}
        if ended:
            totals = (await self._spend.load(root)).totals
            for name, ref in ended.items():
                seed = SeedTotals(ref.expires_us, totals.get(name, NOTHING_SPENT))
                await self._store.restore(root, name, seed)

    def _live_of(self, root: str) -> list[Grant]:
        """Attempts in flight of a root, without those that are to be voided because they were never answered."""
        return [g for g in self._live.values() if g.checks.root == root and g.reply.now_us]

    async def apply_one(self, root: str, producer: str, entry: Entry) -> bool:
        """Apply one entry and await the answer, restoring a counter of a long-ended period where it is missing.

        False: the store has a gap or lost the tree. Raises `Unavailable`.
        """
        for _ in range(1 + len(entry.counters)):
            answer = await self._applied(root, producer, entry)
            if answer.status is not AppliedStatus.ABSENT:
                return answer.status is AppliedStatus.OK
            snapshot = await self._spend.load(root)
            ref = next(ref for ref in entry.counters if ref.name == answer.absent)
            totals = snapshot.totals.get(answer.absent, NOTHING_SPENT)
            await self._store.restore(root, answer.absent, SeedTotals(ref.expires_us, totals))
        return False

    async def _applied(self, root: str, producer: str, entry: Entry) -> Applied:
        future: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()

        def done(answer: Applied | StoreUnavailable) -> None:
            if future.done():
                return
            if isinstance(answer, Applied):
                future.set_result(answer)
            else:
                future.set_exception(answer)

        self._store.apply(root, producer, entry, done)
        return await future

    def has_uncovered(self, root: str) -> bool:
        """Whether the outbox has entries of a root that the database may lack."""
        return self._outbox.uncovered_of(root) > 0

    def covered(self, snapshot: RootSnapshot) -> None:
        """The database has committed these marks: forget what it covers."""
        self._outbox.cover(snapshot.root, snapshot.marks.get(self.producer, 0))

    # Heartbeat

    async def _heartbeat(self) -> None:
        while True:
            try:
                now_us = self._now_us()
                await self._spend.enrol_producer(self.producer, now_us)
                self.outage.count(await self._spend.live_producers(now_us - LIVE_US))
                await self._renew_leases()
            except DatabaseUnavailable as error:
                self._log.warning("heartbeat_without_database", why=str(error))
                await self._renew_leases_quietly()
            except StoreUnavailable as error:
                self._log.warning("heartbeat_without_store", why=str(error))
            await asyncio.sleep(HEARTBEAT_S)

    async def _renew_leases(self) -> None:
        leases: dict[str, dict[str, tuple[str, ...]]] = {}
        for attempt, grant in self._live.items():
            if grant.checks.slots:
                names = tuple([slot.name for slot in grant.checks.slots])
                leases.setdefault(grant.checks.root, {})[attempt] = names
        if leases:
            await self._store.renew(leases)

    async def _renew_leases_quietly(self) -> None:
        try:
            await self._renew_leases()
        except StoreUnavailable as error:
            self._log.warning("heartbeat_without_store", why=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
