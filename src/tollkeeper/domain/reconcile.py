"""Reconciliation: what the fast store, the database and the logs say a key spent in a month, and why they differ.

Three independent accounts of the same money. The decision is here, on plain values; who reads them is not.
"""

from collections.abc import Mapping, Sequence

import msgspec

from tollkeeper.domain.admission import split_counter
from tollkeeper.domain.charges import QUARANTINED
from tollkeeper.domain.corrections import ADJUSTMENT
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import month_of_label
from tollkeeper.domain.ports import ListedCharge, StoreAccounts
from tollkeeper.domain.words import Words

Account = tuple[str, int, int]
"""Key id, year, month."""


class Logged(msgspec.Struct, frozen=True):
    """What the log store tells. `requests` maps the request ids that were asked for to the cost in their records;
    `missing` is how many records are lost or were dropped, None if that was not asked."""

    costs: Mapping[Account, int]
    requests: Mapping[str, int]
    missing: int | None = None


class Reason(msgspec.Struct, frozen=True):
    """Why two accounts differ, and by how much; None: that cannot be told."""

    text: str
    amount_nano: int | None


class Line(msgspec.Struct, frozen=True):
    """One key in one month. None: that side was not asked, or no longer has it."""

    account: Account
    store_nano: int | None
    database_nano: int
    logs_nano: int | None
    reasons: tuple[Reason, ...]
    explained: bool

    @property
    def agrees(self) -> bool:
        """Whether all sides that were asked say the same."""
        return all(side in (None, self.database_nano) for side in (self.store_nano, self.logs_nano))

    def words(self, names: Mapping[str, str]) -> Words:
        """As the command prints it."""
        key_id, year, month = self.account
        sides = (self.store_nano, self.database_nano, self.logs_nano)
        store, database, logs = (None if side is None else usd(side) for side in sides)
        return {
            "month": f"{year}-{month:02d}",
            "key_id": key_id,
            "key_name": names.get(key_id),
            "store_usd": store,
            "database_usd": database,
            "logs_usd": logs,
            "agrees": self.agrees,
            "explained": self.explained,
            "reasons": [
                {"why": r.text, "amount_usd": None if r.amount_nano is None else usd(r.amount_nano)}
                for r in self.reasons
            ],
        }


def request_of(attempt: str) -> str:
    """The request an attempt belongs to, as log records name it."""
    return attempt.removeprefix(QUARANTINED).rpartition(".")[0]


def accounts_of(listed: ListedCharge) -> list[Account]:
    """The key and month that a charge counts in; none for an adjustment of a team or another period."""
    found = []
    for ref in listed.charge.what_is_known().counters:
        scope, label = split_counter(ref.name)
        month = month_of_label(label)
        if scope.startswith("key_") and month is not None:
            found.append((scope, *month))
    return found


def reconcile(
    database: Mapping[Account, int],
    store: StoreAccounts | None,
    logged: Logged | None,
    charges: Sequence[ListedCharge],
) -> list[Line]:
    """Every account that any side knows, in order. A side that is None was not asked."""
    of_store = {(a.key_id, a.year, a.month): a.spent_nano for a in store.accounts} if store else {}
    of_logs = dict(logged.costs) if logged else {}
    by_account: dict[Account, list[ListedCharge]] = {}
    for charge in charges:
        if not charge.attempt.startswith(QUARANTINED):
            for account in accounts_of(charge):
                by_account.setdefault(account, []).append(charge)
    lines = []
    for account in sorted({*database, *of_store, *of_logs}):
        in_store = of_store.get(account)
        in_logs = of_logs.get(account, 0) if logged else None
        mine = by_account.get(account, [])
        lines.append(_line(account, database.get(account, 0), in_store, in_logs, store, logged, mine))
    return lines


def _line(
    account: Account,
    in_database: int,
    in_store: int | None,
    in_logs: int | None,
    store: StoreAccounts | None,
    logged: Logged | None,
    charges: Sequence[ListedCharge],
) -> Line:
    reasons: list[Reason] = []
    pending = 0 if in_store is None else in_store - in_database
    if pending:
        reasons.append(Reason("the database has it after the next sync", pending))
    unexplained = 0
    if in_logs is not None and logged is not None:
        unexplained = in_database + pending - in_logs
        for reason in _of_charges(charges, logged):
            reasons.append(reason)
            unexplained -= reason.amount_nano or 0
        if unexplained:
            reasons += _of_the_rest(unexplained, store, logged)
    explained = not unexplained or any(reason.amount_nano is None for reason in reasons)
    return Line(account, in_store, in_database, in_logs, tuple(reasons), explained)


def _of_charges(charges: Sequence[ListedCharge], logged: Logged) -> list[Reason]:
    """What was presumed, came late or was corrected, and is not what the record says, if there is one."""
    reasons = []
    for listed in charges:
        cost = listed.charge.cost_nano
        if listed.attempt.startswith(ADJUSTMENT):
            reasons.append(Reason(f"{listed.attempt}: adjusted by an operator", cost))
            continue
        request = request_of(listed.attempt)
        if request not in logged.requests:
            text = f"{listed.attempt}: {listed.charge.status}; its gateway ended before it wrote a record"
            reasons.append(Reason(text, cost))
        elif listed.presumed_nano is not None and cost != listed.presumed_nano:
            text = f"{listed.attempt}: {listed.charge.status} after its record was written"
            reasons.append(Reason(text, cost - listed.presumed_nano))
    return [reason for reason in reasons if reason.amount_nano]


def _of_the_rest(rest_nano: int, store: StoreAccounts | None, logged: Logged) -> list[Reason]:
    if rest_nano < 0 and store is not None and store.unconfirmed:
        text = f"{store.unconfirmed} entries in the gateway's outbox are not confirmed by the store"
        return [Reason(text, None)]
    if rest_nano > 0 and store is not None and store.records_pending:
        return [Reason(f"{store.records_pending} log records are on their way to the log store", None)]
    if rest_nano > 0 and logged.missing:
        return [Reason(f"{logged.missing} log records are lost or were dropped", None)]
    if rest_nano > 0:
        return [
            Reason(
                "charged without a log record: by the library, or by a gateway that still has the record", rest_nano
            )
        ]
    return [Reason("log records of more than is charged: not in any account", rest_nano)]
