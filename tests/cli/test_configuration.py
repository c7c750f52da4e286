"""config, migrate, doctor, and what the commands say when no gateway runs."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.servers.redis import RedisServer

PROVIDER = '[providers.mine]\nbase_url = "http://127.0.0.1:1/v1"\ndialect = "openai"\napi_key_env = "MY_KEY"\n'


def test_config_check(command: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses what serve would refuse, provider keys included; says what is good."""
    refused = command("config", "check")
    assert refused.code == 1
    assert "set OPENAI_API_KEY or ANTHROPIC_API_KEY" in refused.err
    assert "[providers.<name>]" in refused.err
    (workdir / "tollkeeper.toml").write_text(PROVIDER)
    refused = command("config", "check")
    assert (refused.code, "MY_KEY is not set" in refused.err) == (1, True)
    monkeypatch.setenv("MY_KEY", "sk-1")
    assert command("config", "check").out == "the configuration is good; providers: mine\n"
    (workdir / "tollkeeper.toml").write_text(
        PROVIDER + 'models = ["gpt-*"]\n[models.a]\nprovider = "mine"\nfallbacks = ["claude-9"]\n'
    )
    refused = command("config", "check")
    assert (refused.code, "models.a.fallbacks: 'claude-9' is not served" in refused.err) == (1, True)


def test_config_show_masks_secrets(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lines and as JSON."""
    monkeypatch.setenv("REDIS_URL", "redis://user:verysecret@127.0.0.1:6379/0")
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", "verysecret" * 4)
    lines = command("config", "show")
    assert 'store.redis_url = "redis://user:***@127.0.0.1:6379/0"\n' in lines.out
    assert 'secrets.admin_token = "***"\n' in lines.out
    shown = command("config", "show", "--json")
    secrets = {name: value for name, value in shown.json["secrets"].items() if value is not None}
    assert secrets == {"admin_token": "***"}
    assert "verysecret" not in lines.out + shown.out


def test_migrate(command: Command) -> None:
    """Makes the schema, and says whether there was anything to do."""
    assert command("migrate").out == "the schema of sqlite:///tollkeeper-data/tollkeeper.db is current now\n"
    assert command("migrate", "--json").json == {
        "database": "sqlite:///tollkeeper-data/tollkeeper.db",
        "changed": False,
    }


def test_doctor_in_the_embedded_default(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails; what is missing is a warning with its remedy; doctor itself makes nothing."""
    findings = command("doctor", "--json").json["findings"]
    assert {f["part"]: f["state"] for f in findings} == {
        "settings": "ok",
        "providers": "warn",
        "data directory": "ok",
        "database": "ok",
        "store": "ok",
        "log store": "ok",
    }
    assert not Path("tollkeeper-data").exists()
    command("migrate")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    findings = command("doctor", "--json").json["findings"]
    assert {f["state"] for f in findings} == {"ok"}
    assert "schema" in {f["part"] for f in findings}


def test_doctor_fails_with_a_remedy(command: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1, and a line for each part that cannot work."""
    (workdir / "tollkeeper.toml").write_text(PROVIDER)
    (workdir / "tollkeeper-data").mkdir()
    (workdir / "tollkeeper-data" / "admin-token").write_text("t" * 64)
    (workdir / "tollkeeper-data" / "admin-token").chmod(0o644)
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:verysecret@127.0.0.1:9/db")
    monkeypatch.setenv("TOLLKEEPER_DIGEST_KEY", "d" * 64)
    monkeypatch.setenv("LOG_STORE_URL", (workdir / "tollkeeper.toml").as_uri())
    done = command("doctor")
    assert done.code == 1
    lines: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for line in done.out.splitlines():
        lines[line[:4].strip()].append(line)
    assert any("MY_KEY is not set" in line for line in lines["fail"])
    assert any("check DATABASE_URL" in line for line in lines["fail"])
    assert any("check LOG_STORE_URL" in line for line in lines["fail"])
    assert any("chmod 600" in line for line in lines["warn"])
    assert "verysecret" not in done.out


def test_doctor_says_what_is_wrong_with_settings(command: Command, workdir: Path) -> None:
    """Settings that cannot be read are the finding."""
    (workdir / "tollkeeper.toml").write_text("[server]\nprot = 1\n")
    done = command("doctor", "--json")
    assert done.code == 1
    (finding,) = json.loads(done.out)["findings"]
    assert finding["text"] == "server.prot: there is no such setting; did you mean port?"


def test_limits_need_a_running_gateway(command: Command) -> None:
    """One line that says where it was looked for and what to do; asking makes no files."""
    refused = command("limits", "show", "k")
    assert refused.code == 1
    assert refused.err.startswith("error: no gateway answers at http://127.0.0.1:9 (")
    assert "start one with `tollkeeper serve`" in refused.err
    assert not Path("tollkeeper-data").exists()


def test_usage_without_a_gateway_says_as_of_when(command: Command) -> None:
    """The figures come from the database; that nobody brought them up to date is told on standard error."""
    command("keys", "create", "k")
    shown = command("usage", "k")
    assert (shown.code, shown.out.split()[0]) == (0, "MONTH")
    assert "as of the last sync: no gateway answers" in shown.err
    assert command("usage", "--month", "2026-11", "--json").json == {"synced": False, "as_of": None, "usage": []}


def test_serve_without_a_provider_is_refused(process: Command, workdir: Path) -> None:
    """The two ways to configure one are told; nothing is left behind."""
    refused = process("serve")
    assert refused.code == 1
    assert refused.out == ""
    assert "set OPENAI_API_KEY or ANTHROPIC_API_KEY in the environment, or write a [providers.<name>]" in refused.err
    assert not (workdir / "tollkeeper-data").exists()


def test_doctor_examines_redis(command: Command, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that would lose money is found: version, eviction, persistence, role and clock, each with a line."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    findings = {f["part"]: f["state"] for f in command("doctor", "--json").json["findings"]}
    assert findings["redis"] == "ok"
    assert findings["redis eviction"] == "ok"
    assert findings["redis persistence"] == "warn"
    assert findings["redis clock"] == "ok"
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9")
    refused = command("doctor")
    assert refused.code == 1
    assert "check REDIS_URL and that the server runs" in refused.out
