"""Keys, teams and organisations by the command line, on SQLite in a fresh data directory."""

import stat
from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_the_life_of_a_key(process: Command, workdir: Path) -> None:
    """Real processes: create shows the secret once; list and show never do; rotate changes it; revoke ends it."""
    created = process("keys", "create", "alice", "--rpm", "60", "--tpm", "100,000", "--budget", "25.00", "--json")
    assert created.code == 0, created.err
    secret = created.json["secret"]
    assert secret.startswith("tk_")
    assert created.json["limits"]["budgets"] == {"month": "25.00"}
    listed = process("keys", "list")
    assert listed.code == 0
    assert secret not in listed.out
    assert "60 rpm, 100,000 tpm, 25.00 USD a month" in listed.out
    rotated = process("keys", "rotate", "alice")
    assert "secret  " in rotated.out
    assert secret not in rotated.out
    assert "The secret is shown this once" in rotated.err
    revoked = process("keys", "revoke", "alice", "--json")
    assert revoked.json["state"] == "revoked"
    assert process("keys", "list", "--json").json == {"keys": []}


def test_the_embedded_data_directory_is_for_its_owner_alone(command: Command, workdir: Path) -> None:
    """The digest key that was made for it is a 0600 file in a 0700 directory."""
    assert command("keys", "create", "alice").code == 0
    data = workdir / "tollkeeper-data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "digest-key").stat().st_mode) == 0o600
    assert len((data / "digest-key").read_text().strip()) == 64


def test_update_changes_what_is_named_and_nothing_else(command: Command) -> None:
    """Each option sets its limit, `none` removes it, and the others stay."""
    command(
        *("keys", "create", "k", "--rpm", "1", "--tpm", "2", "--max-parallel", "3", "--budget", "4"),
        *("--cost-cap", "0.5", "--model", "gpt-*", "--model", "o3", "--expires", "2099-12-31"),
        *("--bucket", "requests=600/100"),
    )
    before = command("keys", "show", "k", "--json").json
    assert before["limits"] == {
        "rpm": 1,
        "tpm": 2,
        "max_parallel": 3,
        "budgets": {"month": "4.00"},
        "soft_budgets": {},
        "warn_at": {},
        "raises": {},
        "cost_cap_usd": "0.50",
        "models": ["gpt-*", "o3"],
        "windows": [],
        "buckets": ["requests=600/100"],
        "max_parallel_shadow": False,
        "log_bodies": None,
    }
    assert before["expires_at"] == "2099-12-31T00:00:00Z"
    for option, field in (("rpm", "rpm"), ("tpm", "tpm"), ("max-parallel", "max_parallel")):
        changed = command("keys", "update", "k", f"--{option}", "77", "--json").json
        before["limits"][field] = 77
        assert changed == before
        before["limits"][field] = None
        assert command("keys", "update", "k", f"--{option}", "none", "--json").json == before
    before["limits"] |= {"cost_cap_usd": None, "models": None, "budgets": {}}
    before["expires_at"] = None
    options = ("--cost-cap", "none", "--model", "none", "--budget", "none", "--expires", "none", "--name", "other")
    assert command("keys", "update", "k", *options, "--json").json == before | {"name": "other"}


def test_bodies_are_logged_as_a_key_says(command: Command) -> None:
    command("keys", "create", "dan", "--log-bodies", "full")
    assert "bodies full" in command("keys", "show", "dan").out
    assert command("keys", "update", "dan", "--rpm", "5", "--json").json["limits"]["log_bodies"] == "full"
    assert command("keys", "update", "dan", "--log-bodies", "none", "--json").json["limits"]["log_bodies"] is None
    found = command("keys", "update", "dan", "--log-bodies", "some")
    assert found.code == 2 and "off, truncated, full" in found.err


def test_soft_budgets_warnings_and_raises(command: Command) -> None:
    """They are set, shown in one line as they can be typed, and removed by `none`."""
    options = ("--budget", "10", "--soft-budget", "8", "--warn-at", "80%", "--warn-at", "7.50", "--period", "week")
    assert command("keys", "create", "k", *options).code == 0
    raised = command("keys", "update", "k", "--raise", "5", "--until", "2099-12-01T00:00Z", "--json").json["limits"]
    assert raised["soft_budgets"] == {"week": "8.00"} and raised["warn_at"] == {"week": ["80%", "7.50"]}
    assert raised["raises"] == {"week": {"amount_usd": "5.00", "until": "2099-12-01T00:00:00Z"}}
    shown = "10.00 USD a week, 8.00 USD a week (soft), warnings at 80% 7.50 a week, 5.00 USD more a week until 2099-"
    assert shown in command("keys", "list").out
    left = command("keys", "update", "k", "--raise", "none", "--soft-budget", "none", "--json").json["limits"]
    assert left["raises"] == left["soft_budgets"] == left["warn_at"] == {} and left["budgets"] == {"week": "10.00"}


def test_budgets_of_several_periods(command: Command) -> None:
    """A key has one budget a period; without --period the only one is meant, and with several one must be named."""
    command("keys", "create", "k", "--budget", "5", "--period", "day")
    assert command("keys", "update", "k", "--budget", "6", "--json").json["limits"]["budgets"] == {"day": "6.00"}
    both = command("keys", "update", "k", "--budget", "90", "--period", "month", "--json").json["limits"]["budgets"]
    assert both == {"day": "6.00", "month": "90.00"}
    refused = command("keys", "update", "k", "--budget", "none")
    assert (refused.code, refused.err) == (
        1,
        "error: period: there are budgets for day and month; say which one is meant\n",
    )
    left = command("keys", "update", "k", "--budget", "none", "--period", "day", "--json").json["limits"]["budgets"]
    assert left == {"month": "90.00"}


def test_teams_and_organisations(command: Command) -> None:
    """A key in a team belongs to the team's organisation; each level has limits of its own."""
    assert command("orgs", "create", "acme", "--budget", "100", "--period", "total").code == 0
    team = command("teams", "create", "red", "--org", "acme", "--rpm", "10", "--json").json
    key = command("keys", "create", "bob", "--team", "red", "--json").json
    assert (key["team_id"], key["organisation_id"]) == (team["id"], team["organisation_id"])
    assert command("teams", "update", "red", "--max-parallel", "4", "--json").json["limits"]["rpm"] == 10
    assert "10 rpm, 4 parallel" in command("teams", "list").out
    assert "100.00 USD in total" in command("orgs", "list").out
    updated = command("orgs", "update", "acme", "--budget", "none", "--json").json
    assert updated["limits"]["budgets"] == {}
    assert [k["name"] for k in command("keys", "list", "--team", "red", "--json").json["keys"]] == ["bob"]
    assert command("keys", "update", "bob", "--team", "none", "--json").json["team_id"] is None


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("keys", "show", "nobody"), 1, "error: there is no key 'nobody'"),
        (("keys", "create", "k", "--team", "none-such"), 1, "error: there is no team 'none-such'"),
        (("teams", "update", "nobody", "--rpm", "1"), 1, "error: there is no team 'nobody'"),
        (("keys", "create", "k", "--rpm", "0"), 1, "error: rpm: must be from 1 to"),
        (("keys", "create", "k", "--rpm", "many"), 2, "'many' is not a whole number"),
        (("keys", "create", "k", "--budget", "1e99"), 2, "is above the largest amount"),
        (("keys", "create", "k", "--budget", "-1"), 2, "must be zero or more"),
        (("keys", "create", "k", "--budget", "1", "--raise", "1"), 2, "a raise has an end; give --until too"),
        (("keys", "create", "k", "--budget", "1", "--until", "7d"), 2, "give --raise too"),
        (("keys", "create", "k", "--raise", "1", "--until", "7d"), 1, "there is no budget for the period month"),
        (("keys", "create", "k", "--budget", "1", "--raise", "1", "--until", "2020-01-01"), 2, "has passed already"),
        (("keys", "create", "k", "--soft-budget", "1", "--warn-at", "0%"), 2, "is not a percentage from 1%"),
        (("keys", "create", "k", "--budget", "1", "--period", "year"), 2, "'year' is not one of"),
        (("keys", "create", "k", "--period", "day"), 1, "error: period: says which budget is meant"),
        (("keys", "create", "k", "--expires", "soon"), 2, "'soon' is not a date; write \"2026-12-31\""),
        (("keys", "create", "k", "--expires", "2020-01-01"), 1, "the time has passed already"),
        (("keys", "update", "k"), 2, "name something to change"),
        (("keys", "create"), 2, "Missing argument"),
        (("usage", "--month", "November"), 2, "'November' is not a month"),
        (("nonsense",), 2, "No such command"),
        (("keys", "list", "--config", "nowhere.toml"), 1, "error: cannot read nowhere.toml: No such file"),
    ],
)
def test_refusals_are_one_clear_line(command: Command, args: tuple[str, ...], code: int, message: str) -> None:
    """Exit 1 when refused, 2 when used wrongly; never a traceback, never anything on standard output."""
    refused = command(*args)
    assert refused.code == code, refused
    assert message in refused.err
    assert refused.out == ""
    assert "Traceback" not in refused.err
    if code == 1:
        assert refused.err.count("\n") == 1


def test_a_data_directory_that_cannot_be_made(
    command: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the directory, the reason and the setting."""
    (workdir / "file").write_text("")
    monkeypatch.setenv("TOLLKEEPER_DATA_DIR", "file/below")
    refused = command("keys", "list")
    assert refused.code == 1
    assert refused.err == (
        "error: the data directory file/below cannot be made: Not a directory; "
        "set TOLLKEEPER_DATA_DIR to one that can be\n"
    )


def test_a_database_that_is_away(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what is away, without the password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:verysecret@127.0.0.1:9/db")
    monkeypatch.setenv("TOLLKEEPER_DIGEST_KEY", "d" * 64)
    refused = command("keys", "list")
    assert refused.code == 1
    assert refused.err.startswith("error: ")
    assert "verysecret" not in refused.err
    assert refused.err.count("\n") == 1
