"""`tollkeeper audit`: what was changed and by whom, from the configured database."""

from typing import Annotated

import typer

from tollkeeper.cli import options
from tollkeeper.cli.common import ConfigOption, JsonOption, open_control, print_json, print_table, run
from tollkeeper.domain.audit import AuditEvent, AuditFilters
from tollkeeper.domain.paging import PAGE_DEFAULT, Page, Paging
from tollkeeper.domain.words import Words, audit_words, time_us_from

app = typer.Typer(help="The audit log: what was changed, and by whom.", no_args_is_help=True)


@app.command("list")
def list_events(
    object_id: Annotated[str | None, typer.Option("--object", metavar="ID", help="Changes of this.")] = None,
    actor: Annotated[str | None, typer.Option(metavar="ID", help="By this token, or bootstrap, or cli.")] = None,
    action: Annotated[str | None, typer.Option(help="Like key.update.")] = None,
    request_id: Annotated[str | None, typer.Option(help="By this request.")] = None,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help="RFC 3339 or a date; from then on.")] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Before then.")] = None,
    limit: options.PageLimit = PAGE_DEFAULT,
    starting_after: options.StartingAfter = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List changes, newest first, in the order in which they were committed."""
    filters = AuditFilters(
        object_id=object_id,
        actor=actor,
        action=action,
        request_id=request_id,
        since_us=None if since is None else time_us_from(since, what="since"),
        until_us=None if until is None else time_us_from(until, what="until"),
    )

    async def work() -> Page[AuditEvent]:
        async with open_control(config) as (_, audit):
            return await audit.find(filters, Paging(limit, starting_after))

    page = run(work())
    found = [audit_words(event) for event in page.items]
    if json:
        print_json({"data": found, "has_more": page.has_more})
        return
    rows = [(e["at"], e["id"], _who(e), e["action"], e["object_id"], changes_text(e)) for e in found]
    print_table(("WHEN", "ID", "WHO", "ACTION", "OBJECT", "CHANGE"), rows)
    options.note_more(page)


def _who(event: Words) -> str:
    return str(event["actor_name"]) if event["source"] == "api" else f"{event['actor_name']} ({event['source']})"


def changes_text(event: Words) -> str:
    """What an update changed: `rpm 5 → 6, name a → b`; nothing for what began or ended."""
    if event["before"] is None or event["after"] is None:
        return ""
    return ", ".join(_changes(event["before"], event["after"]))


def _changes(before: Words, after: Words) -> list[str]:
    parts: list[str] = []
    for name, old in before.items():
        new = after[name]
        if isinstance(old, dict) and isinstance(new, dict):
            parts += _changes(old, new)
        else:
            parts.append(f"{name} {_cell(old)} → {_cell(new)}")
    return parts


def _cell(value: object) -> str:
    return "none" if value is None else str(value)
