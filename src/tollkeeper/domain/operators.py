"""Who may use the control plane, and what for: roles, admin tokens, and what an owner may see.

*admin* may do everything; *viewer* may read everything; *owner* may read what concerns the keys it owns, which are
named one by one, or by their team or organisation. Which role a route needs is said at the route.
"""

from enum import StrEnum
from typing import Final

import msgspec

from tollkeeper.domain.accounts import UNCHANGED, Key, Unchanged
from tollkeeper.domain.errors import InvalidInput

TOKEN: Final = "adm_"  # noqa: S105 - the prefix of ids
SECRET_PREFIX: Final = "tka_"  # noqa: S105 - a public prefix
OWNS_MAX: Final = 100
"""Keys, teams and organisations of one owner."""
_OWNABLE: Final = ("key_", "team_", "org_")


class Role(StrEnum):
    """From the most to the least powerful."""

    ADMIN = "admin"
    VIEWER = "viewer"
    OWNER = "owner"


class Actor(msgspec.Struct, frozen=True):
    """Somebody who has shown a token. `owns` are ids of keys, teams and organisations, of an owner."""

    id: str
    name: str
    role: Role
    owns: tuple[str, ...] = ()

    @property
    def sees_all(self) -> bool:
        """Whether what it may read is not limited to some keys."""
        return self.role is not Role.OWNER

    def owns_key(self, key: Key) -> bool:
        """Whether an owner owns it, itself or by its team or organisation."""
        return key.id in self.owns or key.team_id in self.owns or key.organisation_id in self.owns

    def may_see(self, key: Key) -> bool:
        """Whether a key's limits, usage and logs may be shown."""
        return self.sees_all or self.owns_key(key)


BOOTSTRAP: Final = Actor("bootstrap", "bootstrap", Role.ADMIN)
"""Whoever has the token of the environment or of the data directory."""


class AdminToken(msgspec.Struct, frozen=True):
    """A token without its secret. `previous_until_us`: until then its secret before the last rotation works too."""

    id: str
    name: str
    role: Role
    owns: tuple[str, ...]
    hint: str
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    previous_until_us: int | None = None

    @property
    def actor(self) -> Actor:
        """Whom it stands for."""
        return Actor(self.id, self.name, self.role, self.owns)

    def state(self, now_us: int) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_us is not None:
            return "revoked"
        if self.expires_us is not None and self.expires_us <= now_us:
            return "expired"
        return "active"


class NewAdminToken(msgspec.Struct, frozen=True):
    """What is needed to create one. `owns` are ids."""

    name: str
    role: Role
    owns: tuple[str, ...] = ()
    expires_us: int | None = None


class AdminTokenChange(msgspec.Struct, frozen=True):
    """An update: only what differs from `UNCHANGED` is written."""

    name: str | Unchanged = UNCHANGED
    owns: tuple[str, ...] | Unchanged = UNCHANGED
    expires_us: int | None | Unchanged = UNCHANGED


def check_owns(role: Role, owns: tuple[str, ...]) -> None:
    """Raises InvalidInput unless an owner owns something, and nobody else does."""
    if role is not Role.OWNER:
        if owns:
            raise InvalidInput(f"owns: only an owner owns keys; {role.value} sees all of them")
        return
    if not 1 <= len(owns) <= OWNS_MAX:
        raise InvalidInput(f"owns: give 1 to {OWNS_MAX} ids of keys, teams or organisations")
    for owned in owns:
        if not owned.startswith(_OWNABLE):
            raise InvalidInput(f"owns: {owned!r} is not the id of a key, team or organisation")
