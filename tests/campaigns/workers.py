"""Processes that ask one limit as fast as they can, and write down each answer with Redis' time of it.

A process plays one `Part`: 64 tasks on one key, through the public limiter or the gateway's admission, with a wall
clock of its own, and on demand a proxy before Redis that loses replies. Nothing hangs on how fast the machine is: all
begin when all are connected, and go on until they are told to stop and what was to happen to them has happened.
"""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from unittest import mock

from tests.servers.proxy import Proxy
from tollkeeper import RedisClient, SlidingWindowLimiter
from tollkeeper.domain.admission import Demand, Status, checks_for
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.policy import Policy, Principal, Scope, ScopeKind, Unit, Window
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.observability.logging import configure
from tollkeeper.settings import StoreSettings

PROCESSES: Final = 8
TASKS: Final = 64
ROOT: Final = "org_load"
LOSSES: Final = 2
"""Of each process with a proxy before Redis: so often an admission's reply is lost, and its connection cut."""
LOSS_S: Final = 0.05
"""How long replies go on being lost before the connection is cut."""
ADMITTED: Final = re.compile(rb"\*\d+\r\n:1\r\n")
"""How the reply of an admission begins, the limiter's and the gateway's."""
ERROR_PAUSE_S: Final = 0.01
PATIENCE_S: Final = 60.0
"""With a process that should have said something."""
POLL_S: Final = 0.05


class Part(NamedTuple):
    """What one process does, for `seconds` at least."""

    number: int
    url: str
    how: str
    """*limiter* or *admission*."""
    key: str
    limit: int
    window_us: int
    seconds: float
    seed: int
    skew_s: float = 0.0
    lossy: str = ""
    """The socket of the Redis whose replies get lost."""
    deadline_s: float = 10.0
    """Of an ask, and how long Redis may take to answer before it counts as away: long, since a machine without time
    to spare is no fault of anybody's."""
    pause_s: float = 0.0
    tells: bool = False
    """Whether it tells at once of each ask that was sent and given up."""


class Asked(NamedTuple):
    """One ask as its caller saw it. Admitted between `from_us` and `until_us` in Redis' time; they are equal unless
    its connection was lost on the way. `begun_s`: monotonic."""

    admitted: bool
    from_us: int
    until_us: int
    weight: int
    begun_s: float
    peer: int
    """Port of the server that answered; 0 on a socket."""


class Failed(NamedTuple):
    """An ask that ended with StoreUnavailable. If it was `sent` it may have run, after `from_us` in Redis' time."""

    request: str
    why: str
    begun_s: float
    sent: bool
    from_us: int
    weight: int


class Report(NamedTuple):
    """What a process saw."""

    asked: list[Asked]
    failed: list[Failed]
    reconnects: int
    losses: int
    """How often the reply of an admission was lost for certain."""


Heard = TypeVar("Heard")
Ask = Callable[[str, int], Awaitable[tuple[bool, int]]]
"""Request id and weight → whether it is admitted, and Redis' time of the answer."""


class Witness:
    """A client that remembers the time in the last reply of each task."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self.seen: dict[object, int] = {}

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any], **how: Any) -> Any:
        reply = await self._client.run(script, keys, args, **how)
        self.seen[asyncio.current_task()] = reply[1]
        return reply


def principal(limit: int, window_us: int) -> Principal:
    """A key whose tokens are limited; requests never refuse."""
    windows = (Window(Unit.TOKENS, limit, window_us), Window(Unit.REQUESTS, 10**9, window_us))
    return Principal("key_load", "load", ROOT, (Scope(ScopeKind.KEY, "key_load", Policy(windows=windows)),))


async def _asker(part: Part, url: str, stack: AsyncExitStack) -> tuple[Ask, RedisClient]:
    if part.how == "limiter":
        client = RedisClient(url=url, read_timeout_s=part.deadline_s, dial_timeout_s=part.deadline_s)
        stack.push_async_callback(client.stop)
        await _started(client.start, client)
        witness = Witness(client)
        limiter = SlidingWindowLimiter(witness, window=part.window_us / 1e6, deadline=part.deadline_s)
        await _repeated(lambda: limiter.get_current_usage(part.key))  # Redis' time is known: no ask is for the state

        async def ask(request: str, weight: int) -> tuple[bool, int]:
            result = await limiter.allow_n(part.key, part.limit, weight, request_id=request)
            return result.allowed, witness.seen[asyncio.current_task()]

        return ask, client
    patience_s = part.deadline_s
    store = RedisStore(
        StoreSettings(
            redis_url=url, admission_timeout_s=patience_s, read_timeout_s=patience_s, dial_timeout_s=patience_s
        )
    )
    stack.push_async_callback(store.stop)
    await _started(store.start, store.client)
    checks = checks_for(principal(part.limit, part.window_us), store.now_us())

    async def admit(request: str, weight: int) -> tuple[bool, int]:
        not_after = store.now_us() + int(part.deadline_s * 1e6)
        reply = await store.admit(checks, Demand(request, f"p_{part.number}", weight, 0, not_after))
        assert reply.status in (Status.ADMITTED, Status.REFUSED), reply
        return reply.status is Status.ADMITTED, reply.now_us

    return admit, store.client


async def _started(start: Callable[[], Awaitable[None]], client: RedisClient) -> None:
    """The faults may have begun before a slow process connects; it goes on trying by itself."""
    with suppress(StoreUnavailable):
        await start()
    while client.state != "up":
        await asyncio.sleep(ERROR_PAUSE_S)


async def _repeated(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        with suppress(StoreUnavailable):
            await call()
            return
        await asyncio.sleep(ERROR_PAUSE_S)


async def _work(part: Part, there: Connection) -> Report:
    said: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().add_reader(there.fileno(), lambda: said.put_nowait(there.recv()))
    asked: list[Asked] = []
    failed: list[Failed] = []
    latest_us = losses_left = 0

    async def task(number: int, ask: Ask, client: RedisClient, stop: asyncio.Future[str]) -> None:
        """Until the stop, but until it was answered once and what was to be lost is lost."""
        nonlocal latest_us
        rng = random.Random(f"{part.seed}/{part.number}/{number}")
        answered = 0
        for turn in count():
            if stop.done() and answered and not losses_left:
                return
            begun_s = time.monotonic()
            request, weight = f"r{part.seed}.{part.number}.{number}.{turn}", rng.choice((1, 1, 1, 2, 5))
            lower_us, losses = latest_us, client.get_stats().reconnects
            try:
                admitted, now_us = await ask(request, weight)
            except StoreUnavailable as error:
                failed.append(Failed(request, str(error), begun_s, error.sent, lower_us, weight))
                if part.tells and error.sent:
                    there.send(begun_s)
                await asyncio.sleep(ERROR_PAUSE_S)
                continue
            answered += 1
            latest_us = max(latest_us, now_us)
            sure = client.get_stats().reconnects == losses
            peer = client.nodes[0].lead.peer if len(client.nodes) == 1 else None
            asked.append(
                Asked(admitted, now_us if sure else lower_us, now_us, weight, begun_s, peer[1] if peer else 0)
            )
            if part.pause_s:
                await asyncio.sleep(part.pause_s * rng.random())

    async def lose(proxy: Proxy) -> None:
        """From times of its own on the next admission's reply is lost and what follows it, then the connection is
        cut."""
        nonlocal losses_left
        rng, start_s = random.Random(f"{part.seed}/{part.number}/loss"), time.monotonic()
        while losses_left:
            at_s = start_s + part.seconds * (LOSSES - losses_left + rng.random()) / (LOSSES + 0.5)
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            await proxy.swallow_from(ADMITTED)
            await asyncio.sleep(LOSS_S)
            proxy.swallowing = False
            proxy.cut()
            losses_left -= 1

    async with AsyncExitStack() as stack:
        proxies: list[Proxy] = []
        if part.lossy:
            proxies.append(await stack.enter_async_context(Proxy(Path(part.lossy))))
            losses_left = LOSSES
        ask, client = await _asker(part, proxies[0].url if proxies else part.url, stack)
        there.send("connected")
        await said.get()
        stop = asyncio.ensure_future(said.get())
        await asyncio.gather(*map(lose, proxies), *(task(n, ask, client, stop) for n in range(TASKS)))
        await stop
        return Report(asked, failed, client.get_stats().reconnects, len(proxies) * LOSSES)


def play(part: Part, there: Connection) -> Report:
    """In a process of the pool. Only the wall clock is skewed: monotonic time is no one's to set."""
    configure("error", "json")
    wall, wall_ns = time.time, time.time_ns
    with (
        mock.patch("time.time", lambda: wall() + part.skew_s),
        mock.patch("time.time_ns", lambda: wall_ns() + int(part.skew_s * 1e9)),
    ):
        return asyncio.run(_work(part, there))


class Workers:
    """Processes that are forked with everything imported, and play one part after the other."""

    def __init__(self) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.campaigns.workers"])
        self._all = []
        for _ in range(PROCESSES):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._all.append((process, here))
        for _, here in self._all:
            here.recv()

    def begin(self, chosen: Sequence[Part]) -> float:
        """All parts at the same time, as soon as all are connected: when (monotonic)."""
        for (_, here), part in zip(self._all, chosen, strict=True):
            here.send(part)
        for number in range(PROCESSES):
            self._hear(number, str)
        for _, here in self._all:
            here.send("go")
        return time.monotonic()

    def given_up(self, since_s: float, least: int) -> None:
        """Wait until so many asks that were begun since then were sent and given up, by parts that tell."""
        deadline_s = time.monotonic() + PATIENCE_S
        while least > 0:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{least} more asks should have been given up")
            for number, (_, here) in enumerate(self._all):
                while here.poll(POLL_S / PROCESSES):
                    least -= self._hear(number, float) > since_s

    def end(self) -> list[Report]:
        """They stop, and say what they saw. Raises RuntimeError for one that failed or does not stop."""
        for _, here in self._all:
            here.send("stop")
        return [self._hear(number, Report) for number in range(PROCESSES)]

    def _hear(self, number: int, kind: type[Heard]) -> Heard:
        """What a process says next; of asks that were given up only who wants to know."""
        here = self._all[number][1]
        while here.poll(PATIENCE_S):
            heard = here.recv()
            if isinstance(heard, Exception):
                raise RuntimeError(f"process {number} failed") from heard
            if isinstance(heard, kind):
                return heard
        raise RuntimeError(f"process {number} does not say its {kind.__name__}")

    def stop(self) -> None:
        """At once."""
        for process, here in self._all:
            process.kill()
            process.join()
            here.close()


def _serve(there: Connection) -> None:
    there.send("ready")
    while True:
        part = there.recv()
        if not isinstance(part, Part):
            continue  # to one that has failed meanwhile
        try:
            there.send(play(part, there))
        except Exception as error:
            there.send(RuntimeError(repr(error)))


@contextmanager
def pool() -> Iterator[Workers]:
    """Workers for the length of a block."""
    workers = Workers()
    try:
        yield workers
    finally:
        workers.stop()


def parts(seconds: float, seed: int, **common: Any) -> list[Part]:
    """One for each process."""
    return [Part(number=n, seconds=seconds, seed=seed, **common) for n in range(PROCESSES)]
