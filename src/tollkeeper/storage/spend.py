"""The durable accounts of spend: absolute totals, and the marks that say which entries they include.

A total is the sum of every producer's entries up to its mark, so one snapshot is newer than another exactly when
its marks dominate; `save` writes only such. Which memory of the store a snapshot is of is told by its number, and
nothing is written of one before the latest. It knows nothing of Redis, outboxes or entries.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Executable, Table, and_, bindparam, func, or_, select, text, union
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from tollkeeper.domain.accounts import MonthlyUsage
from tollkeeper.domain.admission import split_counter
from tollkeeper.domain.charges import QUARANTINED, Charge
from tollkeeper.domain.entries import PRESUMED, SETTLED, Used, dominates, is_buried, used_from
from tollkeeper.domain.errors import NotFound
from tollkeeper.domain.periods import month_of_label
from tollkeeper.domain.ports import ChargePlace, ListedCharge, RootSnapshot, SpendTotals
from tollkeeper.storage.address import Dialect
from tollkeeper.storage.names import KEY, is_text
from tollkeeper.storage.tables import (
    charges,
    fences,
    keys,
    marks,
    monthly_usage_summary,
    producers,
    spend,
    usage_keys,
)
from tollkeeper.storage.transactions import Transaction, Transactions

FORGOTTEN_AT_ONCE: Final = 500
FORGOTTEN_US: Final = 30 * 86_400 * 1_000_000
"""So long after the database dropped its marks a producer's are still dropped from stores."""
BATCH_ROWS: Final = 1000
"""Rows of one upsert, so that each stays far below the deadline of a statement."""

USED_KEPT_LONGER_US: Final = 3600 * 1_000_000
"""Idempotency keys stay this long after they may be forgotten: our clock is not the store's."""

Rows = list[dict[str, Any]]


def _upsert(table: Table, dialect: Dialect, changed: tuple[str, ...]) -> Insert:
    """Inserts rows; of those that exist, the columns of `changed` are written (none: they stay as they are)."""
    statement = postgresql.insert(table) if dialect is Dialect.POSTGRESQL else sqlite.insert(table)
    identity = list(table.primary_key.columns)
    if changed:
        values = {name: statement.excluded[name] for name in changed}
        upsert: Insert = statement.on_conflict_do_update(index_elements=identity, set_=values)
    else:
        upsert = statement.on_conflict_do_nothing(index_elements=identity)
    if dialect is Dialect.SQLITE:
        return upsert
    # A batch is one statement over one array a column: half the time of a statement a row.
    arrays = [bindparam(column.name, type_=postgresql.ARRAY(column.type)) for column in table.columns]
    names = [column.name for column in table.columns]
    incoming = func.unnest(*arrays).table_valued(*names, name="incoming").render_derived()
    return upsert.from_select(names, select(*(incoming.c[name] for name in names)))


async def _write(transaction: Transaction, statements: Mapping[Dialect, Insert], rows: Rows) -> None:
    """Upsert the rows in batches."""
    # In one order everywhere, so that two transactions never wait for each other's rows.
    rows.sort(key=lambda row: tuple(row.values())[:3])
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        if transaction.dialect is Dialect.POSTGRESQL:
            await transaction.execute(
                statements[transaction.dialect], {name: [row[name] for row in batch] for name in batch[0]}
            )
        else:
            await transaction.execute(statements[transaction.dialect], batch)


_TOTALS: Final = (*SpendTotals.__struct_fields__, "updated_us")
_SAVE_MARKS: Final = {dialect: _upsert(marks, dialect, ("number",)) for dialect in Dialect}
_BEGIN: Final = {dialect: _upsert(marks, dialect, ()) for dialect in Dialect}
_SAVE_CHARGES: Final = {
    dialect: _upsert(charges, dialect, tuple(c.name for c in charges.columns if not c.primary_key))
    for dialect in Dialect
}
_SAVE_SPEND: Final = _upsert(spend, Dialect.SQLITE, _TOTALS)
_SAVE_MONTHS: Final = _upsert(monthly_usage_summary, Dialect.SQLITE, _TOTALS)
_TOTAL_COLUMNS: Final = ("root", "scope", "period", *SpendTotals.__struct_fields__, "year", "month")
"""Of a row of totals; year and month only where it is also a row of `monthly_usage_summary`."""


def _save_both() -> Insert:
    """PostgreSQL's upsert of totals and months: one statement over one array a column, which both tables share."""
    types = {column.name: column.type for column in (*monthly_usage_summary.columns, *spend.columns)}
    arrays = [bindparam(name, type_=postgresql.ARRAY(types[name])) for name in _TOTAL_COLUMNS]
    rows = func.unnest(*arrays).table_valued(*_TOTAL_COLUMNS, name="incoming").render_derived()
    incoming = select(*(rows.c[name] for name in _TOTAL_COLUMNS)).cte("totals")
    at = bindparam("updated_us", type_=spend.c.updated_us.type)

    def upsert(table: Table, sources: Mapping[str, str]) -> Insert:
        insert = postgresql.insert(table)
        taken = select(*(incoming.c[sources.get(c.name, c.name)] for c in table.columns if c.name != at.key), at)
        if table is monthly_usage_summary:
            taken = taken.where(incoming.c.year.is_not(None))
        names = [*(c.name for c in table.columns if c.name != at.key), at.key]
        return insert.from_select(names, taken).on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={name: insert.excluded[name] for name in _TOTALS},
        )

    months = upsert(monthly_usage_summary, {"key_id": "scope"})
    return upsert(spend, {}).add_cte(months.cte("months"))


_SAVE_BOTH: Final = _save_both()
_SAVE_USED: Final = {dialect: _upsert(usage_keys, dialect, ("cost_nano", "until_us", "entry")) for dialect in Dialect}
_ENROL: Final = {dialect: _upsert(producers, dialect, ()) for dialect in Dialect}
_OPEN: Final = producers.update().where(producers.c.closed_us.is_(None))
_SAVE_FENCES: Final = {dialect: _upsert(fences, dialect, ("number",)) for dialect in Dialect}
_LOCK_ROOTS: Final = text("SELECT pg_advisory_xact_lock(lock) FROM unnest(CAST(:locks AS BIGINT[])) AS lock")
_MARKS: Final = select(marks.c.producer, marks.c.number)


class StoredSpend:
    """`SpendLedger` over the database."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def load(self, root: str) -> RootSnapshot:
        # Marks and totals of two different states would charge twice what lies between them.
        async with self._transactions.snapshot() as transaction:
            stored = await _stored_marks(transaction, root)
            rows = await transaction.rows(select(spend).where(spend.c.root == root))
        return RootSnapshot(
            root,
            stored,
            {_name_of(row): _totals_of(row) for row in rows},
        )

    async def totals(self, wanted: Mapping[str, Collection[str]]) -> dict[str, dict[str, SpendTotals]]:
        """See `ports.SpendLedger`."""
        scopes = {split_counter(name)[0] for names in wanted.values() for name in names}
        query = select(spend).where(spend.c.root.in_(sorted(wanted)), spend.c.scope.in_(sorted(scopes)))
        found: dict[str, dict[str, SpendTotals]] = {}
        async with self._transactions.read() as transaction:
            for row in await transaction.rows(query):
                name = _name_of(row)
                if name in wanted[row.root]:
                    found.setdefault(row.root, {})[name] = _totals_of(row)
        return found

    async def fence(self, roots: Collection[str]) -> dict[str, int]:
        """See `ports.SpendLedger`."""
        if not roots:
            return {}
        async with self._transactions.write() as transaction:
            await _lock(transaction, roots)  # a save that has read the old number has ended, then
            rows = await transaction.rows(_number(transaction.dialect, roots))
            return {row.root: row.number for row in rows}

    async def save(self, snapshot: RootSnapshot, now_us: int) -> bool:
        """See `ports.SpendLedger`."""
        return bool(await self.save_all([snapshot], now_us))

    async def save_all(self, snapshots: Sequence[RootSnapshot], now_us: int) -> set[str]:
        """See `ports.SpendLedger`."""
        async with self._transactions.write() as transaction:
            await _lock(transaction, [s.root for s in snapshots])
            stored = await _marks_of(transaction, [s.root for s in snapshots])
            fenced = await _fences_of(transaction, [s.root for s in snapshots])
            latest = [s for s in snapshots if s.fence >= fenced.get(s.root, 0)]
            newer = [s for s in latest if dominates(s.marks, stored[s.root])]
            new = [row for s in newer for row in _mark_rows(s, stored[s.root])]
            gone = await _forgotten(transaction, [r["producer"] for r in new if is_buried(r["number"])])
            await _write(transaction, _SAVE_MARKS, [r for r in new if r["producer"] not in gone])
            # A store that is ahead of a database which was put back from a backup.
            ahead = [s for s in newer if s.fence > fenced.get(s.root, 0)]
            await _write(transaction, _SAVE_FENCES, [{"root": s.root, "number": s.fence} for s in ahead])
            for snapshot in newer:
                await _save_charges(transaction, snapshot, now_us)
            await _save_totals(transaction, newer, now_us)
            await _save_used(transaction, [s for s in newer if s.used], now_us)
        return {s.root for s in newer}

    async def used(self, root: str, now_us: int, *, after: str = "", limit: int) -> dict[str, Used]:
        """See `ports.SpendLedger`."""
        key = usage_keys.c
        query = select(usage_keys).where(key.root == root, key.digest > after, key.until_us > now_us)
        query = query.order_by(key.root, key.digest).limit(limit)
        async with self._transactions.read() as transaction:
            rows = await transaction.rows(query)
        return {row.digest: _used_of(row) for row in rows}

    async def used_by(self, root: str, digest: str) -> Used | None:
        """See `ports.SpendLedger`."""
        query = select(usage_keys).where(usage_keys.c.root == root, usage_keys.c.digest == digest)
        async with self._transactions.read() as transaction:
            row = await transaction.row(query)
        return None if row is None else _used_of(row)

    async def charges(self, root: str, attempts: Sequence[str]) -> tuple[Mapping[str, Charge], Mapping[str, int]]:
        """See `ports.SpendLedger`."""
        query = select(charges).where(charges.c.root == root, charges.c.attempt.in_(attempts))
        async with self._transactions.snapshot() as transaction:
            stored = await _stored_marks(transaction, root)
            listed = [_listed(row) for row in await transaction.rows(query)]
        return {each.attempt: each.charge for each in listed}, stored

    async def listed(
        self,
        *,
        attempt: str | None = None,
        status: str | None = None,
        key: str | None = None,
        limit: int = 100,
        after: ChargePlace | None = None,
    ) -> Sequence[ListedCharge]:
        """See `ports.SpendLedger`."""
        query = select(charges).order_by(charges.c.updated_us.desc(), charges.c.attempt).limit(limit)
        if attempt is not None:
            query = query.where(charges.c.attempt.in_([attempt, QUARANTINED + attempt]))
        if key is not None:
            query = query.where(charges.c.key_id == key)
        if status is not None:
            rank = charges.c.rank
            wanted = {"quarantined": rank == 0, "presumed": rank == PRESUMED, "settled": rank == SETTLED}
            query = query.where(wanted.get(status, rank > SETTLED))
        if after is not None:
            changed, attempts = charges.c.updated_us, charges.c.attempt
            query = query.where(or_(changed < after[0], and_(changed == after[0], attempts > after[1])))
        async with self._transactions.read() as transaction:
            return [_listed(row) for row in await transaction.rows(query)]

    async def claim_orphan(self, claimant: str, now_us: int, unseen_since_us: int) -> str | None:
        """See `ports.SpendLedger`."""
        unclaimed = or_(producers.c.claimed_us.is_(None), producers.c.claimed_us < unseen_since_us)
        lost = (producers.c.closed_us.is_(None), producers.c.seen_us < unseen_since_us, unclaimed)
        async with self._transactions.write() as transaction:
            row = await transaction.row(select(producers.c.id).where(*lost).order_by(producers.c.seen_us).limit(1))
            if row is None:
                return None
            claim = producers.update().where(producers.c.id == row.id, *lost)
            won = await transaction.execute(claim.values(claimant=claimant, claimed_us=now_us))
            return row.id if won.rowcount == 1 else None

    async def closed_among(self, wanted: Collection[str]) -> set[str]:
        """See `ports.SpendLedger`."""
        query = select(producers.c.id).where(producers.c.id.in_(list(wanted)), producers.c.closed_us.is_not(None))
        async with self._transactions.read() as transaction:
            return {row.id for row in await transaction.rows(query)}

    async def forget_marks(self, now_us: int, closed_before_us: int) -> set[str]:
        """See `ports.SpendLedger`. Not while any open producer was last seen before the close: it may still have
        entries that name the closed one."""
        open_ones = select(func.min(producers.c.seen_us)).where(
            producers.c.closed_us.is_(None), producers.c.rested_us.is_(None)
        )
        async with self._transactions.write() as transaction:
            row = await transaction.row(open_ones)
            before_us = min(closed_before_us, row[0] if row is not None and row[0] is not None else closed_before_us)
            due = (
                select(producers.c.id)
                .where(producers.c.closed_us < before_us, producers.c.forgotten_us.is_(None))
                .limit(FORGOTTEN_AT_ONCE)
            )
            ids = [row.id for row in await transaction.rows(due)]
            if ids:
                await transaction.execute(marks.delete().where(marks.c.producer.in_(ids)))
                await transaction.execute(
                    producers.update().where(producers.c.id.in_(ids)).values(forgotten_us=now_us)
                )
            recent = select(producers.c.id).where(producers.c.forgotten_us > now_us - FORGOTTEN_US)
            return {row.id for row in await transaction.rows(recent)}

    async def begin(self, root: str, producer: str) -> bool:
        """See `ports.SpendLedger`."""
        async with self._transactions.write() as transaction:
            await _lock(transaction, [root])
            known = await _stored_marks(transaction, root)
            if producer not in known:
                await _write(transaction, _BEGIN, [{"root": root, "producer": producer, "number": 0}])
        return not known

    async def roots(self) -> list[str]:
        async with self._transactions.read() as transaction:
            known = union(select(marks.c.root), select(spend.c.root)).subquery()
            return [row.root for row in await transaction.rows(select(known.c.root).order_by(known.c.root))]

    async def monthly_usage(
        self, *, key: str | None = None, year: int | None = None, month: int | None = None
    ) -> Sequence[MonthlyUsage]:
        """See `ports.SpendLedger`. `key` is an id or a name; a name that several keys bear gives the rows of all.

        Raises `NotFound` if there is neither such a key nor usage of one.
        """
        table = monthly_usage_summary
        query = select(table).order_by(table.c.year.desc(), table.c.month.desc(), table.c.key_id)
        if year is not None:
            query = query.where(table.c.year == year)
        if month is not None:
            query = query.where(table.c.month == month)
        async with self._transactions.read() as transaction:
            if key is not None:
                if not is_text(key):
                    raise NotFound(f"there is no key {key!r}")
                named = select(keys.c.id).where(or_(keys.c.id == key, keys.c.name == key))
                used = select(table.c.key_id).where(table.c.key_id == key)
                ids = [row[0] for row in await transaction.rows(union(named, used))]
                if not ids:
                    raise NotFound(f"there is no key {key!r}")
                query = query.where(table.c.key_id.in_(ids))
            rows = await transaction.rows(query)
        return [MonthlyUsage(**row._mapping) for row in rows]

    async def enrol_producer(self, producer: str, now_us: int) -> bool:
        """See `ports.SpendLedger`. A heartbeat never moves back; a closed producer stays as it is."""
        async with self._transactions.write() as transaction:
            await _write(transaction, _ENROL, [_producer_row(producer, now_us)])
            await transaction.execute(
                _OPEN.where(producers.c.id == producer, producers.c.seen_us < now_us).values(seen_us=now_us)
            )
            await transaction.execute(
                _OPEN.where(producers.c.id == producer, producers.c.rested_us.is_not(None)).values(rested_us=None)
            )
            closed = select(producers.c.id).where(producers.c.id == producer, producers.c.closed_us.is_not(None))
            return await transaction.row(closed) is None

    async def rest_producer(self, producer: str, now_us: int) -> None:
        """See `ports.SpendLedger`."""
        async with self._transactions.write() as transaction:
            await transaction.execute(_OPEN.where(producers.c.id == producer).values(rested_us=now_us))

    async def open_producers(self) -> list[str]:
        """See `ports.SpendLedger`."""
        query = select(producers.c.id).where(producers.c.closed_us.is_(None), producers.c.rested_us.is_(None))
        async with self._transactions.read() as transaction:
            return [row.id for row in await transaction.rows(query.order_by(producers.c.id))]

    async def live_producers(self, since_us: int) -> list[str]:
        """See `ports.SpendLedger`."""
        query = select(producers.c.id).where(producers.c.closed_us.is_(None), producers.c.seen_us >= since_us)
        async with self._transactions.read() as transaction:
            return [row[0] for row in await transaction.rows(query)]

    async def retire_producer(self, producer: str, now_us: int) -> None:
        """See `ports.SpendLedger`. A producer is closed once: the first time stays."""
        async with self._transactions.write() as transaction:
            await _write(transaction, _ENROL, [_producer_row(producer, now_us)])
            await transaction.execute(
                _OPEN.where(producers.c.id == producer).values(seen_us=now_us, closed_us=now_us)
            )


def _name_of(row: Any) -> str:
    return f"{row.scope}:{row.period}" if row.scope else row.period


def _used_of(row: Any) -> Used:
    return used_from(f"{row.cost_nano} {row.until_us} {row.entry}")


def _totals_of(row: Any) -> SpendTotals:
    return SpendTotals(row.cost_nano, row.requests, row.input_tokens, row.output_tokens, row.cached_tokens)


def _producer_row(producer: str, now_us: int) -> dict[str, Any]:
    return {"id": producer, "enrolled_us": now_us, "seen_us": now_us, "closed_us": None} | dict.fromkeys(
        ("rested_us", "claimant", "claimed_us", "forgotten_us")
    )


async def _stored_marks(transaction: Transaction, root: str) -> dict[str, int]:
    rows = await transaction.rows(_MARKS.where(marks.c.root == root))
    return {row.producer: row.number for row in rows}


async def _marks_of(transaction: Transaction, roots: Sequence[str]) -> dict[str, dict[str, int]]:
    stored: dict[str, dict[str, int]] = {root: {} for root in roots}
    for row in await transaction.rows(select(marks).where(marks.c.root.in_(roots))):
        stored[row.root][row.producer] = row.number
    return stored


def _number(dialect: Dialect, roots: Collection[str]) -> Executable:
    insert = postgresql.insert(fences) if dialect is Dialect.POSTGRESQL else sqlite.insert(fences)
    # In one order everywhere, so that two transactions never wait for each other's rows.
    rows = insert.values([{"root": root, "number": 1} for root in sorted(roots)])
    upsert = rows.on_conflict_do_update(index_elements=[fences.c.root], set_={"number": fences.c.number + 1})
    return upsert.returning(fences.c.root, fences.c.number)


async def _fences_of(transaction: Transaction, roots: Sequence[str]) -> dict[str, int]:
    rows = await transaction.rows(select(fences).where(fences.c.root.in_(roots)))
    return {row.root: row.number for row in rows}


async def _forgotten(transaction: Transaction, wanted: Sequence[str]) -> set[str]:
    if not wanted:
        return set()
    query = select(producers.c.id).where(producers.c.id.in_(wanted), producers.c.forgotten_us.is_not(None))
    return {row.id for row in await transaction.rows(query)}


async def _save_charges(transaction: Transaction, snapshot: RootSnapshot, now_us: int) -> None:
    """What was presumed first is remembered beside what is charged now."""
    records = {a: c for a, c in snapshot.charges.items() if c.rank or a.startswith(QUARANTINED)}
    names, before = sorted(records), {}
    for start in range(0, len(names), BATCH_ROWS):
        query = select(charges.c.attempt, charges.c.presumed_nano).where(
            charges.c.root == snapshot.root, charges.c.attempt.in_(names[start : start + BATCH_ROWS])
        )
        before.update({row.attempt: row.presumed_nano for row in await transaction.rows(query)})
    rows: Rows = [
        {
            "root": snapshot.root,
            "attempt": attempt,
            "rank": 0 if attempt.startswith(QUARANTINED) else charge.rank,  # it charged nothing
            "key_id": _key_of(charge),
            "presumed_nano": charge.cost_nano if charge.rank == PRESUMED else before.get(attempt),
            "cost_nano": charge.cost_nano,
            "requests": charge.requests,
            "input_tokens": charge.input_tokens,
            "output_tokens": charge.output_tokens,
            "cached_tokens": charge.cached_tokens,
            "known": charge.known,
            "updated_us": now_us,
        }
        for attempt, charge in records.items()
    ]
    await _write(transaction, _SAVE_CHARGES, rows)


def _key_of(charge: Charge) -> str:
    scopes = [split_counter(ref.name)[0] for ref in charge.what_is_known().counters]
    return next((scope for scope in scopes if scope.startswith(KEY)), "")


def _listed(row: Any) -> ListedCharge:
    tokens = (row.input_tokens, row.output_tokens, row.cached_tokens)
    charge = Charge(row.rank, row.cost_nano, row.requests, *tokens, row.known)
    return ListedCharge(row.root, row.attempt, charge, row.presumed_nano, row.updated_us)


async def _lock(transaction: Transaction, roots: Collection[str]) -> None:
    """Until its end, others that write of these roots wait: in one order everywhere, so that two never wait for each
    other. SQLite has one writer at a time as it is."""
    if transaction.dialect is Dialect.POSTGRESQL:
        await transaction.execute(_LOCK_ROOTS, {"locks": sorted(map(_lock_of, roots))})


def _lock_of(root: str) -> int:
    digest = hashlib.blake2b(root.encode(), digest_size=8, person=b"tollkeeper-root").digest()
    return int.from_bytes(digest, "big", signed=True)


def _mark_rows(snapshot: RootSnapshot, stored: Mapping[str, int]) -> Rows:
    return [
        {"root": snapshot.root, "producer": producer, "number": number}
        for producer, number in snapshot.marks.items()
        if stored.get(producer) != number
    ]


async def _save_totals(transaction: Transaction, snapshots: Sequence[RootSnapshot], now_us: int) -> None:
    rows = sorted(_total_rows(snapshots))
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        if transaction.dialect is Dialect.POSTGRESQL:
            columns = dict(zip(_TOTAL_COLUMNS, map(list, zip(*batch, strict=True)), strict=True))
            await transaction.execute(_SAVE_BOTH, {**columns, "updated_us": now_us})
            continue
        named: Rows = [{**dict(zip(_TOTAL_COLUMNS, row, strict=True)), "updated_us": now_us} for row in batch]
        await transaction.execute(_SAVE_SPEND, named)
        months: Rows = [{**row, "key_id": row["scope"]} for row in named if row["year"] is not None]
        if months:
            await transaction.execute(_SAVE_MONTHS, months)


def _total_rows(snapshots: Sequence[RootSnapshot]) -> Iterator[tuple[Any, ...]]:
    """As `_TOTAL_COLUMNS` names them."""
    for snapshot in snapshots:
        for name, t in snapshot.totals.items():
            scope, period = split_counter(name)
            month = month_of_label(period) if scope.startswith(KEY) else None
            spent = (t.cost_nano, t.requests, t.input_tokens, t.output_tokens, t.cached_tokens)
            yield (snapshot.root, scope, period, *spent, *(month or (None, None)))


async def _save_used(transaction: Transaction, snapshots: Sequence[RootSnapshot], now_us: int) -> None:
    if not snapshots:
        return
    await _write(transaction, _SAVE_USED, [row for snapshot in snapshots for row in _used_rows(snapshot)])
    roots = usage_keys.c.root.in_([snapshot.root for snapshot in snapshots])
    await transaction.execute(usage_keys.delete().where(roots, usage_keys.c.until_us <= now_us - USED_KEPT_LONGER_US))


def _used_rows(snapshot: RootSnapshot) -> Rows:
    return [
        {
            "root": snapshot.root,
            "digest": digest,
            "cost_nano": known.cost_nano,
            "until_us": known.until_us,
            "entry": known.entry,
        }
        for digest, known in snapshot.used.items()
    ]
