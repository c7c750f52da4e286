"""Bodies and labels on their way into log records: redacted in a thread of their own, before a record is numbered.

Stands between the data plane and the pipeline. A record without bodies passes at once. One with bodies waits until
they have been put together and redacted, at most `REDACTION_S`; whatever goes wrong, the record goes on without them
and says why, and a counter tells. Nothing here ever blocks a request: the queue is bounded, and a redactor that hangs
costs a thread, of which there may be a few, and after them the bodies.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from tollkeeper.domain.bodies import CapturedBodies
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs.redact import Redactor
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

WAITING_MAX: Final = 1000
"""Records whose bodies wait for their turn."""
REDACTION_S: Final = 5.0
"""From the end of a request until its record is complete, or goes on without bodies."""
HUNG_MAX: Final = 4
"""Threads that may hang in a redactor; after that no bodies are logged until the next start."""
ENCODED_BYTES_MAX: Final = 440 * 2**10
"""Of one body as JSON text in the record: both of them, and all the rest, stay below a record's bound."""

OVERFLOW: Final = "too many bodies waited"
TIMED_OUT: Final = "redaction took too long"
FAILED: Final = "redaction failed"
STOPPED: Final = "the gateway stopped"
HUNG: Final = "redaction hangs"
REASONS: Final = {OVERFLOW: "overflow", TIMED_OUT: "timeout", FAILED: "failed", STOPPED: "stopped", HUNG: "hung"}
"""As the record says it → as the metric labels it."""

_log = logger("logs")


class _Texts(msgspec.Struct):
    """What the thread makes of a record's texts. `failed`: some field is missing for that."""

    user: str | None = None
    metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    request_body: str | None = None
    response_body: str | None = None
    bodies_cut: bool = False
    failed: str | None = None


class _Job:
    __slots__ = ("bodies", "finished", "record", "started", "timer")

    def __init__(self, record: RequestRecord, bodies: CapturedBodies | None) -> None:
        self.record, self.bodies = record, bodies
        self.started = self.finished = False
        self.timer: asyncio.TimerHandle | None = None


class BodyLog:
    """Implements `ports.RecordSink`; `put` is where finished records go. For one event loop; `stop` comes last."""

    def __init__(
        self,
        put: Callable[[RequestRecord], object],
        redactor: Redactor,
        metrics: Metrics,
        expect: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._put, self._redactor, self._expect = put, redactor, expect
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._jobs: dict[_Job, None] = {}
        self._worker: threading.Thread | None = None
        self._hung = 0
        self._idle = asyncio.Event()
        omitted = metrics.counter(
            "tollkeeper_log_bodies_omitted_total", "Log records that should have bodies and do not.", "reason"
        )
        self._omitted = {reason: omitted.labels(label) for reason, label in REASONS.items()}
        metrics.gauge("tollkeeper_log_bodies_waiting", "Log records waiting for redaction.", lambda: len(self._jobs))

    def put(self, record: RequestRecord, bodies: CapturedBodies | None = None) -> None:
        """Pass a record on, now or when its texts are redacted. Never blocks, never fails."""
        labelled = record.user is not None or record.metadata or record.tags
        if bodies is None and not (labelled and self._redactor.callable is not None):
            if labelled:
                self._redact_labels(record)
            self._put(record)
        elif self._hung >= HUNG_MAX:
            self._finish(_Job(record, bodies), HUNG)
        elif len(self._jobs) >= WAITING_MAX:
            self._finish(_Job(record, bodies), OVERFLOW)
        else:
            self._enqueue(_Job(record, bodies))

    def expect(self, count: int) -> None:
        """See `ports.RecordSink`. So are those that the thread still has."""
        self._expect(count + len(self._jobs))

    def _redact_labels(self, record: RequestRecord) -> None:
        """Short texts, by pattern alone: quick enough for the event loop, and mostly known from before."""
        label = self._redactor.label
        if record.user is not None:
            record.user = label(record.user)
        if record.metadata:
            record.metadata = {label(name): label(value) for name, value in record.metadata.items()}
        if record.tags:
            record.tags = tuple(map(label, record.tags))

    def _enqueue(self, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = self._start_worker(loop)
        self._jobs[job] = None
        job.timer = loop.call_later(REDACTION_S, self._time_out, job)
        self._queue.put(job)

    def _start_worker(self, loop: asyncio.AbstractEventLoop) -> threading.Thread:
        # each thread has its own queue: one that hung must not take jobs of its successor when it comes back
        thread = threading.Thread(
            target=_work, args=(self._queue, self._redactor, loop, self._done), daemon=True, name="log-bodies"
        )
        thread.start()
        return thread

    def _time_out(self, job: _Job) -> None:
        self._finish(job, TIMED_OUT)
        if job.started:
            self._replace_worker()

    def _replace_worker(self) -> None:
        """The thread hangs in the job that timed out: the others go to a new one, if there may be one."""
        self._hung += 1
        _log.error("log_redactor_hangs", threads=self._hung, threads_max=HUNG_MAX, waiting=len(self._jobs))
        self._queue.put(None)
        self._queue, self._worker = queue.SimpleQueue(), None
        waiting = tuple(self._jobs)
        if self._hung >= HUNG_MAX:
            for job in waiting:
                self._finish(job, HUNG)
            return
        self._worker = self._start_worker(asyncio.get_running_loop())
        for job in waiting:
            self._queue.put(job)

    def _done(self, job: _Job, texts: _Texts) -> None:
        """In the event loop, called by the thread: the record goes on with what was made of its texts."""
        if job.finished:
            return
        record = job.record
        for name in ("user", "metadata", "tags", "request_body", "response_body", "bodies_cut"):
            setattr(record, name, getattr(texts, name))
        self._finish(job, texts.failed, keep=True)

    def _finish(self, job: _Job, omitted: str | None, *, keep: bool = False) -> None:
        """The one end of a job. Without `keep` its texts are those that no callable has seen: labels are emptied."""
        if job.finished:
            return
        job.finished = True
        self._jobs.pop(job, None)
        if job.timer is not None:
            job.timer.cancel()
        record = job.record
        if not keep:
            if self._redactor.callable is None:
                self._redact_labels(record)
            else:
                record.user, record.metadata, record.tags = None, {}, ()
        if omitted is not None:
            record.bodies_omitted = omitted
            self._omitted[omitted].inc()
        if job.bodies is not None:
            job.bodies.done()
        self._put(record)
        if not self._jobs:
            self._idle.set()

    async def stop(self, deadline_s: float = REDACTION_S) -> None:
        """Wait for what is being redacted, up to the deadline; the rest goes on without bodies."""
        self._idle.clear()
        if self._jobs:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._idle.wait()
            except TimeoutError:
                for job in tuple(self._jobs):
                    self._finish(job, STOPPED)
        self._queue.put(None)
        self._worker = None


def _work(
    jobs: "queue.SimpleQueue[_Job | None]",
    redactor: Redactor,
    loop: asyncio.AbstractEventLoop,
    done: Callable[[_Job, _Texts], None],
) -> None:
    """The thread: one job after another until None comes."""
    while (job := jobs.get()) is not None:
        if job.finished:
            continue
        job.started = True
        texts = _texts_of(job, redactor)
        try:
            loop.call_soon_threadsafe(done, job, texts)
        except RuntimeError:  # the loop is closed: nobody is waiting
            return


def _texts_of(job: _Job, redactor: Redactor) -> _Texts:
    texts = _Texts()
    try:
        _labels(texts, job.record, redactor)
        if job.bodies is not None:
            _bodies(texts, job.bodies, redactor)
    except Exception as error:  # noqa: BLE001 - the operator's callable may raise anything; the record goes on
        _log.error("log_redaction_failed", request_id=job.record.request_id, error=type(error).__name__)
        return _Texts(failed=FAILED)
    return texts


def _labels(texts: _Texts, record: RequestRecord, redactor: Redactor) -> None:
    def label(field: str, text: str) -> str | None:
        return redactor.called(field, redactor.label(text))

    texts.user = None if record.user is None else label("user", record.user)
    texts.tags = tuple(kept for tag in record.tags if (kept := label("tags", tag)) is not None)
    texts.metadata = {
        redactor.label(name): kept
        for name, value in record.metadata.items()
        if (kept := label("metadata", value)) is not None
    }


def _bodies(texts: _Texts, captured: CapturedBodies, redactor: Redactor) -> None:
    request, response = captured.read()
    for field, body in (("request_body", request), ("response_body", response)):
        if body is None:
            continue
        text, cut = redactor.body(field, body, captured.bytes_max)
        if text is not None and (size := len(msgspec.json.encode(text))) > ENCODED_BYTES_MAX:
            # escapes may make it several times longer; this is never too long then
            text, cut = text[: len(text) * ENCODED_BYTES_MAX // size // 6], True
        setattr(texts, field, text)
        texts.bodies_cut = texts.bodies_cut or cut
