"""Step 3: ask the governor for admission, once more with a smaller output if that is what would pass.

Request ids are made here and never taken from a client, because attempts are settled by them. A refusal is a value.
"""

import os
from collections.abc import Iterator
from itertools import count
from typing import Final

from tollkeeper.domain.admission import Denial, Grant
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import Governor
from tollkeeper.gateway.bound import Plan, shrink

ID_BYTES: Final = 16
ATTEMPTS_MAX: Final = 2
"""The first, and one with the output that the first refusal would have afforded."""
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


def attempt_ids(request_id: str) -> Iterator[str]:
    """`<request>.1`, `<request>.2`, …: a name for each hold of a request."""
    return map(f"{request_id}.{{}}".format, count(1))


async def admit(
    governor: Governor, principal: Principal, attempts: Iterator[str], plan: Plan, user: str = ""
) -> Grant | Denial:
    """The decision over all limits and budgets of a request, for the caller's end user if it names one.

    A refused request whose output limit is ours is asked once more, under a fresh attempt id, with the largest
    output that would pass. Raises `Unavailable`.
    """
    for _ in range(ATTEMPTS_MAX):
        decision = await governor.admit(
            principal,
            attempt=next(attempts),
            tokens=plan.tokens,
            hold_nano=plan.hold_nano,
            model=plan.route.model,
            user=user,
        )
        if isinstance(decision, Grant) or not shrink(plan, decision):
            break
    return decision
