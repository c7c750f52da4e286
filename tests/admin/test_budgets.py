"""Budgets with their state, alerts with their delivery, totals and the configuration, by the admin API."""

from typing import Any

import msgspec

from tests.admin.conftest import DIGEST_KEY, Control, now_us
from tollkeeper.domain.admission import Grant
from tollkeeper.domain.alerts import Alert
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.usage import Usage


async def spend(control: Control, key: str, nano: int) -> None:
    """Charge a request, and bring it into the database."""
    principal = await control.database.accounts(DIGEST_KEY, now_us).principal(key)
    grant = await control.ledger.admit(principal, attempt=f"{key}.1", tokens=1, hold_nano=nano)
    assert isinstance(grant, Grant)
    control.ledger.dispatched(grant)
    control.ledger.settle(grant, nano, Usage(input_tokens=3, output_tokens=4))
    assert (await control("POST", "/admin/v1/sync")).status == 200


async def test_budgets_tell_what_is_spent_and_what_that_means(control: Control) -> None:
    """Of keys, teams and organisations, in the period that runs; scopes without budgets are left out."""
    organisation = {"name": "acme", "limits": {"budgets": {"total": "100"}}}
    assert (await control("POST", "/admin/v1/organisations", organisation)).status == 201
    await control("POST", "/admin/v1/teams", {"name": "red", "organisation": "acme", "limits": {"rpm": 1000}})
    limits = {"budgets": {"month": "1.00", "day": "0.50"}, "soft_budgets": {"month": "0.40"}}
    key = (await control("POST", "/admin/v1/keys", {"name": "k", "team": "red", "limits": limits})).json
    await spend(control, "k", 500_000_000)
    page = (await control("GET", "/admin/v1/budgets")).json
    assert ([scope["name"] for scope in page["data"]], page["has_more"]) == (["k", "acme"], False)
    of_key, of_all = page["data"]
    assert (of_key["scope"], of_key["scope_id"], of_all["scope"]) == ("key", key["id"], "organisation")
    states = {budget["period"]: budget for budget in of_key["budgets"]}
    assert (states["day"]["state"], states["day"]["remaining_usd"], states["day"]["used_percent"]) == (
        *("exhausted", "0.00", 100.0),
    )
    month = states["month"]
    assert (month["state"], month["spent_usd"], month["soft_budget_usd"]) == ("above_soft", "0.50", "0.40")
    assert (month["spent_nano"], month["remaining_usd"], month["used_percent"]) == (500_000_000, "0.50", 50.0)
    (total,) = of_all["budgets"]
    assert (total["state"], total["spent_usd"], total["period_ends_at"]) == ("ok", "0.50", None)
    one = (await control("GET", "/admin/v1/budgets?limit=1")).json
    assert one["has_more"] is True
    rest = (await control("GET", f"/admin/v1/budgets?starting_after={one['data'][0]['scope_id']}")).json
    assert [scope["name"] for scope in rest["data"]] == ["acme"]
    assert [s["name"] for s in (await control("GET", "/admin/v1/budgets?scope=organisation")).json["data"]] == [
        "acme"
    ]
    assert (await control("GET", "/admin/v1/budgets?starting_after=x")).json["error"]["param"] == "starting_after"
    secret = (
        await control("POST", "/admin/v1/admin-tokens", {"name": "o", "role": "owner", "owns": [key["id"]]})
    ).json["secret"]
    assert [s["name"] for s in (await control("GET", "/admin/v1/budgets", token=secret)).json["data"]] == ["k"]


def alert(counter: str, threshold: int, crossed_us: int, root: str = "org_a") -> Alert:
    kind = ScopeKind.KEY if counter.startswith("key_") else ScopeKind.ORGANISATION
    return Alert(root, counter, threshold, kind, threshold + 1, 100, None, 9_000_000_000_000_000, crossed_us)


async def listed(control: Control, query: str = "", **more: Any) -> list[tuple[str, str]]:
    answer = await control("GET", f"/admin/v1/alerts?{query}", **more)
    assert answer.status == 200, answer.body
    return [(found["scope_id"], found["delivery"]) for found in answer.json["data"]]


async def given(control: Control) -> None:
    """An alert in every state: of four keys and their organisation."""
    book = control.database.alerts
    names = ("key_a", "key_b", "key_c", "key_d")
    alerts = [alert(f"{name}:2026:11", 50, 1_000_000 + number) for number, name in enumerate(names)]
    await book.claim(alerts, due_us=5)
    await book.claim([alert("2026:11", 50, 2_000_000)], due_us=None)
    assert len(await book.take_due(6, lease_us=10, limit=10)) == 4
    await book.settle(alerts[1], due_us=7, failure="it answered 500")
    await book.settle(alerts[2], due_us=None, delivered_us=8_000_000)
    await book.settle(alerts[3], due_us=None, failure="x" * 1000)


async def test_alerts_tell_what_became_of_their_messages(control: Control) -> None:
    """Waiting, tried again with the reason, delivered, given up, or never sent; newest first."""
    await given(control)
    assert await listed(control) == [
        ("org_a", "none"),
        ("key_d", "given_up"),
        ("key_c", "delivered"),
        ("key_b", "retrying"),
        ("key_a", "waiting"),
    ]
    (failing,) = (await control("GET", "/admin/v1/alerts?delivery=retrying")).json["data"]
    assert (failing["failure"], failing["attempts"], failing["threshold_usd"]) == (
        *("it answered 500", 1, "0.00000005"),
    )
    assert await listed(control, "scope_id=key_c") == [("key_c", "delivered")]
    assert await listed(control, "scope_id=org_a") == [("org_a", "none")]
    assert await listed(control, "until=1970-01-01T00:00:01Z") == []
    body = {"name": "o", "role": "owner", "owns": ["key_b"]}
    secret = (await control("POST", "/admin/v1/admin-tokens", body)).json["secret"]
    assert await listed(control, token=secret) == [("key_b", "retrying")]


async def test_alerts_name_whose_they_are(control: Control) -> None:
    """As long as it is there."""
    await control("POST", "/admin/v1/organisations", {"name": "acme"})
    team = (await control("POST", "/admin/v1/teams", {"name": "red", "organisation": "acme"})).json
    key = (await control("POST", "/admin/v1/keys", {"name": "k", "team": "red", "organisation": "acme"})).json
    root = key["organisation_id"]
    counters = (f"{key['id']}:2026:11", f"{team['id']}:2026:11", "2026:11", "key_gone:2026:11")
    kinds = (ScopeKind.KEY, ScopeKind.TEAM, ScopeKind.ORGANISATION, ScopeKind.KEY)
    given = [
        msgspec.structs.replace(alert(counter, 50, 9 - number, root), scope=kind)
        for number, (counter, kind) in enumerate(zip(counters, kinds, strict=True))
    ]
    await control.database.alerts.claim(given, due_us=None)
    found = (await control("GET", "/admin/v1/alerts")).json["data"]
    assert [each["name"] for each in found] == ["k", "red", "acme", None]


async def test_alerts_of_one_instant_come_once_each(control: Control) -> None:
    """Pages of two, though all were reached at the same microsecond; a cursor that was made up is refused."""
    await control.database.alerts.claim([alert("2026:11", n, 1_000_000) for n in range(1, 6)], due_us=None)
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await control("GET", f"/admin/v1/alerts?limit=2{cursor}")).json
        seen += [found["id"] for found in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&starting_after={page['next_cursor']}"
    assert len(seen) == len(set(seen)) == 5
    for wrong in ("x", "1-x", "1000000-evt_x", "9" * 30 + "-x"):
        refused = await control("GET", f"/admin/v1/alerts?starting_after={wrong}")
        assert (refused.status, refused.json["error"]["param"]) == (400, "starting_after")


async def test_statistics_count_everything_and_sum_the_month(control: Control) -> None:
    empty = (await control("GET", "/admin/v1/statistics")).json
    assert (empty["keys_active"], empty["cost_usd"], empty["synced_at"]) == (0, "0.00", None)
    for name in ("a", "b", "c"):
        await control("POST", "/admin/v1/keys", {"name": name})
    await control("POST", "/admin/v1/keys/c/revoke")
    await control("PATCH", "/admin/v1/keys/b", {"expires_at": "2001-01-01"})
    await control("POST", "/admin/v1/teams", {"name": "t"})
    await spend(control, "a", 250_000_000)
    found = (await control("GET", "/admin/v1/statistics")).json
    synced_at = found.pop("synced_at")
    assert synced_at is not None
    assert found == {
        "organisations": 1,
        "teams": 1,
        "keys_active": 1,
        "keys_expired": 1,
        "keys_revoked": 1,
        "admin_tokens": 0,
        "alerts_undelivered": 0,
        "cost_usd": "0.25",
        "cost_nano": 250_000_000,
        "requests": 1,
        "input_tokens": 3,
        "output_tokens": 4,
    }


async def test_the_configuration_is_shown_as_it_was_given(control: Control) -> None:
    """Masked where it was made (`settings.shown`, tests/test_settings.py)."""
    assert (await control("GET", "/admin/v1/configuration")).json == {"secrets": {"admin_token": "***"}}
