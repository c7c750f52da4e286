"""Step 3: ask the governor for admission.

Request ids are made here and never taken from a client, because attempts are settled by them. A refusal is a value.
"""

import os
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from tollkeeper.domain.admission import Denial, Grant
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import Governor
from tollkeeper.gateway.bound import Plan

ID_BYTES: Final = 16
BLOCK_BYTES: Final = 4096
"""Random bytes are taken from the system in blocks: one call makes 256 ids."""


class RequestIds:
    """Makes `req_` and 32 hexadecimal digits, 128 random bits each."""

    def __init__(self) -> None:
        self._block = b""
        self._used = 0

    def next(self) -> str:
        """A new id."""
        if self._used >= len(self._block):
            self._block, self._used = os.urandom(BLOCK_BYTES), 0
        start = self._used
        self._used = start + ID_BYTES
        return "req_" + self._block[start : self._used].hex()


class AttemptIds(msgspec.Struct):
    """`<request>.1`, `<request>.2`, …: a name for each hold of a request."""

    request_id: str
    given: int = 0

    def next(self) -> str:
        """The name of the next one."""
        self.given += 1
        return f"{self.request_id}.{self.given}"


def admit(
    governor: Governor, principal: Principal, attempt: str, plan: Plan, user: str | None
) -> Coroutine[Any, Any, Grant | Denial]:
    """The decision over all limits and budgets of a request, for the caller's end user if it names one.

    A refused request is worth asking once more, as another attempt, if `shrink` finds an output that would pass.
    Raises `Unavailable`.
    """
    return governor.admit(
        principal,
        attempt=attempt,
        tokens=plan.tokens,
        hold_nano=plan.hold_nano,
        model=plan.route.model,
        user=user or "",
    )
