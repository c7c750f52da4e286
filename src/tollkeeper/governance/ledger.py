"""The ledger of one gateway process: admits through the store and settles by numbered entries.

It is the *producer* of the settlement protocol (ARCHITECTURE.md): it numbers entries per root, writes them to its
outbox, and sends them in order on the store's ordered connection. Where an answer is lost, or says that something is
missing, the recovery of that root (root_recovery.py) takes over, and holds back what is sent until it is done.
Decisions are the store's; the way into the database is `sync.py`'s.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.domain.admission import (
    WEIGHT_MAX,
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
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import (
    Applied,
    AppliedStatus,
    Charged,
    Dispatch,
    Entry,
    EntryKind,
    Origin,
    bury_entry,
    close_entry,
    dispatch_of,
    included,
    is_buried,
    issued_again,
    late_entry,
    presume_entry,
    settle_entry,
    usage_digest,
    usage_entry,
    void_entry,
)
from tollkeeper.domain.errors import (
    DatabaseUnavailable,
    InvalidInput,
    OutboxUnavailable,
    StoreDamaged,
    StoreUnavailable,
    Unavailable,
)
from tollkeeper.domain.outage import OutageMode, OutageModes
from tollkeeper.domain.periods import Period, Span
from tollkeeper.domain.policy import Principal, ScopeKind
from tollkeeper.domain.ports import RootSnapshot, SpendLedger
from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.governance.alerts import BudgetWatch
from tollkeeper.governance.outage import Outage
from tollkeeper.governance.outbox import Outbox, new_outbox, open_outbox
from tollkeeper.governance.pending_usage import Unanswered
from tollkeeper.governance.root_recovery import Recovery, Root
from tollkeeper.governance.store import Done, Store
from tollkeeper.governance.usage_charges import UsageCharges
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

FSYNC_INTERVAL_S: Final = 0.01
HEARTBEAT_S: Final = 10.0
ENROL_AGAIN_S: Final = 5.0
"""How often the database is asked again to know this producer under a new name."""
ASKS_MAX: Final = 4
"""How often one admission is asked before giving up: late at a period's end, or cold."""
CHECKS_MAX: Final = 50_000
ALWAYS_US: Final = 2**53
"""The end of no period."""
LIVE_US: Final = 60_000_000
"""An instance whose last heartbeat is older than this is not counted: counting one too many is the safe side."""
APPLIED: Final = AppliedStatus.OK
ALONE: Final = "a"
"""Ends the id of an attempt that is decided alone after the store did not answer: the first may still be admitted
there, and is voided."""
ADMITTED, REFUSED = Status.ADMITTED, Status.REFUSED
SHUT: Final = OutageModes(OutageMode.CLOSED, OutageMode.CLOSED)


class _Asked(NamedTuple):
    """Whose limits are asked for; None: those of all models, of no end user."""

    principal: Principal
    model: str | None
    user: str | None


def _unanswered(checks: Checks, demand: Demand) -> Dispatch:
    """What an attempt may hold whose runs were never told."""
    return Dispatch(demand.attempt, demand.hold_nano, checks.counter_refs, (), checks.slot_names)


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
        recovery_grace_s: float = 30.0,
    ) -> None:
        self.forgotten: set[str] = set()
        """Producers whose marks the database has dropped."""
        self.watch: BudgetWatch | None = None
        """Is told of settlements under budgets that warn."""
        self.touched: set[str] = set()
        """Roots with entries since the sync worker last looked."""
        self._store, self._spend, self._now_us = store, spend, now_us
        self._timeout_us = int(admission_timeout_s * 1e6)
        self._outbox, self.dead = open_outbox(outbox_dir)
        self.producer = self._outbox.producer
        self._live: dict[str, Grant] = {}
        self._abandoned = 0  # admissions with an answer lost that are still to be voided
        self._checks: dict[tuple[str, str | None, str | None], tuple[Principal, Checks]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logger("governance")
        self.outage = Outage(
            store=store, producer=self.producer, modes=outage, metrics=metrics, on_back=self._recover_soon
        )
        self._recovery = Recovery(
            store,
            spend,
            metrics,
            self.outage,
            outbox=self._outbox,
            grace_us=int(recovery_grace_s * 1e6),
            live=self._live,
            answered=self._new_answered,
            buried=self.go_on_as_another,
            spawn=self._spawn,
        )
        self._roots = self._recovery.roots
        self._usage = UsageCharges(store, self._recovery, metrics, warm=self.warm, issue=self._issue)
        self._declare(metrics)

    def __repr__(self) -> str:
        return f"<Ledger {self.producer} live={len(self._live)} unacknowledged={self.unacknowledged}>"

    def _declare(self, metrics: Metrics) -> None:
        admissions = metrics.counter(
            "tollkeeper_admissions_total", "Decisions by result: admitted, refused, unavailable.", "result"
        )
        self._admitted, self._refused, self._failed = (
            admissions.labels(result) for result in ("admitted", "refused", "unavailable")
        )
        entries = metrics.counter(
            "tollkeeper_entries_total", "Numbered entries written, by kind: settle, presume, void, …", "kind"
        )
        kinds = [entries.labels(kind) for kind in ("settle", "presume", "void", "usage", "late", "correct")]
        self._settled, self._presumed, self._voided, self._used, self._late_settled, self._corrected = kinds
        self._renamed = metrics.counter(
            "tollkeeper_producer_renamed_total",
            "Times this process found itself closed and went on as another producer.",
        ).labels()
        metrics.gauge("tollkeeper_holds", "Attempts of this process in flight.", lambda: len(self._live))
        metrics.gauge(
            "tollkeeper_entries_unacknowledged", "Entries the store has not confirmed.", lambda: self.unacknowledged
        )
        metrics.gauge("tollkeeper_holds_nanodollars", "Money held by this process, in nano-dollars.", self._held_nano)
        metrics.gauge("tollkeeper_entries_unsynced", "Entries that the database does not have yet.", self._unsynced)
        metrics.gauge("tollkeeper_producers_dead", "Dead producers that are not closed yet.", lambda: len(self.dead))
        metrics.gauge(
            "tollkeeper_outbox_failed",
            "1 while the outbox takes nothing, so that no request is admitted.",
            lambda: self._outbox.failure is not None,
        )
        metrics.gauge("tollkeeper_outbox_bytes", "Bytes kept in the outbox.", lambda: self._outbox.bytes_kept)

    def _held_nano(self) -> int:
        return sum(grant.demand.hold_nano for grant in self._live.values())

    def _unsynced(self) -> int:
        return sum(self._outbox.uncovered_of(root) for root in self._outbox.numbers)

    @property
    def unacknowledged(self) -> int:
        """Entries that the store has not confirmed."""
        return sum(len(state.unacknowledged) for state in self._roots.values())

    @property
    def outbox_failure(self) -> str | None:
        """Why the outbox takes nothing, or None."""
        return self._outbox.failure

    async def start(self) -> None:
        """Begin: send again what an earlier clean stop left unsent, and keep leases and disk up to date.

        Raises `DatabaseUnavailable`: others must know of this producer before it admits anything.
        """
        if not await self._spend.enrol_producer(self.producer, self._now_us()):
            self.go_on_as_another()
            await self._spend.enrol_producer(self.producer, self._now_us())
        self._outbox.reserve()
        self._outbox.release()
        self._spawn(self._outbox.fsync_loop(FSYNC_INTERVAL_S))
        self._spawn(self._heartbeat())
        self._spawn(self._recovery.gates.heed_announcements())
        self._spawn(self._usage.look_after_pending())
        self._store.watch(self._recovery.look_again)
        for root in self._outbox.kept_roots():
            self.touched.add(root)
            self._recover_soon(root)
            for entry in self._outbox.entries_above(root, self._outbox.covered(root)):
                self._usage.pending.add(root, self.producer, entry)

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
        if not self._live and not any(self.has_uncovered(root) for root in self._outbox.kept_roots()):
            with suppress(DatabaseUnavailable):
                await self._spend.rest_producer(self.producer, self._now_us())
        self._outbox.close(clean=not self._live and not self._abandoned)

    # Governor: admission

    async def admit(
        self, principal: Principal, *, attempt: str, tokens: int, hold_nano: int, model: str = "", user: str = ""
    ) -> Grant | Denial:
        outbox, store, root = self._outbox, self._store, principal.root
        if root not in outbox.roots:
            outbox.know(root)
        if not self.outage.calm and self.outage.takes(root):
            await self._await_hand_over(root)
            if self.outage.takes(root):
                demand = Demand(attempt, self.producer, min(tokens, WEIGHT_MAX), hold_nano, 0)
                return self._admit_alone(_Asked(principal, model, user), demand)
        now_us = store.now_us()
        demand = Demand(
            attempt,
            self.producer,
            tokens if tokens < WEIGHT_MAX else WEIGHT_MAX,
            hold_nano,
            now_us + self._timeout_us,
        )
        checks = self._checks_of(principal, model, user, now_us)
        outbox.reserve()
        try:
            reply = await store.admit(checks, demand)
        except BaseException as error:  # noqa: BLE001 - raised again, if it is not the store's
            return await self._admit_after(error, _Asked(principal, model, user), checks, demand)
        if reply.unheard or (reply.status is not ADMITTED and reply.status is not REFUSED):
            return await self._admit_after(reply, _Asked(principal, model, user), checks, demand)
        self.outage.saw(checks, reply)
        if reply.refusal is not None:
            return self._decided(checks, demand, reply)
        self._admitted.value += 1
        grant = self._live[attempt] = Grant(demand, checks, reply)
        return grant

    async def _await_hand_over(self, root: str) -> None:
        """The store is away, or was: if the root is on its way back, wait for that."""
        handing_over = self.outage.handing_over(root)
        if handing_over is not None:
            await asyncio.wait({handing_over}, timeout=self._timeout_us / 1e6)

    async def _admit_after(
        self, first: Reply | BaseException, asked: "_Asked", checks: Checks, demand: Demand
    ) -> Grant | Denial:
        """The first ask was not simply decided: ask again, or go on without the store."""
        unheard: list[Checks] = []
        try:
            checks, demand, reply = await self._decide(asked, demand, unheard, (checks, first))
        except BaseException as error:
            if unheard or not isinstance(error, Unavailable) or error.sent:
                self._abandon(unheard[0] if unheard else self._checks_of(*asked, self._store.now_us()), demand)
            else:
                self._outbox.release()
            if not isinstance(error, StoreUnavailable):
                self._failed.inc()
                raise
            root = checks.root
            self.outage.begin(root)
            if not self.outage.is_away(root):
                self._recover_soon(root)
            return self._admit_alone(asked, msgspec.structs.replace(demand, attempt=demand.attempt + ALONE))
        self.outage.saw(checks, reply)
        if unheard:
            self._sweep_later(unheard[0], demand)
        return self._decided(checks, demand, reply)

    def _admit_alone(self, asked: "_Asked", demand: Demand) -> Grant | Denial:
        """The store is away: decide over this instance's share. Raises StoreUnavailable where that is not wanted."""
        self._outbox.reserve()
        now_us = self._store.now_us()
        demand = msgspec.structs.replace(demand, not_after_us=now_us + self._timeout_us)
        decision = self.outage.admit(self._checks_of(*asked, now_us), demand)
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

    async def _decide(
        self,
        asked: "_Asked",
        demand: Demand,
        unheard: list[Checks],
        first: tuple[Checks, Reply | BaseException] | None = None,
    ) -> tuple[Checks, Demand, Reply]:
        """Ask until there is a decision. `unheard` gets the checks of asks that may have admitted the attempt without
        our hearing of it. `first` is what came of a first ask for this demand."""
        hint_us, asks = 0, 0
        until_us = demand.not_after_us if first else self._store.now_us() + self._timeout_us
        while asks < ASKS_MAX:
            if first is None:
                now_us = self._store.now_us()
                checks = self._checks_of(*asked, hint_us or now_us)
                demand = Demand(
                    demand.attempt, demand.producer, demand.tokens, demand.hold_nano, now_us + self._timeout_us
                )
                first = checks, await self._outcome(checks, demand)
            (checks, outcome), first = first, None
            if isinstance(outcome, StoreDamaged):
                asks += 1
                await self._recovery.mend_for(checks, outcome)
                continue
            reply = self._heard(checks, outcome, unheard)
            if reply.status is Status.RECOVERING:
                await self._recovery.gates.wait(checks.root, until_us)
                continue
            asks += 1
            if reply.status is Status.BURIED:
                if demand.producer == self.producer:
                    self.go_on_as_another()
                demand = msgspec.structs.replace(demand, producer=self.producer)
                continue
            if reply.status is Status.COLD:
                await self.warm(checks.root)
            elif reply.status is Status.LATE:
                if unheard and self._checks_of(*asked, reply.now_us) is not unheard[0]:
                    break  # it may be held for the period that is over: not to be asked for in another one
                hint_us = reply.now_us
            else:
                return checks, demand, reply
        raise StoreUnavailable("the store could not decide in time", sent=False)

    async def _outcome(self, checks: Checks, demand: Demand) -> Reply | BaseException:
        try:
            return await self._store.admit(checks, demand)
        except BaseException as error:  # noqa: BLE001 - `_heard` raises it
            return error

    def _heard(self, checks: Checks, outcome: Reply | BaseException, unheard: list[Checks]) -> Reply:
        """The reply of an ask, or its error raised."""
        if isinstance(outcome, StoreUnavailable):
            self.outage.failed(checks.root, outcome)
            lost = outcome.sent
        else:
            lost = isinstance(outcome, BaseException) or outcome.unheard
        if lost:
            unheard.append(checks)
        if isinstance(outcome, Reply):
            return outcome
        raise outcome

    def _checks_of(self, principal: Principal, model: str | None, user: str | None, now_us: int) -> Checks:
        model = model if principal.limits_models else None
        user = user if principal.limits_users else None
        key = (principal.key_id, model, user)
        known = self._checks.get(key)
        if known is not None and known[0] is principal and known[1].valid_from_us <= now_us < known[1].valid_until_us:
            return known[1]
        if len(self._checks) >= CHECKS_MAX:
            self._checks.clear()
        checks = checks_for(principal, now_us, model, user)
        self._checks[key] = (principal, checks)
        return checks

    def _sweep_later(self, checks: Checks, demand: Demand) -> None:
        """An ask whose answer was lost was repeated. It may come to the store after the repetition, even after the
        attempt's end, and hold again: void that, once it can no longer run and the attempt has ended."""
        self._abandoned += 1
        loop, after_s = asyncio.get_running_loop(), self._timeout_us / 1e6

        def sweep() -> None:
            if demand.attempt in self._live:
                loop.call_later(after_s, sweep)
                return
            try:
                self._outbox.reserve()
            except OutboxUnavailable:
                loop.call_later(after_s, sweep)
                return
            self._abandoned -= 1
            self._issue(checks.root, void_entry(0, _unanswered(checks, demand), 0, 0))
            self._outbox.release()

        loop.call_later(after_s, sweep)

    def _abandon(self, checks: Checks, demand: Demand) -> None:
        """An admission that was never answered may have been granted: void it, once it can no longer run."""
        grant, dispatch = Grant(demand, checks, Reply(Status.ADMITTED, 0)), _unanswered(checks, demand)
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
        demand, dispatch = grant.demand, self._ending(grant)
        if grant.checks.warns and self.watch is not None:
            self.watch.settled(grant.checks, grant.reply, 0 if presumed else max(0, cost_nano - dispatch.hold_nano))
        root, ours = grant.checks.root, demand.producer == self.producer
        number = self._outbox.next_number(root)
        if ours and not presumed:
            self._settled.inc()
            entry = settle_entry(number, dispatch, cost_nano, usage, usage.total_tokens - demand.tokens)
        elif presumed:
            self._presumed.inc()
            entry = presume_entry(number, dispatch, fresh=ours)
        else:
            self._late_settled.inc()
            entry = late_entry(number, dispatch, cost_nano, 1, usage)
        self._record(root, entry)

    def void(self, grant: Grant) -> None:
        self._void(grant, self._ending(grant))

    def _void(self, grant: Grant, dispatch: Dispatch) -> None:
        self._live.pop(grant.demand.attempt, None)
        self._voided.inc()
        root, demand = grant.checks.root, grant.demand
        number = self._outbox.next_number(root)
        if demand.producer == self.producer:
            self._record(root, void_entry(number, dispatch, demand.requests, demand.tokens))
        else:
            self._record(root, late_entry(number, dispatch, 0, 0, NO_USAGE))

    # For other producers

    def take_over(self, dead: Outbox, root: str, covered: int, forgotten: Collection[str]) -> int:
        """Issue as our own what the database may lack of a dead producer, and presume what it never settled.

        `covered` is its mark in the database. Returns how many attempts were presumed.
        """
        self._succeed(dead, root, covered, forgotten)
        unsettled = [dispatch for where, dispatch, _ in dead.in_flight.values() if where == root]
        for dispatch in unsettled:
            self._issue(root, presume_entry(0, dispatch, fresh=False))
        if dead.producer not in forgotten:
            self._issue(root, close_entry(0, dead.producer))
        return len(unsettled)

    def _succeed(self, dead: Outbox, root: str, covered: int, forgotten: Collection[str]) -> None:
        if dead.producer not in forgotten:
            self.bury(root, dead.producer)
        entries = dead.entries_above(root, included(covered))
        if entries:  # a recovery brings many together, with what the store must know of them before
            self._recovery.soon(root)
        for entry in entries:
            again = issued_again(entry, dead.producer, forgotten)
            if again is not None:
                self._usage.pending.add(root, self.producer, self._issue(root, again))

    def bury(self, root: str, dead: str) -> None:
        """Refuse a dead producer's later numbers."""
        self._outbox.know(root)
        self._issue(root, bury_entry(0, dead))

    def presume_for(self, root: str, held: Dispatch, origin: Origin) -> None:
        """Charge what an orphan held when it was buried."""
        self._presumed.inc()
        self._issue(root, presume_entry(0, held, fresh=False, origins=(origin,)))

    def correct(self, root: str, attempt: str, charge: Charge, note: str) -> int:
        """An operator's word on what an attempt cost, in the counters it was charged to: `charge` without its rank.

        Returns the rank. A later correction replaces an earlier one.
        """
        self._outbox.know(root)
        rank = self._now_us()
        tokens = (charge.input_tokens, charge.output_tokens, charge.cached_tokens)
        refs = charge.what_is_known().counters
        self._corrected.inc()
        self._issue(
            root,
            Entry(
                0,
                EntryKind.CORRECT,
                attempt,
                charge.cost_nano,
                charge.requests,
                *tokens,
                counters=refs,
                rank=rank,
                note=note,
            ),
        )
        return rank

    def _ending(self, grant: Grant) -> Dispatch:
        """An attempt ends once; a second end is a defect of the caller and must not charge again."""
        if self._live.pop(grant.demand.attempt, None) is None:
            raise InvalidInput(f"attempt {grant.demand.attempt} has ended already")
        known = self._outbox.in_flight.get(grant.demand.attempt)
        return known[1] if known else dispatch_of(grant)

    def _record(self, root: str, entry: Entry) -> None:
        """The end of an attempt, under the next number: as it was reserved for."""
        self.outage.ended(root, entry)
        self._send(root, entry)
        self._outbox.release()

    def _issue(self, root: str, entry: Entry) -> Entry:
        """Give an entry its number, write it down, and send it. Returns it as it was sent."""
        entry = msgspec.structs.replace(entry, number=self._outbox.next_number(root))
        self._send(root, entry)
        return entry

    def _send(self, root: str, entry: Entry) -> None:
        self._outbox.append(root, entry)
        self.touched.add(root)
        state = self._roots.get(root) or self._recovery.state(root)
        state.unacknowledged.append(entry)
        if not state.holds_back:
            self._store.apply(root, self.producer, entry, state.answered or self._new_answered(root, state))

    def _new_answered(self, root: str, state: Root) -> Done:
        state.answered = partial(self._answered, root, state, self.producer)
        return state.answered

    def _answered(self, root: str, state: Root, producer: str, answer: Applied | StoreUnavailable) -> None:
        if producer != self.producer:
            return  # we have another name by now, and all was issued again
        if not isinstance(answer, Applied):
            self._recover_soon(root)
        elif is_buried(answer.mark):
            self.go_on_as_another()
        elif answer.status is APPLIED:
            state.acknowledge(answer.mark)
        else:
            self._recover_soon(root)

    def go_on_as_another(self) -> None:
        """This producer was taken for dead and closed: its process goes on as a new one, with all that it knows.

        Raises OutboxUnavailable.
        """
        old = self._outbox
        self._outbox = new_outbox(old.folder.parent)
        self.producer = self._outbox.producer
        self.outage.rename(self.producer)
        self._usage.pending.leave(old.producer)
        self._renamed.inc()
        self._log.error("producer_was_closed", producer=old.producer, then=self.producer)
        self._spawn(self._outbox.fsync_loop(FSYNC_INTERVAL_S))
        self._recovery.go_on_as(self._outbox)
        for _ in self._live:
            self._outbox.reserve()
        for root in sorted(old.roots):
            self._outbox.know(root)
            self._succeed(old, root, old.covered(root), self.forgotten)
        for root, dispatch, _ in old.in_flight.values():
            self._outbox.dispatch(root, dispatch)
        self._spawn(self._leave(old, self._outbox))

    async def _leave(self, old: Outbox, new: Outbox) -> None:
        """Enrol under the new name; remove the old outbox once the new one is on the disk."""
        while not await self._beat():  # noqa: ASYNC110 - the database is asked
            await asyncio.sleep(ENROL_AGAIN_S)
        await new.synced()
        old.remove()

    async def _beat(self) -> bool:
        """Our heartbeat, and how many others there are. False while the database is away."""
        now_us = self._now_us()
        try:
            if not await self._spend.enrol_producer(self.producer, now_us):
                self.go_on_as_another()
            self.outage.count(await self._spend.live_producers(now_us - LIVE_US))
        except DatabaseUnavailable as error:
            self._log.warning("heartbeat_without_database", why=str(error))
            return False
        return True

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
        checks = self._checks_of(principal, None, None, self._store.now_us())
        self._settled.inc()
        self._look_at(checks)
        unheld = Dispatch("", 0, checks.counter_refs, (), ())
        self._record(root, settle_entry(self._outbox.next_number(root), unheld, cost_nano, usage, 0))

    def _look_at(self, checks: Checks) -> None:
        if checks.warns and self.watch is not None:
            self.watch.settled(checks, None)

    async def charge_once(self, principal: Principal, cost_nano: int, key: str) -> Charged:
        """As `charge`, but once for each idempotency key of the principal within 24 h.

        Raises `IdempotencyConflict` if the key stands for another amount, `OutboxUnavailable`: nothing is charged.
        """
        root, digest = principal.root, usage_digest(principal.key_id, key)
        await self._usage.prepare(root, digest)
        self._outbox.know(root)
        self._outbox.reserve()
        checks = self._checks_of(principal, None, None, self._store.now_us())
        number = self._outbox.next_number(root)
        self._used.inc()
        self._look_at(checks)
        producer, entry = self.producer, usage_entry(number, digest, cost_nano, checks.counter_refs)
        self._record(root, entry)
        charged = await self._usage.answer(Unanswered(root, producer, entry), key, self._timeout_us)
        if charged is not Charged.PENDING and producer == self.producer:
            # After a loss of the store this stands, whoever else is charged under the key before our entry is there.
            self._outbox.tell(root, entry)
        return charged

    async def look(self, principal: Principal) -> tuple[Checks, Reply]:
        """All limits and counters of a principal as they are now; changes nothing. Raises `Unavailable`."""
        checks, _, reply = await self._decide(
            _Asked(principal, None, None), Demand("", self.producer, 0, 0, 0, 0), []
        )
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
        checks = self._checks_of(principal, None, None, self._store.now_us())
        logs = [check.name for check in checks.logs if check.scope is ScopeKind.KEY]
        slots = [check.name for check in checks.slots if check.scope is ScopeKind.KEY]
        buckets = [check.name for check in checks.buckets if check.scope is ScopeKind.KEY]
        await self._store.reset(checks.root, logs, slots, buckets)

    # Recovery of a root, and what the database has

    def recover(self, root: str) -> None:
        """The database is ahead of the store: load the root anew and send again what it then lacks."""
        self._recovery.suspect(root)

    def _recover_soon(self, root: str) -> asyncio.Task[None]:
        return self._recovery.soon(root)

    async def mend(self, root: str, error: StoreDamaged) -> bool:
        """Have the store remove what is not ours. False: it found nothing. Raises StoreUnavailable."""
        return await self._recovery.mend(root, error)

    async def warm(self, root: str) -> None:
        """Have the root loaded and all our entries in it. Raises StoreUnavailable if that takes too long."""
        recovery = self._recover_soon(root)
        await asyncio.wait({recovery}, timeout=self._timeout_us / 1e6)
        if not recovery.done():
            raise StoreUnavailable(f"the accounts of {root} are still being loaded", sent=False)

    def has_uncovered(self, root: str) -> bool:
        """Whether the outbox has entries of a root that the database may lack."""
        return self._outbox.uncovered_of(root) > 0

    def covered(self, snapshot: RootSnapshot) -> None:
        """The database has committed these marks: forget what it covers."""
        mark = snapshot.marks.get(self.producer, 0)
        if mark:  # others' roots are not noted: there may be a million
            self._outbox.cover(snapshot.root, mark)

    # Heartbeat

    async def _heartbeat(self) -> None:
        while True:
            await self._beat()
            try:
                await self._renew_leases()
                await self._recovery.compare_marks()
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
