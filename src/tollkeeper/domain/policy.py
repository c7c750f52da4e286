"""The policy of a scope: its limits and budgets; and who a request belongs to.

A *scope* is a key, a team or an organisation. A key belongs to an organisation for life, its *root*; a key
created without one has an organisation of its own that has no policy and is not charged separately.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final

import msgspec

from tollkeeper.domain.bodies import BodyLogging
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import NANO_MAX
from tollkeeper.domain.periods import US_PER_S, Period

MINUTE_US: Final = 60 * US_PER_S
COUNT_MAX: Final = 2**53 - 1
"""Largest limit: what a store that calculates in doubles counts exactly."""
WINDOW_MAX_US: Final = 400 * 86_400 * US_PER_S
"""Longest window: more than a year. Twice its length still fits behind any stamp."""
WINDOWS_MAX: Final = 16
BUCKETS_MAX: Final = 16
BUDGETS_MAX: Final = 16
MODELS_MAX: Final = 1000
MODEL_NAME_MAX: Final = 200
SOFT_PERCENTS: Final = (50, 80, 100)
"""Where a soft budget warns if it does not say."""
THRESHOLDS_MAX: Final = 10
"""Percentages, and amounts, of one budget."""
PERCENT_MAX: Final = 1000
PATTERNS_KEPT: Final = 4096
"""Compiled wildcards."""


class ScopeKind(StrEnum):
    """The three levels a request is checked against."""

    KEY = "key"
    TEAM = "team"
    ORGANISATION = "organisation"


class Unit(StrEnum):
    """What a window counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class Window(msgspec.Struct, frozen=True):
    """At most `limit` units in every interval of `window_us`, wherever it starts.

    `model` restricts it to requests for models of that name (`*` is a wildcard), which it then counts alone.
    `per_user` gives every end user of the scope a window of their own. `shadow` counts and reports, never refuses.
    """

    unit: Unit
    limit: int
    window_us: int = MINUTE_US
    model: str | None = None
    per_user: bool = False
    shadow: bool = False

    @property
    def is_plain_minute(self) -> bool:
        """What people call rpm and tpm."""
        return self.window_us == MINUTE_US and self.model is None and not self.per_user and not self.shadow


class Raise(msgspec.Struct, frozen=True):
    """More for a while: `amount_nano` on top of a budget while the store's clock is before `until_us` (Unix µs)."""

    amount_nano: int
    until_us: int


class TokenBucket(msgspec.Struct, frozen=True):
    """A bucket that holds `burst` units and gains `rate` a minute, evenly; full at first.

    `model`, `per_user` and `shadow` are as in `Window`. Another rate or burst is another bucket, full again.
    """

    unit: Unit
    rate: int
    burst: int
    model: str | None = None
    per_user: bool = False
    shadow: bool = False


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most `limit_nano` nano-dollars spent and held in each period.

    A *soft* budget refuses nothing: it warns, once per threshold and period. Thresholds are percentages of the budget
    in force (`warn_percents`) and amounts (`warn_nanos`); a soft budget that names none has `SOFT_PERCENTS`, a hard
    one may name some, too.
    """

    limit_nano: int
    period: Period = Period.MONTH
    soft: bool = False
    warn_percents: tuple[int, ...] = ()
    warn_nanos: tuple[int, ...] = ()
    raised: Raise | None = None

    def limit_at(self, now_us: int) -> int:
        """The limit with the raise that is in force at that time."""
        raised = self.raised
        return self.limit_nano + (raised.amount_nano if raised is not None and now_us < raised.until_us else 0)

    def thresholds_at(self, now_us: int) -> tuple[int, ...]:
        """Spend of the period that is worth a warning: nano-dollars, each once, ascending, all above zero."""
        limit = self.limit_at(now_us)
        percents = self.warn_percents or (SOFT_PERCENTS if self.soft and not self.warn_nanos else ())
        return tuple(sorted({*(-(-limit * percent // 100) for percent in percents), *self.warn_nanos} - {0}))


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limits and budgets of one scope. The default allows everything.

    `concurrency` bounds requests in flight; with `concurrency_shadow` it only reports. `cost_cap_nano` bounds the
    cost of one request. `models` are the allowed names, with `*` as wildcard; None allows all. `log_bodies` says
    whether bodies are logged; None leaves it to the scope above, at last to the settings.
    """

    windows: tuple[Window, ...] = ()
    concurrency: int | None = None
    budgets: tuple[Budget, ...] = ()
    cost_cap_nano: int | None = None
    models: tuple[str, ...] | None = None
    concurrency_shadow: bool = False
    log_bodies: BodyLogging | None = None
    buckets: tuple[TokenBucket, ...] = ()

    @property
    def rates(self) -> tuple[Window | TokenBucket, ...]:
        """What limits requests or tokens in time."""
        return (*self.windows, *self.buckets)


UNLIMITED: Final = Policy()


def validate_policy(policy: Policy) -> None:
    """Raises InvalidInput naming the field, if a value is of no use or cannot be counted exactly."""
    from tollkeeper.domain.admission import WEIGHT_MAX  # admission is built on this module
    from tollkeeper.domain.limits import BURST_MAX

    _at_most("windows", policy.windows, WINDOWS_MAX)
    _at_most("buckets", policy.buckets, BUCKETS_MAX)
    for index, bucket in enumerate(policy.buckets):
        where = f"buckets[{index}]"
        _within(f"{where}.rate", bucket.rate, 1, WEIGHT_MAX)
        _within(f"{where}.burst", bucket.burst, 1, BURST_MAX // 2)
        if bucket.burst * MINUTE_US > bucket.rate * WINDOW_MAX_US:
            raise InvalidInput(
                f"{where}: a burst of {bucket.burst} at {bucket.rate} a minute takes over a year to fill"
            )
        if bucket.model is not None:
            _validate_models((bucket.model,), f"{where}.model")
    for index, window in enumerate(policy.windows):
        where = f"windows[{index}]"
        _within(f"{where}.window_us", window.window_us, 1, WINDOW_MAX_US)
        _within(f"{where}.limit", window.limit, 1, WEIGHT_MAX)
        if window.model is not None:
            _validate_models((window.model,), f"{where}.model")
    if policy.concurrency is not None:
        _within("concurrency", policy.concurrency, 1, COUNT_MAX)
    _at_most("budgets", policy.budgets, BUDGETS_MAX)
    for index, budget in enumerate(policy.budgets):
        _validate_budget(budget, f"budgets[{index}]")
    if policy.cost_cap_nano is not None:
        _within("cost_cap_nano", policy.cost_cap_nano, 0, NANO_MAX)
    if policy.models is not None:
        _validate_models(policy.models)


def _validate_budget(budget: Budget, where: str) -> None:
    _within(f"{where}.limit_nano", budget.limit_nano, 0, NANO_MAX)
    for field, values, most in (
        ("warn_percents", budget.warn_percents, PERCENT_MAX),
        ("warn_nanos", budget.warn_nanos, NANO_MAX),
    ):
        _at_most(f"{where}.{field}", values, THRESHOLDS_MAX)
        for value in values:
            _within(f"{where}.{field}", value, 1, most)
    if budget.raised is not None:
        _within(f"{where}.raised.amount_nano", budget.raised.amount_nano, 1, NANO_MAX - budget.limit_nano)
        _within(f"{where}.raised.until_us", budget.raised.until_us, 0, COUNT_MAX)


@lru_cache(maxsize=PATTERNS_KEPT)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def name_matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a model's name fits any pattern. Only `*` is a wildcard; every other character stands for itself."""
    return any(p in ("*", name) or ("*" in p and _pattern(p).fullmatch(name) is not None) for p in patterns)


def _validate_models(models: tuple[str, ...], where: str = "models") -> None:
    if not models:
        raise InvalidInput("models: name at least one, or leave it out to allow all")
    _at_most("models", models, MODELS_MAX)
    for index, name in enumerate(models):
        if not name or len(name) > MODEL_NAME_MAX or not name.isprintable():
            place = f"{where}[{index}]" if where == "models" else where
            raise InvalidInput(f"{place}: 1 to {MODEL_NAME_MAX} printable characters, `*` as wildcard")


def _within(field: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput(f"{field}: {value!r} is not a whole number from {least} to {most}")


def _at_most(field: str, values: tuple[object, ...], most: int) -> None:
    if len(values) > most:
        raise InvalidInput(f"{field}: {len(values)} entries; at most {most} are allowed")


class Scope(msgspec.Struct, frozen=True):
    """One level of a request's tree."""

    kind: ScopeKind
    id: str
    policy: Policy = UNLIMITED


class Principal(msgspec.Struct, frozen=True, dict=True):
    """Who a request belongs to: an active key with all scopes above it, as authenticated.

    `scopes` runs from the key outwards; an organisation of the key's own is left out. `root` is the
    organisation's id. `revision` grows with every change of the key or a scope above it.
    """

    key_id: str
    key_name: str
    root: str
    scopes: tuple[Scope, ...]
    team_id: str | None = None
    expires_at_us: int | None = None
    revoked_at_us: int | None = None
    revision: int = 0

    # What is asked at every request is kept.

    @cached_property
    def has_budget(self) -> bool:
        """Whether a hard budget or cost cap stands anywhere above the request, so that its cost must be bounded."""
        return any(
            s.policy.cost_cap_nano is not None or any(not b.soft for b in s.policy.budgets) for s in self.scopes
        )

    @cached_property
    def restricts_models(self) -> bool:
        """Whether any scope allows some models alone."""
        return any(s.policy.models is not None for s in self.scopes)

    @cached_property
    def cost_cap_nano(self) -> int | None:
        """The smallest cap of one request's cost above it, if there is any."""
        caps = [s.policy.cost_cap_nano for s in self.scopes if s.policy.cost_cap_nano is not None]
        return min(caps, default=None)

    @cached_property
    def log_bodies(self) -> BodyLogging | None:
        """What the innermost scope says that says anything."""
        for scope in self.scopes:
            if scope.policy.log_bodies is not None:
                return scope.policy.log_bodies
        return None

    @cached_property
    def has_token_limit(self) -> bool:
        """Whether any scope refuses by tokens."""
        return any(w.unit is Unit.TOKENS and not w.shadow for s in self.scopes for w in s.policy.rates)

    @cached_property
    def limits_models(self) -> bool:
        """Whether any window or bucket is for some models alone."""
        return any(w.model is not None for s in self.scopes for w in s.policy.rates)

    @cached_property
    def limits_users(self) -> bool:
        """Whether any window or bucket is per end user."""
        return any(w.per_user for s in self.scopes for w in s.policy.rates)
