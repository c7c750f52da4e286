"""Step 2: how much can this request cost, how many tokens will it likely be, and which output limit makes that true?

A request without an output limit gets one if a budget, cost cap or token limit stands above it: the model's own cap
first, and after a refusal the most that the limit that refused can still afford. It knows nothing of HTTP; what is
refused here is refused before any counter is touched.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from tollkeeper.domain.admission import Denial, LimitKind, limit_states
from tollkeeper.domain.bound import Bound, TokenEstimator
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.money import usd
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.pricing import Price
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import Catalog, ModelInfo, output_limit_field
from tollkeeper.gateway.dialects import LIMIT_FIELDS, Call, Endpoint
from tollkeeper.gateway.measured import bound_of, drawn, hold_nano, how_to_price, priced
from tollkeeper.gateway.routing import Route
from tollkeeper.settings import Settings

UNPRICED: Final = "unpriced"
"""In place of a price's version."""
OUTPUT_MIN: Final = 16
"""The smallest limit that is injected: OpenAI's Responses API takes no less."""


class Plan(msgspec.Struct):
    """A request with its bounds. `injected` is the output limit we set, None if the client's stands. `must_hold`: a
    budget, cost cap or token limit relies on the output limit."""

    call: Call
    route: Route
    info: ModelInfo
    _bounder: "Bounder"
    _at_us: int
    must_hold: bool = False
    injected: int | None = None
    tokens: int = 1
    hold_nano: int = 0

    def limit_to(self, output: int) -> str | None:
        """Set token weight and hold for at most so many tokens per choice. What is returned says why the hold is no
        bound, if so."""
        call = self.call
        self.tokens = self.tokens_at(output)
        if call.content.plain:
            nano = self.info.text_nano(call.content.text_bytes, max_output=output, choices=call.choices)
            if nano is not None:
                self.hold_nano = nano
                return None
        bound = self.bound_at(output)
        self.hold_nano = self._hold_of(bound)
        return bound.unbounded

    def inject(self, output: int) -> None:
        """The same, and put the limit into the request."""
        self.injected = output
        self.limit_to(output)

    def tokens_at(self, output: int) -> int:
        """The estimated weight."""
        call = self.call
        if call.endpoint.free or (call.sold is not None and call.sold.batch_nano is not None):
            return 0
        return self._bounder.estimator.estimate_tokens(
            self.route.place, input_bytes=call.content.text_bytes, max_output=output, choices=call.choices
        )

    def hold_at(self, output: int) -> int:
        """The strict bound of the cost in nano-dollars; 0 without a price."""
        return self._hold_of(self.bound_at(output))

    def _hold_of(self, bound: Bound) -> int:
        if self.call.sold is not None:
            return hold_nano(self.call, self.info)
        return self.info.hold_nano(self.call.content, bound) or 0

    def bound_at(self, output: int) -> Bound:
        """The strict bound of the tokens."""
        if self.call.sold is not None:
            return bound_of(self.call, self.info)[0]
        return self.info.bound(self.call.content, max_output=output, choices=self.call.choices)

    def learn(self, usage: Usage) -> None:
        """Teach the estimator what the request truly had."""
        self._bounder.estimator.learn(
            self.route.place,
            input_bytes=self.call.content.text_bytes,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )

    def price_of(self, model: str) -> Price | None:
        """The price of another model of the same provider, that had a part in the answer."""
        return self._bounder.price_now(Route(model, self.route.provider, model), self._at_us)


class Line(msgspec.Struct, frozen=True):
    """The most that a line of a batch can cost, at which prices, and why that is no bound, if so."""

    hold_nano: int
    version: str
    reason: str | None = None


class Bounder:
    """Plans requests. One estimator learns for all of them."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._catalog = catalog
        self.estimator = TokenEstimator()
        self._require_price = settings.billing.require_price
        self._limit_fields = {
            name: {endpoint: output_limit_field(endpoint, provider) for endpoint in LIMIT_FIELDS}
            for name, provider in settings.providers.items()
        }

    def plan(self, call: Call, route: Route, principal: Principal, now_us: int) -> Plan:
        """The bounds of a request before admission.

        Raises RequestError: UNPRICED, UNBOUNDED, COST_CAP.
        """
        info = self._catalog.info(route.provider, route.settings_of or route.model, route.upstream_model, now_us)
        if call.sold is not None and info.image_prices and call.sold.images:
            info = drawn(info, call.sold.size, call.sold.quality)
        if call.sold is not None or (info.price is not None and "tokens" not in info.price.kinds):
            info = priced(info, call.endpoint)
        if info.price is None:
            self._check_price(info, route, principal, call.endpoint)
        has_budget, output = principal.has_budget, call.max_output
        plan = Plan(call, route, info, self, now_us, has_budget or principal.has_token_limit)
        if output is None:
            output = info.output_default
            if plan.must_hold:
                plan.injected = output
        reason = plan.limit_to(output)
        if has_budget and reason is not None:
            message = f"The cost of this request cannot be bounded, which its budget needs: {reason}."
            raise RequestError(Fault.UNBOUNDED, message)
        cap_nano = principal.cost_cap_nano
        if cap_nano is not None and plan.hold_nano > cap_nano:
            _keep_below(plan, cap_nano)
        return plan

    def line(self, call: Call, route: Route, now_us: int) -> Line:
        """The bound of a batch's line, which is sent as it is, so that no limit can be put into it."""
        info = self._catalog.info(route.provider, route.settings_of or route.model, route.upstream_model, now_us)
        if call.sold is not None or (info.price is not None and "tokens" not in info.price.kinds):
            info = priced(info, call.endpoint)
        if info.price is None:
            return Line(0, UNPRICED, f"the price of '{route.model}' is not known ({info.unpriced})")
        plan = Plan(call, route, info, self, now_us)
        output, reason = call.max_output, None
        if output is None:
            output = info.max_output_tokens or info.output_default
            reason = None if info.max_output_tokens else "it states no limit of output tokens"
        return Line(plan.hold_at(output), info.price.version, plan.bound_at(output).unbounded or reason)

    def info_at(self, route: Route, at_us: int) -> ModelInfo:
        """What was known of a model at a time."""
        return self._catalog.info(route.provider, route.settings_of or route.model, route.upstream_model, at_us)

    def price_now(self, route: Route, now_us: int) -> Price | None:
        """The price of a model, if it is known."""
        return self.info_at(route, now_us).price

    def output_limit(self, plan: Plan) -> tuple[str, int] | None:
        """Field and value to write into the body: the limit the gateway set, or the client's own where it stands in
        a field that this provider may not heed."""
        call, limit = plan.call, plan.injected
        if limit is None and not plan.must_hold:
            return None
        field = self._limit_fields[plan.route.provider].get(call.endpoint.name)
        if limit is None and field not in call.fields:
            limit = call.max_output
        return None if field is None or limit is None else (field, limit)

    def _check_price(self, info: ModelInfo, route: Route, principal: Principal, endpoint: Endpoint) -> None:
        """Raises UNPRICED where a request without a price is not to pass."""
        if principal.has_budget or self._require_price:
            raise RequestError(
                Fault.UNPRICED,
                f"The price of '{route.model}' is not known ({info.unpriced}), so its cost cannot be bounded. An "
                f'operator can set {how_to_price(endpoint)} under models."{route.model}" in tollkeeper.toml.',
                param="model",
            )


def shrink(plan: Plan, denial: Denial) -> bool:
    """After a refusal: inject the largest output that budgets and token windows still afford. False: none would pass.

    Only where the gateway set the limit itself; a hold that a client's own limit asks for is never shrunk to fit.
    """
    if plan.injected is None or denial.refusal.kind not in (LimitKind.BUDGET, LimitKind.TOKENS):
        return False
    states = limit_states(denial.checks, denial.reply)
    money = min((s.remaining for s in states if s.kind is LimitKind.BUDGET), default=None)
    tokens = min((s.remaining for s in states if s.kind is LimitKind.TOKENS), default=None)

    def fits(output: int) -> bool:
        return (money is None or plan.hold_at(output) <= money) and (
            tokens is None or plan.tokens_at(output) <= tokens
        )

    output = _largest(plan.injected - 1, fits)
    if output is None:
        return False
    plan.inject(output)
    return True


def _keep_below(plan: Plan, cap: int) -> None:
    """Keep the hold below the smallest cost cap, by a smaller output if the limit is ours. Raises COST_CAP."""
    if plan.call.sold is not None and plan.call.sold.batch_nano is not None:
        return  # its lines are the requests
    output = _largest(plan.injected, lambda n: plan.hold_at(n) <= cap) if plan.injected is not None else None
    if output is None:
        raise RequestError(
            Fault.COST_CAP,
            f"This request could cost up to {usd(plan.hold_nano)} USD; at most {usd(cap)} USD are allowed for one. "
            "Send less input or state a smaller limit of output tokens.",
        )
    plan.inject(output)


def _largest(high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest n in `OUTPUT_MIN..high` that fits, or None. What fits must fit for every smaller n too."""
    if high < OUTPUT_MIN or not fits(OUTPUT_MIN):
        return None
    low = OUTPUT_MIN
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
