"""Changing a policy in the words people use: rpm, tpm, max parallel, one budget a period, cost cap, models.

The command line and the admin API both read their options into a `PolicyChange`; what a change does not name stays
as it is, also what these words cannot say (windows that are not a minute long). Nothing is read or stored here.
"""

from typing import Final

import msgspec

from tollkeeper.domain.accounts import UNCHANGED, Unchanged
from tollkeeper.domain.admission import WEIGHT_MAX
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import NANO_MAX
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import MINUTE_US, Budget, Policy, Unit, Window

PATTERNS_MAX: Final = 100
"""Model patterns of one policy."""
CONCURRENCY_MAX: Final = 100_000


class PolicyChange(msgspec.Struct, frozen=True):
    """Fields are as in `Policy`; None removes. `period` says which budget is meant; None: not said."""

    rpm: int | None | Unchanged = UNCHANGED
    tpm: int | None | Unchanged = UNCHANGED
    max_parallel: int | None | Unchanged = UNCHANGED
    budget_nano: int | None | Unchanged = UNCHANGED
    period: Period | None = None
    cost_cap_nano: int | None | Unchanged = UNCHANGED
    models: tuple[str, ...] | None | Unchanged = UNCHANGED

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
            windows = tuple(w for w in windows if (w.unit, w.window_us) != (unit, MINUTE_US))
            windows += () if limit is None else (Window(unit, limit),)
    return Policy(
        windows=windows,
        concurrency=_kept(policy.concurrency, change.max_parallel),
        budgets=_budgets(policy.budgets, change),
        cost_cap_nano=_kept(policy.cost_cap_nano, change.cost_cap_nano),
        models=policy.models if isinstance(change.models, Unchanged) else change.models,
    )


def per_minute(policy: Policy, unit: Unit) -> int | None:
    """The limit of a unit a minute, if there is one."""
    return min((w.limit for w in policy.windows if w.unit is unit and w.window_us == MINUTE_US), default=None)


def _kept(value: int | None, change: int | None | Unchanged) -> int | None:
    return value if isinstance(change, Unchanged) else change


def _budgets(budgets: tuple[Budget, ...], change: PolicyChange) -> tuple[Budget, ...]:
    if isinstance(change.budget_nano, Unchanged):
        if change.period is not None:
            raise InvalidInput("period: says which budget is meant; give the budget too")
        return budgets
    period = change.period or _only_period(budgets)
    rest = tuple(b for b in budgets if b.period is not period)
    return rest if change.budget_nano is None else (*rest, Budget(change.budget_nano, period))


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
        ("cost_cap", change.cost_cap_nano, NANO_MAX),
    ):
        least = 0 if name == "budget" else 1
        if isinstance(value, int) and not least <= value <= largest:
            raise InvalidInput(f"{name}: must be from {least} to {largest}, or none to remove the limit")
    if isinstance(change.models, tuple):
        if not 1 <= len(change.models) <= PATTERNS_MAX:
            raise InvalidInput(f"models: give 1 to {PATTERNS_MAX} names, or none to allow all")
        if any(not name or len(name) > 200 or not name.isprintable() for name in change.models):
            raise InvalidInput("models: a name is 1 to 200 printable characters; * is a wildcard")
