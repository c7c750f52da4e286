"""Request and response bodies on their way into a log record: what was kept of an exchange, within which bounds.

The data plane keeps references to bytes that it has anyway; everything that costs time (putting a stream together,
redaction, cutting) is done later and elsewhere, through `CapturedBodies.read`.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import msgspec

SLACK_BYTES: Final = 4096
"""Kept of a body beyond its bound, so that a secret on the edge is seen whole before the rest is cut off."""


class BodyLogging(StrEnum):
    """Whether bodies are in the log records of a scope."""

    OFF = "off"
    TRUNCATED = "truncated"
    FULL = "full"


class Body(msgspec.Struct, frozen=True):
    """One body. `value` is its JSON as plain values, or the bytes as they came if they are no (whole) JSON.

    `cut`: more went by than was kept.
    """

    value: Any
    cut: bool = False


class CapturedBodies(msgspec.Struct, frozen=True):
    """What was kept of one exchange. `bytes_max` bounds each body in the record.

    `read` gives request and response, None for what there was not; it takes time and may be called in any thread.
    `done` lets go of what was kept and must be called once, in the event loop's thread.
    """

    bytes_max: int
    read: Callable[[], tuple[Body | None, Body | None]]
    done: Callable[[], None]


class ByteBudget:
    """A bound on bytes that many share: `take` as they come, `give` when they are let go."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.used = 0

    def take(self, size: int) -> bool:
        """Whether there was room, which is now taken."""
        if self.used + size > self._bytes_max:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Return what was taken."""
        self.used -= size
