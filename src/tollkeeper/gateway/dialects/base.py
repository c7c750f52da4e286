"""The vocabulary of the wire formats: which endpoints there are, and what a request's body says.

It knows the shape of a call, not how any format spells it: `request.py` reads and rewrites bodies, `answer.py`
reads usage, `stream.py` meters streams, `fault.py` and `headers.py` write what clients get from us. The package
re-exports all of them.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from tollkeeper.domain.bound import Content
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.form import Form

Dialect = Literal["openai", "anthropic"]
Name = Literal[
    "chat",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "count_tokens",
    "moderations",
    "rerank",
    "speech",
    "transcriptions",
    "translations",
    "images",
    "image_edits",
    "image_variations",
    "response_get",
    "response_delete",
    "response_cancel",
    "response_items",
    "file_create",
    "file_list",
    "file_get",
    "file_delete",
    "file_content",
    "batch_create",
    "batch_list",
    "batch_get",
    "batch_cancel",
]


class Endpoint(msgspec.Struct, frozen=True):
    """One path of the data plane.

    `streams`: whether it can answer with server-sent events. `form`: requests are multipart forms. `fees`: what it
    can be sold by instead of tokens, as in `FEES`. `free`: providers charge nothing for it. `media`: answers need not
    be JSON. `once`: what may have been done is not asked for again.
    """

    path: str
    dialect: Dialect
    name: Name
    streams: bool = False
    form: bool = False
    fees: tuple[str, ...] = ()
    free: bool = False
    media: bool = False
    once: bool = False

    @property
    def sells_media(self) -> bool:
        """Whether it is read, bounded and metered by the rules of `sold.py` rather than as a conversation."""
        return bool(self.fees) or self.free


IMAGE_FEES: Final = ("image", "request")
AUDIO_FEES: Final = ("audio_hour", "request")
SPEECH_FEES: Final = ("million_characters", "request")
ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "openai", "chat", True),
        Endpoint("/v1/completions", "openai", "completions", True),
        Endpoint("/v1/embeddings", "openai", "embeddings"),
        Endpoint("/v1/responses", "openai", "responses", True),
        Endpoint("/v1/messages", "anthropic", "messages", True),
        Endpoint("/v1/messages/count_tokens", "anthropic", "count_tokens", free=True),
        Endpoint("/v1/moderations", "openai", "moderations", fees=("request",)),
        Endpoint("/v1/rerank", "openai", "rerank", fees=("search", "request")),
        Endpoint("/v1/images/generations", "openai", "images", True, fees=IMAGE_FEES),
        Endpoint("/v1/images/edits", "openai", "image_edits", True, form=True, fees=IMAGE_FEES),
        Endpoint("/v1/images/variations", "openai", "image_variations", form=True, fees=IMAGE_FEES),
        Endpoint("/v1/audio/speech", "openai", "speech", True, fees=SPEECH_FEES, media=True),
        Endpoint(
            "/v1/audio/transcriptions", "openai", "transcriptions", True, form=True, fees=AUDIO_FEES, media=True
        ),
        Endpoint("/v1/audio/translations", "openai", "translations", form=True, fees=AUDIO_FEES, media=True),
    )
}
"""By path, as clients write it."""


class Sold(msgspec.Struct, frozen=True, kw_only=True):
    """What a request buys that is not tokens.

    `images` to be made, each with up to `partial_images` previews, of a `size` and `quality` (empty: not told);
    `characters` to be spoken; `searches` of a reranker at most. `listens`: it has a recording, of `audio_ms` if that
    is certain. `counted`: what is charged where the answer tells nothing, because the request says it exactly; None:
    only the answer can tell.
    `batch_nano`: it makes a batch whose lines can cost so much together.
    """

    images: int = 0
    partial_images: int = 0
    size: str = ""
    quality: str = ""
    characters: int = 0
    searches: int = 0
    listens: bool = False
    audio_ms: int | None = None
    counted: Usage | None = None
    batch_nano: int | None = None


class Call(msgspec.Struct, frozen=True):
    """A request's body as far as the gateway needs it.

    `model` is the name the client wrote. `max_output` is the stated limit of output tokens of one choice, the
    largest if several fields state one, None if none does. `choices` counts the answers that are paid for:
    n or best_of, times the prompts. `wants_usage_chunk`: the client itself asked for `stream_options.include_usage`.
    `content` is what the cost bound is made of. `fields` is the body's top level, each value's bytes untouched.
    `sold` is what it buys beside tokens. `form` is the body of an endpoint that takes forms; `fields` then has their
    texts. `path` with its query is where it goes, if that is not the endpoint's own.
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
    sold: Sold | None = None
    form: Form | None = None
    method: str = "POST"
    path: str = ""


TOKENS_MAX: Final = 2**40
"""A larger number is garbage."""
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
"""A count in a report."""
ABSENT: Final = msgspec.Raw(b"")
"""Default of raw fields: `Raw | None` would take nothing but null."""
HOME: Final = ("global", "not_available")
"""Anthropic's `inference_geo` at standard prices; any other is a service tier here."""
TIER_CHARS_MAX: Final = 32
"""Of a service tier's name."""
