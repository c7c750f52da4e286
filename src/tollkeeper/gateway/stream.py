"""Step 5: the provider's answer on its way to the client, whole or chunk by chunk, and the usage read from it.

The charge is made before the last bytes go out, so that a client's next request finds the hold released. A client
that has hung up changes nothing here: what is sent to it is dropped while reading goes on, until the deadline that
`server.py` sets. Which errors become which response is not decided here.
"""

import time
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from tollkeeper.domain.admission import Reply
from tollkeeper.domain.errors import Fault, UpstreamError
from tollkeeper.gateway.asgi import Header
from tollkeeper.gateway.bound import Plan
from tollkeeper.gateway.dialects import (
    Answer,
    Produced,
    StreamMeter,
    error_body,
    limit_lines,
    lines_of,
    money_lines,
    produced_by,
    read_answer,
)
from tollkeeper.gateway.record import Exchange
from tollkeeper.gateway.upstream import RESPONSE_BYTES_MAX, UpstreamResponse, too_large

ERROR_BYTES_MAX: Final = 2**20
UPSTREAM_ID_CHARS_MAX: Final = 128
PASSED_BACK: Final = ("retry-after", "retry-after-ms", "x-should-retry")
"""A provider's headers that tell the client how to go on after an error."""
STREAM_ERROR: Final = "upstream_stream_error"
"""In the record: the provider told an error in the middle of a stream."""
TEXTS: Final = ("text/plain", "text/vtt", "application/x-subrip", "text/event-stream")
"""Of a transcription, or of a stored answer. What is neither these nor sound is passed on as plain bytes, which no
browser runs."""
NO_SNIFF: Final[Header] = (b"x-content-type-options", b"nosniff")
ENDS_WITHOUT_MARK: Final = ("chat", "completions")
"""Where usage comes in the last event: some compatible providers leave out `[DONE]` after it."""
NOT_TOLD: Final = Answer()
JSON: Final = "content-type: application/json\r\n"
EVENTS: Final = "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"


class Rejection(msgspec.Struct, frozen=True):
    """A provider's error status: nothing is charged or passed on yet. `headers` are those that the client may see."""

    status: int
    body: bytes
    told: Answer
    headers: tuple[Header, ...]
    should_retry: str | None

    @property
    def fault(self) -> Fault | None:
        """Whose words the client gets instead of the provider's; None: the provider's."""
        if self.status in (401, 403):
            return Fault.UPSTREAM_REFUSED_US
        return Fault.UPSTREAM_BROKEN if self.status < 400 else None


def answer(exchange: Exchange, response: UpstreamResponse) -> Coroutine[Any, Any, Rejection | None]:
    """Pass a response on and charge for it; an error status is only read.

    Raises UpstreamError if there is nothing to pass on, or no more of it; then what was dispatched and not yet
    charged is the caller's to presume.
    """
    upstream_id = response.headers.get("x-request-id") or response.headers.get("request-id")
    exchange.upstream_request_id = None if upstream_id is None else upstream_id[:UPSTREAM_ID_CHARS_MAX]
    plan = exchange.plan
    assert plan is not None
    if response.headers.get("content-encoding", "identity") not in ("identity", ""):
        # Passed on it would be read by nobody; unpacked it could be any size.
        message = "The provider compressed its answer, which it was asked not to."
        raise UpstreamError(Fault.UPSTREAM_BROKEN, message, sent=True)
    if not 200 <= response.status < 300:
        return _read_error(exchange, response)
    if plan.call.stream or plan.call.endpoint.media:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if plan.call.stream and media_type == "text/event-stream":
            return _pass_stream(exchange, response)
        if plan.call.endpoint.media and media_type != "application/json":
            return _pass_media(exchange, response, media_type)
    return _pass_whole(exchange, response)


async def _read_error(exchange: Exchange, response: UpstreamResponse) -> Rejection:
    endpoint = exchange.endpoint
    assert endpoint is not None
    try:
        body = await _read(exchange, response, ERROR_BYTES_MAX)
    except UpstreamError:
        body = b""
    passed = [(n, v) for n in PASSED_BACK if (v := response.headers.get(n)) is not None]
    return Rejection(
        response.status,
        body,
        read_answer(endpoint, body),
        tuple((name.encode(), value.encode("ascii", "replace")) for name, value in passed),
        response.headers.get("x-should-retry"),
    )


async def reject(exchange: Exchange, rejection: Rejection) -> None:
    """Pass an error status on: it costs nothing, unless its body tells usage; its body is the client's to read.

    Raises UpstreamError where the provider's words are not for the client.
    """
    endpoint, status, body = exchange.endpoint, rejection.status, rejection.body
    assert endpoint is not None
    if rejection.told.usage is None:
        exchange.charge_nothing()
    else:
        exchange.charge(rejection.told)
    if rejection.fault is Fault.UPSTREAM_REFUSED_US:
        message = "The provider refused the gateway's own credentials. An operator must look at the provider's key."
        raise UpstreamError(Fault.UPSTREAM_REFUSED_US, message, sent=True)
    if rejection.fault is not None:
        raise UpstreamError(Fault.UPSTREAM_BROKEN, f"The provider answered with status {status}.", sent=True)
    if not _is_json_object(body):
        message = f"The provider answered with status {status} and no readable error."
        body = error_body(endpoint.dialect, Fault.UPSTREAM_BROKEN, message, request_id=exchange.request_id)
    exchange.status, exchange.error = status, f"upstream_{status}"
    if exchange.capture is not None:
        exchange.capture.response(body)
    await exchange.client.respond(status, lines_for(exchange) + JSON + lines_of(rejection.headers), body)


async def _pass_whole(exchange: Exchange, response: UpstreamResponse) -> None:
    endpoint = exchange.endpoint
    assert endpoint is not None
    body = response.whole()
    if body is None:
        body = await _read(exchange, response, RESPONSE_BYTES_MAX)
    if exchange.capture is not None:
        exchange.capture.response(body)
    told = read_answer(endpoint, body)
    if told.usage is None and not _is_json_object(body):
        raise UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's answer is not readable.", sent=True)
    exchange.charge(told)
    if exchange.keep is not None and (produced := produced_by(body)) is not None:
        exchange.keep.note(produced)
        await exchange.keep.wait()
    exchange.status = response.status
    await exchange.client.respond(response.status, lines_for(exchange) + JSON, body)
    exchange.mark_first_byte()


async def _pass_media(exchange: Exchange, response: UpstreamResponse, media_type: str) -> None:
    """Sound or plain text, chunk by chunk. It tells no usage, so what the request says is charged, or the hold.

    The end of the body is told after the charge, so that a client's next request finds it.
    """
    client, plan = exchange.client, exchange.plan
    assert plan is not None
    exchange.status = response.status
    shown = media_type if media_type.startswith("audio/") or media_type in TEXTS else "application/octet-stream"
    sort: list[Header] = [(b"content-type", shown.encode()), NO_SNIFF]
    exchange.raw, size = True, 0
    while chunk := await _next_chunk(exchange, response):
        size += len(chunk)
        if size > RESPONSE_BYTES_MAX:
            raise too_large(RESPONSE_BYTES_MAX)
        if not client.started:
            await client.start(response.status, lines_for(exchange) + lines_of(sort))
        await client.send(chunk)
        exchange.mark_first_byte()
    if not size and not plan.call.endpoint.free:
        raise UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's answer is empty.", sent=True)
    if not client.started:
        await client.start(response.status, lines_for(exchange) + lines_of(sort))
    exchange.charge(NOT_TOLD)
    if exchange.capture is not None:
        exchange.capture.response(msgspec.json.encode({"media_type": shown, "bytes": size}))
    await client.send(b"", last=True)


async def _pass_stream(exchange: Exchange, response: UpstreamResponse) -> None:
    plan, endpoint, client = exchange.plan, exchange.endpoint, exchange.client
    assert plan is not None and endpoint is not None
    meter = StreamMeter(endpoint, keep_usage_chunk=plan.call.wants_usage_chunk)
    exchange.status = response.status
    capture = exchange.capture
    if capture is not None:
        capture.streams()
    ended = False
    noted: Produced | None = None
    while not ended:
        chunk = await _next_chunk(exchange, response)
        ended = not chunk
        if capture is not None:
            capture.chunk(chunk)
        out = meter.finish() if ended else meter.feed(chunk)
        if meter.complete:
            exchange.charge(meter.answer)
        if exchange.keep is not None and meter.produced is not None and meter.produced is not noted:
            noted = meter.produced
            exchange.keep.note(noted)
            if meter.complete:
                await exchange.keep.wait()
        if out and not client.gone:
            if not client.started:
                await client.start(response.status, lines_for(exchange) + EVENTS)
            await client.send(out)
            exchange.mark_first_byte()
    exchange.error = None if meter.error is None else STREAM_ERROR
    if not meter.complete and meter.error is None:
        if endpoint.name not in ENDS_WITHOUT_MARK or meter.usage is None:
            raise UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's stream ended too early.", sent=True)
        exchange.charge(meter.answer)
    else:
        exchange.charge(NOT_TOLD)
    await client.send(b"", last=True)


async def _next_chunk(exchange: Exchange, response: UpstreamResponse) -> bytes:
    if exchange.first_byte_s is not None:
        return await response.next_chunk()
    waited_since = time.perf_counter()
    try:
        return await response.next_chunk()
    finally:
        exchange.upstream_s += time.perf_counter() - waited_since


async def _read(exchange: Exchange, response: UpstreamResponse, bytes_max: int) -> bytes:
    waited_since = time.perf_counter()
    try:
        return await response.read(bytes_max)
    finally:
        exchange.upstream_s += time.perf_counter() - waited_since


def degraded_header(reply: Reply) -> Header:
    """Names what was decided without Redis."""
    return (b"x-tollkeeper-degraded", reply.degraded.encode())


def lines_for(exchange: Exchange) -> str:
    """What every answer to an admitted request carries, as lines of its head: ids, limits and money as they stand
    with its settlement if it is settled, and the output limit if we set it."""
    attempt, endpoint, plan = exchange.attempt, exchange.endpoint, exchange.plan
    if attempt is None or endpoint is None or plan is None:
        return exchange.id_lines()
    checks, reply, demand = attempt.grant.checks, attempt.grant.reply, attempt.grant.demand
    if attempt.ended:
        tokens = 0 if attempt.presumed else attempt.usage.total_tokens - demand.tokens
        cost_nano, charged_nano = attempt.cost_nano, attempt.cost_nano - demand.hold_nano
        if len(exchange.tries) > 1:
            cost_nano = exchange.cost_nano
        lines = (
            exchange.id_lines()
            + limit_lines(endpoint.dialect, checks, reply, tokens)
            + money_lines(cost_nano, checks, reply, charged_nano)
        )
    else:
        lines = exchange.id_lines() + limit_lines(endpoint.dialect, checks, reply) + money_lines(None, checks, reply)
    if reply.degraded or reply.shadowed or plan.injected is not None or len(exchange.tries) > 1:
        lines += lines_of(_particulars(exchange, plan, reply))
    if exchange.upstream_request_id is not None:
        lines += _upstream_line(exchange.upstream_request_id)
    return lines


def _upstream_line(upstream_id: str) -> str:
    if upstream_id.isascii() and upstream_id.isprintable():
        return f"x-upstream-request-id: {upstream_id}\r\n"
    return lines_of([(b"x-upstream-request-id", upstream_id.encode("ascii", "replace"))])


def _particulars(exchange: Exchange, plan: Plan, reply: Reply) -> list[Header]:
    """What few answers have to tell."""
    headers: list[Header] = []
    if reply.degraded:
        headers.append(degraded_header(reply))
    if reply.shadowed:
        headers.append((b"x-tollkeeper-shadow", ", ".join([f"{s.scope}/{s.kind}" for s in reply.shadowed]).encode()))
    if plan.injected is not None:
        headers.append((b"x-tollkeeper-max-tokens", b"%d" % plan.injected))
    if len(exchange.tries) > 1:
        headers.append((b"x-tollkeeper-attempts", b"%d" % len(exchange.tries)))
        headers.append((b"x-tollkeeper-model", plan.route.model.encode("ascii", "replace")))
    return headers


def _is_json_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
