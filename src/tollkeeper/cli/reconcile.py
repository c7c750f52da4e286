"""`tollkeeper reconcile`: the fast store, the database and the log store, compared per key and month.

The store is asked through the running gateway; where none runs, a shared one is read directly. Exit code 0: all that
were asked agree; 1: they do not, and each difference is told with its reason.
"""

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from tollkeeper.app.accounting import read_store
from tollkeeper.cli.common import ConfigOption, JsonOption, note, now_us, open_accounts, print_json, print_table, run
from tollkeeper.cli.remote import GatewayAway, RemoteGateway
from tollkeeper.domain.ports import ListedCharge, StoreAccounts
from tollkeeper.domain.reconcile import Account, Line, Logged, reconcile, request_of
from tollkeeper.logs.query import query
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.verify import verify
from tollkeeper.settings import load

CHARGES_MAX: Final = 10_000
"""Charges that are explained one by one."""
ROWS_MAX: Final = 1_000_000
_COSTS: Final = """
SELECT key_id, CAST(strftime(time AT TIME ZONE 'UTC', '%Y') AS INTEGER),
    CAST(strftime(time AT TIME ZONE 'UTC', '%m') AS INTEGER), CAST(sum(cost_nano) AS BIGINT)
FROM logs WHERE admitted GROUP BY ALL"""


def reconcile_accounts(
    logs: Annotated[bool, typer.Option(help="Compare with the log store, too; it is read whole.")] = True,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Compare what the fast store, the database and the logs say that each key spent in each month."""
    store, lines, names = run(_lines(config, _store(config), logs=logs))
    agree = all(line.agrees for line in lines)
    words = [line.words(names) for line in lines]
    if json:
        print_json({"agree": agree, "store_asked": store is not None, "logs_asked": logs, "accounts": words})
    else:
        _print(words)
        if store is None:
            note("no gateway runs and REDIS_URL is not set: there is no fast store to ask, it ended with its gateway")
        note("all agree" if agree else "they do not agree")
    if not agree:
        raise typer.Exit(1)


def _store(config: Path | None) -> StoreAccounts | None:
    try:
        found = RemoteGateway(load(config)).call("GET", "/admin/v1/accounts")
    except GatewayAway:
        return None
    return msgspec.convert(found, StoreAccounts)


async def _lines(
    config: Path | None, store: StoreAccounts | None, *, logs: bool
) -> tuple[StoreAccounts | None, list[Line], dict[str, str]]:
    async with open_accounts(config) as (accounts, spend):
        names = {key.id: key.name for key in await accounts.list_keys(include_revoked=True)}
        database = {(row.key_id, row.year, row.month): row.cost_nano for row in await spend.monthly_usage()}
        charges = await spend.listed(limit=CHARGES_MAX)
        if store is None:
            store = await read_store(load(config), spend, now_us)
    logged = await _logged(config, database, list(charges)) if logs else None
    return store, reconcile(database, store, logged, charges), names


async def _logged(config: Path | None, database: dict[Account, int], charges: list[ListedCharge]) -> Logged:
    settings = load(config)
    log_store = open_store(settings.logs_url, settings.logs.timeout_s)
    rows = (await query(log_store, _COSTS, limit=ROWS_MAX)).rows
    costs: dict[Account, int] = {(row[0], row[1], row[2]): int(row[3]) for row in rows}
    requests = await _requests(log_store, sorted({request_of(c.attempt) for c in charges} - {""}))
    missing = None
    if any(costs.get(account, 0) != nano for account, nano in database.items()):
        missing = sum(producer.missing for producer in (await verify(log_store)).producers.values())
    return Logged(costs, requests, missing)


async def _requests(log_store: LogStore, ids: list[str]) -> dict[str, int]:
    """Which of these requests have a record."""
    if not ids:
        return {}
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in ids)
    asked = f"SELECT request_id, cost_nano FROM logs WHERE request_id IN ({listed})"  # noqa: S608 - escaped
    return {row[0]: int(row[1]) for row in (await query(log_store, asked, limit=ROWS_MAX)).rows}


def _print(words: list[dict[str, Any]]) -> None:
    head = ("MONTH", "KEY", "NAME", "STORE USD", "DATABASE USD", "LOGS USD", "")
    rows = [
        (w["month"], w["key_id"], w["key_name"], w["store_usd"], w["database_usd"], w["logs_usd"], _verdict(w))
        for w in words
    ]
    print_table(head, rows, right=head[3:6])
    for account in words:
        for reason in account["reasons"]:
            amount = f"{reason['amount_usd']} USD" if reason["amount_usd"] is not None else "an unknown part"
            typer.echo(f"{account['month']} {account['key_name'] or account['key_id']}: {amount}: {reason['why']}")


def _verdict(account: dict[str, Any]) -> str:
    if account["agrees"]:
        return "agrees"
    return "explained" if account["explained"] else "NOT EXPLAINED"
