"""The vocabulary of the wire formats: which endpoints there are, and what a request's body says.

It knows the shape of a call, not how any format spells it: `request.py` reads and rewrites bodies, `answer.py`
reads usage, `stream.py` meters streams, `fault.py` and `headers.py` write what clients get from us. The package
re-exports all of them.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tollkeeper.domain.bound import Content

Dialect = Literal["openai", "anthropic"]
Name = Literal["chat", "completions", "embeddings", "responses", "messages"]


class Endpoint(msgspec.Struct, frozen=True):
    """One path of the data plane. `streams`: whether it can answer with server-sent events."""

    path: str
    dialect: Dialect
    name: Name
    streams: bool


ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "openai", "chat", True),
        Endpoint("/v1/completions", "openai", "completions", True),
        Endpoint("/v1/embeddings", "openai", "embeddings", False),
        Endpoint("/v1/responses", "openai", "responses", True),
        Endpoint("/v1/messages", "anthropic", "messages", True),
    )
}
"""By path, as clients write it."""


class Call(msgspec.Struct, frozen=True):
    """A request's body as far as the gateway needs it.

    `model` is the name the client wrote. `max_output` is the stated limit of output tokens of one choice, the
    largest if several fields state one, None if none does. `choices` counts the answers that are paid for:
    n or best_of, times the prompts. `wants_usage_chunk`: the client itself asked for `stream_options.include_usage`.
    `content` is what the cost bound is made of. `fields` is the body's top level, each value's bytes untouched.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    max_output: int | None
    choices: int
    user: str | None
    wants_usage_chunk: bool
    content: Content
    fields: dict[str, msgspec.Raw]


ABSENT: Final = msgspec.Raw(b"")
"""Default of raw fields: `Raw | None` would take nothing but null."""
TIER_CHARS_MAX: Final = 32
"""Of a service tier's name."""
