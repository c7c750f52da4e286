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
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

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
from tollkeeper.domain.charges import UNCHARGED, Charge
from tollkeeper.domain.entries import (
    Applied,
    AppliedStatus,
    Charged,
    Dispatch,
    Entry,
    EntryKind,
    Origin,
    Used,
    bury_entry,
    close_entry,
    dispatch_of,
    dominates,
    included,
    is_buried,
    is_plain,
    issued_again,
    late_entry,
    presume_entry,
    quarantined,
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
    Recovering,
    StoreDamaged,
    StoreUnavailable,
    Unavailable,
)
from tollkeeper.domain.money import usd
from tollkeeper.domain.outage import OutageMode, OutageModes
from tollkeeper.domain.periods import Period, Span
from tollkeeper.domain.policy import Principal, ScopeKind
from tollkeeper.domain.ports import RootSnapshot, SpendLedger
from tollkeeper.domain.recovery import UNKNOWN, Gate, Looked, Ready
from tollkeeper.domain.tree import NOTHING_SPENT
from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.governance.alerts import BudgetWatch
from tollkeeper.governance.outage import Outage
from tollkeeper.governance.outbox import Outbox, new_outbox, open_outbox
from tollkeeper.governance.pending_usage import PendingUsage, Unanswered
from tollkeeper.governance.producers import OpenProducers
from tollkeeper.governance.seeding import seeds_of
from tollkeeper.governance.store import Done, Names, SeedTotals, Store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

FSYNC_INTERVAL_S: Final = 0.01
HEARTBEAT_S: Final = 10.0
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0
ASKS_MAX: Final = 4
"""How often one admission is asked before giving up: late at a period's end, or cold."""
CHECKS_MAX: Final = 50_000
RECALLS_MAX: Final = 10
"""How often the record of an attempt is brought back for one entry; once is usual."""
REFUSALS_MAX: Final = 5
"""How often the store may refuse one entry, its keys mended, before the entry is set aside; about 2 s."""
WINDOW_MAX: Final = 1_000
"""Entries that a recovery sends before it waits for their answers."""
USED_AT_ONCE: Final = 5_000
"""Idempotency keys that are brought from the database into the store together."""
BRING_LEASE_S: Final = 5.0
"""So long after a page of them nobody else begins to bring a root's keys."""
GATE_POLL_S: Final = 0.05
"""How often a root that waits for other producers is asked whether they have come."""
ANNOUNCED_POLL_S: Final = 0.1
"""How often is looked for roots that wait for this producer."""
PENDING_POLL_S: Final = 0.5
"""How often is looked for usage of which no caller was told how it stands."""
ANNOUNCE_AGAIN_S: Final = 1.0
"""How often a root that waits says so again: the store may lose that, too, and nobody else would ever come."""
WHOEVER: Final = "producers that only the database knows"
NAMED_MAX: Final = 10
"""Keys that a log line names."""
COMPARED_MAX: Final = 1_000
"""Roots whose marks are compared at one heartbeat; others have their turn later."""
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


class _Root:
    """What this process has sent to one root and not seen acknowledged."""

    __slots__ = (
        "acknowledged",
        "answered",
        "bringing",
        "gate",
        "holds_back",
        "keys_follow",
        "opening",
        "recovery",
        "refusals",
        "refused",
        "suspect",
        "unacknowledged",
    )

    def __init__(self) -> None:
        self.unacknowledged: deque[Entry] = deque()
        self.acknowledged = 0
        self.suspect = False  # the database was seen ahead of the store
        self.recovery: asyncio.Task[None] | None = None
        self.holds_back = False  # entries wait for the recovery to send those before them
        self.gate: Gate | None = None  # as last seen
        self.opening: asyncio.Task[None] | None = None
        self.keys_follow = False  # idempotency keys of before a loss were seen to be still on their way
        self.bringing: asyncio.Task[None] | None = None
        self.answered: Done | None = None  # for entries under our present name
        self.refused: Entry | None = None  # what the store refused last, and how often in a row
        self.refusals = 0


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
        self._grace_us = int(recovery_grace_s * 1e6)
        self._open = OpenProducers(spend)
        self._compared = 0  # roots that have had their turn
        self._outbox, self.dead = open_outbox(outbox_dir)
        self.producer = self._outbox.producer
        self._roots: dict[str, _Root] = {}
        self._live: dict[str, Grant] = {}
        self._abandoned = 0  # admissions with an answer lost that are still to be voided
        self._checks: dict[tuple[str, str | None, str | None], tuple[Principal, Checks]] = {}
        self._pending = PendingUsage(store.used, self._is_settled, self._list_conflict)
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
        self._recoveries = metrics.counter(
            "tollkeeper_root_recoveries_total", "Roots whose entries had to be sent again."
        ).labels()
        self._seeded = metrics.counter(
            "tollkeeper_roots_loaded_total", "Roots loaded into the store from the database."
        ).labels()
        self._late = metrics.counter(
            "tollkeeper_recoveries_late_total", "Roots where this producer sent again after the grace had passed."
        ).labels()
        self._mended = metrics.counter(
            "tollkeeper_store_keys_mended_total", "Keys removed because what the store had there was not ours."
        ).labels()
        self._set_aside = metrics.counter(
            "tollkeeper_entries_refused_total", "Entries set aside because the store refused them again and again."
        ).labels()
        metrics.gauge("tollkeeper_holds", "Attempts of this process in flight.", lambda: len(self._live))
        metrics.gauge(
            "tollkeeper_entries_unacknowledged", "Entries the store has not confirmed.", lambda: self.unacknowledged
        )
        metrics.gauge("tollkeeper_holds_nanodollars", "Money held by this process, in nano-dollars.", self._held_nano)
        metrics.gauge("tollkeeper_entries_unsynced", "Entries that the database does not have yet.", self._unsynced)
        metrics.gauge(
            "tollkeeper_roots_recovering",
            "Roots that are loaded or opened again after a loss; their budgets wait for it.",
            lambda: sum(state.recovery is not None or state.opening is not None for state in self._roots.values()),
        )
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
        self._spawn(self._heed_announcements())
        self._spawn(self._look_after_pending())
        self._store.watch(self._look_again)
        for root in self._outbox.kept_roots():
            self.touched.add(root)
            self._recover_soon(root)
            for entry in self._outbox.entries_above(root, self._outbox.covered(root)):
                self._pending.add(root, self.producer, entry)

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
                await self._mend_for_admission(checks, outcome)
                continue
            reply = self._heard(checks, outcome, unheard)
            if reply.status is Status.RECOVERING:
                await self._opened(checks.root, until_us)
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
        for entry in dead.entries_above(root, included(covered)):
            again = issued_again(entry, dead.producer, forgotten)
            if again is not None:
                self._pending.add(root, self.producer, self._issue(root, again))

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
        state = self._roots.get(root) or self._state(root)
        state.unacknowledged.append(entry)
        if not state.holds_back:
            self._store.apply(root, self.producer, entry, state.answered or self._new_answered(root, state))

    def _new_answered(self, root: str, state: _Root) -> Done:
        state.answered = partial(self._answered, root, state, self.producer)
        return state.answered

    def _answered(self, root: str, state: _Root, producer: str, answer: Applied | StoreUnavailable) -> None:
        if producer != self.producer:
            return  # we have another name by now, and all was issued again
        if not isinstance(answer, Applied):
            self._recover_soon(root)
        elif is_buried(answer.mark):
            self.go_on_as_another()
        elif answer.status is APPLIED:
            self._acknowledge(state, answer.mark)
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
        self._pending.leave(old.producer)
        self._renamed.inc()
        self._log.error("producer_was_closed", producer=old.producer, then=self.producer)
        self._spawn(self._outbox.fsync_loop(FSYNC_INTERVAL_S))
        for state in self._roots.values():
            state.unacknowledged.clear()
            state.acknowledged, state.answered = 0, None
            state.suspect = True
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
            await asyncio.sleep(BACKOFF_MAX_S)
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

    @staticmethod
    def _acknowledge(state: _Root, mark: int) -> None:
        state.acknowledged, waiting = mark, state.unacknowledged
        while waiting and waiting[0].number <= mark:
            waiting.popleft()

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
        if self._state(root).keys_follow:
            with suppress(Unavailable):  # the entry then finds that it must be looked up
                await self._look_up(root, digest)
        self._outbox.know(root)
        self._outbox.reserve()
        checks = self._checks_of(principal, None, None, self._store.now_us())
        number = self._outbox.next_number(root)
        self._used.inc()
        self._look_at(checks)
        producer, entry = self.producer, usage_entry(number, digest, cost_nano, checks.counter_refs)
        self._record(root, entry)
        known = None
        try:
            known = await self._known(root, digest, number)
        finally:
            if known is None and producer == self.producer:
                self._pending.add(root, producer, entry)
        if known is None:
            return Charged.PENDING
        if known.cost_nano != cost_nano:
            self._conflicts.inc()
            raise IdempotencyConflict(
                f"idempotency_key {key!r} was used for {usd(known.cost_nano)} USD, not {usd(cost_nano)}: give each "
                "charge a key of its own"
            )
        if producer == self.producer:
            # After a loss of the store this stands, whoever else is charged under the key before our entry is there.
            self._outbox.tell(root, entry)
        return Charged.NOW if known.by == f"{self.producer}:{number}" else Charged.BEFORE

    async def _known(self, root: str, digest: str, number: int) -> Used | None:
        """What the store knows of an idempotency key after our entry, which went out just before this asks; not
        before all have sent again what they told their callers."""
        ends_at = asyncio.get_running_loop().time() + self._timeout_us / 1e6
        asked = False  # whether the root still waits for producers
        while asyncio.get_running_loop().time() < ends_at:
            try:
                known = await self._store.used(root, digest)
                if known is None:
                    await self.warm(root)
                    continue
                if not known.counters or (asked and self._is_open(self._state(root))):
                    return known
                left_s = ends_at - asyncio.get_running_loop().time()
                await self._opened(root, self._store.now_us() + int(left_s * 1e6))
                asked = True
            except Unavailable as error:
                self._log.warning("usage_waits", root=root, entry=number, why=str(error))
                return None
        return None

    def _is_settled(self, one: Unanswered) -> bool:
        """Whether what the store says of its key stays: it has the entry, and waits for no producer."""
        state = self._state(one.root)
        return state.acknowledged >= one.entry.number and state.recovery is None and self._is_open(state)

    def _list_conflict(self, root: str, entry: Entry) -> None:
        self._conflicts.inc()
        self._log.error(
            "usage_not_charged", root=root, entry=entry.attempt, cost_usd=usd(entry.cost_nano), why=entry.note
        )
        self._issue(root, entry)

    async def _look_after_pending(self) -> None:
        while True:
            await asyncio.sleep(PENDING_POLL_S)
            try:
                await self._pending.look()
            except Unavailable as error:
                self._log.warning("usage_waits", why=str(error), pending=len(self._pending))

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

    async def _opened(self, root: str, until_us: int) -> None:
        """Wait for what a root lacks after a loss. Raises Recovering if it takes too long."""
        state = self._state(root)
        if state.opening is None:
            state.opening = self._spawn(self._open_gate(root, state))
        await asyncio.wait({state.opening}, timeout=max(0, until_us - self._store.now_us()) / 1e6)
        if self._store.now_us() >= until_us:
            names = [WHOEVER if name == UNKNOWN else name for name in state.gate.waits] if state.gate else []
            waits = ", ".join(names) or "its accounts"
            raise Recovering(f"{root} recovers from a loss and waits for {waits}")

    async def _open_gate(self, root: str, state: _Root) -> None:
        """Send our part, and tell the others until they have sent theirs or the grace has passed."""
        announced_s: float | None = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._recover_soon(root)
                gate = state.gate
                if gate is None or self._is_open(state):
                    break
                if announced_s is None:
                    self._log.warning("root_waits_for_producers", root=root, producers=gate.waits)
                if announced_s is None or loop.time() - announced_s >= ANNOUNCE_AGAIN_S:
                    await self._store.announce(root, 1 + self._grace_us // 1_000_000)
                    announced_s = loop.time()
                await asyncio.sleep(GATE_POLL_S)
            if announced_s is not None:
                await self._store.unannounce(root)
        except StoreUnavailable as error:
            self._log.warning("root_recovery_waits", root=root, why=str(error))
        finally:
            state.opening = None

    def _is_open(self, state: _Root) -> bool:
        """Whether a root waited for nobody when it was last asked, or waits no more."""
        gate = state.gate
        return gate is None or not gate.waits or self._store.now_us() >= gate.until_us

    async def _heed_announcements(self) -> None:
        """Send again to roots that wait for us, though nobody here asks for them."""
        while True:
            try:
                for root in await self._store.announced():
                    gate = await self._gate(root)
                    if gate is not None and self.producer in gate.waits:
                        self._recover_soon(root)
                await asyncio.sleep(ANNOUNCED_POLL_S)
            except StoreUnavailable:
                await asyncio.sleep(1.0)

    def _look_again(self) -> None:
        """The store lives another life: it may lack something, wherever we have something."""
        for root in self._roots_with_something():
            self._recover_soon(root)
        self._spawn(self._look_for_what_went_back())

    async def _look_for_what_went_back(self) -> None:
        """Recover roots that know less than they have confirmed, though the database has all of it and nobody asks:
        until somebody did, their budgets would be told as they were. One after the other, for there may be many; a
        root that the store has forgotten is loaded when it is asked for."""
        for root, state in list(self._roots.items()):
            if state.acknowledged == 0 or state.recovery is not None:
                continue
            try:
                marks = await self._store.marks(root)
            except StoreUnavailable:
                return  # it will live another life, and then all are looked at again
            if marks is not None and included(marks.get(self.producer, 0)) < state.acknowledged:
                self._recover_soon(root)

    def _roots_with_something(self) -> list[str]:
        flying = {root for root, *_ in self._outbox.in_flight.values()}
        return sorted(flying | {root for root in self._outbox.kept_roots() if self.has_uncovered(root)})

    async def _gate(self, root: str) -> Gate | None:
        """Who is waited for in a root, after the store was told who is open."""
        producers = await self._open.named(self.producer)
        return await self._store.gate(root, secrets.token_hex(8), self._grace_us, producers)

    def _recover_soon(self, root: str) -> "asyncio.Task[None]":
        state = self._state(root)
        state.holds_back = True
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
                    state.gate = await self._gate(root)
                    if state.gate is None:
                        continue
                    if await self._is_behind(root, state.gate):
                        state.suspect = True
                        continue
                    if await self._resend(root, state):
                        self._go_on(root, state)
                        await self._tell_ready(root, state, state.gate)
                        if not state.holds_back:
                            return
                        continue  # one that went out since was not applied
                    if state.acknowledged > before:
                        continue
                except StoreDamaged as error:
                    why = str(error)
                    await self._mend_for(root, state, error)
                except Unavailable as error:
                    why = str(error)
                self._log.warning("root_recovery_waits", root=root, why=why, retry_s=round(delay_s, 2))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
        finally:
            state.recovery, state.holds_back = None, False

    def _go_on(self, root: str, state: _Root) -> None:
        """What ended while the recovery sent what was before it goes out, and from here on each entry as it comes.
        It is not awaited: under load there is always one more, and a recovery that waited for a moment without any
        would never end, nor would a slot or a hold be released."""
        state.holds_back = False
        answered = state.answered or self._new_answered(root, state)
        for entry in tuple(state.unacknowledged):
            self._store.apply(root, self.producer, entry, answered)

    async def _is_behind(self, root: str, gate: Gate) -> bool:
        """After a loss: whether the database knows of entries that the store does not. Those of producers that have
        ended, or that were covered, are in no outbox any more: nobody would send them again."""
        if self.producer not in gate.waits:
            return False
        known = (await self._spend.load(root)).marks
        return not dominates(await self._store.marks(root) or {}, known)

    async def _tell_ready(self, root: str, state: _Root, gate: Gate) -> None:
        if self.producer not in gate.waits:
            return
        waits = tuple([producer for producer in gate.waits if producer != self.producer])
        state.gate = Gate(gate.run, gate.until_us, waits)
        if await self._store.ready(root, gate.run, self.producer) is Ready.LATE:
            self._late.inc()
            self._log.warning("root_recovered_late", root=root, producer=self.producer)

    async def _load(self, root: str, state: _Root) -> None:
        """Seed a tree that is cold, or that knows less than it has confirmed or than the database knows."""
        marks = await self._store.marks(root)
        behind = marks is None or included(marks.get(self.producer, 0)) < state.acknowledged
        if not behind and not state.suspect:
            return
        snapshot = await self._spend.load(root)
        if marks is not None and dominates(marks, snapshot.marks):
            state.suspect = False  # another has loaded it already: a million idempotency keys need not come twice
            return
        seeds = seeds_of(snapshot, self._store.now_us())
        # Keys are read after the marks: more than these marks include is harmless, less is not. A few are put there
        # before the seed; many follow it, and one that is used meanwhile is looked up.
        used = await self._spend.used(root, self._store.now_us(), limit=USED_AT_ONCE)
        follow = len(used) == USED_AT_ONCE
        if not follow:
            await self._store.remember(root, used)
        never_used = not snapshot.marks and not snapshot.totals and await self._spend.begin(root, self.producer)
        lost, run = not never_used, secrets.token_hex(8)
        if await self._store.seed(root, run, snapshot.marks, seeds, lost=lost, keys_follow=follow):
            self._seeded.inc()
            if follow:
                self._bring_soon(root, state)
            self._log.info("root_loaded", root=root, counters=len(seeds), cold=marks is None)
        state.suspect = False

    # Idempotency keys that follow a seed

    def _bring_soon(self, root: str, state: _Root) -> None:
        state.keys_follow = True
        if state.bringing is None:
            state.bringing = self._spawn(self._bring_keys(root, state))

    async def _bring_keys(self, root: str, state: _Root) -> None:
        """Bring all that the database remembers, unless another does; from the beginning if the memory is another."""
        delay_s = BACKOFF_MIN_S
        try:
            while True:
                try:
                    memory = await self._store.memory(root)
                    if memory is None or await self._brought(root, memory.run):
                        return
                except Unavailable as error:
                    self._log.warning("keys_wait", root=root, why=str(error), retry_s=round(delay_s, 2))
                    await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                    delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
        finally:
            state.bringing = None

    async def _brought(self, root: str, run: str) -> bool:
        """False: the memory is another by now. In pages: a root may have a million keys."""
        page: Mapping[str, Used] = {}  # at first none: who brings them is told before they are read
        after, last, lease_us = "", False, int(BRING_LEASE_S * 1e6)
        while True:
            following = self._spend.used(root, self._store.now_us(), after=after, limit=USED_AT_ONCE)
            bringing = self._store.bring(root, run, self.producer, page, lease_us=lease_us, last=last)
            # The next page is read while this one is written; whichever fails, both have ended before that is told.
            brought, read = await asyncio.gather(bringing, following, return_exceptions=True)
            for outcome in (brought, read):
                if isinstance(outcome, BaseException):
                    raise outcome
            if not brought:
                memory = await self._store.memory(root)
                return memory is None or memory.run == run
            if last:
                self._log.info("keys_brought", root=root)
                return True
            page = cast("Mapping[str, Used]", read)
            last, after = len(page) < USED_AT_ONCE, max(page, default=after)

    async def _look_up(self, root: str, digest: str) -> bool:
        """Have one idempotency key in the store as the database knows it. False: the root must be loaded first.

        Memory first, then the database: what it tells is of no use to a later memory."""
        state, memory = self._state(root), await self._store.memory(root)
        if memory is None:
            return False
        known = await self._spend.used_by(root, digest)
        looked = await self._store.looked_up(root, memory.run, digest, known)
        if looked is Looked.KNOWN:
            self._bring_soon(root, state)  # whoever did may be gone
        else:
            state.keys_follow = state.keys_follow and looked is not Looked.ALL_THERE
        return True

    async def _resend(self, root: str, state: _Root) -> bool:
        """Send everything above the mark, in order, and hold again what is in flight; True when the store has all as
        of one instant of this call. What ends after that is held back for `_go_on`."""
        marks = await self._store.marks(root)
        if marks is None:
            return False
        mark = marks.get(self.producer, 0)
        if is_buried(mark):
            self.go_on_as_another()
            return False
        known = state.acknowledged
        self._acknowledge(state, mark)
        kept = state.unacknowledged
        entries = list(kept) if kept and kept[0].number == mark + 1 else self._outbox.entries_above(root, mark)
        if not await self._send_again(root, state, entries):
            return False
        if state.acknowledged < known:
            # The store has lost it and the outbox has forgotten it meanwhile: so by now the database has it.
            state.suspect = True
            return False
        return await self._hold_again(root, state)

    async def _send_again(self, root: str, state: _Root, entries: Sequence[Entry]) -> bool:
        """Apply entries in order: plain ones together, and alone the first that did not pass so. False: one was not
        applied."""
        waiting = deque(entries)
        while waiting:
            window = tuple(takewhile(is_plain, islice(waiting, WINDOW_MAX)))
            if window:
                await self._applied_together(root, state, window)
            while waiting and waiting[0].number <= state.acknowledged:
                waiting.popleft()
            passed = window and window[-1].number <= state.acknowledged
            if waiting and not passed and not await self._sent_alone(root, state, waiting.popleft()):
                return False
        return True

    async def _applied_together(self, root: str, state: _Root, window: Sequence[Entry]) -> None:
        """Send them without waiting for one another, and wait for the answer to the last. How far they were applied
        is then acknowledged; what stopped the next is not told."""

        def note(answer: Applied | StoreUnavailable) -> None:
            if isinstance(answer, Applied) and answer.status is APPLIED and not is_buried(answer.mark):
                self._acknowledge(state, answer.mark)

        for entry in window[:-1]:
            self._store.apply(root, self.producer, entry, note)
        with suppress(StoreUnavailable):
            note(await self._applied(root, self.producer, window[-1]))

    async def _sent_alone(self, root: str, state: _Root, entry: Entry) -> bool:
        try:
            applied = await self.apply_one(root, self.producer, entry)
        except StoreDamaged as error:
            applied = await self._on_refused(root, state, entry, error)
        if applied:
            self._acknowledge(state, entry.number)
        return applied

    async def _hold_again(self, root: str, state: _Root) -> bool:
        """Have the store hold what is in flight. False: it must be loaded first, or knows us as buried."""
        # As of one instant: the store takes no hold of which it may have the end, and must not be told that it has
        # everything while it has neither the hold nor the end.
        producer, number, in_flight = self.producer, self._last_number(root), self._in_flight(root)
        if not await self._send_again(root, state, list(state.unacknowledged)):
            return False
        await self._restore_ended(root, in_flight)
        if not await self._store.reassert(root, producer, number, in_flight):
            return False
        return await self.outage.hand_over(root, self._live_of, self._last_number)

    def _last_number(self, root: str) -> int:
        return self._outbox.next_number(root) - 1

    def _in_flight(self, root: str) -> list[Dispatch]:
        """What was dispatched, and what was admitted and is about to be."""
        dispatched = [d for r, d, _ in self._outbox.in_flight.values() if r == root]
        begun = [g for g in self._live_of(root) if g.demand.attempt not in self._outbox.in_flight]
        return dispatched + [dispatch_of(grant) for grant in begun]

    # A store that has something else than ours under our keys

    async def mend(self, root: str, error: StoreDamaged, names: Names | None = None) -> bool:
        """Have the store remove what is not ours. False: it found nothing. Raises StoreUnavailable."""
        gone = await self._store.mend(root, names or Names())
        if gone:
            self._mended.inc(len(gone))
            self._log.error("store_damaged", root=root, removed=gone[:NAMED_MAX], why=str(error))
            self._recover_soon(root)
        return bool(gone)

    async def _mend_for_admission(self, checks: Checks, error: StoreDamaged) -> None:
        """Raises the error if the store found nothing to mend."""
        lists = (checks.counters, checks.logs, checks.buckets, checks.slots)
        if not await self.mend(checks.root, error, Names(*(tuple([check.name for check in one]) for one in lists))):
            raise error

    async def _mend_for(self, root: str, state: _Root, error: StoreDamaged) -> None:
        """Within a recovery: what it was about to send names the keys."""
        counters = {ref.name for r, d, _ in self._outbox.in_flight.values() if r == root for ref in d.counters}
        counters |= {ref.name for ref in state.refused.counters} if state.refused else set()
        used = (state.refused.attempt,) if state.refused and state.refused.kind is EntryKind.USAGE else ()
        with suppress(Unavailable):
            await self.mend(root, error, Names(counters=tuple(sorted(counters)), used=used))

    async def _on_refused(self, root: str, state: _Root, entry: Entry, error: StoreDamaged) -> bool:
        """The store refuses an entry. Raises the error, to mend the store and try again; or, when that has not
        helped, sets the entry aside: its amount is listed and not charged, and later entries go on."""
        again = state.refused is not None and state.refused.number == entry.number
        state.refused, state.refusals = entry, state.refusals + 1 if again else 1
        if state.refusals < REFUSALS_MAX:
            raise error
        if not await self.apply_one(root, self.producer, quarantined(entry, self.producer, str(error))):
            return False
        state.refused, state.refusals = None, 0
        self._set_aside.inc()
        cost, attempt = usd(entry.cost_nano), entry.attempt
        self._log.error(
            "entry_refused", root=root, entry=entry.number, attempt=attempt, cost_usd=cost, why=str(error)
        )
        return True

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
        """Apply one entry and await the answer, bringing back what the store has dropped and the database knows.

        False: the store has a gap, lost the tree or refuses this producer. Raises `Unavailable`.
        """
        for _ in range(RECALLS_MAX + len(entry.counters)):
            answer = await self._applied(root, producer, entry)
            if answer.status is AppliedStatus.UNKNOWN:
                look = self._look_up if entry.kind is EntryKind.USAGE else self._recall
                if not await look(root, entry.attempt):
                    return False
                continue
            if answer.status is not AppliedStatus.ABSENT:
                return answer.status is AppliedStatus.OK and not is_buried(answer.mark)
            snapshot = await self._spend.load(root)
            ref = next(ref for ref in entry.counters if ref.name == answer.absent)
            totals = snapshot.totals.get(answer.absent, NOTHING_SPENT)
            await self._store.restore(root, answer.absent, SeedTotals(ref.expires_us, totals))
        return False

    async def _recall(self, root: str, attempt: str) -> bool:
        """Have the record of an attempt in the store again. False: the root must be loaded first."""
        memory = await self._store.memory(root)
        if memory is None:
            return False
        charge, marks = await self._spend.charge(root, attempt)
        recalled = await self._store.recall(root, memory, attempt, charge or UNCHARGED, marks)
        if recalled is None:
            self._state(root).suspect = True
        return recalled is not None

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
        mark = snapshot.marks.get(self.producer, 0)
        if mark:  # others' roots are not noted: there may be a million
            self._outbox.cover(snapshot.root, mark)

    # Heartbeat

    async def _heartbeat(self) -> None:
        while True:
            await self._beat()
            try:
                await self._renew_leases()
                await self._compare_marks()
            except StoreUnavailable as error:
                self._log.warning("heartbeat_without_store", why=str(error))
            await asyncio.sleep(HEARTBEAT_S)

    async def _compare_marks(self) -> None:
        """An idle producer notices a loss, too."""
        roots = self._roots_with_something()
        start = self._compared % max(1, len(roots))
        turn = (roots[start:] + roots[:start])[:COMPARED_MAX]
        self._compared = start + len(turn)
        for root in turn:
            state, marks = self._state(root), await self._store.marks(root)
            mark = (marks or {}).get(self.producer, 0)
            if marks is None or mark < state.acknowledged or is_buried(mark):
                self._recover_soon(root)

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
