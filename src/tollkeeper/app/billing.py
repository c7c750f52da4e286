"""The billing cache of the library: budgets and spend of keys for any asyncio service, without the gateway.

    async with BillingCache.from_env() as billing:
        if await billing.within_budget("key_…"):
            ...
            await billing.add_usage("key_…", "0.0042")

It is a composition of the gateway's own parts (`accounting.py`) and decides nothing: amounts and answers are in
domain/billing.py, how spend changes and survives is the ledger's matter.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from types import TracebackType

import msgspec

from tollkeeper.app.accounting import Accounting
from tollkeeper.app.data_dir import DataDir, digest_key
from tollkeeper.app.database import open_database
from tollkeeper.domain.billing import (
    Hold,
    Standing,
    check_idempotency_key,
    money_alone,
    month_counter,
    monthly_spent,
    standing,
)
from tollkeeper.domain.entries import Charged
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import nano_from_usd, usd_from_nano
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import Accounts
from tollkeeper.domain.usage import NO_USAGE
from tollkeeper.governance.principals import KnownPrincipals
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import Settings, check, convert, load
from tollkeeper.storage.database import Database

Amount = Decimal | str | int
"""USD. A float is refused: it has already lost digits."""


def wall_clock_us() -> int:
    """Unix µs of this machine."""
    return time.time_ns() // 1000


class BillingCache:
    """Exact spend and hard budgets of the keys in the database, on Redis or in this process's memory.

    Without `redis_url` the fast state is this process's memory, and `data_dir` must be its own. With it, any number
    of processes and gateways share one state. `data_dir` must be on a disk that outlives the process: the outbox in
    it is what makes a charge survive everything else. `database_url` defaults to SQLite in `data_dir`; a PostgreSQL
    needs `tollkeeper migrate` first, and the gateways' `digest_key` if keys are to be made through `accounts`.
    Warnings of budgets are logged, counted (`metrics`), and posted to `webhook_url`, signed with `webhook_secret`
    (while it is rotated, also with `webhook_secret_previous`).

    Keys are named by id or name. Amounts are USD as Decimal, str or int: zero or more, at most nine decimals, at most
    9,007,199.254740991; everything else raises MoneyError. All methods raise InvalidInput (a ValueError; NotFound for
    an unknown key) and Unavailable, whose kind says which part is away. Whether a key is revoked or has expired is
    not asked: what was used must be charged.
    """

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        database_url: str | None = None,
        data_dir: str | Path = "tollkeeper-data",
        sync_interval: float = 300.0,
        digest_key: str | None = None,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        webhook_secret_previous: str | None = None,
        now_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        """`sync_interval` in seconds; `now_us` is for tests (Redis has its own clock). Raises ConfigurationError."""
        settings = convert(
            {
                "data_dir": str(data_dir),
                "store": {"redis_url": redis_url},
                "database": {"url": database_url},
                "billing": {"sync_interval_s": sync_interval},
                "secrets": {
                    "digest_key": digest_key,
                    "webhook_url": webhook_url,
                    "webhook_secret": webhook_secret,
                    "webhook_secret_previous": webhook_secret_previous,
                },
            }
        )
        self._configure(settings, now_us)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "BillingCache":
        """With the gateway's settings: `REDIS_URL`, `DATABASE_URL`, `TOLLKEEPER_DATA_DIR`, `TOLLKEEPER_DIGEST_KEY`,
        `BILLING_SYNC_INTERVAL`, and `tollkeeper.toml`. Raises ConfigurationError."""
        cache = cls.__new__(cls)
        cache._configure(load(environ=environ), wall_clock_us)
        return cache

    def _configure(self, settings: Settings, now_us: Callable[[], int]) -> None:
        self._may_make_keys = settings.secrets.digest_key is not None or settings.database_url.startswith("sqlite")
        if not self._may_make_keys:
            # Only making keys needs it; then `accounts` refuses.
            secrets = msgspec.structs.replace(settings.secrets, digest_key="-" * 64)
            check(msgspec.structs.replace(settings, secrets=secrets))
        else:
            check(settings)
        self.settings = settings
        self.metrics = Metrics()
        self._now_us = now_us
        self._parts = AsyncExitStack()
        self._database: Database | None = None
        self._accounting: Accounting
        self._accounts: Accounts
        self._principals: KnownPrincipals

    def __repr__(self) -> str:
        store = "memory" if self.settings.embedded else "redis"
        return f"<BillingCache {store} {'open' if self._database else 'closed'}>"

    async def __aenter__(self) -> "BillingCache":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Open everything. Raises ConfigurationError, Unavailable; then everything is closed again."""
        if self._database is not None:
            raise InvalidInput("this BillingCache is open already")
        try:
            await self._open()
        except BaseException:
            await self.shutdown()
            raise

    async def _open(self) -> None:
        settings, parts = self.settings, self._parts
        data_dir = DataDir(settings.data_dir)
        data_dir.create()
        if settings.embedded:
            data_dir.lock()
            parts.callback(data_dir.unlock)
        self._database = database = await open_database(settings, pool_size=settings.database.pool_size)
        parts.push_async_callback(database.close)
        key = digest_key(settings) if self._may_make_keys else b""
        self._accounts = database.accounts(key, self._now_us)
        self._accounting = Accounting(settings, database, self.metrics, self._now_us)
        parts.push_async_callback(self._accounting.stop)
        await self._accounting.start()
        self._principals = KnownPrincipals(self._accounts, money_alone)
        parts.push_async_callback(self._principals.stop)
        await self._principals.start()

    async def shutdown(self) -> None:
        """Write everything to the database and close. What store or database did not take in time is logged and
        stays in the outbox for the next start; a second call does nothing."""
        self._database = None
        await self._parts.aclose()

    @property
    def accounts(self) -> Accounts:
        """The keys, teams and organisations in the database, with their budgets: to create and change them."""
        self._opened()
        if not self._may_make_keys:
            raise InvalidInput(
                "accounts: give the gateways' digest_key (TOLLKEEPER_DIGEST_KEY): keys made without "
                "it would open nothing"
            )
        return self._accounts

    def _opened(self) -> Database:
        if self._database is None:
            raise InvalidInput("this BillingCache is not open: use `async with`, or await start()")
        return self._database

    # Budgets

    async def within_budget(self, key_id: str, cost_usd: Amount = 0) -> Standing:
        """Whether the key, its team and its organisation have money left, and room for `cost_usd` more.

        It sets nothing aside: of two callers that ask at once both may be told yes. `hold` tells only one.
        """
        self._opened()
        asked = nano_from_usd(cost_usd, what="cost_usd")
        checks, reply = await self._accounting.ledger.look(await self._principals.get(key_id))
        return standing(checks, reply, asked)

    async def hold(self, key_id: str, amount_usd: Amount) -> Hold:
        """Set aside the most that something may cost, if every hard budget has room: one atomic decision.

        If this process dies before the hold has ended, its amount is charged (*presumed*), because the truth is not
        known.
        """
        self._opened()
        amount = nano_from_usd(amount_usd, what="amount_usd")
        principal = await self._principals.get(key_id)
        ledger = self._accounting.ledger
        outcome = await ledger.hold(principal, amount)
        return Hold(principal.key_id, usd_from_nano(amount), outcome)

    async def settle(self, hold: Hold, cost_usd: Amount) -> None:
        """Charge the true cost of a hold, which may be above its amount. Raises InvalidInput if it has ended."""
        self._opened()
        cost = nano_from_usd(cost_usd, what="cost_usd")
        self._accounting.ledger.settle(hold.grant, cost, NO_USAGE)

    async def void(self, hold: Hold) -> None:
        """Give a hold back: nothing was used. Raises InvalidInput if it has ended."""
        self._opened()
        self._accounting.ledger.void(hold.grant)

    # Spend

    async def add_usage(self, key_id: str, cost_usd: Amount, *, idempotency_key: str | None = None) -> Charged:
        """Charge the key, its team and its organisation. No budget refuses it: it has been used.

        When this returns the charge is on local disk and sent to the store: it counts once, whatever crashes.
        Repetitions of the caller are charged once, too, if they carry the same `idempotency_key` (1 to 255
        characters; each API key has its own): it is remembered for 24 h, also through the loss of the store. The
        answer says whether it was charged now or before; *pending* while the store is away, when repeating it is
        harmless. Raises IdempotencyConflict, an InvalidInput, if the key stands for another amount.
        """
        self._opened()
        cost = nano_from_usd(cost_usd, what="cost_usd")
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        principal = await self._principals.get(key_id)
        ledger = self._accounting.ledger
        if idempotency_key is not None:
            return await ledger.charge_once(principal, cost, idempotency_key)
        ledger.charge(principal, cost)
        return Charged.NOW

    async def get_monthly_spending(self, key_id: str) -> Decimal:
        """USD that the key has spent in this month (UTC, by the store's clock), without what is held."""
        self._opened()
        checks, reply = await self._accounting.ledger.look(await self._principals.get(key_id))
        return usd_from_nano(monthly_spent(checks, reply))

    async def get_spending(self, key_id: str, year: int, month: int) -> Decimal:
        """USD that the key spent in a month; months that have left the store come from the database."""
        database = self._opened()
        principal = await self._principals.get(key_id)
        counter = month_counter(principal.key_id, year, month)
        spent = (await self._accounting.ledger.spent(principal.root, ScopeKind.KEY, counter)).spent
        if spent == 0:
            months = await database.spend.monthly_usage(key=principal.key_id, year=year, month=month)
            spent = sum(row.cost_nano for row in months)
        return usd_from_nano(spent)

    async def sync(self) -> int:
        """Write what has changed to the database now, instead of at the next interval; returns the counters."""
        self._opened()
        return await self._accounting.sync.sync_once()

    async def refresh(self) -> None:
        """Use every change of keys and budgets that is committed by now, instead of within a second."""
        self._opened()
        await self._principals.refresh()
