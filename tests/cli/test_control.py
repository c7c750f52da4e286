"""Admin tokens and the audit log by the command line."""

import asyncio

from tests.cli.conftest import Command
from tollkeeper.cli.common import open_database
from tollkeeper.domain.alerts import Alert
from tollkeeper.domain.policy import ScopeKind


def test_the_life_of_an_admin_token(command: Command) -> None:
    """Create and rotate show a secret, list and show never do; every change is in the audit log."""
    created = command("admin-tokens", "create", "ann", "--role", "owner", "--owns", "team_a", "--json")
    assert created.code == 0, created.err
    secret, token_id = created.json["secret"], created.json["id"]
    assert secret.startswith("tka_") and created.json["owns"] == ["team_a"]
    listed = command("admin-tokens", "list")
    assert "owner" in listed.out and "team_a" in listed.out and secret not in listed.out
    rotated = command("admin-tokens", "rotate", "ann", "--overlap", "7d")
    assert "old secret until" in rotated.out and "The secret is shown this once" in rotated.err
    assert command("admin-tokens", "update", "ann", "--name", "bea", "--expires", "30d").code == 0
    assert command("admin-tokens", "revoke", "bea", "--json").json["state"] == "revoked"
    assert command("admin-tokens", "list", "--json").json == {"data": [], "has_more": False}
    assert command("admin-tokens", "show", token_id, "--json").json["state"] == "revoked"
    events = command("audit", "list", "--object", token_id, "--json").json["data"]
    assert [event["action"] for event in events] == [
        f"admin_token.{action}" for action in ("revoke", "update", "rotate", "create")
    ]
    assert {(event["actor_id"], event["source"]) for event in events} == {("cli", "cli")}


def test_changes_are_listed_with_what_they_changed(command: Command) -> None:
    command("keys", "create", "k", "--rpm", "5")
    command("keys", "update", "k", "--rpm", "6", "--budget", "2")
    page = command("audit", "list", "--limit", "1")
    assert "rpm 5 → 6" in page.out and "month none → 2.00" in page.out
    assert "--starting-after aud_" in page.err
    following = command("audit", "list", "--starting-after", page.err.split()[-1], "--json").json
    assert [event["action"] for event in following["data"]] == ["key.create"]


def test_what_cannot_be_is_refused_with_one_line(command: Command) -> None:
    for args, code, words in (
        (("admin-tokens", "create", "x", "--role", "king"), 2, "king"),
        (("admin-tokens", "create", "x", "--role", "owner"), 1, "owns"),
        (("admin-tokens", "update", "x"), 2, "name something"),
        (("admin-tokens", "revoke", "nobody"), 1, "no admin token 'nobody'"),
        (("admin-tokens", "rotate", "x", "--overlap", "long"), 2, "--overlap"),
        (("audit", "list", "--starting-after", "x"), 1, "starting_after"),
    ):
        refused = command(*args)
        assert (refused.code, refused.out) == (code, "") and words in refused.err, args


def test_alerts_are_listed_from_the_database(command: Command) -> None:
    """With what became of their messages; what cannot be asked is said."""
    empty = command("usage", "alerts")
    assert (empty.code, empty.err.strip()) == (0, "no threshold of a budget was reached")
    asyncio.run(_claim())
    (found,) = command("usage", "alerts", "--json").json["data"]
    assert (found["scope_id"], found["delivery"], found["threshold_usd"]) == ("key_a", "none", "0.00000005")
    first = command("usage", "alerts", "--limit", "1", "--delivery", "none")
    assert "key_a" in first.out and "2026:11" in first.out
    assert command("usage", "alerts", "--delivery", "sent").code == 1


async def _claim() -> None:
    async with open_database(None) as database:
        await database.alerts.claim(
            [Alert("org_a", "key_a:2026:11", 50, ScopeKind.KEY, 51, 100, None, None, 1_000_000)], due_us=None
        )
