"""The `tollkeeper` command: what operators type. Parses, calls a room or a running gateway, prints.

Exit codes: 0 done, 1 refused or failed (one line on standard error), 2 used wrongly.
"""

import sys
from typing import Annotated

import typer

from tollkeeper import __version__
from tollkeeper.cli import (
    admin_tokens,
    audit,
    configuration,
    groups,
    importing,
    keys,
    limits,
    logs,
    prices,
    reconcile,
    serve,
    usage,
    worker,
)
from tollkeeper.domain.errors import TollkeeperError

app = typer.Typer(
    help="An LLM gateway with exact rate limits, hard budgets and proven logs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(worker.worker)
app.add_typer(keys.app, name="keys")
app.add_typer(groups.teams, name="teams")
app.add_typer(groups.organisations, name="orgs")
app.add_typer(admin_tokens.app, name="admin-tokens")
app.add_typer(audit.app, name="audit")
app.add_typer(usage.app, name="usage")
app.add_typer(limits.app, name="limits")
app.command("reconcile")(reconcile.reconcile_accounts)
app.add_typer(logs.app, name="logs")
app.add_typer(prices.app, name="prices")
app.add_typer(configuration.app, name="config")
app.add_typer(importing.app, name="import")
app.command()(configuration.migrate)
app.command()(configuration.doctor)
app.command()(serve.simulate)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tollkeeper {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point."""
    try:
        app()
    except TollkeeperError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
