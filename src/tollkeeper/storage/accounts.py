"""The control plane's operations on organisations, teams and keys, over the database.

Every write first takes the next version of the change counter and so holds its row: writers queue on it, checks
and writes of one operation cannot be overtaken, and versions follow the order of commits. It never stores or
returns a secret twice, and knows nothing of spend.
"""

import secrets
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Row, Select, Table, or_, select, update

from tollkeeper.domain.accounts import (
    SECRET_BYTES,
    SECRET_PREFIX,
    Key,
    KeyChange,
    NewKey,
    Organisation,
    Team,
    Unchanged,
    digest_secret,
)
from tollkeeper.domain.errors import DatabaseUnavailable, InvalidInput, NotFound
from tollkeeper.domain.policy import UNLIMITED, Policy, Principal, validate_policy
from tollkeeper.storage.names import KEY, ORGANISATION, TEAM, is_text, new_id, validate_name
from tollkeeper.storage.principals import principal_of, read_policy, read_principal, write_policy
from tollkeeper.storage.tables import change_counter, key_digests, keys, organisations, teams
from tollkeeper.storage.transactions import Transaction, Transactions

HINT_CHARACTERS: Final = 4
CANDIDATES_SHOWN_MAX: Final = 10
"""Ids listed where a name is ambiguous."""
TIME_MAX_US: Final = 2**53 - 1

_NEXT_VERSION: Final = (
    update(change_counter).values(version=change_counter.c.version + 1).returning(change_counter.c.version)
)
_ORGANISATIONS: Final = select(organisations).where(
    organisations.c.deleted_us.is_(None), organisations.c.implicit.is_(False)
)
_TEAMS: Final = select(teams).where(teams.c.deleted_us.is_(None))


class StoredAccounts:
    """`Accounts` over the database. `now_us` gives Unix microseconds."""

    def __init__(self, transactions: Transactions, digest_key: bytes, now_us: Callable[[], int]) -> None:
        self._transactions = transactions
        self._digest_key = digest_key
        self._now_us = now_us

    # keys

    async def create_key(self, new: NewKey) -> tuple[Key, str]:
        validate_name(new.name, what="key")
        validate_policy(new.policy)
        now_us = self._now_us()
        if new.expires_us is not None:
            _validate_time(new.expires_us)
            if new.expires_us <= now_us:
                raise InvalidInput("expires: the time has passed already; name a later one")
        secret = _new_secret()
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            organisation_id, team_id = await self._home_of(transaction, new, now_us, version)
            key_id = new_id(KEY)
            await transaction.execute(
                keys.insert().values(
                    id=key_id,
                    organisation_id=organisation_id,
                    team_id=team_id,
                    name=new.name,
                    hint=secret[-HINT_CHARACTERS:],
                    policy=write_policy(new.policy),
                    created_us=now_us,
                    expires_us=new.expires_us,
                    changed_version=version,
                )
            )
            await self._insert_digest(transaction, key_id, secret, now_us, version)
            key = await _key_by_id(transaction, key_id)
        return key, secret

    async def rotate_key(self, key: str) -> tuple[Key, str]:
        secret = _new_secret()
        now_us = self._now_us()
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            row = await _find_key(transaction, key)
            if row.revoked_us is not None:
                raise InvalidInput(f"key {row.id} is revoked: create a new one")
            await transaction.execute(
                update(key_digests)
                .where(key_digests.c.key_id == row.id, key_digests.c.expires_us.is_(None))
                .values(expires_us=now_us, changed_version=version)
            )
            await self._insert_digest(transaction, row.id, secret, now_us, version)
            await _update_key(transaction, row.id, version, {"hint": secret[-HINT_CHARACTERS:]})
            rotated = await _key_by_id(transaction, row.id)
        return rotated, secret

    async def update_key(self, key: str, change: KeyChange) -> Key:
        """See `ports.Accounts`. An expiry in the past ends the key now; a revoked key cannot be changed."""
        values: dict[str, Any] = {}
        if not isinstance(change.name, Unchanged):
            validate_name(change.name, what="key")
            values["name"] = change.name
        if not isinstance(change.policy, Unchanged):
            validate_policy(change.policy)
            values["policy"] = write_policy(change.policy)
        if not isinstance(change.expires_us, Unchanged):
            if change.expires_us is not None:
                _validate_time(change.expires_us)
            values["expires_us"] = change.expires_us
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            row = await _find_key(transaction, key)
            if row.revoked_us is not None:
                raise InvalidInput(f"key {row.id} is revoked and cannot be changed")
            if not isinstance(change.team, Unchanged):
                values["team_id"] = None if change.team is None else await _team_for(transaction, row, change.team)
            await _update_key(transaction, row.id, version, values)
            return await _key_by_id(transaction, row.id)

    async def revoke_key(self, key: str) -> Key:
        """See `ports.Accounts`. A key that is revoked already stays as it is."""
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            row = await _find_key(transaction, key)
            if row.revoked_us is None:
                await _update_key(transaction, row.id, version, {"revoked_us": self._now_us()})
            return await _key_by_id(transaction, row.id)

    async def get_key(self, key: str) -> Key:
        async with self._transactions.read() as transaction:
            return _key(await _find_key(transaction, key))

    async def list_keys(self, *, team: str | None = None, include_revoked: bool = False) -> list[Key]:
        """Oldest first."""
        query = select(keys).order_by(keys.c.created_us, keys.c.id)
        if not include_revoked:
            query = query.where(keys.c.revoked_us.is_(None))
        async with self._transactions.read() as transaction:
            if team is not None:
                query = query.where(keys.c.team_id == (await _find_team(transaction, team)).id)
            return [_key(row) for row in await transaction.rows(query)]

    async def principal(self, key: str) -> Principal:
        async with self._transactions.snapshot() as transaction:
            row = await transaction.row(principal_of((await _find_key(transaction, key)).id))
        if row is None:
            raise NotFound(f"there is no key {key!r}")
        return read_principal(row)

    async def version(self) -> int:
        async with self._transactions.read() as transaction:
            version: int = (await transaction.execute(select(change_counter.c.version))).scalar_one()
        return version

    # teams

    async def create_team(self, name: str, organisation: str | None = None, policy: Policy = UNLIMITED) -> Team:
        validate_name(name, what="team")
        validate_policy(policy)
        now_us = self._now_us()
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            if organisation is None:
                organisation_id = await _insert_organisation(transaction, name, UNLIMITED, now_us, version)
            else:
                organisation_id = (await _find_organisation(transaction, organisation)).id
            same = await transaction.row(
                _TEAMS.where(teams.c.organisation_id == organisation_id, teams.c.name == name)
            )
            if same is not None:
                raise InvalidInput(f"team: {name!r} exists already in organisation {organisation_id} ({same.id})")
            team = Team(new_id(TEAM), organisation_id, name, policy, now_us)
            await transaction.execute(
                teams.insert().values(
                    id=team.id,
                    organisation_id=organisation_id,
                    name=name,
                    policy=write_policy(policy),
                    created_us=now_us,
                    changed_version=version,
                )
            )
        return team

    async def update_team(self, team: str, policy: Policy) -> Team:
        validate_policy(policy)
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            row = await _find_team(transaction, team)
            await _update_policy(transaction, teams, row.id, policy, version)
            return _team((await transaction.execute(select(teams).where(teams.c.id == row.id))).one())

    async def list_teams(self) -> list[Team]:
        """Oldest first."""
        async with self._transactions.read() as transaction:
            return [_team(row) for row in await transaction.rows(_TEAMS.order_by(teams.c.created_us, teams.c.id))]

    # organisations

    async def create_organisation(self, name: str, policy: Policy = UNLIMITED) -> Organisation:
        validate_name(name, what="organisation")
        validate_policy(policy)
        now_us = self._now_us()
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            organisation_id = await _insert_organisation(transaction, name, policy, now_us, version)
        return Organisation(organisation_id, name, False, policy, now_us)

    async def update_organisation(self, organisation: str, policy: Policy) -> Organisation:
        validate_policy(policy)
        async with self._transactions.write() as transaction:
            version = await _next_version(transaction)
            row = await _find_organisation(transaction, organisation)
            await _update_policy(transaction, organisations, row.id, policy, version)
            query = select(organisations).where(organisations.c.id == row.id)
            return _organisation((await transaction.execute(query)).one())

    async def list_organisations(self) -> list[Organisation]:
        """Oldest first."""
        query = _ORGANISATIONS.order_by(organisations.c.created_us, organisations.c.id)
        async with self._transactions.read() as transaction:
            return [_organisation(row) for row in await transaction.rows(query)]

    # parts of the above

    async def _home_of(
        self, transaction: Transaction, new: NewKey, now_us: int, version: int
    ) -> tuple[str, str | None]:
        """The organisation, and team if one was named, that a new key will belong to."""
        organisation = None
        if new.organisation is not None:
            organisation = await _find_organisation(transaction, new.organisation)
        if new.team is not None:
            team = await _find_team(transaction, new.team, None if organisation is None else organisation.id)
            return team.organisation_id, team.id
        if organisation is not None:
            return organisation.id, None
        own = await _insert_organisation(transaction, new.name, UNLIMITED, now_us, version, implicit=True)
        return own, None

    async def _insert_digest(
        self, transaction: Transaction, key_id: str, secret: str, now_us: int, version: int
    ) -> None:
        await transaction.execute(
            key_digests.insert().values(
                digest=digest_secret(self._digest_key, secret.encode()),
                key_id=key_id,
                created_us=now_us,
                changed_version=version,
            )
        )


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _validate_time(at_us: int) -> None:
    if not 0 <= at_us <= TIME_MAX_US:
        raise InvalidInput("expires: not a time that can be kept; give Unix microseconds")


async def _next_version(transaction: Transaction) -> int:
    row = await transaction.row(_NEXT_VERSION)
    if row is None:
        raise DatabaseUnavailable("the change counter has lost its row; restore the database from a backup")
    version: int = row.version
    return version


async def _update_key(transaction: Transaction, key_id: str, version: int, values: dict[str, Any]) -> None:
    await transaction.execute(update(keys).where(keys.c.id == key_id).values(changed_version=version, **values))


async def _update_policy(transaction: Transaction, table: Table, row_id: str, policy: Policy, version: int) -> None:
    await transaction.execute(
        update(table).where(table.c.id == row_id).values(policy=write_policy(policy), changed_version=version)
    )


async def _insert_organisation(
    transaction: Transaction, name: str, policy: Policy, now_us: int, version: int, *, implicit: bool = False
) -> str:
    if not implicit:
        same = await transaction.row(_ORGANISATIONS.where(organisations.c.name == name))
        if same is not None:
            raise InvalidInput(f"organisation: {name!r} exists already ({same.id}); name it, or choose another name")
    organisation_id = new_id(ORGANISATION)
    await transaction.execute(
        organisations.insert().values(
            id=organisation_id,
            name=name,
            implicit=implicit,
            policy=write_policy(policy),
            created_us=now_us,
            changed_version=version,
        )
    )
    return organisation_id


async def _find_key(transaction: Transaction, key: str) -> Row[Any]:
    """A key by its id or name. Of several with the name, the one that is not revoked."""
    rows = await _candidates(transaction, select(keys), keys, key)
    standing = [row for row in rows if row.revoked_us is None]
    return _only(standing or rows, key, what="key")


async def _find_team(transaction: Transaction, team: str, organisation_id: str | None = None) -> Row[Any]:
    rows = await _candidates(transaction, _TEAMS, teams, team)
    if organisation_id is not None:
        inside = [row for row in rows if row.organisation_id == organisation_id]
        if rows and not inside:
            raise InvalidInput(f"team {team!r} is not in organisation {organisation_id}")
        rows = inside
    return _only(rows, team, what="team")


async def _find_organisation(transaction: Transaction, organisation: str) -> Row[Any]:
    rows = await _candidates(transaction, _ORGANISATIONS, organisations, organisation)
    return _only(rows, organisation, what="organisation")


async def _team_for(transaction: Transaction, key: Row[Any], team: str) -> str:
    """The id of the team that a key is moved to: one of its own organisation."""
    rows = await _candidates(transaction, _TEAMS, teams, team)
    inside = [row for row in rows if row.organisation_id == key.organisation_id]
    if rows and not inside:
        raise InvalidInput(
            f"key {key.id} belongs to organisation {key.organisation_id} for life and can only move between its "
            f"teams; team {team!r} is in organisation {rows[0].organisation_id}: create a new key there"
        )
    team_id: str = _only(inside, team, what="team").id
    return team_id


async def _candidates(transaction: Transaction, query: Select[Any], table: Table, wanted: str) -> list[Row[Any]]:
    """Rows with this id, or else with this name."""
    if not is_text(wanted):  # could not be stored, so some databases cannot even be asked
        return []
    rows = await transaction.rows(query.where(or_(table.c.id == wanted, table.c.name == wanted)).order_by(table.c.id))
    return [row for row in rows if row.id == wanted] or list(rows)


def _only(rows: list[Row[Any]], wanted: str, *, what: str) -> Row[Any]:
    if not rows:
        raise NotFound(f"there is no {what} {wanted!r}")
    if len(rows) > 1:
        shown = ", ".join(row.id for row in rows[:CANDIDATES_SHOWN_MAX])
        more = f" and {len(rows) - CANDIDATES_SHOWN_MAX} more" if len(rows) > CANDIDATES_SHOWN_MAX else ""
        raise InvalidInput(f"several {what}s are named {wanted!r}; give the id of one: {shown}{more}")
    return rows[0]


async def _key_by_id(transaction: Transaction, key_id: str) -> Key:
    return _key((await transaction.execute(select(keys).where(keys.c.id == key_id))).one())


def _key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        organisation_id=row.organisation_id,
        team_id=row.team_id,
        name=row.name,
        hint=row.hint,
        policy=read_policy(row.policy),
        created_us=row.created_us,
        expires_us=row.expires_us,
        revoked_us=row.revoked_us,
    )


def _team(row: Row[Any]) -> Team:
    return Team(row.id, row.organisation_id, row.name, read_policy(row.policy), row.created_us, row.deleted_us)


def _organisation(row: Row[Any]) -> Organisation:
    return Organisation(row.id, row.name, row.implicit, read_policy(row.policy), row.created_us, row.deleted_us)
