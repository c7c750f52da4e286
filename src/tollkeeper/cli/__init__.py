"""The `tollkeeper` command: what operators type. Parses, calls a room or a running gateway, prints.

Exit codes: 0 done, 1 refused or failed (one line on standard error), 2 used wrongly.
"""

import sys
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from tollkeeper import __version__
from tollkeeper.domain.errors import TollkeeperError

COMMANDS: Final = {
    "serve": "serve.serve",
    "worker": "worker.worker",
    "keys": "keys.app",
    "teams": "groups.teams",
    "orgs": "groups.organisations",
    "admin-tokens": "admin_tokens.app",
    "audit": "audit.app",
    "usage": "usage.app",
    "limits": "limits.app",
    "reconcile": "reconcile.reconcile_accounts",
    "logs": "logs.app",
    "prices": "prices.app",
    "config": "configuration.app",
    "import": "importing.app",
    "migrate": "configuration.migrate",
    "doctor": "configuration.doctor",
    "simulate": "serve.simulate",
}
"""Where each command is, or each group of them, in the order of the help."""


class Commands(TyperGroup):
    """Loads a command when it is asked for: a gateway does not carry what only others use."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """All names, in order."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str):  # type: ignore[no-untyped-def,override]
        """None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(".")
        found = getattr(import_module(f"tollkeeper.cli.{module}"), name)
        parent = typer.Typer(**PLAIN)
        if isinstance(found, typer.Typer):
            parent.add_typer(found, name=cmd_name)
            return typer.main.get_group(parent).commands[cmd_name]
        parent.command(cmd_name)(found)
        return typer.main.get_command(parent)


PLAIN: Final[dict[str, Any]] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    cls=Commands,
    help="An LLM gateway with exact rate limits, hard budgets and proven logs.",
    no_args_is_help=True,
    **PLAIN,
)


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
