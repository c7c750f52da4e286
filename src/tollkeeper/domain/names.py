"""Ids of callers as parts of store keys: any text, never mixed up with another.

It knows nothing of stores or of what the keys hold; it only promises that two different texts never become one part.
"""

import re
from hashlib import sha256
from typing import Final
from urllib.parse import quote

from tollkeeper.domain.errors import InvalidInput

PART_CHARS_MAX: Final = 200
"""A longer part is hashed, so that a 10 kB id does not become a 10 kB key."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~@+/=,-]{1,200}", re.ASCII).fullmatch
_SAFE: Final = "._~@+/=,-"
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:/-]{1,64}", re.ASCII).fullmatch


def key_part(text: str, *, what: str = "key_id") -> str:
    """An id as a part of a key: no braces, colons, spaces or control characters, at most 200 characters.

    Injective: what is not plain is percent-encoded (UTF-8, lone surrogates included); the empty text is `%`; what
    is too long is `#` and its SHA-256, and neither a bare `%` nor a `#` is ever written for another text. Raises
    InvalidInput for anything but a str.
    """
    if not isinstance(text, str):
        raise InvalidInput(
            f"{what} must be a str, not {type(text).__name__}: convert it yourself, so that 1 and '1' "
            "are the same on purpose only"
        )
    if _PLAIN(text):
        return text
    raw = text.encode("utf-8", "surrogatepass")
    part = quote(raw, safe=_SAFE) if len(raw) <= PART_CHARS_MAX else ""
    if not text:
        return "%"
    return part if 0 < len(part) <= PART_CHARS_MAX else f"#{sha256(raw).hexdigest()}"


def key_prefix(text: str) -> str:
    """A prefix as it is. Raises InvalidInput if it could be mistaken for another part of a key."""
    if not isinstance(text, str) or not _PREFIX(text):
        raise InvalidInput(f"prefix {text!r}: write 1 to 64 of the characters A-Z a-z 0-9 . _ : / -")
    return text
