"""Rows of keys, joined with the scopes above them → `Principal`. For control plane and data plane; asks nothing."""

from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, select

from tollkeeper.domain.policy import UNLIMITED, Policy, Principal, Scope, ScopeKind
from tollkeeper.storage.tables import keys, organisations, teams

POLICIES_CACHED_MAX: Final = 4096
"""Policies of teams and organisations repeat for each of their keys: most are read once."""

KEY_COLUMNS: Final = (
    keys.c.id,
    keys.c.name,
    keys.c.organisation_id,
    keys.c.team_id,
    keys.c.policy,
    keys.c.expires_us,
    keys.c.revoked_us,
    keys.c.changed_version,
    teams.c.policy.label("team_policy"),
    teams.c.changed_version.label("team_version"),
    organisations.c.implicit,
    organisations.c.policy.label("organisation_policy"),
    organisations.c.changed_version.label("organisation_version"),
)

JOINED: Final = keys.join(organisations, organisations.c.id == keys.c.organisation_id).outerjoin(
    teams, teams.c.id == keys.c.team_id
)


def write_policy(policy: Policy) -> str:
    """The text a policy is stored as."""
    return msgspec.json.encode(policy).decode()


@lru_cache(POLICIES_CACHED_MAX)
def read_policy(text: str) -> Policy:
    """The reverse of `write_policy`."""
    return UNLIMITED if text == "{}" else msgspec.json.decode(text, type=Policy)


def principal_of(key_id: str) -> Select[Any]:
    """The query for one key's principal."""
    return select(*KEY_COLUMNS).select_from(JOINED).where(keys.c.id == key_id)


def read_principal(row: Row[Any]) -> Principal:
    """A row of `KEY_COLUMNS` → the principal. Its revision is the newest version of the key and all above it."""
    scopes = [Scope(ScopeKind.KEY, row.id, read_policy(row.policy))]
    revision = max(row.changed_version, row.organisation_version)
    if row.team_id is not None:
        scopes.append(Scope(ScopeKind.TEAM, row.team_id, read_policy(row.team_policy)))
        revision = max(revision, row.team_version)
    if not row.implicit:
        scopes.append(Scope(ScopeKind.ORGANISATION, row.organisation_id, read_policy(row.organisation_policy)))
    return Principal(
        key_id=row.id,
        key_name=row.name,
        root=row.organisation_id,
        scopes=tuple(scopes),
        team_id=row.team_id,
        expires_at_us=row.expires_us,
        revoked_at_us=row.revoked_us,
        revision=revision,
    )
