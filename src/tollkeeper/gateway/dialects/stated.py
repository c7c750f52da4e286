"""What a provider says an answer costs, as the text of a JSON number in USD. It decides nothing about belief."""

from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from tollkeeper.gateway.dialects.base import ABSENT

TICKS_EXPONENT: Final = -10
"""A tick of xAI's `cost_in_usd_ticks` is 1e-10 USD."""


class _Total(msgspec.Struct):
    """Perplexity's `cost`."""

    total_cost: msgspec.Raw = ABSENT


class _Details(msgspec.Struct):
    """OpenRouter's `cost_details`."""

    upstream_inference_cost: msgspec.Raw = ABSENT


_decode_total = msgspec.json.Decoder(_Total).decode
_decode_details = msgspec.json.Decoder(_Details).decode


def stated_cost(cost: msgspec.Raw, ticks: msgspec.Raw, is_byok: msgspec.Raw, details: msgspec.Raw) -> bytes:
    """From the fields of `usage`: OpenRouter's `cost`, Perplexity's `cost.total_cost`, xAI's ticks. Never raises.

    OpenRouter's is its fee alone where a key of one's own was used; what the provider charges stands beside it.
    """
    if not len(cost):
        text = bytes(ticks)
        return b"%se%d" % (text, TICKS_EXPONENT) if text.isdigit() else b""
    text = bytes(cost)
    try:
        if text.startswith(b"{"):
            return bytes(_decode_total(text).total_cost)
        if bytes(is_byok) == b"true":
            return _sum(text, bytes(_decode_details(details).upstream_inference_cost))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    return text


def _sum(fee: bytes, upstream: bytes) -> bytes:
    """Two JSON numbers together; empty, which is no cost, if one of them is none."""
    try:
        return str(Decimal(fee.decode("ascii")) + Decimal(upstream.decode("ascii"))).lower().encode()
    except (InvalidOperation, UnicodeDecodeError):
        return b""
