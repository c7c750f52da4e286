"""The control plane's operations on organisations, teams and keys, over the database.

Every write is a change (`changes.py`): checks and writes of one operation cannot be overtaken, and its audit events
are written with it. It never stores or returns a secret twice, and knows nothing of spend.
"""

import secrets
from typing import Any, Final

from sqlalchemy import Row, Select, Table, and_, false, func, not_, or_, select, update

from tollkeeper.domain.accounts import (
    SECRET_BYTES,
    SECRET_PREFIX,
    GroupFilters,
    Key,
    KeyChange,
    KeyFilters,
    NewKey,
    Organisation,
    PolicyEdit,
    Team,
    Unchanged,
    digest_imported,
    digest_secret,
    edited,
)
from tollkeeper.domain.audit import Author
from tollkeeper.domain.errors import InvalidInput, NotFound
from tollkeeper.domain.paging import Page, Paging
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.policy import UNLIMITED, Policy, Principal, validate_policy
from tollkeeper.domain.words import key_words, organisation_words, team_words
from tollkeeper.storage.changes import Change, Changes
from tollkeeper.storage.names import KEY, ORGANISATION, TEAM, is_text, new_id, validate_name
from tollkeeper.storage.pages import after_cursor
from tollkeeper.storage.principals import principal_of, read_policy, read_principal, write_policy
from tollkeeper.storage.tables import change_counter, key_digests, keys, organisations, teams
from tollkeeper.storage.transactions import Transaction

HINT_CHARACTERS: Final = 4
CANDIDATES_SHOWN_MAX: Final = 10
"""Ids listed where a name is ambiguous."""
TIME_MAX_US: Final = 2**53 - 1
OVERLAP_MAX_S: Final = 30 * 86_400.0
"""Longest time that a rotated secret may go on working."""

_ORGANISATIONS: Final = select(organisations).where(
    organisations.c.deleted_us.is_(None), organisations.c.implicit.is_(False)
)
_KEY_OF: Final = select(keys).join(key_digests, key_digests.c.key_id == keys.c.id)
_TEAMS: Final = select(teams).where(teams.c.deleted_us.is_(None))


class StoredAccounts:
    """`Accounts` over the database."""

    def __init__(self, changes: Changes, digest_key: bytes) -> None:
        self._changes = changes
        self._transactions = changes.transactions
        self._digest_key = digest_key

    def by(self, author: Author) -> "StoredAccounts":
        return StoredAccounts(self._changes.by(author), self._digest_key)

    # keys

    async def create_key(self, new: NewKey) -> tuple[Key, str]:
        validate_name(new.name, what="name")
        validate_policy(new.policy)
        secret = _new_secret()
        digest = digest_secret(self._digest_key, secret.encode())
        async with self._changes.open() as change:
            key = await self._insert_key(change, new, digest, secret[-HINT_CHARACTERS:])
        return key, secret

    async def import_key(self, new: NewKey, secret_sha256: bytes, hint: str) -> Key | None:
        validate_name(new.name, what="name")
        validate_policy(new.policy)
        digest = digest_imported(self._digest_key, secret_sha256)
        async with self._changes.open() as change:
            if await change.transaction.row(_KEY_OF.where(key_digests.c.digest == digest)) is not None:
                return None
            return await self._insert_key(change, new, digest, hint[-HINT_CHARACTERS:])

    async def imported_key(self, secret_sha256: bytes) -> Key | None:
        digest = digest_imported(self._digest_key, secret_sha256)
        async with self._transactions.read() as transaction:
            row = await transaction.row(_KEY_OF.where(key_digests.c.digest == digest))
        return None if row is None else _key(row)

    async def rotate_key(self, key: str, *, overlap_s: float = 0.0) -> tuple[Key, str]:
        check_overlap(overlap_s)
        secret = _new_secret()
        async with self._changes.open() as change:
            before = await _find_key(change.transaction, key)
            if before.revoked_us is not None:
                raise InvalidInput(f"key {before.id} is revoked: create a new one")
            until_us = change.now_us + int(overlap_s * US_PER_S) if overlap_s else None
            standing = update(key_digests).where(
                key_digests.c.key_id == before.id, key_digests.c.expires_us.is_(None)
            )
            ended = standing if until_us is None else standing.where(key_digests.c.valid_until_us.is_not(None))
            await change.transaction.execute(ended.values(expires_us=change.now_us, changed_version=change.version))
            if until_us is not None:
                await change.transaction.execute(
                    standing.values(valid_until_us=until_us, changed_version=change.version)
                )
            await _insert_digest(change, before.id, digest_secret(self._digest_key, secret.encode()))
            values = {"hint": secret[-HINT_CHARACTERS:], "previous_until_us": until_us}
            return await _written(change, "key.rotate", before, values), secret

    async def update_key(self, key: str, change: KeyChange) -> Key:
        """See `ports.Accounts`. An expiry in the past ends the key now; a revoked key cannot be changed."""
        values: dict[str, Any] = {}
        if not isinstance(change.name, Unchanged):
            validate_name(change.name, what="name")
            values["name"] = change.name
        if not isinstance(change.expires_us, Unchanged):
            if change.expires_us is not None:
                _validate_time(change.expires_us)
            values["expires_us"] = change.expires_us
        async with self._changes.open() as under_way:
            before = await _find_key(under_way.transaction, key)
            if before.revoked_us is not None:
                raise InvalidInput(f"key {before.id} is revoked and cannot be changed")
            if not isinstance(change.policy, Unchanged):
                values["policy"] = _policy_text(before.policy, change.policy)
            if change.team is None:
                values["team_id"] = None
            elif not isinstance(change.team, Unchanged):
                values["team_id"] = await _team_for(under_way.transaction, before, change.team)
            return await _written(under_way, "key.update", before, values)

    async def revoke_key(self, key: str) -> Key:
        """See `ports.Accounts`. A key that is revoked already stays as it is."""
        async with self._changes.open() as change:
            before = await _find_key(change.transaction, key)
            if before.revoked_us is not None:
                return before
            return await _written(change, "key.revoke", before, {"revoked_us": change.now_us})

    async def get_key(self, key: str) -> Key:
        async with self._transactions.read() as transaction:
            return await _find_key(transaction, key)

    async def list_keys(self, *, team: str | None = None, include_revoked: bool = False) -> list[Key]:
        """Oldest first."""
        query = select(keys).order_by(keys.c.created_us, keys.c.id)
        if not include_revoked:
            query = query.where(keys.c.revoked_us.is_(None))
        async with self._transactions.read() as transaction:
            if team is not None:
                query = query.where(keys.c.team_id == (await _find_team(transaction, team)).id)
            return [_key(row) for row in await transaction.rows(query)]

    async def find_keys(self, filters: KeyFilters, paging: Paging) -> Page[Key]:
        async with self._transactions.read() as transaction:
            query = await _keys_query(transaction, filters, self._changes.now_us())
            query = await after_cursor(transaction, query, keys, paging)
            return Page.of([_key(row) for row in await transaction.rows(query)], paging.limit)

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
        validate_name(name, what="name")
        validate_policy(policy)
        async with self._changes.open() as change:
            if organisation is None:
                organisation_id = await _insert_organisation(change, name, UNLIMITED)
            else:
                organisation_id = (await _find_organisation(change.transaction, organisation)).id
            same = await change.transaction.row(
                _TEAMS.where(teams.c.organisation_id == organisation_id, teams.c.name == name)
            )
            if same is not None:
                raise InvalidInput(f"team: {name!r} exists already in organisation {organisation_id} ({same.id})")
            team = Team(new_id(TEAM), organisation_id, name, policy, change.now_us)
            await change.transaction.execute(
                teams.insert().values(
                    id=team.id,
                    organisation_id=organisation_id,
                    name=name,
                    policy=write_policy(policy),
                    created_us=change.now_us,
                    changed_version=change.version,
                )
            )
            await change.record("team.create", team.id, None, team_words(team))
        return team

    async def update_team(self, team: str, policy: Policy | PolicyEdit) -> Team:
        async with self._changes.open() as change:
            before = _team(await _find_team(change.transaction, team))
            await _update_policy(change, teams, before.id, _policy_text(before.policy, policy))
            after = _team((await change.transaction.execute(select(teams).where(teams.c.id == before.id))).one())
            await change.record("team.update", before.id, team_words(before), team_words(after))
        return after

    async def list_teams(self) -> list[Team]:
        """Oldest first."""
        async with self._transactions.read() as transaction:
            return [_team(row) for row in await transaction.rows(_TEAMS.order_by(teams.c.created_us, teams.c.id))]

    async def get_team(self, team: str) -> Team:
        async with self._transactions.read() as transaction:
            return _team(await _find_team(transaction, team))

    async def find_teams(self, filters: GroupFilters, paging: Paging) -> Page[Team]:
        async with self._transactions.read() as transaction:
            query = _named_like(_TEAMS, teams, filters.name)
            if filters.organisation is not None:
                organisation = await _find_organisation(transaction, filters.organisation)
                query = query.where(teams.c.organisation_id == organisation.id)
            if filters.owned is not None:
                query = query.where(or_(teams.c.id.in_(filters.owned), teams.c.organisation_id.in_(filters.owned)))
            query = await after_cursor(transaction, query, teams, paging)
            return Page.of([_team(row) for row in await transaction.rows(query)], paging.limit)

    # organisations

    async def create_organisation(self, name: str, policy: Policy = UNLIMITED) -> Organisation:
        validate_name(name, what="name")
        validate_policy(policy)
        async with self._changes.open() as change:
            organisation_id = await _insert_organisation(change, name, policy)
        return Organisation(organisation_id, name, False, policy, change.now_us)

    async def update_organisation(self, organisation: str, policy: Policy | PolicyEdit) -> Organisation:
        async with self._changes.open() as change:
            before = _organisation(await _find_organisation(change.transaction, organisation))
            await _update_policy(change, organisations, before.id, _policy_text(before.policy, policy))
            query = select(organisations).where(organisations.c.id == before.id)
            after = _organisation((await change.transaction.execute(query)).one())
            words = [organisation_words(found) for found in (before, after)]
            await change.record("organisation.update", before.id, words[0], words[1])
        return after

    async def list_organisations(self) -> list[Organisation]:
        """Oldest first."""
        query = _ORGANISATIONS.order_by(organisations.c.created_us, organisations.c.id)
        async with self._transactions.read() as transaction:
            return [_organisation(row) for row in await transaction.rows(query)]

    async def get_organisation(self, organisation: str) -> Organisation:
        async with self._transactions.read() as transaction:
            return _organisation(await _find_organisation(transaction, organisation))

    async def find_organisations(self, filters: GroupFilters, paging: Paging) -> Page[Organisation]:
        async with self._transactions.read() as transaction:
            query = _named_like(_ORGANISATIONS, organisations, filters.name)
            if filters.owned is not None:
                query = query.where(organisations.c.id.in_(filters.owned))
            query = await after_cursor(transaction, query, organisations, paging)
            return Page.of([_organisation(row) for row in await transaction.rows(query)], paging.limit)

    # parts of the above

    async def _home_of(self, change: Change, new: NewKey) -> tuple[str, str | None]:
        """The organisation, and team if one was named, that a new key will belong to."""
        organisation, transaction = None, change.transaction
        if new.organisation is not None:
            organisation = await _find_organisation(transaction, new.organisation)
        if new.team is not None:
            team = await _find_team(transaction, new.team, None if organisation is None else organisation.id)
            return team.organisation_id, team.id
        if organisation is not None:
            return organisation.id, None
        own = await _insert_organisation(change, new.name, UNLIMITED, implicit=True)
        return own, None

    async def _insert_key(self, change: Change, new: NewKey, digest: bytes, hint: str) -> Key:
        check_expiry(new.expires_us, change.now_us)
        organisation_id, team_id = await self._home_of(change, new)
        key_id = new_id(KEY)
        await change.transaction.execute(
            keys.insert().values(
                id=key_id,
                organisation_id=organisation_id,
                team_id=team_id,
                name=new.name,
                hint=hint,
                policy=write_policy(new.policy),
                created_us=change.now_us,
                expires_us=new.expires_us,
                changed_version=change.version,
            )
        )
        await _insert_digest(change, key_id, digest)
        key = await _key_by_id(change.transaction, key_id)
        await change.record("key.create", key.id, None, key_words(key, change.now_us))
        return key


async def _insert_digest(change: Change, key_id: str, digest: bytes) -> None:
    await change.transaction.execute(
        key_digests.insert().values(
            digest=digest, key_id=key_id, created_us=change.now_us, changed_version=change.version
        )
    )


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _validate_time(at_us: int) -> None:
    if not 0 <= at_us <= TIME_MAX_US:
        raise InvalidInput("expires: not a time that can be kept; give Unix microseconds")


def check_overlap(overlap_s: float) -> None:
    """Raises InvalidInput for a time that no old secret may go on."""
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        raise InvalidInput(f"overlap_s: must be from 0 to {OVERLAP_MAX_S:.0f} seconds")


def check_expiry(expires_us: int | None, now_us: int) -> None:
    """Raises InvalidInput for a time that cannot be kept, or has passed."""
    if expires_us is not None:
        _validate_time(expires_us)
        if expires_us <= now_us:
            raise InvalidInput("expires: the time has passed already; name a later one")


def _policy_text(before: Policy, edit: Policy | PolicyEdit) -> str:
    policy = edited(before, edit)
    validate_policy(policy)
    return write_policy(policy)


async def _written(change: Change, action: str, before: Key, values: dict[str, Any]) -> Key:
    """Write to a key's row, and the audit event of it."""
    await change.transaction.execute(
        update(keys).where(keys.c.id == before.id).values(changed_version=change.version, **values)
    )
    after = await _key_by_id(change.transaction, before.id)
    words = [key_words(key, change.now_us) for key in (before, after)]
    await change.record(action, before.id, words[0], words[1])
    return after


async def _update_policy(change: Change, table: Table, row_id: str, text: str) -> None:
    await change.transaction.execute(
        update(table).where(table.c.id == row_id).values(policy=text, changed_version=change.version)
    )


async def _insert_organisation(change: Change, name: str, policy: Policy, *, implicit: bool = False) -> str:
    transaction = change.transaction
    if not implicit:
        same = await transaction.row(_ORGANISATIONS.where(organisations.c.name == name))
        if same is not None:
            raise InvalidInput(f"organisation: {name!r} exists already ({same.id}); name it, or choose another name")
    made = Organisation(new_id(ORGANISATION), name, implicit, policy, change.now_us)
    await transaction.execute(
        organisations.insert().values(
            id=made.id,
            name=name,
            implicit=implicit,
            policy=write_policy(policy),
            created_us=made.created_us,
            changed_version=change.version,
        )
    )
    if not implicit:
        await change.record("organisation.create", made.id, None, organisation_words(made))
    return made.id


async def _find_key(transaction: Transaction, key: str) -> Key:
    """A key by its id or name. Of several with the name, the one that is not revoked."""
    rows = await candidates(transaction, select(keys), keys, key)
    standing = [row for row in rows if row.revoked_us is None]
    return _key(only(standing or rows, key, what="key"))


async def _find_team(transaction: Transaction, team: str, organisation_id: str | None = None) -> Row[Any]:
    rows = await candidates(transaction, _TEAMS, teams, team)
    if organisation_id is not None:
        inside = [row for row in rows if row.organisation_id == organisation_id]
        if rows and not inside:
            raise InvalidInput(f"team {team!r} is not in organisation {organisation_id}")
        rows = inside
    return only(rows, team, what="team")


async def _find_organisation(transaction: Transaction, organisation: str) -> Row[Any]:
    rows = await candidates(transaction, _ORGANISATIONS, organisations, organisation)
    return only(rows, organisation, what="organisation")


async def _keys_query(transaction: Transaction, filters: KeyFilters, now_us: int) -> Select[Any]:
    query = _named_like(select(keys), keys, filters.name)
    expired = and_(keys.c.expires_us.is_not(None), keys.c.expires_us <= now_us)
    match filters.state:
        case "active":
            query = query.where(keys.c.revoked_us.is_(None), not_(expired))
        case "expired":
            query = query.where(keys.c.revoked_us.is_(None), expired)
        case "revoked":
            query = query.where(keys.c.revoked_us.is_not(None))
        case None:
            if not filters.include_revoked:
                query = query.where(keys.c.revoked_us.is_(None))
        case other:
            raise InvalidInput(f"state: {other!r} is not one of active, expired, revoked")
    if filters.organisation is not None:
        organisation = await _find_organisation(transaction, filters.organisation)
        query = query.where(keys.c.organisation_id == organisation.id)
    if filters.team is not None:
        query = query.where(keys.c.team_id == (await _find_team(transaction, filters.team)).id)
    if filters.owned is not None:
        places = (keys.c.id, keys.c.team_id, keys.c.organisation_id)
        query = query.where(or_(*(place.in_(filters.owned) for place in places)))
    return query


def _named_like(query: Select[Any], table: Table, part: str | None) -> Select[Any]:
    """Rows whose name contains a text, in any case as far as the database folds it."""
    if part is None:
        return query
    if not is_text(part):
        return query.where(false())
    return query.where(func.lower(table.c.name).contains(part.lower(), autoescape=True))


async def _team_for(transaction: Transaction, key: Key, team: str) -> str:
    """The id of the team that a key is moved to: one of its own organisation."""
    rows = await candidates(transaction, _TEAMS, teams, team)
    inside = [row for row in rows if row.organisation_id == key.organisation_id]
    if rows and not inside:
        raise InvalidInput(
            f"key {key.id} belongs to organisation {key.organisation_id} for life and can only move between its "
            f"teams; team {team!r} is in organisation {rows[0].organisation_id}: create a new key there"
        )
    team_id: str = only(inside, team, what="team").id
    return team_id


async def candidates(transaction: Transaction, query: Select[Any], table: Table, wanted: str) -> list[Row[Any]]:
    """Rows with this id, or else with this name."""
    if not is_text(wanted):  # could not be stored, so some databases cannot even be asked
        return []
    rows = await transaction.rows(query.where(or_(table.c.id == wanted, table.c.name == wanted)).order_by(table.c.id))
    return [row for row in rows if row.id == wanted] or list(rows)


def only(rows: list[Row[Any]], wanted: str, *, what: str) -> Row[Any]:
    """The one row. Raises NotFound, and InvalidInput naming the ids where there are several."""
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
        previous_until_us=row.previous_until_us,
    )


def _team(row: Row[Any]) -> Team:
    return Team(row.id, row.organisation_id, row.name, read_policy(row.policy), row.created_us, row.deleted_us)


def _organisation(row: Row[Any]) -> Organisation:
    return Organisation(row.id, row.name, row.implicit, read_policy(row.policy), row.created_us, row.deleted_us)
