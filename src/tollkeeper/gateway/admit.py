"""Step 3: ask the governor for admission, once more with a smaller output if that is what would pass.

Request ids are made here and never taken from a client, because attempts are settled by them. A refusal is a value.
"""

import os
from typing import Final

import msgspec

from tollkeeper.domain.admission import Denial, Grant
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import Governor
from tollkeeper.gateway.bound import Plan, shrink

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


async def admit(
    governor: Governor, principal: Principal, attempts: AttemptIds, plan: Plan, user: str = ""
) -> Grant | Denial:
    """The decision over all limits and budgets of a request, for the caller's end user if it names one.

    A refused request whose output limit is ours is asked once more, under a fresh attempt id, with the largest
    output that would pass. Raises `Unavailable`.
    """
    model = plan.route.model
    decision = await governor.admit(
        principal, attempt=attempts.next(), tokens=plan.tokens, hold_nano=plan.hold_nano, model=model, user=user
    )
    if isinstance(decision, Grant) or not shrink(plan, decision):
        return decision
    return await governor.admit(
        principal, attempt=attempts.next(), tokens=plan.tokens, hold_nano=plan.hold_nano, model=model, user=user
    )
