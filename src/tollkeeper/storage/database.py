"""The database as the composition root sees it: one object that opens, migrates and closes, with the three ports."""

from collections.abc import Callable

from sqlalchemy import text

from tollkeeper.domain.audit import LIBRARY
from tollkeeper.domain.objects import ObjectRegistry
from tollkeeper.domain.ports import (
    Accounts,
    AdminTokens,
    AlertBook,
    AuditLog,
    BudgetReader,
    IdempotencyBook,
    KeyDirectory,
    SessionEnds,
    SpendLedger,
)
from tollkeeper.storage import schema
from tollkeeper.storage.accounts import StoredAccounts
from tollkeeper.storage.address import read_address
from tollkeeper.storage.admin_tokens import StoredAdminTokens
from tollkeeper.storage.alerts import StoredAlerts
from tollkeeper.storage.audit import StoredAudit
from tollkeeper.storage.budgets import StoredBudgets
from tollkeeper.storage.changes import Changes
from tollkeeper.storage.directory import StoredDirectory
from tollkeeper.storage.engine import make_engine
from tollkeeper.storage.idempotency import StoredIdempotency
from tollkeeper.storage.objects import StoredObjects
from tollkeeper.storage.sessions import StoredSessionEnds
from tollkeeper.storage.spend import StoredSpend
from tollkeeper.storage.transactions import Transactions


class Database:
    """PostgreSQL or SQLite by URL. Every method may raise `DatabaseUnavailable`, and none waits beyond the deadline.

    An operation is a few statements; each of them, and getting a connection, has `timeout_s`.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self.directory: KeyDirectory = StoredDirectory(transactions)
        self.spend: SpendLedger = StoredSpend(transactions)
        self.alerts: AlertBook = StoredAlerts(transactions)
        self.budgets: BudgetReader = StoredBudgets(transactions)
        self.objects: ObjectRegistry = StoredObjects(transactions)

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 5, timeout_s: float = 5.0) -> "Database":
        """Read the URL; connections are made when first needed. Raises ConfigurationError."""
        address = read_address(url)
        engine = make_engine(address, pool_size=pool_size, timeout_s=timeout_s)
        return cls(Transactions(engine, address, timeout_s))

    def accounts(self, digest_key: bytes, now_us: Callable[[], int]) -> Accounts:
        """The control plane's operations; secrets are digested under `digest_key`."""
        return StoredAccounts(self._changes(now_us), digest_key)

    def admin_tokens(self, digest_key: bytes, now_us: Callable[[], int]) -> AdminTokens:
        """Tokens of the admin API."""
        return StoredAdminTokens(self._changes(now_us), digest_key)

    def audit(self, now_us: Callable[[], int]) -> AuditLog:
        """What was changed, by whom."""
        return StoredAudit(self._changes(now_us))

    def idempotency(self, digest_key: bytes, now_us: Callable[[], int]) -> IdempotencyBook:
        """Idempotency keys of the admin API."""
        return StoredIdempotency(self._transactions, digest_key, now_us)

    def session_ends(self, now_us: Callable[[], int]) -> SessionEnds:
        """Sessions of the dashboard that were ended."""
        return StoredSessionEnds(self._transactions, now_us)

    def _changes(self, now_us: Callable[[], int]) -> Changes:
        return Changes(self._transactions, LIBRARY, now_us)

    async def migrate(self) -> None:
        """Bring the schema up to date. Safe to call from many processes at once."""
        from tollkeeper.storage.migrate import migrate  # 10 MB that a gateway on a current schema does without

        await migrate(self._transactions)

    async def schema_is_current(self) -> bool:
        """Whether this program can work on the schema as it is. Raises ConfigurationError: only a newer one can."""
        return await schema.is_current(self._transactions)

    async def ping(self) -> None:
        """Ask for one row; returns if it came."""
        async with self._transactions.read() as transaction:
            await transaction.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close all connections."""
        await self._transactions.close()
