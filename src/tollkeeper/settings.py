"""All settings: one frozen tree, read once at start from `tollkeeper.toml` and the environment.

The environment wins over the file; `ENVIRONMENT` lists every variable. Secrets come only from the environment or
a file of their own, never from `tollkeeper.toml`. Whatever cannot work is refused here, with the name of the
setting and what to write instead. This file knows nothing of the parts that the settings are for.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.money import MoneyError, nano_from_usd

Dialect = Literal["openai", "anthropic"]


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the settings."""


class ServerSettings(Group, frozen=True):
    """The listener."""

    host: str = "127.0.0.1"
    port: int = 8080
    body_bytes_max: int = 20 * 2**20
    """Largest request body; more is a 413."""
    body_timeout_s: float = 60.0
    """Longest time a client may take to send its body."""
    drain_timeout_s: float = 30.0
    """How long a stop waits for requests in flight, and a hung-up request is read on to learn its true usage."""
    connections_max: int = 2048
    """Concurrent client connections; above it clients get a 503."""


class StoreSettings(Group, frozen=True):
    """The fast state. Without a URL it is this process's memory, which only one process may use."""

    redis_url: str | None = None
    """`redis://`, `rediss://` or `unix://`."""
    dial_timeout_s: float = 5.0
    """Longest time to connect."""
    admission_timeout_s: float = 1.0
    """Longest wait for an admission; after it the request gets a 503 and the store will not run it any more."""


class DatabaseSettings(Group, frozen=True):
    """The durable accounts."""

    url: str | None = None
    """`postgresql://user:password@host/name` or `sqlite:///path`; default: `tollkeeper.db` in the data directory."""
    pool_size: int = 5
    timeout_s: float = 5.0
    """Longest wait for one statement or connection."""


class LogSettings(Group, frozen=True):
    """Where request records go."""

    url: str | None = None
    """`file:///path` or `s3://bucket/prefix`; default: the folder `logs` in the data directory."""
    records_max: int = 100_000
    """Records kept while the store is away; above it the oldest are dropped and counted."""
    object_records_max: int = 10_000
    flush_interval_s: float = 5.0
    """Oldest age of a record before it is shipped."""
    timeout_s: float = 30.0
    """Longest wait for one upload."""


class BillingSettings(Group, frozen=True):
    """The way of spend into the database."""

    sync_interval_s: float = 300.0
    """How often changed counters are written to the database; also at every clean stop."""
    require_price: bool = False
    """Refuse models without a known price for every key, not only for keys with a budget."""


class ProviderSettings(Group, frozen=True):
    """One upstream. Its key comes from `api_key_env` or `api_key_file`, never from here."""

    base_url: str
    """Up to and including the version, e.g. `https://api.openai.com/v1`, `https://api.anthropic.com/v1`."""
    dialect: Dialect
    api_key_env: str | None = None
    api_key_file: str | None = None
    models: tuple[str, ...] = ("*",)
    """Names served without the provider's prefix; `*` is a wildcard."""
    prices: str | None = None
    """The provider's id in the price data; default: found by `base_url`."""
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The field injected into chat requests without a limit. Default: `max_completion_tokens` at OpenAI itself,
    `max_tokens` elsewhere."""
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 120.0
    """Longest silence between two chunks."""
    total_timeout_s: float = 900.0
    connections_max: int = 1000


class ModelSettings(Group, frozen=True):
    """What is known of a model beyond, or instead of, the built-in price data. Prices in USD per million tokens."""

    provider: str | None = None
    """The provider that serves this name; default: by the providers' `models`."""
    upstream_model: str | None = None
    """The name sent upstream; default: the same."""
    context_window: int | None = None
    max_output_tokens: int | None = None
    """The most the model answers with; injected into requests that state no limit."""
    image_tokens_max: int | None = None
    """The provider's published maximum for one image."""
    input_usd: str | None = None
    output_usd: str | None = None
    cached_usd: str | None = None
    cache_write_usd: str | None = None
    cache_write_1h_usd: str | None = None
    per_request_usd: str | None = None


class SecretSettings(Group, frozen=True):
    """Read from the environment or from files, and masked wherever settings are shown."""

    digest_key: str | None = None
    """Digests of API keys are keyed with it. Without one a file `digest-key` is made in the data directory, which
    will do for a single machine."""
    admin_token: str | None = None
    """Bearer token of the admin API; without one a file `admin-token` is made in the data directory."""


class Settings(Group, frozen=True):
    """The whole tree."""

    data_dir: Path = Path("tollkeeper-data")
    """Holds what must survive a restart: outbox, and by default database, logs and secrets."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] | None = None
    """Default: console on a terminal, JSON otherwise."""
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    database: DatabaseSettings = DatabaseSettings()
    logs: LogSettings = LogSettings()
    billing: BillingSettings = BillingSettings()
    secrets: SecretSettings = SecretSettings()
    providers: dict[str, ProviderSettings] = {}
    models: dict[str, ModelSettings] = {}

    @property
    def database_url(self) -> str:
        """The database's URL with the default filled in."""
        return self.database.url or f"sqlite:///{self.data_dir / 'tollkeeper.db'}"

    @property
    def logs_url(self) -> str:
        """The log store's URL with the default filled in."""
        return self.logs.url or (self.data_dir / "logs").absolute().as_uri()

    @property
    def embedded(self) -> bool:
        """Whether the fast store is this process's memory."""
        return self.store.redis_url is None


ENVIRONMENT: Final[Mapping[str, tuple[str, ...]]] = {
    "TOLLKEEPER_DATA_DIR": ("data_dir",),
    "TOLLKEEPER_HOST": ("server", "host"),
    "TOLLKEEPER_PORT": ("server", "port"),
    "TOLLKEEPER_LOG_LEVEL": ("log_level",),
    "TOLLKEEPER_LOG_FORMAT": ("log_format",),
    "TOLLKEEPER_DIGEST_KEY": ("secrets", "digest_key"),
    "TOLLKEEPER_ADMIN_TOKEN": ("secrets", "admin_token"),
    "REDIS_URL": ("store", "redis_url"),
    "DATABASE_URL": ("database", "url"),
    "LOG_STORE_URL": ("logs", "url"),
    "BILLING_SYNC_INTERVAL": ("billing", "sync_interval_s"),
}
"""Variable → path of the setting. `<NAME>_FILE` is also read for the variables of `secrets`."""

FROM_ENVIRONMENT_ONLY: Final = {
    "OPENAI_API_KEY": ("openai", "https://api.openai.com/v1", "openai", "OPENAI_BASE_URL"),
    "ANTHROPIC_API_KEY": ("anthropic", "https://api.anthropic.com/v1", "anthropic", "ANTHROPIC_BASE_URL"),
}
"""Providers that exist by their key alone, when the configuration names no provider."""

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DEFAULT_FILE: Final = "tollkeeper.toml"


def duration_s(text: str, *, what: str = "duration") -> float:
    """`5s`, `300ms`, `2m`, `1h`, or a plain number of seconds → seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match:
        return float(match[1]) * _SECONDS[match[2]]
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f'{what}: {text!r} is not a duration; write it like "5s", "300ms" or "2m"') from None


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read file and environment. Without `path`, `tollkeeper.toml` in the working directory is read if it exists.

    Raises ConfigurationError.
    """
    environ = os.environ if environ is None else environ
    tree = _read_file(path)
    for variable, where in ENVIRONMENT.items():
        value = _from_environment(variable, where, environ)
        if value is not None:
            section = tree
            for name in where[:-1]:
                section = section.setdefault(name, {})
            section[where[-1]] = value
    if not tree.get("providers"):
        tree["providers"] = {
            name: {
                "base_url": environ.get(base_variable, base_url),
                "dialect": dialect,
                "api_key_env": variable,
                "models": _models_of(name),
            }
            for variable, (name, base_url, dialect, base_variable) in FROM_ENVIRONMENT_ONLY.items()
            if environ.get(variable)
        }
    settings = convert(tree)
    check(settings)
    return settings


def convert(tree: dict[str, Any]) -> Settings:
    """A plain tree, as TOML gives it, → Settings. Raises ConfigurationError naming the setting."""
    try:
        return msgspec.convert(_durations(tree, ()), Settings, strict=False)
    except msgspec.ValidationError as error:
        message = re.sub(r" - at `\$\.?(.*)`$", r" (at \1)", str(error))
        raise ConfigurationError(f"configuration: {message}") from None


def _models_of(provider: str) -> tuple[str, ...]:
    return ("claude-*",) if provider == "anthropic" else ("*",)


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        path = Path(DEFAULT_FILE)
        if not path.exists():
            return {}
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    if "secrets" in tree:
        raise ConfigurationError(
            f"{path}: secrets do not belong in the file; set TOLLKEEPER_DIGEST_KEY and TOLLKEEPER_ADMIN_TOKEN "
            "(or …_FILE) in the environment"
        )
    return tree


def _from_environment(variable: str, where: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    value = environ.get(variable)
    if where[0] == "secrets" and (file := environ.get(f"{variable}_FILE")):
        return read_secret(Path(file), what=f"{variable}_FILE")
    return value or None


def read_secret(path: Path, *, what: str) -> str:
    """A secret from its own file, without the newline at its end. Raises ConfigurationError."""
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot read {path}: {error.strerror}") from None
    if not secret:
        raise ConfigurationError(f"{what}: {path} is empty")
    return secret


def _durations(node: Any, where: tuple[str, ...]) -> Any:
    if isinstance(node, dict):
        return {name: _durations(value, (*where, str(name))) for name, value in node.items()}
    if isinstance(node, str) and where and where[-1].endswith("_s"):
        return duration_s(node, what=".".join(where))
    return node


def check(settings: Settings) -> None:
    """Refuse what parses but cannot work. Raises ConfigurationError."""
    if not 0 <= settings.server.port <= 65535:
        raise ConfigurationError(f"server.port: {settings.server.port} is not a port (0 to 65535)")
    _check_positive(settings)
    _check_url("store.redis_url (REDIS_URL)", settings.store.redis_url, ("redis", "rediss", "unix"))
    _check_url("database.url (DATABASE_URL)", settings.database.url, ("postgresql", "postgres", "sqlite"))
    _check_url("logs.url (LOG_STORE_URL)", settings.logs.url, ("file", "s3"))
    for name, provider in settings.providers.items():
        _check_provider(name, provider)
    for name, model in settings.models.items():
        _check_model(name, model, settings)
    database = settings.database_url
    if not database.startswith("sqlite") and settings.secrets.digest_key is None:
        raise ConfigurationError(
            "TOLLKEEPER_DIGEST_KEY is not set: with a shared database every gateway needs the same one. Make it once "
            "with `openssl rand -hex 32` and keep it: keys cannot be verified without it"
        )
    if settings.secrets.digest_key is not None and len(settings.secrets.digest_key) < 32:
        raise ConfigurationError("TOLLKEEPER_DIGEST_KEY is shorter than 32 characters: use `openssl rand -hex 32`")


def _check_positive(settings: Settings) -> None:
    for section in (settings.server, settings.store, settings.database, settings.logs, settings.billing):
        for field in section.__struct_fields__:
            value = getattr(section, field)
            if isinstance(value, int | float) and not isinstance(value, bool) and field != "port" and value <= 0:
                group = type(section).__name__.removesuffix("Settings").lower()
                raise ConfigurationError(f"{group}.{field}: {value} must be above zero")


def _check_url(what: str, url: str | None, schemes: tuple[str, ...]) -> None:
    if url is not None and urlsplit(url).scheme.partition("+")[0] not in schemes:
        known = ", ".join(f"{scheme}://" for scheme in schemes)
        raise ConfigurationError(f"{what}: unknown scheme in {mask_url(url)!r}; known are {known}")


def _check_provider(name: str, provider: ProviderSettings) -> None:
    where = f"providers.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: a provider's name is lower-case letters, digits, '.', '_' and '-'")
    parts = urlsplit(provider.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigurationError(
            f"{where}.base_url: write it like https://api.openai.com/v1, not {provider.base_url!r}"
        )
    if provider.api_key_env and provider.api_key_file:
        raise ConfigurationError(f"{where}: give api_key_env or api_key_file, not both")
    for field in provider.__struct_fields__:
        value = getattr(provider, field)
        if isinstance(value, int | float) and value <= 0:
            raise ConfigurationError(f"{where}.{field}: {value} must be above zero")


def _check_model(name: str, model: ModelSettings, settings: Settings) -> None:
    where = f"models.{name}"
    if model.provider is not None and model.provider not in settings.providers:
        known = ", ".join(sorted(settings.providers)) or "none"
        raise ConfigurationError(f"{where}.provider: there is no provider {model.provider!r}; known: {known}")
    for field in model.__struct_fields__:
        value = getattr(model, field)
        if field.endswith("_usd") and value is not None:
            try:
                nano_from_usd(value, what=f"{where}.{field}")
            except MoneyError as error:
                raise ConfigurationError(str(error)) from None
        elif isinstance(value, int) and value <= 0:
            raise ConfigurationError(f"{where}.{field}: {value} must be above zero")
    if (model.input_usd is None) != (model.output_usd is None):
        raise ConfigurationError(f"{where}: give both input_usd and output_usd, or neither")


def provider_key(name: str, provider: ProviderSettings, environ: Mapping[str, str] | None = None) -> str | None:
    """The provider's API key, or None if none is configured. Raises ConfigurationError if it should exist."""
    environ = os.environ if environ is None else environ
    if provider.api_key_file:
        return read_secret(Path(provider.api_key_file), what=f"providers.{name}.api_key_file")
    if provider.api_key_env:
        key = environ.get(provider.api_key_env)
        if not key:
            raise ConfigurationError(f"providers.{name}.api_key_env: {provider.api_key_env} is not set")
        return key
    return None


def mask_url(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(?<=://)([^/@]*?):[^/@]*@", r"\1:***@", url)


def shown(settings: Settings) -> dict[str, Any]:
    """The whole tree as plain values, with secrets masked."""
    tree: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    tree["secrets"] = {name: None if value is None else "***" for name, value in tree["secrets"].items()}
    for section, field in (("store", "redis_url"), ("database", "url"), ("logs", "url")):
        if tree[section][field]:
            tree[section][field] = mask_url(tree[section][field])
    return tree
