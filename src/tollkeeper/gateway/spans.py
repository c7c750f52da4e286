"""The spans of one request, told when it is over: one for the request, one for each attempt at a provider.

Names and attributes follow OpenTelemetry's semantic conventions for HTTP and for generative AI (`gen_ai.…`, as of
version 1.38); what they have no word for begins with `tollkeeper.`. Never a text that was sent or answered. Made from
the log record, so a trace and a record cannot disagree.
"""

from collections.abc import Sequence
from typing import Final

from tollkeeper.domain.record import AttemptRecord, RequestRecord
from tollkeeper.gateway.record import Exchange, Try
from tollkeeper.observability.tracing import Span, Trace

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
PATH_CHARS_MAX: Final = 200
Attributes = dict[str, str | int | float | bool]


def spans_of(trace: Trace, record: RequestRecord, method: str, tries: Sequence[Try]) -> list[Span]:
    """Of a request of a known key, with its attempts."""
    operation = OPERATIONS.get(record.endpoint, record.endpoint.rpartition("/")[2])
    attributes: Attributes = {
        "http.request.method": method,
        "url.path": record.endpoint,
        "http.response.status_code": record.status,
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": record.model,
        "tollkeeper.request_id": record.request_id,
        "tollkeeper.key_id": record.key_id,
        "tollkeeper.organisation_id": record.organisation_id,
        "tollkeeper.stream": record.streaming,
        "tollkeeper.admitted": record.admitted,
        "tollkeeper.admission_us": record.admission_us,
        "tollkeeper.attempts": record.attempts,
        "tollkeeper.cost_nano": record.cost_nano,
    }
    optional = {
        "gen_ai.provider.name": record.provider or None,
        "tollkeeper.team_id": record.team_id,
        "tollkeeper.refused_by": record.refused_by,
        "tollkeeper.first_byte_us": record.first_byte_us,
        "error.type": record.error,
    }
    attributes |= {name: value for name, value in optional.items() if value is not None}
    if record.admitted:
        attributes |= _tokens(record.tokens_input, record.tokens_output)
    failed = record.error or str(record.status)
    request = Span(
        name=f"{operation} {record.model}" if record.model else f"{method} {record.endpoint}",
        kind="server",
        span_id=trace.span_id,
        parent_id=trace.parent_id,
        start_us=record.time_us,
        end_us=record.time_us + record.total_us,
        attributes=attributes,
        error=failed if record.status >= 500 else None,
    )
    sent = [(number, each) for number, each in enumerate(tries) if each.span_id]
    return [request, *(_attempt(trace, record, n, each.span_id, each.record(), operation) for n, each in sent)]


def plain_span(trace: Trace, exchange: Exchange, ended_us: int) -> list[Span]:
    """Of a request that nobody known made, or that asked for nothing that there is."""
    method, path, status = exchange.client.method, exchange.client.path[:PATH_CHARS_MAX], exchange.status
    attributes: Attributes = {
        "http.request.method": method,
        "url.path": path,
        "http.response.status_code": status,
        "tollkeeper.request_id": exchange.request_id,
    }
    if exchange.error is not None:
        attributes["error.type"] = exchange.error
    failed = (exchange.error or str(status)) if status >= 500 else None
    return [
        Span(method, "server", trace.span_id, trace.parent_id, exchange.time_us, ended_us, attributes, failed),
    ]


def _attempt(
    trace: Trace, record: RequestRecord, number: int, span_id: int, attempt: AttemptRecord, operation: str
) -> Span:
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": attempt.provider,
        "gen_ai.request.model": attempt.upstream_model,
        "tollkeeper.attempt": attempt.attempt,
        "tollkeeper.result": attempt.result,
        "tollkeeper.cost_nano": attempt.cost_nano,
        "tollkeeper.hold_nano": attempt.hold_nano,
        "tollkeeper.presumed": attempt.presumed,
        **_tokens(attempt.tokens_input, attempt.tokens_output),
    }
    if number:
        attributes["http.request.resend_count"] = number
    if attempt.status is not None:
        attributes["http.response.status_code"] = attempt.status
    if attempt.upstream_request_id is not None:
        attributes["tollkeeper.upstream_request_id"] = attempt.upstream_request_id
    failed = attempt.result != "answered"
    if failed:
        attributes["error.type"] = attempt.result
    return Span(
        name=f"{operation} {attempt.upstream_model}",
        kind="client",
        span_id=span_id,
        parent_id=trace.span_id,
        start_us=record.time_us + attempt.started_us,
        end_us=record.time_us + attempt.ended_us,
        attributes=attributes,
        error=attempt.result if failed else None,
    )


def _tokens(read: int, written: int) -> Attributes:
    return {"gen_ai.usage.input_tokens": read, "gen_ai.usage.output_tokens": written}
