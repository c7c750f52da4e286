"""Organisations, teams and keys as the control plane sees them, and how a key's secret is made and kept.

A secret is `tk_` and 43 URL-safe characters (256 random bits). Only its HMAC-SHA256 under the deployment's
digest key is stored, so that a stolen database opens nothing.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from tollkeeper.domain.errors import InvalidInput, NotFound
from tollkeeper.domain.policy import UNLIMITED, Policy, ScopeKind

SECRET_PREFIX: Final = "tk_"  # noqa: S105 - a public prefix
_PREFIX: Final = SECRET_PREFIX.encode()
SECRET_BYTES: Final = 32
IMPORTED: Final = b"tollkeeper: SHA-256 of an imported key"
BLOCK_BYTES: Final = 64
"""Of SHA-256."""
NAME_MAX: Final = 200


def digest_secret(digest_key: bytes, secret: bytes) -> bytes:
    """The keyed digest under which a secret is stored and looked up: 32 bytes."""
    return hmac.digest(digest_key, secret, "sha256")


def digest_imported(digest_key: bytes, secret_sha256: bytes) -> bytes:
    """The same for a key of another gateway, of whose secret only the SHA-256 is known: 32 bytes.

    Keyed apart from `digest_secret`: whoever has the SHA-256 alone cannot send anything that would have this digest.
    """
    return hmac.digest(hmac.digest(digest_key, IMPORTED, "sha256"), secret_sha256, "sha256")


def digest_presented(digest_key: bytes, secret: bytes) -> bytes:
    """The digest to look for when a client sends this: our secrets have a prefix, all others can only be imported."""
    if secret.startswith(_PREFIX):
        return digest_secret(digest_key, secret)
    return digest_imported(digest_key, hashlib.sha256(secret).digest())


class Digester:
    """`digest_presented` under one key. The key's own two blocks of HMAC are hashed once and not for every request
    (RFC 2104, section 4), which leaves half of the work; the secrets themselves are not kept."""

    def __init__(self, digest_key: bytes) -> None:
        self._digest_key = digest_key
        block = hashlib.sha256(digest_key).digest() if len(digest_key) > BLOCK_BYTES else digest_key
        block = block.ljust(BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes([byte ^ 0x36 for byte in block]))
        self._outer = hashlib.sha256(bytes([byte ^ 0x5C for byte in block]))

    def presented(self, secret: bytes) -> bytes:
        """See `digest_presented`."""
        if not secret.startswith(_PREFIX):
            return digest_presented(self._digest_key, secret)
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(secret)
        outer.update(inner.digest())
        return outer.digest()


class Organisation(msgspec.Struct, frozen=True):
    """`implicit` marks the organisation of a single key that was created without one: it has no policy."""

    id: str
    name: str
    implicit: bool
    policy: Policy
    created_us: int
    deleted_us: int | None = None


class Team(msgspec.Struct, frozen=True):
    """A group of keys inside one organisation."""

    id: str
    organisation_id: str
    name: str
    policy: Policy
    created_us: int
    deleted_us: int | None = None


Group = TypeVar("Group", Organisation, Team)


def one_named(groups: Sequence[Group], wanted: str, kind: str) -> Group:
    """The group of this id or name. Raises NotFound, and InvalidInput if several have the name."""
    found = [group for group in groups if group.id == wanted] or [group for group in groups if group.name == wanted]
    if not found:
        raise NotFound(f"there is no {kind} {wanted!r}")
    if len(found) > 1:
        ids = ", ".join(group.id for group in found)
        raise InvalidInput(f"several {kind}s are named {wanted!r}; give the id of one: {ids}")
    return found[0]


class Key(msgspec.Struct, frozen=True):
    """An API key without its secret. `hint` is the secret's last four characters; `previous_until_us`: until then the
    secret before the last rotation works too."""

    id: str
    organisation_id: str
    team_id: str | None
    name: str
    hint: str
    policy: Policy
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    previous_until_us: int | None = None

    def state(self, now_us: int) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_us is not None:
            return "revoked"
        if self.expires_us is not None and self.expires_us <= now_us:
            return "expired"
        return "active"


class NewKey(msgspec.Struct, frozen=True):
    """What is needed to create a key. `organisation` and `team` are names or ids; None means none was named."""

    name: str
    organisation: str | None = None
    team: str | None = None
    policy: Policy = UNLIMITED
    expires_us: int | None = None


class Unchanged(msgspec.Struct, frozen=True):
    """Marks a field that an update leaves as it is, since None is a value."""


UNCHANGED: Final = Unchanged()

PolicyEdit = Callable[[Policy], Policy]
"""Makes the new policy of the one there is. It is applied where nothing else can change the policy meanwhile."""


def edited(policy: Policy, edit: Policy | PolicyEdit) -> Policy:
    """The policy after an edit; a policy replaces the one before. Raises what the edit raises."""
    return edit if isinstance(edit, Policy) else edit(policy)


class KeyChange(msgspec.Struct, frozen=True):
    """An update of a key: only what differs from `UNCHANGED` is written. `team` None takes it out of its team."""

    name: str | Unchanged = UNCHANGED
    team: str | None | Unchanged = UNCHANGED
    policy: Policy | PolicyEdit | Unchanged = UNCHANGED
    expires_us: int | None | Unchanged = UNCHANGED


class KeyFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which keys are asked for; None asks for nothing. `team` and `organisation` are names or ids.

    `state` is `active`, `expired` or `revoked`; None: all that are not revoked. `name` is part of a name, in any
    case. `owned` are ids of keys, teams and organisations, of which a key must be or be in one.
    """

    team: str | None = None
    organisation: str | None = None
    state: str | None = None
    name: str | None = None
    include_revoked: bool = False
    owned: tuple[str, ...] | None = None


class GroupFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which teams or organisations are asked for, as `KeyFilters`; `organisation` is for teams."""

    organisation: str | None = None
    name: str | None = None
    owned: tuple[str, ...] | None = None


class MonthlyUsage(msgspec.Struct, frozen=True):
    """One row of `monthly_usage_summary`, as of `updated_us`."""

    key_id: str
    year: int
    month: int
    cost_nano: int
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    updated_us: int


class MonthFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which months are asked for: of keys, teams or organisations (`kind`); None asks for nothing. `scope_id` and
    `owned` are ids, the latter as in `KeyFilters`."""

    kind: ScopeKind = ScopeKind.KEY
    scope_id: str | None = None
    year_month: tuple[int, int] | None = None
    owned: tuple[str, ...] | None = None


class MonthTotals(msgspec.Struct, frozen=True):
    """What a key, team or organisation spent in a month, as of `updated_us`. `name` is None if it is not known."""

    scope_id: str
    name: str | None
    year: int
    month: int
    cost_nano: int
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    updated_us: int

    @property
    def id(self) -> str:
        """The same for the same scope and month."""
        return f"{self.year}-{self.month:02d}:{self.scope_id}"
