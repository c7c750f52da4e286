"""All settings: one frozen tree, read once at start from `tollkeeper.toml` and the environment.

The environment wins over the file; `ENVIRONMENT` lists every variable. Secrets come only from the environment or
a file of their own, never from `tollkeeper.toml`. Whatever cannot work is refused here, with the name of the
setting and what to write instead. This file knows nothing of the parts that the settings are for.
"""

import contextlib
import difflib
import math
import os
import re
import ssl
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.money import MoneyError, nano_from_usd

Dialect = Literal["openai", "anthropic"]
OutageMode = Literal["closed", "open", "bounded"]
Strategy = Literal["weighted", "latency", "busy"]


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the settings."""


class ServerSettings(Group, frozen=True):
    """The listener."""

    host: str = "127.0.0.1"
    """The address to listen on; `0.0.0.0` for all of IPv4, `::` for all."""
    port: int = 8080
    """0 takes a free one, which is printed."""
    body_bytes_max: int = 20 * 2**20
    """Largest request body; more is a 413."""
    body_timeout_s: float = 60.0
    """Longest time a client may take to send its body; for a form, each megabyte of it."""
    upload_bytes_max: int = 64 * 2**20
    """Largest form with files (audio, images); more is a 413."""
    uploads_bytes_max: int = 512 * 2**20
    """Forms in memory at one time; what does not fit gets a 503. A form of unknown length counts as the largest."""
    drain_timeout_s: float = 30.0
    """How long a stop waits for requests in flight, and a hung-up request is read on to learn its true usage."""
    connections_max: int = 2048
    """Concurrent client connections of a process; above it clients get a 503."""
    workers: int = 1
    """Gateway processes that share the port, each with one core's work; more than one needs Redis."""


class AdminSettings(Group, frozen=True):
    """A listener of its own for the control plane: admin API, dashboard, `/docs`."""

    host: str = "127.0.0.1"
    """The address to listen on; `0.0.0.0` for all of IPv4, `::` for all."""
    port: int | None = None
    """With one, the listener of [server] serves applications and probes alone. Default: one listener serves all. 0
    takes a free one, which is printed."""


class StoreSettings(Group, frozen=True):
    """The fast state. Without a URL it is this process's memory, which only one process may use."""

    redis_url: str | None = None
    """`redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://hosts/service` or `redis+cluster://hosts`."""
    redis_address: str | None = None
    """`host:port` of one server, instead of a URL."""
    redis_username: str | None = None
    """The user of an ACL, if the URL names none."""
    redis_password: str | None = None
    """The password, if the URL has none."""
    redis_db: int | None = None
    """The database's number, with an address; 0 if it is not given."""
    redis_tls: bool = False
    """Speak TLS with the server at the address; with a URL write `rediss://`."""
    redis_tls_ca_file: str | None = None
    """The CA of the server's certificate; default: those the system trusts."""
    redis_tls_cert_file: str | None = None
    """The certificate this client shows."""
    redis_tls_key_file: str | None = None
    """Its key, if that is not in the same file."""
    pool_size: int = 10
    """Most connections of a client to one server. What must keep its order, so all admissions and settlements, shares
    one of them, which is also the fastest; `min_idle_conns` may be at most this."""
    min_idle_conns: int = 2
    """Connections that such a client keeps open."""
    dial_timeout_s: float = 5.0
    """Longest time to connect."""
    read_timeout_s: float = 3.0
    """A server that has not answered for this long, or for `admission_timeout_s`, counts as away."""
    write_timeout_s: float = 3.0
    """The same for one that takes no bytes."""
    admission_timeout_s: float = 1.0
    """Longest wait for an admission; after it the request gets a 503 and the store will not run it any more."""
    busy_poll_us: int = 100
    """How many microseconds a process with few requests stays awake for the answer to an admission, which comes 10 to
    40 µs sooner then. Where Redis takes longer than that it soon stops trying. 0: never."""


class OutageSettings(Group, frozen=True):
    """While Redis is away: a process takes its share (`bounded`), nothing passes (`closed`, a 503), all (`open`)."""

    limits: OutageMode = "bounded"
    """Windows and concurrency. A share is what was left of a limit, divided by the live gateway processes."""
    budgets: OutageMode = "bounded"
    """Of the headroom as last known, if that was within the 10 s before Redis went away; else as `closed`."""


class DatabaseSettings(Group, frozen=True):
    """The durable accounts."""

    url: str | None = None
    """`postgresql://user:password@host/name` or `sqlite:///path`; default: `tollkeeper.db` in the data directory."""
    pool_size: int = 5
    """Connections kept open; the data plane needs one, the admin API the others."""
    timeout_s: float = 5.0
    """Longest wait for one statement or connection."""


class LogSettings(Group, frozen=True):
    """Where request records go."""

    url: str | None = None
    """`file:///path`, `s3://bucket/prefix`, `gs://…`, `az://…`; default: the folder `logs` in the data directory."""
    format: Literal["jsonl.gz", "parquet"] = "jsonl.gz"
    """Parquet is smaller and quicker to query, needs `tollkeeper[query]`, and takes about 100 MB of memory more."""
    records_max: int = 100_000
    """Records kept while the store is away; above it the oldest are dropped and counted."""
    buffer_bytes_max: int = 256 * 2**20
    """Encoded bytes kept while the store is away; above it the oldest records are dropped and counted."""
    object_records_max: int = 10_000
    """Records in one object; a full batch is shipped at once."""
    object_bytes_max: int = 32 * 2**20
    """Uncompressed bytes of one object; also bounds the memory that one shipment takes."""
    flush_interval_s: float = 5.0
    """Oldest age of a record before it is shipped."""
    timeout_s: float = 30.0
    """Longest wait for one upload."""
    lease_s: float = 120.0
    """How long a shipper that fell silent keeps its batch; then another one ships it."""
    ship: bool = True
    """Whether gateways ship what is in Redis; if not, `tollkeeper worker` must run. Without Redis they always do."""
    shards: int = 1
    """Queues in Redis that gateways spread over; more than one helps only on a cluster. The same everywhere."""
    compact_after_s: float | None = None
    """How long after an hour ended its small objects are put together in large ones; default: never. Other readers of
    the store see records twice for half an hour; needs DeleteObject."""
    retention_days: int | None = None
    """Whole days after which records are deleted from the log store; default: never. What was there stays proven."""
    redis_away: Literal["spool", "drop"] = "spool"
    """What happens to records while Redis is away: kept on local disk and brought later, or dropped and counted."""
    spool_bytes_max: int = 2**30
    """Records on local disk while Redis is away; above it the oldest are dropped and counted."""
    bodies: Literal["off", "truncated", "full"] = "off"
    """Whether request and response bodies are in the records of keys that do not say (`--log-bodies`)."""
    body_bytes_max: int = 256 * 2**10
    """Of each body with `full`; more is cut."""
    body_truncated_bytes: int = 2048
    """Of each body with `truncated`."""
    redact: tuple[str, ...] = ()
    """Patterns (RE2) of what becomes `[redacted]` in bodies, user, metadata and tags. API keys and authorization
    headers always do."""
    redact_with: str | None = None
    """`module:function` of a function that is given a field's name and its text, after the patterns, and returns the
    text to keep or None; it runs in a thread. If it raises or hangs, the texts are left out and counted."""
    refusals: bool = False
    """Also record what a known key asked and was not admitted: refused by a limit, or wrong. Off, because a client
    that is refused may ask very often."""


class WorkerSettings(Group, frozen=True):
    """What `tollkeeper worker` listens on, for `/metrics`, `/healthz` and `/readyz` alone."""

    host: str = "127.0.0.1"
    """The address; `0.0.0.0` for all of IPv4, `::` for all."""
    port: int | None = None
    """Default: none, since several workers may run on one machine. 0 takes a free one, which is logged."""


class RoutingSettings(Group, frozen=True):
    """What is tried after a provider failed, and which deployments get no requests for a while."""

    attempts_max: int = 4
    """Most attempts of one request, fallbacks included; 1: nothing is tried again."""
    attempts_per_model_max: int = 2
    """Most attempts at one model's deployments before its fallbacks have their turn."""
    retry_ratio: float = 0.2
    """Attempts after the first, per request, that a process may spend in the long run: retries must not multiply an
    outage."""
    retry_burst: int = 10
    """Such attempts saved up."""
    backoff_min_s: float = 0.25
    """Longest pause before the second try at one deployment; a random part of it is waited. It doubles each time."""
    backoff_max_s: float = 4.0
    """The bound of that."""
    retry_after_max_s: float = 10.0
    """A provider that asks for a longer pause (`retry-after`) is not waited for."""
    cooldown_failures: int = 5
    """Failures in a row after which a deployment gets no requests while there are others."""
    cooldown_failure_ratio: float = 0.5
    """The same for this share of failures within `cooldown_window_s`."""
    cooldown_requests_min: int = 20
    """Requests that such a share needs."""
    cooldown_window_s: float = 60.0
    """Over which it is counted."""
    cooldown_s: float = 30.0
    """How long; then one request tries it."""


class BillingSettings(Group, frozen=True):
    """The way of spend into the database."""

    sync_interval_s: float = 300.0
    """How often changed counters are written to the database; also at every clean stop."""
    orphan_after_s: float = 600.0
    """A gateway that gave no sign for so long (30 s or more), and whose outbox nobody has, is closed by another: what
    it holds is charged as presumed. One that comes back goes on under a new name; its true costs replace what was
    presumed."""
    recovery_grace_s: float = 30.0
    """After the store lost its memory, longest wait for gateways that have not sent again what they know. Until they
    have, or this has passed, requests under a budget get a 503; what arrives later is counted and logged."""
    follow_up_interval_s: float = 10.0
    """How often a gateway asks providers for the end of batches and of answers in the background that are due: their
    bound stays charged until then, or until their owners look."""
    require_price: bool = False
    """Refuse models without a known price for every key, not only for keys with a budget."""


class AlertSettings(Group, frozen=True):
    """Warnings of budgets. The webhook's address and secret are `TOLLKEEPER_WEBHOOK_URL` and `…_SECRET`."""

    webhook_timeout_s: float = 10.0
    """Longest wait for each step of one delivery; a failed one is tried again for a day and a half."""


class TracingSettings(Group, frozen=True):
    """Traces to an OpenTelemetry collector, by OTLP over HTTP. Needs `tollkeeper[otel]`; headers of the export, if it
    needs any, are OTEL_EXPORTER_OTLP_HEADERS."""

    endpoint: str | None = None
    """The collector, like `http://collector:4318`; `/v1/traces` is appended. Default: no traces."""
    service_name: str = "tollkeeper"
    """What this service is called in traces."""
    sample_ratio: float = 1.0
    """The share of requests that get a trace, if their caller has not decided that (`traceparent`)."""
    timeout_s: float = 10.0
    """Longest time of one export, its retries included, and of the last one at a stop."""


class ProviderSettings(Group, frozen=True):
    """One upstream. Its key comes from `api_key_env` or `api_key_file`, never from here."""

    base_url: str
    """Up to and including the version, e.g. `https://api.openai.com/v1`, `https://api.anthropic.com/v1`."""
    dialect: Dialect
    """The wire format that the upstream speaks."""
    api_key_env: str | None = None
    """The variable that holds the provider's API key."""
    api_key_file: str | None = None
    """The file that holds it. Neither: requests go upstream without a key, as a local server may want."""
    proxy: str | None = None
    """The HTTP proxy through which it is reached, like `http://proxy.internal:3128`; empty: none. Default: that of
    `HTTPS_PROXY`, unless `NO_PROXY` names the host."""
    proxy_env: str | None = None
    """The variable that holds the URL of a proxy that wants a user and a password, instead of `proxy`."""
    tls_ca_file: str | None = None
    """The authority of its certificate, where that is not one that the system, or `SSL_CERT_FILE`, trusts."""
    azure_api_version: str | None = None
    """The upstream is Azure OpenAI by deployments, and this is the `api-version` it is asked with; `base_url` is then
    `https://NAME.openai.azure.com/openai`. Its newer `/openai/v1` needs none."""
    models: tuple[str, ...] = ("*",)
    """Names served without the provider's prefix; `*` is a wildcard."""
    prices: str | None = None
    """The provider's id in the price data; default: found by `base_url`."""
    price_multiplier: str = "1"
    """On every price of the price data, exactly: `0.85` is a discount of 15%. Configured prices stay as they are."""
    service_tiers: tuple[str, ...] = ()
    """Service tiers that requests may be served at without asking for one (an OpenAI project's default, like
    `priority`): holds then cover their prices too."""
    trust_reported_cost: bool = False
    """Charge what the provider says it charged (`usage.cost`, as OpenRouter sends it) instead of what the prices say.
    Holds stay what those say."""
    reported_cost_max_usd: str = "100"
    """A reported cost of one request above it is not believed; the price counts then, as without a report."""
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The field injected into chat requests without a limit. Default: `max_completion_tokens` at OpenAI itself,
    `max_tokens` elsewhere."""
    asks_stream_usage: bool | None = None
    """Whether streams are asked to report their usage (`stream_options.include_usage`), so that they can be charged.
    Default: yes, but not at Mistral, which reports it unasked and refuses the field."""
    connect_timeout_s: float = 5.0
    """Longest time to connect, TLS included."""
    first_byte_timeout_s: float = 300.0
    """Longest wait for the answer's head; large prompts without streaming take minutes."""
    idle_timeout_s: float = 120.0
    """Longest silence between two chunks."""
    total_timeout_s: float = 900.0
    """Longest time of a whole exchange, streams included."""
    connections_max: int = 1000
    """Connections to this provider; requests above it wait within `connect_timeout_s`."""
    retry_unanswered: bool = True
    """Whether a request that was sent and got no answer is tried again. It may have run, so its hold is charged."""
    http_client: Literal["http1", "aiohttp"] = "http1"
    """Ours, or one that costs more and has met more servers, should a provider not get on with ours."""


class RateSettings(Group, frozen=True):
    """Prices of tokens, in USD per million. A kind left out counts as the kind that contains it."""

    input_usd: str | None = None
    """Input tokens; replaces all of the built-in prices together with `output_usd`."""
    output_usd: str | None = None
    """Output tokens."""
    cached_usd: str | None = None
    """Input tokens read from the provider's cache; default: as input."""
    cache_write_usd: str | None = None
    """Input tokens written to the provider's cache; default: as input."""
    cache_write_1h_usd: str | None = None
    """Those kept for an hour; default: as `cache_write_usd`."""
    input_audio_usd: str | None = None
    """Input tokens of audio; default: as input."""
    cached_audio_usd: str | None = None
    """Those read from the cache; default: the dearer of `cached_usd` and `input_audio_usd`."""
    output_audio_usd: str | None = None
    """Output tokens of audio; default: as output."""
    input_image_usd: str | None = None
    """Input tokens of images; default: as input."""
    cached_image_usd: str | None = None
    """Those read from the cache; default: the dearer of `cached_usd` and `input_image_usd`."""
    output_image_usd: str | None = None
    """Output tokens of images; default: as output."""
    reasoning_usd: str | None = None
    """Output tokens of reasoning; default: as output."""
    citation_usd: str | None = None
    """Output tokens of citations; default: as output."""


class AmountSettings(RateSettings, frozen=True):
    """Prices of tokens and of uses."""

    per_request_usd: str | None = None
    """USD for each request, besides its tokens."""
    per_web_search_usd: str | None = None
    """USD for each web search that the provider runs."""
    per_file_search_usd: str | None = None
    """USD for each search in files stored at the provider."""
    per_image_usd: str | None = None
    """USD for each image made; `image_prices` tells sizes and qualities apart."""
    per_search_usd: str | None = None
    """USD for each search of a reranker."""
    per_audio_hour_usd: str | None = None
    """USD for each hour of audio that is transcribed or translated, to the millisecond."""
    per_million_characters_usd: str | None = None
    """USD for a million characters that are spoken."""


class TierSettings(RateSettings, frozen=True, kw_only=True):
    """The prices of all tokens of a request with more input tokens than this."""

    above_tokens: int
    """The tier counts from one token more."""


class ServedSettings(RateSettings, frozen=True):
    """The prices of requests that the provider says it served as a service tier, like `flex` or `priority`."""

    tiers: tuple[TierSettings, ...] = ()
    """By the size of the input."""


class ImagePriceSettings(Group, frozen=True, kw_only=True):
    """The price of an image made, by its size and quality as the provider names them. The first that fits counts."""

    size: str | None = None
    """Like `1024x1024`; default: any."""
    quality: str | None = None
    """Like `standard`, `hd`, `low`, `high`; default: any."""
    usd: str
    """USD for each image."""


class PriceSettings(AmountSettings, frozen=True):
    """Prices with a time: any number for a model, which may not overlap. Where none counts, the built-in ones do."""

    from_: datetime | None = msgspec.field(default=None, name="from")
    """They count from then on: a date (midnight UTC), or a date and time. Default: always."""
    until: datetime | None = None
    """And until just before then. Default: for ever."""
    tiers: tuple[TierSettings, ...] = ()
    """By the size of the input."""
    service_tiers: dict[str, ServedSettings] = {}
    """By what the provider served a request as."""


class DeploymentSettings(Group, frozen=True):
    """One of several that serve a model's name. Its limits are counted by each process for itself."""

    provider: str | None = None
    """The provider; or name a `model`."""
    upstream_model: str | None = None
    """The name sent upstream; default: the model's own."""
    model: str | None = None
    """Another entry of [models.<name>]: its provider, upstream model, prices and limits count for this one."""
    weight: int = 1
    """Its share of the requests, beside the weights of the others; 0: none."""
    requests_per_minute: int | None = None
    """At most so many; above it others are tried, and if there are none the client gets a 429."""
    tokens_per_minute: int | None = None
    """The same for tokens, estimated before and corrected after a request."""
    concurrency: int | None = None
    """The same for requests in flight."""


class ModelSettings(AmountSettings, frozen=True):
    """What is known of a model beyond, or instead of, the built-in price data. Prices in USD per million tokens."""

    provider: str | None = None
    """The provider that serves this name; default: by the providers' `models`."""
    upstream_model: str | None = None
    """The name sent upstream; default: the same."""
    priced_as: str | None = None
    """The name in the price data, where the upstream's is another (a deployment at Azure, say)."""
    context_window: int | None = None
    """Input tokens never exceed it, which tightens the cost bound of long requests."""
    max_output_tokens: int | None = None
    """The most the model answers with; injected into requests that state no limit."""
    image_tokens_max: int | None = None
    """The provider's published maximum for one image."""
    output_image_tokens_max: int | None = None
    """The provider's published maximum of output tokens for one image made, for models that are paid by tokens."""
    audio_seconds_max: int | None = None
    """The longest recording that the provider takes, or that it is asked to; bounds the cost of a transcription."""
    prices: tuple[PriceSettings, ...] = ()
    """Prices that count for a time, with tiers, instead of those here."""
    image_prices: tuple[ImagePriceSettings, ...] = ()
    """Prices of images by size and quality; `per_image_usd` counts for all others. What neither the request nor the
    answer tells may be any of them, and counts as the dearest."""
    deployments: tuple[DeploymentSettings, ...] = ()
    """Several that serve this name, instead of `provider` and `upstream_model`."""
    strategy: Strategy = "weighted"
    """Which of them: by weight at random, the one with the quickest first bytes, or with the fewest in flight."""
    fallbacks: tuple[str, ...] = ()
    """Names to try after this one has failed, in order, each with its own fallbacks; those that the key may use."""


class SecretSettings(Group, frozen=True):
    """Read from the environment or from files, and masked wherever settings are shown."""

    digest_key: str | None = None
    """Digests of API keys are keyed with it. Without one a file `digest-key` is made in the data directory, which
    will do for a single machine."""
    admin_token: str | None = None
    """Bearer token of the admin API; without one a file `admin-token` is made in the data directory."""
    webhook_url: str | None = None
    """Where warnings of budgets are posted; a secret because its path often is one."""
    webhook_secret: str | None = None
    """Messages to the webhook are signed with it (`tollkeeper-signature`); needed where there is a webhook."""
    webhook_secret_previous: str | None = None
    """While `webhook_secret` is rotated, the one before: messages carry a signature of each until it is removed."""


class Settings(Group, frozen=True):
    """The whole tree."""

    data_dir: Path = Path("tollkeeper-data")
    """Holds what must survive a restart: outbox, and by default database, logs and secrets."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Events below it are not written to standard error."""
    log_format: Literal["json", "console"] | None = None
    """Default: console on a terminal, JSON otherwise."""
    server: ServerSettings = ServerSettings()
    admin: AdminSettings = AdminSettings()
    store: StoreSettings = StoreSettings()
    outage: OutageSettings = OutageSettings()
    database: DatabaseSettings = DatabaseSettings()
    logs: LogSettings = LogSettings()
    worker: WorkerSettings = WorkerSettings()
    routing: RoutingSettings = RoutingSettings()
    billing: BillingSettings = BillingSettings()
    alerts: AlertSettings = AlertSettings()
    tracing: TracingSettings = TracingSettings()
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
        return self.store.redis_url is None and self.store.redis_address is None


ENVIRONMENT: Final[Mapping[str, tuple[str, ...]]] = {
    "TOLLKEEPER_DATA_DIR": ("data_dir",),
    "TOLLKEEPER_HOST": ("server", "host"),
    "TOLLKEEPER_PORT": ("server", "port"),
    "WEB_CONCURRENCY": ("server", "workers"),
    "TOLLKEEPER_ADMIN_HOST": ("admin", "host"),
    "TOLLKEEPER_ADMIN_PORT": ("admin", "port"),
    "TOLLKEEPER_LOG_LEVEL": ("log_level",),
    "TOLLKEEPER_LOG_FORMAT": ("log_format",),
    "TOLLKEEPER_DIGEST_KEY": ("secrets", "digest_key"),
    "TOLLKEEPER_ADMIN_TOKEN": ("secrets", "admin_token"),
    "TOLLKEEPER_WEBHOOK_URL": ("secrets", "webhook_url"),
    "TOLLKEEPER_WEBHOOK_SECRET": ("secrets", "webhook_secret"),
    "TOLLKEEPER_WEBHOOK_SECRET_PREVIOUS": ("secrets", "webhook_secret_previous"),
    "REDIS_URL": ("store", "redis_url"),
    "REDIS_ADDRESS": ("store", "redis_address"),
    "REDIS_USERNAME": ("store", "redis_username"),
    "REDIS_PASSWORD": ("store", "redis_password"),
    "REDIS_DB": ("store", "redis_db"),
    "REDIS_TLS": ("store", "redis_tls"),
    "REDIS_TLS_CA_FILE": ("store", "redis_tls_ca_file"),
    "REDIS_TLS_CERT_FILE": ("store", "redis_tls_cert_file"),
    "REDIS_TLS_KEY_FILE": ("store", "redis_tls_key_file"),
    "REDIS_POOL_SIZE": ("store", "pool_size"),
    "REDIS_MIN_IDLE_CONNS": ("store", "min_idle_conns"),
    "REDIS_DIAL_TIMEOUT": ("store", "dial_timeout_s"),
    "REDIS_READ_TIMEOUT": ("store", "read_timeout_s"),
    "REDIS_WRITE_TIMEOUT": ("store", "write_timeout_s"),
    "REDIS_BUSY_POLL_US": ("store", "busy_poll_us"),
    "TOLLKEEPER_OUTAGE_LIMITS": ("outage", "limits"),
    "TOLLKEEPER_OUTAGE_BUDGETS": ("outage", "budgets"),
    "DATABASE_URL": ("database", "url"),
    "LOG_STORE_URL": ("logs", "url"),
    "TOLLKEEPER_WORKER_HOST": ("worker", "host"),
    "TOLLKEEPER_WORKER_PORT": ("worker", "port"),
    "BILLING_SYNC_INTERVAL": ("billing", "sync_interval_s"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("tracing", "endpoint"),
    "OTEL_SERVICE_NAME": ("tracing", "service_name"),
    "OTEL_TRACES_SAMPLER_ARG": ("tracing", "sample_ratio"),
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
REDIS_SCHEMES: Final = (
    *("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)
MULTIPLIER: Final = re.compile(r"\d{1,3}(\.\d{1,9})?")
AZURE_VERSION: Final = re.compile(r"[A-Za-z0-9-]{1,32}")
MULTIPLIER_MAX: Final = 100
MAY_BE_ZERO: Final = frozenset(
    {"port", "redis_db", "min_idle_conns", "busy_poll_us", "retry_ratio", "retry_burst", "sample_ratio"}
)
DEFAULT_FILE: Final = "tollkeeper.toml"
WORKERS_MAX: Final = 64
ORPHAN_AFTER_MIN_S: Final = 30.0
"""Three signs of life of a gateway; sooner, those that live would be closed."""
MEDIA_BOUNDS: Final = ("image_tokens_max", "output_image_tokens_max", "audio_seconds_max")
LOGGED_BODY_BYTES_MAX: Final = 384 * 2**10
ADMIN_TOKEN_MIN: Final = 16
DIGEST_KEY_MIN: Final = 32

_Group = TypeVar("_Group", bound=Group)


def duration_s(text: str, *, what: str = "duration") -> float:
    """`5s`, `300ms`, `2m`, `1h`, or a plain number of seconds → seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match:
        return float(match[1]) * _SECONDS[match[2]]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ConfigurationError(f'{what}: {text!r} is not a duration; write it like "5s", "300ms" or "2m"')
    return seconds


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
                if not isinstance(section, dict):
                    raise _wrong((name,), "must be a table")
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
    tree = _moments(_durations(tree, ()))
    named: dict[str, dict[str, Any]] = {}
    for section, kind in (("providers", ProviderSettings), ("models", ModelSettings)):
        entries = tree.get(section, {})
        if not isinstance(entries, dict):
            raise _wrong((section,), f"must be a table of tables, like [{section}.name]")
        named[section] = {name: _group(kind, entry, (section, name)) for name, entry in entries.items()}
    return _group(Settings, tree | named, ())


def _group(kind: type[_Group], tree: Any, where: tuple[str, ...]) -> _Group:
    try:
        return msgspec.convert(tree, kind, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        inner = tuple(re.findall(r"[^.\[\]`]+(?:\[\d+\])?", path))
        raise _refused(message, where + inner) from None


def _path(kind: type[Any], value: Any) -> Any:
    if kind is not Path:
        raise NotImplementedError(kind)
    if not isinstance(value, str | Path):
        raise ValueError(f"Expected `Path`, got `{type(value).__name__}`")
    return Path(value)


def _refused(message: str, where: tuple[str, ...]) -> ConfigurationError:
    """msgspec's complaint about the setting at `where`, as an operator needs to read it."""
    if field := re.fullmatch(r"Object contains unknown field `(.*)`", message):
        known = _kind_at(where).__struct_encode_fields__
        near = difflib.get_close_matches(field[1], known, 1)
        advice = f"did you mean {near[0]}?" if near else "known here: " + ", ".join(known)
        return _wrong((*where, field[1]), f"there is no such setting; {advice}")
    if field := re.fullmatch(r"Object missing required field `(.*)`", message):
        return _wrong((*where, field[1]), "must be set")
    if message.startswith("Invalid enum value"):
        values = [str(v) for v in get_args(_hint_at(where)) if isinstance(v, str)] or [
            str(v) for option in get_args(_hint_at(where)) for v in get_args(option)
        ]
        return _wrong(where, f"{message.removeprefix('Invalid enum value ')} is not one of {', '.join(values)}")
    kinds = {
        "object": "a table",
        "array": "a list",
        "str": "a string",
        "int": "a whole number",
        "bool": "true or false",
    }
    if types := re.fullmatch(r"Expected `(.*)`, got `(.*)`", message):
        wanted = " or ".join(
            kinds.get(t, "a path" if t == "Path" else t) for t in types[1].split(" | ") if t != "null"
        )
        return _wrong(where, f"must be {wanted}")
    return _wrong(where, message)


def _kind_at(where: tuple[str, ...]) -> type[Group]:
    """The section at a path. Names of entries stand in it only for those of the top level."""
    kind: type[Group] = Settings
    named = bool(where) and where[0] in ("providers", "models")
    for name in where[:1] + where[2:] if named else where:
        hint = get_type_hints(kind)[_attribute(kind, name)]
        kind = next(k for k in (hint, *get_args(hint)) if isinstance(k, type) and issubclass(k, Group))
    return kind


def _hint_at(where: tuple[str, ...]) -> Any:
    kind = _kind_at(where[:-1])
    return get_type_hints(kind)[_attribute(kind, where[-1])]


def _attribute(kind: type[Group], name: str) -> str:
    name = name.partition("[")[0]
    return kind.__struct_fields__[kind.__struct_encode_fields__.index(name)]


def _wrong(where: tuple[str, ...], what: str) -> ConfigurationError:
    variable = next((f" ({name})" for name, path in ENVIRONMENT.items() if path == where), "")
    return ConfigurationError(f"{'.'.join(where) or 'configuration'}{variable}: {what}")


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
    value = environ.get(variable, "").strip()
    if where[0] == "secrets" and (file := environ.get(f"{variable}_FILE")):
        if value:
            raise ConfigurationError(f"{variable} and {variable}_FILE are both set; keep one of them")
        return read_secret(Path(file), what=f"{variable}_FILE")
    return value or None


def read_secret(path: Path, *, what: str) -> str:
    """A secret from its own file, without the newline at its end. Raises ConfigurationError."""
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what}: {path} is not text") from None
    if not secret:
        raise ConfigurationError(f"{what}: {path} is empty")
    return secret


def _durations(node: Any, where: tuple[str, ...]) -> Any:
    if isinstance(node, dict):
        return {name: _durations(value, (*where, str(name))) for name, value in node.items()}
    if isinstance(node, str) and where and where[-1].endswith("_s"):
        return duration_s(node, what=".".join(where))
    return node


def _moments(tree: dict[str, Any]) -> dict[str, Any]:
    """Dates of price entries as times, all in UTC. Raises ConfigurationError for what is no date."""
    models = tree.get("models")
    if not isinstance(models, dict):
        return tree
    changed = dict(models)
    for name, model in models.items():
        prices = model.get("prices") if isinstance(model, dict) else None
        if isinstance(prices, list):
            dated = [_dated(price, ("models", name, f"prices[{number}]")) for number, price in enumerate(prices)]
            changed[name] = model | {"prices": dated}
    return tree | {"models": changed}


def _dated(price: Any, where: tuple[str, ...]) -> Any:
    if not isinstance(price, dict):
        return price
    return price | {name: _moment(price[name], (*where, name)) for name in ("from", "until") if name in price}


def _moment(value: Any, where: tuple[str, ...]) -> datetime:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise _wrong(where, "must be a date like 2026-01-31, or a date and time")


def check(settings: Settings) -> None:
    """Refuse what parses but cannot work. Raises ConfigurationError."""
    for group, port in (("server", settings.server.port), ("worker", settings.worker.port)):
        if port is not None and not 0 <= port <= 65535:
            raise _wrong((group, "port"), f"{port} is not a port (0 to 65535)")
    _check_positive(settings)
    if settings.server.workers > WORKERS_MAX:
        raise _wrong(("server", "workers"), f"{settings.server.workers} is above {WORKERS_MAX}; one a core is plenty")
    _check_urls(settings)
    _check_bodies(settings.logs)
    for name, provider in settings.providers.items():
        _check_provider(name, provider)
    for name, model in settings.models.items():
        _check_model(name, model, settings)
        _check_deployments(f"models.{name}", model, settings)
    _check_routing(settings)
    _check_tracing(settings.tracing)
    if settings.billing.orphan_after_s < ORPHAN_AFTER_MIN_S:
        least = f"at least {ORPHAN_AFTER_MIN_S:g} s, since gateways give a sign of life every ten"
        raise _wrong(("billing", "orphan_after_s"), least)
    _check_secrets(settings)
    _check_webhook(settings)


def _check_secrets(settings: Settings) -> None:
    digest_key, admin_token = settings.secrets.digest_key, settings.secrets.admin_token
    if digest_key is None and not settings.database_url.startswith("sqlite"):
        raise ConfigurationError(
            "TOLLKEEPER_DIGEST_KEY is not set: with a shared database every gateway needs the same one. Make it once "
            "with `openssl rand -hex 32` and keep it: keys cannot be verified without it"
        )
    if digest_key is not None and len(digest_key) < DIGEST_KEY_MIN:
        raise ConfigurationError(
            f"TOLLKEEPER_DIGEST_KEY is shorter than {DIGEST_KEY_MIN} characters: use `openssl rand -hex 32`"
        )
    if admin_token is not None and (len(admin_token) < ADMIN_TOKEN_MIN or not _printable(admin_token)):
        raise ConfigurationError(
            f"TOLLKEEPER_ADMIN_TOKEN must be {ADMIN_TOKEN_MIN} or more printable ASCII characters: "
            "use `openssl rand -hex 32`"
        )


def _check_tracing(tracing: TracingSettings) -> None:
    if tracing.endpoint is not None and not _is_base_url(tracing.endpoint):
        raise _wrong(
            ("tracing", "endpoint"), f"write it like http://collector:4318, not {mask_url(tracing.endpoint)!r}"
        )
    if not 0 <= tracing.sample_ratio <= 1:
        raise _wrong(("tracing", "sample_ratio"), f"{tracing.sample_ratio} must be from 0 to 1")


def _check_webhook(settings: Settings) -> None:
    url, secret = settings.secrets.webhook_url, settings.secrets.webhook_secret
    previous = settings.secrets.webhook_secret_previous
    if previous is not None and (secret is None or secret == previous or len(previous) < ADMIN_TOKEN_MIN):
        raise ConfigurationError(
            "TOLLKEEPER_WEBHOOK_SECRET_PREVIOUS is the secret before the last rotation: set the new one as "
            f"TOLLKEEPER_WEBHOOK_SECRET, which must differ, and keep {ADMIN_TOKEN_MIN} or more characters in both"
        )
    if url is None:
        if secret is not None:
            raise ConfigurationError("TOLLKEEPER_WEBHOOK_SECRET is set, but no TOLLKEEPER_WEBHOOK_URL to sign for")
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
        usable = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable or parts.fragment or not _printable(url):
        raise ConfigurationError(
            "TOLLKEEPER_WEBHOOK_URL is not an address that can be posted to; write it like "
            "https://hooks.example.com/budgets, without user or fragment"
        )
    if secret is None or len(secret) < ADMIN_TOKEN_MIN:
        raise ConfigurationError(
            f"TOLLKEEPER_WEBHOOK_SECRET must be {ADMIN_TOKEN_MIN} or more characters, so that the receiver can tell "
            "our messages from others: use `openssl rand -hex 32`"
        )


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _positive(where: str, value: object) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool) and not (value > 0 and math.isfinite(value)):
        raise ConfigurationError(f"{where}: {value} must be a number above zero")


def _check_positive(settings: Settings) -> None:
    for group in ("server", "store", "database", "logs", "routing", "billing", "alerts", "tracing"):
        section = getattr(settings, group)
        for field in section.__struct_fields__:
            if field not in MAY_BE_ZERO:
                _positive(f"{group}.{field}", getattr(section, field))


def _check_urls(settings: Settings) -> None:
    _check_url("store.redis_url (REDIS_URL)", settings.store.redis_url, REDIS_SCHEMES)
    if settings.embedded:
        for field in settings.store.__struct_fields__:
            if field.startswith("redis_") and getattr(settings.store, field):
                raise _wrong(("store", field), "there is no Redis yet: set REDIS_URL or REDIS_ADDRESS too")
    database = "database.url (DATABASE_URL)"
    _check_url(database, settings.database.url, ("postgresql", "postgres", "sqlite"), drivers=True)
    if settings.database.url is not None and settings.database.url.startswith("sqlite"):
        _, _, path = settings.database.url.partition(":///")
        if path in ("", ":memory:"):
            raise ConfigurationError(f"{database}: accounts need a file; write sqlite:///path/to/tollkeeper.db")
    logs = "logs.url (LOG_STORE_URL)"
    _check_url(logs, settings.logs.url, ("file", "s3", "gs", "az"))
    parts = urlsplit(settings.logs.url or settings.logs_url)
    if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
        raise ConfigurationError(f"{logs}: write an absolute path with three slashes, like file:///var/lib/logs")
    if parts.scheme in ("s3", "gs", "az") and not parts.netloc:
        raise ConfigurationError(f"{logs}: name the bucket, like {parts.scheme}://bucket/prefix")


def _check_bodies(logs: LogSettings) -> None:
    for field in ("body_bytes_max", "body_truncated_bytes"):
        if getattr(logs, field) > LOGGED_BODY_BYTES_MAX:
            raise ConfigurationError(
                f"logs.{field}: at most {LOGGED_BODY_BYTES_MAX}, so that both bodies fit into a record of 1 MiB"
            )


def _check_url(what: str, url: str | None, schemes: tuple[str, ...], *, drivers: bool = False) -> None:
    if url is None:
        return
    known = ", ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.partition("+")[0] if drivers else parts.scheme
        _ = None if "," in parts.netloc else parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what}: {mask_url(url)!r} is not a URL ({error})") from None
    if scheme not in schemes or "://" not in url:
        raise ConfigurationError(f"{what}: unknown scheme in {mask_url(url)!r}; known are {known}")


def _check_provider(name: str, provider: ProviderSettings) -> None:
    where = f"providers.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: a provider's name is lower-case letters, digits, '.', '_' and '-'")
    if not _is_base_url(provider.base_url):
        raise ConfigurationError(
            f"{where}.base_url: write it like https://api.openai.com/v1, without user, query or fragment, "
            f"not {mask_url(provider.base_url)!r}"
        )
    if provider.api_key_env and provider.api_key_file:
        raise ConfigurationError(f"{where}: give api_key_env or api_key_file, not both")
    _check_egress(where, provider)
    if provider.azure_api_version is not None and (
        provider.dialect != "openai" or not AZURE_VERSION.fullmatch(provider.azure_api_version)
    ):
        raise ConfigurationError(
            f"{where}.azure_api_version: is for providers of the openai dialect; write it like 2025-04-01-preview"
        )
    for field in provider.__struct_fields__:
        _positive(f"{where}.{field}", getattr(provider, field))
    _check_amount(f"{where}.reported_cost_max_usd", provider.reported_cost_max_usd)
    _check_multiplier(f"{where}.price_multiplier", provider.price_multiplier)


def _check_egress(where: str, provider: ProviderSettings) -> None:
    for field in ("proxy", "proxy_env", "tls_ca_file"):
        if getattr(provider, field) and not provider.base_url.startswith("https://"):
            raise ConfigurationError(f"{where}.{field}: is for https only; {where}.base_url is plain http")
    if provider.proxy is not None and provider.proxy_env is not None:
        raise ConfigurationError(f"{where}: give proxy or proxy_env, not both")
    if provider.proxy is not None and "@" in provider.proxy:
        raise ConfigurationError(
            f"{where}.proxy: a password does not belong in the file; put the URL into a variable and name that in "
            "proxy_env"
        )
    if provider.proxy and (not _is_base_url(provider.proxy) or not re.fullmatch(r"http://[^/]*/?", provider.proxy)):
        raise ConfigurationError(f"{where}.proxy: write it like http://proxy.internal:3128, not {provider.proxy!r}")
    if provider.tls_ca_file is not None:
        try:
            ssl.create_default_context(cafile=provider.tls_ca_file)
        except OSError as error:  # an SSLError is one
            why = "it holds no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigurationError(f"{where}.tls_ca_file: cannot use {provider.tls_ca_file}: {why}") from None


def _check_amount(where: str, amount: str) -> None:
    try:
        nano_from_usd(amount, what=where)
    except MoneyError as error:
        raise ConfigurationError(str(error)) from None


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    extra = parts.query or parts.fragment or "@" in parts.netloc
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not extra


def _check_model(name: str, model: ModelSettings, settings: Settings) -> None:
    where = f"models.{name}"
    if model.provider is not None and model.provider not in settings.providers:
        known = ", ".join(sorted(settings.providers)) or "none"
        raise ConfigurationError(f"{where}.provider: there is no provider {model.provider!r}; known: {known}")
    for field in ("context_window", "max_output_tokens", *MEDIA_BOUNDS):
        _positive(f"{where}.{field}", getattr(model, field))
    _check_rates(where, model, whole=False)
    if model.prices and any(getattr(model, field) is not None for field in AmountSettings.__struct_fields__):
        raise ConfigurationError(f"{where}: give prices in its own table or as [[{where}.prices]], not both")
    for number, price in enumerate(model.prices):
        _check_price(f"{where}.prices[{number}]", price)
    _check_overlaps(where, model.prices)
    for number, its in enumerate(model.image_prices):
        _check_amount(f"{where}.image_prices[{number}].usd", its.usd)
    told = [(its.size, its.quality) for its in model.image_prices]
    if len(set(told)) < len(told):
        raise ConfigurationError(f"{where}.image_prices: a size and quality stand there twice")


def _check_deployments(where: str, model: ModelSettings, settings: Settings) -> None:
    if not model.deployments:
        return
    if model.provider is not None or model.upstream_model is not None:
        raise ConfigurationError(f"{where}: give deployments, or provider and upstream_model, not both")
    for number, deployment in enumerate(model.deployments):
        _check_deployment(f"{where}.deployments[{number}]", deployment, settings)
    if not any(deployment.weight for deployment in model.deployments):
        raise ConfigurationError(f"{where}.deployments: all weights are zero, so nothing would be served")
    parts = [(d.model, d.provider, d.upstream_model) for d in model.deployments]
    if len(set(parts)) < len(parts):
        raise ConfigurationError(f"{where}.deployments: one stands there twice; give it a larger weight instead")


def _check_deployment(where: str, deployment: DeploymentSettings, settings: Settings) -> None:
    known = ", ".join(sorted(settings.providers)) or "none"
    if (deployment.model is None) == (deployment.provider is None):
        raise ConfigurationError(f"{where}: give a provider (with upstream_model), or a model, and not both")
    if deployment.provider is not None and deployment.provider not in settings.providers:
        raise ConfigurationError(f"{where}.provider: there is no provider {deployment.provider!r}; known: {known}")
    if deployment.model is not None:
        its = settings.models.get(deployment.model)
        if its is None or its.provider is None:
            raise ConfigurationError(
                f"{where}.model: there is no [models.{deployment.model!r}] that names its provider; write one"
            )
        if deployment.upstream_model is not None:
            raise ConfigurationError(f"{where}.upstream_model: belongs to [models.{deployment.model!r}]")
    if deployment.weight < 0:
        raise ConfigurationError(f"{where}.weight: {deployment.weight} must be zero or more")
    for field in ("requests_per_minute", "tokens_per_minute", "concurrency"):
        _positive(f"{where}.{field}", getattr(deployment, field))


def _check_routing(settings: Settings) -> None:
    routing = settings.routing
    if not 0 <= routing.retry_ratio <= 1:
        raise ConfigurationError(f"routing.retry_ratio: {routing.retry_ratio} must be from 0 to 1")
    if routing.retry_burst < 0:
        raise ConfigurationError(f"routing.retry_burst: {routing.retry_burst} must be zero or more")
    if routing.cooldown_failure_ratio > 1:
        raise ConfigurationError(f"routing.cooldown_failure_ratio: {routing.cooldown_failure_ratio} is above 1")
    for name in settings.models:
        _check_cycle((name,), settings)


def _check_cycle(path: tuple[str, ...], settings: Settings) -> None:
    """Follow the fallbacks of the last name of a path that has no cycle yet."""
    model = settings.models.get(path[-1])
    for name in () if model is None else model.fallbacks:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise ConfigurationError(f"models.{path[-1]}.fallbacks: {circle} goes round in a circle")
        _check_cycle((*path, name), settings)


def _check_price(where: str, price: PriceSettings) -> None:
    if price.from_ is not None and price.until is not None and price.from_ >= price.until:
        raise ConfigurationError(f"{where}: its 'from' must be before its 'until'")
    if all(getattr(price, field) is None for field in AmountSettings.__struct_fields__):
        raise ConfigurationError(f"{where}: has no price; give input_usd and output_usd, or what they do not cover")
    _check_rates(where, price, whole=bool(price.tiers or price.service_tiers))
    _check_tiers(where, price.tiers)
    for name, served in price.service_tiers.items():
        _check_rates(f"{where}.service_tiers.{name}", served, whole=True)
        _check_tiers(f"{where}.service_tiers.{name}", served.tiers)


def _check_rates(where: str, rates: RateSettings, *, whole: bool) -> None:
    """`whole`: it must have both base prices. One without the other is always wrong."""
    for field in rates.__struct_fields__:
        value = getattr(rates, field)
        if field.endswith("_usd") and value is not None:
            _check_amount(f"{where}.{field}", value)
    if (rates.input_usd is None) != (rates.output_usd is None):
        raise ConfigurationError(f"{where}: give both input_usd and output_usd, or neither")
    if whole and rates.input_usd is None:
        raise ConfigurationError(f"{where}: needs input_usd and output_usd")


def _check_tiers(where: str, tiers: tuple[TierSettings, ...]) -> None:
    for number, tier in enumerate(tiers):
        _check_rates(f"{where}.tiers[{number}]", tier, whole=True)
    starts = [tier.above_tokens for tier in tiers]
    if any(start < 0 for start in starts) or any(later <= earlier for earlier, later in pairwise(starts)):
        raise ConfigurationError(f"{where}.tiers: above_tokens must be zero or more, and grow from tier to tier")


def _check_overlaps(where: str, prices: tuple[PriceSettings, ...]) -> None:
    """Every instant has at most one entry."""
    ever, never = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    spans = sorted((price.from_ or ever, price.until or never, number) for number, price in enumerate(prices))
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            first, second = sorted((one, other))
            raise ConfigurationError(
                f"{where}.prices[{first}] ({_span(prices[first])}) and {where}.prices[{second}] "
                f"({_span(prices[second])}) overlap: give one of them a 'from' or 'until' so that only one counts"
            )


def _span(price: PriceSettings) -> str:
    from_, until = (None if t is None else f"{t:%Y-%m-%dT%H:%MZ}" for t in (price.from_, price.until))
    return " ".join([f"from {from_}"] * bool(from_) + [f"until {until}"] * bool(until)) or "always"


def _check_multiplier(where: str, multiplier: str) -> None:
    try:
        value = Decimal(multiplier)
    except InvalidOperation:
        value = Decimal("NaN")
    if not MULTIPLIER.fullmatch(multiplier) or not 0 < value <= MULTIPLIER_MAX:
        raise ConfigurationError(
            f'{where}: {multiplier!r} is not a multiplier; write it like "0.85", above 0 and at most {MULTIPLIER_MAX}'
        )


def provider_key(name: str, provider: ProviderSettings, environ: Mapping[str, str] | None = None) -> str | None:
    """The provider's API key, or None if none is configured. Raises ConfigurationError if it should exist."""
    environ = os.environ if environ is None else environ
    if provider.api_key_file:
        key = read_secret(Path(provider.api_key_file), what=f"providers.{name}.api_key_file")
    elif provider.api_key_env:
        key = environ.get(provider.api_key_env, "").strip()
        if not key:
            raise ConfigurationError(
                f"providers.{name}.api_key_env: {provider.api_key_env} is not set; put the provider's API key there"
            )
    else:
        return None
    if not _printable(key):
        raise ConfigurationError(f"providers.{name}: its API key has spaces or characters that no header can carry")
    return key


def mask_url(url: str) -> str:
    """The URL without its password, wherever it stands and however badly it is escaped."""
    url = re.sub(r"(?<=://)([^:@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", r"\1***", url)


def shown(settings: Settings) -> dict[str, Any]:
    """The whole tree as plain values, with secrets masked."""
    tree: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    tree["secrets"] = {name: None if value is None else "***" for name, value in tree["secrets"].items()}
    if tree["store"]["redis_password"]:
        tree["store"]["redis_password"] = "***"  # noqa: S105 - a mask
    for section, field in (("store", "redis_url"), ("database", "url"), ("logs", "url")):
        if tree[section][field]:
            tree[section][field] = mask_url(tree[section][field])
    for provider in tree["providers"].values():
        provider["base_url"] = mask_url(provider["base_url"])
    return tree
