"""Steps 2 to 6 of one request, as often as it takes: bound, admit, dispatch, answer; then retry or fall back.

Each attempt has a hold of its own, `<request>.<n>`, and comes to its own end before the next one asks for admission:
nothing sent, or an error status without usage that is followed by another attempt: void, so that the request counts
once; sent and no answer: presumed. Nothing is tried again once a byte has gone to the client, or after it left. Where
to go next is decided by `itinerary.py` and `retry.py`; this file acts. It knows no wire format and makes no HTTP of
errors.
"""

import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec

from tollkeeper.domain.admission import Denial
from tollkeeper.domain.errors import Fault, RequestError, UpstreamError
from tollkeeper.domain.ports import Governor
from tollkeeper.gateway.admit import AttemptIds, admit
from tollkeeper.gateway.asgi import HttpError
from tollkeeper.gateway.bound import Bounder, shrink
from tollkeeper.gateway.catalog import asks_stream_usage
from tollkeeper.gateway.dialects import Endpoint, upstream_body
from tollkeeper.gateway.dispatch import upstream_headers, upstream_path
from tollkeeper.gateway.fleet import Fleet, Turn
from tollkeeper.gateway.instruments import ANSWERED, Instruments
from tollkeeper.gateway.itinerary import Itinerary, Stop
from tollkeeper.gateway.patience import Patience
from tollkeeper.gateway.record import Exchange, Try
from tollkeeper.gateway.retry import (
    REFUSED_US,
    RetryBudget,
    Verdict,
    is_failure,
    retry_after_us,
    verdict_of_error,
    verdict_of_status,
)
from tollkeeper.gateway.routing import Pool, model_allowed
from tollkeeper.gateway.settle import Attempt
from tollkeeper.gateway.stream import Rejection, answer, reject
from tollkeeper.gateway.upstream import Body, Upstream, UpstreamResponse
from tollkeeper.observability.tracing import new_id
from tollkeeper.settings import Settings

COOL_MAX_US: Final = 300_000_000
"""A provider that asks for a longer pause is asked again after this."""
TOO_LATE: Final = "The answer was not finished in time."
FULL: Final = "Every deployment of this model is at the limit that its operator set. Try again later."


class Failure(msgspec.Struct, frozen=True):
    """A provider's refusal, which the client has not seen yet, or an exchange that broke, maybe in its middle."""

    stop: Stop
    verdict: Verdict
    cause: Rejection | UpstreamError


class Attempts:
    """Carries requests out. `upstreams`: the HTTP client of each provider. `draw`: random numbers in [0, 1)."""

    def __init__(
        self,
        *,
        settings: Settings,
        provider_keys: Mapping[str, str | None],
        bounder: Bounder,
        fleet: Fleet,
        governor: Governor,
        instruments: Instruments,
        now_us: Callable[[], int],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.settings, self.provider_keys, self.bounder, self.fleet = settings, provider_keys, bounder, fleet
        self.governor, self.instruments, self.now_us, self.draw = governor, instruments, now_us, draw
        self.upstreams: Mapping[str, Upstream] = {}
        self.budget = RetryBudget(settings.routing.retry_ratio, settings.routing.retry_burst)

    def serve(
        self, exchange: Exchange, endpoint: Endpoint, pools: Sequence[Pool]
    ) -> Coroutine[Any, Any, Denial | None]:
        """Answer the client; or the refusal to tell it.

        Raises what becomes an error of the gateway's own: RequestError, UpstreamError, Unavailable.
        """
        provider = self.settings.providers[pools[0].deployments[0].route.provider]
        patience = Patience(
            exchange.client,
            self.instruments,
            total_s=provider.connect_timeout_s + provider.total_timeout_s,
            drain_s=self.settings.server.drain_timeout_s,
        )
        principal = exchange.principal
        assert principal is not None
        if len(pools) > 1 and principal.restricts_models:
            # A fallback is another model: a key that may not use it does not get it by way of a failure.
            mine = [p for p in pools[1:] if model_allowed(principal, p.name, p.deployments[0].route.model)]
            pools = [pools[0], *mine]
        way = Itinerary(pools, self.fleet, self.settings.routing)
        return _Walk(self, exchange, endpoint, way, patience, AttemptIds(exchange.request_id)).go()


class _Walk(msgspec.Struct):
    """One request on its way."""

    _its: Attempts
    _exchange: Exchange
    _endpoint: Endpoint
    _way: Itinerary
    _patience: Patience
    _ids: AttemptIds
    _failure: Failure | None = None
    _denial: Denial | None = None
    _unfit: RequestError | None = None
    _unfit_pool: Pool | None = None
    _paid: bool = False

    async def go(self) -> Denial | None:
        """See `Attempts.serve`."""
        try:
            with self._patience:
                while (stop := self._next()) is not None:
                    if self._failure is not None and not await self._may_go_on(stop):
                        return None
                    turn = await self._admitted(stop)
                    if turn is not None:
                        failure = await self._dispatched(stop, turn)
                        if failure is None:
                            return None
                        self._failure = failure
                    elif self._denial is not None and self._failure is None:
                        return self._denial
                return await self._give_up()
        except TimeoutError:
            if self._exchange.client.gone:
                return None
            plan, instruments = self._exchange.plan, self._its.instruments
            instruments.upstream_failed("" if plan is None else plan.route.provider, Fault.UPSTREAM_TIMEOUT)
            raise UpstreamError(Fault.UPSTREAM_TIMEOUT, TOO_LATE, sent=True) from None

    async def _may_go_on(self, stop: Stop) -> bool:
        """After a failure: let it go and pause. False if the client does not wait for more."""
        self._let_go()
        if stop.pause_us:
            paused_at = time.perf_counter()
            await self._patience.pause(stop.pause_us / 1e6)
            self._exchange.paused_s += time.perf_counter() - paused_at
        return not self._exchange.client.gone

    def _next(self) -> Stop | None:
        """Where to go, if anywhere and if a retry may be spent on it."""
        its, failure = self._its, self._failure
        if failure is None:
            stop = self._way.only_one() or self._way.next(its.now_us(), its.draw())
            # A model whose bound cannot be had is refused; fallbacks are for providers that fail.
            return stop if self._unfit is None or (stop is not None and stop.pool is self._unfit_pool) else None
        client = self._exchange.client
        if failure.verdict is Verdict.FINAL or client.gone or client.started:
            return None
        stop = self._way.next(its.now_us(), its.draw())
        if stop is None or stop.pause_us / 1e6 >= self._patience.left_s:
            return None
        if not self._paid and not its.budget.spend():
            its.instruments.unretried.inc()
            return None
        self._paid = True
        return stop

    def _let_go(self) -> None:
        """The failed attempt comes to its end, before the next one asks for admission."""
        assert self._failure is not None
        exchange, cause = self._exchange, self._failure.cause
        attempt = exchange.attempt
        assert attempt is not None
        if not isinstance(cause, Rejection):
            attempt.finish()
        elif cause.told.usage is None:
            attempt.void()
        else:
            exchange.charge(cause.told)
        if exchange.capture is not None:
            exchange.capture.again()

    async def _admitted(self, stop: Stop) -> Turn | None:
        """A place at the deployment and a hold for the attempt; None if it cannot have both."""
        its, exchange, way = self._its, self._exchange, self._way
        principal, call = exchange.principal, exchange.call
        assert principal is not None and call is not None
        try:
            plan = its.bounder.plan(call, stop.deployment.route, principal, exchange.time_us)
        except RequestError as error:
            self._unfit, self._unfit_pool = error, stop.pool
            way.bar(stop.member)
            return None
        if exchange.attempt is None:
            exchange.plan = plan
        member, now_us = stop.member, its.now_us()
        full_for_us = None if member.unlimited else member.full_for_us(now_us, plan.tokens)
        if full_for_us is not None:
            way.full(member, full_for_us)
            return None
        turn = member.take(now_us, plan.tokens)
        asked_at = time.perf_counter()
        try:
            decision = await admit(its.governor, principal, self._ids.next(), plan, exchange.user)
            if isinstance(decision, Denial) and shrink(plan, decision):
                decision = await admit(its.governor, principal, self._ids.next(), plan, exchange.user)
        except BaseException:
            turn.end(None, sent=False)
            raise
        finally:
            waited_s = time.perf_counter() - asked_at
            exchange.admission_s += waited_s
        its.instruments.admission.observe(waited_s)
        if isinstance(decision, Denial):
            turn.end(None, sent=False)
            self._denial = decision
            way.leave_model()
            return None
        if self._denial is not None:
            self._denial = None
        exchange.begin(plan, Attempt(decision, its.governor, its.instruments))
        for shadowed in decision.reply.shadowed:
            its.instruments.shadowed(shadowed.kind, shadowed.scope)
        if plan.injected is not None:
            its.instruments.injected.inc()
        return turn

    async def _dispatched(self, stop: Stop, turn: Turn) -> Failure | None:
        """Send it and pass the answer on; a failure as a value."""
        its, exchange, way = self._its, self._exchange, self._way
        attempt, tried = exchange.attempt, exchange.tries[-1]
        assert attempt is not None
        if way.went(stop) == 1:
            its.budget.earn()
        elif self._paid:
            self._paid = False
        result = "unfinished"
        cause: Rejection | UpstreamError | None = None
        meter = its.instruments.meter(stop.deployment)
        try:
            sending = self._sending(stop, tried)
            asked_at = time.perf_counter()
            exchange.mark_dispatched(asked_at)
            try:
                response = await sending
            finally:
                heard_at = time.perf_counter()
                waited_s = heard_at - asked_at
                exchange.upstream_s += waited_s
                meter.upstream.observe(waited_s)
            try:
                tried.status, tried.first_byte_s = response.status, heard_at - exchange.arrived
                cause = await self._answered(stop, turn, response, waited_s)
            finally:
                response.close()
            if cause is None:
                result = ANSWERED
            else:
                result = _result(cause)
                if cause.fault is not None:
                    its.instruments.upstream_failed(stop.deployment.route.provider, cause.fault)
        except UpstreamError as error:
            turn.failed(its.now_us())
            if not error.sent:
                tried.sent = False
                attempt.void()
            its.instruments.upstream_failed(stop.deployment.route.provider, error.fault)
            cause, result = error, error.fault.value
        finally:
            tried.end(exchange, result)
            known = attempt.ended and not attempt.presumed
            turn.end(attempt.usage if known else None, sent=tried.sent)
            meter.ended(result)
        return None if cause is None else self._judged(stop, cause)

    def _sending(self, stop: Stop, tried: Try) -> Coroutine[Any, Any, UpstreamResponse]:
        """The request as the provider gets it, on its way once this is awaited. Raises OutboxUnavailable."""
        its, exchange, endpoint = self._its, self._exchange, self._endpoint
        attempt, plan, call = exchange.attempt, exchange.plan, exchange.call
        assert attempt is not None and plan is not None and call is not None
        route = stop.deployment.route
        provider, model = route.provider, route.upstream_model
        settings = its.settings.providers[provider]
        body: Body
        if call.form is not None:
            body = call.form.written(model=model) if call.model else call.form.written()
        elif call.path:
            body = b""
        else:
            limit = its.bounder.output_limit(plan)
            asks_usage = not call.stream or asks_stream_usage(settings)
            body = upstream_body(call, model=model, output_limit=limit, asks_usage=asks_usage)
        headers = upstream_headers(
            exchange.client,
            endpoint,
            key=its.provider_keys.get(provider),
            request_id=exchange.request_id,
            call=call,
            azure=settings.azure_api_version is not None,
        )
        if exchange.trace is not None:
            tried.span_id = new_id()
            headers.own |= exchange.trace.headers(tried.span_id)
        path = upstream_path(call, settings, model)
        attempt.dispatch()
        return its.upstreams[provider].send(provider, path, headers, body, call.method)

    async def _answered(
        self, stop: Stop, turn: Turn, response: UpstreamResponse, waited_s: float
    ) -> Rejection | None:
        """Pass the answer on, and tell the deployment's breaker what to think of it."""
        its, exchange, status = self._its, self._exchange, response.status
        now_us = its.now_us()
        if status < 300:
            turn.member.measure(now_us, int(waited_s * 1e6))
            assert exchange.call is not None
            if exchange.call.stream:
                turn.succeeded(now_us)  # streams are long, and others wait for a probe's word
        rejection = await answer(exchange, response)
        if status >= 400 and is_failure(status):
            turn.failed(its.now_us(), self._cool_us(status, response.headers))
        else:
            turn.succeeded(now_us)
        if rejection is None:
            return None
        return _discreet(rejection, its.provider_keys.get(stop.deployment.route.provider))

    def _cool_us(self, status: int, headers: Mapping[str, str]) -> int:
        """How long a deployment that answered so is left alone at once; 0: it is only counted."""
        if status in REFUSED_US:
            return int(self._its.settings.routing.cooldown_s * 1e6)
        return min(retry_after_us(headers.get("retry-after"), headers.get("retry-after-ms")), COOL_MAX_US)

    def _judged(self, stop: Stop, cause: Rejection | UpstreamError) -> Failure:
        if isinstance(cause, Rejection):
            verdict = verdict_of_status(cause.status, cause.should_retry)
        else:
            provider = self._its.settings.providers[stop.deployment.route.provider]
            verdict = verdict_of_error(cause, retry_unanswered=provider.retry_unanswered)
        if self._endpoint.once and (isinstance(cause, UpstreamError) and cause.sent):
            verdict = Verdict.FINAL
        if self._endpoint.once and isinstance(cause, Rejection) and cause.status >= 500:
            verdict = Verdict.FINAL
        if verdict is Verdict.ELSEWHERE:
            self._way.bar(stop.member)
        return Failure(stop, verdict, cause)

    async def _give_up(self) -> Denial | None:
        """Nothing else is tried: the client gets the refusal of the next attempt, or what the last one gave.

        A fallback that would never fit is no news for the client: it asked for another model.
        """
        failure = self._failure
        if self._denial is not None and (failure is None or not self._denial.refusal.never):
            return self._denial
        if failure is not None:
            if isinstance(failure.cause, Rejection):
                await reject(self._exchange, failure.cause)
                return None
            raise failure.cause
        if self._unfit is not None:
            raise self._unfit
        wait_s = -(-(self._way.full_for_us or 1_000_000) // 1_000_000)
        raise HttpError(Fault.DEPLOYMENTS_FULL, FULL, headers=((b"retry-after", b"%d" % wait_s),))


def _discreet(rejection: Rejection, key: str | None) -> Rejection:
    """Without our key, which a provider's error may repeat."""
    if not key or key.encode() not in rejection.body:
        return rejection
    return msgspec.structs.replace(rejection, body=rejection.body.replace(key.encode(), b"***"))


def _result(rejection: Rejection) -> str:
    """A word for the metric; there are few of them."""
    if rejection.status == 429:
        return "rate_limited"
    if rejection.status in REFUSED_US:
        return "refused_us"
    return "server_error" if rejection.status >= 500 else "client_error"
