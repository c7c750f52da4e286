"""What the data plane counts, declared once and bound at start, so that a request only adds to plain integers."""

from collections.abc import Sized
from typing import Final

from tollkeeper.domain.admission import LimitKind
from tollkeeper.domain.errors import Fault
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.record import AttemptRecord, RequestRecord
from tollkeeper.gateway.routing import Deployment
from tollkeeper.observability.metrics import CHILDREN_MAX, PENDING_MAX, CounterChild, Family, HistogramChild, Metrics

UNPRICED: Final = "other"
"""The label of models without a known price."""
CHARGED: Final = (
    ("tollkeeper_charged_requests_total", "Requests that were sent to a provider.", "provider", "model"),
    ("tollkeeper_charged_nanodollars_total", "Charges of requests, in nano-dollars.", "provider", "model"),
    (
        "tollkeeper_presumed_nanodollars_total",
        "Charges at the hold because the cost is not known, in nano-dollars.",
        "provider",
        "model",
    ),
    (
        "tollkeeper_charged_tokens_total",
        "Tokens of requests by kind: input, cached (input from the provider's cache, not counted as input), output.",
        *("provider", "model", "kind"),
    ),
)
ANSWERED: Final = "answered"
"""How most attempts end."""
TOKEN_KINDS: Final = ("input", "cached", "output")


class Meter:
    """What is counted of the attempts at one deployment. `upstream`: waiting for the head of an answer."""

    __slots__ = ("_answered", "_attempts", "_labels", "upstream")

    def __init__(
        self, labels: tuple[str, str], attempts: Family[CounterChild], upstream: Family[HistogramChild]
    ) -> None:
        self._labels, self._attempts = labels, attempts
        self._answered: CounterChild | None = None
        self.upstream = upstream.labels(*labels)

    def ended(self, result: str) -> None:
        """One attempt is over."""
        if result == ANSWERED:
            if self._answered is None:
                self._answered = self._attempts.labels(*self._labels, ANSWERED)
            self._answered.value += 1
        else:
            self._attempts.labels(*self._labels, result).inc()


class Instruments:
    """The data plane's metrics. `active`: the requests being served, drains included."""

    def __init__(self, metrics: Metrics, active: Sized = ()) -> None:
        self.draining = 0
        self.requests: Family[CounterChild] = metrics.counter(
            "tollkeeper_requests_total", "Requests by endpoint and class of status.", "endpoint", "status"
        )
        self.refusals: Family[CounterChild] = metrics.counter(
            "tollkeeper_refusals_total", "Requests refused by a limit or budget.", "kind", "scope"
        )
        self.shadow_refusals: Family[CounterChild] = metrics.counter(
            "tollkeeper_shadow_refusals_total",
            "Admitted requests that a limit in shadow would refuse.",
            "kind",
            "scope",
        )
        self.errors: Family[CounterChild] = metrics.counter(
            "tollkeeper_request_errors_total", "Requests answered with an error of the gateway's own.", "fault"
        )
        self.upstream_errors: Family[CounterChild] = metrics.counter(
            "tollkeeper_upstream_errors_total", "Exchanges with a provider that failed.", "provider", "fault"
        )
        self.attempts: Family[CounterChild] = metrics.counter(
            "tollkeeper_upstream_attempts_total",
            "Attempts at deployments by how they ended; model `other`: a name that the settings do not have.",
            "provider",
            "model",
            "result",
        )
        self.unretried = metrics.counter(
            "tollkeeper_retry_budget_exhausted_total", "Failures not tried again because the retry budget was spent."
        ).labels()
        self.total: HistogramChild = metrics.histogram(
            "tollkeeper_request_seconds", "From the request's arrival to the last byte of its answer."
        ).labels()
        self.authentication: HistogramChild = metrics.histogram(
            "tollkeeper_authentication_seconds", "From the request's arrival until its key was known."
        ).labels()
        self.admission: HistogramChild = metrics.histogram(
            "tollkeeper_admission_seconds", "Waiting for the decision over limits and budgets."
        ).labels()
        self.first_byte: HistogramChild = metrics.histogram(
            "tollkeeper_first_byte_seconds", "From the request's arrival to the first byte of its answer's body."
        ).labels()
        self.overhead: HistogramChild = metrics.histogram(
            "tollkeeper_gateway_overhead_seconds", "Time to the first byte, without that waited for the provider."
        ).labels()
        self.dispatch: HistogramChild = metrics.histogram(
            "tollkeeper_dispatch_seconds", "From the request's arrival until it was sent to a provider."
        ).labels()
        self.upstream: Family[HistogramChild] = metrics.histogram(
            "tollkeeper_upstream_seconds",
            "Waiting of one attempt for the head of a deployment's answer; model as in attempts.",
            *("provider", "model"),
        )
        plain = metrics.counter
        self.presumed = plain("tollkeeper_presumed_total", "Holds charged because the cost is not known.").labels()
        self.voided = plain("tollkeeper_voids_total", "Admissions released unsent.").labels()
        self.excess = plain("tollkeeper_over_hold_total", "Settlements above their hold.").labels()
        self.excess_nano = plain(
            "tollkeeper_over_hold_nanodollars_total", "Cost above the holds, in nano-dollars."
        ).labels()
        self.disbelieved = plain(
            "tollkeeper_reported_costs_disbelieved_total",
            "Answers of providers with trust_reported_cost that stated no cost, or one that cannot be.",
        ).labels()
        self.unpriced_tiers = plain(
            "tollkeeper_unpriced_service_tiers_total",
            "Requests served as a service tier, or by a model in part, without a known price.",
        ).labels()
        self.hangups = plain("tollkeeper_client_hangups_total", "Clients that hung up early.").labels()
        self.drains = plain("tollkeeper_drains_total", "Answers read on after the client hung up.").labels()
        self.injected = plain("tollkeeper_injected_limits_total", "Output limits set by the gateway.").labels()
        metrics.gauge("tollkeeper_active_requests", "Requests being served.", lambda: len(active))
        metrics.gauge("tollkeeper_draining_requests", "Answers read on for clients gone.", lambda: self.draining)
        self._charged = [metrics.counter(name, text, *labels) for name, text, *labels in CHARGED]
        self._deployments: dict[tuple[str, str], list[CounterChild]] = {}
        self._meters: dict[tuple[str, str], Meter] = {}
        self._by_status: dict[tuple[str, int], CounterChild] = {}

    def count(self, endpoint: str, status: int) -> None:
        """One finished request. 499: its client hung up before the answer began."""
        key = (endpoint, 0 if status == 499 else status // 100)
        child = self._by_status.get(key)
        if child is None:
            label = f"{key[1]}xx" if key[1] else "hangup"
            child = self._by_status[key] = self.requests.labels(endpoint, label)
        child.value += 1

    def timed(self, total_s: float, first_byte_s: float, overhead_s: float) -> None:
        """One answered request."""
        # As `observe` does it, for three that are always observed together.
        self.total.pending.append(total_s)
        self.first_byte.pending.append(first_byte_s)
        self.overhead.pending.append(overhead_s)
        if len(self.total.pending) >= PENDING_MAX:
            for its in (self.total, self.first_byte, self.overhead):
                its.count()

    def recorded(self, record: RequestRecord) -> None:
        """What a finished request was charged."""
        if record.queue_us is None:
            return  # never sent anywhere
        self.dispatch.observe(record.queue_us / 1e6)
        # A name without a price may be anything a client writes.
        model = UNPRICED if record.price_version is None else record.model
        requests, cost, presumed, unread, cached, output = self._children(record.provider, model)
        requests.value += 1
        if record.attempt_list:
            self._charged_attempts(record.attempt_list)
        else:
            cost.value += record.cost_nano
            if record.presumed:
                presumed.value += record.cost_nano
        cached.value += record.tokens_cached
        if record.tokens_input > record.tokens_cached:
            unread.value += record.tokens_input - record.tokens_cached
        output.value += record.tokens_output

    def _charged_attempts(self, attempts: tuple[AttemptRecord, ...]) -> None:
        """Each where it was charged; the request itself and its tokens count where it was answered."""
        for attempt in attempts:
            if attempt.cost_nano:
                _, cost, presumed, *_ = self._children(attempt.provider, attempt.model)
                cost.value += attempt.cost_nano
                if attempt.presumed:
                    presumed.value += attempt.cost_nano

    def _children(self, provider: str, model: str) -> list[CounterChild]:
        return self._deployments.get((provider, model)) or self._bind(provider, model)

    def _bind(self, provider: str, model: str) -> list[CounterChild]:
        requests, cost, presumed, tokens = self._charged
        children = [family.labels(provider, model) for family in (requests, cost, presumed)]
        children += [tokens.labels(provider, model, kind) for kind in TOKEN_KINDS]
        if len(self._deployments) < CHILDREN_MAX:
            self._deployments[provider, model] = children
        return children

    def refused(self, kind: LimitKind, scope: ScopeKind) -> None:
        """One refusal."""
        self.refusals.labels(kind, scope).inc()

    def shadowed(self, kind: LimitKind, scope: ScopeKind) -> None:
        """One refusal that a limit in shadow would have made."""
        self.shadow_refusals.labels(kind, scope).inc()

    def upstream_failed(self, provider: str, fault: Fault) -> None:
        """One failed exchange."""
        self.upstream_errors.labels(provider, fault).inc()

    def meter(self, deployment: Deployment) -> Meter:
        """What is counted of the attempts at a deployment."""
        labels = deployment.labels
        meter = self._meters.get(labels)
        if meter is None:
            meter = Meter(labels, self.attempts, self.upstream)
            if len(self._meters) < CHILDREN_MAX:
                self._meters[labels] = meter
        return meter
