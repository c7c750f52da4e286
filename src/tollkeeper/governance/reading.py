"""The fast store's side of a reconciliation: what it says that each key spent in each month. Changes nothing.

A gateway reads with what it knows of its own outbox; without one, the store and the outboxes on disk are
read from outside.
"""

from pathlib import Path

from tollkeeper.domain.admission import Checks, CounterCheck, Demand, Status, split_counter
from tollkeeper.domain.entries import included
from tollkeeper.domain.periods import Period, Span, month_of_label
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import SpendLedger, StoreAccount, StoreAccounts
from tollkeeper.governance.ledger import ALWAYS_US, Ledger
from tollkeeper.governance.outbox import entries_kept
from tollkeeper.governance.store import Store
from tollkeeper.governance.sync import SyncWorker


class StoreReader:
    """Keeps `ports.AccountReader`."""

    def __init__(self, *, store: Store, spend: SpendLedger, ledger: Ledger, sync: SyncWorker) -> None:
        self._store, self._spend, self._ledger, self._sync = store, spend, ledger, sync

    async def accounts(self) -> StoreAccounts:
        """See the port. Months that the database knows, and those that only the store does."""
        found: list[StoreAccount] = []
        for root in sorted(await self._sync.roots()):
            found += await _accounts_of(self._store, self._spend, root)
        return StoreAccounts(tuple(found), self._ledger.unacknowledged)


async def accounts_from_outside(store: Store, spend: SpendLedger, outboxes: Path) -> StoreAccounts:
    """As `StoreReader.accounts`, where no gateway runs: entries that the store lacks are those on this disk above its
    marks. Locks nothing. Raises `Unavailable`."""
    roots = set(await spend.roots())
    async for root in store.roots():
        roots.add(root)
    found: list[StoreAccount] = []
    for root in sorted(roots):
        found += await _accounts_of(store, spend, root)
    unconfirmed = 0
    for (producer, root), numbers in entries_kept(outboxes).items():
        marks = await store.marks(root) or (await spend.load(root)).marks
        unconfirmed += sum(number > included(marks.get(producer, 0)) for number in numbers)
    return StoreAccounts(tuple(found), unconfirmed)


async def _accounts_of(store: Store, spend: SpendLedger, root: str) -> list[StoreAccount]:
    snapshot = await store.snapshot(root)
    if snapshot is None:
        return []
    names = sorted({*snapshot.content.totals, *(await spend.load(root)).totals})
    months = [(name, month) for name in names if (month := _month(name)) is not None]
    counters = tuple([_check(name) for name, _ in months])
    demand = Demand("", "", 0, 0, store.now_us() + 10**7, 0)
    reply = await store.admit(Checks(root, (), (), counters, 0, ALWAYS_US), demand)
    if reply.status is not Status.ADMITTED:
        return []
    return [
        StoreAccount(*month, state.spent, state.held)
        for (name, month), state in zip(months, reply.counters, strict=True)
        if state.spent or state.held or name in snapshot.content.totals
    ]


def _month(name: str) -> tuple[str, int, int] | None:
    scope, label = split_counter(name)
    month = month_of_label(label)
    return (scope, *month) if scope.startswith("key_") and month is not None else None


def _check(name: str) -> CounterCheck:
    return CounterCheck(name, ScopeKind.KEY, Span(Period.TOTAL, name, 0, None), None)
