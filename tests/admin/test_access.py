"""Who may do what: every route with every role, generated from the routes, and an owner's sight."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from tests.admin.conftest import Control
from tollkeeper.admin.access import Admin, describe_roles
from tollkeeper.domain.operators import Role

ADMIN, VIEWER, OWNER = Role.ADMIN, Role.VIEWER, Role.OWNER
ALL, READERS, ADMINS = {ADMIN, VIEWER, OWNER}, {ADMIN, VIEWER}, {ADMIN}

MATRIX: dict[str, tuple[set[Role], Any]] = {
    "POST /admin/v1/keys": (ADMINS, {"name": "new"}),
    "GET /admin/v1/keys": (ALL, None),
    "GET /admin/v1/keys/{key}": (ALL, None),
    "PATCH /admin/v1/keys/{key}": (ADMINS, {"limits": {"rpm": 5}}),
    "POST /admin/v1/keys/{key}/rotate": (ADMINS, None),
    "POST /admin/v1/keys/{key}/revoke": (ADMINS, None),
    "POST /admin/v1/teams": (ADMINS, {"name": "new"}),
    "GET /admin/v1/teams": (ALL, None),
    "GET /admin/v1/teams/{team}": (ALL, None),
    "PATCH /admin/v1/teams/{team}": (ADMINS, {"limits": {"rpm": 5}}),
    "POST /admin/v1/organisations": (ADMINS, {"name": "newer"}),
    "GET /admin/v1/organisations": (ALL, None),
    "GET /admin/v1/organisations/{organisation}": (ALL, None),
    "PATCH /admin/v1/organisations/{organisation}": (ADMINS, {"limits": {"rpm": 5}}),
    "GET /admin/v1/usage": (ALL, None),
    "GET /admin/v1/reports/usage": (ALL, None),
    "POST /admin/v1/sync": (ADMINS, None),
    "GET /admin/v1/corrections": (READERS, None),
    "GET /admin/v1/corrections/{attempt}": (READERS, None),
    "POST /admin/v1/corrections/{attempt}": (ADMINS, {"cost_usd": "1", "note": "why"}),
    "POST /admin/v1/corrections": (
        ADMINS,
        {"scope": "key", "name": "mine", "amount_usd": "1", "note": "why"},
    ),
    "GET /admin/v1/accounts": (READERS, None),
    "GET /admin/v1/logs": (ALL, None),
    "GET /admin/v1/logs/stats": (READERS, None),
    "GET /admin/v1/logs/verify": (READERS, None),
    "GET /admin/v1/limits/{key}": (ALL, None),
    "POST /admin/v1/limits/{key}/reset": (ADMINS, None),
    "GET /admin/v1/health": (READERS, None),
    "GET /admin/v1/statistics": (READERS, None),
    "GET /admin/v1/configuration": (ADMINS, None),
    "GET /admin/v1/budgets": (ALL, None),
    "GET /admin/v1/alerts": (ALL, None),
    "POST /admin/v1/admin-tokens": (ADMINS, {"name": "new", "role": "viewer"}),
    "GET /admin/v1/admin-tokens": (READERS, None),
    "GET /admin/v1/admin-tokens/{token}": (READERS, None),
    "PATCH /admin/v1/admin-tokens/{token}": (ADMINS, {"expires_at": "2099-01-01"}),
    "POST /admin/v1/admin-tokens/{token}/rotate": (ADMINS, None),
    "POST /admin/v1/admin-tokens/{token}/revoke": (ADMINS, None),
    "GET /admin/v1/me": (ALL, None),
    "GET /admin/v1/audit": (READERS, None),
}
"""Every route with the roles it is for, and a body that it takes. A new route needs a row here."""
NOT_THERE = {"{attempt}"}
"""What the fixture has none of: whoever may ask gets a 404."""


def routes(control: Control) -> Iterator[str]:
    """What is served, as the framework describes it."""
    for path, operations in get_openapi(title="", version="", routes=control.application.load().api.routes)[
        "paths"
    ].items():
        yield from (f"{method.upper()} {path}" for method in operations)


async def token(control: Control, role: Role, owns: list[str] | None = None) -> str:
    body = {"name": f"a {role}", "role": role.value, "owns": owns or []}
    created = await control("POST", "/admin/v1/admin-tokens", body)
    assert created.status == 201, created.body
    secret: str = created.json["secret"]
    return secret


async def furnished(control: Control) -> dict[str, str]:
    """One of everything, the owner's and somebody else's; placeholder → the owner's."""
    for name in ("mine", "theirs"):
        organisation = (await control("POST", "/admin/v1/organisations", {"name": f"{name}-org"})).json
        team = (await control("POST", "/admin/v1/teams", {"name": name, "organisation": organisation["id"]})).json
        assert (await control("POST", "/admin/v1/keys", {"name": name, "team": team["id"]})).status == 201
    await control("POST", "/admin/v1/admin-tokens", {"name": "spare", "role": "viewer"})
    return {
        "{key}": "mine",
        "{team}": "mine",
        "{organisation}": "mine-org",
        "{token}": "spare",
        "{attempt}": "req_x.1",
    }


def test_every_route_has_a_row_and_every_row_a_route(control: Control) -> None:
    assert sorted(routes(control)) == sorted(MATRIX)
    assert all(line.split()[1].startswith("/admin/v1/") for line in MATRIX)


@pytest.mark.parametrize("role", list(Role))
async def test_every_route_serves_its_roles_and_no_other(control: Control, role: Role) -> None:
    """Whoever may not is refused with 403 and changes nothing; whoever may is served."""
    places = await furnished(control)
    organisation = (await control("GET", "/admin/v1/organisations/mine-org")).json
    secret = await token(control, role, [organisation["id"]] if role is OWNER else None)
    audited = (await control("GET", "/admin/v1/audit?limit=1")).json["data"][0]["id"]
    # what ends something comes last, so that what comes before it still finds it
    for line in sorted(routes(control), key=lambda line: line.endswith("/revoke")):
        allowed, body = MATRIX[line]
        method, _, path = line.partition(" ")
        for placeholder, name in places.items():
            path = path.replace(placeholder, name)
        answer = await control(method, path, body, token=secret)
        if role in allowed:
            missing = any(placeholder in line for placeholder in NOT_THERE)
            assert answer.status == 404 if missing else answer.status < 300, (line, answer.body)
        else:
            assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden"), line
    if role is not ADMIN:
        assert (await control("GET", "/admin/v1/audit?limit=1")).json["data"][0]["id"] == audited


async def test_to_an_owner_what_is_not_its_own_does_not_exist(control: Control) -> None:
    """The same 404 as for what is not there at all."""
    await furnished(control)
    mine = (await control("GET", "/admin/v1/keys/mine")).json
    secret = await token(control, OWNER, [mine["id"]])
    lines = [line for line, (roles, _) in MATRIX.items() if OWNER in roles and "{" in line]
    assert len(lines) >= 4
    for line in lines:
        method, _, path = line.partition(" ")
        place = path[path.index("{") : path.index("}") + 1]
        name = {"{organisation}": "theirs-org"}.get(place, "theirs")
        theirs = await control(method, path.replace(place, name), token=secret)
        nobodys = await control(method, path.replace(place, "nobody"), token=secret)
        assert (theirs.status, nobodys.status) == (404, 404), line
        assert theirs.json["error"]["message"].replace(name, "nobody") == nobodys.json["error"]["message"]


async def test_an_owners_lists_have_its_own_alone(control: Control) -> None:
    """By its key, by its team and by its organisation."""
    await furnished(control)
    key = (await control("GET", "/admin/v1/keys/mine")).json
    for number, (owned, seen) in enumerate(
        ((key["id"], (1, 0, 0)), (key["team_id"], (1, 1, 0)), (key["organisation_id"], (1, 1, 1)))
    ):
        body = {"name": f"owner {number}", "role": "owner", "owns": [owned]}
        secret = (await control("POST", "/admin/v1/admin-tokens", body)).json["secret"]
        lists = [
            (await control("GET", f"/admin/v1/{kind}", token=secret)).json["data"]
            for kind in ("keys", "teams", "organisations")
        ]
        assert tuple(map(len, lists)) == seen
        assert [found["name"] for found in lists[0]] == ["mine"]


async def test_a_viewer_sees_no_bodies(control: Control) -> None:
    """Prompts and answers are for admins, and for the owners of the key."""
    await furnished(control)
    secret = await token(control, VIEWER)
    refused = await control("GET", "/admin/v1/logs?bodies=true", token=secret)
    assert (refused.status, refused.json["error"]["param"]) == (403, None)
    assert (await control("GET", "/admin/v1/logs?bodies=true")).status == 200


def test_a_route_that_does_not_say_for_whom_it_is_does_not_start(control: Control) -> None:
    """Forgetting it is noticed before anything is served; so is saying two things."""

    async def silent() -> None: ...

    async def torn(one: Admin, other: Admin) -> None: ...

    async def clear(caller: Admin) -> None: ...

    for endpoint in (silent, torn):
        with pytest.raises(RuntimeError, match="for which roles"):
            describe_roles([APIRoute("/x", endpoint)])
    describe_roles([APIRoute("/x", clear)])
    hidden = APIRouter()
    hidden.include_router(APIRouter(routes=[APIRoute("/x", silent)]))
    with pytest.raises(RuntimeError, match="only plain routes"):
        describe_roles(hidden.routes)
