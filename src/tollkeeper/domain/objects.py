"""What providers keep for clients: answers, their items, files and batches, and who they belong to.

Providers know only the gateway's account, so that an id alone would give anybody another organisation's object. An
object belongs to the organisation whose request made it; whoever else names it is told that there is none.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec


class ObjectKind(StrEnum):
    """What an object is. Items are the parts of an answer, which later requests may refer to."""

    RESPONSE = "response"
    ITEM = "item"
    FILE = "file"
    BATCH = "batch"


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """One object at a provider.

    `root`: the organisation. `model` and `upstream_model`: what made it, empty for what no model makes. `seen`: the
    provider's JSON of it as it was last seen, where lists are answered from it, else empty. `notes`: JSON of our own.
    `due_us`: when a gateway looks at it, since what it cost is not known before it is over; None: never.
    """

    root: str
    id: str
    kind: ObjectKind
    provider: str
    key_id: str
    created_us: int
    model: str = ""
    upstream_model: str = ""
    seen: str = ""
    notes: str = ""
    due_us: int | None = None


class ObjectRegistry(Protocol):
    """The record of them. Every operation may raise `DatabaseUnavailable`."""

    async def record(self, objects: Sequence[StoredObject]) -> None:
        """Write them down; one that is known already is replaced."""
        ...

    async def find(self, root: str, ids: Collection[str]) -> dict[str, StoredObject]:
        """Those of an organisation among these ids."""
        ...

    async def page(
        self, root: str, kind: ObjectKind, *, limit: int, after: str | None = None, oldest_first: bool = False
    ) -> list[StoredObject]:
        """The objects of one kind in the order of their creation, from the one after an id on."""
        ...

    async def take_due(self, now_us: int, *, lease_us: int, limit: int) -> list[StoredObject]:
        """Those that are due, the longest first; they are due again when the lease is over. No other gets them."""
        ...

    async def forget(self, root: str, ids: Collection[str]) -> None:
        """They are gone."""
        ...

    async def expire(self, kinds: Collection[ObjectKind], before_us: int) -> int:
        """Forget what was made before a time; how many that were."""
        ...
