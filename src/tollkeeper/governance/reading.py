"""The fast store's side of a reconciliation: what it says that each key spent in each month. Changes nothing."""

from tollkeeper.domain.admission import Checks, CounterCheck, Demand, Status, split_counter
from tollkeeper.domain.periods import Period, Span, month_of_label
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import SpendLedger, StoreAccount, StoreAccounts
from tollkeeper.governance.ledger import ALWAYS_US, Ledger
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
            found += await self._of(root)
        return StoreAccounts(tuple(found), self._ledger.unacknowledged)

    async def _of(self, root: str) -> list[StoreAccount]:
        snapshot = await self._store.snapshot(root)
        if snapshot is None:
            return []
        names = sorted({*snapshot.content.totals, *(await self._spend.load(root)).totals})
        months = [(name, month) for name in names if (month := _month(name)) is not None]
        counters = tuple([_check(name) for name, _ in months])
        demand = Demand("", self._ledger.producer, 0, 0, self._store.now_us() + 10**7, 0)
        reply = await self._store.admit(Checks(root, (), (), counters, 0, ALWAYS_US), demand)
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
