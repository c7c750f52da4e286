"""What the commands share: their common options, opening the accounts, and printing.

Data goes to standard output, as an aligned table or with `--json` as JSON; everything else to standard error.
"""

import asyncio
import getpass
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from tollkeeper.domain.audit import Author
from tollkeeper.domain.ports import Accounts, AdminTokens, AuditLog, SpendLedger
from tollkeeper.domain.words import Words
from tollkeeper.settings import load

if TYPE_CHECKING:
    from tollkeeper.storage.database import Database

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="The configuration; default: tollkeeper.toml here, if it exists.", dir_okay=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Result = TypeVar("Result")
SHOWN_KEYS_HINT = "The secret is shown this once; keep it."


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


def author() -> Author:
    """Whoever runs the command, for the audit log."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user that the system has no name for
        user = "unknown"
    return Author("cli", user, "cli")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def open_database(config: Path | None) -> "AsyncIterator[Database]":
    """The configured database, as `open_accounts`."""
    from tollkeeper.app import database

    opened = await database.open_database(load(config), pool_size=1)
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def open_accounts(config: Path | None) -> AsyncIterator[tuple[Accounts, SpendLedger]]:
    """The accounts and the spend in the configured database. An embedded one is made or brought up to date first.

    Raises ConfigurationError for a shared database whose schema is not current.
    """
    from tollkeeper.app.data_dir import digest_key

    async with open_database(config) as database:
        yield database.accounts(digest_key(load(config)), now_us).by(author()), database.spend


@asynccontextmanager
async def open_control(config: Path | None) -> AsyncIterator[tuple[AdminTokens, AuditLog]]:
    """Admin tokens and audit log in the configured database, as `open_accounts`."""
    from tollkeeper.app.data_dir import digest_key

    async with open_database(config) as database:
        yield database.admin_tokens(digest_key(load(config)), now_us).by(author()), database.audit(now_us)


def note(text: str) -> None:
    """Tell the operator something that is not data."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Columns aligned with two spaces between them; those named in `right` to the right. None is shown as `-`."""
    table = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        cells = [
            value.rjust(width) if name in right else value.ljust(width)
            for name, value, width in zip(head, row, widths, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def print_facts(facts: Words) -> None:
    """One thing, a line a fact."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        typer.echo(f"{name.ljust(width)}  {_cell(value)}")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def limits_text(limits: Words) -> str:
    """A policy in one line, in the words of the options: `60 rpm, 25.00 USD a month`."""
    parts = [f"{limits[name]:,} {name}" for name in ("rpm", "tpm") if limits[name] is not None]
    parts += limits["windows"]
    parts += [f"bucket {bucket}" for bucket in limits["buckets"]]
    if limits["max_parallel"] is not None:
        parts.append(f"{limits['max_parallel']:,} parallel{' (shadow)' * limits['max_parallel_shadow']}")
    for kind, soft in (("budgets", ""), ("soft_budgets", " (soft)")):
        parts += [f"{amount} USD {_each(period)}{soft}" for period, amount in limits[kind].items()]
    parts += [f"warnings at {' '.join(at)} {_each(period)}" for period, at in limits["warn_at"].items()]
    parts += [
        f"{more['amount_usd']} USD more {_each(period)} until {more['until']}"
        for period, more in limits["raises"].items()
    ]
    if limits["cost_cap_usd"] is not None:
        parts.append(f"{limits['cost_cap_usd']} USD a request")
    if limits["models"] is not None:
        parts.append("models " + " ".join(limits["models"]))
    if limits["log_bodies"] is not None:
        parts.append(f"bodies {limits['log_bodies']}")
    return ", ".join(parts) or "none"


def _each(period: str) -> str:
    return "in total" if period == "total" else f"a {period}"
