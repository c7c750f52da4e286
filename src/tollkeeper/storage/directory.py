"""The key directory: what the data plane polls to keep its table of keys current. It only reads, and has no clock.

Every writing transaction takes the next version of the change counter and holds that row until it commits, so a
reader that sees version N sees everything written under versions up to N.
"""

from typing import Any

import msgspec
from sqlalchemy import Row, Select, or_, select, union

from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import ActiveKey, KeyChanges
from tollkeeper.storage.principals import JOINED, KEY_COLUMNS, read_principal
from tollkeeper.storage.tables import change_counter, key_digests, keys, organisations, teams
from tollkeeper.storage.transactions import Transactions

_COUNTER = select(change_counter.c.version)


class StoredDirectory:
    """`KeyDirectory` over the database."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def changes_since(self, version: int) -> KeyChanges | None:
        """See `ports.KeyDirectory`.

        A counter below `version` means that the database was put back to an older state: then everything is
        delivered again.
        """
        async with self._transactions.read() as transaction:
            row = await transaction.row(_COUNTER)
            if row is not None and row.version == version:
                return None
        async with self._transactions.snapshot() as transaction:
            # Read again, so that the version and the rows are of one state of the database.
            current: int = (await transaction.execute(_COUNTER)).scalar_one()
            if current == version:
                return None
            rows = await transaction.rows(_changes(version if version <= current else 0))
        active: list[ActiveKey] = []
        gone: list[bytes] = []
        for row in rows:
            if row.digest_expires_us is None:
                active.append(ActiveKey(row.digest, _principal(row)))
            else:
                gone.append(row.digest)
        return KeyChanges(current, tuple(active), tuple(gone))


def _principal(row: Row[Any]) -> Principal:
    """Whom a digest stands for. A secret that was rotated with an overlap is one that expires at its end."""
    principal = read_principal(row)
    until_us, expires_us = row.valid_until_us, principal.expires_at_us
    if until_us is None or (expires_us is not None and expires_us <= until_us):
        return principal
    return msgspec.structs.replace(principal, expires_at_us=until_us)


def _changes(version: int) -> Select[Any]:
    digests = (
        select(
            key_digests.c.digest,
            key_digests.c.expires_us.label("digest_expires_us"),
            key_digests.c.valid_until_us,
            *KEY_COLUMNS,
        )
        .select_from(JOINED.join(key_digests, key_digests.c.key_id == keys.c.id))
        .order_by(keys.c.id)
    )
    if version <= 0:
        return digests.where(key_digests.c.expires_us.is_(None))
    changed = union(
        select(keys.c.id).where(keys.c.changed_version > version),
        select(keys.c.id).join(teams, teams.c.id == keys.c.team_id).where(teams.c.changed_version > version),
        select(keys.c.id)
        .join(organisations, organisations.c.id == keys.c.organisation_id)
        .where(organisations.c.changed_version > version),
    )
    # A digest that went away is told once; one that stands is told with every change of its key.
    return digests.where(
        keys.c.id.in_(changed),
        or_(key_digests.c.expires_us.is_(None), key_digests.c.changed_version > version),
    )
