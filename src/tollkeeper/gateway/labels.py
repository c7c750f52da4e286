"""What clients say about their own requests: end user, metadata, tags. Bounded here, believed nowhere.

The end user also chooses windows that are per user; metadata and tags are only recorded.
"""

from hashlib import blake2b
from typing import Any, Final

import msgspec

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.dialects import Call

USER_HEADER: Final = b"x-tollkeeper-user"
USER_CHARS_MAX: Final = 256
METADATA_HEADER: Final = b"x-tollkeeper-metadata"
METADATA_PAIRS_MAX: Final = 16
METADATA_KEY_CHARS_MAX: Final = 64
METADATA_VALUE_CHARS_MAX: Final = 512
"""The three are OpenAI's own bounds of `metadata`. Longer texts are cut, further pairs left out."""
METADATA_BYTES_MAX: Final = 16 * 2**10
"""More JSON than any metadata within the bounds needs is not read at all."""
TAGS_HEADER: Final = b"x-tollkeeper-tags"
TAGS_MAX: Final = 16
TAG_CHARS_MAX: Final = 64

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def end_user(client: Client, call: Call) -> str | None:
    """The caller's end user: from the header if there is one, else from the body, as each dialect names it."""
    header = client.headers.get(USER_HEADER)
    if not header and call.user is None:
        return None
    user = _header_text(header) if header else call.user
    if user is not None and len(user) >= USER_CHARS_MAX:
        # Bounded, and still not to be mixed up with another that begins alike, nor with one that is written like
        # this: only what was cut is as long as that.
        digest = blake2b(user.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        user = f"{user[: USER_CHARS_MAX - len(digest) - 1]}#{digest}"
    return user


def _header_text(raw: bytes) -> str:
    """UTF-8, or else Latin-1, as headers once were: never a replacement, which would make one user of two."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def metadata_of(client: Client, call: Call | None) -> dict[str, str]:
    """The pairs of the body's `metadata`, then those of the header, which win. What is no object counts as absent."""
    header = client.header(METADATA_HEADER)
    field = None if call is None else call.fields.get("metadata")
    if field is None and not header:
        return {}
    found: dict[str, str] = {}
    for raw in (header, field):
        for name, value in _object(raw).items():
            if len(found) == METADATA_PAIRS_MAX:
                break
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            found.setdefault(name[:METADATA_KEY_CHARS_MAX], text[:METADATA_VALUE_CHARS_MAX])
    return found


def _object(raw: bytes | msgspec.Raw | None) -> dict[str, Any]:
    if not raw or len(raw) > METADATA_BYTES_MAX:
        return {}
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def tags_of(client: Client) -> tuple[str, ...]:
    """The header's tags, without repetition."""
    header = client.header(TAGS_HEADER)
    if not header:
        return ()
    tags = (part.strip()[:TAG_CHARS_MAX] for part in header.decode("utf-8", "replace").split(",", TAGS_MAX))
    return tuple(dict.fromkeys(tag for tag in tags if tag))[:TAGS_MAX]
