"""The log record of a request: version 1 of its schema. Fields are only ever added; a change of meaning is a new
version.

This struct is the only source of the schema: docs/log-schema.md and docs/log-record.schema.json are written from it
(`make docs`), the columns of Parquet files and of the table `logs` follow from its types. Times are Unix µs,
durations are µs, money is nano-dollars (1e-9 USD).
"""

from typing import Final

import msgspec

SCHEMA_VERSION: Final = 1


class AttemptRecord(msgspec.Struct, kw_only=True, omit_defaults=False, gc=False):
    """One attempt of a request at a provider, with its own hold."""

    attempt: str
    """The name of its hold, `<request_id>.<n>`, by which corrections find it."""
    provider: str
    """The provider as configured."""
    model: str
    """The name it was admitted under: that of the request, or of a fallback."""
    upstream_model: str
    """The provider's name for it."""
    result: str
    """`answered`, `rate_limited`, `server_error`, `client_error`, `refused_us`, `upstream_…` or `unfinished`."""
    status: int | None = None
    """The provider's; null if there was none."""
    started_us: int = 0
    """After the request's arrival."""
    first_byte_us: int | None = None
    """When the head of its answer came, after the request's arrival."""
    ended_us: int = 0
    """After the request's arrival."""
    tokens_input: int = 0
    """Input tokens that it was charged for."""
    tokens_output: int = 0
    """The same of output."""
    cost_nano: int = 0
    """What it was charged."""
    hold_nano: int = 0
    """The upper bound of its cost that was held."""
    presumed: bool = False
    """Whether its cost could not be known, so that the hold was charged."""
    upstream_request_id: str | None = None
    """The provider's id of the request."""


class RequestRecord(msgspec.Struct, kw_only=True, omit_defaults=False, gc=False):
    """One request of a known key: every admitted one, and those that were not if `logs.refusals` is set."""

    schema_version: int = SCHEMA_VERSION
    """The version of this schema that the record was written with."""
    producer: str = ""
    """The run of the gateway process that wrote the record."""
    number: int = 0
    """The record's number of its producer; a producer's numbers tile 1..N, so a gap cannot hide."""
    request_id: str
    """Made by the gateway; the answer's `x-request-id`."""
    client_request_id: str | None = None
    """The client's own `x-request-id`."""
    time_us: int
    """When the request arrived."""
    key_id: str
    """The key that it came with."""
    key_name: str
    """That key's name at the time."""
    team_id: str | None = None
    """The key's team."""
    organisation_id: str
    """The key's organisation, which is one of its own if none was named."""
    endpoint: str
    """The path, like `/v1/chat/completions`."""
    dialect: str
    """`openai` or `anthropic`: the format of request and answer."""
    provider: str
    """The provider as configured; empty if the request came to none."""
    model: str
    """The model as it is known here; empty if the request did not say."""
    upstream_model: str | None = None
    """The provider's name for it."""
    streaming: bool = False
    """Whether the answer was asked for as a stream."""
    admitted: bool = True
    """Whether limits and budgets let it pass; if not, it cost nothing."""
    refused_by: str | None = None
    """The limit that refused it, as `scope/kind`, like `team/budget`."""
    shadow_refusals: tuple[str, ...] = ()
    """Limits in shadow that would have refused it, as `scope/kind`."""
    status: int
    """The answer's HTTP status; 499 if the client hung up before there was one."""
    error: str | None = None
    """The gateway's word for what went wrong, like `rate_limit_exceeded` or `upstream_500`."""
    client_disconnected: bool = False
    """Whether the client hung up before the answer's end."""
    queue_us: int | None = None
    """From arrival until it was dispatched to the provider: body, authentication, admission."""
    admission_us: int = 0
    """The part of it spent waiting for the decision over limits and budgets."""
    first_byte_us: int | None = None
    """From arrival to the first byte of the answer's body."""
    total_us: int = 0
    """From arrival to the end."""
    attempts: int = 0
    """Times it was dispatched to a provider; above 1 there were retries."""
    tokens_input: int = 0
    """Input tokens, cached and cache-writing ones included."""
    tokens_output: int = 0
    """Output tokens, reasoning included."""
    tokens_cached: int = 0
    """Input tokens read from the provider's cache."""
    tokens_cache_write: int = 0
    """Input tokens written to the provider's cache."""
    tokens_reasoning: int = 0
    """Output tokens of reasoning."""
    tokens_cache_write_1h: int = 0
    """Of those written to the cache, the ones kept for an hour."""
    tokens_input_audio: int = 0
    """Input tokens of audio, cached ones included."""
    tokens_cached_audio: int = 0
    """Of those, the ones read from the cache."""
    tokens_output_audio: int = 0
    """Output tokens of audio."""
    tokens_input_image: int = 0
    """Input tokens of images as far as the provider tells them apart, cached ones included."""
    tokens_cached_image: int = 0
    """Of those, the ones read from the cache."""
    tokens_output_image: int | None = None
    """Output tokens of images; null where the provider does not tell them apart."""
    tokens_citation: int = 0
    """Output tokens of citations, which only Perplexity reports."""
    web_searches: int = 0
    """Web searches that the provider ran."""
    file_searches: int = 0
    """Searches in files stored at the provider."""
    images: int = 0
    """Images made."""
    audio_ms: int = 0
    """Milliseconds of audio that was transcribed or translated."""
    characters: int = 0
    """Characters that were spoken."""
    searches: int = 0
    """A reranker's searches."""
    service_tier: str | None = None
    """What the provider says the request was served as, if not its standard: `priority`, `flex`, `fast`, `batch`."""
    cost_nano: int = 0
    """What was charged for all attempts together, in nano-dollars."""
    hold_nano: int = 0
    """The upper bound of the cost that was held, the sum over all attempts, in nano-dollars."""
    presumed: bool = False
    """Whether the true cost of an attempt could not be known, so that its hold was charged."""
    price_version: str | None = None
    """The price that counts for it: the price data's version and model or the entry of the configuration, the service
    tier, and above how many input tokens."""
    cost_source: str | None = None
    """Where the charge comes from: `price`, `provider` (its own word of the cost), or `hold` where it is presumed."""
    upstream_request_id: str | None = None
    """The provider's id of the request."""
    user: str | None = None
    """The client's end user: the header `x-tollkeeper-user`, or `user` (OpenAI), `metadata.user_id` (Anthropic)."""
    metadata: dict[str, str] = {}
    """The request's `metadata`, and what the header `x-tollkeeper-metadata` (a JSON object) adds."""
    tags: tuple[str, ...] = ()
    """The header `x-tollkeeper-tags`, split at commas."""
    attempt_list: tuple[AttemptRecord, ...] = ()
    """Every attempt with its provider, model, result, times and cost, if there were several; a single one is this
    record."""
    request_body: str | None = None
    """The request's body as JSON text, redacted, if the key's `log_bodies` or the setting `logs.bodies` says so."""
    response_body: str | None = None
    """The answer's body, redacted; a stream is put together as the answer it would have been without streaming."""
    bodies_cut: bool = False
    """Whether a body is longer than what is kept of it."""
    bodies_omitted: str | None = None
    """Why bodies that should be here are not, or are only in part."""
    replaced: str | None = None
    """Why this record stands in, cut short, for one that could not be encoded or was too large."""
