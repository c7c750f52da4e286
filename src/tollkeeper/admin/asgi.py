"""Small pieces of plain ASGI for what is asked too often, or too early, for a framework: answers and a guard.

Knows nothing of accounts; `api.py` puts FastAPI behind the guard.
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ADMIN_PREFIX: Final = "/admin/"
BODY_BYTES_MAX: Final = 2**20
"""Largest body the admin API reads."""


async def answer(
    send: Send, status: int, body: bytes, content_type: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
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


def error_body(kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The one shape of an error."""
    return {"error": {"type": kind, "message": message, "param": param}}


async def answer_error(
    send: Send, status: int, kind: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send an error."""
    await answer(send, status, msgspec.json.encode(error_body(kind, message)), "application/json", headers)


class Guard:
    """Lets only requests with the admin token through to `/admin/`, and never more than 1 MiB of a body.

    It stands before the framework, which would read and parse a body before it asks who sent it.
    """

    def __init__(self, inner: Application, admin_token: str) -> None:
        self._inner = inner
        self._expected = f"Bearer {admin_token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(ADMIN_PREFIX):
            await self._inner(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._admits(headers.get(b"authorization", b"")):
            challenge = ((b"www-authenticate", b"Bearer"),)
            message = "Give the admin token as `Authorization: Bearer …`."
            await answer_error(send, 401, "unauthorized", message, challenge)
            return
        body = await _read(receive, headers.get(b"content-length", b""))
        if body is None:
            await answer_error(send, 413, "request_too_large", f"A body may have {BODY_BYTES_MAX} bytes.")
            return
        await self._inner(scope, _replay(body, receive), send)

    def _admits(self, given: bytes) -> bool:
        scheme, _, token = given.partition(b" ")
        return hmac.compare_digest(b"Bearer " + token.strip(), self._expected) and scheme.lower() == b"bearer"


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
