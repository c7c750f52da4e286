"""The state of budgets as plain values: what is set, what is spent in the period that runs, and what that means."""

from collections.abc import Mapping, Sequence
from typing import Any

from tollkeeper.domain.admission import CounterCheck, checks_for
from tollkeeper.domain.money import usd
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import BudgetedScope
from tollkeeper.domain.words import instant


def budget_counters(scopes: Sequence[BudgetedScope], now_us: int) -> list[list[CounterCheck]]:
    """Of each scope the counters of its budgets, in the periods that hold `now_us`."""
    found = []
    for each in scopes:
        checks = checks_for(Principal(each.scope.id, "", each.root, (each.scope,)), now_us)
        found.append([c for c in checks.counters if c.budget_nano is not None or c.soft_nano is not None])
    return found


def budget_words(
    scope: BudgetedScope, counters: Sequence[CounterCheck], spent: Mapping[tuple[str, str], int]
) -> dict[str, Any]:
    """A scope with its budgets. `spent` maps (root, counter) to nano-dollars; what it does not know is nothing."""
    return {
        "scope": scope.scope.kind.value,
        "scope_id": scope.scope.id,
        "name": scope.name,
        "organisation_id": scope.root,
        "budgets": [_state(check, spent.get((scope.root, check.name), 0)) for check in counters],
    }


def _state(check: CounterCheck, spent_nano: int) -> dict[str, Any]:
    hard, soft = check.budget_nano, check.soft_nano
    whole = soft if hard is None else hard
    assert whole is not None
    return {
        "period": check.span.period.value,
        "period_starts_at": None if check.span.ends_us is None else instant(check.span.starts_us),
        "period_ends_at": instant(check.span.ends_us),
        "budget_usd": None if hard is None else usd(hard),
        "soft_budget_usd": None if soft is None else usd(soft),
        "spent_usd": usd(spent_nano),
        "spent_nano": spent_nano,
        "remaining_usd": usd(max(0, whole - spent_nano)),
        "used_percent": round(100 * spent_nano / whole, 1) if whole else 100.0,
        "state": _word(check, spent_nano),
    }


def _word(check: CounterCheck, spent_nano: int) -> str:
    if check.budget_nano is not None and spent_nano >= check.budget_nano:
        return "exhausted"
    if check.soft_nano is not None and spent_nano >= check.soft_nano:
        return "above_soft"
    return "warned" if any(spent_nano >= threshold for threshold in check.thresholds) else "ok"
