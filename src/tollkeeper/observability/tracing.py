"""Traces: W3C trace context, sampling, and the export of finished spans by OTLP over HTTP.

Nothing of OpenTelemetry is on the path of a request, or even loaded without an endpoint: a request carries a few
numbers, and when it is over leaves a function that can tell its spans. A task takes what has gathered, and a thread
makes spans of it and sends them. What does not fit into the queue, or could not be sent, is dropped and counted: a
trace is worth less than a request. Knows nothing of what spans are about.
"""

import asyncio
import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import TracingSettings

QUEUE_MAX: Final = 8192
"""Finished requests that wait to be sent."""
BATCH_MAX: Final = 512
INTERVAL_S: Final = 1.0
"""How long a finished request may wait for others."""
TRACESTATE_BYTES_MAX: Final = 512
_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


class Trace(msgspec.Struct, frozen=True, gc=False):
    """Where a request belongs: its trace, its own span, and the caller's (0: it has none)."""

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    state: str = ""

    def headers(self, span_id: int) -> dict[str, str]:
        """What a callee is told, as the child of one of our spans."""
        told = {"traceparent": f"00-{self.trace_id:032x}-{span_id:016x}-{int(self.sampled):02x}"}
        if self.state:
            told["tracestate"] = self.state
        return told


class Span(msgspec.Struct, frozen=True):
    """A finished span. `error` is None if it went well; attributes are strings, numbers and booleans."""

    name: str
    kind: Literal["server", "client"]
    span_id: int
    parent_id: int
    start_us: int
    end_us: int
    attributes: Mapping[str, str | int | float | bool]
    error: str | None = None


Tell = Callable[[], Sequence[Span]]


def new_id() -> int:
    """The id of a span."""
    return random.getrandbits(64) or 1


def read_traceparent(value: bytes) -> tuple[int, int, bool] | None:
    """Trace, parent and whether it is sampled; None for what is no trace context (W3C, level 1)."""
    found = _TRACEPARENT.fullmatch(value)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, parent_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not parent_id:
        return None
    return trace_id, parent_id, bool(int(found[4], 16) & _SAMPLED)


def begin(traceparent: bytes, tracestate: bytes, sample_ratio: float) -> Trace:
    """A request's place: in its caller's trace, which has decided whether it is sampled, or in one of its own."""
    caller = read_traceparent(traceparent) if traceparent else None
    if caller is None:
        trace_id = random.getrandbits(128) or 1
        return Trace(trace_id, new_id(), 0, (trace_id & (2**63 - 1)) < sample_ratio * 2**63)
    trace_id, parent_id, sampled = caller
    state = tracestate.decode("ascii", "ignore") if len(tracestate) <= TRACESTATE_BYTES_MAX else ""
    return Trace(trace_id, new_id(), parent_id, sampled, state if state.isprintable() else "")


class Tracing:
    """`begin` and `end` of each request; `start` and `stop` belong to one event loop.

    Raises ConfigurationError if what an export needs is not installed.
    """

    def __init__(self, settings: TracingSettings, metrics: Metrics, version: str) -> None:
        assert settings.endpoint is not None, "else there is nothing to do"
        self._settings = settings
        self._export = _exporter(settings, version)
        self._ended: deque[tuple[Trace, Tell]] = deque()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "traces")
        self._failing = False
        self._log = logger("tracing")
        self._exported = metrics.counter(
            "tollkeeper_traces_exported_total", "Requests whose spans were sent."
        ).labels()
        dropped = metrics.counter(
            "tollkeeper_traces_dropped_total", "Requests whose spans were not sent: queue_full, export_failed.", "why"
        )
        self._queue_full, self._export_failed = dropped.labels("queue_full"), dropped.labels("export_failed")

    def begin(self, traceparent: bytes, tracestate: bytes) -> Trace:
        """See the function."""
        return begin(traceparent, tracestate, self._settings.sample_ratio)

    def end(self, trace: Trace, tell: Tell) -> None:
        """The request is over. `tell` is called later, in another thread, if its trace is sampled."""
        if not trace.sampled:
            return
        if len(self._ended) >= QUEUE_MAX:
            self._queue_full.inc()
            return
        self._ended.append((trace, tell))
        if len(self._ended) >= BATCH_MAX:
            self._full.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="traces")

    async def stop(self) -> None:
        """Send what is left, within the timeout of one export."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.timeout_s):
                while self._ended:
                    await self._send()
        self._export_failed.inc(len(self._ended))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._full.wait()
            self._full.clear()
            while self._ended:
                await self._send()

    async def _send(self) -> None:
        batch = [self._ended.popleft() for _ in range(min(BATCH_MAX, len(self._ended)))]
        why = await asyncio.get_running_loop().run_in_executor(self._thread, self._try, batch)
        if why is None:
            self._exported.inc(len(batch))
        else:
            self._export_failed.inc(len(batch))
        if (why is not None) != self._failing:
            self._failing = why is not None
            self._log.warning("traces_not_sent" if why else "traces_sent_again", why=why, to=self._settings.endpoint)

    def _try(self, batch: Sequence[tuple[Trace, Tell]]) -> str | None:
        """In the thread: None if they were sent, else why not. Whatever goes wrong costs traces alone."""
        try:
            return self._export(batch)
        except Exception as error:  # noqa: BLE001 - foreign code in a background thread
            return f"{type(error).__name__}: {error}"


def _exporter(settings: TracingSettings, version: str) -> Callable[[Sequence[tuple[Trace, Tell]]], str | None]:
    """OpenTelemetry is loaded here and nowhere else."""
    try:
        import logging

        from opentelemetry import trace as api
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace.status import Status, StatusCode
    except ImportError:
        raise ConfigurationError("tracing.endpoint: traces need `pip install 'tollkeeper[otel]'`") from None
    assert settings.endpoint is not None
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    logging.getLogger("opentelemetry").propagate = False  # what fails is counted and logged here
    exporter = OTLPSpanExporter(endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=settings.timeout_s)
    resource = Resource({"service.name": settings.service_name, "service.version": version})
    scope = InstrumentationScope("tollkeeper", version)
    kinds = {"server": api.SpanKind.SERVER, "client": api.SpanKind.CLIENT}

    def context(trace: Trace, span_id: int, *, is_remote: bool) -> Any:
        flags = api.TraceFlags(_SAMPLED)
        state = api.TraceState.from_header([trace.state]) if trace.state else None
        return api.SpanContext(trace.trace_id, span_id, is_remote, flags, state)

    def readable(trace: Trace, span: Span) -> Any:
        parent = None
        if span.parent_id:
            parent = context(trace, span.parent_id, is_remote=span.parent_id == trace.parent_id)
        return ReadableSpan(
            name=span.name,
            context=context(trace, span.span_id, is_remote=False),
            parent=parent,
            resource=resource,
            attributes=span.attributes,
            kind=kinds[span.kind],
            status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_us * 1000,
            end_time=span.end_us * 1000,
            instrumentation_scope=scope,
        )

    def export(batch: Sequence[tuple[Trace, Tell]]) -> str | None:
        spans = [readable(trace, span) for trace, tell in batch for span in tell()]
        sent = exporter.export(spans)
        return None if sent is SpanExportResult.SUCCESS else "the collector did not take them"

    return export
