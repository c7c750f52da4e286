"""What answers that are not conversations say they used: images by counting them, audio by its length, searches.

Lengths are decimals on their way to milliseconds, never floats. What cannot be read counts as not told.
"""

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from math import ceil
from typing import Final

import msgspec

from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.gateway.dialects.base import ABSENT, TOKENS_MAX, Endpoint

AUDIO_MS_MAX: Final = 10**10
"""A longer recording (115 days) is garbage."""


class _Billed(msgspec.Struct):
    """Cohere's `meta.billed_units`."""

    search_units: int | float | None = None


class _Meta(msgspec.Struct):
    billed_units: _Billed | None = None


class _Envelope(msgspec.Struct):
    """The fields beside `usage`."""

    data: list[msgspec.Raw] | None = None
    duration: msgspec.Raw = ABSENT
    meta: _Meta | None = None


class _Duration(msgspec.Struct):
    """`usage` of a recording that is sold by its length."""

    type: str | None = None
    seconds: msgspec.Raw = ABSENT


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_duration = msgspec.json.Decoder(_Duration).decode
_decode_text = msgspec.json.Decoder().decode


def read_sold(endpoint: Endpoint, body: bytes, told: Usage | None, usage: msgspec.Raw) -> Usage | None:
    """The usage of an answer: what it told in tokens, and what is counted by other units. None: nothing of either."""
    if endpoint.free:
        return NO_USAGE
    try:
        read = _decode_envelope(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return told
    found = told or NO_USAGE
    if endpoint.name in ("images", "image_edits", "image_variations") and read.data is not None:
        found = msgspec.structs.replace(found, images=len(read.data))
    elif endpoint.name == "rerank" and read.meta is not None and read.meta.billed_units is not None:
        found = msgspec.structs.replace(found, searches=_units(read.meta.billed_units.search_units))
    elif endpoint.name in ("transcriptions", "translations"):
        audio_ms = duration_ms(usage) or milliseconds(read.duration)
        found = msgspec.structs.replace(found, audio_ms=audio_ms or found.audio_ms)
    return None if told is None and found == NO_USAGE else found


def _units(told: float | None) -> int:
    """Whole searches: Cohere's format has them as a number of any kind."""
    return 0 if told is None or not 0 <= told <= TOKENS_MAX else ceil(told)


def duration_ms(usage: msgspec.Raw) -> int | None:
    """The length that a `usage` of type `duration` tells, rounded up to milliseconds."""
    try:
        read = _decode_duration(usage) if len(usage) else _Duration()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return milliseconds(read.seconds) if read.type == "duration" else None


def milliseconds(raw: msgspec.Raw) -> int | None:
    """Seconds as JSON has them, as a number or in quotes."""
    text = bytes(raw).strip(b'"')
    try:
        ms = (Decimal(text.decode("ascii")) * 1000).to_integral_value(ROUND_CEILING)
    except (InvalidOperation, UnicodeDecodeError, OverflowError):
        return None
    return int(ms) if ms.is_finite() and 0 <= ms <= AUDIO_MS_MAX else None
