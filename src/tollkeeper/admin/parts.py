"""What the control plane is made of: the ports it is given, in one struct, so that pages and routes share it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from tollkeeper.admin.probes import Exposition, Readiness
from tollkeeper.domain.ports import (
    AccountReader,
    Accounts,
    AdminTokens,
    AlertBook,
    AuditLog,
    BudgetReader,
    Corrector,
    Governor,
    IdempotencyBook,
    LogAccounts,
    LoginLimiter,
    LogReader,
    SessionEnds,
    SpendLedger,
    UsageReports,
)
from tollkeeper.observability.metrics import Metrics

Clock = Callable[[], int]
Sync = Callable[[], Awaitable[object]]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """`sync` brings the spend known to the store into the database; `configuration` has secrets masked; `now_us`
    gives Unix µs. `metrics` is this process's registry, `exposition` what `/metrics` answers, which may be of more
    processes."""

    accounts: Accounts
    tokens: AdminTokens
    audit: AuditLog
    idempotency: IdempotencyBook
    spend: SpendLedger
    budgets: BudgetReader
    alerts: AlertBook
    governor: Governor
    corrector: Corrector
    account_reader: AccountReader
    records_pending: Callable[[], int]
    logs: LogReader
    log_accounts: LogAccounts
    reports: UsageReports
    logins: LoginLimiter
    session_ends: SessionEnds
    sync: Sync
    readiness: Readiness
    metrics: Metrics
    exposition: Exposition
    configuration: Mapping[str, Any]
    admin_token: str
    version: str
    now_us: Clock
