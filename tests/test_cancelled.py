"""Promise 4: a request whose task is cancelled is charged once, at whichever await it was waiting.

Whole requests go through the data plane to the simulator, on a real Redis and SQLite. The n-th suspension of one
is where its task is cancelled, for every n until one comes through; then the same for the way into the database.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.fakes import DIGEST_KEY, MemoryDirectory, MemoryObjects, Records, principal_of
from tests.governance.parts import Clock, Parts, budget, one_key
from tests.servers.redis import RedisServer, own_redis
from tests.test_replay import true_cost_nano
from tollkeeper.domain.admission import LimitKind
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy
from tollkeeper.gateway.server import DataPlane
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import ProviderSettings, Settings
from tollkeeper.simulator import Simulator
from tollkeeper.simulator.account import ServedRequest

__all__ = ["own_redis"]

SECRET = f"tk_{1:043d}"
POINTS_MAX = 200
"""More suspensions than there are: reaching it fails the test."""


class Suspensions:
    """Awaits a coroutine, and has its task cancelled when it is suspended for the n-th time."""

    def __init__(self, work: Coroutine[Any, Any, Any], cancel_at: int) -> None:
        self._work, self._cancel_at = work, cancel_at
        self.seen = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        wrapped = self._work.__await__()
        sent: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = wrapped.send(sent) if error is None else wrapped.throw(error)
            except StopIteration as done:
                return done.value
            self.seen += 1
            if self.seen == self._cancel_at:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            error = None
            try:
                sent = yield waited
            except BaseException as thrown:
                error = thrown


async def cancelled_at(point: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run it and cancel it at that suspension; False if it ended before."""
    steps = Suspensions(work, point)

    async def run() -> None:
        await steps

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return steps.seen >= point


class Stand:
    """A data plane on the ledger of real parts, asked without a server in between."""

    def __init__(self, parts: Parts, simulator: Simulator) -> None:
        provider = ProviderSettings(base_url=simulator.base_url, dialect="openai", prices="openai")
        directory = MemoryDirectory()
        policy = Policy(budgets=(Budget(10**12, Period.MONTH),))
        self.who = directory.put(SECRET, principal_of("cancelled", policy))
        self.plane = DataPlane(
            settings=Settings(providers={"sim": provider}),
            provider_keys={"sim": None},
            digest_key=DIGEST_KEY,
            directory=directory,
            governor=parts.ledger,
            records=Records(),
            metrics=Metrics(),
            now_us=parts.clock,
            objects=MemoryObjects(),
            corrector=parts.ledger,
        )

    async def ask(self, stream: bool) -> None:
        """One whole request as ASGI; each receive and send waits, as a server's may."""
        body = msgspec.json.encode(
            {
                "model": "gpt-4o-mini",
                "max_tokens": 6,
                "stream": stream,
                "user": "cancelled",
                "messages": [{"role": "user", "content": "[[sim input=20 output=5]]".ljust(60)}],
            }
        )
        heads = [(b"authorization", b"Bearer " + SECRET.encode()), (b"content-length", b"%d" % len(body))]
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            await asyncio.sleep(0)
            if messages:
                return messages.pop()
            return await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": heads}
        await self.plane(scope, receive, send)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    made = Simulator(chunk_delay_s=0.001)
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_charged_once_wherever_it_is_cancelled(
    tmp_path: Path, own_redis: RedisServer, simulator: Simulator, stream: bool
) -> None:
    """The database has what the provider served, or a presumed charge, listed and not below it; nothing is held."""
    parts = await Parts.start(tmp_path, own_redis.url, Clock(time.time_ns() // 1000))
    parts.ledger._timeout_us = 300_000  # an admission that was cancelled is voided after this
    stand = Stand(parts, simulator)
    await stand.plane.start()
    point = 1
    while await cancelled_at(point, stand.ask(stream)):
        point += 1
        assert point < POINTS_MAX
    await stand.plane.stop()
    assert await parts.ledger.flush(10)
    await parts.sync.sync_once()
    listed = {c.attempt.rpartition(".")[0]: c.charge for c in await parts.database.spend.listed(limit=1000)}
    served = {r.request_id: cost_nano(r) for r in simulator.served.requests if r.usage is not None}
    truth = sum(cost for request, cost in served.items() if request not in listed)
    presumed = sum(charge.cost_nano for charge in listed.values())
    (total,) = set((await parts.spent(stand.who.root)).values())
    assert total == truth + presumed
    assert all(charge.cost_nano >= served.get(request, 0) for request, charge in listed.items())
    assert point > 5 and listed and len(served) > 1
    (state,) = [s for s in await parts.ledger.limits(stand.who) if s.kind is LimitKind.BUDGET]
    assert (state.used, state.held) == (total, 0)
    await parts.stop()


def cost_nano(served: ServedRequest) -> int:
    return true_cost_nano({"usage": msgspec.to_builtins(served.usage), "model": served.model})


async def test_a_sync_is_whole_wherever_it_is_cancelled(tmp_path: Path, own_redis: RedisServer) -> None:
    """Marks and totals go into the database together or not at all, and the next run has the rest."""
    parts = await Parts.start(tmp_path, own_redis.url, Clock(time.time_ns() // 1000))
    who, spent, point = one_key("org_a", budget(10**12, rpm=10**6)), 0, 0
    while point < POINTS_MAX:
        point += 1
        await parts.spend(who, f"r{point}.1", hold=1000, cost=point)
        spent += point
        assert await parts.ledger.flush(5)
        if not await cancelled_at(point, parts.sync.sync_once()):
            break
        snapshot = await parts.database.spend.load("org_a")
        number = snapshot.marks.get(parts.ledger.producer, 0)
        known = [total.cost_nano for total in snapshot.totals.values()]
        assert known in ([], [number * (number + 1) // 2])
    assert 5 < point < POINTS_MAX
    await parts.sync.sync_once()
    assert set((await parts.spent("org_a")).values()) == {spent}
    await parts.stop()
