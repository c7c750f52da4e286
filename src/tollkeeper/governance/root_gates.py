"""Whom a root waits for after a loss, as this process sees it: what opens its budgets again.

The store decides who is waited for and until when (domain/recovery.py). Here it is told who is open and that we have
sent again, it is asked whether the others have, and the others are told that somebody waits. What is sent again, and
how, is root_recovery.py's.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tollkeeper.domain.errors import Recovering, StoreUnavailable
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.domain.recovery import UNKNOWN, Gate, Ready
from tollkeeper.governance.producers import OpenProducers
from tollkeeper.governance.store import Store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

GATE_POLL_S: Final = 0.05
"""How often a root that waits for other producers is asked whether they have come."""
ANNOUNCED_POLL_S: Final = 0.1
"""How often is looked for roots that wait for this producer."""
ANNOUNCE_AGAIN_S: Final = 1.0
"""How often a root that waits says so again: the store may lose that, too, and nobody else would ever come."""
WHOEVER: Final = "producers that only the database knows"


class Gates:
    """`recover` sends our part of a root, ending with a look at its gate; its task ends when the root has it."""

    def __init__(
        self,
        store: Store,
        spend: SpendLedger,
        metrics: Metrics,
        *,
        producer: str,
        grace_us: int,
        recover: Callable[[str], asyncio.Task[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.producer = producer
        self.opening: dict[str, asyncio.Task[None]] = {}
        """Roots that somebody here waits for."""
        self._seen: dict[str, Gate] = {}  # of roots that waited for somebody when they were last asked
        self._store, self._grace_us, self._recover, self._spawn = store, grace_us, recover, spawn
        self._open = OpenProducers(spend)
        self._late = metrics.counter(
            "tollkeeper_recoveries_late_total", "Roots where this producer sent again after the grace had passed."
        ).labels()
        self._log = logger("governance")

    async def look(self, root: str) -> Gate | None:
        """Who is waited for in a root, and remember it. None: it must be loaded first. Raises StoreUnavailable."""
        gate = await self._ask(root)
        self._see(root, gate)
        return gate

    def _see(self, root: str, gate: Gate | None) -> None:
        if gate is not None and gate.waits:
            self._seen[root] = gate
        else:
            self._seen.pop(root, None)

    async def _ask(self, root: str) -> Gate | None:
        """The store is told who is open."""
        producers = await self._open.named(self.producer)
        return await self._store.gate(root, secrets.token_hex(8), self._grace_us, producers)

    def is_open(self, root: str) -> bool:
        """Whether a root waited for nobody when it was last asked, or waits no more."""
        gate = self._seen.get(root)
        return gate is None or self._store.now_us() >= gate.until_us

    async def wait(self, root: str, until_us: int) -> None:
        """Wait for what a root lacks after a loss. Raises Recovering if it takes too long."""
        opening = self.opening.get(root)
        if opening is None:
            opening = self.opening[root] = self._spawn(self._open_up(root))
        await asyncio.wait({opening}, timeout=max(0, until_us - self._store.now_us()) / 1e6)
        if self._store.now_us() >= until_us:
            gate = self._seen.get(root)
            names = [WHOEVER if name == UNKNOWN else name for name in gate.waits] if gate else []
            waits = ", ".join(names) or "its accounts"
            raise Recovering(f"{root} recovers from a loss and waits for {waits}")

    async def _open_up(self, root: str) -> None:
        """Send our part, and tell the others until they have sent theirs or the grace has passed."""
        announced_s: float | None = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._recover(root)
                if self.is_open(root):
                    break
                if announced_s is None:
                    self._log.warning("root_waits_for_producers", root=root, producers=self._seen[root].waits)
                if announced_s is None or loop.time() - announced_s >= ANNOUNCE_AGAIN_S:
                    await self._store.announce(root, 1 + self._grace_us // 1_000_000)
                    announced_s = loop.time()
                await asyncio.sleep(GATE_POLL_S)
            if announced_s is not None:
                await self._store.unannounce(root)
        except StoreUnavailable as error:
            self._log.warning("root_recovery_waits", root=root, why=str(error))
        finally:
            del self.opening[root]

    async def tell_ready(self, root: str, gate: Gate) -> None:
        """The root has all that we had, if it waits for us. Raises StoreUnavailable."""
        if self.producer not in gate.waits:
            return
        waits = tuple([producer for producer in gate.waits if producer != self.producer])
        self._see(root, Gate(gate.run, gate.until_us, waits))
        if await self._store.ready(root, gate.run, self.producer) is Ready.LATE:
            self._late.inc()
            self._log.warning("root_recovered_late", root=root, producer=self.producer)

    async def heed_announcements(self) -> None:
        """Send again to roots that wait for us, though nobody here asks for them."""
        while True:
            try:
                for root in await self._store.announced():
                    gate = await self._ask(root)
                    if gate is not None and self.producer in gate.waits:
                        self._recover(root)
                await asyncio.sleep(ANNOUNCED_POLL_S)
            except StoreUnavailable:
                await asyncio.sleep(1.0)
