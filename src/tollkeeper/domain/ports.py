"""Where the rooms meet: what each needs of another, as Protocols. `app.py` puts real parts behind them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from tollkeeper.domain.accounts import (
    GroupFilters,
    Key,
    KeyChange,
    KeyFilters,
    MonthFilters,
    MonthlyUsage,
    MonthTotals,
    NewKey,
    Organisation,
    PolicyEdit,
    Team,
)
from tollkeeper.domain.admission import Denial, Grant, LimitState
from tollkeeper.domain.alerts import Alert, AlertFilters, GivenAlert
from tollkeeper.domain.audit import AuditEvent, AuditFilters, Author
from tollkeeper.domain.bodies import CapturedBodies
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import Used
from tollkeeper.domain.idempotency import Answered, Begun, Fresh
from tollkeeper.domain.log_account import PipelineStats, VerifyReport
from tollkeeper.domain.log_search import LogFilters, LogPage
from tollkeeper.domain.operators import AdminToken, AdminTokenChange, NewAdminToken
from tollkeeper.domain.paging import Page, Paging
from tollkeeper.domain.policy import Policy, Principal, Scope, ScopeKind
from tollkeeper.domain.record import RequestRecord
from tollkeeper.domain.reports import Report, ReportQuery
from tollkeeper.domain.usage import Usage


class Governor(Protocol):
    """Admission and settlement, as the data plane sees them."""

    async def admit(
        self, principal: Principal, *, attempt: str, tokens: int, hold_nano: int, model: str = "", user: str = ""
    ) -> Grant | Denial:
        """Decide over all limits and budgets at once. Raises `Unavailable` if no decision can be had.

        `model` and `user` (the caller's end user) say which windows for some models or per user count.
        """
        ...

    def dispatched(self, grant: Grant) -> None:
        """Write the dispatch line, before the first byte goes upstream. Raises `OutboxUnavailable`."""
        ...

    def settle(self, grant: Grant, cost_nano: int, usage: Usage, *, presumed: bool = False) -> None:
        """Charge an attempt: durable on local disk and sent when this returns. Never fails for a full store."""
        ...

    def void(self, grant: Grant) -> None:
        """Release an attempt that was certainly never sent upstream: hold, slot and weights are returned."""
        ...

    async def limits(self, principal: Principal) -> list[LimitState]:
        """Every limit of a principal with its state now, but those of end users; changes nothing."""
        ...

    async def reset_limits(self, principal: Principal) -> None:
        """Empty the windows and free the slots of the key itself (not of its team or organisation). Spend stays."""
        ...


class Corrector(Protocol):
    """An operator's word on what was charged."""

    def correct(self, root: str, attempt: str, charge: Charge, note: str) -> int:
        """Replace what an attempt was charged with, in the counters that `charge` knows; returns the rank.

        On local disk and sent when this returns. A later correction replaces an earlier one.
        """
        ...

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the store has confirmed every entry; False if it has not by then."""
        ...


class RecordSink(Protocol):
    """Takes a request's log record. Never blocks and never fails; a record that does not fit is counted."""

    def put(self, record: RequestRecord, bodies: CapturedBodies | None = None) -> None:
        """Number the record and queue it for delivery, with what was kept of its bodies, redacted."""
        ...

    def expect(self, count: int) -> None:
        """So many records are about to be put: if this process is killed before, they are told as lost."""
        ...


class LogReader(Protocol):
    """Log records that were delivered, newest first."""

    async def search(
        self, filters: LogFilters, limit: int, cursor: str | None = None, *, bodies: bool = False
    ) -> LogPage:
        """A page from `cursor` on. Raises `InvalidInput`, `LogStoreUnavailable`."""
        ...


class LogAccounts(Protocol):
    """Where log records are: counted now, and proven by their numbers."""

    def stats(self) -> PipelineStats:
        """This process's account, and the queue."""
        ...

    async def verify(self) -> VerifyReport:
        """Account for every record of every producer. Raises `Busy`, `LogStoreUnavailable`, `StoreUnavailable`."""
        ...


class UsageReports(Protocol):
    """Sums over the log records that were delivered."""

    async def report(self, query: ReportQuery) -> Report:
        """As of some seconds ago. Raises `Busy`, `InvalidInput`, `Unavailable`, and `ConfigurationError` where the
        library that it needs is not installed."""
        ...


class ActiveKey(msgspec.Struct, frozen=True):
    """One digest of one key, with the principal it stands for."""

    digest: bytes
    principal: Principal


class KeyChanges(msgspec.Struct, frozen=True):
    """What changed since a version: digests that now stand for a principal, and digests that are gone."""

    version: int
    active: tuple[ActiveKey, ...]
    gone: tuple[bytes, ...]


class KeyDirectory(Protocol):
    """The database as the data plane reads it."""

    async def changes_since(self, version: int) -> KeyChanges | None:
        """All changes after `version` (0: everything), or None if there are none: one cheap query then.

        Revoked and expired keys are delivered as active with their times set, so that they get a clear error.
        Raises `DatabaseUnavailable`.
        """
        ...


class Accounts(Protocol):
    """The control plane's operations on organisations, teams and keys.

    Names or ids are accepted wherever one is named. Every write bumps the change counter and leaves an event in the
    audit log, in its transaction. A policy may be given as an edit of the one there is: no other change comes
    between. Raises `NotFound`, `InvalidInput`, `DatabaseUnavailable`.
    """

    def by(self, author: Author) -> "Accounts":
        """The same operations, made by somebody: the audit log's author."""
        ...

    async def create_key(self, new: NewKey) -> tuple[Key, str]:
        """The key and its secret, which is shown this once."""
        ...

    async def import_key(self, new: NewKey, secret_sha256: bytes, hint: str) -> Key | None:
        """A key that is opened by the secret with this SHA-256, whatever its prefix but ours. None: there is one."""
        ...

    async def imported_key(self, secret_sha256: bytes) -> Key | None:
        """The key that was imported with this, also one that was rotated, revoked or has expired since."""
        ...

    async def rotate_key(self, key: str, *, overlap_s: float = 0.0) -> tuple[Key, str]:
        """A new secret; the old one works for `overlap_s` more, but sessions of the dashboard that it began end now.
        One that was still working from before ends now."""
        ...

    async def update_key(self, key: str, change: KeyChange) -> Key: ...

    async def revoke_key(self, key: str) -> Key: ...

    async def get_key(self, key: str) -> Key: ...

    async def list_keys(self, *, team: str | None = None, include_revoked: bool = False) -> list[Key]: ...

    async def find_keys(self, filters: KeyFilters, paging: Paging) -> Page[Key]:
        """Newest first."""
        ...

    async def principal(self, key: str) -> Principal:
        """The key as the data plane sees it, with the scopes above it."""
        ...

    async def version(self) -> int:
        """The change counter: while it stays, no organisation, team or key has changed."""
        ...

    async def create_team(self, name: str, organisation: str | None = None, policy: Policy = ...) -> Team:
        """Without an organisation the team gets one of its own, of the same name."""
        ...

    async def update_team(self, team: str, policy: Policy | PolicyEdit) -> Team: ...

    async def list_teams(self) -> list[Team]: ...

    async def get_team(self, team: str) -> Team: ...

    async def find_teams(self, filters: GroupFilters, paging: Paging) -> Page[Team]:
        """Newest first."""
        ...

    async def create_organisation(self, name: str, policy: Policy = ...) -> Organisation: ...

    async def update_organisation(self, organisation: str, policy: Policy | PolicyEdit) -> Organisation: ...

    async def list_organisations(self) -> list[Organisation]:
        """Without the implicit ones."""
        ...

    async def get_organisation(self, organisation: str) -> Organisation: ...

    async def find_organisations(self, filters: GroupFilters, paging: Paging) -> Page[Organisation]:
        """Newest first, without the implicit ones."""
        ...


class AdminTokens(Protocol):
    """Tokens of the admin API. Names or ids are accepted.

    Raises `NotFound`, `InvalidInput`, `DatabaseUnavailable`.
    """

    def by(self, author: Author) -> "AdminTokens":
        """The same operations, made by somebody: the audit log's author."""
        ...

    async def authenticate(self, secret: str) -> AdminToken | None:
        """The active token of this secret. None: there is none, or it was revoked or rotated, or has expired."""
        ...

    async def create(self, new: NewAdminToken) -> tuple[AdminToken, str]:
        """The token and its secret, which is shown this once."""
        ...

    async def update(self, token: str, change: AdminTokenChange) -> AdminToken: ...

    async def rotate(self, token: str, *, overlap_s: float = 0.0) -> tuple[AdminToken, str]:
        """A new secret; the old one works for `overlap_s` more. One that was still working from before ends now."""
        ...

    async def revoke(self, token: str) -> AdminToken:
        """One that is revoked already stays as it is."""
        ...

    async def get(self, token: str) -> AdminToken: ...

    async def find(self, paging: Paging, *, include_revoked: bool = False) -> Page[AdminToken]:
        """Newest first."""
        ...


class AuditLog(Protocol):
    """What was changed, by whom."""

    async def append(self, author: Author, action: str, object_id: str, after: dict[str, Any]) -> AuditEvent:
        """Tell of something that no transaction of the database does, before it is done. Raises
        `DatabaseUnavailable`: then it must not be done."""
        ...

    async def find(self, filters: AuditFilters, paging: Paging) -> Page[AuditEvent]:
        """Newest first. Raises `InvalidInput`, `DatabaseUnavailable`."""
        ...


class IdempotencyBook(Protocol):
    """Idempotency keys, each of one caller's token. Raises `DatabaseUnavailable`."""

    async def begin(self, token: str, key: str, fingerprint: bytes) -> Begun:
        """Whether a request may run; `Fresh` must be ended by one of the others below."""
        ...

    async def answered(self, turn: Fresh, token: str, key: str, answer: Answered) -> None:
        """It ran: remember the answer, sealed."""
        ...

    async def refused(self, turn: Fresh) -> None:
        """It changed nothing: forget the key."""
        ...

    async def lost(self, turn: Fresh) -> None:
        """It may have run: whoever comes next looks into the audit log."""
        ...


class SessionEnds(Protocol):
    """Sessions of the dashboard that ended before their time. Raises `DatabaseUnavailable`."""

    async def era(self, actor_id: str) -> int:
        """How often all sessions of the actor were ended: a session begun now is of this era."""
        ...

    async def has_ended(self, session_id: str, actor_id: str, era: int) -> bool:
        """Whether a session of that era was ended, by itself or with all of its actor."""
        ...

    async def end(self, session_id: str, until_us: int) -> None:
        """End one, on every gateway. It is remembered until `until_us`, when it has ended anyway."""
        ...

    async def end_all(self, actor_id: str) -> None:
        """End all that the actor has now."""
        ...


class LoginLimiter(Protocol):
    """Slows down whoever tries tokens."""

    async def wait_s(self, address: str) -> float | None:
        """Count a try of this address. None: it may go on; else so long must it wait."""
        ...


class BudgetedScope(msgspec.Struct, frozen=True):
    """A key, team or organisation whose policy has budgets, with its root and name."""

    root: str
    name: str
    scope: Scope


class BudgetFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Whose budgets are asked for; None asks for nothing. `owned` as in `KeyFilters`."""

    kind: ScopeKind | None = None
    scope_id: str | None = None
    owned: tuple[str, ...] | None = None


class Tally(msgspec.Struct, frozen=True):
    """How much there is of everything, and what was spent in a month as of `synced_us`, its last sync."""

    organisations: int
    teams: int
    keys_active: int
    keys_expired: int
    keys_revoked: int
    admin_tokens: int
    alerts_undelivered: int
    cost_nano: int
    requests: int
    input_tokens: int
    output_tokens: int
    synced_us: int | None


class BudgetReader(Protocol):
    """Budgets and totals over all accounts, from the database. Raises `DatabaseUnavailable`."""

    async def budgeted(self, filters: BudgetFilters, paging: Paging) -> Page[BudgetedScope]:
        """Scopes that live and have budgets, newest first. Raises `InvalidInput` too."""
        ...

    async def months(self, filters: MonthFilters, paging: Paging) -> Page[MonthTotals]:
        """The newest month first. Raises `InvalidInput` too."""
        ...

    async def tally(self, now_us: int) -> Tally:
        """Of the month that holds `now_us`."""
        ...


class SpendTotals(msgspec.Struct, frozen=True):
    """Absolute totals of one counter."""

    cost_nano: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


class RootSnapshot(msgspec.Struct, frozen=True):
    """Marks of all producers of a root, and the totals of counters that were true at exactly these marks.

    `totals` maps a counter's name (`key_1:2026:11`, or `2026:11` for the root itself) to its totals. The scope is
    the part before the first colon if it is an id, else the root.
    """

    root: str
    marks: Mapping[str, int]
    totals: Mapping[str, SpendTotals]
    used: Mapping[str, Used] = {}
    """Idempotency keys, by digest, that the database may not know yet; `SpendLedger.load` leaves them out."""
    charges: Mapping[str, Charge] = msgspec.field(default_factory=dict)
    """Records of attempts that changed; none in what is loaded."""
    fence: int = 0
    """The number of the memory that this is true of (`SpendLedger.fence`); none in what is loaded."""


ChargePlace = tuple[int, str]
"""Where a charge is in the list: when it changed last (µs), its attempt."""


class ListedCharge(msgspec.Struct, frozen=True):
    """A charge that carries a rank, as the database lists it. `presumed_nano` is what was presumed, if it was."""

    root: str
    attempt: str
    charge: Charge
    presumed_nano: int | None
    updated_us: int


class StoreAccount(msgspec.Struct, frozen=True):
    """What the fast store says that a key spent in a month, and what is held."""

    key_id: str
    year: int
    month: int
    spent_nano: int
    held_nano: int


class StoreAccounts(msgspec.Struct, frozen=True):
    """The fast store's side of a reconciliation; `unconfirmed` entries wait in this process's outbox, and
    `records_pending` log records to be delivered."""

    accounts: tuple[StoreAccount, ...]
    unconfirmed: int
    records_pending: int = 0


class AccountReader(Protocol):
    """Reads the fast store for a reconciliation."""

    async def accounts(self) -> StoreAccounts:
        """Every key and month that the store has. Raises `Unavailable`."""
        ...


class SpendLedger(Protocol):
    """The durable accounts: totals with the marks that make them comparable."""

    async def load(self, root: str) -> RootSnapshot:
        """What the database knows of a root: empty if nothing. Raises `DatabaseUnavailable`."""
        ...

    async def totals(self, wanted: Mapping[str, Collection[str]]) -> Mapping[str, Mapping[str, SpendTotals]]:
        """Of each root, what the database has of the named counters. Raises `DatabaseUnavailable`."""
        ...

    async def fence(self, roots: Collection[str]) -> Mapping[str, int]:
        """A number for a memory of each root, higher than all before. From now on nothing of a memory with a lower
        one is saved: marks do not tell which of two with equal ones is later. Raises `DatabaseUnavailable`."""
        ...

    async def save(self, snapshot: RootSnapshot, now_us: int) -> bool:
        """Write totals, months and marks in one transaction, if the marks dominate those stored and no later memory
        has been numbered.

        False: the database knows more than the snapshot, nothing was written. Raises `DatabaseUnavailable`.
        """
        ...

    async def save_all(self, snapshots: Sequence[RootSnapshot], now_us: int) -> set[str]:
        """`save` for different roots in one transaction, each by its own marks; returns the roots that were written.

        Raises `DatabaseUnavailable`, then nothing was, or all; it is harmless to save them again.
        """
        ...

    async def used(self, root: str, now_us: int, *, after: str = "", limit: int) -> Mapping[str, Used]:
        """The idempotency keys that are still remembered: those that follow the digest `after`, by digest and in its
        order, at most `limit`; fewer: these were the last. Raises `DatabaseUnavailable`."""
        ...

    async def used_by(self, root: str, digest: str) -> Used | None:
        """What is remembered of one idempotency key."""
        ...

    async def charges(self, root: str, attempts: Sequence[str]) -> tuple[Mapping[str, Charge], Mapping[str, int]]:
        """The records of those attempts that have one, and the marks at which that is true. Raises
        `DatabaseUnavailable`."""
        ...

    async def listed(
        self,
        *,
        attempt: str | None = None,
        status: str | None = None,
        key: str | None = None,
        limit: int = 100,
        after: ChargePlace | None = None,
    ) -> Sequence[ListedCharge]:
        """Charges that carry a rank, those that changed last first: what follows the place `after`. `status` is one
        of `Charge.status`.

        Raises `DatabaseUnavailable`.
        """
        ...

    async def begin(self, root: str, producer: str) -> bool:
        """Remember that a producer begins with a root, before anything is admitted there. True if the database has
        never heard of the root: then nothing of it can be lost. Raises `DatabaseUnavailable`."""
        ...

    async def roots(self) -> list[str]:
        """All roots that have spend."""
        ...

    async def monthly_usage(
        self, *, key: str | None = None, year: int | None = None, month: int | None = None
    ) -> Sequence[MonthlyUsage]:
        """Rows of `monthly_usage_summary`, newest month first."""
        ...

    async def enrol_producer(self, producer: str, now_us: int) -> bool:
        """Record that a producer exists; also its heartbeat. False: it was closed, and must go on as a new one."""
        ...

    async def rest_producer(self, producer: str, now_us: int) -> None:
        """Record that a producer stopped and that the database has all it ever did. Its next heartbeat ends that."""
        ...

    async def open_producers(self) -> list[str]:
        """All that may have something that the database lacks: neither closed nor at rest."""
        ...

    async def live_producers(self, since_us: int) -> list[str]:
        """Ids of producers that are not closed and whose last heartbeat is not older."""
        ...

    async def claim_orphan(self, claimant: str, now_us: int, unseen_since_us: int) -> str | None:
        """Win one producer that was not seen since then and that nobody else has claimed since then; None if there is
        none."""
        ...

    async def closed_among(self, producers: Collection[str]) -> set[str]:
        """Those that are closed."""
        ...

    async def forget_marks(self, now_us: int, closed_before_us: int) -> set[str]:
        """Drop the marks of producers that were closed before then; all whose marks were dropped so far."""
        ...

    async def retire_producer(self, producer: str, now_us: int) -> None:
        """Record that a producer is closed."""
        ...


@runtime_checkable
class ScriptStore(Protocol):
    """Redis, as rooms see it that keep something there: commands, and the scripts of governance by name."""

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any], *, idempotent: bool = False) -> Any:
        """Run a script and give its reply. What certainly did not run may be repeated, what may have run only if it
        is `idempotent`. Raises StoreUnavailable, whose `sent` tells whether it may have run."""
        ...

    async def call(self, *parts: Any, key: str | None = None, idempotent: bool = False) -> Any:
        """One command; `key` names the server on a cluster. Repeated and raising as `run`."""
        ...


class DueAlert(msgspec.Struct, frozen=True):
    """An alert that was taken for delivery; `attempts` includes the one to come."""

    alert: Alert
    attempts: int


class AlertBook(Protocol):
    """The warnings that were given, and those still to be delivered. Raises `DatabaseUnavailable`."""

    async def claim(self, alerts: Sequence[Alert], *, due_us: int | None) -> Sequence[Alert]:
        """Those that nobody has claimed before, now ours. `due_us`: when to deliver them; None: never."""
        ...

    async def take_due(self, now_us: int, *, lease_us: int, limit: int) -> Sequence[DueAlert]:
        """What is to be delivered now; nobody else gets it before the lease ends."""
        ...

    async def settle(
        self, alert: Alert, *, due_us: int | None, delivered_us: int | None = None, failure: str | None = None
    ) -> None:
        """When it is to be delivered again; None: it was, then, or was given up. `failure`: why it failed."""
        ...

    async def find(
        self, filters: AlertFilters, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[GivenAlert], str | None]:
        """Newest first, with the cursor of the next page if there is one. Raises `InvalidInput` too."""
        ...

    async def forget(self, now_us: int) -> None:
        """Drop alerts of periods whose counters have left the store; those that wait for delivery stay."""
        ...

    async def watched(self) -> Sequence[tuple[str, Scope]]:
        """Root and scope of every policy with a budget that may warn."""
        ...

    async def spent(self, counters: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """(root, counter) → nano-dollars as of the last sync; those that the database does not know are left out."""
        ...
