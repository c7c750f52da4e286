"""While the store is away: the circuit breaker, which roots this instance decides alone, and the way back.

A server counts as away from the first admission that it failed; from then on no request asks it. A probe in the
background writes to it and reads back until that works (half open), then every root that was decided alone is handed
over: what was admitted alone is pushed to the store before anything of that root is admitted there again.
What may be admitted alone is domain/outage.py's; entries and holds are the ledger's.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from tollkeeper.domain.admission import Checks, Demand, Grant, Reply
from tollkeeper.domain.entries import Entry, dispatch_of
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.outage import Decision, Fallback, Fleet, OutageMode, OutageModes
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance.store import Store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

PROBE_S: Final = 0.25
"""Pause between two probes of a server that is away."""
PROBE_TIMEOUT_S: Final = 2.0
SEEN_MAX: Final = 50_000
"""Sets of checks whose last reply is remembered; above it those of the root first seen are forgotten."""
KEPT_MAX: Final = 10_000
"""Roots whose last outage is remembered; above it that of the root first decided alone is forgotten."""
LOGS_PER_PUSH: Final = 64
"""Logs in one call, so that no call keeps Redis busy for long."""
OF_SERVER: Final = frozenset(
    {"OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "NOPERM"}
)
"""Error replies that every root on that server would get."""


class Outage:
    """What the ledger asks when the store fails it.

    `on_back` is told of each root that is to be handed over, again and again until it is.
    """

    def __init__(
        self, *, store: Store, producer: str, modes: OutageModes, metrics: Metrics, on_back: Callable[[str], object]
    ) -> None:
        self.modes = modes
        self.fleet = Fleet()
        self.calm = True
        """Nothing is away and no root is decided alone: `takes` is False for all."""
        self._store, self._producer, self._on_back = store, producer, on_back
        self._away: dict[str, str] = {}  # server → why
        self._alone: dict[str, Fallback] = {}  # root → who decides
        self._kept: dict[str, Fallback] = {}
        self._seen: dict[str, dict[int, tuple[Checks, Reply]]] = {}  # root → id of checks → their last reply
        self._seen_count = 0
        self._pending: dict[str, list[tuple[str, list[LogPush]]]] = {}
        self._pushes = 0
        self._handing_over: dict[str, asyncio.Future[None]] = {}
        self._closed = asyncio.Event()  # set and replaced whenever a server is back
        self._probing = False
        self._prober: asyncio.Task[None] | None = None
        self._since_s: float | None = None
        self._degraded_s = 0.0
        self._log = logger("governance")
        self._declare(metrics)

    def __repr__(self) -> str:
        return f"<Outage {self.state} alone={len(self._alone)} {self.fleet}>"

    def _declare(self, metrics: Metrics) -> None:
        admissions = metrics.counter(
            "tollkeeper_degraded_admissions_total",
            "Decisions taken without the store, by the modes of limits and budgets.",
            *("limits", "budgets", "result"),
        )
        modes = (self.modes.limits, self.modes.budgets)
        self._admitted, self._refused, self._unavailable = (
            admissions.labels(*modes, result) for result in ("admitted", "refused", "unavailable")
        )
        self._pushed = metrics.counter(
            "tollkeeper_degraded_pushes_total", "Calls that told the store what was admitted without it."
        ).labels()
        states = {"closed": 0, "half_open": 1, "open": 2}
        metrics.gauge(
            "tollkeeper_store_breaker", "0: the store is asked, 1: it is probed, 2: away.", lambda: states[self.state]
        )
        metrics.gauge("tollkeeper_degraded_roots", "Roots decided without the store.", lambda: len(self._alone))
        metrics.counters(
            "tollkeeper_degraded_seconds_total", "Time without the store.", (), lambda: [((), self.degraded_s)]
        )
        metrics.gauge("tollkeeper_instances", "Live instances as last counted.", lambda: self.fleet.size)

    # State

    @property
    def state(self) -> str:
        """The breaker's: *closed*, *open*, or *half_open* while a probe is under way."""
        if not self._away:
            return "closed"
        return "half_open" if self._probing else "open"

    @property
    def degraded(self) -> str | None:
        """What is decided without the store and why; None if nothing is."""
        if self._away:
            return self.choice(next(iter(self._away.values())))
        if self._alone:
            return self.choice(f"{len(self._alone)} organisations are on their way back to it")
        return None

    def choice(self, why: str) -> str:
        """What becomes of each concern without the store, and why it is so now."""
        return f"limits {self.modes.limits}, budgets {self.modes.budgets}: {why}"

    @property
    def shuts(self) -> bool:
        """Whether a concern is closed without the store."""
        return OutageMode.CLOSED in (self.modes.limits, self.modes.budgets)

    @property
    def degraded_s(self) -> float:
        """Seconds since the start in which anything was decided without the store."""
        return self._degraded_s + (0.0 if self._since_s is None else _now_s() - self._since_s)

    def _note_degraded(self) -> None:
        self.calm = not (self._away or self._alone)
        if not self.calm:
            self._since_s = _now_s() if self._since_s is None else self._since_s
        elif self._since_s is not None:
            self._degraded_s, self._since_s = self.degraded_s, None

    def count(self, live: Iterable[str]) -> None:
        """The live instances, by the producers' heartbeats: this one's share follows from it."""
        ids = sorted({*live, self._producer})
        fleet = Fleet(len(ids), ids.index(self._producer))
        if fleet != self.fleet:
            self.fleet = fleet
            for fallback in self._alone.values():
                fallback.recount(fleet)

    # The breaker

    def failed(self, root: str, error: StoreUnavailable) -> None:
        """An admission failed: unless that is this root's own trouble, its server is away from now on."""
        code = getattr(error, "code", None)
        server = self._store.server(root)
        if server in self._away or (code is not None and code not in OF_SERVER):
            return
        self._away[server] = str(error)
        self._note_degraded()
        self._log.warning("store_away", server=server, why=str(error), then=self.degraded)
        self._watch()

    def is_away(self, root: str) -> bool:
        """Whether the breaker is open for this root's server."""
        return bool(self._away) and self._store.server(root) in self._away

    async def back(self, root: str) -> None:
        """Wait while the root's server is away."""
        while self.is_away(root):
            await self._closed.wait()

    def _watch(self) -> None:
        if self._prober is None:
            self._prober = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        """Probe what is away and bring back what is not, until nothing is decided alone. A root may also come back
        because another server keeps it now."""
        while self._away or self._alone:
            await asyncio.sleep(PROBE_S)
            for server in tuple(self._away):
                self._probing = True
                try:
                    async with asyncio.timeout(PROBE_TIMEOUT_S):
                        await self._store.probe(server)
                except TimeoutError:
                    self._away[server] = f"no answer within {PROBE_TIMEOUT_S:g} s"
                except StoreUnavailable as error:
                    self._away[server] = str(error)
                else:
                    self._close(server)
                finally:
                    self._probing = False
            for root in [root for root in self._alone if not self.is_away(root)]:
                self._on_back(root)
        self._prober = None

    def _close(self, server: str) -> None:
        del self._away[server]
        self._log.info("store_back", server=server, roots=len(self._alone), degraded_s=round(self.degraded_s, 1))
        self._note_degraded()
        self._closed.set()
        self._closed = asyncio.Event()

    async def stop(self) -> None:
        """Stop probing."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    # Deciding alone

    def saw(self, checks: Checks, reply: Reply) -> None:
        """Remember the last reply of the store. On the path of every request: a reference, nothing more."""
        seen = self._seen.get(checks.root)
        if seen is None:
            seen = self._seen[checks.root] = {}
        key = id(checks)
        if key not in seen:
            self._seen_count += 1
            if self._seen_count > SEEN_MAX:
                self._seen_count -= len(self._seen.pop(next(iter(self._seen))))
                seen = self._seen.setdefault(checks.root, seen)
        seen[key] = (checks, reply)

    def takes(self, root: str) -> bool:
        """Whether requests of this root are decided here and now, without the store."""
        if root in self._alone:
            return True
        if self.is_away(root):
            self.begin(root)
            return True
        return False

    def begin(self, root: str) -> None:
        """Decide this root alone from now on, until it is handed over."""
        if root in self._alone:
            return
        fallback = self._kept.get(root)
        if fallback is None:
            if len(self._kept) >= KEPT_MAX:
                self._forget_one()
            fallback = self._kept[root] = Fallback()
        self._alone[root] = fallback
        fallback.begin(self._store.now_us(), self._seen.get(root, {}).values(), self.fleet)
        self._note_degraded()
        self._watch()

    def _forget_one(self) -> None:
        root = next((root for root in self._kept if root not in self._alone and root not in self._pending), None)
        if root is not None:
            del self._kept[root]

    def handing_over(self, root: str) -> "asyncio.Future[None] | None":
        """Done as soon as the root's way back has succeeded or failed; None if it is not on its way."""
        return self._handing_over.get(root)

    def admit(self, checks: Checks, demand: Demand) -> Decision:
        """Decide over this instance's share. Only while `takes`."""
        decision = self._alone[checks.root].admit(self._store.now_us(), checks, demand, self.modes)
        if decision.closed is not None:
            self._unavailable.inc()
        elif decision.reply.refusal is not None:
            self._refused.inc()
        else:
            self._admitted.inc()
        return decision

    def rename(self, producer: str) -> None:
        """This process goes on as another producer."""
        self._producer = producer

    def ended(self, root: str, entry: Entry) -> None:
        """An attempt has ended; those admitted alone give back what they held."""
        fallback = self._kept.get(root)
        if fallback is not None:
            fallback.ended(self._store.now_us(), self._producer, entry)

    # The way back

    async def hand_over(
        self, root: str, live: Callable[[str], Iterable[Grant]], last_number: Callable[[str], int]
    ) -> bool:
        """Tell the store what was admitted alone, and what it may have lost of the windows; then ask it again.

        The ledger calls this when the store has all entries and holds of the root; nothing is settled meanwhile, and
        the root's requests wait for it. `live` gives the root's attempts in flight, `last_number` the last
        number given by then. Raises StoreUnavailable; then the root is decided alone as before, and also, without an
        error, while the breaker is open. False: the store has lost it meanwhile, or knows us by another name.
        """
        if self.is_away(root):
            return True
        fallback = self._kept.get(root) or Fallback()
        fallback.learn(self._seen.get(root, {}).values())
        alone = root in self._alone
        if alone:
            self._handing_over[root] = asyncio.get_running_loop().create_future()
        try:
            told = -1
            while told != fallback.admitted:  # again only if a request has waited too long, and was decided alone
                told = fallback.admitted
                await self._push(root, fallback)
                if alone and not await self._reassert(root, last_number(root), tuple(live(root))):
                    return False
            if alone:
                del self._alone[root]
            return True
        except StoreUnavailable as error:
            self.failed(root, error)
            raise
        finally:
            self._note_degraded()
            if alone:
                self._handing_over.pop(root).set_result(None)

    async def _push(self, root: str, fallback: Fallback) -> None:
        """What was taken before and not confirmed goes first, unchanged: the store knows its id if it had it."""
        pending = self._pending.setdefault(root, [])
        pushes = fallback.pushes()
        for at in range(0, len(pushes), LOGS_PER_PUSH):
            self._pushes += 1
            pending.append((f"{self._producer}:{self._pushes}", pushes[at : at + LOGS_PER_PUSH]))
        while pending:
            await self._store.push(root, *pending[0])
            del pending[0]
            self._pushed.inc()
        del self._pending[root]

    async def _reassert(self, root: str, number: int, live: tuple[Grant, ...]) -> bool:
        """Holds and slots of what is in flight, those admitted alone among them; whoever has them keeps them."""
        slots: dict[str, list[str]] = {}
        for grant in live:
            for slot in grant.checks.slots:
                slots.setdefault(slot.name, []).append(grant.demand.attempt)
        holds = [self._store.reassert(root, self._producer, number, [dispatch_of(grant)]) for grant in live]
        told = await asyncio.gather(self._store.claim(root, slots), *holds, return_exceptions=True)
        for outcome in told:  # all have come to their end
            if isinstance(outcome, BaseException):
                raise outcome
        return all(outcome is not False for outcome in told)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
