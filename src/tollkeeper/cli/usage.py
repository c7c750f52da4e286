"""`tollkeeper usage`: what keys have spent, by month, from the database.

A running gateway is asked to write what it knows first; without one the figures are as of the last sync.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tollkeeper.cli import alerts, corrections, options
from tollkeeper.cli.common import ConfigOption, JsonOption, note, open_accounts, print_json, print_table, run
from tollkeeper.cli.remote import RemoteGateway
from tollkeeper.domain.errors import TollkeeperError
from tollkeeper.domain.money import usd
from tollkeeper.domain.words import Words, usage_words
from tollkeeper.settings import load


class _ShowByDefault(TyperGroup):
    """`usage KEY` is short for `usage show KEY`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` before what is not a command."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ShowByDefault, help="What keys have spent, by month; corrections of it.")
app.add_typer(corrections.app, name="corrections")
app.command("alerts")(alerts.list_alerts)


@app.command("show")
def usage(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="Name or id; default: all keys.")] = None,
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="Only this month.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show requests, tokens and spend by key and month."""
    year_month = options.month(month)
    refusal = _sync(config)
    rows = run(_rows(config, key, year_month))
    as_of = max((row["updated_at"] for row in rows), default=None)
    if json:
        print_json({"synced": refusal is None, "as_of": as_of, "usage": rows})
        return
    if not rows:
        note("no usage yet")
    head = ("MONTH", "KEY", "NAME", "REQUESTS", "INPUT", "OUTPUT", "CACHED", "COST USD")
    print_table(head, [*_cells(rows), *_total(rows)], right=head[3:])
    if refusal is not None:
        note(f"as of {as_of or 'the last sync'}: {refusal}")


def _sync(config: Path | None) -> str | None:
    try:
        RemoteGateway(load(config)).call("POST", "/admin/v1/sync")
    except TollkeeperError as error:
        return str(error)
    return None


async def _rows(config: Path | None, key: str | None, year_month: tuple[int, int] | None) -> list[Words]:
    year, month = year_month or (None, None)
    async with open_accounts(config) as (accounts, spend):
        key_id = None if key is None else (await accounts.get_key(key)).id
        names = {found.id: found.name for found in await accounts.list_keys(include_revoked=True)}
        rows = await spend.monthly_usage(key=key_id, year=year, month=month)
        return [usage_words(row, names.get(row.key_id)) for row in rows]


def _cells(rows: list[Words]) -> list[list[object]]:
    names = ("month", "key_id", "key_name", "requests", "input_tokens", "output_tokens", "cached_tokens", "cost_usd")
    return [[row[name] for name in names] for row in rows]


def _total(rows: list[Words]) -> list[list[object]]:
    if len(rows) < 2:
        return []
    sums = [sum(row[name] for row in rows) for name in ("requests", "input_tokens", "output_tokens", "cached_tokens")]
    return [["total", "", "", *sums, usd(sum(row["cost_nano"] for row in rows))]]
