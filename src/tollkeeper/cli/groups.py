"""`tollkeeper teams` and `tollkeeper orgs`: the scopes above keys, with the same limits."""

from typing import Annotated

import typer

from tollkeeper.cli import options
from tollkeeper.cli.common import (
    ConfigOption,
    JsonOption,
    limits_text,
    open_accounts,
    print_facts,
    print_json,
    print_table,
    run,
)
from tollkeeper.domain.accounts import Organisation, Team
from tollkeeper.domain.policy import UNLIMITED
from tollkeeper.domain.policy_change import PolicyChange, changed
from tollkeeper.domain.words import Words, organisation_words, team_words

teams = typer.Typer(help="Teams: create, list, update.", no_args_is_help=True)
organisations = typer.Typer(help="Organisations: create, list, update.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@teams.command("create")
@options.with_limits
def create_team(
    name: NameArgument,
    org: Annotated[str | None, typer.Option(help="Name or id of the organisation; default: one of its own.")] = None,
    *,
    change: PolicyChange,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Create a team."""
    policy = changed(UNLIMITED, change)

    async def work() -> Team:
        async with open_accounts(config) as (accounts, _):
            return await accounts.create_team(name, org, policy)

    _print(team_words(run(work())), json)


@teams.command("list")
def list_teams(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List teams."""

    async def work() -> list[Team]:
        async with open_accounts(config) as (accounts, _):
            return await accounts.list_teams()

    _print_all("teams", [team_words(team) for team in run(work())], json)


@teams.command("update")
@options.with_limits
def update_team(
    team: Annotated[str, typer.Argument(metavar="TEAM", help="Name or id.")],
    *,
    change: PolicyChange,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Change the limits that are named; `none` removes one."""
    _named(change)

    async def work() -> Team:
        async with open_accounts(config) as (accounts, _):
            return await accounts.update_team(team, lambda before: changed(before, change))

    _print(team_words(run(work())), json)


@organisations.command("create")
@options.with_limits
def create_organisation(
    name: NameArgument,
    *,
    change: PolicyChange,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Create an organisation."""
    policy = changed(UNLIMITED, change)

    async def work() -> Organisation:
        async with open_accounts(config) as (accounts, _):
            return await accounts.create_organisation(name, policy)

    _print(organisation_words(run(work())), json)


@organisations.command("list")
def list_organisations(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List organisations; those that single keys have of their own are left out."""

    async def work() -> list[Organisation]:
        async with open_accounts(config) as (accounts, _):
            return await accounts.list_organisations()

    _print_all("organisations", [organisation_words(found) for found in run(work())], json)


@organisations.command("update")
@options.with_limits
def update_organisation(
    org: Annotated[str, typer.Argument(metavar="ORGANISATION", help="Name or id.")],
    *,
    change: PolicyChange,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Change the limits that are named; `none` removes one."""
    _named(change)

    async def work() -> Organisation:
        async with open_accounts(config) as (accounts, _):
            return await accounts.update_organisation(org, lambda before: changed(before, change))

    _print(organisation_words(run(work())), json)


def _named(change: PolicyChange) -> None:
    if change.changes_nothing:
        raise typer.BadParameter("name a limit to change; --help lists them")


def _print(words: Words, json: bool) -> None:
    if json:
        print_json(words)
    else:
        print_facts({**words, "limits": limits_text(words["limits"])})


def _print_all(name: str, found: list[Words], json: bool) -> None:
    if json:
        print_json({name: found})
        return
    rows = [(f["id"], f["name"], f.get("organisation_id"), limits_text(f["limits"])) for f in found]
    if name == "teams":
        print_table(("ID", "NAME", "ORGANISATION", "LIMITS"), rows)
    else:
        print_table(("ID", "NAME", "LIMITS"), [(row[0], row[1], row[3]) for row in rows])
