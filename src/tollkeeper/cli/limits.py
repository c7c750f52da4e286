"""`tollkeeper limits`: a key's limits as the running gateway counts them."""

from typing import Annotated
from urllib.parse import quote

import typer

from tollkeeper.cli.common import ConfigOption, JsonOption, print_json, print_table
from tollkeeper.cli.remote import RemoteGateway
from tollkeeper.domain.words import Words
from tollkeeper.settings import load

app = typer.Typer(help="Limits of a key in the running gateway: show, reset.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Name or id.")]


@app.command()
def show(key: KeyArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every limit that the key's requests are checked against, with what is used and left."""
    found = RemoteGateway(load(config)).call("GET", f"/admin/v1/limits/{quote(key, safe='')}")
    if json:
        print_json(found)
        return
    rows = [
        (_name(limit), limit["scope"], limit["limit"], limit["used"], limit["remaining"], _reset(limit["reset_s"]))
        for limit in found["limits"]
    ]
    print_table(
        ("LIMIT", "SCOPE", "ALLOWED", "USED", "LEFT", "FREE IN"), rows, right=("ALLOWED", "USED", "LEFT", "FREE IN")
    )


@app.command()
def reset(key: KeyArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Empty the key's own windows, fill its buckets, free its slots. Its team, organisation and spend stay."""
    RemoteGateway(load(config)).call("POST", f"/admin/v1/limits/{quote(key, safe='')}/reset")
    if json:
        print_json({"key": key, "reset": True})
    else:
        typer.echo(f"limits of {key} are reset")


def _name(limit: Words) -> str:
    if limit["period"] is not None:
        return f"USD {'in total' if limit['period'] == 'total' else 'a ' + limit['period']}"
    name = str(limit["limit_kind"])
    if limit["window_s"] is not None:
        name += f" in {limit['window_s']:g} s"
    if limit["rate"] is not None:
        name += f" at {limit['rate']} a minute"
    if limit["model"] is not None:
        name += f" of {limit['model']}"
    return f"{name} (shadow)" if limit["shadow"] else name


def _reset(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    days, rest = divmod(round(seconds), 86_400)
    return f"{days} d {rest // 3600} h" if days else f"{seconds:.1f} s"
