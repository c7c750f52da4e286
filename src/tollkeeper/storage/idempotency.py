"""Idempotency keys in the database. A key is named by a digest over the caller's token, and its answer is sealed
under a key made of that token: who has the database, and even the digest key, can read neither.
"""

import hmac
import secrets
from collections.abc import Callable
from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from tollkeeper.domain.audit import EVENT
from tollkeeper.domain.idempotency import (
    ANSWER_BYTES_MAX,
    KEYS_MAX,
    LEASE_S,
    REMEMBERED_S,
    Answered,
    AnswerLost,
    Begun,
    Fresh,
    InUse,
    Reused,
    TooMany,
)
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.sealing import NONCE_BYTES, seal, unseal
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.tables import audit_events, idempotency_keys
from tollkeeper.storage.transactions import Transaction, Transactions

_TABLE = idempotency_keys


class StoredIdempotency:
    """`IdempotencyBook` over the database."""

    def __init__(
        self,
        transactions: Transactions,
        digest_key: bytes,
        now_us: Callable[[], int],
        *,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._transactions, self._digest_key, self._now_us = transactions, digest_key, now_us
        self._keys_max = keys_max

    async def begin(self, token: str, key: str, fingerprint: bytes) -> Begun:
        now_us = self._now_us()
        digest, lease_us = self._derived(b"name", token, key), now_us + LEASE_S * US_PER_S
        async with self._transactions.write() as transaction:
            await transaction.execute(_TABLE.delete().where(_TABLE.c.expires_us <= now_us))
            row = {
                "digest": digest,
                "fingerprint": fingerprint,
                "lease_until_us": lease_us,
                "expires_us": now_us + REMEMBERED_S * US_PER_S,
            }
            if await _is_full(transaction, self._keys_max):
                if await _row(transaction, digest) is None:
                    return TooMany()
            elif (await transaction.execute(_insert(transaction.dialect), row)).rowcount == 1:
                return Fresh(digest, lease_us)
            known = await _row(transaction, digest)
            if known is None:  # pragma: no cover - rows leave only in a transaction of this kind, which waited
                return InUse()
            return await self._known(transaction, known, fingerprint, token, key, now_us)

    async def _known(
        self, transaction: Transaction, row: Row[Any], fingerprint: bytes, token: str, key: str, now_us: int
    ) -> Begun:
        if not hmac.compare_digest(row.fingerprint, fingerprint):
            return Reused()
        if row.status is not None:
            body = unseal(self._derived(b"seal", token, key), row.sealed)
            if body is not None:
                return Answered(row.status, body)
        elif row.lease_until_us > now_us:
            return InUse()
        query = select(audit_events).where(audit_events.c.idempotency == row.digest).order_by(audit_events.c.number)
        event = await transaction.row(query.limit(1))
        if event is not None:
            return AnswerLost(f"{EVENT}{event.number}", event.action, event.object_id)
        lease_us = now_us + LEASE_S * US_PER_S
        await transaction.execute(
            update(_TABLE).where(_TABLE.c.digest == row.digest).values(lease_until_us=lease_us, status=None)
        )
        return Fresh(row.digest, lease_us)

    async def answered(self, turn: Fresh, token: str, key: str, answer: Answered) -> None:
        if len(answer.body) > ANSWER_BYTES_MAX:
            await self.lost(turn)
            return
        sealed = seal(self._derived(b"seal", token, key), secrets.token_bytes(NONCE_BYTES), answer.body)
        async with self._transactions.write() as transaction:
            await transaction.execute(_mine(turn).values(status=answer.status, sealed=sealed))

    async def refused(self, turn: Fresh) -> None:
        mine = (_TABLE.c.digest == turn.digest) & (_TABLE.c.lease_until_us == turn.lease_until_us)
        async with self._transactions.write() as transaction:
            await transaction.execute(_TABLE.delete().where(mine))

    async def lost(self, turn: Fresh) -> None:
        async with self._transactions.write() as transaction:
            await transaction.execute(_mine(turn).values(lease_until_us=self._now_us()))

    def _derived(self, purpose: bytes, token: str, key: str) -> bytes:
        text = purpose + b"\0" + token.encode("utf-8", "surrogatepass") + b"\0" + key.encode()
        return hmac.digest(self._digest_key, b"idempotency " + text, "sha256")


def _mine(turn: Fresh) -> Any:
    return update(_TABLE).where(_TABLE.c.digest == turn.digest, _TABLE.c.lease_until_us == turn.lease_until_us)


async def _row(transaction: Transaction, digest: bytes) -> Row[Any] | None:
    return await transaction.row(select(_TABLE).where(_TABLE.c.digest == digest).with_for_update())


async def _is_full(transaction: Transaction, most: int) -> bool:
    count: int = (await transaction.execute(select(func.count()).select_from(_TABLE))).scalar_one()
    return count >= most


def _insert(dialect: Dialect) -> Insert:
    insert = postgresql.insert if dialect is Dialect.POSTGRESQL else sqlite.insert
    statement: Insert = insert(_TABLE).on_conflict_do_nothing()
    return statement
