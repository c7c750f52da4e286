"""`tollkeeper usage alerts`: warnings of budgets and their delivery, from the configured database."""

from collections.abc import Sequence
from typing import Annotated

import typer

from tollkeeper.cli import options
from tollkeeper.cli.common import ConfigOption, JsonOption, note, open_database, print_json, print_table, run
from tollkeeper.domain.alerts import DELIVERIES, AlertFilters, GivenAlert, given_words
from tollkeeper.domain.paging import PAGE_DEFAULT
from tollkeeper.domain.words import time_us_from


def list_alerts(
    scope: Annotated[str | None, typer.Option(metavar="ID", help="Of this key, team or organisation.")] = None,
    delivery: Annotated[str | None, typer.Option(metavar="|".join(DELIVERIES), help="Only those.")] = None,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help="RFC 3339 or a date; reached since.")] = None,
    limit: options.PageLimit = PAGE_DEFAULT,
    starting_after: options.Cursor = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List thresholds of budgets that were reached, newest first, and whether the webhook has been told."""
    filters = AlertFilters(
        scope_id=scope, delivery=delivery, since_us=None if since is None else time_us_from(since, what="since")
    )

    async def work() -> tuple[Sequence[GivenAlert], str | None]:
        async with open_database(config) as database:
            return await database.alerts.find(filters, limit, starting_after)

    given, following = run(work())
    found = [given_words(each) for each in given]
    if json:
        print_json({"data": found, "has_more": following is not None, "next_cursor": following})
        return
    if not found:
        note("no threshold of a budget was reached")
    columns = ("reached_at", "scope", "scope_id", "period", "threshold_usd", "spent_usd", "delivery", "attempts")
    rows = [[alert[name] for name in (*columns, "failure")] for alert in found]
    head = ("REACHED", "SCOPE", "ID", "PERIOD", "THRESHOLD USD", "SPENT USD", "DELIVERY", "ATTEMPTS", "FAILURE")
    print_table(head, rows, right=("THRESHOLD USD", "SPENT USD", "ATTEMPTS"))
    if following is not None:
        note(f"there are more: --starting-after {following}")
