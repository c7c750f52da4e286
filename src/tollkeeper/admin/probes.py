"""What anyone may ask without a token: `/`, `/healthz`, `/readyz`, `/metrics`. Plain ASGI.

Readiness asks every dependency, with a deadline, and tells what each said; the answer is kept for a moment so that
nobody can wear the database out by asking. Which dependencies there are, the composition root says.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from tollkeeper.admin.asgi import Receive, Scope, Send, answer, answer_error
from tollkeeper.domain.errors import TollkeeperError

Probe = Callable[[], Awaitable[str | None]]
"""Answers with a remark or None, or raises a TollkeeperError whose message says what is wrong."""
Exposition = Callable[[], Awaitable[bytes]]
"""Metrics in Prometheus' text format."""
PROBE_TIMEOUT_S: Final = 2.0
KEPT_S: Final = 0.5

INDEX: Final = """Tollkeeper {version}: an LLM gateway.

Point an OpenAI SDK at <this address>/v1 and an Anthropic SDK at <this address>, with a Tollkeeper key.

  /dashboard    spend, keys, limits, logs
  /docs         the API
  /openapi.json the API, for machines
  /healthz      alive
  /readyz       each dependency with its state
  /metrics      Prometheus
"""


class Degraded(str):
    """A remark: the dependency is away, and the gateway serves without it, as its operator chose."""

    __slots__ = ()


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one dependency said."""

    ok: bool
    detail: str
    degraded: bool = False


class Readiness:
    """Asks all dependencies at once."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._answer: dict[str, Check] = {}
        self._asked_s = float("-inf")
        self._lock = asyncio.Lock()

    async def checks(self) -> dict[str, Check]:
        """Every dependency's state, at most half a second old."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._asked_s > KEPT_S:
                states = await asyncio.gather(*(_ask(probe) for probe in self._probes.values()))
                self._answer = dict(zip(self._probes, states, strict=True))
                self._asked_s = asyncio.get_running_loop().time()
        return self._answer


async def _ask(probe: Probe) -> Check:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            detail = await probe() or "ok"
            return Check(True, str(detail), isinstance(detail, Degraded))
    except TimeoutError:
        return Check(False, f"no answer within {PROBE_TIMEOUT_S:g} s")
    except TollkeeperError as error:
        return Check(False, str(error))


class Probes:
    """An ASGI application for the paths in `PATHS`. `index` is what `/` says; without one, `/` and all others are a
    404."""

    PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/metrics"})

    def __init__(self, *, readiness: Readiness, exposition: Exposition, index: str | None = None) -> None:
        self._readiness = readiness
        self._exposition = exposition
        self._index = None if index is None else index.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] not in ("GET", "HEAD"):
            allow = ((b"allow", b"GET, HEAD"),)
            await answer_error(send, "method_not_allowed", "Only GET is served here.", allow)
            return
        match scope["path"]:
            case "/healthz":
                await answer(send, 200, b'{"alive":true}', "application/json")
            case "/readyz":
                await self._ready(send)
            case "/metrics":
                page = await self._exposition()
                await answer(send, 200, page, "text/plain; version=0.0.4; charset=utf-8")
            case "/" if self._index is not None:
                await answer(send, 200, self._index, "text/plain; charset=utf-8")
            case _:
                await answer_error(send, "not_found", "Here are /healthz, /readyz and /metrics.")

    async def _ready(self, send: Send) -> None:
        checks = await self._readiness.checks()
        ready = all(check.ok for check in checks.values())
        degraded = any(check.degraded for check in checks.values())
        body = msgspec.json.encode({"ready": ready, "degraded": degraded, "checks": checks})
        await answer(send, 200 if ready else 503, body, "application/json")
