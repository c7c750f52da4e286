"""ASGI middleware that limits requests: pure ASGI, for any framework.

    app.add_middleware(RateLimitMiddleware, limiter=limiter, limit=100)   # FastAPI, Starlette
    app = RateLimitMiddleware(app, limiter=limiter, limit=100, key=lambda scope: user_of(scope))

It knows no more of HTTP than a status, headers and a JSON body; the rest is limit_rules.py.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.governance.limit_rules import AWAY_RETRY_S, Headers, Limiter, LimitRule, WhenAway, away, body, refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TRY_AGAIN_LATER = 1013
"""WebSocket close code."""


def client_address(scope: Scope) -> str:
    """The address of the peer, as the server tells it; one id for all where it tells none (a unix socket).

    Behind a proxy that is the proxy, unless the server was told to trust its headers (uvicorn: --proxy-headers).
    """
    client = scope.get("client")
    return client[0] if client else "-"


class RateLimitMiddleware:
    """Asks `limiter` for each HTTP request and WebSocket, and answers 429 itself when it says no.

    `key` gives the id that is limited (default: the peer's address), or None for what is not. `cost` is a weight, or
    gives it. `limit`, `burst`, `when_away`, `name`: see LimitRule. Answers carry `ratelimit`, `ratelimit-policy` and
    `x-ratelimit-*` headers; a refusal `retry-after` and `{"error": {"code", "message", "retry_after"}}`. Where an
    inner limiter has set `x-ratelimit-*`, its headers stay, and ours are not added.
    """

    def __init__(
        self,
        app: App,
        limiter: Limiter,
        limit: int,
        *,
        burst: int | None = None,
        key: Callable[[Scope], str | None] = client_address,
        cost: int | Callable[[Scope], int] = 1,
        when_away: WhenAway = "bounded",
        name: str = "default",
    ) -> None:
        self.app = app
        self.rule = LimitRule(limiter, limit, burst=burst, when_away=when_away, name=name)
        self._key = key
        self._cost = cost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key_id = self._key(scope) if scope["type"] in ("http", "websocket") else None
        if key_id is None:
            await self.app(scope, receive, send)
            return
        try:
            result = await self.rule.ask(key_id, self._cost if isinstance(self._cost, int) else self._cost(scope))
        except StoreUnavailable:
            await _refuse(scope, send, *away(), [("retry-after", str(AWAY_RETRY_S))])
            return
        if result is None:
            await self.app(scope, receive, send)
        elif result:
            await self.app(scope, receive, _with_headers(send, self.rule.headers(result)))
        else:
            await _refuse(scope, send, *refusal(result), self.rule.headers(result))


def _with_headers(send: Send, headers: Headers) -> Send:
    raw = [(name.encode(), value.encode()) for name, value in headers]

    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            present = list(message.get("headers", ()))
            if all(name.lower() != b"x-ratelimit-limit" for name, _ in present):
                message["headers"] = present + raw
        await send(message)

    return sending


async def _refuse(scope: Scope, send: Send, status: int, error: dict[str, object], headers: Headers) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": error["message"]})
        return
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    content = body(error)
    raw = [(name.encode(), value.encode()) for name, value in headers]
    raw += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": f"{prefix}.response.start", "status": status, "headers": raw})
    await send({"type": f"{prefix}.response.body", "body": content})
