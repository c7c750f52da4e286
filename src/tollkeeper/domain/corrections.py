"""Corrections: what an operator may say of a charge that carries a rank, and of a scope's spend in a period.

A correction is an entry of its own: it replaces what an attempt was charged with, in the counters of its admission.
An adjustment is a correction of an attempt that never was, under an id of its own, so that it can be corrected too.
"""

from hashlib import blake2b
from typing import Final

import msgspec

from tollkeeper.domain.admission import CounterRef
from tollkeeper.domain.charges import QUARANTINED, Charge, Known
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import Period, span_at
from tollkeeper.domain.ports import ChargePlace, ListedCharge
from tollkeeper.domain.words import Words, instant

ADJUSTMENT: Final = "adj_"
STATUSES: Final = ("presumed", "settled", "corrected", "quarantined")
NOTE_CHARACTERS_MAX: Final = 500
TIME_DIGITS_MAX: Final = 17
WHY: Final = {
    "presumed": "it was sent to the provider and its true cost is not known: what was held for it is charged",
    "settled": "its true cost came late and is charged",
    "corrected": "an operator said what it cost",
    "quarantined": "an entry could not be placed: of a gateway that was closed, one that the store refused, or usage "
    "whose idempotency key stands for another amount (the note says why). Nothing is charged by it; if it is not "
    "charged otherwise, say what it cost",
    "adjusted": "an operator changed the spend of a scope by this amount",
}


def charge_words(listed: ListedCharge) -> Words:
    """A listed charge, as the admin API and the command line print it."""
    charge, known = listed.charge, listed.charge.what_is_known()
    status = "adjusted" if listed.attempt.startswith(ADJUSTMENT) else charge.status
    return {
        "attempt": listed.attempt.removeprefix(QUARANTINED),
        "status": status,
        "why": WHY[status],
        "note": known.note or None,
        "root": listed.root,
        "counters": [ref.name for ref in known.counters],
        "cost_usd": usd(charge.cost_nano),
        "cost_nano": charge.cost_nano,
        "presumed_usd": None if listed.presumed_nano is None else usd(listed.presumed_nano),
        "requests": charge.requests,
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "cached_tokens": charge.cached_tokens,
        "updated_at": instant(listed.updated_us),
    }


def cursor_of(listed: ListedCharge) -> str:
    """What a page that ends here names for the next one. A place and no id: a charge that changes meanwhile moves to
    the top, and what follows its old place is still known."""
    return f"{listed.updated_us}-{listed.attempt}"


def place_of(cursor: str) -> ChargePlace:
    """The place that a cursor names. Raises InvalidInput."""
    at, dash, attempt = cursor.partition("-")
    if not dash or not (at.isascii() and at.isdecimal()) or len(at) > TIME_DIGITS_MAX or "\0" in attempt:
        raise InvalidInput("starting_after: give the next_cursor of the page before, unchanged")
    return int(at), attempt


def corrected(listed: ListedCharge, cost_nano: int, tokens: tuple[int | None, int | None, int | None]) -> Charge:
    """What an attempt is to be charged with: input, output and cached tokens that are not named stay."""
    before = listed.charge
    had = (before.input_tokens, before.output_tokens, before.cached_tokens)
    kept = [old if new is None else new for old, new in zip(had, tokens, strict=True)]
    requests = 0 if listed.attempt.startswith(ADJUSTMENT) else 1
    return Charge(0, cost_nano, requests, kept[0], kept[1], kept[2], before.known)


def adjustment(cost_nano: int, counter: CounterRef) -> Charge:
    """A change of one counter's spend; may be negative."""
    known = msgspec.json.encode(Known((counter,))).decode()
    return Charge(0, cost_nano, 0, 0, 0, 0, known)


def adjustment_id(asked: str) -> str:
    """The id of an adjustment; the same for the same id that was asked for."""
    return ADJUSTMENT + blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def counter_of(scope_id: str, period: Period, at_us: int) -> CounterRef:
    """The counter of a scope in the period that holds `at_us`; the scope id of an organisation is empty."""
    span = span_at(period, at_us)
    name = f"{scope_id}:{span.label}" if scope_id else span.label
    return CounterRef(name, span.ends_us or 0, span.expires_us or 0)


def checked_note(note: str) -> str:
    """An operator's reason. Raises InvalidInput for none, or too long a one."""
    note = " ".join(note.split())
    if not note:
        raise InvalidInput("note: say why; it is kept with the correction")
    if len(note) > NOTE_CHARACTERS_MAX:
        raise InvalidInput(f"note: at most {NOTE_CHARACTERS_MAX} characters")
    return note
