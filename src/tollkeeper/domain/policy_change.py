"""Changing a policy in the words people use: rpm, tpm, max parallel, cost cap, models, and for each period one hard
and one soft budget with its warnings and a raise for a while.

The command line and the admin API both read their options into a `PolicyChange`; what a change does not name stays
as it is. Windows that are more than rpm and tpm are written like `requests=1000/1h,model=gpt-4o*,per-user,shadow`.
Nothing is read or stored here.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tollkeeper.domain.accounts import UNCHANGED, Unchanged
from tollkeeper.domain.admission import WEIGHT_MAX
from tollkeeper.domain.bodies import BodyLogging
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import NANO_MAX, MoneyError, nano_from_usd, usd
from tollkeeper.domain.periods import US_PER_S, Period
from tollkeeper.domain.policy import MINUTE_US, PERCENT_MAX, Budget, Policy, Raise, TokenBucket, Unit, Window

_UNITS_US: Final = {"us": 1, "ms": 1000, "s": US_PER_S, "m": MINUTE_US, "h": 60 * MINUTE_US, "d": 1440 * MINUTE_US}
_BUCKET: Final = re.compile(r"(requests|tokens)=(\d[\d_]{0,20})/(\d[\d_]{0,20})")
_WINDOW: Final = re.compile(r"(requests|tokens)=(\d[\d_]{0,20})/(\d{1,9})?(us|ms|s|m|h|d)")
PATTERNS_MAX: Final = 100
"""Model patterns of one policy."""
CONCURRENCY_MAX: Final = 100_000


class Thresholds(msgspec.Struct, frozen=True):
    """Where a budget warns: percentages of it, and nano-dollars."""

    percents: tuple[int, ...] = ()
    nanos: tuple[int, ...] = ()


class PolicyChange(msgspec.Struct, frozen=True):
    """Fields are as in `Policy`; None removes. `period` says which budget is meant; None: not said.

    `warn_at` is for the soft budget of the period if there is one, else for the hard one; `raised`, which replaces an
    earlier raise, for the hard one if there is one.
    """

    rpm: int | None | Unchanged = UNCHANGED
    tpm: int | None | Unchanged = UNCHANGED
    max_parallel: int | None | Unchanged = UNCHANGED
    budget_nano: int | None | Unchanged = UNCHANGED
    period: Period | None = None
    cost_cap_nano: int | None | Unchanged = UNCHANGED
    models: tuple[str, ...] | None | Unchanged = UNCHANGED
    windows: tuple[Window, ...] | None | Unchanged = UNCHANGED
    """All windows but plain rpm and tpm."""
    buckets: tuple[TokenBucket, ...] | None | Unchanged = UNCHANGED
    max_parallel_shadow: bool | Unchanged = UNCHANGED
    log_bodies: BodyLogging | None | Unchanged = UNCHANGED
    soft_budget_nano: int | None | Unchanged = UNCHANGED
    warn_at: Thresholds | None | Unchanged = UNCHANGED
    raised: Raise | None | Unchanged = UNCHANGED

    @property
    def changes_nothing(self) -> bool:
        """Whether no field is named."""
        return self == PolicyChange()


def changed(policy: Policy, change: PolicyChange) -> Policy:
    """The policy with the change made. Raises InvalidInput naming the field that cannot be taken."""
    _check(change)
    windows = policy.windows
    for unit, limit in ((Unit.REQUESTS, change.rpm), (Unit.TOKENS, change.tpm)):
        if not isinstance(limit, Unchanged):
            windows = tuple(w for w in windows if not (w.is_plain_minute and w.unit is unit))
            windows += () if limit is None else (Window(unit, limit),)
    if not isinstance(change.windows, Unchanged):
        windows = tuple(w for w in windows if w.is_plain_minute) + (change.windows or ())
    shadow = change.max_parallel_shadow
    buckets = policy.buckets if isinstance(change.buckets, Unchanged) else change.buckets or ()
    return Policy(
        windows=windows,
        buckets=buckets,
        concurrency=_kept(policy.concurrency, change.max_parallel),
        budgets=_budgets(policy.budgets, change),
        cost_cap_nano=_kept(policy.cost_cap_nano, change.cost_cap_nano),
        models=policy.models if isinstance(change.models, Unchanged) else change.models,
        concurrency_shadow=policy.concurrency_shadow if isinstance(shadow, Unchanged) else shadow,
        log_bodies=policy.log_bodies if isinstance(change.log_bodies, Unchanged) else change.log_bodies,
    )


def per_minute(policy: Policy, unit: Unit) -> int | None:
    """The limit of a unit a minute, if there is one."""
    return min((w.limit for w in policy.windows if w.unit is unit and w.is_plain_minute), default=None)


def window_from(text: str) -> Window:
    """`requests=1000/1h`, with `,model=gpt-4o*`, `,per-user` and `,shadow` as wanted. Raises InvalidInput."""
    head, *options = text.split(",")
    match = _WINDOW.fullmatch(head.strip())
    if match is None:
        raise InvalidInput(
            f"limit: {text!r} is not a limit; write it like requests=1000/1h or tokens=2000000/1d,shadow"
        )
    length_us = int(match[3] or 1) * _UNITS_US[match[4]]
    return Window(Unit(match[1]), int(match[2].replace("_", "")), length_us, *_options("limit", text, options))


def bucket_from(text: str) -> TokenBucket:
    """`requests=600/100`: 600 a minute, 100 at once; options as in `window_from`. Raises InvalidInput."""
    head, *options = text.split(",")
    match = _BUCKET.fullmatch(head.strip())
    if match is None:
        raise InvalidInput(
            f"bucket: {text!r} is not a bucket; write it like requests=600/100 (600 a minute, at most 100 at once)"
        )
    rate, burst = (int(number.replace("_", "")) for number in (match[2], match[3]))
    return TokenBucket(Unit(match[1]), rate, burst, *_options("bucket", text, options))


def bucket_text(bucket: TokenBucket) -> str:
    """The inverse of `bucket_from`."""
    return ",".join([f"{bucket.unit.value}={bucket.rate}/{bucket.burst}", *_option_texts(bucket)])


def _options(what: str, text: str, options: Sequence[str]) -> tuple[str | None, bool, bool]:
    model, per_user, shadow = None, False, False
    for option in map(str.strip, options):
        if option == "per-user":
            per_user = True
        elif option == "shadow":
            shadow = True
        elif option.startswith("model=") and len(option) > len("model="):
            model = option.removeprefix("model=")
        else:
            raise InvalidInput(
                f"{what}: {option!r} in {text!r} is not known; known are model=NAME, per-user and shadow"
            )
    return model, per_user, shadow


def _option_texts(limit: Window | TokenBucket) -> list[str]:
    model = [] if limit.model is None else [f"model={limit.model}"]
    return model + ["per-user"] * limit.per_user + ["shadow"] * limit.shadow


def window_text(window: Window) -> str:
    """The inverse of `window_from`."""
    name, length_us = next((n, u) for n, u in reversed(_UNITS_US.items()) if window.window_us % u == 0)
    return ",".join(
        [f"{window.unit.value}={window.limit}/{window.window_us // length_us}{name}", *_option_texts(window)]
    )


def _kept(value: int | None, change: int | None | Unchanged) -> int | None:
    return value if isinstance(change, Unchanged) else change


def warn_from(texts: Sequence[str]) -> Thresholds:
    """`80%` and `12.50` (USD) → thresholds. Raises InvalidInput."""
    percents, nanos = [], []
    for text in texts:
        if text.endswith("%"):
            if not text[:-1].isdecimal() or not 1 <= int(text[:-1]) <= PERCENT_MAX:
                raise InvalidInput(f"warn_at: {text!r} is not a percentage from 1% to {PERCENT_MAX}%")
            percents.append(int(text[:-1]))
        else:
            try:
                nanos.append(nano_from_usd(text, what="warn_at"))
            except MoneyError as error:
                raise InvalidInput(f'{error}; or write a percentage like "80%"') from None
    return Thresholds(tuple(percents), tuple(nanos))


def warn_texts(budget: Budget) -> list[str]:
    """The inverse of `warn_from`; empty: what is usual."""
    return [f"{percent}%" for percent in budget.warn_percents] + [usd(nano) for nano in budget.warn_nanos]


def _budgets(budgets: tuple[Budget, ...], change: PolicyChange) -> tuple[Budget, ...]:
    named = (change.budget_nano, change.soft_budget_nano, change.warn_at, change.raised)
    if all(isinstance(value, Unchanged) for value in named):
        if change.period is not None:
            raise InvalidInput("period: says which budget is meant; give the budget too")
        return budgets
    period = change.period or _only_period(budgets)
    budgets = _with_limit(budgets, period, change.budget_nano, soft=False)
    budgets = _with_limit(budgets, period, change.soft_budget_nano, soft=True)
    if not isinstance(change.warn_at, Unchanged):
        at = change.warn_at or Thresholds()
        meant = _meant(budgets, period, "warn_at", soft_first=True)
        budgets = _replaced(budgets, meant, warn_percents=at.percents, warn_nanos=at.nanos)
    if not isinstance(change.raised, Unchanged):
        budgets = _replaced(budgets, _meant(budgets, period, "raise", soft_first=False), raised=change.raised)
    return budgets


def _with_limit(
    budgets: tuple[Budget, ...], period: Period, limit_nano: int | None | Unchanged, *, soft: bool
) -> tuple[Budget, ...]:
    """The budgets with this one set, changed in place (its warnings and raise stay) or removed."""
    if isinstance(limit_nano, Unchanged):
        return budgets
    known = [b for b in budgets if b.period is period and b.soft is soft]
    if limit_nano is None:
        return tuple(b for b in budgets if b not in known)
    if known:
        return _replaced(budgets, known[0], limit_nano=limit_nano)
    return (*budgets, Budget(limit_nano, period, soft))


def _meant(budgets: tuple[Budget, ...], period: Period, what: str, *, soft_first: bool) -> Budget:
    of_period = sorted((b for b in budgets if b.period is period), key=lambda b: b.soft is not soft_first)
    if not of_period:
        raise InvalidInput(f"{what}: there is no budget for the period {period}; give one too, or name its period")
    return of_period[0]


def _replaced(budgets: tuple[Budget, ...], budget: Budget, **fields: Any) -> tuple[Budget, ...]:
    return tuple(msgspec.structs.replace(b, **fields) if b is budget else b for b in budgets)


def _only_period(budgets: tuple[Budget, ...]) -> Period:
    periods = sorted({b.period for b in budgets})
    if len(periods) > 1:
        raise InvalidInput(f"period: there are budgets for {' and '.join(periods)}; say which one is meant")
    return periods[0] if periods else Period.MONTH


def _check(change: PolicyChange) -> None:
    for name, value, largest in (
        ("rpm", change.rpm, WEIGHT_MAX),
        ("tpm", change.tpm, WEIGHT_MAX),
        ("max_parallel", change.max_parallel, CONCURRENCY_MAX),
        ("budget", change.budget_nano, NANO_MAX),
        ("soft_budget", change.soft_budget_nano, NANO_MAX),
        ("cost_cap", change.cost_cap_nano, NANO_MAX),
    ):
        least = 0 if name in ("budget", "soft_budget") else 1
        if isinstance(value, int) and not least <= value <= largest:
            raise InvalidInput(f"{name}: must be from {least} to {largest}, or none to remove the limit")
    if isinstance(change.models, tuple):
        if not 1 <= len(change.models) <= PATTERNS_MAX:
            raise InvalidInput(f"models: give 1 to {PATTERNS_MAX} names, or none to allow all")
        if any(not name or len(name) > 200 or not name.isprintable() for name in change.models):
            raise InvalidInput("models: a name is 1 to 200 printable characters; * is a wildcard")
