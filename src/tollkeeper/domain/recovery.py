"""What a store that lost its memory says of its recovery: who has still to send again, and until when it waits.

The decisions are `Tree.gate` and `Tree.ready`, and the scripts that are their twins.
"""

from enum import IntEnum
from typing import Final

import msgspec

UNKNOWN: Final = "?"
"""Among producers: others that there may be, because the database could not be asked."""


class Gate(msgspec.Struct, frozen=True):
    """Nothing is admitted under a budget until `until_us` (store's time; 0: the gate is open) or until none of
    `waits` is left. `run` is the memory's life that this is true of."""

    run: str
    until_us: int
    waits: tuple[str, ...]


class Ready(IntEnum):
    """How a producer's word was taken that it has sent again all it has: *late* came after the grace."""

    ANOTHER_RUN = 0
    COUNTED = 1
    LATE = 2


class Looked(IntEnum):
    """What a store makes of an idempotency key that was looked up in the database: it knows it now, or nothing was
    changed, because it has lost its memory since, or because it has all that the database knew."""

    ANOTHER_RUN = 0
    KNOWN = 1
    ALL_THERE = 2
