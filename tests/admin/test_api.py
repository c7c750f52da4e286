"""The admin API: accounts, usage, limits, and errors of one shape."""

from typing import Any

import pytest

from tests.admin.conftest import TOKEN, Control, now_us
from tollkeeper.domain.admission import Grant
from tollkeeper.domain.usage import Usage
from tollkeeper.storage.database import Database


async def test_the_life_of_a_key(control: Control) -> None:
    """Create and rotate show a secret, nothing else does; revoke ends it."""
    limits = {"rpm": 60, "tpm": 1000, "max_parallel": 2, "budgets": {"month": "25.00", "day": "5"}}
    more: dict[str, object] = {"cost_cap_usd": "0.5", "models": ["gpt-*"]}
    more["buckets"] = ["requests=600/100", "tokens=1000/50,model=gpt-*,per-user,shadow"]
    created = await control("POST", "/admin/v1/keys", {"name": "alice", "limits": limits | more})
    assert created.status == 201
    key = created.json
    secret = key.pop("secret")
    assert secret.startswith("tk_")
    assert key["limits"] == {
        "rpm": 60,
        "tpm": 1000,
        "max_parallel": 2,
        "budgets": {"month": "25.00", "day": "5.00"},
        "soft_budgets": {},
        "warn_at": {},
        "raises": {},
        "cost_cap_usd": "0.50",
        "models": ["gpt-*"],
        "windows": [],
        "buckets": ["requests=600/100", "tokens=1000/50,model=gpt-*,per-user,shadow"],
        "max_parallel_shadow": False,
        "log_bodies": None,
    }
    shown = await control("GET", "/admin/v1/keys/alice")
    assert shown.json == key
    assert (await control("GET", "/admin/v1/keys")).json == {"data": [key], "has_more": False}
    rotated = (await control("POST", f"/admin/v1/keys/{key['id']}/rotate")).json
    assert rotated["secret"] != secret
    assert (await control("POST", "/admin/v1/keys/alice/revoke")).json["state"] == "revoked"
    assert (await control("GET", "/admin/v1/keys")).json == {"data": [], "has_more": False}
    (gone,) = (await control("GET", "/admin/v1/keys?include_revoked=true")).json["data"]
    assert gone["state"] == "revoked"


async def test_update_changes_what_is_named_and_nothing_else(control: Control) -> None:
    """What a request leaves out stays; null removes."""
    limits = {"rpm": 60, "tpm": 1000, "budgets": {"month": "25.00", "day": "5"}}
    key = (await control("POST", "/admin/v1/keys", {"name": "k", "limits": limits, "expires_at": "2099-01-01"})).json
    del key["secret"]
    changed = await control("PATCH", "/admin/v1/keys/k", {"limits": {"tpm": None, "budgets": {"day": None}}})
    key["limits"] |= {"tpm": None, "budgets": {"month": "25.00"}}
    assert changed.json == key
    changed = await control("PATCH", "/admin/v1/keys/k", {"name": "other", "expires_at": None})
    assert changed.json == key | {"name": "other", "expires_at": None}
    changed = await control("PATCH", "/admin/v1/keys/other", {"limits": {"budgets": None}})
    assert changed.json["limits"]["budgets"] == {}


async def test_soft_budgets_warnings_and_raises(control: Control) -> None:
    """In the same words as they are answered; null removes them all."""
    more = {"month": {"amount_usd": "10.00", "until": "2099-12-01T00:00:00Z"}}
    limits = {"budgets": {"month": "25.00"}, "soft_budgets": {"day": "5.00"}, "warn_at": {"day": ["80%", "1.50"]}}
    key = (await control("POST", "/admin/v1/keys", {"name": "k", "limits": limits | {"raises": more}})).json
    assert {field: key["limits"][field] for field in (*limits, "raises")} == limits | {"raises": more}
    changed = await control("PATCH", "/admin/v1/keys/k", {"limits": {"raises": None, "warn_at": None}})
    assert (changed.json["limits"]["raises"], changed.json["limits"]["warn_at"]) == ({}, {})
    changed = await control("PATCH", "/admin/v1/keys/k", {"limits": {"soft_budgets": None}})
    assert changed.json["limits"]["soft_budgets"] == {} and changed.json["limits"]["budgets"] == {"month": "25.00"}
    refused = await control("PATCH", "/admin/v1/keys/k", {"limits": {"raises": {"day": more["month"]}}})
    assert (refused.status, refused.json["error"]["param"]) == (400, "limits.raises")


async def test_teams_and_organisations(control: Control) -> None:
    """Created, listed and changed, with the same words for limits."""
    organisation = (await control("POST", "/admin/v1/organisations", {"name": "acme", "limits": {"rpm": 5}})).json
    team = (await control("POST", "/admin/v1/teams", {"name": "red", "organisation": "acme"})).json
    assert team["organisation_id"] == organisation["id"]
    key = (await control("POST", "/admin/v1/keys", {"name": "k", "team": "red"})).json
    assert (key["team_id"], key["organisation_id"]) == (team["id"], organisation["id"])
    changed = await control("PATCH", "/admin/v1/teams/red", {"limits": {"max_parallel": 3}})
    assert changed.json["limits"]["max_parallel"] == 3
    changed = await control("PATCH", f"/admin/v1/organisations/{organisation['id']}", {"limits": {"tpm": 9}})
    assert (changed.json["limits"]["rpm"], changed.json["limits"]["tpm"]) == (5, 9)
    assert [t["name"] for t in (await control("GET", "/admin/v1/teams")).json["data"]] == ["red"]
    assert [o["name"] for o in (await control("GET", "/admin/v1/organisations")).json["data"]] == ["acme"]
    moved = await control("PATCH", "/admin/v1/keys/k", {"team": None})
    assert moved.json["team_id"] is None


async def test_limits_and_usage_follow_a_request(control: Control) -> None:
    """A charged request shows in limits at once and in usage after a sync; reset empties windows and keeps spend."""
    limits = {"rpm": 10, "tpm": 1000, "budgets": {"month": "1.00"}}
    key = (await control("POST", "/admin/v1/keys", {"name": "k", "limits": limits})).json
    accounts = control.database.accounts(b"d" * 64, now_us)
    principal = await accounts.principal("k")
    grant = await control.ledger.admit(principal, attempt="r.1", tokens=100, hold_nano=200_000_000)
    assert isinstance(grant, Grant)
    control.ledger.dispatched(grant)
    control.ledger.settle(grant, 123_456_789, Usage(input_tokens=10, output_tokens=20))
    answered = (await control("GET", "/admin/v1/limits/k")).json
    assert answered["key_id"] == key["id"]
    state = {limit["limit_kind"]: limit for limit in answered["limits"]}
    assert (state["requests"]["used"], state["requests"]["remaining"]) == ("1", "9")
    assert state["tokens"]["used"] == "30"
    assert (state["budget"]["unit"], state["budget"]["used"], state["budget"]["held"]) == (
        "usd",
        "0.123456789",
        "0.00",
    )
    assert (await control("POST", "/admin/v1/limits/k/reset")).status == 204
    state = {limit["limit_kind"]: limit for limit in (await control("GET", "/admin/v1/limits/k")).json["limits"]}
    assert (state["requests"]["used"], state["budget"]["used"]) == ("0", "0.123456789")
    assert (await control("GET", "/admin/v1/usage")).json["data"] == []
    assert (await control("POST", "/admin/v1/sync")).status == 200
    (row,) = (await control("GET", "/admin/v1/usage?key=k")).json["data"]
    assert (row["key_name"], row["requests"], row["input_tokens"], row["output_tokens"]) == ("k", 1, 10, 20)
    assert (row["cost_nano"], row["cost_usd"]) == (123_456_789, "0.123456789")
    assert (await control("GET", f"/admin/v1/usage?month={row['month']}")).json == {"data": [row], "has_more": False}
    assert (await control("GET", "/admin/v1/usage?month=1999-01")).json["data"] == []


@pytest.mark.parametrize(
    ("request_line", "body", "status", "kind", "param"),
    [
        ("GET keys/nobody", None, 404, "not_found", None),
        ("GET limits/nobody", None, 404, "not_found", None),
        ("PATCH teams/nobody", {"limits": {}}, 404, "not_found", None),
        ("GET nonsense", None, 404, "not_found", None),
        ("DELETE keys", None, 405, "method_not_allowed", None),
        ("POST keys", {}, 400, "invalid_request", "name"),
        ("POST keys", {"name": 5}, 400, "invalid_request", "name"),
        ("POST keys", {"name": "k", "x": 1}, 400, "invalid_request", "x"),
        ("POST keys", {"name": "k", "limits": {"rpm": "5"}}, 400, "invalid_request", "limits.rpm"),
        ("POST keys", {"name": "k", "limits": {"rpm": 0}}, 400, "invalid_request", "limits.rpm"),
        ("POST keys", {"name": "k", "limits": {"budgets": {"year": "1"}}}, 400, "invalid_request", "limits.budgets"),
        (
            "POST keys",
            {"name": "k", "limits": {"budgets": {"day": 1.5}}},
            400,
            "invalid_request",
            "limits.budgets.day",
        ),
        ("POST keys", {"name": "k", "limits": {"cost_cap_usd": "x"}}, 400, "invalid_request", "limits.cost_cap_usd"),
        ("POST keys", {"name": "k", "expires_at": "soon"}, 400, "invalid_request", "expires_at"),
        ("POST keys", {"name": "k", "expires_at": "2099-01-01T00:00:00"}, 400, "invalid_request", "expires_at"),
        ("GET keys?temas=red", None, 400, "invalid_request", "temas"),
        ("POST keys?name=k", {"name": "k"}, 400, "invalid_request", "name"),
        ("GET usage?month=x", None, 400, "invalid_request", "month"),
        ("GET usage?starting_after=x", None, 400, "invalid_request", "starting_after"),
        ("GET usage?by=user", None, 400, "invalid_request", "by"),
        ("GET reports/usage?group_by=nothing", None, 400, "invalid_request", "group_by"),
        ("GET reports/usage?group_by=day,day", None, 400, "invalid_request", "group_by"),
        ("GET reports/usage?since=2020-01-01&until=2026-01-01", None, 400, "invalid_request", "since"),
        ("GET reports/usage?since=2026-01-02&until=2026-01-01", None, 400, "invalid_request", "since"),
        ("GET reports/usage?since=2026-01-01&until=2026-02-01&key=nobody", None, 404, "not_found", None),
    ],
)
async def test_errors_have_one_shape(
    control: Control, request_line: str, body: Any, status: int, kind: str, param: str | None
) -> None:
    """`{"error": {"type", "code", "message", "param", "doc_url"}}`, whoever refused."""
    method, _, path = request_line.partition(" ")
    answer = await control(method, f"/admin/v1/{path}", body)
    assert (answer.status, answer.json["error"]["code"], answer.json["error"]["param"]) == (status, kind, param)
    assert answer.json["error"]["message"]


async def test_malformed_json_is_a_400(control: Control) -> None:
    """Bytes that are no JSON get the same shape."""
    answer = await control("POST", "/admin/v1/keys", body=b"{nope")
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "\u00e4" * 40])
@pytest.mark.parametrize("path", ["/admin/v1/keys", "/admin/v1/nonsense", "/admin/x"])
async def test_nothing_is_served_without_the_admin_token(control: Control, path: str, token: str | None) -> None:
    """Not even whether a path exists; the body is not read."""
    answer = await control("POST", path, body=b"x" * 10, token=token)
    assert (answer.status, answer.json["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_body_over_the_limit_is_refused(control: Control) -> None:
    """1 MiB, whatever was declared."""
    answer = await control("POST", "/admin/v1/keys", body=b" " * (2**20 + 1))
    assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")


async def test_a_database_that_is_away_is_a_503(control: Control) -> None:
    """The control plane says what is away instead of failing."""
    away = await Database.open("postgresql://user:verysecret@127.0.0.1:9/db", pool_size=1, timeout_s=1.0)
    control.application = control.make(away)
    answer = await control("GET", "/admin/v1/keys")
    assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
    assert b"verysecret" not in answer.body
    await away.close()


async def test_bodies_are_logged_as_a_key_says(control: Control) -> None:
    """Set, kept by other changes, removed; other words are refused."""
    path = "/admin/v1/keys"
    created = await control("POST", path, {"name": "bob", "limits": {"log_bodies": "truncated"}})
    assert created.json["limits"]["log_bodies"] == "truncated"
    path = f"{path}/bob"
    assert (await control("PATCH", path, {"limits": {"rpm": 1}})).json["limits"]["log_bodies"] == "truncated"
    assert (await control("PATCH", path, {"limits": {"log_bodies": None}})).json["limits"]["log_bodies"] is None
    assert (await control("PATCH", path, {"limits": {"log_bodies": "some"}})).status == 400
