"""Usage that is charged once for each idempotency key: what became of an entry, and what its caller is told.

The entry is the ledger's, which writes and sends it; whether it charges anything the store decides, by what its key
stands for. Here the store is asked for that, until it answers for good: not before all producers have sent again what
they told their callers. Who could not be told in time is told *pending*, and the entry is looked after
(pending_usage.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from tollkeeper.domain.entries import Charged, Entry, Used
from tollkeeper.domain.errors import IdempotencyConflict, Unavailable
from tollkeeper.domain.money import usd
from tollkeeper.governance.pending_usage import PendingUsage, Unanswered
from tollkeeper.governance.root_recovery import Recovery
from tollkeeper.governance.store import Store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

PENDING_POLL_S: Final = 0.5
"""How often is looked for usage of which no caller was told how it stands."""


class UsageCharges:
    """`warm` has a root loaded with all our entries, `issue` gives an entry its number and sends it; both are the
    ledger's."""

    def __init__(
        self,
        store: Store,
        recovery: Recovery,
        metrics: Metrics,
        *,
        warm: Callable[[str], Awaitable[None]],
        issue: Callable[[str, Entry], Entry],
    ) -> None:
        self.pending = PendingUsage(store.used, self._is_settled, self._list_conflict)
        self._store, self._recovery, self._warm, self._issue = store, recovery, warm, issue
        self._conflicts = metrics.counter(
            "tollkeeper_idempotency_conflicts_total", "Usage refused because its key stands for another amount."
        ).labels()
        self._log = logger("governance")

    async def prepare(self, root: str, digest: str) -> None:
        """Before an entry under a key is written: have the key looked up, if it may be on its way after a loss."""
        if root in self._recovery.keys.following:
            with suppress(Unavailable):  # the entry then finds that it must be looked up
                await self._recovery.keys.look_up(root, digest)

    async def answer(self, one: Unanswered, key: str, within_us: int) -> Charged:
        """What the caller is told of its entry, which went out just before. Raises `IdempotencyConflict`."""
        root, producer, entry = one
        known = None
        try:
            known = await self._known(root, entry.attempt, entry.number, within_us)
        finally:
            if known is None and producer == self._recovery.producer:
                self.pending.add(root, producer, entry)
        if known is None:
            return Charged.PENDING
        if known.cost_nano != entry.cost_nano:
            self._conflicts.inc()
            raise IdempotencyConflict(
                f"idempotency_key {key!r} was used for {usd(known.cost_nano)} USD, not {usd(entry.cost_nano)}: give "
                "each charge a key of its own"
            )
        return Charged.NOW if known.by == f"{self._recovery.producer}:{entry.number}" else Charged.BEFORE

    async def _known(self, root: str, digest: str, number: int, within_us: int) -> Used | None:
        """What the store knows of an idempotency key after our entry, which went out just before this asks; not
        before all have sent again what they told their callers."""
        gates = self._recovery.gates
        ends_at = asyncio.get_running_loop().time() + within_us / 1e6
        asked = False  # whether the root still waits for producers
        while asyncio.get_running_loop().time() < ends_at:
            try:
                known = await self._store.used(root, digest)
                if known is None:
                    await self._warm(root)
                    continue
                if not known.counters or (asked and gates.is_open(root)):
                    return known
                left_s = ends_at - asyncio.get_running_loop().time()
                await gates.wait(root, self._store.now_us() + int(left_s * 1e6))
                asked = True
            except Unavailable as error:
                self._log.warning("usage_waits", root=root, entry=number, why=str(error))
                return None
        return None

    # Whose callers were not told

    async def look_after_pending(self) -> None:
        """List what has charged nothing because another amount came first, once that is known; forever."""
        while True:
            await asyncio.sleep(PENDING_POLL_S)
            try:
                await self.pending.look()
            except Unavailable as error:
                self._log.warning("usage_waits", why=str(error), pending=len(self.pending))

    def _is_settled(self, one: Unanswered) -> bool:
        """Whether what the store says of its key stays: it has the entry, and waits for no producer."""
        state = self._recovery.state(one.root)
        has_it = state.acknowledged >= one.entry.number and state.recovery is None
        return has_it and self._recovery.gates.is_open(one.root)

    def _list_conflict(self, root: str, entry: Entry) -> None:
        self._conflicts.inc()
        self._log.error(
            "usage_not_charged", root=root, entry=entry.attempt, cost_usd=usd(entry.cost_nano), why=entry.note
        )
        self._issue(root, entry)
