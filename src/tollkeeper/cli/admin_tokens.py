"""`tollkeeper admin-tokens`: tokens of the admin API, in the configured database. A change counts at once."""

from typing import Annotated

import typer

from tollkeeper.cli import options
from tollkeeper.cli.common import (
    SHOWN_KEYS_HINT,
    ConfigOption,
    JsonOption,
    note,
    now_us,
    open_control,
    print_facts,
    print_json,
    print_table,
    run,
)
from tollkeeper.domain.accounts import UNCHANGED, Unchanged
from tollkeeper.domain.operators import AdminToken, AdminTokenChange, NewAdminToken, Role
from tollkeeper.domain.paging import PAGE_MAX, Page, Paging
from tollkeeper.domain.words import Words, admin_token_words

app = typer.Typer(help="Tokens of the admin API: create, list, show, update, rotate, revoke.", no_args_is_help=True)

TokenArgument = Annotated[str, typer.Argument(metavar="TOKEN", help="Name or id.")]
Owns = Annotated[
    list[str] | None,
    typer.Option("--owns", metavar="ID", help="Of an owner: a key, team or organisation; may be repeated."),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    role: Annotated[Role, typer.Option(help="admin: everything; viewer: read everything; owner: read its keys.")],
    owns: Owns = None,
    expires: options.Expires = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Create a token and show its secret, this once."""
    expires_us = options.expiry_us(expires, now_us())
    new = NewAdminToken(name, role, tuple(owns or ()), None if isinstance(expires_us, Unchanged) else expires_us)

    async def work() -> tuple[AdminToken, str]:
        async with open_control(config) as (tokens, _):
            return await tokens.create(new)

    _print_with_secret(*run(work()), json)


@app.command("list")
def list_tokens(
    revoked: Annotated[bool, typer.Option("--revoked", help="Revoked ones too.")] = False,
    limit: options.PageLimit = PAGE_MAX,
    starting_after: options.StartingAfter = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List tokens, newest first."""

    async def work() -> Page[AdminToken]:
        async with open_control(config) as (tokens, _):
            return await tokens.find(Paging(limit, starting_after), include_revoked=revoked)

    page = run(work())
    found = [admin_token_words(token, now_us()) for token in page.items]
    if json:
        print_json({"data": found, "has_more": page.has_more})
        return
    rows = [
        (t["id"], t["name"], t["role"], " ".join(t["owns"]), t["state"], f"…{t['hint']}", t["expires_at"])
        for t in found
    ]
    print_table(("ID", "NAME", "ROLE", "OWNS", "STATE", "SECRET", "EXPIRES"), rows)
    options.note_more(page)


@app.command()
def show(token: TokenArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show one token."""

    async def work() -> AdminToken:
        async with open_control(config) as (tokens, _):
            return await tokens.get(token)

    _print(run(work()), json)


@app.command()
def update(
    token: TokenArgument,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    owns: Owns = None,
    expires: options.Expires = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Change what is named and nothing else; `--expires none` removes the expiry."""
    change = AdminTokenChange(
        UNCHANGED if name is None else name,
        UNCHANGED if not owns else tuple(owns),
        options.expiry_us(expires, now_us()),
    )
    if change == AdminTokenChange():
        raise typer.BadParameter("name something to change; `--help` lists what there is")

    async def work() -> AdminToken:
        async with open_control(config) as (tokens, _):
            return await tokens.update(token, change)

    _print(run(work()), json)


@app.command()
def rotate(
    token: TokenArgument,
    overlap: options.Overlap = "0s",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Give a token a new secret and show it, this once."""
    overlap_s = options.overlap_s(overlap)

    async def work() -> tuple[AdminToken, str]:
        async with open_control(config) as (tokens, _):
            return await tokens.rotate(token, overlap_s=overlap_s)

    _print_with_secret(*run(work()), json)


@app.command()
def revoke(token: TokenArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Revoke a token for good, at once and everywhere."""

    async def work() -> AdminToken:
        async with open_control(config) as (tokens, _):
            return await tokens.revoke(token)

    _print(run(work()), json)


def _print(token: AdminToken, json: bool) -> None:
    words = admin_token_words(token, now_us())
    if json:
        print_json(words)
    else:
        print_facts(_facts(words))


def _print_with_secret(token: AdminToken, secret: str, json: bool) -> None:
    words = admin_token_words(token, now_us())
    if json:
        print_json(words | {"secret": secret})
        return
    print_facts(_facts(words) | {"secret": secret})
    note(SHOWN_KEYS_HINT)


def _facts(words: Words) -> Words:
    return {
        "id": words["id"],
        "name": words["name"],
        "role": words["role"],
        "owns": " ".join(words["owns"]),
        "state": words["state"],
        "created": words["created_at"],
        "expires": words["expires_at"],
        "old secret until": words["previous_secret_until"],
    }
