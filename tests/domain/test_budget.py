"""Budgets as policies state them: hard and soft, thresholds, raises that end; what requests are checked against."""

import msgspec
import pytest

from tollkeeper.domain.admission import CounterCheck, SlotCheck, checks_for, limit_states
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import (
    Budget,
    Policy,
    Principal,
    Raise,
    Scope,
    ScopeKind,
    validate_policy,
)
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.tree import Tree
from tollkeeper.storage.principals import read_policy, write_policy

NOW_US = 1_795_000_000_000_000
HOUR_US = 3_600_000_000


def who(*budgets: Budget) -> Principal:
    return Principal("key_1", "one", "org_a", (Scope(ScopeKind.KEY, "key_1", Policy(budgets=budgets)),))


def counter(*budgets: Budget, now_us: int = NOW_US, period: Period = Period.MONTH) -> CounterCheck:
    (found,) = [c for c in checks_for(who(*budgets), now_us).counters if c.span.period is period]
    return found


def test_a_soft_budget_refuses_nothing() -> None:
    """It is not a bound of a request's cost, and admission does not know it; looking at limits shows it."""
    principal = who(Budget(1000, soft=True))
    assert not principal.has_budget and who(Budget(1000)).has_budget
    checks = checks_for(principal, NOW_US)
    assert (checks.counters[0].budget_nano, checks.counters[0].soft_nano) == (None, 1000)
    tree = Tree()
    tree.seed("run", {}, {checks.counters[0].name: (0, SpendTotals(5000))})
    reply = tree._reply(NOW_US, checks)
    assert limit_states(checks, reply) == []
    (shown,) = limit_states(checks, reply, with_shadow=True)
    assert (shown.limit, shown.used, shown.shadow) == (1000, 5000, True)


def test_what_is_kept_of_checks_is_not_taken_over_by_a_changed_copy() -> None:
    """An instance alone decides over copies with other limits: what followed from the original is asked anew."""
    checks = checks_for(who(Budget(1000)), NOW_US)
    assert checks.has_budget and checks.counter_names == ("key_1:2026:11",) and not checks.has_shadow
    slot = SlotCheck("key_1", ScopeKind.KEY, 1, shadow=True)
    changed = msgspec.structs.replace(checks, counters=(), slots=(slot,))
    assert not changed.has_budget and changed.counter_names == () and changed.has_shadow
    assert changed.slot_names == ("key_1",) and checks.slot_names == ()


def test_thresholds() -> None:
    """Percentages are of the budget in force and rounded up, amounts are amounts; soft budgets have usual ones."""
    assert Budget(1000, soft=True).thresholds_at(NOW_US) == (500, 800, 1000)
    assert Budget(1000).thresholds_at(NOW_US) == ()
    assert Budget(1001, warn_percents=(50, 120), warn_nanos=(7,)).thresholds_at(NOW_US) == (7, 501, 1202)
    assert Budget(0, soft=True).thresholds_at(NOW_US) == ()
    assert counter(Budget(1000, soft=True), Budget(2000, warn_percents=(50, 90))).thresholds == (500, 800, 1000, 1800)
    assert checks_for(who(Budget(1, soft=True)), NOW_US).warns and not checks_for(who(Budget(1)), NOW_US).warns


def test_a_raise_applies_at_once_and_ends() -> None:
    """Checks are valid until the raise ends, so that the store's clock decides when it does."""
    until_us = NOW_US + HOUR_US
    raised = Budget(1000, Period.TOTAL, raised=Raise(500, until_us), warn_percents=(100,))
    before, after = counter(raised, period=Period.TOTAL), counter(raised, now_us=until_us, period=Period.TOTAL)
    assert (before.budget_nano, before.thresholds) == (1500, (1500,))
    assert (after.budget_nano, after.thresholds) == (1000, (1000,))
    assert checks_for(who(raised), NOW_US).valid_until_us == until_us
    assert checks_for(who(raised), until_us).valid_from_us == until_us
    assert checks_for(who(raised), until_us).valid_until_us > until_us


def test_old_rows_are_read_and_new_ones_kept() -> None:
    """Policies that were stored before soft budgets existed mean what they meant."""
    assert read_policy('{"budgets":[{"limit_nano":7,"period":"day"}]}') == Policy(budgets=(Budget(7, Period.DAY),))
    full = Policy(budgets=(Budget(1, Period.WEEK, True, (80,), (5,), Raise(9, NOW_US)),))
    assert read_policy(write_policy(full)) == full


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(1, warn_percents=(0,)), r"budgets\[0\].warn_percents: 0 is not a whole number from 1 to 1000"),
        (Budget(1, warn_nanos=tuple(range(1, 12))), r"budgets\[0\].warn_nanos: 11 entries; at most 10"),
        (Budget(2**53 - 2, raised=Raise(2, NOW_US)), r"budgets\[0\].raised.amount_nano: 2 is not"),
        (Budget(1, raised=Raise(0, NOW_US)), r"budgets\[0\].raised.amount_nano: 0 is not"),
    ],
)
def test_budgets_that_cannot_be_are_refused(budget: Budget, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        validate_policy(Policy(budgets=(budget,)))
