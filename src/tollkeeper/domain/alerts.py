"""Warnings of budgets: which thresholds a counter has reached, and the signed message about it.

Once per threshold and period: an alert is named by its counter and the amount of its threshold, so a budget that was
changed warns anew at its new thresholds and at no old one twice. Nothing is stored or sent here.
"""

import hmac
import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from tollkeeper.domain.admission import CounterCheck, split_counter
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.words import instant

EVENT_TYPE: Final = "budget.threshold_reached"
RETRY_MIN_S: Final = 5.0
RETRY_MAX_S: Final = 6 * 3600.0
RETRY_FACTOR: Final = 4
ATTEMPTS_MAX: Final = 10
"""With these waits the last attempt comes about a day and a half after the first."""


class Alert(msgspec.Struct, frozen=True):
    """A counter that has reached a threshold, all in nano-dollars. `counter` is its name below the root."""

    root: str
    counter: str
    threshold_nano: int
    scope: ScopeKind
    spent_nano: int
    budget_nano: int | None
    soft_nano: int | None
    ends_us: int | None
    crossed_us: int

    @property
    def id(self) -> str:
        """The same for every message about it, so that a receiver can tell repetitions."""
        name = f"{self.root}\n{self.counter}\n{self.threshold_nano}".encode()
        return f"evt_{blake2b(name, digest_size=12).hexdigest()}"


class GivenAlert(msgspec.Struct, frozen=True):
    """An alert and its way to the webhook. `due_us`: when it is tried (again); `failure`: why the last try failed."""

    alert: Alert
    attempts: int
    due_us: int | None
    delivered_us: int | None
    failure: str | None

    @property
    def delivery(self) -> str:
        """`delivered`, `waiting` for its first try, `retrying`, `given_up`, or `none` where there was no webhook."""
        if self.delivered_us is not None:
            return "delivered"
        if self.due_us is not None:
            return "retrying" if self.failure is not None else "waiting"
        return "none" if self.failure is None else "given_up"


class AlertFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which alerts are asked for; None asks for nothing. `scope_id` is of a key, team or organisation; `owned` are
    ids of such, to one of which an alert must belong."""

    scope_id: str | None = None
    delivery: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    owned: tuple[str, ...] | None = None


DELIVERIES: Final = ("none", "waiting", "retrying", "delivered", "given_up")


def alerts_of(root: str, check: CounterCheck, spent_nano: int, now_us: int, above_nano: int = 0) -> list[Alert]:
    """An alert for each threshold above `above_nano` that `spent_nano` has reached."""
    return [
        Alert(
            root,
            check.name,
            threshold,
            check.scope,
            spent_nano,
            check.budget_nano,
            check.soft_nano,
            check.span.ends_us,
            now_us,
        )
        for threshold in check.thresholds
        if above_nano < threshold <= spent_nano
    ]


def next_threshold(check: CounterCheck, above_nano: int) -> int | None:
    """The lowest threshold above an amount."""
    return next((threshold for threshold in check.thresholds if threshold > above_nano), None)


def alert_words(alert: Alert) -> dict[str, Any]:
    """The message, as the log line and the webhook tell it."""
    scope_id, label = split_counter(alert.counter)
    return {
        "scope": alert.scope.value,
        "scope_id": scope_id or alert.root,
        "organisation_id": alert.root,
        "period": label,
        "period_ends_at": instant(alert.ends_us),
        "threshold_usd": usd(alert.threshold_nano),
        "spent_usd": usd(alert.spent_nano),
        "budget_usd": None if alert.budget_nano is None else usd(alert.budget_nano),
        "soft_budget_usd": None if alert.soft_nano is None else usd(alert.soft_nano),
        "reached_at": instant(alert.crossed_us),
    }


def given_words(given: GivenAlert) -> dict[str, Any]:
    """An alert and what became of its message."""
    return {
        "id": given.alert.id,
        **alert_words(given.alert),
        "delivery": given.delivery,
        "attempts": given.attempts,
        "delivered_at": instant(given.delivered_us),
        "next_attempt_at": instant(given.due_us),
        "failure": given.failure,
    }


def event_body(alert: Alert) -> bytes:
    """The webhook's body: the same bytes for every attempt."""
    event = {"id": alert.id, "type": EVENT_TYPE, "created": alert.crossed_us // US_PER_S, "data": alert_words(alert)}
    return json.dumps(event, separators=(",", ":")).encode()


def signature(secrets: Sequence[str], body: bytes, now_us: int) -> str:
    """The value of `tollkeeper-signature`, in the form that Stripe uses: `t=<unix s>,v1=<hex>`, where `v1` is
    HMAC-SHA256 under the secret of `<t>.<body>`. A receiver refuses an old `t`, so that nobody can send it again.

    While a secret is rotated there are two, and a `v1` for each: a receiver takes the one that it can verify."""
    at = now_us // US_PER_S
    signed = f"{at}.".encode() + body
    return ",".join([f"t={at}", *(f"v1={hmac.new(s.encode(), signed, 'sha256').hexdigest()}" for s in secrets)])


def retry_delay_s(attempts: int, chance: float) -> float | None:
    """The wait after so many failed attempts, `chance` (0 to 1) as jitter; None: it is given up."""
    if attempts >= ATTEMPTS_MAX:
        return None
    longest_s = min(RETRY_MAX_S, RETRY_MIN_S * float(RETRY_FACTOR) ** (attempts - 1))
    return longest_s * (0.5 + 0.5 * chance)
