"""The data plane: an ASGI callable for `/v1/*` that takes each request through the steps, one file each.

authenticate → bound → admit → dispatch → stream → settle → record. This file is their order, the deadlines around
them and the one place where an exception becomes HTTP. It knows no wire format and no rule of money.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from tollkeeper.domain.admission import Denial, limit_states
from tollkeeper.domain.bodies import ByteBudget
from tollkeeper.domain.errors import DatabaseUnavailable, Fault, RequestError, Unavailable, UpstreamError
from tollkeeper.domain.objects import ObjectKind, ObjectRegistry
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import Corrector, Governor, KeyDirectory, RecordSink
from tollkeeper.domain.record import RequestRecord
from tollkeeper.gateway.admit import RequestIds
from tollkeeper.gateway.asgi import AsgiClient, Client, Header, HttpError, InFlight, Receive, Scope, Send
from tollkeeper.gateway.attempts import Attempts
from tollkeeper.gateway.authenticate import KeyTable, secret_of
from tollkeeper.gateway.bound import Bounder
from tollkeeper.gateway.capture import CAPTURED_BYTES_MAX, capturing
from tollkeeper.gateway.catalog import Catalog
from tollkeeper.gateway.dialects import (
    ENDPOINTS,
    Call,
    Endpoint,
    Reference,
    error_body,
    error_event,
    error_status,
    limit_headers,
    lines_of,
    off_route,
    parse,
    references,
    refusal_fault,
    refusal_headers,
    refusal_message,
)
from tollkeeper.gateway.egress import Proxy
from tollkeeper.gateway.fleet import Fleet, breaker_rules
from tollkeeper.gateway.followup import FollowUp
from tollkeeper.gateway.http1_pool import Http1Upstream
from tollkeeper.gateway.instruments import Instruments
from tollkeeper.gateway.kept import KeptRoutes, ObjectKeeper
from tollkeeper.gateway.labels import end_user
from tollkeeper.gateway.models import ModelList
from tollkeeper.gateway.objects import Objects
from tollkeeper.gateway.record import HUNG_UP, Exchange, record_of
from tollkeeper.gateway.routing import Pool, Router, check_allowed, confined
from tollkeeper.gateway.spans import plain_span, spans_of
from tollkeeper.gateway.stream import JSON, degraded_header, lines_for
from tollkeeper.gateway.upstream import Upstream
from tollkeeper.observability.logging import about_request, logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.observability.tracing import Tracing
from tollkeeper.settings import ProviderSettings, Settings

MODELS_PATH: Final = "/v1/models"
RETRY_AFTER: Final[Header] = (b"retry-after", b"1")
"""With a 503 of ours: the part that is away is asked again every second or so."""
STORE_AWAY: Final = "Limits and budgets cannot be checked at the moment. Try again shortly."
OBJECTS_AWAY: Final = "Whose stored objects these are cannot be looked up at the moment. Try again shortly."
FALSE: Final = msgspec.Raw(b"false")
UPLOADS_FULL: Final = "Too many files are being uploaded at the moment. Try again shortly."
CANCELLED: Final = "cancelled"
"""In the record: the gateway stopped, or its server gave the request up."""
ALLOW_GET: Final[Header] = (b"allow", b"GET, HEAD")
SERVED: Final = ", ".join((*ENDPOINTS, MODELS_PATH))


class DataPlane:
    """ASGI 3 for `/v1/*`. `start` before the first request, `stop` after the listener takes no more.

    `provider_keys` maps each configured provider to its API key, or None if it needs none; `proxies` those that are
    reached through one to it. `now_us` is Unix time in microseconds.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        provider_keys: Mapping[str, str | None],
        proxies: Mapping[str, Proxy | None] | None = None,
        digest_key: bytes,
        directory: KeyDirectory,
        governor: Governor,
        records: RecordSink,
        metrics: Metrics,
        now_us: Callable[[], int],
        objects: ObjectRegistry,
        corrector: Corrector,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings, self._records, self._now_us = settings, records, now_us
        self._tracing, self._proxies = tracing, proxies or {}
        self._keys = KeyTable(directory, digest_key, metrics)
        self._objects = Objects(objects, metrics, now_us)
        self._router = Router(settings)
        catalog = Catalog(settings)
        self._models = ModelList(settings, catalog, self._router)
        self._in_flight = InFlight()
        self._ended: list[tuple[Exchange, float]] = []
        """Requests that ended in this turn of the loop, each with how long it took in seconds: at most one for each
        connection. They are in flight until they are written down."""
        self._expected = 0
        """How many of these get a record."""
        self._instruments = Instruments(metrics, self._in_flight)
        fleet = Fleet(breaker_rules(settings.routing), self._router.named())
        metrics.gauges(
            "tollkeeper_deployment_cooldown",
            "0: requests go there; 1: one request tries it; 2: it cools down.",
            ("provider", "model"),
            lambda: fleet.states(now_us()),
        )
        self._attempts = Attempts(
            settings=settings,
            provider_keys=provider_keys,
            bounder=Bounder(settings, catalog),
            fleet=fleet,
            governor=governor,
            instruments=self._instruments,
            now_us=now_us,
        )
        self._uploads = ByteBudget(settings.server.uploads_bytes_max)
        self._kept = KeptRoutes(
            settings, self._objects, self._attempts, self._uploads, self._refuse, self._router, corrector, now_us
        )
        self._follow_up = FollowUp(settings, self._objects, self._kept, self._attempts, metrics, now_us)
        self._capture = capturing(settings.logs, ByteBudget(CAPTURED_BYTES_MAX))
        self._ids = RequestIds()
        self._log = logger("gateway")

    def __repr__(self) -> str:
        return f"<DataPlane active={len(self._in_flight)} draining={self._instruments.draining} {self._keys!r}>"

    async def start(self) -> None:
        """Load the keys and open the pools. A database that is away is no failure: see `health`."""
        self._attempts.upstreams = _open_upstreams(self._settings.providers, self._proxies)
        await self._objects.start()
        await self._keys.start()
        self._follow_up.start()

    async def stop(self) -> None:
        """Let requests in flight and drains end by themselves up to `drain_timeout_s`, then end and charge them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.server.drain_timeout_s):
                await self._in_flight.over()
        tasks = self._in_flight.tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._write_down()
        await self._follow_up.stop()
        await self._objects.stop()
        await self._keys.stop()
        for upstream in set(self._attempts.upstreams.values()):
            await upstream.close()

    def health(self) -> dict[str, Any]:
        """For readiness: the table of keys and its age in seconds (None: never loaded), and what is in flight."""
        return {
            "keys": len(self._keys),
            "keys_stale_s": self._keys.stale_s(),
            "keys_degraded": self._keys.degraded,
            "active_requests": len(self._in_flight),
            "draining_requests": self._instruments.draining,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = AsgiClient(scope, receive, send)
        task = asyncio.current_task()
        assert task is not None
        client.task = task
        await self.direct(client)

    async def direct(self, client: Client) -> None:
        """Carry out a request in its task, from our own server without ASGI's messages in between."""
        exchange = Exchange(client, self._ids.next(), self._now_us())
        about_request(exchange.request_id)
        if self._tracing is not None:
            exchange.trace = self._tracing.begin(client.header(b"traceparent"), client.header(b"tracestate"))
        self._in_flight.begin(client)
        try:
            if exchange.endpoint is not None and exchange.named is None and client.method == "POST":
                await self._generate(exchange, exchange.endpoint)
            else:
                await self._route(exchange)
        except asyncio.CancelledError:
            exchange.error = CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - everything that can go wrong becomes HTTP, here and nowhere else
            await self._tell(exchange, error)
        finally:
            self._close(exchange)

    async def _tell(self, exchange: Exchange, error: Exception) -> None:
        """What went wrong with a request, in its dialect. What nobody foresaw is logged, and settled all the same."""
        if isinstance(error, HttpError):
            await self._fail(exchange, error.fault, error.message, status=error.status, headers=error.headers)
        elif isinstance(error, RequestError):
            await self._fail(exchange, error.fault, error.message, param=error.param)
        elif isinstance(error, UpstreamError):
            await self._fail(exchange, error.fault, str(error))
        elif isinstance(error, Unavailable):
            # The key table's words are meant for clients; those of other parts are for operators.
            message = str(error) if exchange.principal is None else STORE_AWAY
            if isinstance(error, DatabaseUnavailable) and exchange.principal is not None:
                message = OBJECTS_AWAY
            await self._fail(exchange, Fault.STORE_AWAY, message, headers=(RETRY_AFTER,))
        else:
            self._log.error(
                "request_failed", request_id=exchange.request_id, path=exchange.client.path, exc_info=error
            )
            message = f"The gateway failed. Quote the request id {exchange.request_id} to its operator."
            await self._fail(exchange, Fault.INTERNAL, message)

    async def _route(self, exchange: Exchange) -> None:
        """All that is not asking a model for something."""
        client, methods = exchange.client, exchange.methods
        if methods and client.method not in methods:
            said = f"{client.path[:200]} takes {', '.join(methods)}."
            raise HttpError(Fault.WRONG_METHOD, said, headers=((b"allow", ", ".join(methods).encode()),))
        if exchange.named is not None:
            await self._kept.serve(exchange, exchange.named, await self._authenticate(exchange))
        elif client.path == MODELS_PATH or client.path.startswith(f"{MODELS_PATH}/"):
            if client.method not in ("GET", "HEAD"):
                raise HttpError(Fault.WRONG_METHOD, f"{client.path} takes GET.", headers=(ALLOW_GET,))
            await self._list_models(exchange, client.path[len(MODELS_PATH) + 1 :])
        else:
            off = off_route(client.path)
            raise RequestError(
                Fault.UNKNOWN_ROUTE, off or f"There is no {client.path[:200]} here. Served are {SERVED}."
            )

    async def _list_models(self, exchange: Exchange, name: str) -> None:
        principal = await self._authenticate(exchange)
        dialect = exchange.dialect
        body = self._models.one(principal, name, dialect) if name else self._models.all(principal, dialect)
        exchange.status = 200
        await exchange.client.respond(200, exchange.id_lines() + JSON, body)

    async def _authenticate(self, exchange: Exchange) -> Principal:
        principal = exchange.principal = await self._keys.principal(_secret_of(exchange.client), exchange.time_us)
        self._instruments.authentication.observe(exchange.age_s())
        return principal

    def _known(self, exchange: Exchange) -> Principal | None:
        """The same for a key of the table that nothing speaks against, without waiting; None for any other."""
        principal = exchange.principal = self._keys.known(_secret_of(exchange.client), exchange.time_us)
        if principal is not None:
            self._instruments.authentication.observe(exchange.age_s())
        return principal

    async def _generate(self, exchange: Exchange, endpoint: Endpoint) -> None:
        client, server = exchange.client, self._settings.server
        principal = self._known(exchange) or await self._authenticate(exchange)
        client.check_encoding()
        if endpoint.form:
            await self._generate_of_form(exchange, endpoint, principal)
            return
        body = client.body_at_once(server.body_bytes_max)
        if body is None:
            body = await client.body(server.body_bytes_max, server.body_timeout_s)
        if body is None:
            return
        capture = exchange.capture = self._capture(client, principal, endpoint)
        if capture is not None:
            capture.request(body)
        call = parse(endpoint, body, model=exchange.model)
        named = None if call.content.plain else references(call, body)
        place = await self._place_of(principal, named) if named else None
        denial = await self._attempts.serve(
            exchange, endpoint, self._begun(exchange, endpoint, principal, call, place)
        )
        if denial is not None:
            await self._refuse(exchange, denial)

    async def _place_of(self, principal: Principal, named: Collection[Reference]) -> str:
        """The one provider that keeps all of these. Raises RequestError, Unavailable."""
        providers = {its.provider for its in await self._objects.owned(principal.root, named)}
        if len(providers) > 1:
            listed = ", ".join(sorted(providers))
            raise RequestError(Fault.ELSEWHERE, f"The request refers to objects at several providers: {listed}.")
        return providers.pop()

    async def _generate_of_form(self, exchange: Exchange, endpoint: Endpoint, principal: Principal) -> None:
        """The same for a form, whose files stay where they arrived. Its record has the texts and the files' names."""
        client, server = exchange.client, self._settings.server
        stated = client.header(b"content-length")
        room = min(int(stated), server.upload_bytes_max) if stated.isdigit() else server.upload_bytes_max
        if not self._uploads.take(room):
            raise HttpError(Fault.OVERLOADED, UPLOADS_FULL, headers=(RETRY_AFTER,))
        try:
            body = await client.upload(server.upload_bytes_max, server.body_timeout_s)
            if body is None:
                return
            call = parse(endpoint, body, client.header(b"content-type"), model=exchange.model)
            capture = exchange.capture = self._capture(client, principal, endpoint)
            if capture is not None:
                assert call.form is not None
                capture.request(call.form.described())
            denial = await self._attempts.serve(exchange, endpoint, self._begun(exchange, endpoint, principal, call))
            if denial is not None:
                await self._refuse(exchange, denial)
        finally:
            self._uploads.give(room)

    def _begun(
        self, exchange: Exchange, endpoint: Endpoint, principal: Principal, call: Call, place: str | None = None
    ) -> tuple[Pool, ...]:
        """What serves a call that was read; `place` is the provider that keeps what it refers to.

        Raises RequestError.
        """
        exchange.call = call
        exchange.user = end_user(exchange.client, call)
        pools = self._router.pools(call.model, endpoint.dialect)
        if principal.restricts_models:
            check_allowed(principal, call.model, pools[0].deployments[0].route.model)
        if place is not None:
            pools = (confined(pools, place),)
        if endpoint.name == "responses" and call.fields.get("store") != FALSE:
            exchange.keep = ObjectKeeper(self._objects, exchange, ObjectKind.RESPONSE, self._now_us)
        return pools

    async def _refuse(self, exchange: Exchange, denial: Denial) -> None:
        refusal = denial.refusal
        self._instruments.refused(refusal.kind, refusal.scope)
        exchange.refused_by = f"{refusal.scope}/{refusal.kind}"
        states = limit_states(denial.checks, denial.reply)
        headers = [
            *limit_headers(exchange.dialect, states, denial.reply.now_us),
            *refusal_headers(refusal),
        ]
        if denial.reply.degraded:
            headers.append(degraded_header(denial.reply))
        await self._fail(exchange, refusal_fault(refusal), refusal_message(refusal), headers=headers)

    async def _fail(
        self,
        exchange: Exchange,
        fault: Fault,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        headers: Iterable[Header] = (),
    ) -> None:
        """Tell the client, after the end of what it may have cost. In the middle of a stream: as an event."""
        client, dialect, request_id = exchange.client, exchange.dialect, exchange.request_id
        exchange.error = fault.value
        if exchange.attempt is not None:
            exchange.attempt.finish()
        self._instruments.errors.labels(fault).inc()
        if client.started and exchange.raw:
            return  # unfinished, so that the connection is cut: the only way to tell
        if client.started:
            await client.send(error_event(dialect, fault, message, param, request_id), last=True)
            return
        exchange.status = status or error_status(fault)
        body = error_body(dialect, fault, message, param, request_id)
        if exchange.capture is not None:
            exchange.capture.response(body)
        await client.respond(exchange.status, lines_for(exchange) + JSON + lines_of(headers), body)

    def _close(self, exchange: Exchange) -> None:
        """The end of every request, also of a cancelled one: nothing stays unsettled, and it is written down soon."""
        attempt = exchange.attempt
        try:
            if attempt is not None:
                attempt.finish()
                if exchange.keep is not None:
                    exchange.keep.ended()
        finally:
            self._ended.append((exchange, exchange.age_s()))
            if self._is_recorded(exchange):
                self._expected += 1
                self._records.expect(self._expected)
            if len(self._ended) == 1:
                exchange.client.task.get_loop().call_soon(self._write_down)

    def _is_recorded(self, exchange: Exchange) -> bool:
        """Every admitted request is, and of the others of known keys each if the settings say so."""
        if exchange.attempt is not None:
            return True
        return self._settings.logs.refusals and exchange.endpoint is not None and exchange.principal is not None

    def _write_down(self) -> None:
        """Write down the requests that have ended. What a turn of the loop writes to sockets leaves at its end, so no
        client waits for this, and several in a row cost less than each by itself. If the process is killed before,
        the log knows how many records are missing."""
        ended, self._ended, self._expected = self._ended, [], 0
        for exchange, age_s in ended:
            about_request(exchange.request_id)
            try:
                self._note(exchange, age_s)
            except Exception:  # noqa: BLE001 - the others are written down all the same
                self._log.exception("request_not_recorded")
            finally:
                self._in_flight.end(exchange.client)

    def _note(self, exchange: Exchange, age_s: float) -> None:
        """One record, and the numbers."""
        client, instruments = exchange.client, self._instruments
        if client.gone:
            instruments.hangups.inc()
        if client.gone and not client.started:
            exchange.status = HUNG_UP
        elif exchange.status == 0:
            exchange.status = error_status(Fault.OVERLOADED)
        record = None
        if self._is_recorded(exchange):
            record = self._record(exchange, age_s)
        elif exchange.capture is not None:
            exchange.capture.captured().done()
        instruments.count("other" if exchange.endpoint is None else exchange.endpoint.name, exchange.status)
        if exchange.first_byte_s is None:
            instruments.total.observe(age_s)
        else:
            overhead_s = exchange.first_byte_s - exchange.upstream_s - exchange.paused_s
            instruments.timed(age_s, exchange.first_byte_s, overhead_s if overhead_s > 0 else 0.0)
        if self._tracing is not None:
            self._trace(self._tracing, exchange, record, age_s)

    def _trace(self, tracing: Tracing, exchange: Exchange, record: RequestRecord | None, age_s: float) -> None:
        trace, method = exchange.trace, exchange.client.method
        if trace is None or not trace.sampled:
            return
        if record is None and exchange.endpoint is not None and exchange.principal is not None:
            record = record_of(exchange, age_s)
        if record is None:
            tracing.end(trace, partial(plain_span, trace, exchange, exchange.time_us + int(age_s * 1e6)))
        else:
            tracing.end(trace, partial(spans_of, trace, record, method, exchange.tries))

    def _record(self, exchange: Exchange, age_s: float) -> RequestRecord:
        capture = exchange.capture
        record = record_of(exchange, age_s)
        self._instruments.recorded(record)
        self._records.put(record, None if capture is None else capture.captured())
        return record


def _secret_of(client: Client) -> bytes:
    """The client's secret, or empty."""
    headers = client.headers
    authorization = headers.get(b"authorization", b"")
    secret = authorization[7:].strip() if authorization.startswith(b"Bearer ") else b""
    return secret or secret_of(authorization, headers.get(b"x-api-key", b""), headers.get(b"api-key", b""))


def _open_upstreams(
    providers: Mapping[str, ProviderSettings], proxies: Mapping[str, Proxy | None]
) -> dict[str, Upstream]:
    """The HTTP client of each provider. aiohttp is loaded only for those that ask for it."""
    ours = {name: provider for name, provider in providers.items() if provider.http_client == "http1"}
    upstreams: dict[str, Upstream] = dict.fromkeys(ours, Http1Upstream(ours, proxies))
    theirs = {name: provider for name, provider in providers.items() if provider.http_client == "aiohttp"}
    if theirs:
        from tollkeeper.gateway.upstream_aiohttp import AiohttpUpstream

        upstreams |= dict.fromkeys(theirs, AiohttpUpstream(theirs, proxies))
    return upstreams
