"""Tokens of the admin API in the database: digests, never secrets. Whoever shows one is looked up at every request,
so a revoked token ends with the commit."""

import json
import secrets
from typing import Any

from sqlalchemy import Row, and_, or_, select, update

from tollkeeper.domain.accounts import SECRET_BYTES, Unchanged, digest_secret
from tollkeeper.domain.audit import Author
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.operators import (
    SECRET_PREFIX,
    TOKEN,
    AdminToken,
    AdminTokenChange,
    NewAdminToken,
    Role,
    check_owns,
)
from tollkeeper.domain.paging import Page, Paging
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.words import admin_token_words
from tollkeeper.storage.accounts import HINT_CHARACTERS, TIME_MAX_US, candidates, check_expiry, check_overlap, only
from tollkeeper.storage.changes import Change, Changes
from tollkeeper.storage.names import new_id, validate_name
from tollkeeper.storage.pages import after_cursor
from tollkeeper.storage.sessions import begin_era
from tollkeeper.storage.tables import admin_tokens
from tollkeeper.storage.transactions import Transaction


class StoredAdminTokens:
    """`AdminTokens` over the database."""

    def __init__(self, changes: Changes, digest_key: bytes) -> None:
        self._changes = changes
        self._digest_key = digest_key

    def by(self, author: Author) -> "StoredAdminTokens":
        return StoredAdminTokens(self._changes.by(author), self._digest_key)

    async def authenticate(self, secret: str) -> AdminToken | None:
        """See `ports.AdminTokens`. A digest is looked up, never a secret, so no comparison tells anything by its
        time."""
        if not secret.startswith(SECRET_PREFIX):
            return None
        now_us, table = self._changes.now_us(), admin_tokens
        digest = digest_secret(self._digest_key, secret.encode("utf-8", "surrogatepass"))
        previous = and_(table.c.previous_digest == digest, table.c.previous_until_us > now_us)
        async with self._changes.transactions.read() as transaction:
            row = await transaction.row(select(table).where(or_(table.c.digest == digest, previous)))
        if row is None:
            return None
        token = _token(row)
        return token if token.state(now_us) == "active" else None

    async def create(self, new: NewAdminToken) -> tuple[AdminToken, str]:
        validate_name(new.name, what="name")
        check_owns(new.role, new.owns)
        secret = _new_secret()
        async with self._changes.open() as change:
            check_expiry(new.expires_us, change.now_us)
            await _check_name(change, new.name)
            token_id = new_id(TOKEN)
            await change.transaction.execute(
                admin_tokens.insert().values(
                    id=token_id,
                    name=new.name,
                    role=new.role.value,
                    owns=json.dumps(list(new.owns)),
                    hint=secret[-HINT_CHARACTERS:],
                    digest=self._digest(secret),
                    created_us=change.now_us,
                    expires_us=new.expires_us,
                )
            )
            token = await _by_id(change.transaction, token_id)
            await change.record("admin_token.create", token_id, None, admin_token_words(token, change.now_us))
        return token, secret

    async def update(self, token: str, change: AdminTokenChange) -> AdminToken:
        values: dict[str, Any] = {}
        if not isinstance(change.name, Unchanged):
            validate_name(change.name, what="name")
            values["name"] = change.name
        if not isinstance(change.expires_us, Unchanged):
            if change.expires_us is not None and not 0 <= change.expires_us <= TIME_MAX_US:
                raise InvalidInput("expires_at: not a time that can be kept")
            values["expires_us"] = change.expires_us
        async with self._changes.open() as under_way:
            before = await _standing(under_way.transaction, token)
            if not isinstance(change.owns, Unchanged):
                check_owns(before.role, change.owns)
                values["owns"] = json.dumps(list(change.owns))
            if values.get("name", before.name) != before.name:
                await _check_name(under_way, values["name"])
            return await _written(under_way, "admin_token.update", before, values)

    async def rotate(self, token: str, *, overlap_s: float = 0.0) -> tuple[AdminToken, str]:
        check_overlap(overlap_s)
        secret = _new_secret()
        async with self._changes.open() as change:
            before = await _standing(change.transaction, token)
            until_us = change.now_us + int(overlap_s * US_PER_S) if overlap_s else None
            values = {
                "hint": secret[-HINT_CHARACTERS:],
                "digest": self._digest(secret),
                "previous_digest": admin_tokens.c.digest if overlap_s else None,
                "previous_until_us": until_us,
            }
            await begin_era(change.transaction, before.id)
            return await _written(change, "admin_token.rotate", before, values), secret

    async def revoke(self, token: str) -> AdminToken:
        async with self._changes.open() as change:
            before = await _find(change.transaction, token)
            if before.revoked_us is not None:
                return before
            await begin_era(change.transaction, before.id)
            return await _written(change, "admin_token.revoke", before, {"revoked_us": change.now_us})

    async def get(self, token: str) -> AdminToken:
        async with self._changes.transactions.read() as transaction:
            return await _find(transaction, token)

    async def find(self, paging: Paging, *, include_revoked: bool = False) -> Page[AdminToken]:
        query = select(admin_tokens)
        if not include_revoked:
            query = query.where(admin_tokens.c.revoked_us.is_(None))
        async with self._changes.transactions.read() as transaction:
            query = await after_cursor(transaction, query, admin_tokens, paging)
            return Page.of([_token(row) for row in await transaction.rows(query)], paging.limit)

    def _digest(self, secret: str) -> bytes:
        return digest_secret(self._digest_key, secret.encode())


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


async def _check_name(change: Change, name: str) -> None:
    query = select(admin_tokens.c.id).where(admin_tokens.c.name == name, admin_tokens.c.revoked_us.is_(None))
    same = await change.transaction.row(query)
    if same is not None:
        raise InvalidInput(f"name: {name!r} is the name of {same.id} already; choose another one")


async def _find(transaction: Transaction, token: str) -> AdminToken:
    rows = await candidates(transaction, select(admin_tokens), admin_tokens, token)
    standing = [row for row in rows if row.revoked_us is None]
    return _token(only(standing or rows, token, what="admin token"))


async def _standing(transaction: Transaction, token: str) -> AdminToken:
    found = await _find(transaction, token)
    if found.revoked_us is not None:
        raise InvalidInput(f"admin token {found.id} is revoked: create a new one")
    return found


async def _written(change: Change, action: str, before: AdminToken, values: dict[str, Any]) -> AdminToken:
    if values:
        await change.transaction.execute(update(admin_tokens).where(admin_tokens.c.id == before.id).values(**values))
    after = await _by_id(change.transaction, before.id)
    words = [admin_token_words(token, change.now_us) for token in (before, after)]
    await change.record(action, before.id, words[0], words[1])
    return after


async def _by_id(transaction: Transaction, token_id: str) -> AdminToken:
    return _token((await transaction.execute(select(admin_tokens).where(admin_tokens.c.id == token_id))).one())


def _token(row: Row[Any]) -> AdminToken:
    return AdminToken(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        owns=tuple(json.loads(row.owns)),
        hint=row.hint,
        created_us=row.created_us,
        expires_us=row.expires_us,
        revoked_us=row.revoked_us,
        previous_until_us=row.previous_until_us,
    )
