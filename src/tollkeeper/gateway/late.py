"""Charges whose truth comes late: a batch and an answer in the background are over long after they were charged.

Their bound was charged as *presumed*. What is needed to replace it is kept with the object itself (`notes`), so that
any gateway can do it: the attempt, and the counters that it was charged to. It knows no wire format.
"""

import msgspec

from tollkeeper.domain.charges import Charge, Known
from tollkeeper.domain.entries import dispatch_of
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.settle import Attempt


class ChargeNotes(msgspec.Struct, frozen=True):
    """What an object was charged with. `known`: the counters. `settled`: the truth has replaced it."""

    attempt: str
    known: str
    models: tuple[str, ...]
    settled: bool = False


class Truth(msgspec.Struct, frozen=True):
    """What an attempt truly cost, and the object's notes from then on."""

    attempt: str
    charge: Charge
    notes: str


_decode = msgspec.json.Decoder(ChargeNotes).decode


def notes_of(attempt: Attempt, models: tuple[str, ...]) -> str:
    """What is remembered of a new object."""
    demand = attempt.grant.demand
    known = msgspec.json.encode(Known(dispatch_of(attempt.grant).counters)).decode()
    return msgspec.json.encode(ChargeNotes(demand.attempt, known, models)).decode()


def read_notes(notes: str) -> ChargeNotes | None:
    """The notes of an object that was charged so; None if it was not."""
    return _decode(notes) if notes else None


def truth(notes: ChargeNotes, cost_nano: int, usage: Usage) -> Truth:
    """The correction that a usage makes."""
    tokens = (usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    charge = Charge(0, cost_nano, 1, *tokens, notes.known)
    settled = msgspec.structs.replace(notes, settled=True)
    return Truth(notes.attempt, charge, msgspec.json.encode(settled).decode())
