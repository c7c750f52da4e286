"""The audit log: every change leaves an event, in its transaction; none tells a secret."""

import asyncio

import pytest
from sqlalchemy import text

from tests.admin.conftest import DIGEST_KEY, TOKEN, Control, now_us
from tollkeeper.domain.accounts import NewKey
from tollkeeper.domain.errors import InvalidInput

PATH = "/admin/v1/audit"


async def test_every_change_says_who_when_what_and_from_where(control: Control) -> None:
    """Newest first; of an update what differs, before and after."""
    secret = (await control("POST", "/admin/v1/admin-tokens", {"name": "ann", "role": "admin"})).json["secret"]
    created = await control("POST", "/admin/v1/keys", {"name": "k", "limits": {"rpm": 5, "tpm": 7}}, token=secret)
    key = created.json["id"]
    changed = await control("PATCH", "/admin/v1/keys/k", {"name": "n", "limits": {"rpm": 6}}, token=secret)
    await control("POST", "/admin/v1/limits/n/reset")
    await control("POST", "/admin/v1/keys/n/rotate")
    await control("POST", "/admin/v1/keys/n/revoke")
    await control("POST", "/admin/v1/keys/n/revoke")
    events = (await control("GET", f"{PATH}?object_id={key}")).json["data"]
    assert [event["action"] for event in events] == [
        *("key.revoke", "key.rotate", "limits.reset", "key.update", "key.create"),
    ]
    update, create = events[3], events[4]
    assert (update["before"], update["after"]) == (
        {"name": "k", "limits": {"rpm": 5}},
        {"name": "n", "limits": {"rpm": 6}},
    )
    assert create["before"] is None and create["after"]["limits"]["tpm"] == 7
    assert (update["actor_name"], update["source"], update["address"]) == ("ann", "api", "192.0.2.1")
    assert update["request_id"] == changed.headers["request-id"] != create["request_id"]
    assert events[0]["actor_id"] == "bootstrap"
    whole = str((await control("GET", PATH)).json)
    assert created.json["secret"] not in whole and secret not in whole and TOKEN not in whole


async def test_filters_and_pages(control: Control) -> None:
    """`starting_after` leads from page to page; a page never shows what came after its cursor."""
    for number in range(5):
        await control("POST", "/admin/v1/teams", {"name": f"t{number}"})
    first = (await control("GET", f"{PATH}?limit=4&action=team.create")).json
    assert (len(first["data"]), first["has_more"]) == (4, True)
    await control("POST", "/admin/v1/teams", {"name": "later"})
    cursor = first["data"][-1]["id"]
    second = (await control("GET", f"{PATH}?limit=4&action=team.create&starting_after={cursor}")).json
    assert ([event["after"]["name"] for event in second["data"]], second["has_more"]) == (["t0"], False)
    assert (await control("GET", f"{PATH}?actor=nobody")).json["data"] == []
    assert (await control("GET", f"{PATH}?until=2001-01-01")).json["data"] == []
    one = (await control("GET", f"{PATH}?limit=1&since=2001-01-01")).json["data"][0]
    assert (await control("GET", f"{PATH}?request_id={one['request_id']}")).json["data"][0] == one
    for query, param in (("starting_after=x", "starting_after"), ("limit=0", "limit"), ("since=x", "since")):
        refused = await control("GET", f"{PATH}?{query}")
        assert (refused.status, refused.json["error"]["param"]) == (400, param)


async def test_a_change_that_is_refused_leaves_no_event_and_a_lost_event_no_change(control: Control) -> None:
    """One transaction: neither is there without the other."""
    accounts = control.database.accounts(DIGEST_KEY, now_us)
    with pytest.raises(InvalidInput):
        await accounts.create_key(NewKey("x", team="nobody"))
    assert (await control("GET", PATH)).json["data"] == []
    async with control.database._transactions.write() as transaction:
        await transaction.execute(text("ALTER TABLE audit_events RENAME TO gone"))
    refused = await control("POST", "/admin/v1/keys", {"name": "x"})
    assert refused.status == 503
    async with control.database._transactions.write() as transaction:
        await transaction.execute(text("ALTER TABLE gone RENAME TO audit_events"))
    assert await accounts.list_keys() == []


async def test_two_changes_at_once_lose_nothing(control: Control) -> None:
    """Each names another limit; both are in the key afterwards, and events follow each other."""
    await control("POST", "/admin/v1/keys", {"name": "k"})
    changes = [{"rpm": 1}, {"tpm": 2}, {"max_parallel": 3}, {"budgets": {"day": "4.00"}}, {"cost_cap_usd": "5.00"}]
    answers = await asyncio.gather(*(control("PATCH", "/admin/v1/keys/k", {"limits": limits}) for limits in changes))
    assert [answer.status for answer in answers] == [200] * 5
    limits = (await control("GET", "/admin/v1/keys/k")).json["limits"]
    assert (limits["rpm"], limits["tpm"], limits["max_parallel"], limits["budgets"], limits["cost_cap_usd"]) == (
        *(1, 2, 3, {"day": "4.00"}, "5.00"),
    )
    events = (await control("GET", f"{PATH}?action=key.update")).json["data"]
    assert [len(event["after"]["limits"]) for event in events] == [1] * 5
