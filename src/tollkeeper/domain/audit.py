"""The audit log: who changed what, when, and from where; before and after.

An event is written in the transaction of the change it tells of, so there is neither one without the other. What it
says of an account are the account's own words (`words.py`), in which no secret ever is; of a change only what
differs. Nothing is stored here.
"""

from typing import Any, Final

import msgspec

EVENT: Final = "aud_"


class Author(msgspec.Struct, frozen=True):
    """Who makes a change. `id` is of an admin token, or one of the names below; `source` is `api`, `dashboard`, `cli`
    or `library`. `idempotency` is the digest of the request's idempotency key."""

    id: str
    name: str
    source: str
    address: str | None = None
    request_id: str | None = None
    idempotency: bytes | None = None


LIBRARY: Final = Author("library", "library", "library")
"""Whoever uses the accounts without saying who it is."""


class AuditEvent(msgspec.Struct, frozen=True):
    """One change. `object_id` is what was changed; `before` and `after` are its words, of a change what differs."""

    number: int
    at_us: int
    author: Author
    action: str
    object_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def id(self) -> str:
        """Ids follow the order in which the changes were committed."""
        return f"{EVENT}{self.number}"


class AuditFilters(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for; None asks for nothing. Times are Unix µs, `until_us` excluded."""

    object_id: str | None = None
    actor: str | None = None
    action: str | None = None
    request_id: str | None = None
    since_us: int | None = None
    until_us: int | None = None


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What differs, with its value on both sides; of objects inside (limits) only their fields that differ."""
    was: dict[str, Any] = {}
    became: dict[str, Any] = {}
    for name in before | after:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            old, new = differences(old, new)
        was[name], became[name] = old, new
    return was, became
