"""Stored answers that were charged before they were over: made in the background, or cut off from the gateway.

What the provider shows later tells their usage, as any answer does. It does no IO.
"""

from typing import Final

import msgspec

from tollkeeper.domain.usage import NO_USAGE
from tollkeeper.gateway.catalog import ModelInfo
from tollkeeper.gateway.charge import charge_of, with_parts, with_tokens
from tollkeeper.gateway.dialects import ENDPOINTS, read_answer
from tollkeeper.gateway.late import ChargeNotes, Truth, truth

RESPONSES: Final = ENDPOINTS["/v1/responses"]
RUNNING: Final = ("queued", "in_progress")
FAILED: Final = "failed"
NOTE: Final = "the answer is over, and the provider told what it used"


class _Shown(msgspec.Struct):
    status: str = ""


_decode = msgspec.json.Decoder(_Shown).decode


def status_of(seen: bytes) -> str:
    """The status of an answer as the provider shows it; empty if it shows none."""
    try:
        return _decode(seen).status
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def truth_of(notes: ChargeNotes, seen: bytes, info: ModelInfo) -> Truth | None:
    """What an answer that is over truly cost.

    One that failed and tells no usage cost nothing. None if nothing is to be changed: it is not over, was settled,
    has no price here, or was cancelled and does not tell what it had used by then.
    """
    status = status_of(seen)
    if not status or status in RUNNING or notes.settled:
        return None
    answer = read_answer(RESPONSES, seen)
    if answer.usage is None:
        return truth(notes, 0, NO_USAGE) if status == FAILED else None
    charge = charge_of(info, answer.usage, answer.cost)
    if charge.source is None:
        return None
    # Other models' prices are not at hand here; such parts are charged as the model itself.
    charge = with_parts(charge, info, answer.parts, lambda model: None)
    return truth(notes, charge.cost_nano, with_tokens(answer.usage, answer.parts))
