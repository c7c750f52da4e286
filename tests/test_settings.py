"""Settings: what is read from where, what is refused and how, and that secrets never show."""

import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from tools.write_reference import SECTIONS, field_texts, pages

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import (
    ENVIRONMENT,
    ProviderSettings,
    SecretSettings,
    Settings,
    check,
    convert,
    duration_s,
    load,
    mask_url,
    provider_key,
    shown,
)

DIGEST_KEY = "d" * 64
PROVIDER = {"base_url": "https://api.openai.com/v1", "dialect": "openai"}
BOTH = {"input_usd": "1", "output_usd": "2"}


def priced(*prices: dict[str, Any]) -> dict[str, Any]:
    """A tree with one model of these price entries."""
    return {"models": {"m": {"prices": list(prices)}}}


def load_text(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "tollkeeper.toml"
    path.write_text(text)
    return load(path, environ or {})


def test_without_file_and_environment_everything_has_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory, SQLite and a folder below the data directory; no provider."""
    monkeypatch.chdir(tmp_path)
    settings = load(None, {})
    assert settings.embedded
    assert settings.database_url == "sqlite:///tollkeeper-data/tollkeeper.db"
    assert settings.logs_url == (tmp_path / "tollkeeper-data" / "logs").as_uri()
    assert settings.providers == {}


def test_the_file_of_the_working_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config, tollkeeper.toml beside the command counts."""
    monkeypatch.chdir(tmp_path)
    Path("tollkeeper.toml").write_text("[server]\nport = 9000\n")
    assert load(None, {}).server.port == 9000


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """Every variable of ENVIRONMENT reaches its setting."""
    values = {
        "TOLLKEEPER_DATA_DIR": "elsewhere",
        "TOLLKEEPER_HOST": "::1",
        "TOLLKEEPER_PORT": "9001",
        "TOLLKEEPER_LOG_LEVEL": "debug",
        "TOLLKEEPER_LOG_FORMAT": "json",
        "TOLLKEEPER_DIGEST_KEY": DIGEST_KEY,
        "TOLLKEEPER_ADMIN_TOKEN": "a" * 32,
        "REDIS_URL": "redis://127.0.0.1:6379/0",
        "REDIS_ADDRESS": "h:1",
        "REDIS_USERNAME": "anna",
        "REDIS_PASSWORD": "hush",
        "REDIS_DB": "2",
        "REDIS_TLS": "True",
        "REDIS_TLS_CA_FILE": "/ca",
        "REDIS_TLS_CERT_FILE": "/cert",
        "REDIS_TLS_KEY_FILE": "/key",
        "REDIS_POOL_SIZE": "3",
        "REDIS_MIN_IDLE_CONNS": "0",
        "REDIS_DIAL_TIMEOUT": "1.5",
        "REDIS_READ_TIMEOUT": "2.5",
        "REDIS_WRITE_TIMEOUT": "3.5",
        "REDIS_BUSY_POLL_US": "50",
        "TOLLKEEPER_WEBHOOK_URL": "https://hooks.example.com/x?a=1",
        "TOLLKEEPER_WEBHOOK_SECRET": "w" * 16,
        "TOLLKEEPER_WEBHOOK_SECRET_PREVIOUS": "v" * 16,
        "WEB_CONCURRENCY": "3",
        "TOLLKEEPER_OUTAGE_LIMITS": "open",
        "TOLLKEEPER_OUTAGE_BUDGETS": "closed",
        "DATABASE_URL": "postgresql://u:p@h/d",
        "LOG_STORE_URL": "s3://bucket/prefix",
        "TOLLKEEPER_WORKER_HOST": "::",
        "TOLLKEEPER_ADMIN_HOST": "::1",
        "TOLLKEEPER_ADMIN_PORT": "9200",
        "TOLLKEEPER_WORKER_PORT": "9100",
        "BILLING_SYNC_INTERVAL": "2m",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_SERVICE_NAME": "llm",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
    }
    settings = load_text(tmp_path, "[server]\nport = 9000\n", values)
    for variable, where in ENVIRONMENT.items():
        value: Any = settings
        for name in where:
            value = getattr(value, name)
        assert str(value) == {"BILLING_SYNC_INTERVAL": "120.0"}.get(variable, values.get(variable)), variable


def test_a_provider_exists_by_its_key_alone(tmp_path: Path) -> None:
    """OPENAI_API_KEY and ANTHROPIC_API_KEY are a configuration; the base URL may be given too."""
    settings = load_text(tmp_path, "", {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://h:1/v1"})
    assert set(settings.providers) == {"openai"}
    assert settings.providers["openai"].base_url == "http://h:1/v1"
    settings = load_text(tmp_path, "", {"ANTHROPIC_API_KEY": "k"})
    assert settings.providers["anthropic"].models == ("claude-*",)


def test_a_provider_in_the_file_replaces_those_of_the_environment(tmp_path: Path) -> None:
    """A key that happens to be in the environment does not add an upstream nobody configured."""
    text = '[providers.mine]\nbase_url = "http://127.0.0.1:1/v1"\ndialect = "openai"\n'
    assert set(load_text(tmp_path, text, {"OPENAI_API_KEY": "k"}).providers) == {"mine"}


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    """`…_FILE` names a file whose content, without the newline, is the secret."""
    secret = tmp_path / "token"
    secret.write_text("t" * 40 + "\n")
    settings = load_text(tmp_path, "", {"TOLLKEEPER_ADMIN_TOKEN_FILE": str(secret)})
    assert settings.secrets.admin_token == "t" * 40


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5.0), ("300ms", 0.3), ("2m", 120.0), ("1.5h", 5400.0), ("7", 7.0), (" 1s ", 1.0)]
)
def test_durations(text: str, seconds: float) -> None:
    """Seconds, or a number with ms, s, m or h."""
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"server": {"port": "abc"}}, "server.port (TOLLKEEPER_PORT): must be a whole number"),
        ({"server": {"port": 70000}}, "server.port (TOLLKEEPER_PORT): 70000 is not a port (0 to 65535)"),
        ({"server": {"prot": 1}}, "server.prot: there is no such setting; did you mean port?"),
        ({"sever": {}}, "sever: there is no such setting; did you mean server?"),
        (
            {"billing": {"xyz": 1}},
            "billing.xyz: there is no such setting; known here: sync_interval_s, ",
        ),
        ({"server": 5}, "server: must be a table"),
        ({"server": {"host": 5}}, "server.host (TOLLKEEPER_HOST): must be a string"),
        ({"server": {"body_timeout_s": 0}}, "server.body_timeout_s: 0.0 must be a number above zero"),
        (
            {"server": {"body_timeout_s": "soon"}},
            "server.body_timeout_s: 'soon' is not a duration; write it like \"5s\"",
        ),
        ({"store": {"dial_timeout_s": float("nan")}}, "store.dial_timeout_s: nan must be a number above zero"),
        ({"logs": {"timeout_s": "inf"}}, "logs.timeout_s: 'inf' is not a duration"),
        ({"log_level": "INFO"}, "log_level (TOLLKEEPER_LOG_LEVEL): 'INFO' is not one of debug, info, warning, error"),
        ({"log_format": "xml"}, "log_format (TOLLKEEPER_LOG_FORMAT): 'xml' is not one of json, console"),
        ({"billing": {"require_price": "maybe"}}, "billing.require_price: must be true or false"),
        (
            {"store": {"redis_url": "http://h"}},
            "store.redis_url (REDIS_URL): unknown scheme in 'http://h'; known are redis://",
        ),
        ({"store": {"redis_url": "redis:h"}}, "store.redis_url (REDIS_URL): unknown scheme in 'redis:h'"),
        ({"store": {"redis_url": "redis://[::1"}}, "store.redis_url (REDIS_URL): 'redis://[::1' is not a URL"),
        ({"store": {"redis_url": "redis://h:port"}}, "store.redis_url (REDIS_URL): 'redis://h:port' is not a URL"),
        (
            {"database": {"url": "mysql://u:secret@h/d"}},
            "database.url (DATABASE_URL): unknown scheme in 'mysql://u:***@h/d'",
        ),
        (
            {"database": {"url": "sqlite://"}},
            "database.url (DATABASE_URL): accounts need a file; write sqlite:///path",
        ),
        ({"database": {"url": "postgresql://h/d"}}, "TOLLKEEPER_DIGEST_KEY is not set: with a shared database every"),
        (
            {"logs": {"url": "ftp://b"}},
            "logs.url (LOG_STORE_URL): unknown scheme in 'ftp://b'; known are file://, s3://, gs://, az://",
        ),
        (
            {"logs": {"url": "file://relative/path"}},
            "logs.url (LOG_STORE_URL): write an absolute path with three slashes",
        ),
        ({"logs": {"url": "s3:///prefix"}}, "logs.url (LOG_STORE_URL): name the bucket, like s3://bucket/prefix"),
        ({"providers": 5}, "providers: must be a table of tables, like [providers.name]"),
        ({"providers": {"a": 5}}, "providers.a: must be a table"),
        ({"providers": {"a": {"dialect": "openai"}}}, "providers.a.base_url: must be set"),
        (
            {"providers": {"a": PROVIDER | {"dialect": "x"}}},
            "providers.a.dialect: 'x' is not one of openai, anthropic",
        ),
        (
            {"providers": {"a": PROVIDER | {"output_limit_field": "x"}}},
            "providers.a.output_limit_field: 'x' is not one of max_tokens, max_completion_tokens",
        ),
        ({"providers": {"a": PROVIDER | {"models": "x"}}}, "providers.a.models: must be a list"),
        (
            {"providers": {"a": PROVIDER | {"api_key": "x"}}},
            "providers.a.api_key: there is no such setting; did you mean",
        ),
        ({"providers": {"A b": PROVIDER}}, "providers.A b: a provider's name is lower-case letters"),
        ({"providers": {"a": PROVIDER | {"base_url": "api.x.com"}}}, "providers.a.base_url: write it like https://"),
        (
            {"providers": {"a": PROVIDER | {"base_url": "http://h:99999"}}},
            "providers.a.base_url: write it like https://",
        ),
        ({"providers": {"a": PROVIDER | {"base_url": "http://:pw@h/v1"}}}, "not 'http://:***@h/v1'"),
        (
            {"providers": {"a": PROVIDER | {"api_key_env": "X", "api_key_file": "y"}}},
            "providers.a: give api_key_env or api_key_file, not both",
        ),
        (
            {"providers": {"a": PROVIDER | {"connections_max": 0}}},
            "providers.a.connections_max: 0 must be a number above",
        ),
        ({"models": {"m": {"provider": "x"}}}, "models.m.provider: there is no provider 'x'; known: none"),
        ({"models": {"m": {"input_usd": "1"}}}, "models.m: give both input_usd and output_usd, or neither"),
        ({"models": {"m": {"input_usd": "cheap"}}}, "models.m.input_usd: 'cheap' is not an amount in USD"),
        ({"models": {"m": {"input_usd": 1.5}}}, "models.m.input_usd: must be a string"),
        (priced({}), "models.m.prices[0]: has no price; give input_usd and output_usd"),
        (priced(BOTH | {"from": "soon"}), "models.m.prices[0].from: must be a date like"),
        (priced(BOTH | {"from": 5}), "models.m.prices[0].from: must be a date like 2026-01-31"),
        (priced(BOTH | {"input_eur": "1"}), "models.m.prices[0].input_eur: there is no such setting; did you mean"),
        (priced(BOTH | {"FROM": "1"}), "models.m.prices[0].FROM: there is no such setting; known here: "),
        (priced(BOTH, {"input_usd": 1}), "models.m.prices[1].input_usd: must be a string"),
        (
            priced(BOTH | {"from": date(2026, 2, 1), "until": date(2026, 2, 1)}),
            "models.m.prices[0]: its 'from' must be before its 'until'",
        ),
        (
            priced(BOTH | {"from": date(2026, 2, 1)}, BOTH, BOTH | {"until": date(2026, 2, 1)}),
            "overlap: give one of them a 'from' or 'until'",
        ),
        (
            priced(BOTH | {"from": date(2026, 2, 1)}, BOTH | {"until": datetime(2026, 2, 1, 0, 1)}),
            "models.m.prices[0] (from 2026-02-01T00:00Z) and models.m.prices[1] (until 2026-02-01T00:01Z) overlap",
        ),
        (
            priced({"cached_usd": "1", "tiers": [{"above_tokens": 1} | BOTH]}),
            "models.m.prices[0]: needs input_usd and output_usd",
        ),
        (priced(BOTH | {"tiers": [{"above_tokens": 1}]}), "models.m.prices[0].tiers[0]: needs input_usd"),
        (priced(BOTH | {"tiers": [BOTH]}), "models.m.prices[0].tiers[0].above_tokens: must be set"),
        (
            priced(BOTH | {"tiers": [{"above_tokens": 2} | BOTH, {"above_tokens": 2} | BOTH]}),
            "models.m.prices[0].tiers: above_tokens must be zero or more, and grow",
        ),
        (
            priced(BOTH | {"service_tiers": {"flex": {"input_usd": "1"}}}),
            "models.m.prices[0].service_tiers.flex: give both",
        ),
        (priced(BOTH | {"service_tiers": {"flex": {"x": "1"}}}), "there is no such setting"),
        (
            {"models": {"m": BOTH | {"prices": [BOTH]}}},
            "models.m: give prices in its own table or as [[models.m.prices]], not both",
        ),
        ({"providers": {"a": PROVIDER | {"price_multiplier": "1e2"}}}, "providers.a.price_multiplier: '1e2' is not"),
        ({"providers": {"a": PROVIDER | {"price_multiplier": "0"}}}, "providers.a.price_multiplier: '0' is not"),
        ({"providers": {"a": PROVIDER | {"reported_cost_max_usd": "x"}}}, "providers.a.reported_cost_max_usd: 'x'"),
        ({"models": {"m": {"context_window": -1}}}, "models.m.context_window: -1 must be a number above zero"),
        (
            {"secrets": {"digest_key": "short"}},
            "TOLLKEEPER_DIGEST_KEY is shorter than 32 characters: use `openssl rand",
        ),
        (
            {"secrets": {"admin_token": "short"}},
            "TOLLKEEPER_ADMIN_TOKEN must be 16 or more printable ASCII characters",
        ),
        ({"billing": {"orphan_after_s": "29s"}}, "billing.orphan_after_s: at least 30 s"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tree: dict[str, Any], message: str) -> None:
    """The message names the setting, its variable if it has one, and what to write instead."""
    with pytest.raises(ConfigurationError) as refused:
        check(convert(tree))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ("port = ", {}, "is not valid TOML"),
        ('[secrets]\nadmin_token = "x"', {}, "secrets do not belong in the file; set TOLLKEEPER_DIGEST_KEY"),
        ("server = 5", {"TOLLKEEPER_PORT": "1"}, "server: must be a table"),
        ("", {"BILLING_SYNC_INTERVAL": "often"}, "billing.sync_interval_s: 'often' is not a duration"),
        (
            "",
            {"TOLLKEEPER_ADMIN_TOKEN_FILE": "/nonexistent"},
            "TOLLKEEPER_ADMIN_TOKEN_FILE: cannot read /nonexistent",
        ),
        (
            "",
            {"TOLLKEEPER_ADMIN_TOKEN": "t" * 32, "TOLLKEEPER_ADMIN_TOKEN_FILE": "/nonexistent"},
            "TOLLKEEPER_ADMIN_TOKEN and TOLLKEEPER_ADMIN_TOKEN_FILE are both set; keep one",
        ),
    ],
)
def test_files_and_variables_that_cannot_be_read(
    tmp_path: Path, text: str, environ: dict[str, str], message: str
) -> None:
    """Where a value came from is part of the message."""
    with pytest.raises(ConfigurationError) as refused:
        load_text(tmp_path, text, environ)
    assert message in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A --config that does not exist is an error, not an empty configuration."""
    with pytest.raises(ConfigurationError, match=r"cannot read .*nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml", {})


def test_provider_keys(tmp_path: Path) -> None:
    """From environment or file; a configured key that is missing is refused, naming where it was looked for."""
    by_env = ProviderSettings(base_url="http://h/v1", dialect="openai", api_key_env="MY_KEY")
    assert provider_key("p", by_env, {"MY_KEY": " sk-1\n"}) == "sk-1"
    with pytest.raises(ConfigurationError, match=r"providers\.p\.api_key_env: MY_KEY is not set"):
        provider_key("p", by_env, {})
    with pytest.raises(ConfigurationError, match=r"providers\.p: its API key has spaces"):
        provider_key("p", by_env, {"MY_KEY": "a\r\nb: c"})
    path = tmp_path / "key"
    path.write_text("\n")
    by_file = ProviderSettings(base_url="http://h/v1", dialect="openai", api_key_file=str(path))
    with pytest.raises(ConfigurationError, match=r"providers\.p\.api_key_file: .* is empty"):
        provider_key("p", by_file, {})
    path.write_text("sk-2\n")
    assert provider_key("p", by_file, {}) == "sk-2"
    assert provider_key("p", ProviderSettings(base_url="http://h/v1", dialect="openai"), {}) is None


def test_shown_settings_hold_no_secret() -> None:
    """Neither the secrets' section nor a password in a URL is ever shown."""
    settings = convert(
        {
            "secrets": dict.fromkeys(SecretSettings.__struct_fields__, "verysecret" * 4),
            "store": {"redis_url": "rediss://user:verysecret@h:1/0"},
            "database": {"url": "postgresql://user:very/secret@verysecret@h/d?sslpassword=verysecret"},
        }
    )
    tree = shown(settings)
    assert "verysecret" not in repr(tree)
    assert tree["secrets"] == dict.fromkeys(SecretSettings.__struct_fields__, "***")
    assert tree["store"]["redis_url"] == "rediss://user:***@h:1/0"
    assert set(shown(Settings())["secrets"].values()) == {None}


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("postgresql://u:p%40w@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:a/b@c@h/d", "postgresql://u:***@h/d"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_masked_urls(url: str, masked: str) -> None:
    """Passwords are hidden even where they should have been escaped."""
    assert mask_url(url) == masked


def test_the_example_loads() -> None:
    """tollkeeper.example.toml is a configuration that works as it stands."""
    settings = load(Path(__file__).parent.parent / "tollkeeper.example.toml", {})
    assert set(settings.providers) == {"openai", "anthropic", "local"}
    assert settings.models["llama-3.1-8b"].provider == "local"


def test_every_setting_says_why() -> None:
    """A setting that no sentence explains is not finished."""
    sections = {prefix.partition(".")[0] for prefix, _ in SECTIONS if prefix and "[" not in prefix}
    unexplained = {f"{p}.{f}" for p, kind in SECTIONS for f, text in field_texts(kind).items() if not text}
    assert unexplained - {f".{name}" for name in sections} == set()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_reference_is_up_to_date(page: Path) -> None:
    """docs/SETTINGS.md and docs/ENV_VARIABLES.md say what settings.py says; `make docs` writes them."""
    assert page.read_text() == pages()[page]


def test_price_entries_are_read_in_utc() -> None:
    """Dates, times with and without an offset, and strings; what touches does not overlap."""
    written = """
[[models.m.prices]]
until = 2026-01-01
input_usd = "1"
output_usd = "1"
[[models.m.prices]]
from = 2026-01-01T01:00:00+01:00
until = "2026-02-01"
input_usd = "1"
output_usd = "1"
[[models.m.prices.tiers]]
above_tokens = 200_000
input_usd = "2"
output_usd = "2"
[models.m.prices.service_tiers.flex]
input_usd = "0.5"
output_usd = "0.5"
[[models.m.prices]]
from = 2026-02-01T00:00:00
input_usd = "1"
output_usd = "1"
"""
    settings = convert(tomllib.loads(written))
    check(settings)
    first, second, third = settings.models["m"].prices
    january, february = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    assert (first.from_, first.until) == (None, january)
    assert (second.from_, second.until) == (january, february)
    assert (third.from_, third.until) == (february, None)
    assert second.tiers[0].above_tokens == 200_000
    assert second.service_tiers["flex"].input_usd == "0.5"
    assert shown(settings)["models"]["m"]["prices"][1]["from"] == "2026-01-01T00:00:00Z"
