"""The log record of a request. Version 1 of its schema; fields are only ever added."""

from typing import Final

import msgspec

SCHEMA_VERSION: Final = 1


class RequestRecord(msgspec.Struct, kw_only=True, omit_defaults=False, gc=False):
    """One admitted request. Times are Unix µs or durations in µs, money in nano-dollars.

    `presumed`: the true cost could not be known and the hold was charged. `tokens_*` are as in `Usage`.
    `replaced`: why this record stands in, cut short, for one that could not be encoded or was too large.
    `shadow_refusals` are limits in shadow (`scope/kind`) that would have refused.
    `producer` and `number` are given when the record enters the log buffer; a producer's numbers tile 1..N.
    """

    v: int = SCHEMA_VERSION
    producer: str = ""
    number: int = 0
    request_id: str
    client_request_id: str | None = None
    time_us: int
    key_id: str
    key_name: str
    team_id: str | None = None
    organisation_id: str
    endpoint: str
    dialect: str
    provider: str
    model: str
    upstream_model: str | None = None
    streaming: bool = False
    status: int
    error: str | None = None
    client_disconnected: bool = False
    admission_us: int = 0
    first_byte_us: int | None = None
    total_us: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cached: int = 0
    tokens_cache_write: int = 0
    tokens_reasoning: int = 0
    cost_nano: int = 0
    hold_nano: int = 0
    presumed: bool = False
    price_version: str | None = None
    upstream_request_id: str | None = None
    user: str | None = None
    shadow_refusals: tuple[str, ...] = ()
    replaced: str | None = None
