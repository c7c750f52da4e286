"""Traces: one span a request and one an attempt, in the caller's trace, told to providers and to an OTLP receiver."""

import asyncio
import gzip
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateway.conftest import Stand, chat, settings_for
from tests.gateway.test_attempts import routed
from tollkeeper.domain.policy import Policy, Unit, Window
from tollkeeper.observability import tracing as module
from tollkeeper.observability.tracing import Trace, Tracing, begin, read_traceparent
from tollkeeper.settings import RoutingSettings, TracingSettings
from tollkeeper.simulator import Simulator

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
}


class Collector:
    """An OTLP receiver over HTTP, and a provider that fails as often as it is told and keeps the headers it got."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.status = 200
        self.failures = 0
        self.asked: list[dict[str, str]] = []

    async def take(self, request: web.Request) -> web.Response:
        if self.status != 200:
            return web.Response(status=self.status)
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        told = ExportTraceServiceRequest.FromString(body)
        for resource in told.resource_spans:
            self.resources.append(values(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def complete(self, request: web.Request) -> web.Response:
        self.asked.append({name.lower(): value for name, value in request.headers.items()})
        if self.failures:
            self.failures -= 1
            return web.json_response({"error": {"message": "try again"}}, status=500)
        return web.json_response(ANSWER)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post("/v1/traces", self.take)
        application.router.add_post("/v1/chat/completions", self.complete)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = site._server
        assert server is not None
        port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        yield f"http://127.0.0.1:{port}"
        await runner.cleanup()


def values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in attributes}


class Traced:
    """The data plane with tracing into the collector."""

    def __init__(self, stand: Stand, collector: Collector) -> None:
        self.stand, self.collector = stand, collector
        assert stand.plane._tracing is not None
        self.tracing = stand.plane._tracing

    async def spans(self) -> list[tuple[Any, dict[str, Any]]]:
        """All that was sent since, with their attributes, oldest first."""
        await self.stand.settled()
        while self.tracing._ended:
            await self.tracing._send()
        found, self.collector.spans = self.collector.spans, []
        return [(span, values(span.attributes)) for span in found]


@pytest.fixture
async def traced(tmp_path: Path, simulator: Simulator) -> AsyncIterator[Traced]:
    collector = Collector()
    async with collector.listening() as url:
        base = settings_for(simulator.base_url)
        provider = structs.replace(base.providers["sim"], base_url=f"{url}/v1")
        base = structs.replace(base, providers={"sim": provider})
        routing = RoutingSettings(attempts_max=2, backoff_min_s=0.001, backoff_max_s=0.002)
        stand = Stand(tmp_path, structs.replace(routed(base, routing), models={}), simulator)
        settings = TracingSettings(endpoint=url, service_name="under-test", timeout_s=1.0)
        stand.plane._tracing = Tracing(settings, stand.metrics, "1.2.3")
        stand.key()
        async with stand.running():
            yield Traced(stand, collector)
        await stand.plane._tracing.stop()


async def test_a_request_and_its_attempts_are_spans_of_the_callers_trace(traced: Traced) -> None:
    """The provider is told the attempt's span; names and attributes are those of the GenAI conventions."""
    traced.collector.failures = 1
    headers = {"traceparent": CALLER, "tracestate": "vendor=1"}
    answer = await traced.stand.post(chat(max_tokens=20), headers=headers)
    assert answer.status == 200
    (request, its), (first, failed), (second, answered) = await traced.spans()
    assert {int.from_bytes(span.trace_id) for span in (request, first, second)} == {TRACE_ID}
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert (request.name, request.kind) == ("chat gpt-4o-mini", request.SPAN_KIND_SERVER)
    assert first.parent_span_id == second.parent_span_id == request.span_id
    assert (first.kind, second.kind) == (first.SPAN_KIND_CLIENT, first.SPAN_KIND_CLIENT)
    told = [heads["traceparent"] for heads in traced.collector.asked]
    assert told == [f"00-{TRACE_ID:032x}-{span.span_id.hex()}-01" for span in (first, second)]
    assert [heads["tracestate"] for heads in traced.collector.asked] == ["vendor=1", "vendor=1"]
    (record,) = traced.stand.records.all
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.provider.name": "sim",
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 4,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "tollkeeper.request_id": answer.headers["x-request-id"],
        "tollkeeper.cost_nano": record.cost_nano,
        "tollkeeper.attempts": 2,
    }
    assert {name: its[name] for name in expected} == expected
    assert (failed["http.response.status_code"], failed["error.type"]) == (500, "server_error")
    assert first.status.code == first.status.STATUS_CODE_ERROR and second.status.code == 0
    assert (answered["http.request.resend_count"], answered["tollkeeper.cost_nano"]) == (1, record.cost_nano)
    assert "http.request.resend_count" not in failed
    times = [request.start_time_unix_nano, first.start_time_unix_nano, first.end_time_unix_nano]
    times += [second.start_time_unix_nano, second.end_time_unix_nano, request.end_time_unix_nano]
    assert times == sorted(times) and times[0] == record.time_us * 1000
    assert traced.collector.resources[0]["service.name"] == "under-test"
    assert traced.stand.count("tollkeeper_traces_exported_total") == 1
    assert "Hi" not in str(its) and "hello" not in str(its)


async def test_refusals_and_strangers_have_spans_too(traced: Traced) -> None:
    """With what refused them; our own 5xx are errors, a client's mistake is not."""
    traced.stand.key(Policy(windows=(Window(Unit.REQUESTS, 1, 60_000_000),)))
    statuses = [(await traced.stand.post(chat(max_tokens=5))).status for _ in range(2)]
    statuses.append((await traced.stand.post(chat(), secret="tk_unknown")).status)
    statuses.append((await traced.stand.post({}, path="/nothing")).status)
    assert statuses == [200, 429, 401, 404]
    spans = [(span, its) for span, its in await traced.spans() if span.kind == span.SPAN_KIND_SERVER]
    assert [its["http.response.status_code"] for _, its in spans] == statuses
    (_, _), (refused, its), (stranger, _), (lost, where) = spans
    assert its["tollkeeper.refused_by"] == "key/requests" and its["tollkeeper.admitted"] is False
    assert "gen_ai.usage.input_tokens" not in its
    assert (stranger.name, lost.name, where["url.path"]) == ("POST", "POST", "/v1/nothing")
    assert refused.status.code == 0
    assert all(not span.parent_span_id for span, _ in spans)


async def test_what_the_caller_does_not_sample_is_told_on_and_not_sent(traced: Traced) -> None:
    assert (await traced.stand.post(chat(max_tokens=5), headers={"traceparent": f"{CALLER[:-1]}0"})).status == 200
    assert await traced.spans() == []
    (heads,) = traced.collector.asked
    assert heads["traceparent"].startswith(f"00-{TRACE_ID:032x}-") and heads["traceparent"].endswith("-00")


async def test_a_collector_that_is_away_costs_traces_alone(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dropped and counted, also those that find the queue full; requests never wait for it."""
    traced.collector.status = 400
    for _ in range(3):
        assert (await traced.stand.post(chat(max_tokens=5))).status == 200
    assert await traced.spans() == []
    monkeypatch.setattr(module, "QUEUE_MAX", 1)
    for _ in range(3):
        assert (await traced.stand.post(chat(max_tokens=5))).status == 200
    await traced.stand.settled()
    lines = traced.stand.metrics.exposition().decode().splitlines()
    assert 'tollkeeper_traces_dropped_total{why="export_failed"} 3.0' in lines
    assert 'tollkeeper_traces_dropped_total{why="queue_full"} 2.0' in lines
    traced.collector.status = 200
    assert len(await traced.spans()) == 2


async def test_what_has_gathered_is_sent_by_itself_and_at_the_stop(traced: Traced) -> None:
    await traced.tracing.start()
    assert (await traced.stand.post(chat(max_tokens=5))).status == 200
    async with asyncio.timeout(60):
        while not traced.collector.spans:
            await asyncio.sleep(0.05)
    assert (await traced.stand.post(chat(max_tokens=5))).status == 200
    await traced.stand.settled()
    await traced.tracing.stop()
    assert len(traced.collector.spans) == 4


@pytest.mark.parametrize(
    "value",
    [
        CALLER.upper(),
        CALLER[:-1],
        f"{CALLER}-",
        CALLER.replace("00-", "ff-", 1),
        f"00-{0:032x}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{0:016x}-01",
        "",
    ],
)
def test_what_is_no_trace_context_begins_a_trace_of_its_own(value: str) -> None:
    assert read_traceparent(value.encode()) is None
    trace = begin(value.encode(), b"a=1", 1.0)
    assert trace.parent_id == 0 and trace.state == "" and trace.trace_id != 0


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert read_traceparent(f"01{CALLER[2:]}-more".encode()) == (TRACE_ID, 0xB7AD6B7169203331, True)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_told_is_understood(trace_id: int, span_id: int, sampled: bool) -> None:
    told = Trace(trace_id, 1, 0, sampled).headers(span_id)["traceparent"]
    assert read_traceparent(told.encode()) == (trace_id, span_id, sampled)


def test_the_share_that_is_sampled() -> None:
    sampled = sum(begin(b"", b"", 0.25).sampled for _ in range(4000))
    assert 800 < sampled < 1200
    assert not any(begin(b"", b"", 0.0).sampled for _ in range(100))


def test_the_exporter_is_not_loaded_unless_it_is_used() -> None:
    """Of OpenTelemetry itself redis-py loads what it finds, whether it is used or not."""
    program = "import sys, tollkeeper.app.gateway; sys.exit('opentelemetry.exporter' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
