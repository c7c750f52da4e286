"""What clients are told when something is refused or fails: status, body and words, in their own dialect.

The one table from faults to HTTP. It does not know why a fault was raised, nor any header but `headers.py` does.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tollkeeper.domain.admission import LimitKind, Refusal
from tollkeeper.domain.errors import Fault
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import US_PER_S, Period
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.gateway.dialects.base import Dialect

_encode = msgspec.json.Encoder().encode

STATUS: Final[Mapping[Fault, int]] = {
    Fault.MALFORMED: 400,
    Fault.INVALID: 400,
    Fault.TOO_LARGE: 413,
    Fault.NO_KEY: 401,
    Fault.BAD_KEY: 401,
    Fault.EXPIRED_KEY: 401,
    Fault.REVOKED_KEY: 401,
    Fault.MODEL_FORBIDDEN: 403,
    Fault.UNKNOWN_MODEL: 404,
    Fault.UNKNOWN_ROUTE: 404,
    Fault.UNKNOWN_OBJECT: 404,
    Fault.ELSEWHERE: 400,
    Fault.WRONG_METHOD: 405,
    Fault.WRONG_DIALECT: 400,
    Fault.UNPRICED: 400,
    Fault.UNBOUNDED: 400,
    Fault.COST_CAP: 400,
    Fault.RATE_LIMIT: 429,
    Fault.CONCURRENCY: 429,
    Fault.BUDGET: 429,
    Fault.NEVER_FITS: 400,
    Fault.OVERLOADED: 503,
    Fault.STORE_AWAY: 503,
    Fault.DEPLOYMENTS_FULL: 429,
    Fault.UPSTREAM_DOWN: 502,
    Fault.UPSTREAM_TIMEOUT: 504,
    Fault.UPSTREAM_BROKEN: 502,
    Fault.UPSTREAM_REFUSED_US: 502,
    Fault.INTERNAL: 500,
}

_OPENAI_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_status(fault: Fault) -> int:
    """The HTTP status of a fault."""
    return STATUS[fault]


class _OpenAIError(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class _AnthropicError(msgspec.Struct):
    type: str
    message: str


def error_body(
    dialect: Dialect, fault: Fault, message: str, param: str | None = None, request_id: str | None = None
) -> bytes:
    """The JSON body of an error."""
    status = STATUS[fault]
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return _encode({"type": "error", "error": _AnthropicError(kind, message), "request_id": request_id})
    kind = "insufficient_quota" if fault is Fault.BUDGET else _OPENAI_TYPES.get(status, "server_error")
    return _encode({"error": _OpenAIError(message, kind, param, fault.value)})


def error_event(
    dialect: Dialect, fault: Fault, message: str, param: str | None = None, request_id: str | None = None
) -> bytes:
    """A server-sent event that ends a stream with an error; the dialect's SDKs raise it."""
    data = error_body(dialect, fault, message, param, request_id)
    return (b"event: error\ndata: " if dialect == "anthropic" else b"data: ") + data + b"\n\n"


_FAULTS: Final[Mapping[LimitKind, Fault]] = {
    LimitKind.REQUESTS: Fault.RATE_LIMIT,
    LimitKind.TOKENS: Fault.RATE_LIMIT,
    LimitKind.CONCURRENCY: Fault.CONCURRENCY,
    LimitKind.BUDGET: Fault.BUDGET,
}
_SCOPES: Final[Mapping[ScopeKind, str]] = {
    ScopeKind.KEY: "this API key",
    ScopeKind.TEAM: "this key's team",
    ScopeKind.ORGANISATION: "this key's organisation",
}
_PERIODS: Final[Mapping[Period, str]] = {
    Period.DAY: "today's",
    Period.WEEK: "this week's",
    Period.MONTH: "this month's",
    Period.TOTAL: "the total",
}


def refusal_fault(refusal: Refusal) -> Fault:
    """What a refusal by a limit is to the client."""
    return Fault.NEVER_FITS if refusal.never else _FAULTS[refusal.kind]


def refusal_message(refusal: Refusal) -> str:
    """Which limit refused, its size, what was used and asked, and when to try again."""
    scope = _SCOPES[refusal.scope]
    if refusal.kind is LimitKind.BUDGET:
        return _budget_message(refusal, scope)
    if refusal.kind is LimitKind.CONCURRENCY:
        return (
            f"Too many requests in flight for {scope}: the limit is {refusal.limit}, {refusal.used} are in flight. "
            "Try again when one of them has ended."
        )
    unit = refusal.kind.value
    if refusal.never:
        return (
            f"This request needs {refusal.asked} {unit}, more than the limit of {refusal.limit} {unit} of {scope} "
            "ever allows. Make it smaller."
        )
    wait = "" if refusal.wait_us is None else f" Please try again in {duration(refusal.wait_us)}."
    return (
        f"Rate limit reached for {scope} in {unit}: limit {refusal.limit}, used {refusal.used}, "
        f"requested {refusal.asked}.{wait}"
    )


def _budget_message(refusal: Refusal, scope: str) -> str:
    period = "the" if refusal.period is None else _PERIODS[refusal.period]
    size = f"{period} budget of {usd(refusal.limit)} USD of {scope}"
    if refusal.never:
        return (
            f"This request may cost {usd(refusal.asked)} USD, more than {size} ever allows. "
            "State a smaller limit of output tokens."
        )
    wait = "" if refusal.wait_us is None else f" The budget starts anew in {duration(refusal.wait_us)}."
    return (
        f"This request does not fit into {size}: {usd(refusal.used)} USD are spent or held for requests in flight, "
        f"and this request may cost up to {usd(refusal.asked)} USD.{wait}"
    )


_SECONDS: Final = tuple([f"{s}s" if s < 60 else f"{s // 60}m{s % 60}s" for s in range(121)])
"""What windows of a minute take to be free again."""


def duration(us: int) -> str:
    """`120ms`, `1s`, `6m0s`, `3h5m0s`, rounded up: waiting so long is enough."""
    if us <= 0:
        return "0s"
    if us < US_PER_S - 999:
        return f"{-(-us // 1000)}ms"
    seconds = -(-us // US_PER_S)
    if seconds < len(_SECONDS):
        return _SECONDS[seconds]
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s"
