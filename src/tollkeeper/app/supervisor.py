"""`serve --workers N`: one process that owns the socket, keeps N gateways running on it, and answers for all of them.

The socket is bound once and inherited, so connections that arrive while workers come and go wait in it and are lost
to nobody. Workers are whole gateways, started with this command's own arguments, each with a producer, an outbox and
a log spool of its own in the one data directory; a replacement closes what a dead one left there. Which of them
should run is `roster.py`'s decision. Serves no request itself and imports nothing that does.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from tollkeeper.app.channel import ALIVE, METRICS, READY, SYNC, Channel, Gone
from tollkeeper.app.roster import End, Roster, Start, State
from tollkeeper.domain.errors import Unavailable
from tollkeeper.observability.exposition import labelled, merged
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

METRICS_TIMEOUT_S: Final = 1.0
"""A worker that has not told its metrics by then is left out of this scrape."""
SYNC_TIMEOUT_S: Final = 8.0
PULSE_S: Final = 10.0
"""How often workers are asked whether they live."""
PULSES_MAX: Final = 6
"""A worker that did not answer so often in a row hangs, and is killed: its clients learn it and ask others."""
STOP_MARGIN_S: Final = 30.0
"""A worker that leaves may take this beyond the waits that its settings allow; then it is killed."""
SELF: Final = "supervisor"
"""The label `worker` of this process's own metrics."""


class Worker:
    """One worker process and the channel to it."""

    def __init__(self, place: int, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.place, self.process, self.channel = place, process, channel

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    """Runs `command` + `--as-worker …` as often as wanted until SIGINT or SIGTERM; SIGHUP replaces all, one by one.

    `listening` are the sockets that they share: the gateway's, and the control plane's if it has one of its own.
    `drain_s` is how long a worker that was told to go may take; `on_serving` is called when the first one serves.
    """

    def __init__(
        self,
        *,
        wanted: int,
        listening: Sequence[socket.socket],
        command: Sequence[str],
        drain_s: float,
        on_serving: Callable[[], None] = lambda: None,
        on_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        self.roster = Roster(wanted)
        self.metrics = Metrics()
        self._listening, self._command = listening, command
        self._drain_s, self._on_serving, self._on_stopping = drain_s, on_serving, on_stopping
        self._workers: dict[int, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._serving = self._renewing = False
        self._signals = 0
        self._log = logger("supervisor")
        self._declare()

    def _declare(self) -> None:
        metrics, roster = self.metrics, self.roster
        metrics.gauge("tollkeeper_workers_wanted", "Gateway processes of `--workers`.", lambda: roster.wanted)
        metrics.gauges(
            "tollkeeper_workers",
            "Gateway processes by state: starting, serving, leaving.",
            ("state",),
            lambda: [((state.value,), count) for state, count in roster.counts().items()],
        )
        ends = metrics.counter(
            "tollkeeper_worker_ends_total",
            "Ends of gateway processes: left (as told), died, not_started.",
            "how",
        )
        self._ends = {end: ends.labels(end.value) for end in End}
        self._silent = metrics.counter(
            "tollkeeper_worker_silent_total", "Times a gateway process did not tell its metrics in time."
        ).labels()

    async def run(self) -> bool:
        """Until all have ended. False: the first did not start, or one had to be killed at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._renew)
        pulse = asyncio.create_task(self._feel_pulses())
        try:
            while not self.roster.done:
                self._act(loop.time())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.roster.wait_s(loop.time())):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            pulse.cancel()
            for worker in self._workers.values():
                worker.send(signal.SIGKILL)
            await asyncio.gather(pulse, *self._tasks, return_exceptions=True)
        return not self.roster.failed

    # Signals

    def _stop(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._on_stopping()
            self.roster.close()
            self._wake.set()
            return
        for worker in self._workers.values():
            worker.send(signal.SIGTERM)  # the second one of these cuts requests off

    def _renew(self) -> None:
        self._log.info("renewal_begins", workers=self.roster.wanted)
        self._renewing = True
        self.roster.renew()
        self._wake.set()

    # Processes

    def _act(self, now_s: float) -> None:
        for action in self.roster.due(now_s):
            if isinstance(action, Start):
                self._keep(self._live(action.place))
            else:
                worker = self._workers.get(action.place)
                if worker is not None:
                    self._keep(self._see_off(worker))
        if self._renewing and self.roster.renewed:
            self._renewing = False
            self._log.info("renewal_ended", replaced=not self.roster.gave_up)

    def _keep(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, place: int) -> None:
        """One worker, from its start to its end."""
        loop = asyncio.get_running_loop()
        status: int | None = None
        try:
            worker = await self._spawn(place)
            if self.roster.state(place) is State.LEAVING:  # it was told to go before it was there
                self._keep(self._see_off(worker))
            await worker.channel.run()
            # a worker that closes its end is about to end, or cannot be told anything any more
            status = await self._ended(worker)
        except OSError as error:
            self._log.error("worker_not_started", worker=place, why=str(error))
        finally:
            self._workers.pop(place, None)
            end = self.roster.ended(place, loop.time())
            self._ends[end].inc()
            if end is not End.LEFT or status:
                self._log.error("worker_ended", worker=place, how=end.value, status=status)
            self._wake.set()

    async def _spawn(self, place: int) -> Worker:
        ours, theirs = socket.socketpair()
        listeners = [each.fileno() for each in self._listening]
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--as-worker",
                    f"{place}:{','.join(map(str, listeners))}:{theirs.fileno()}",
                    pass_fds=(*listeners, theirs.fileno()),
                    process_group=0,  # Ctrl-C is for the supervisor alone, which tells them
                )
            except BaseException:
                ours.close()
                raise
        channel = await Channel.over(ours)
        worker = self._workers[place] = Worker(place, process, channel)

        async def ready() -> bytes:
            self.roster.serves(place, asyncio.get_running_loop().time())
            self._log.info("worker_serves", worker=place, process=process.pid)
            if not self._serving:
                self._serving = True
                self._on_serving()
            self._wake.set()
            return b""

        channel.topics.update({READY: ready, METRICS: self.exposition, SYNC: lambda: self._sync_others(place)})
        return worker

    async def _see_off(self, worker: Worker) -> None:
        """Tell it to go, and kill it if it does not."""
        worker.send(signal.SIGTERM)
        await self._ended(worker)

    async def _ended(self, worker: Worker) -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s + STOP_MARGIN_S):
                return await worker.process.wait()
        self._log.error("worker_killed", worker=worker.place, why="it did not end in time")
        worker.send(signal.SIGKILL)
        return await worker.process.wait()

    async def _feel_pulses(self) -> None:
        missed: dict[int, int] = {}
        while True:
            await asyncio.sleep(PULSE_S)
            serving = [w for w in self._workers.values() if self.roster.state(w.place) is State.SERVING]
            alive = await asyncio.gather(*(w.channel.ask(ALIVE, PULSE_S) for w in serving), return_exceptions=True)
            missed = {
                worker.process.pid: missed.get(worker.process.pid, 0) + 1
                for worker, answer in zip(serving, alive, strict=True)
                if isinstance(answer, BaseException)
            }
            for worker in serving:
                if missed.get(worker.process.pid, 0) >= PULSES_MAX:
                    self._log.error("worker_hangs", worker=worker.place, then="it is killed and replaced")
                    worker.send(signal.SIGKILL)

    # What workers ask

    async def exposition(self) -> bytes:
        """The metrics of all workers, each labelled with its place, and of this process."""
        asked = tuple(self._workers.values())
        told = await asyncio.gather(
            *(worker.channel.ask(METRICS, METRICS_TIMEOUT_S) for worker in asked), return_exceptions=True
        )
        pages = []
        for worker, page in zip(asked, told, strict=True):
            if isinstance(page, bytes):
                pages.append(labelled(page, "worker", str(worker.place)))
            elif self.roster.state(worker.place) is State.SERVING:
                self._silent.inc()
        return merged([labelled(self.metrics.exposition(), "worker", SELF), *pages])

    async def _sync_others(self, place: int) -> bytes:
        others = [worker.channel for worker in self._workers.values() if worker.place != place]
        asked = (channel.ask(SYNC, SYNC_TIMEOUT_S) for channel in others)
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            # one that has left wrote its spend itself; what one that died knew is in its outbox, for its successor
            if isinstance(outcome, Unavailable) and not isinstance(outcome, Gone):
                raise outcome
        return b""


def own_command() -> list[str]:
    """What started this process: interpreter, its options, program and arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


def stop_limit_s(drain_timeout_s: float, log_timeout_s: float) -> float:
    """The waits that a gateway's stop may add up: for requests, for settlements, for logs."""
    return 2 * drain_timeout_s + log_timeout_s


def inherited(number: int) -> socket.socket:
    """A socket of the parent by its descriptor; not inherited any further."""
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)
