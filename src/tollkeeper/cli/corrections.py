"""`tollkeeper usage corrections`: charges whose truth is not known, and an operator's word on them.

All of it is done by the running gateway: a correction is one of its numbered entries.
"""

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from tollkeeper.cli import options
from tollkeeper.cli.common import ConfigOption, JsonOption, note, print_facts, print_json, print_table
from tollkeeper.cli.remote import RemoteGateway
from tollkeeper.domain.paging import PAGE_DEFAULT
from tollkeeper.settings import load

app = typer.Typer(
    help="Presumed, late and corrected charges: list, show, apply, adjust, reset.", no_args_is_help=True
)
PATH = "/admin/v1/corrections"


class Status(StrEnum):
    """As the admin API has it."""

    PRESUMED = "presumed"
    SETTLED = "settled"
    CORRECTED = "corrected"
    QUARANTINED = "quarantined"


class Scope(StrEnum):
    """Whose spend is changed."""

    KEY = "key"
    TEAM = "team"
    ORGANISATION = "organisation"


class Period(StrEnum):
    """Which of its counters."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


AttemptArgument = Annotated[str, typer.Argument(metavar="ATTEMPT", help="As `list` shows it.")]
ScopeArgument = Annotated[Scope, typer.Argument(metavar="key|team|organisation")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why; it is kept with the correction.")]
PeriodOption = Annotated[Period, typer.Option(help="The counter of today, this week, this month, or in total.")]
MonthOption = Annotated[str | None, typer.Option(metavar="YYYY-MM", help="Another month than this one.")]


@app.command("list")
def list_charges(
    status: Annotated[Status | None, typer.Option(help="Only those.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only of this key, by name or id.")] = None,
    limit: options.PageLimit = PAGE_DEFAULT,
    starting_after: options.Cursor = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List charges that were presumed, late, corrected or could not be placed; what changed last comes first."""
    asked = {"status": status and status.value, "key": key, "limit": limit, "starting_after": starting_after}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    found = RemoteGateway(load(config)).call("GET", f"{PATH}?{query}")
    if json:
        print_json(found)
        return
    if not found["data"]:
        note("nothing is presumed or corrected")
    rows = [
        (c["updated_at"], c["attempt"], c["status"], c["presumed_usd"], c["cost_usd"], c["note"])
        for c in found["data"]
    ]
    head = ("CHANGED", "ATTEMPT", "STATUS", "PRESUMED USD", "CHARGED USD", "NOTE")
    print_table(head, rows, right=("PRESUMED USD", "CHARGED USD"))
    if found["has_more"]:
        note(f"there are more: --starting-after {found['next_cursor']}")


@app.command()
def show(attempt: AttemptArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Explain the charge of one attempt."""
    found = RemoteGateway(load(config)).call("GET", f"{PATH}/{quote(attempt, safe='')}")
    if json:
        print_json(found)
        return
    for charge in found["data"]:
        print_facts({**charge, "counters": " ".join(charge["counters"])})


@app.command()
def apply(
    attempt: AttemptArgument,
    cost: Annotated[str, typer.Option(metavar="USD", help="What it cost, like 0.0123.")],
    why: NoteOption,
    input_tokens: Annotated[int | None, typer.Option(min=0)] = None,
    output_tokens: Annotated[int | None, typer.Option(min=0)] = None,
    cached_tokens: Annotated[int | None, typer.Option(min=0)] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Say what an attempt cost. It replaces what was presumed or said before; a later truth does not undo it."""
    tokens = {"input_tokens": input_tokens, "output_tokens": output_tokens, "cached_tokens": cached_tokens}
    body = {"cost_usd": cost, "note": why, **tokens}
    _issued(RemoteGateway(load(config)).call("POST", f"{PATH}/{quote(attempt, safe='')}", body), json)


@app.command()
def adjust(
    scope: ScopeArgument,
    name: NameArgument,
    amount: Annotated[str, typer.Option(metavar="USD", help="Added to its spend; below zero with --amount=-1.50.")],
    why: NoteOption,
    period: PeriodOption = Period.MONTH,
    month: MonthOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Change the spend of a scope in one period. The scopes above and below it stay as they are."""
    body = {"scope": scope.value, "name": name, "period": period.value, "month": month, "amount_usd": amount}
    _issued(RemoteGateway(load(config)).call("POST", PATH, {**body, "note": why}), json)


@app.command()
def reset(
    scope: ScopeArgument,
    name: NameArgument,
    why: NoteOption,
    period: PeriodOption = Period.MONTH,
    month: MonthOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take the spend of a scope in one period to zero, by an adjustment that is listed and can be corrected."""
    body = {"scope": scope.value, "name": name, "period": period.value, "month": month}
    _issued(RemoteGateway(load(config)).call("POST", PATH, {**body, "note": why}), json)


def _issued(issued: dict[str, Any], json: bool) -> None:
    if json:
        print_json(issued)
        return
    done = "" if issued["applied"] else " as soon as the store answers; it is on the gateway's disk"
    typer.echo(f"{issued['attempt']}: {issued['cost_usd']} USD{done}")
