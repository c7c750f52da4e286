"""What LiteLLM's accounts and models become, by the table in `domain/litellm.py`."""

from typing import Any

import pytest

from tollkeeper.domain.litellm import Group, Limits, Plan, PlannedKey, Snapshot, Token, plan_of
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, Unit, Window

NOW = 1_795_000_000_000_000
DIGEST = "ab" * 32


def planned(limits: Limits, **token: Any) -> PlannedKey:
    (key,) = plan_of(Snapshot(tokens=(Token(DIGEST, "sk-...abcd", "k", limits, **token),)), NOW).keys
    return key


@pytest.mark.parametrize(
    ("duration", "period", "exact"),
    [
        (None, Period.TOTAL, True),
        ("", Period.TOTAL, True),
        ("1d", Period.DAY, True),
        ("24h", Period.DAY, True),
        ("1440m", Period.DAY, True),
        ("7d", Period.WEEK, True),
        ("1w", Period.WEEK, True),
        ("30d", Period.MONTH, True),
        ("1mo", Period.MONTH, True),
        ("30s", Period.DAY, False),
        ("12h", Period.DAY, False),
        ("2d", Period.WEEK, False),
        ("14d", Period.MONTH, False),
        ("31d", Period.TOTAL, False),
        ("3mo", Period.TOTAL, False),
        ("soon", Period.TOTAL, False),
        ("0d", Period.TOTAL, False),
    ],
)
def test_a_budget_is_never_larger_than_it_was(duration: str | None, period: Period, exact: bool) -> None:
    """What LiteLLM resets at midnight, on Monday or on the first is the same here; all else is stricter, and told."""
    key = planned(Limits(max_budget="10.0000000019", soft_budget="5", budget_duration=duration))
    assert key.policy.budgets == (Budget(10_000_000_001, period), Budget(5 * 10**9, period, soft=True))
    assert (key.notes == ()) == exact


@pytest.mark.parametrize(
    ("limits", "policy"),
    [
        (Limits(), Policy()),
        (
            Limits(rpm=60, tpm=1000, max_parallel=3),
            Policy(windows=(Window(Unit.REQUESTS, 60), Window(Unit.TOKENS, 1000)), concurrency=3),
        ),
        (Limits(model_tpm={"gpt-4o": 9}), Policy(windows=(Window(Unit.TOKENS, 9, model="gpt-4o"),))),
        (Limits(models=("gpt-4o", "openai/*", "gpt-4o")), Policy(models=("gpt-4o", "openai/*"))),
        (Limits(models=("all-team-models",)), Policy()),
        (Limits(models=("no-default-models", "a")), Policy(models=("a",))),
        (Limits(max_budget="0"), Policy(budgets=(Budget(0, Period.TOTAL),))),
        (Limits(max_budget="-1"), Policy(budgets=(Budget(0, Period.TOTAL),))),
        (Limits(rpm=2**62), Policy()),
    ],
)
def test_limits(limits: Limits, policy: Policy) -> None:
    assert planned(limits).policy == policy


@pytest.mark.parametrize(
    ("limits", "token", "why"),
    [
        (Limits(rpm=0), {}, "rpm_limit 0 lets nothing pass"),
        (Limits(max_parallel=0), {}, "max_parallel_requests lets nothing pass"),
        (Limits(model_rpm={"m": "many"}), {}, "model_rpm_limit[m] 'many' is not a whole number"),
        (Limits(models=("no-default-models",)), {}, "it may use no model"),
        (Limits(max_budget="NaN"), {}, "'NaN' is not an amount in USD"),
        (Limits(blocked=True), {}, "it is blocked in LiteLLM"),
        (Limits(), {"expires_us": NOW}, "it has expired"),
        (Limits(), {"team": "gone"}, "its team gone does not exist"),
        (Limits(), {"organisation": "gone"}, "its organisation gone does not exist"),
    ],
)
def test_a_key_that_could_do_nothing_or_too_much_is_left_out(limits: Limits, token: Any, why: str) -> None:
    key = planned(limits, **token)
    assert key.left_out == why and key.policy == Policy()


def test_a_secret_in_plain_text_is_not_imported() -> None:
    (key,) = plan_of(Snapshot(tokens=(Token("sk-1234", None, None, Limits()),)), NOW).keys
    assert key.left_out is not None and "sk-1234" not in key.left_out


def test_spend_is_that_of_the_current_period() -> None:
    """Rounded up; nothing if LiteLLM's reset is overdue, or no budget counts it."""
    spent = Limits(max_budget="5", budget_duration="1d", spend="1.0000000001", budget_reset_us=NOW + 1)
    assert [(s.period, s.amount_nano) for s in planned(spent).spends] == [(Period.DAY, 1_000_000_001)]
    assert planned(Limits(max_budget="5", spend="1", budget_reset_us=NOW)).spends == ()
    assert planned(Limits(spend="1")).spends == ()


def _homes(plan: Plan) -> list[tuple[str, str | None]]:
    return [(team.name, team.organisation) for team in plan.teams]


def test_every_team_has_a_name_and_an_organisation_of_its_own() -> None:
    """Aliases that several have, one that an organisation has too, and none at all."""
    teams = (
        Group("1", "red", Limits()),
        Group("2", "red", Limits()),
        Group("3", "acme", Limits()),
        Group("4", None, Limits(), "o"),
    )
    plan = plan_of(Snapshot(organisations=(Group("o", "acme", Limits()),), teams=teams), NOW)
    assert _homes(plan) == [("red (1)", "red (1)"), ("red (2)", "red (2)"), ("acme", "acme (team)"), ("4", "acme")]
    assert [o.name for o in plan.organisations] == ["acme", "red (1)", "red (2)", "acme (team)"]


def test_a_users_limits_bind_their_keys_without_a_team() -> None:
    user = Group("u", "ann", Limits(max_budget="4"))
    tokens = tuple(Token(f"{n:064x}", None, f"k{n}", Limits(), user="u", team=t) for n, t in ((1, None), (2, "t")))
    plan = plan_of(Snapshot(teams=(Group("t", "red", Limits()),), users=(user,), tokens=tokens), NOW)
    assert [key.team for key in plan.keys] == ["user u", "team t"]
    assert _homes(plan) == [("red", "red"), ("ann", "ann")]
    unused = plan_of(Snapshot(users=(user, Group("v", "bob", Limits()))), NOW)
    assert unused.teams == unused.organisations == ()


def test_what_is_blocked_above_a_key_leaves_it_out() -> None:
    found = Snapshot(
        organisations=(Group("o", "acme", Limits(rpm=0)),),
        teams=(Group("t", "red", Limits(), "o"),),
        tokens=(Token(DIGEST, None, "k", Limits(), team="t"),),
    )
    (key,) = plan_of(found, NOW).keys
    assert key.left_out == "organisation o: rpm_limit 0 lets nothing pass"
