"""Decides: a request becomes a `Reply`, a value that says what to send and how to break it. Does no IO.

Authenticates, routes, refuses in the right dialect, plans the answer and renders it.
"""

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qs, parse_qsl

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator import anthropic, openai, openai_responses
from tollkeeper.simulator.account import Account, Caller
from tollkeeper.simulator.answers import Events, Identity, quoted
from tollkeeper.simulator.asks import Ask, Endpoint, Refusal, parse_ask
from tollkeeper.simulator.directives import Directive, Fault
from tollkeeper.simulator.media import MEDIA_PATHS, serve_media
from tollkeeper.simulator.plan import Plan, plan_answer
from tollkeeper.simulator.stored import Shelf

MODELS_SHOWN: Final = (
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4.1",
    "o4-mini",
    "text-embedding-3-small",
    "claude-sonnet-5",
    "claude-haiku-4-5",
)
"""What GET /v1/models lists if the simulator was given no models of its own: then every name is served."""
PAGE_MAX: Final = 10_000
_REMEMBERED_MAX: Final = 1024
_REMEMBERED_BYTES_MAX: Final = 4096
_ENDPOINTS: Final = {str(endpoint): endpoint for endpoint in Endpoint}
AZURE_PREFIX: Final = "/openai/"
_BY_DEPLOYMENT: Final = frozenset(
    f"/v1/{path}"
    for path in (
        *("chat/completions", "completions", "embeddings", "audio/speech", "audio/transcriptions"),
        *("audio/translations", "images/generations", "images/edits"),
    )
)
KEPT_PREFIXES: Final = ("/v1/responses/", "/v1/files", "/v1/batches")
_MODELS_PATH: Final = "/v1/models"
_SIMULATOR_PATHS: Final = {"/sim/served": "GET", "/sim/requests": "GET", "/sim/reset": "POST"}
_JSON: Final = msgspec.json.Encoder()


class _Stores(msgspec.Struct):
    store: bool | None = None
    background: bool | None = None


class Received(msgspec.Struct, frozen=True, gc=False):
    """A whole request. `keep_alive` False: the connection closes after the answer. `http_11`: it may be chunked."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    http_11: bool


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What to send: `body`, or `events` if it is a stream. `caller` None: it is not in the account.

    `headers` are whole lines. `usage` is what is billed if the answer is produced.
    """

    status: int
    body: bytes
    headers: str = ""
    caller: Caller | None = None
    usage: Usage | None = None
    events: Events | None = None
    delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    fault: Fault | None = None
    after: int | None = None
    media_type: str = "application/json"

    @property
    def closes_unannounced(self) -> bool:
        """The connection is closed after the answer, whatever its head says."""
        return self.fault is Fault.CLOSE


class Service:
    """The provider without its network. `first_byte_delay_s` and `chunk_delay_s` hold where no directive does."""

    def __init__(
        self,
        *,
        account: Account,
        first_byte_delay_s: float,
        chunk_delay_s: float,
        api_keys: Collection[str] | None,
        models: Collection[str] | None,
        now_us: Callable[[], int],
    ) -> None:
        self._account = account
        self._first_byte_delay_s = first_byte_delay_s
        self._chunk_delay_s = chunk_delay_s
        self._keys = None if api_keys is None else frozenset(key.encode() for key in api_keys)
        self._models = None if models is None else tuple(models)
        self._now_us = now_us
        self._answers = 0
        self._seen: dict[bytes, int] = {}
        self.shelf = Shelf()

    def answer(self, request: Received) -> Reply:
        """The reply to a request."""
        if request.path.startswith(AZURE_PREFIX):
            return self._answer_as_azure(request)
        endpoint = _ENDPOINTS.get(request.path)
        if endpoint is not None and request.method == "POST":
            return self._serve(endpoint, request)
        if request.path in MEDIA_PATHS and request.method == "POST":
            return self._serve_media(request)
        if request.path.startswith(KEPT_PREFIXES):
            return self._serve_kept(request)
        return self._answer_about(request)

    def _answer_as_azure(self, request: Received) -> Reply:
        """Azure's addressing: a deployment in the path, `api-key`, and an `api-version`, without which it is 404."""
        pairs = parse_qsl(request.query)
        named = re.fullmatch(r"/openai/(?:deployments/([^/]+)/)?(.+)", request.path)
        if named is None or "api-version" not in dict(pairs) or request.path.startswith("/openai/v1/"):
            return Reply(404, openai.error_body(Refusal(404, "Resource not found", code="404")))
        headers = dict(request.headers)
        headers[b"authorization"] = b"Bearer " + headers.get(b"api-key", b"")
        path = f"/v1/{named[2]}"
        if (path in _BY_DEPLOYMENT) != (named[1] is not None):
            return Reply(404, openai.error_body(Refusal(404, "Resource not found", code="404")))
        return self.answer(msgspec.structs.replace(request, path=path, headers=headers))

    def _answer_about(self, request: Received) -> Reply:
        """What is no work for a model."""
        if request.path in _SIMULATOR_PATHS:
            return self._simulator(request)
        if request.path == _MODELS_PATH and request.method == "GET":
            return self._list_models(request)
        if request.path in _ENDPOINTS or request.path == _MODELS_PATH or request.path in MEDIA_PATHS:
            return Reply(405, openai.error_body(openai.wrong_method(request.method, request.path)))
        return Reply(404, openai.error_body(openai.unknown_url(request.method, request.path)))

    def _serve(self, endpoint: Endpoint, request: Received) -> Reply:
        self._answers += 1
        refusal = None if self._keys is None else self._refuse_key(endpoint is Endpoint.MESSAGES, request)
        decide = _decided_before if len(request.body) <= _REMEMBERED_BYTES_MAX else _decide
        decided = refusal or decide(endpoint, request.body)
        if isinstance(decided, Refusal):
            return self._error(decided, Caller(endpoint, "", "", _request_id(request), False))
        ask, plan = decided
        if not self._applies(ask, request.body):
            ask = msgspec.structs.replace(ask, directive=ask.directive.spent())
            plan = plan_answer(ask)
        caller = Caller(endpoint, ask.model, ask.user, _request_id(request), ask.stream)
        if self._models is not None and ask.model not in self._models:
            return self._error(_dialect(endpoint).unknown_model(ask.model), caller)
        if ask.directive.status is not None:
            return self._error(_dialect(endpoint).directed_error(ask.directive.status), caller, ask.directive)
        name = Identity(self._answers, quoted(ask.model), self._now_us() // 1_000_000)
        if endpoint is Endpoint.RESPONSES:
            missing = self.shelf.missing(request.body)
            if missing is not None:
                return self._error(missing, caller)
            asked = msgspec.json.decode(request.body, type=_Stores)
            if asked.store is not False:
                self.shelf.keep_response(openai_responses.response_body(ask, plan, name), request.body)
            if asked.background and not ask.stream:
                early = openai_responses.queued_body(ask, name)
                return self._reply(200, early, caller, ask.directive, usage=plan.usage, events=None)
        events = _render_events(ask, plan, name) if ask.stream else None
        body = b"" if events is not None else _render_body(ask, plan, name)
        if ask.directive.fault is Fault.BAD_JSON:
            body = body[: len(body) * 2 // 3]
        return self._reply(200, body, caller, ask.directive, usage=plan.usage, events=events)

    def _serve_media(self, request: Received) -> Reply:
        self._answers += 1
        anthropic_dialect = request.path.startswith(Endpoint.MESSAGES)
        refusal = None if self._keys is None else self._refuse_key(anthropic_dialect, request)
        served = refusal or serve_media(request.path, request.headers.get(b"content-type", b""), request.body)
        if isinstance(served, Refusal):
            return self._error(served, Caller(request.path, "", "", _request_id(request), False))
        caller = Caller(request.path, served.model, served.user, _request_id(request), served.events is not None)
        directive = served.directive
        if not self._applied(directive, served.model, request.body):
            directive = directive.spent()
        dialect = _ANTHROPIC if anthropic_dialect else _OPENAI
        if self._models is not None and served.model not in self._models:
            return self._error(dialect.unknown_model(served.model), caller)
        if directive.status is not None:
            return self._error(dialect.directed_error(directive.status), caller, directive)
        body = served.body[: len(served.body) * 2 // 3] if directive.fault is Fault.BAD_JSON else served.body
        reply = self._reply(200, body, caller, directive, usage=served.usage, events=served.events)
        return msgspec.structs.replace(reply, media_type=served.media_type)

    def _serve_kept(self, request: Received) -> Reply:
        self._answers += 1
        anthropic_dialect = b"anthropic-version" in request.headers
        refusal = None if self._keys is None else self._refuse_key(anthropic_dialect, request)
        found = refusal or self.shelf.answer(request.method, request.path, request.headers, request.body)
        caller = Caller(request.path, "", "", _request_id(request), False)
        if found is None:
            return Reply(404, openai.error_body(openai.unknown_url(request.method, request.path)))
        if isinstance(found, Refusal):
            return self._error(found, caller)
        return Reply(200, found.body, _id_header(request.path, self._answers), caller, media_type=found.media_type)

    def _applies(self, ask: Ask, body: bytes) -> bool:
        return self._applied(ask.directive, ask.model, body)

    def _applied(self, directive: Directive, model: str, body: bytes) -> bool:
        """Whether this request is one of those that the directive's error, fault and delay are for."""
        if directive.model is not None and directive.model != model:
            return False
        if directive.times is None:
            return True
        if len(self._seen) >= _REMEMBERED_MAX:
            self._seen.clear()
        self._seen[body] = self._seen.get(body, 0) + 1
        return self._seen[body] <= directive.times

    def _reply(
        self,
        status: int,
        body: bytes,
        caller: Caller,
        directive: Directive,
        *,
        headers: str = "",
        usage: Usage | None = None,
        events: Events | None = None,
    ) -> Reply:
        delay, chunk_delay = directive.delay_ms, directive.chunk_delay_ms
        return Reply(
            status,
            body,
            headers or _id_header(caller.path, self._answers),
            caller,
            usage,
            events,
            self._first_byte_delay_s if delay is None else delay / 1000,
            self._chunk_delay_s if chunk_delay is None else chunk_delay / 1000,
            directive.fault,
            directive.after,
        )

    def _error(self, refusal: Refusal, caller: Caller, directive: Directive | None = None) -> Reply:
        headers = _id_header(caller.path, self._answers)
        if caller.path.startswith(Endpoint.MESSAGES):
            body = anthropic.error_body(refusal, f"req_{self._answers:024x}")
        else:
            body = openai.error_body(refusal)
        if directive is None:
            return Reply(refusal.status, body, headers, caller)
        if directive.retry_after is not None:
            headers += f"retry-after: {directive.retry_after}\r\n"
        return self._reply(refusal.status, body, caller, directive, headers=headers)

    def _refuse_key(self, anthropic_dialect: bool, request: Received) -> Refusal | None:
        assert self._keys is not None
        bearer = request.headers.get(b"authorization", b"")
        given = bearer[7:] if bearer[:7].lower() == b"bearer " else b""
        if anthropic_dialect:
            given = request.headers.get(b"x-api-key", given)
        if given in self._keys:
            return None
        if anthropic_dialect:
            return anthropic.wrong_key() if given else anthropic.missing_key()
        return openai.wrong_key(given.decode("latin-1")) if given else openai.missing_key()

    def _list_models(self, request: Received) -> Reply:
        models = MODELS_SHOWN if self._models is None else self._models
        as_anthropic = b"anthropic-version" in request.headers
        refusal = None if self._keys is None else self._refuse_key(as_anthropic, request)
        if as_anthropic:
            number = self._answers = self._answers + 1
            if refusal is not None:
                return Reply(refusal.status, anthropic.error_body(refusal, f"req_{number:024x}"))
            return Reply(200, anthropic.models_body(models))
        if refusal is not None:
            return Reply(refusal.status, openai.error_body(refusal))
        return Reply(200, openai.models_body(models))

    def _simulator(self, request: Received) -> Reply:
        if request.method != _SIMULATOR_PATHS[request.path]:
            return Reply(405, openai.error_body(openai.wrong_method(request.method, request.path)))
        if request.path == "/sim/reset":
            self._account.reset()
            return Reply(200, b'{"reset":true}')
        if request.path == "/sim/served":
            return Reply(200, _JSON.encode(self._account.summary()))
        since = parse_qs(request.query).get("since", ["0"])[-1]
        if not since.isdecimal() or len(since) > 18:
            return Reply(400, openai.error_body(Refusal(400, "since must be a sequence number", param="since")))
        return Reply(200, _JSON.encode(self._account.since(int(since), PAGE_MAX)))


def _decide(endpoint: Endpoint, body: bytes) -> tuple[Ask, Plan] | Refusal:
    ask = parse_ask(endpoint, body)
    return ask if isinstance(ask, Refusal) else (ask, plan_answer(ask))


_decided_before: Final = lru_cache(maxsize=_REMEMBERED_MAX)(_decide)
"""Decisions are pure, and benchmarks repeat their requests."""


class _Dialect(msgspec.Struct, frozen=True):
    unknown_model: Callable[[str], Refusal]
    directed_error: Callable[[int], Refusal]


_OPENAI: Final = _Dialect(openai.unknown_model, openai.directed_error)
_ANTHROPIC: Final = _Dialect(anthropic.unknown_model, anthropic.directed_error)


def _dialect(endpoint: Endpoint) -> _Dialect:
    return _ANTHROPIC if endpoint is Endpoint.MESSAGES else _OPENAI


def _request_id(request: Received) -> str:
    return request.headers.get(b"x-request-id", b"").decode("latin-1")


def _id_header(path: str, number: int) -> str:
    name = "request-id" if path.startswith(Endpoint.MESSAGES) else "x-request-id"
    return f"{name}: req_{number:024x}\r\n"


def _render_body(ask: Ask, plan: Plan, name: Identity) -> bytes:
    match ask.endpoint:
        case Endpoint.CHAT:
            return openai.chat_body(plan, name)
        case Endpoint.COMPLETIONS:
            return openai.completion_body(plan, name)
        case Endpoint.EMBEDDINGS:
            return openai.embeddings_body(ask, plan, name)
        case Endpoint.RESPONSES:
            return openai_responses.response_body(ask, plan, name)
        case Endpoint.MESSAGES:
            return anthropic.message_body(plan, name)


def _render_events(ask: Ask, plan: Plan, name: Identity) -> Events:
    match ask.endpoint:
        case Endpoint.CHAT:
            return openai.chat_events(ask, plan, name)
        case Endpoint.COMPLETIONS:
            return openai.completion_events(ask, plan, name)
        case Endpoint.RESPONSES:
            return openai_responses.response_events(ask, plan, name)
        case Endpoint.MESSAGES:
            return anthropic.message_events(plan, name)
        case Endpoint.EMBEDDINGS:
            raise AssertionError("embeddings are not streamed")
