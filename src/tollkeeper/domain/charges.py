"""Records of charges that carry a rank: what was presumed, came late, was corrected, or could not be placed.

A record leaves the store when the database has it. `text` and `record_of` are its form in Redis, in the database and
in the scripts.
"""

from typing import Final

import msgspec

from tollkeeper.domain.admission import CounterRef
from tollkeeper.domain.entries import PRESUMED, SETTLED, Entry

QUARANTINED: Final = "?"
"""Before the attempt's id: the record of an entry that could not be placed. It charged nothing."""


class Known(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a record tells beside its numbers."""

    counters: tuple[CounterRef, ...] = ()
    note: str = ""


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What an attempt is charged with, and at which rank; rank 0: nothing yet."""

    rank: int = 0
    cost_nano: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    known: str = ""
    """`Known` as JSON."""

    @property
    def status(self) -> str:
        """*presumed*, *settled* (the truth came late) or *corrected*; *quarantined* at rank 0."""
        return {0: "quarantined", PRESUMED: "presumed", SETTLED: "settled"}.get(self.rank, "corrected")

    def text(self) -> str:
        """The form in which it is stored."""
        tokens = (self.input_tokens, self.output_tokens, self.cached_tokens)
        return "\n".join([str(n) for n in (self.rank, self.cost_nano, self.requests, *tokens)] + [self.known])

    def what_is_known(self) -> Known:
        """Counters and note."""
        return msgspec.json.decode(self.known, type=Known) if self.known else Known()


UNCHARGED: Final = Charge()


def charge_of(entry: Entry) -> Charge:
    """The record that an entry leaves."""
    known = msgspec.json.encode(Known(entry.counters, entry.note)).decode()
    tokens = (entry.input_tokens, entry.output_tokens, entry.cached_tokens)
    return Charge(entry.rank, entry.cost_nano, entry.requests, *tokens, known)


def record_of(text: str) -> Charge:
    """A stored record."""
    *numbers, known = text.split("\n", 6)
    rank, cost, requests, given, made, cached = map(int, numbers)
    return Charge(rank, cost, requests, given, made, cached, known)
