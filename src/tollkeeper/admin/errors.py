"""Every error that the admin API answers with: its status, its type and what to do, by its code.

The shape is Stripe's: `{"error": {"type", "code", "message", "param", "doc_url"}}`. `doc_url` leads into the page at
`/docs` of the same gateway, which lists this table.
"""

from typing import Any, Final

import msgspec


class ErrorKind(msgspec.Struct, frozen=True):
    """What a code stands for."""

    status: int
    type: str
    text: str


_REQUEST: Final = "invalid_request_error"
ERRORS: Final[dict[str, ErrorKind]] = {
    "invalid_request": ErrorKind(400, _REQUEST, "A value cannot be taken; `param` names it. Mend the request."),
    "idempotency_key_reused": ErrorKind(
        400, "idempotency_error", "This `Idempotency-Key` belongs to another request of the last 24 hours."
    ),
    "unauthorized": ErrorKind(401, "authentication_error", "No token, or one that is not, or no longer, known."),
    "forbidden": ErrorKind(403, "permission_error", "The token's role does not allow it."),
    "not_found": ErrorKind(404, _REQUEST, "There is no such thing, or none that this token may see."),
    "method_not_allowed": ErrorKind(405, _REQUEST, "The path is there, but not with this method."),
    "busy": ErrorKind(409, _REQUEST, "This is done for one caller at a time. Try again later."),
    "idempotency_key_in_use": ErrorKind(
        409, "idempotency_error", "A request with this `Idempotency-Key` is being served. Wait and repeat it."
    ),
    "idempotency_answer_lost": ErrorKind(
        409, "idempotency_error", "The request was carried out and its answer lost. The message says what was done."
    ),
    "request_too_large": ErrorKind(413, _REQUEST, "The body has more bytes than are read."),
    "too_many_attempts": ErrorKind(
        429, "rate_limit_error", "Too many tokens were tried from this address. Wait for `retry-after` seconds."
    ),
    "too_many_idempotency_keys": ErrorKind(
        429, "rate_limit_error", "No more idempotency keys are remembered at the moment."
    ),
    "internal_error": ErrorKind(500, "api_error", "Something broke here; the gateway's log says what."),
    "not_installed": ErrorKind(501, "api_error", "The gateway lacks an optional part; the message says which."),
    "unavailable": ErrorKind(503, "api_error", "A part that the gateway depends on is away. Try again."),
}


def error_body(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The one shape of an error."""
    kind = ERRORS[code].type
    doc_url = f"/docs#error-{code}"
    return {"error": {"type": kind, "code": code, "message": message, "param": param, "doc_url": doc_url}}
