"""`tollkeeper keys`: API keys in the configured database. A running gateway knows of a change within two seconds."""

from typing import Annotated

import typer

from tollkeeper.cli import options
from tollkeeper.cli.common import (
    SHOWN_KEYS_HINT,
    ConfigOption,
    JsonOption,
    limits_text,
    note,
    now_us,
    open_accounts,
    print_facts,
    print_json,
    print_table,
    run,
)
from tollkeeper.domain.accounts import Key, KeyChange, NewKey, Unchanged
from tollkeeper.domain.policy import UNLIMITED
from tollkeeper.domain.policy_change import PolicyChange, changed
from tollkeeper.domain.words import Words, key_words

app = typer.Typer(help="API keys: create, list, show, update, rotate, revoke.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Name or id.")]


@app.command()
@options.with_limits
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    team: Annotated[str | None, typer.Option(help="Name or id of the team.")] = None,
    org: Annotated[str | None, typer.Option(help="Name or id of the organisation; default: one of its own.")] = None,
    change: PolicyChange,
    expires: options.Expires = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Create a key and show its secret, this once."""
    expires_us = options.expiry_us(expires, now_us())
    new = NewKey(
        name=name,
        organisation=org,
        team=team,
        policy=changed(UNLIMITED, change),
        expires_us=None if isinstance(expires_us, Unchanged) else expires_us,
    )

    async def work() -> tuple[Key, str]:
        async with open_accounts(config) as (accounts, _):
            return await accounts.create_key(new)

    _print_with_secret(*run(work()), json)


@app.command("list")
def list_keys(
    team: Annotated[str | None, typer.Option(help="Only the keys of this team.")] = None,
    revoked: Annotated[bool, typer.Option("--revoked", help="Revoked keys too.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List keys."""

    async def work() -> list[Words]:
        async with open_accounts(config) as (accounts, _):
            keys = await accounts.list_keys(team=team, include_revoked=revoked)
            return [key_words(key, now_us()) for key in keys]

    found = run(work())
    if json:
        print_json({"keys": found})
        return
    rows = [
        (k["id"], k["name"], k["state"], f"…{k['hint']}", k["expires_at"], limits_text(k["limits"])) for k in found
    ]
    print_table(("ID", "NAME", "STATE", "SECRET", "EXPIRES", "LIMITS"), rows)


@app.command()
def show(key: KeyArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show one key."""

    async def work() -> Key:
        async with open_accounts(config) as (accounts, _):
            return await accounts.get_key(key)

    _print(run(work()), json)


@app.command()
@options.with_limits
def update(
    key: KeyArgument,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    team: Annotated[str | None, typer.Option(help="Another team of its organisation.")] = None,
    change: PolicyChange,
    expires: options.Expires = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Change what is named and nothing else; `none` removes a limit, the team or the expiry."""
    asked = KeyChange(team=options.named(team), expires_us=options.expiry_us(expires, now_us()))
    if name is not None:
        asked = KeyChange(name=name, team=asked.team, expires_us=asked.expires_us)
    if change.changes_nothing and asked == KeyChange():
        raise typer.BadParameter("name something to change; `tollkeeper keys update --help` lists what there is")

    async def work() -> Key:
        async with open_accounts(config) as (accounts, _):
            policy = asked.policy if change.changes_nothing else lambda before: changed(before, change)
            return await accounts.update_key(key, KeyChange(asked.name, asked.team, policy, asked.expires_us))

    _print(run(work()), json)


@app.command()
def rotate(
    key: KeyArgument, overlap: options.Overlap = "0s", config: ConfigOption = None, json: JsonOption = False
) -> None:
    """Give a key a new secret and show it, this once; without an overlap the old one ends within two seconds."""
    overlap_s = options.overlap_s(overlap)

    async def work() -> tuple[Key, str]:
        async with open_accounts(config) as (accounts, _):
            return await accounts.rotate_key(key, overlap_s=overlap_s)

    _print_with_secret(*run(work()), json)


@app.command()
def revoke(key: KeyArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Revoke a key for good, everywhere within two seconds."""

    async def work() -> Key:
        async with open_accounts(config) as (accounts, _):
            return await accounts.revoke_key(key)

    _print(run(work()), json)


def _print(key: Key, json: bool) -> None:
    words = key_words(key, now_us())
    if json:
        print_json(words)
    else:
        print_facts(_facts(words))


def _print_with_secret(key: Key, secret: str, json: bool) -> None:
    words = key_words(key, now_us())
    if json:
        print_json(words | {"secret": secret})
        return
    print_facts(_facts(words) | {"secret": secret})
    note(SHOWN_KEYS_HINT)


def _facts(words: Words) -> Words:
    return {
        "id": words["id"],
        "name": words["name"],
        "state": words["state"],
        "organisation": words["organisation_id"],
        "team": words["team_id"],
        "created": words["created_at"],
        "expires": words["expires_at"],
        "old secret until": words["previous_secret_until"],
        "limits": limits_text(words["limits"]),
    }
