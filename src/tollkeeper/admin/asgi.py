"""Small pieces of plain ASGI for what is asked too often, or too early, for a framework: answers and a guard.

Knows nothing of accounts; `api.py` puts FastAPI behind the guard.
"""

import math
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec

from tollkeeper.admin.authentication import Authenticator, LoginRefusal
from tollkeeper.admin.caller import CALLER, Caller
from tollkeeper.admin.errors import ERRORS, error_body
from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.observability.logging import about_request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

ADMIN_PREFIX: Final = "/admin/"
DASHBOARD: Final = "/dashboard"
BODY_BYTES_MAX: Final = 2**20
"""Largest body the admin API reads."""
REQUEST_ID_HEADER: Final = b"request-id"


async def answer(send: Send, status: int, body: bytes, content_type: str, headers: Headers = ()) -> None:
    """Send one whole answer."""
    head = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, code: str, message: str, headers: Headers = ()) -> None:
    """Send an error."""
    body = msgspec.json.encode(error_body(code, message))
    await answer(send, ERRORS[code].status, body, "application/json", headers)


class Guard:
    """Lets only requests with a known token through to `/admin/`, and never more than 1 MiB of a body.

    It stands before the framework, which would read and parse a body before it asks who sent it. Each request gets
    an id, which is in the answer (`request-id`), in log lines and in audit events.
    """

    def __init__(self, inner: Application, authenticator: Authenticator) -> None:
        self._inner = inner
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(ADMIN_PREFIX):
            await self._inner(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        about_request(request_id)
        send = _with_id(send, request_id)
        headers = dict(scope["headers"])
        address = (scope.get("client") or ("unknown",))[0]
        try:
            actor = await self._authenticator.actor(bearer(headers), address)
        except DatabaseUnavailable as error:
            await answer_error(send, "unavailable", str(error))
            return
        if isinstance(actor, LoginRefusal):
            await _refuse(send, actor)
            return
        await self._admitted(Caller(actor, request_id, address), scope, receive, send)

    async def _admitted(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive, dict(scope["headers"]).get(b"content-length", b""))
        if body is None:
            await answer_error(send, "request_too_large", f"A body may have {BODY_BYTES_MAX} bytes.")
            return
        scope[CALLER] = caller
        await self._inner(scope, _replay(body, receive), send)


async def _refuse(send: Send, refusal: LoginRefusal) -> None:
    if refusal.retry_after_s is not None:
        wait_s = max(1, math.ceil(refusal.retry_after_s))
        retry_after = ((b"retry-after", str(wait_s).encode()),)
        message = f"Too many tokens were tried from this address; wait {wait_s} s."
        await answer_error(send, "too_many_attempts", message, retry_after)
        return
    challenge = ((b"www-authenticate", b"Bearer"),)
    await answer_error(send, "unauthorized", "Give an admin token as `Authorization: Bearer …`.", challenge)


def bearer(headers: Mapping[bytes, bytes]) -> str:
    """The token that a request shows, or empty."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip().decode("utf-8", "surrogateescape") if scheme.lower() == b"bearer" else ""


def _with_id(send: Send, request_id: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID_HEADER, request_id.encode())]
        await send(message)

    return sending


async def _read(receive: Receive, declared: bytes) -> bytes | None:
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
