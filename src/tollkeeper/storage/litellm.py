"""Reads keys, teams, users, organisations and their budgets out of a LiteLLM database; writes nothing there.

The tables are those of its `schema.prisma`. A row is read whole, as JSON, so that a column that an older or newer
LiteLLM does not have counts as not set. What the values mean is decided in `domain/litellm.py`.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from sqlalchemy import text

from tollkeeper.domain.errors import ConfigurationError, InvalidInput
from tollkeeper.domain.litellm import Group, Limits, Snapshot, Token
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.storage.address import Dialect, read_address
from tollkeeper.storage.engine import make_engine
from tollkeeper.storage.transactions import Transaction, Transactions

ROWS_MAX: Final = 500_000
"""Of one table; they are kept in memory."""
TIMEOUT_S: Final = 60.0
PRISMA_OPTIONS: Final = frozenset(
    ("schema", "connection_limit", "pool_timeout", "pgbouncer", "connect_timeout", "socket_timeout", "sslaccept")
)
"""Of a database URL, for Prisma alone."""
_TABLES: Final = {
    "budgets": "LiteLLM_BudgetTable",
    "organisations": "LiteLLM_OrganizationTable",
    "teams": "LiteLLM_TeamTable",
    "users": "LiteLLM_UserTable",
    "members": "LiteLLM_TeamMembership",
    "tokens": "LiteLLM_VerificationToken",
}
_ORDER: Final = {
    "organisations": "organization_id",
    "teams": "team_id",
    "users": "user_id",
    "tokens": "token",
}
_UNKNOWN: Final = (
    *("aliases", "config", "permissions", "router_settings", "allowed_routes", "allowed_cache_controls", "policies"),
    *("access_group_ids", "model_max_budget", "budget_limits", "object_permission_id", "project_id", "agent_id"),
    *("auto_rotate", "model_id", "allowed_model_region"),
)
"""Columns that have no equal here."""
_UNKNOWN_METADATA: Final = ("guardrails", "tags", "enforced_params", "allowed_passthrough_routes", "prompts")

Row = Mapping[str, Any]


async def read_litellm(url: str) -> Snapshot:
    """Everything, as of one moment. Raises ConfigurationError, DatabaseUnavailable, InvalidInput."""
    address = read_address(_without_prisma(url))
    if address.dialect is not Dialect.POSTGRESQL:
        raise ConfigurationError("LiteLLM keeps its accounts in PostgreSQL: give a postgresql:// URL")
    transactions = Transactions(make_engine(address, pool_size=1, timeout_s=TIMEOUT_S), address, TIMEOUT_S)
    try:
        async with transactions.snapshot() as transaction:
            tables = {name: await _rows(transaction, name) for name in _TABLES}
    finally:
        await transactions.close()
    return _snapshot(tables)


def _without_prisma(url: str) -> str:
    address, _, query = url.partition("?")
    options = [(name, value) for name, value in parse_qsl(query) if name not in PRISMA_OPTIONS]
    return f"{address}?{urlencode(options)}" if options else address


async def _rows(transaction: Transaction, name: str) -> list[Row]:
    table = _TABLES[name]
    exists = await transaction.row(text("SELECT to_regclass(:name) AS found"), {"name": f'"{table}"'})
    if exists is None or exists.found is None:
        if name == "tokens":
            raise InvalidInput(f'there is no table "{table}": this is not the database of a LiteLLM proxy')
        return []
    order = f" ORDER BY t.{_ORDER[name]}" if name in _ORDER else ""
    query = text(f'SELECT to_jsonb(t)::text AS row FROM "{table}" t{order} LIMIT {ROWS_MAX + 1}')  # noqa: S608
    found = await transaction.rows(query)
    if len(found) > ROWS_MAX:
        raise InvalidInput(f'"{table}" has more than {ROWS_MAX} rows; that is more than can be imported at once')
    return [json.loads(row.row, parse_float=str) for row in found]


def _snapshot(tables: Mapping[str, list[Row]]) -> Snapshot:
    budgets = {row["budget_id"]: row for row in tables["budgets"]}
    limited = {
        (row["user_id"], row["team_id"])
        for row in tables["members"]
        if any(
            _limit(budgets.get(row.get("budget_id"), {}), name) for name in ("max_budget", "rpm_limit", "tpm_limit")
        )
    }
    return Snapshot(
        organisations=tuple(
            Group(row["organization_id"], row.get("organization_alias"), _limits(row, budgets))
            for row in tables["organisations"]
        ),
        teams=tuple(
            Group(row["team_id"], row.get("team_alias"), _limits(row, budgets), row.get("organization_id"))
            for row in tables["teams"]
        ),
        users=tuple(
            Group(
                row["user_id"],
                row.get("user_alias") or row.get("user_email"),
                _limits(row, budgets),
                row.get("organization_id"),
            )
            for row in tables["users"]
        ),
        tokens=tuple(_token(row, budgets, limited) for row in tables["tokens"]),
    )


def _token(row: Row, budgets: Mapping[str, Row], limited: set[tuple[str, str]]) -> Token:
    user, team = row.get("user_id"), row.get("team_id")
    return Token(
        sha256=row["token"],
        name=row.get("key_name"),
        alias=row.get("key_alias"),
        limits=_limits(row, budgets),
        user=user,
        team=team,
        organisation=row.get("organization_id"),
        expires_us=_time_us(row.get("expires")),
        member_limited=(user, team) in limited,
    )


def _limits(row: Row, budgets: Mapping[str, Row]) -> Limits:
    """A row's own limits; where it has none, those of the budget that it refers to, as LiteLLM does."""
    budget = budgets.get(row.get("budget_id") or "", {})
    metadata = row.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}

    def own(name: str) -> Any:
        return row[name] if row.get(name) is not None else _limit(budget, name)

    max_budget, soft_budget, spend = own("max_budget"), own("soft_budget"), row.get("spend")
    unknown = [name for name in _UNKNOWN if row.get(name) or budget.get(name)]
    unknown += [f"metadata.{name}" for name in _UNKNOWN_METADATA if metadata.get(name)]
    return Limits(
        max_budget=None if max_budget is None else str(max_budget),
        soft_budget=None if soft_budget is None else str(soft_budget),
        budget_duration=own("budget_duration"),
        budget_reset_us=_time_us(own("budget_reset_at")),
        rpm=own("rpm_limit"),
        tpm=own("tpm_limit"),
        max_parallel=own("max_parallel_requests"),
        models=tuple(row.get("models") or ()),
        model_rpm=metadata.get("model_rpm_limit") or {},
        model_tpm=metadata.get("model_tpm_limit") or {},
        spend="0" if spend is None else str(spend),
        blocked=bool(row.get("blocked")),
        unknown=tuple(unknown),
    )


def _limit(budget: Row, name: str) -> Any:
    return budget.get(name)


def _time_us(written: str | None) -> int | None:
    """Prisma's TIMESTAMP(3) is UTC without saying so."""
    if written is None:
        return None
    moment = datetime.fromisoformat(written)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp() * 1000) * (US_PER_S // 1000)
