"""Who asks: what the guard (asgi.py) puts into a request's scope, and services are asked by."""

from typing import Final

import msgspec

from tollkeeper.domain.audit import Author
from tollkeeper.domain.operators import Actor

CALLER: Final = "tollkeeper.caller"
"""Where the caller is in a request's scope."""


class Caller(msgspec.Struct, frozen=True):
    """An actor, and the request that it makes: what services are asked by, and audit events name."""

    actor: Actor
    request_id: str
    address: str
    source: str = "api"
    idempotency: bytes | None = None

    @property
    def author(self) -> Author:
        """As the audit log knows it."""
        actor = self.actor
        return Author(actor.id, actor.name, self.source, self.address, self.request_id, self.idempotency)

    @property
    def owned(self) -> tuple[str, ...] | None:
        """The ids that lists are limited to; None: to none."""
        return None if self.actor.sees_all else self.actor.owns
