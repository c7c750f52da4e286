"""Idempotency keys of the admin API, as Stripe has them: what becomes of a request that brings one.

The same key with the same request gets the first answer again, for a day; with another request it is refused. Of two
at once one runs. A request whose answer was lost (the gateway died, the database fell silent at the commit) is not
run again if the audit log has its change: it is told what was done. Nothing is stored here.
"""

import hashlib
from typing import Final

import msgspec

from tollkeeper.domain.errors import InvalidInput

KEY_CHARACTERS_MAX: Final = 255
REMEMBERED_S: Final = 86_400
LEASE_S: Final = 120
"""Longer than any write takes: after it a request without an answer counts as lost."""
KEYS_MAX: Final = 100_000
"""Keys that are remembered; above it new ones are refused until some are a day old."""
ANSWER_BYTES_MAX: Final = 256 * 2**10
"""An answer above it is not kept; a repetition is told that it was lost."""


class Fresh(msgspec.Struct, frozen=True):
    """It may run. `digest` is the key's name, for the audit log; `lease_until_us` is whose turn it is."""

    digest: bytes
    lease_until_us: int


class Answered(msgspec.Struct, frozen=True):
    """It ran; this was the answer."""

    status: int
    body: bytes


class InUse(msgspec.Struct, frozen=True):
    """It runs now."""


class Reused(msgspec.Struct, frozen=True):
    """The key belongs to another request."""


class AnswerLost(msgspec.Struct, frozen=True):
    """It ran; nobody knows the answer. The audit event tells what was done."""

    event_id: str
    action: str
    object_id: str


class TooMany(msgspec.Struct, frozen=True):
    """No more keys are remembered at the moment."""


Begun = Fresh | Answered | InUse | Reused | AnswerLost | TooMany


def checked_key(key: str) -> str:
    """Raises InvalidInput for what is no idempotency key."""
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
        raise InvalidInput(f"Idempotency-Key: give 1 to {KEY_CHARACTERS_MAX} printable ASCII characters")
    return key


def fingerprint(method: str, target: bytes, body: bytes) -> bytes:
    """The same for the same request alone."""
    parts = (method.encode(), target, body)
    return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()
