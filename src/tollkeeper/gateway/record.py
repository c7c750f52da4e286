"""Step 7: what becomes known of one request on its way, and the log record made of it at the end.

`Exchange` is filled by the steps in their order and read by nobody else. Durations come from a monotonic clock.
"""

import time
from typing import Final, Protocol

import msgspec

from tollkeeper.domain.policy import Principal
from tollkeeper.domain.pricing import version_of
from tollkeeper.domain.record import AttemptRecord, RequestRecord
from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.bound import Plan
from tollkeeper.gateway.capture import Capture
from tollkeeper.gateway.charge import NOTHING, charge_of, with_parts, with_tokens
from tollkeeper.gateway.dialects import (
    AZURE_PREFIX,
    ENDPOINTS,
    Answer,
    Call,
    Dialect,
    Endpoint,
    Named,
    Produced,
    client_address,
    find_route,
)
from tollkeeper.gateway.labels import METADATA_HEADER, TAGS_HEADER, metadata_of, tags_of
from tollkeeper.gateway.measured import drawn, metered
from tollkeeper.gateway.settle import Attempt
from tollkeeper.observability.tracing import Trace


class Keeper(Protocol):
    """Writes down what an answer leaves at the provider."""

    def note(self, produced: Produced) -> None:
        """It is known to this process."""
        ...

    def ended(self) -> None:
        """The exchange is over and its attempt charged."""
        ...

    async def wait(self) -> None:
        """It is known to all, or that takes too long."""
        ...


POST: Final = ("POST",)
HUNG_UP: Final = 499
"""Status of a request whose client left before an answer began, as in nginx' logs."""
MODEL_CHARS_MAX: Final = 256
"""Of a model's name that only the client knows."""


class Try(msgspec.Struct):
    """One attempt of a request, as the record tells it. Times are seconds after the request's arrival."""

    plan: Plan
    attempt: Attempt
    started_s: float
    ended_s: float
    first_byte_s: float | None = None
    status: int | None = None
    result: str = ""
    sent: bool = True
    span_id: int = 0
    """Of its trace, once it is told to the provider."""
    upstream_request_id: str | None = None

    def end(self, exchange: "Exchange", result: str) -> None:
        """It is over; `result` is the metric's word for how. It does not keep its exchange, which keeps it: a circle
        would leave all of a request to the garbage collector, and each round of that stops every other request."""
        self.ended_s, self.result = time.perf_counter() - exchange.arrived, result
        self.upstream_request_id = exchange.upstream_request_id

    def record(self) -> AttemptRecord:
        """What the log says of it."""
        route, usage = self.plan.route, self.attempt.usage
        return AttemptRecord(
            attempt=self.attempt.grant.demand.attempt,
            provider=route.provider,
            model=route.model,
            upstream_model=route.upstream_model,
            result=self.result,
            status=self.status,
            started_us=int(self.started_s * 1e6),
            first_byte_us=_us(self.first_byte_s),
            ended_us=int(self.ended_s * 1e6),
            tokens_input=usage.input_tokens,
            tokens_output=usage.output_tokens,
            cost_nano=self.attempt.cost_nano,
            hold_nano=self.attempt.grant.demand.hold_nano,
            presumed=self.attempt.presumed,
            upstream_request_id=self.upstream_request_id,
        )


class Exchange:
    """One request as it goes. Times are seconds of `time.perf_counter`, but for `time_us` (Unix)."""

    __slots__ = (
        "admission_s",
        "arrived",
        "attempt",
        "attempts",
        "call",
        "capture",
        "client",
        "dialect",
        "endpoint",
        "error",
        "first_byte_s",
        "keep",
        "methods",
        "model",
        "named",
        "paused_s",
        "plan",
        "principal",
        "queue_s",
        "raw",
        "refused_by",
        "request_id",
        "status",
        "time_us",
        "trace",
        "tries",
        "upstream_request_id",
        "upstream_s",
        "user",
    )

    def __init__(self, client: Client, request_id: str, time_us: int) -> None:
        self.client, self.request_id, self.time_us = client, request_id, time_us
        self.arrived = time.perf_counter()
        self.model: str | None = None  # that the path names, as Azure's do
        self.named: Named | None = None
        self.keep: Keeper | None = None
        self.endpoint: Endpoint | None = ENDPOINTS.get(client.path)
        if self.endpoint is not None:
            self.dialect: Dialect = self.endpoint.dialect
            self.methods: tuple[str, ...] = POST
        else:
            self._find()
        self.trace: Trace | None = None
        self.principal: Principal | None = None
        self.call: Call | None = None
        self.capture: Capture | None = None
        self.plan: Plan | None = None
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.tries: list[Try] = []
        self.status = 0
        self.raw = False  # what is being sent is neither JSON nor events: no error can be told in it
        self.error: str | None = None
        self.refused_by: str | None = None
        self.user: str | None = None
        self.upstream_request_id: str | None = None
        self.admission_s = self.upstream_s = self.paused_s = 0.0
        self.queue_s: float | None = None
        self.first_byte_s: float | None = None

    def _find(self) -> None:
        """What is asked for by a path that is none of our endpoints': Azure's for one, something kept, or nothing."""
        client = self.client
        if client.path.startswith(AZURE_PREFIX):
            address = client_address(client.path, client.query)
            client.path, client.query, self.model = address.path, address.query, address.model
            self.endpoint = ENDPOINTS.get(client.path)
        self.dialect = _dialect(client, self.endpoint)
        self.methods = () if self.endpoint is None else POST
        if self.endpoint is None:
            found = find_route(client.method, client.path, self.dialect)
            if isinstance(found, Named):
                self.named, self.endpoint, self.methods = found, found.route.endpoint, (found.route.method,)
            elif found is not None:
                self.methods = found

    def age_s(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self.arrived

    @property
    def cost_nano(self) -> int:
        """Of all attempts so far."""
        return sum([tried.attempt.cost_nano for tried in self.tries])

    def begin(self, plan: Plan, attempt: Attempt) -> None:
        """An attempt was admitted; the one before has come to its end."""
        self.plan, self.attempt = plan, attempt
        self.upstream_request_id = None
        age_s = time.perf_counter() - self.arrived
        self.tries.append(Try(plan, attempt, age_s, age_s))

    def mark_first_byte(self) -> None:
        """The first byte of the answer's body is out."""
        if self.first_byte_s is None:
            self.first_byte_s = time.perf_counter() - self.arrived

    def mark_dispatched(self, at: float) -> None:
        """An attempt is about to be sent to a provider."""
        self.attempts += 1
        if self.queue_s is None:
            self.queue_s = at - self.arrived

    def id_lines(self) -> str:
        """The request's id as the dialect's SDK looks for it, in lines of the response's head."""
        if self.dialect == "anthropic":
            return f"x-request-id: {self.request_id}\r\nrequest-id: {self.request_id}\r\n"
        return f"x-request-id: {self.request_id}\r\n"

    def charge(self, answer: Answer) -> None:
        """Settle by what the provider told, or charge the hold if it told no usage. Only the first call counts."""
        attempt, plan = self.attempt, self.plan
        assert attempt is not None and plan is not None
        usage = answer.usage
        if plan.call.sold is not None:
            if answer.drawn is not None and plan.info.image_prices:
                size, quality = answer.drawn
                told = drawn(plan.info, size or plan.call.sold.size, quality or plan.call.sold.quality)
                if told.undrawn is not None:  # else what was held for counts
                    plan.info = told
            usage = metered(plan.call, usage, plan.info.price)
        if usage is None:
            attempt.presume()
        elif not attempt.ended:
            charge = charge_of(plan.info, usage, answer.cost, heard=plan.call.content.audio)
            plan.learn(usage)
            if answer.parts:
                charge = with_parts(charge, plan.info, answer.parts, plan.price_of)
                usage = with_tokens(usage, answer.parts)
            attempt.settle(usage, charge)

    def charge_nothing(self) -> None:
        """The provider did nothing that it bills, not even its price per request."""
        assert self.attempt is not None
        self.attempt.settle(NO_USAGE, NOTHING)


def _dialect(client: Client, endpoint: Endpoint | None) -> Dialect:
    """The dialect of errors: by path, else by the header that only Anthropic's clients send."""
    if endpoint is not None:
        return endpoint.dialect
    anthropic = client.path.startswith("/v1/messages") or b"anthropic-version" in client.headers
    return "anthropic" if anthropic else "openai"


def record_of(exchange: Exchange, total_s: float) -> RequestRecord:
    """The record of a request of a known key that has come to its end after `total_s`, admitted or not.

    Only what every record has is given to the constructor, the rest is written into it afterwards: it looks for each
    of its keywords among all of them, and with sixty that is dearer than anything else a request needs.
    """
    principal, endpoint, client, call = exchange.principal, exchange.endpoint, exchange.client, exchange.call
    plan, attempt = exchange.plan, exchange.attempt
    assert principal is not None and endpoint is not None
    record = RequestRecord(
        request_id=exchange.request_id,
        time_us=exchange.time_us,
        key_id=principal.key_id,
        key_name=principal.key_name,
        organisation_id=principal.root,
        endpoint=endpoint.path,
        dialect=endpoint.dialect,
        provider="",
        model="",
        status=exchange.status,
    )
    headers = client.headers
    if b"x-request-id" in headers:
        record.client_request_id = client.request_id
    if METADATA_HEADER in headers or (call is not None and "metadata" in call.fields):
        record.metadata = metadata_of(client, call)
    if TAGS_HEADER in headers:
        record.tags = tags_of(client)
    record.team_id = principal.team_id
    if exchange.user is not None:
        record.user = exchange.user
    if exchange.error is not None:
        record.error, record.refused_by = exchange.error, exchange.refused_by
    record.admitted = attempt is not None
    record.client_disconnected = client.gone
    if exchange.queue_s is not None:
        record.queue_us = int(exchange.queue_s * 1e6)
    if exchange.first_byte_s is not None:
        record.first_byte_us = int(exchange.first_byte_s * 1e6)
    record.admission_us = int(exchange.admission_s * 1e6)
    record.total_us = int(total_s * 1e6)
    record.attempts = exchange.attempts
    record.upstream_request_id = exchange.upstream_request_id
    if call is not None:
        record.streaming = call.stream
    if plan is not None:
        route, price = plan.route, plan.info.price
        record.provider, record.model, record.upstream_model = route.provider, route.model, route.upstream_model
        if price is not None:
            record.price_version = version_of(price, attempt.usage if attempt else NO_USAGE)
    elif call is not None:
        record.model = call.model[:MODEL_CHARS_MAX]
    if attempt is not None:
        _tell_charge(record, exchange, attempt)
    return record


def _tell_charge(record: RequestRecord, exchange: Exchange, attempt: Attempt) -> None:
    """What its attempts held and were charged, and what the last of them used."""
    tries = exchange.tries
    record.cost_source = attempt.cost_source
    if len(tries) == 1:
        record.cost_nano, record.hold_nano = attempt.cost_nano, attempt.grant.demand.hold_nano
        record.presumed = attempt.presumed
    else:
        record.cost_nano = exchange.cost_nano
        record.hold_nano = sum([tried.attempt.grant.demand.hold_nano for tried in tries])
        record.presumed = any(tried.attempt.presumed for tried in tries)
        record.attempt_list = tuple([tried.record() for tried in tries])
    if attempt.grant.reply.shadowed:
        record.shadow_refusals = tuple([f"{s.scope}/{s.kind}" for s in attempt.grant.reply.shadowed])
    tell_usage(record, attempt.usage)


def tell_usage(record: RequestRecord, usage: Usage) -> None:
    """Write every kind of usage into a record that has none yet."""
    record.tokens_input, record.tokens_output = usage.input_tokens, usage.output_tokens
    record.tokens_cached, record.tokens_reasoning = usage.cached_tokens, usage.reasoning_tokens
    if usage.is_plain:
        return
    record.tokens_cache_write = usage.cache_write_tokens
    record.tokens_cache_write_1h = usage.cache_write_1h_tokens
    record.tokens_input_audio = usage.input_audio_tokens
    record.tokens_cached_audio = usage.cached_audio_tokens
    record.tokens_output_audio = usage.output_audio_tokens
    record.tokens_input_image = usage.input_image_tokens
    record.tokens_cached_image = usage.cached_image_tokens
    record.tokens_output_image = usage.output_image_tokens
    record.tokens_citation = usage.citation_tokens
    record.web_searches = usage.web_searches
    record.file_searches = usage.file_searches
    record.images = usage.images
    record.audio_ms = usage.audio_ms
    record.characters = usage.characters
    record.searches = usage.searches
    record.service_tier = usage.service_tier or None


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e6)
