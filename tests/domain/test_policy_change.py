"""Changing a policy: what is named changes, everything else stays, also what the words cannot say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import UNLIMITED, Budget, Policy, Raise, TokenBucket, Unit, Window
from tollkeeper.domain.policy_change import (
    PolicyChange,
    Thresholds,
    bucket_from,
    bucket_text,
    changed,
    per_minute,
    warn_from,
    warn_texts,
    window_from,
    window_text,
)

HOUR = Window(Unit.REQUESTS, 1000, 3_600_000_000)
FULL = Policy((HOUR, Window(Unit.TOKENS, 5)), 3, (Budget(7), Budget(9, Period.DAY)), 11, ("gpt-*",))


def test_a_change_that_names_nothing_changes_nothing() -> None:
    """For the fullest and the emptiest policy."""
    assert changed(FULL, PolicyChange()) == FULL
    assert changed(UNLIMITED, PolicyChange()) == UNLIMITED
    assert PolicyChange().changes_nothing
    assert not PolicyChange(rpm=None).changes_nothing


def test_windows_of_other_lengths_stay() -> None:
    """rpm and tpm mean a minute; a window of an hour is neither changed nor removed by them."""
    policy = changed(FULL, PolicyChange(rpm=60, tpm=None))
    assert policy.windows == (HOUR, Window(Unit.REQUESTS, 60))
    assert (per_minute(policy, Unit.REQUESTS), per_minute(policy, Unit.TOKENS)) == (60, None)
    assert changed(policy, PolicyChange(rpm=None)).windows == (HOUR,)


def test_budgets_by_period() -> None:
    """One a period. Without a period the only one is meant, else the month; of several one must be named."""
    assert changed(UNLIMITED, PolicyChange(budget_nano=1)).budgets == (Budget(1, Period.MONTH),)
    daily = Policy(budgets=(Budget(9, Period.DAY),))
    assert changed(daily, PolicyChange(budget_nano=1)).budgets == (Budget(1, Period.DAY),)
    assert changed(daily, PolicyChange(budget_nano=None)).budgets == ()
    assert changed(FULL, PolicyChange(budget_nano=None, period=Period.DAY)).budgets == (Budget(7),)
    assert changed(FULL, PolicyChange(budget_nano=1, period=Period.TOTAL)).budgets == (
        *FULL.budgets,
        Budget(1, Period.TOTAL),
    )
    with pytest.raises(InvalidInput, match="there are budgets for day and month; say which one is meant"):
        changed(FULL, PolicyChange(budget_nano=1))
    with pytest.raises(InvalidInput, match="give the budget too"):
        changed(FULL, PolicyChange(period=Period.DAY))


def test_hard_and_soft_budgets_of_a_period_live_side_by_side() -> None:
    """Changing an amount keeps warnings and raise; warnings go to the soft one, a raise to the hard one."""
    both = changed(UNLIMITED, PolicyChange(budget_nano=10, soft_budget_nano=8, warn_at=Thresholds((80,), (3,))))
    assert both.budgets == (Budget(10), Budget(8, soft=True, warn_percents=(80,), warn_nanos=(3,)))
    raised = changed(both, PolicyChange(raised=Raise(5, 77)))
    assert raised.budgets[0] == Budget(10, raised=Raise(5, 77))
    assert changed(raised, PolicyChange(budget_nano=11)).budgets[0] == Budget(11, raised=Raise(5, 77))
    assert changed(raised, PolicyChange(raised=None)) == both
    assert changed(both, PolicyChange(warn_at=None)).budgets[1] == Budget(8, soft=True)
    assert changed(both, PolicyChange(budget_nano=None)).budgets == both.budgets[1:]
    assert changed(both, PolicyChange(soft_budget_nano=None)).budgets == (Budget(10),)
    for change in (PolicyChange(raised=Raise(5, 77)), PolicyChange(warn_at=Thresholds((80,)))):
        with pytest.raises(InvalidInput, match="there is no budget for the period month"):
            changed(UNLIMITED, change)


def test_warnings_in_words_round_trip() -> None:
    at = warn_from(["80%", "12.50", "120%"])
    assert at == Thresholds((80, 120), (12_500_000_000,))
    assert warn_texts(Budget(1, warn_percents=at.percents, warn_nanos=at.nanos)) == ["80%", "120%", "12.50"]
    for text in ("0%", "1001%", "-5%", "1e99", "x", "%"):
        with pytest.raises(InvalidInput, match="warn_at: "):
            warn_from([text])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (PolicyChange(rpm=0), "rpm: must be from 1"),
        (PolicyChange(tpm=2**40), "tpm: must be from 1 to 1099511627775"),
        (PolicyChange(max_parallel=-1), "max_parallel: must be from 1"),
        (PolicyChange(budget_nano=2**53), "budget: must be from 0"),
        (PolicyChange(cost_cap_nano=0), "cost_cap: must be from 1"),
        (PolicyChange(models=()), "models: give 1 to 100 names"),
        (PolicyChange(models=("",)), "models: a name is 1 to 200"),
        (PolicyChange(models=("a\n",)), "models: a name is 1 to 200"),
    ],
)
def test_values_that_cannot_be_taken(change: PolicyChange, message: str) -> None:
    """The message begins with the field's name and says the bounds."""
    with pytest.raises(InvalidInput, match=message):
        changed(UNLIMITED, change)


def test_a_budget_of_nothing_is_a_budget() -> None:
    """Zero allows only what costs nothing; it is not the same as no budget."""
    assert changed(UNLIMITED, PolicyChange(budget_nano=0)).budgets == (Budget(0),)


@given(
    st.builds(
        Window,
        st.sampled_from(Unit),
        st.integers(1, 2**40 - 1),
        st.integers(1, 10**9) | st.integers(1, 400).map(lambda days: days * 86_400 * 10**6),
        st.none() | st.text("abc*-/.:1", min_size=1, max_size=9),
        st.booleans(),
        st.booleans(),
    )
)
def test_limits_in_words_round_trip(window: Window) -> None:
    """What is shown can be typed in again and means the same."""
    assert window_from(window_text(window)) == window


@pytest.mark.parametrize(
    "text", ["", "rpm=5/1m", "requests=5", "requests=-1/1m", "tokens=1/1y", "tokens=1/1d,model=", "tokens=1/1d,x"]
)
def test_unreadable_limits_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="limit: "):
        window_from(text)


def test_other_limits_are_replaced_and_rpm_stays() -> None:
    """--limit replaces the other limits as a whole; rpm and tpm are named by themselves."""
    before = Policy(windows=(Window(Unit.REQUESTS, 60), Window(Unit.TOKENS, 9, 3_600_000_000)))
    shadow = Window(Unit.REQUESTS, 5, shadow=True)
    after = changed(before, PolicyChange(windows=(shadow,), rpm=70))
    assert set(after.windows) == {Window(Unit.REQUESTS, 70), shadow}
    assert changed(after, PolicyChange(windows=None)).windows == (Window(Unit.REQUESTS, 70),)
    assert per_minute(after, Unit.REQUESTS) == 70


@pytest.mark.parametrize(
    ("text", "bucket"),
    [
        ("requests=600/100", TokenBucket(Unit.REQUESTS, 600, 100)),
        ("tokens=1_000/20,per-user,shadow", TokenBucket(Unit.TOKENS, 1000, 20, None, True, True)),
        ("tokens=1/2,model=gpt-4o*", TokenBucket(Unit.TOKENS, 1, 2, "gpt-4o*")),
    ],
)
def test_buckets_are_written_as_they_are_read(text: str, bucket: TokenBucket) -> None:
    assert bucket_from(text) == bucket == bucket_from(bucket_text(bucket))
    assert changed(Policy(), PolicyChange(buckets=(bucket,))).buckets == (bucket,)
    assert changed(Policy(buckets=(bucket,)), PolicyChange(rpm=1)).buckets == (bucket,)
    assert changed(Policy(buckets=(bucket,)), PolicyChange(buckets=None)).buckets == ()


@pytest.mark.parametrize(
    "text", ["requests=600", "requests=600/1m", "cats=1/2", "requests=1/2,sometimes", "", "requests=-1/2"]
)
def test_what_is_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="bucket"):
        bucket_from(text)
