"""Honest, small versions of the ports that other rooms stand behind."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from tollkeeper.domain.accounts import MonthlyUsage, digest_secret
from tollkeeper.domain.admission import Denial, Grant, LimitState
from tollkeeper.domain.bodies import Body, CapturedBodies
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import Used
from tollkeeper.domain.errors import DatabaseUnavailable, OutboxUnavailable, StoreUnavailable
from tollkeeper.domain.objects import ObjectKind, StoredObject
from tollkeeper.domain.policy import UNLIMITED, Policy, Principal, Scope, ScopeKind
from tollkeeper.domain.ports import (
    ActiveKey,
    ChargePlace,
    Governor,
    KeyChanges,
    ListedCharge,
    RootSnapshot,
    SpendTotals,
)
from tollkeeper.domain.record import RequestRecord
from tollkeeper.domain.usage import NO_USAGE, Usage

DIGEST_KEY = b"0123456789abcdef0123456789abcdef"


class MemoryDirectory:
    """A KeyDirectory with a version per change. `away` makes it fail as a database would."""

    def __init__(self) -> None:
        self.version = 0
        self.away = False
        self.polls = 0
        self._active: dict[bytes, tuple[int, Principal]] = {}
        self._gone: dict[bytes, int] = {}

    async def changes_since(self, version: int) -> KeyChanges | None:
        self.polls += 1
        if self.away:
            raise DatabaseUnavailable("the database is away")
        if version >= self.version:
            return None
        active = tuple(ActiveKey(d, p) for d, (v, p) in self._active.items() if v > version)
        return KeyChanges(self.version, active, tuple(d for d, v in self._gone.items() if v > version))

    def put(self, secret: str, principal: Principal) -> Principal:
        self.version += 1
        digest = digest_secret(DIGEST_KEY, secret.encode())
        self._gone.pop(digest, None)
        self._active[digest] = (self.version, principal)
        return principal

    def remove(self, secret: str) -> None:
        self.version += 1
        digest = digest_secret(DIGEST_KEY, secret.encode())
        del self._active[digest]
        self._gone[digest] = self.version


def principal_of(
    name: str,
    policy: Policy = UNLIMITED,
    *,
    organisation: Policy | None = None,
    expires_at_us: int | None = None,
    revoked_at_us: int | None = None,
) -> Principal:
    """A key of its own organisation, or below one with a policy."""
    scopes = [Scope(ScopeKind.KEY, f"key_{name}", policy)]
    if organisation is not None:
        scopes.append(Scope(ScopeKind.ORGANISATION, f"org_{name}", organisation))
    return Principal(
        f"key_{name}",
        name,
        f"org_{name}",
        tuple(scopes),
        expires_at_us=expires_at_us,
        revoked_at_us=revoked_at_us,
    )


class Records:
    """A RecordSink that keeps everything."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []
        self.expected = 0
        self.bodies: list[tuple[Body | None, Body | None]] = []

    def put(self, record: RequestRecord, bodies: CapturedBodies | None = None) -> None:
        if bodies is not None:
            self.bodies.append(bodies.read())
            bodies.done()
        self.all.append(record)

    def expect(self, count: int) -> None:
        self.expected = len(self.all) + count


class NothingDurable:
    """A SpendLedger that knows nothing and keeps nothing: the accounts of a test end with it."""

    async def load(self, root: str) -> RootSnapshot:
        return RootSnapshot(root, {}, {})

    async def totals(self, wanted: Mapping[str, Collection[str]]) -> dict[str, dict[str, SpendTotals]]:
        return {}

    async def fence(self, roots: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(roots, 1)

    async def save(self, snapshot: RootSnapshot, now_us: int) -> bool:
        return True

    async def save_all(self, snapshots: Sequence[RootSnapshot], now_us: int) -> set[str]:
        return {snapshot.root for snapshot in snapshots}

    async def used_by(self, root: str, digest: str) -> Used | None:
        return None

    async def used(self, root: str, now_us: int, *, after: str = "", limit: int) -> dict[str, Used]:
        return {}

    async def begin(self, root: str, producer: str) -> bool:
        return True

    async def roots(self) -> list[str]:
        return []

    async def monthly_usage(
        self, *, key: str | None = None, year: int | None = None, month: int | None = None
    ) -> Sequence[MonthlyUsage]:
        return []

    async def enrol_producer(self, producer: str, now_us: int) -> bool:
        return True

    async def rest_producer(self, producer: str, now_us: int) -> None: ...

    async def open_producers(self) -> list[str]:
        return []

    async def live_producers(self, since_us: int) -> list[str]:
        return []

    async def charges(self, root: str, attempts: Sequence[str]) -> tuple[Mapping[str, Charge], Mapping[str, int]]:
        return {}, {}

    async def listed(
        self,
        *,
        attempt: str | None = None,
        status: str | None = None,
        key: str | None = None,
        limit: int = 100,
        after: ChargePlace | None = None,
    ) -> Sequence[ListedCharge]:
        return []

    async def claim_orphan(self, claimant: str, now_us: int, unseen_since_us: int) -> str | None:
        return None

    async def closed_among(self, producers: Collection[str]) -> set[str]:
        return set()

    async def forget_marks(self, now_us: int, closed_before_us: int) -> set[str]:
        return set()

    async def retire_producer(self, producer: str, now_us: int) -> None: ...


class MemoryObjects:
    """An ObjectRegistry that ends with the test; tests/storage/test_objects.py is the contract. `away`: as a database
    that does not answer."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, str], StoredObject] = {}
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise DatabaseUnavailable("away")

    async def record(self, objects: Sequence[StoredObject]) -> None:
        self._check()
        self.all |= {(its.root, its.id): its for its in objects}

    async def find(self, root: str, ids: Collection[str]) -> dict[str, StoredObject]:
        self._check()
        return {its: self.all[root, its] for its in ids if (root, its) in self.all}

    async def page(
        self, root: str, kind: ObjectKind, *, limit: int, after: str | None = None, oldest_first: bool = False
    ) -> list[StoredObject]:
        self._check()
        found = [its for its in self.all.values() if its.root == root and its.kind is kind]
        found.sort(key=lambda its: (its.created_us, its.id), reverse=not oldest_first)
        ids = [its.id for its in found]
        start = 0 if after is None else ids.index(after) + 1 if after in ids else len(ids)
        return found[start : start + limit]

    async def take_due(self, now_us: int, *, lease_us: int, limit: int) -> list[StoredObject]:
        self._check()
        due = [its for its in self.all.values() if its.due_us is not None and its.due_us <= now_us]
        due = sorted(due, key=lambda its: its.due_us or 0)[:limit]
        leased = [msgspec.structs.replace(its, due_us=now_us + lease_us) for its in due]
        self.all |= {(its.root, its.id): its for its in leased}
        return leased

    async def forget(self, root: str, ids: Collection[str]) -> None:
        self._check()
        for its in ids:
            self.all.pop((root, its), None)

    async def expire(self, kinds: Collection[ObjectKind], before_us: int) -> int:
        return 0


class End(msgspec.Struct):
    """How one attempt ended."""

    attempt: str
    kind: str
    cost_nano: int
    usage: Usage


class WatchedGovernor:
    """The real ledger, with every end of an attempt written down and faults on request."""

    def __init__(self, ledger: Governor) -> None:
        self._ledger = ledger
        self.granted: list[Grant] = []
        self.dispatches = 0
        self.ends: list[End] = []
        self.away = False
        self.outbox_full = False
        self.broken = False

    async def admit(
        self, principal: Principal, *, attempt: str, tokens: int, hold_nano: int, model: str = "", user: str = ""
    ) -> Grant | Denial:
        if self.away:
            raise StoreUnavailable("the store did not answer in time")
        if self.broken:
            raise ZeroDivisionError("a defect")
        decision = await self._ledger.admit(
            principal, attempt=attempt, tokens=tokens, hold_nano=hold_nano, model=model, user=user
        )
        if isinstance(decision, Grant):
            self.granted.append(decision)
        return decision

    def dispatched(self, grant: Grant) -> None:
        if self.outbox_full:
            raise OutboxUnavailable("the outbox is full")
        self._ledger.dispatched(grant)
        self.dispatches += 1

    def settle(self, grant: Grant, cost_nano: int, usage: Usage, *, presumed: bool = False) -> None:
        self._ledger.settle(grant, cost_nano, usage, presumed=presumed)
        self.ends.append(End(grant.demand.attempt, "presumed" if presumed else "settled", cost_nano, usage))

    def void(self, grant: Grant) -> None:
        self._ledger.void(grant)
        self.ends.append(End(grant.demand.attempt, "voided", 0, NO_USAGE))

    async def limits(self, principal: Principal) -> list[LimitState]:
        return await self._ledger.limits(principal)

    async def reset_limits(self, principal: Principal) -> None:
        await self._ledger.reset_limits(principal)
