"""The limit options that keys, teams and organisations have in common, and how their values are read.

A value that cannot be read is wrong use (exit 2); what it means for a policy is decided in `domain/policy_change.py`.
"""

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Final, TypeVar

import typer

from tollkeeper.cli.common import note, now_us
from tollkeeper.domain.accounts import UNCHANGED, Unchanged
from tollkeeper.domain.bodies import BodyLogging
from tollkeeper.domain.errors import ConfigurationError, InvalidInput
from tollkeeper.domain.money import MoneyError, nano_from_usd
from tollkeeper.domain.paging import PAGE_MAX, Page
from tollkeeper.domain.periods import US_PER_S, Period
from tollkeeper.domain.policy import Raise
from tollkeeper.domain.policy_change import PolicyChange, Thresholds, bucket_from, warn_from, window_from
from tollkeeper.domain.words import month_from, time_us_from
from tollkeeper.settings import duration_s

NONE: Final = "none"
_AGE: Final = re.compile(r"(\d{1,5})([mhdw])")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

Rpm = Annotated[str | None, typer.Option("--rpm", metavar="N", help="Requests in any minute.")]
Tpm = Annotated[str | None, typer.Option("--tpm", metavar="N", help="Tokens in any minute.")]
MaxParallel = Annotated[str | None, typer.Option("--max-parallel", metavar="N", help="Requests in flight.")]
BudgetAmount = Annotated[str | None, typer.Option("--budget", metavar="USD", help="Hard budget, like 25.00.")]
BudgetPeriod = Annotated[
    Period | None, typer.Option("--period", help="When the budget starts anew, in UTC; default: month.")
]
SoftBudget = Annotated[
    str | None, typer.Option("--soft-budget", metavar="USD", help="Budget that only warns; see --warn-at.")
]
WarnAt = Annotated[
    list[str] | None,
    typer.Option(
        "--warn-at",
        metavar="THRESHOLD",
        help="Warn once a period when its spend reaches 80% of the budget, or 12.50 USD; may be repeated. A soft "
        "budget warns at 50%, 80% and 100% if it does not say.",
    ),
]
RaiseAmount = Annotated[
    str | None, typer.Option("--raise", metavar="USD", help="That much on top of the budget until --until.")
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="WHEN", help="End of the raise: 7d, 12h or 2026-12-01T00:00Z.")
]
MaxParallelShadow = Annotated[
    bool | None,
    typer.Option("--max-parallel-shadow/--no-max-parallel-shadow", help="Only report requests above --max-parallel."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="LIMIT",
        help="Any other limit, like requests=1000/1h or tokens=2000000/1d,model=gpt-4o*,per-user,shadow; may be "
        "repeated, and replaces those there were.",
    ),
]
Buckets = Annotated[
    list[str] | None,
    typer.Option(
        "--bucket",
        metavar="BUCKET",
        help="A token bucket, like requests=600/100: 600 a minute, at most 100 at once; tokens=…, and options as in "
        "--limit. May be repeated, and replaces those there were.",
    ),
]
LogBodies = Annotated[
    str | None,
    typer.Option(
        "--log-bodies",
        metavar="off|truncated|full",
        help="Request and response bodies in log records; none: as the scope above says.",
    ),
]
CostCap = Annotated[str | None, typer.Option("--cost-cap", metavar="USD", help="The most one request may cost.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="Allowed model; * is a wildcard; may be repeated."),
]
Expires = Annotated[
    str | None, typer.Option("--expires", metavar="WHEN", help="30d, 12h, 2026-12-31 or 2026-12-31T12:00:00Z.")
]

Overlap = Annotated[
    str, typer.Option("--overlap", metavar="TIME", help="How long the old secret goes on working, like 24h or 7d.")
]
PageLimit = Annotated[int, typer.Option("--limit", min=1, max=PAGE_MAX, help="Items of a page.")]
StartingAfter = Annotated[
    str | None, typer.Option("--starting-after", metavar="ID", help="The last item of the page before.")
]
Cursor = Annotated[str | None, typer.Option("--starting-after", metavar="CURSOR", help="As the page before told.")]

Value = TypeVar("Value")


def _policy_change(
    *,
    rpm: Rpm = None,
    tpm: Tpm = None,
    max_parallel: MaxParallel = None,
    budget: BudgetAmount = None,
    period: BudgetPeriod = None,
    cost_cap: CostCap = None,
    model: Models = None,
    limit: Limits = None,
    bucket: Buckets = None,
    max_parallel_shadow: MaxParallelShadow = None,
    log_bodies: LogBodies = None,
    soft_budget: SoftBudget = None,
    warn_at: WarnAt = None,
    more: RaiseAmount = None,
    until: Until = None,
) -> PolicyChange:
    """The change that the options ask for; `none` removes."""
    return PolicyChange(
        rpm=_read(rpm, "--rpm", _whole),
        tpm=_read(tpm, "--tpm", _whole),
        max_parallel=_read(max_parallel, "--max-parallel", _whole),
        budget_nano=_read(budget, "--budget", nano_from_usd),
        period=period,
        cost_cap_nano=_read(cost_cap, "--cost-cap", nano_from_usd),
        models=UNCHANGED if not model else None if model == [NONE] else tuple(model),
        windows=_several(limit, window_from, "--limit"),
        buckets=_several(bucket, bucket_from, "--bucket"),
        max_parallel_shadow=UNCHANGED if max_parallel_shadow is None else max_parallel_shadow,
        log_bodies=_read(log_bodies, "--log-bodies", _body_logging),
        soft_budget_nano=_read(soft_budget, "--soft-budget", nano_from_usd),
        warn_at=UNCHANGED if not warn_at else None if warn_at == [NONE] else _thresholds(warn_at),
        raised=_raise(more, until),
    )


def _thresholds(texts: list[str]) -> Thresholds:
    try:
        return warn_from(texts)
    except InvalidInput as error:
        raise typer.BadParameter(str(error), param_hint="--warn-at") from None


def _raise(more: str | None, until: str | None) -> Raise | None | Unchanged:
    amount = _read(more, "--raise", nano_from_usd)
    if not isinstance(amount, int):
        if until is not None:
            raise typer.BadParameter("says when a raise ends; give --raise too", param_hint="--until")
        return amount
    at_us = now_us()
    until_us = None if until is None else _read(until, "--until", lambda text: _moment(text, at_us, "until"))
    if not isinstance(until_us, int):
        raise typer.BadParameter("a raise has an end; give --until too", param_hint="--raise")
    if until_us <= at_us:
        raise typer.BadParameter("this time has passed already", param_hint="--until")
    return Raise(amount, until_us)


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all limit options where its parameter `change: PolicyChange` stands, which holds them all."""
    limits = inspect.signature(_policy_change).parameters
    own = inspect.signature(command).parameters
    parameters = [q for p in own.values() for q in (limits.values() if p.name == "change" else (p,))]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        change = _policy_change(**{name: given.pop(name) for name in limits})
        command(**given, change=change)

    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(parameters, key=lambda parameter: parameter.kind), return_annotation=None
    )
    hints = {**command.__annotations__, **_policy_change.__annotations__, "return": None}
    wrapper.__annotations__ = {name: hint for name, hint in hints.items() if name != "change"}
    return wrapper


def _several(
    texts: list[str] | None, read: Callable[[str], Value], hint: str
) -> tuple[Value, ...] | None | Unchanged:
    if not texts:
        return UNCHANGED
    if texts == [NONE]:
        return None
    try:
        return tuple(read(text) for text in texts)
    except InvalidInput as error:
        raise typer.BadParameter(str(error), param_hint=hint) from None


def expiry_us(text: str | None, now_us: int) -> int | None | Unchanged:
    """When a key expires: an age from now, or a moment."""

    return _read(text, "--expires", lambda text: _moment(text, now_us, "expires"))


def _moment(text: str, now_us: int, what: str) -> int:
    age = _AGE.fullmatch(text)
    if age:
        return now_us + int(age[1]) * _SECONDS[age[2]] * US_PER_S
    return time_us_from(text, what=what)


def overlap_s(text: str) -> float:
    """`24h`, `7d`, `300s` → seconds."""
    age = _AGE.fullmatch(text)
    if age:
        return float(int(age[1]) * _SECONDS[age[2]])
    try:
        return duration_s(text, what="--overlap")
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--overlap") from None


def note_more(page: Page[Any]) -> None:
    """Say how to get the next page, if there is one."""
    if page.has_more:
        note(f"there are more: --starting-after {page.items[-1].id}")


def named(text: str | None) -> str | None | Unchanged:
    """A name; `none` removes, nothing leaves it as it is."""
    return _read(text, "", str)


def month(text: str | None) -> tuple[int, int] | None:
    """`2026-11`."""
    found = _read(text, "--month", month_from)
    return None if isinstance(found, Unchanged) else found


def _read(text: str | None, option: str, reader: Callable[[str], Value]) -> Value | None | Unchanged:
    if text is None:
        return UNCHANGED
    if text.lower() == NONE:
        return None
    try:
        return reader(text)
    except (MoneyError, InvalidInput) as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _body_logging(text: str) -> BodyLogging:
    try:
        return BodyLogging(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not one of {', '.join(BodyLogging)}, none") from None


def _whole(text: str) -> int:
    try:
        return int(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise InvalidInput(f'{text!r} is not a whole number, nor "none"') from None
