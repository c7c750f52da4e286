"""`tollkeeper import litellm` from a real PostgreSQL with the tables of LiteLLM: clients keep keys and limits."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.cli.conftest import Command
from tests.cli.test_serve import Start, start, status
from tests.servers.postgres import PostgresServer

__all__ = ["start"]
TABLES = (Path(__file__).parent.parent / "data" / "litellm.sql").read_text()
SECRETS = {name: f"sk-{name}-{'x' * 16}" for name in ("team", "own", "budget", "blocked", "expired", "wide", "old")}
TOKENS: dict[str, dict[str, Any]] = {
    "team": {"key_alias": "in team", "team_id": "t1", "user_id": "u1", "rpm_limit": 60, "max_parallel_requests": 4},
    "own": {"key_alias": "of ann", "user_id": "u1", "models": ["all-proxy-models"]},
    "budget": {
        "key_alias": "bought",
        "budget_id": "b-key",
        "spend": 2.25,
        "metadata": '{"model_rpm_limit": {"gpt-4o": 5}}',
    },
    "blocked": {"key_alias": "stopped", "blocked": True},
    "expired": {"key_alias": "ended", "expires": "2020-01-01"},
    "wide": {"team_id": "t2", "max_budget": 50, "budget_duration": "90d", "model_max_budget": '{"gpt-4o": {}}'},
    "old": {"key_alias": "of a stopped team", "team_id": "t3"},
}


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def fill(url: str) -> None:
    from datetime import datetime

    connection = await asyncpg.connect(url)
    await connection.execute(TABLES)
    for name, token in TOKENS.items():
        row = {"token": sha256(SECRETS[name]), "key_name": f"sk-...{SECRETS[name][-4:]}", **token}
        if "expires" in row:
            row["expires"] = datetime.fromisoformat(row["expires"])
        columns = ", ".join(f'"{column}"' for column in row)
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await connection.execute(
            f'INSERT INTO "LiteLLM_VerificationToken" ({columns}) VALUES ({places})', *row.values()
        )
    await connection.execute(
        'INSERT INTO "LiteLLM_VerificationToken" ("token", "team_id") VALUES ($1, $2)', "f" * 64, "litellm-dashboard"
    )
    await connection.close()


@pytest.fixture
def litellm(postgres: PostgresServer) -> str:
    """A LiteLLM database, with options in its URL that only Prisma knows."""
    url = postgres.create_database("litellm")
    asyncio.run(fill(url))
    return f"{url}{'&' if '?' in url else '?'}connection_limit=5&schema=public"


def told(answer: Any) -> dict[str, Any]:
    """Kind and name → what was told of it."""
    return {f"{part['kind']} {part['name']}": part for part in answer["accounts"]}


def test_accounts_come_over_once_with_their_secrets_limits_and_spend(
    start: Start, command: Command, litellm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dry run, import, repetition; then the old secrets open the gateway, and what was spent counts."""
    monkeypatch.setenv("LITELLM_DATABASE_URL", litellm)
    dry = command("import", "litellm", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    expected = told(dry.json)
    assert set(expected) == {
        *("organisation acme", "organisation alone", "organisation ann@example.com"),
        *("team research", "team alone", "team stopped", "team ann@example.com"),
        *("key in team", "key of ann", "key bought", "key stopped", "key ended", "key sk-...xxxx"),
        "key of a stopped team",
    }
    assert all(part["id"] is None for part in expected.values())

    demo = start("serve", "--demo", "--port", "0").wait_for("Ctrl-C stops")
    done = command("import", "litellm", "--database", litellm, "--spend", "--json")
    assert done.code == 0, done.err
    made = told(done.json)
    assert {part["done"] for part in made.values()} == {"made", "left out"}, "the dry run has made nothing"
    for name, part in made.items():
        assert part["limits"] == expected[name]["limits"] and part["notes"] == expected[name]["notes"]
        assert (part["id"] is None) == (part["done"] == "left out")

    def limits(name: str) -> dict[str, Any]:
        return {field: value for field, value in made[name]["limits"].items() if value not in (None, [], {}, False)}

    assert limits("organisation acme") == {"budgets": {"month": "1000.00"}}
    assert limits("team research") == {
        "tpm": 500000,
        "budgets": {"month": "300.25"},
        "models": ["gpt-4o-mini", "claude-*"],
    }
    assert limits("key in team") == {"rpm": 60, "max_parallel": 4}
    assert limits("key bought") == {
        "rpm": 30,
        "windows": ["requests=5/1m,model=gpt-4o"],
        "budgets": {"week": "7.50"},
        "soft_budgets": {"week": "5.00"},
    }
    assert limits("key of ann") == {} and limits("team ann@example.com") == {"budgets": {"day": "4.00"}}
    assert limits("key sk-...xxxx") == {"budgets": {"total": "50.00"}}
    assert made["key in team"]["notes"] == ["the user's own limits within the team are not carried over"]
    assert made["key sk-...xxxx"]["notes"] == [
        "`model_max_budget` is not carried over",
        "there is no period of 90d: the same budget counts in total, which is stricter",
    ]
    left_out = {name: part["notes"] for name, part in made.items() if part["done"] == "left out"}
    assert left_out == {
        "key stopped": ["it is blocked in LiteLLM"],
        "key ended": ["it has expired"],
        "key of a stopped team": ["team t3: it is blocked in LiteLLM"],
    }

    for name, secret in SECRETS.items():
        expected_status = 200 if name in ("team", "own", "budget", "wide") else 401
        assert status(demo.url, secret) == expected_status, name
    assert status(demo.url, sha256(SECRETS["team"])) == 401, "what LiteLLM keeps must open nothing"
    assert status(demo.url, SECRETS["team"], model="gpt-4o") == 403, "the team may not use this model"

    again = command("import", "litellm", "--database", litellm, "--spend", "--json")
    assert again.code == 0, again.err
    assert {part["done"] for part in again.json["accounts"]} == {"already there", "left out"}
    assert {name: part["id"] for name, part in told(again.json).items()} == {
        name: part["id"] for name, part in made.items()
    }
    assert [2.25 < float(used) < 2.26 for used in _used(command, "bought")] == [True, True], "once"
    team, organisation = _used(command, "in team")
    assert 0.1 < float(team) < 0.11 and 12.34567 < float(organisation) < 12.35
    assert demo.stop() == 0, demo.output


def _used(command: Command, key: str) -> list[str]:
    """Of each budget, from the key outwards."""
    shown = command("limits", "show", key, "--json").json["limits"]
    return [limit["used"] for limit in shown if limit["limit_kind"] == "budget"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ((), "give --database (or LITELLM_DATABASE_URL), --models, or both"),
        (("--database", "mysql://x/y"), "DATABASE_URL must begin with postgresql://"),
        (("--database", "sqlite:///x.db"), "LiteLLM keeps its accounts in PostgreSQL"),
        (("--database", "postgresql://u:hush@127.0.0.1:9/x"), "127.0.0.1:9"),
        (("--models", "list.yaml"), "list.yaml is not a configuration of LiteLLM"),
        (("--models", "broken.yaml"), "broken.yaml cannot be read as YAML"),
        (("--models", "list.yaml", "--spend"), "needs --database, and not --dry-run"),
    ],
)
def test_what_cannot_be_imported_is_told_in_a_line(
    command: Command, workdir: Path, args: tuple[str, ...], why: str
) -> None:
    (workdir / "list.yaml").write_text("- 1\n")
    (workdir / "broken.yaml").write_text("model_list: [\n")
    refused = command("import", "litellm", *args)
    assert refused.code in (1, 2) and why in refused.err.replace("\n", " "), refused.err
    assert "hush" not in refused.err and "Traceback" not in refused.err


def test_another_database_is_refused(command: Command, postgres: PostgresServer) -> None:
    refused = command("import", "litellm", "--database", postgres.create_database("other"))
    assert refused.code == 1 and "this is not the database of a LiteLLM proxy" in refused.err
