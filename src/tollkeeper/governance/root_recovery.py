"""The recovery of a root: after a lost reply, a gap or a loss, the store gets again what it lacks of us, in order.

The tree is loaded from the database if it must be; then entries above our mark are sent again and what is in flight
is held again, as of one instant, while what ends meanwhile is held back (`Root.holds_back`). What is not ours under
our keys is removed, and an entry that the store refuses again and again is set aside. When budgets open again is
root_gates.py's; which entries there are, and their numbers, ledger.py's.
"""

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from typing import Any, Final

from tollkeeper.domain.admission import Checks, Grant
from tollkeeper.domain.charges import UNCHARGED
from tollkeeper.domain.entries import (
    RANKED,
    Applied,
    AppliedStatus,
    Dispatch,
    Entry,
    EntryKind,
    dispatch_of,
    dominates,
    included,
    is_buried,
    quarantined,
)
from tollkeeper.domain.errors import StoreDamaged, StoreUnavailable, Unavailable
from tollkeeper.domain.money import usd
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.domain.recovery import Gate
from tollkeeper.domain.tree import NOTHING_SPENT
from tollkeeper.governance.outage import Outage
from tollkeeper.governance.outbox import Outbox
from tollkeeper.governance.root_gates import Gates
from tollkeeper.governance.seeding import seeds_of
from tollkeeper.governance.store import Done, Names, SeedTotals, Store
from tollkeeper.governance.used_keys import BACKOFF_MAX_S, BACKOFF_MIN_S, UsedKeys
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

RECALLS_MAX: Final = 10
"""How often the record of an attempt is brought back for one entry; once is usual."""
REFUSALS_MAX: Final = 5
"""How often the store may refuse one entry, its keys mended, before the entry is set aside; about 2 s."""
WINDOW_MAX: Final = 500
"""Entries that a recovery sends before it waits for their answers."""
NAMED_MAX: Final = 10
"""Keys that a log line names."""
COMPARED_MAX: Final = 1_000
"""Roots whose marks are compared at one heartbeat; others have their turn later."""
APPLIED: Final = AppliedStatus.OK


class Root:
    """What this process has sent to one root and not seen acknowledged."""

    __slots__ = (
        "acknowledged",
        "answered",
        "holds_back",
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
        self.answered: Done | None = None  # for entries under our present name
        self.refused: Entry | None = None  # what the store refused last, and how often in a row
        self.refusals = 0

    def acknowledge(self, mark: int) -> None:
        """The store has applied our entries up to this number."""
        self.acknowledged, waiting = mark, self.unacknowledged
        while waiting and waiting[0].number <= mark:
            waiting.popleft()


class Recovery:
    """Recovers roots, each in a task of its own that goes on until the store has all.

    `live` is the ledger's: attempts in flight. `answered` makes what is called with the answer to an entry that was
    sent without waiting, `buried` is called when the store knows us as closed, `spawn` runs a task until the ledger
    stops.
    """

    def __init__(
        self,
        store: Store,
        spend: SpendLedger,
        metrics: Metrics,
        outage: Outage,
        *,
        outbox: Outbox,
        grace_us: int,
        live: Mapping[str, Grant],
        answered: Callable[[str, Root], Done],
        buried: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.roots: dict[str, Root] = {}
        self.producer = outbox.producer
        self.keys = UsedKeys(store, spend, self.producer, spawn)
        self.gates = Gates(
            store, spend, metrics, producer=self.producer, grace_us=grace_us, recover=self.soon, spawn=spawn
        )
        self._store, self._spend, self._outage, self._outbox = store, spend, outage, outbox
        self._live, self._new_answered, self._buried, self._spawn = live, answered, buried, spawn
        self._compared = 0  # roots that have had their turn
        self._log = logger("governance")
        self._declare(metrics)

    def _declare(self, metrics: Metrics) -> None:
        self._recoveries = metrics.counter(
            "tollkeeper_root_recoveries_total", "Roots whose entries had to be sent again."
        ).labels()
        self._seeded = metrics.counter(
            "tollkeeper_roots_loaded_total", "Roots loaded into the store from the database."
        ).labels()
        self._mended = metrics.counter(
            "tollkeeper_store_keys_mended_total", "Keys removed because what the store had there was not ours."
        ).labels()
        self._set_aside = metrics.counter(
            "tollkeeper_entries_refused_total", "Entries set aside because the store refused them again and again."
        ).labels()
        metrics.gauge(
            "tollkeeper_roots_recovering",
            "Roots that are loaded or opened again after a loss; their budgets wait for it.",
            lambda: len(self._under_way()),
        )

    def _under_way(self) -> set[str]:
        return {root for root, state in self.roots.items() if state.recovery is not None} | self.gates.opening.keys()

    def state(self, root: str) -> Root:
        """That of one root; a new one if nothing was sent to it yet."""
        state = self.roots.get(root)
        if state is None:
            state = self.roots[root] = Root()
        return state

    def go_on_as(self, outbox: Outbox) -> None:
        """This process has another name by now, under which all is issued again."""
        self._outbox = outbox
        self.producer = self.keys.producer = self.gates.producer = outbox.producer
        for state in self.roots.values():
            state.unacknowledged.clear()
            state.acknowledged, state.answered = 0, None
            state.suspect = True

    # What begins it

    def suspect(self, root: str) -> None:
        """The database is ahead of the store: load the root anew and send again what it then lacks."""
        self.state(root).suspect = True
        self.soon(root)

    def soon(self, root: str) -> asyncio.Task[None]:
        """Recover a root, or go on with it if that is under way; entries are held back from now on."""
        state = self.state(root)
        state.holds_back = True
        if state.recovery is None:
            self._recoveries.inc()
            state.recovery = self._spawn(self._recover(root, state))
        return state.recovery

    def look_again(self) -> None:
        """The store lives another life: it may lack something, wherever we have something."""
        for root in self._roots_with_something():
            self.soon(root)
        self._spawn(self._look_for_what_went_back())

    async def _look_for_what_went_back(self) -> None:
        """Recover roots that know less than they have confirmed, though the database has all of it and nobody asks:
        until somebody did, their budgets would be told as they were. One after the other, for there may be many; a
        root that the store has forgotten is loaded when it is asked for."""
        for root, state in list(self.roots.items()):
            if state.acknowledged == 0 or state.recovery is not None:
                continue
            try:
                marks = await self._store.marks(root)
            except StoreUnavailable:
                return  # it will live another life, and then all are looked at again
            if marks is not None and included(marks.get(self.producer, 0)) < state.acknowledged:
                self.soon(root)

    async def compare_marks(self) -> None:
        """An idle producer notices a loss, too. Raises StoreUnavailable."""
        roots = self._roots_with_something()
        start = self._compared % max(1, len(roots))
        turn = (roots[start:] + roots[:start])[:COMPARED_MAX]
        self._compared = start + len(turn)
        for root in turn:
            state, marks = self.state(root), await self._store.marks(root)
            mark = (marks or {}).get(self.producer, 0)
            if marks is None or mark < state.acknowledged or is_buried(mark):
                self.soon(root)

    def _roots_with_something(self) -> list[str]:
        flying = {root for root, *_ in self._outbox.in_flight.values()}
        return sorted(flying | {root for root in self._outbox.kept_roots() if self._outbox.uncovered_of(root)})

    # What it does

    async def _recover(self, root: str, state: Root) -> None:
        delay_s = BACKOFF_MIN_S
        try:
            while True:
                await self._outage.back(root)
                why = "the store does not have the entries before ours"
                try:
                    await self._load(root, state)
                    before = state.acknowledged
                    gate = await self.gates.look(root)
                    if gate is None:
                        continue
                    if await self._is_behind(root, gate):
                        state.suspect = True
                        continue
                    if await self._resend(root, state):
                        self._go_on(root, state)
                        await self.gates.tell_ready(root, gate)
                        if not state.holds_back:
                            return
                        continue  # one that went out since was not applied
                    if state.acknowledged > before:
                        continue
                except StoreDamaged as error:
                    why = str(error)
                    await self._mend_within(root, state, error)
                except Unavailable as error:
                    why = str(error)
                self._log.warning("root_recovery_waits", root=root, why=why, retry_s=round(delay_s, 2))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
        finally:
            state.recovery, state.holds_back = None, False

    def _go_on(self, root: str, state: Root) -> None:
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

    async def _load(self, root: str, state: Root) -> None:
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
        follow = not await self.keys.put_all(root)
        never_used = not snapshot.marks and not snapshot.totals and await self._spend.begin(root, self.producer)
        lost, run = not never_used, secrets.token_hex(8)
        if await self._store.seed(root, run, snapshot.marks, seeds, lost=lost, keys_follow=follow):
            self._seeded.inc()
            if follow:
                self.keys.bring_soon(root)
            self._log.info("root_loaded", root=root, counters=len(seeds), cold=marks is None)
        state.suspect = False

    async def _resend(self, root: str, state: Root) -> bool:
        """Send everything above the mark, in order, and hold again what is in flight; True when the store has all as
        of one instant of this call. What ends after that is held back for `_go_on`."""
        marks = await self._store.marks(root)
        if marks is None:
            return False
        mark = marks.get(self.producer, 0)
        if is_buried(mark):
            self._buried()
            return False
        known = state.acknowledged
        state.acknowledge(mark)
        kept = state.unacknowledged
        entries = list(kept) if kept and kept[0].number == mark + 1 else self._outbox.entries_above(root, mark)
        if not await self._send_again(root, state, entries):
            return False
        if state.acknowledged < known:
            # The store has lost it and the outbox has forgotten it meanwhile: so by now the database has it.
            state.suspect = True
            return False
        return await self._hold_again(root, state)

    async def _send_again(self, root: str, state: Root, entries: Sequence[Entry]) -> bool:
        """Apply entries in order, many together, and alone the first that did not pass so. False: one was not
        applied."""
        waiting, most = deque(entries), WINDOW_MAX
        while waiting:
            window = tuple(takewhile(_goes_together, islice(waiting, most)))
            if window:
                if not await self._recall(root, [e.attempt for e in window if e.kind in RANKED and not e.fresh]):
                    return False
                await self._applied_together(root, state, window)
            while waiting and waiting[0].number <= state.acknowledged:
                waiting.popleft()
            passed = bool(window) and window[-1].number <= state.acknowledged
            if window:
                most = min(WINDOW_MAX, 2 * most) if passed else 1  # what stopped one may stop the next
            if waiting and not passed and not await self._sent_alone(root, state, waiting.popleft()):
                return False
        return True

    async def _applied_together(self, root: str, state: Root, window: Sequence[Entry]) -> None:
        """Send them without waiting for one another, and wait for the answer to the last. How far they were applied
        is then acknowledged; what stopped the next is not told."""

        def note(answer: Applied | StoreUnavailable) -> None:
            if isinstance(answer, Applied) and answer.status is APPLIED and not is_buried(answer.mark):
                state.acknowledge(answer.mark)

        for entry in window[:-1]:
            self._store.apply(root, self.producer, entry, note)
        with suppress(StoreUnavailable):
            note(await self._applied(root, self.producer, window[-1]))

    async def _sent_alone(self, root: str, state: Root, entry: Entry) -> bool:
        try:
            applied = await self.apply_one(root, self.producer, entry)
        except StoreDamaged as error:
            applied = await self._on_refused(root, state, entry, error)
        if applied:
            state.acknowledge(entry.number)
        return applied

    async def _hold_again(self, root: str, state: Root) -> bool:
        """Have the store hold what is in flight. False: it must be loaded first, or knows us as buried."""
        # As of one instant: the store takes no hold of which it may have the end, and must not be told that it has
        # everything while it has neither the hold nor the end.
        producer, number, in_flight = self.producer, self._last_number(root), self._in_flight(root)
        if not await self._send_again(root, state, list(state.unacknowledged)):
            return False
        await self._restore_ended(root, in_flight)
        if not await self._store.reassert(root, producer, number, in_flight):
            return False
        return await self._outage.hand_over(root, self._live_of, self._last_number)

    def _last_number(self, root: str) -> int:
        return self._outbox.next_number(root) - 1

    def _in_flight(self, root: str) -> list[Dispatch]:
        """What was dispatched, and what was admitted and is about to be."""
        dispatched = [d for r, d, _ in self._outbox.in_flight.values() if r == root]
        begun = [g for g in self._live_of(root) if g.demand.attempt not in self._outbox.in_flight]
        return dispatched + [dispatch_of(grant) for grant in begun]

    def _live_of(self, root: str) -> list[Grant]:
        """Attempts in flight of a root, without those that are to be voided because they were never answered."""
        return [g for g in self._live.values() if g.checks.root == root and g.reply.now_us]

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

    # One entry, awaited

    async def apply_one(self, root: str, producer: str, entry: Entry) -> bool:
        """Apply one entry and await the answer, bringing back what the store has dropped and the database knows.

        False: the store has a gap, lost the tree or refuses this producer. Raises `Unavailable`.
        """
        for _ in range(RECALLS_MAX + len(entry.counters)):
            answer = await self._applied(root, producer, entry)
            if answer.status is AppliedStatus.UNKNOWN:
                if entry.kind is EntryKind.USAGE:
                    looked = await self.keys.look_up(root, entry.attempt)
                else:
                    looked = await self._recall(root, [entry.attempt])
                if not looked:
                    return False
                continue
            if answer.status is not AppliedStatus.ABSENT:
                return answer.status is AppliedStatus.OK and not is_buried(answer.mark)
            snapshot = await self._spend.load(root)
            ref = next(ref for ref in entry.counters if ref.name == answer.absent)
            totals = snapshot.totals.get(answer.absent, NOTHING_SPENT)
            await self._store.restore(root, answer.absent, SeedTotals(ref.expires_us, totals))
        return False

    async def _recall(self, root: str, attempts: Sequence[str]) -> bool:
        """Have the records of attempts in the store again. False: the root must be loaded first."""
        if not attempts:
            return True
        memory = await self._store.memory(root)
        if memory is None:
            return False
        charges, marks = await self._spend.charges(root, attempts)
        recalls = [self._store.recall(root, memory, a, charges.get(a, UNCHARGED), marks) for a in attempts]
        told = await asyncio.gather(*recalls, return_exceptions=True)
        for outcome in told:  # all have come to their end
            if isinstance(outcome, BaseException):
                raise outcome
        if None in told:
            self.state(root).suspect = True
        return None not in told

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

    # A store that has something else than ours under our keys

    async def mend(self, root: str, error: StoreDamaged, names: Names | None = None) -> bool:
        """Have the store remove what is not ours. False: it found nothing. Raises StoreUnavailable."""
        gone = await self._store.mend(root, names or Names())
        if gone:
            self._mended.inc(len(gone))
            self._log.error("store_damaged", root=root, removed=gone[:NAMED_MAX], why=str(error))
            self.soon(root)
        return bool(gone)

    async def mend_for(self, checks: Checks, error: StoreDamaged) -> None:
        """Raises the error if the store found nothing to mend."""
        lists = (checks.counters, checks.logs, checks.buckets, checks.slots)
        if not await self.mend(checks.root, error, Names(*(tuple([check.name for check in one]) for one in lists))):
            raise error

    async def _mend_within(self, root: str, state: Root, error: StoreDamaged) -> None:
        """Within a recovery: what it was about to send names the keys."""
        counters = {ref.name for r, d, _ in self._outbox.in_flight.values() if r == root for ref in d.counters}
        counters |= {ref.name for ref in state.refused.counters} if state.refused else set()
        used = (state.refused.attempt,) if state.refused and state.refused.kind is EntryKind.USAGE else ()
        with suppress(Unavailable):
            await self.mend(root, error, Names(counters=tuple(sorted(counters)), used=used))

    async def _on_refused(self, root: str, state: Root, entry: Entry, error: StoreDamaged) -> bool:
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


def _goes_together(entry: Entry) -> bool:
    """Whether nothing must be looked up for this entry alone before it is applied."""
    return entry.kind is not EntryKind.USAGE
