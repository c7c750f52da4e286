"""`tollkeeper import`: accounts and models of another gateway."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tollkeeper.app.litellm import Adjustment, Done, Outcome, adjustments, carry_out
from tollkeeper.cli.common import (
    ConfigOption,
    JsonOption,
    limits_text,
    note,
    now_us,
    open_accounts,
    print_json,
    print_table,
    run,
)
from tollkeeper.cli.remote import RemoteGateway
from tollkeeper.domain.errors import ConfigurationError, InvalidInput
from tollkeeper.domain.litellm import Plan, plan_of
from tollkeeper.domain.litellm_models import Converted, convert
from tollkeeper.domain.money import usd
from tollkeeper.domain.words import policy_words
from tollkeeper.settings import load

app = typer.Typer(help="Take over what another gateway has: litellm.", no_args_is_help=True)
URL_VARIABLE = "LITELLM_DATABASE_URL"


@app.callback()
def _group() -> None:
    """So that `litellm` is a word of its own."""


@app.command()
def litellm(
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"LiteLLM's PostgreSQL database; default: {URL_VARIABLE}. It is only read."),
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="LiteLLM's config.yaml: its model list.", exists=True, dir_okay=False)
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the model list to this new file, as TOML; default: print it.")
    ] = None,
    spend: Annotated[
        bool, typer.Option("--spend", help="Also carry over what is spent of budgets; needs the gateway to run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be made, and what would not.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Import keys, teams, users and organisations with their limits and budgets, and the model list, from LiteLLM.

    Clients keep their keys. Repeating it makes only what was added, and changes nothing that is there.
    """
    database = database or os.environ.get(URL_VARIABLE) or None
    if database is None and models is None:
        raise typer.BadParameter(f"give --database (or {URL_VARIABLE}), --models, or both")
    if spend and (database is None or dry_run):
        raise typer.BadParameter("needs --database, and not --dry-run", param_hint="--spend")
    converted = None if models is None else convert(_read_yaml(models))
    outcomes = None if database is None else run(_accounts(database, config, dry_run=dry_run))
    adjusted = _adjust(config, adjustments(outcomes, now_us())) if spend and outcomes else []
    if converted is not None and write is not None and not dry_run:
        _write(write, converted.toml)
    if json:
        print_json(_words(outcomes, converted, adjusted))
        return
    if outcomes is not None:
        _print_accounts(outcomes, len(adjusted), dry_run=dry_run, spend=spend)
    if converted is not None:
        _print_models(converted, None if dry_run else write)


async def _accounts(database: str, config: Path | None, *, dry_run: bool) -> list[Outcome]:
    from tollkeeper.storage.litellm import read_litellm

    plan: Plan = plan_of(await read_litellm(database), now_us())
    async with open_accounts(config) as (accounts, _):
        return await carry_out(plan, accounts, dry_run=dry_run)


def _adjust(config: Path | None, wanted: list[Adjustment]) -> list[Adjustment]:
    gateway = RemoteGateway(load(config))
    for adjustment in wanted:
        body = {
            "id": adjustment.id,
            "scope": adjustment.scope,
            "name": adjustment.scope_id,
            "period": adjustment.spend.period.value,
            "amount_usd": usd(adjustment.spend.amount_nano),
            "note": "spent in LiteLLM before the import",
        }
        gateway.call("POST", "/admin/v1/corrections", body)
    return wanted


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise ConfigurationError('reading config.yaml needs PyYAML: install "tollkeeper[import]"') from None
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict):
        raise InvalidInput(f"{file} is not a configuration of LiteLLM: it should begin with `model_list:`")
    return read


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise InvalidInput(f"{file} exists; name a new file, and merge it by hand") from None
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}") from None


def _print_accounts(outcomes: list[Outcome], adjusted: int, *, dry_run: bool, spend: bool) -> None:
    rows = []
    for outcome in outcomes:
        spent = ", ".join(f"{usd(one.amount_nano)} USD ({one.period.value})" for one in outcome.spends)
        done = "would be made" if dry_run and outcome.done is Done.MADE else outcome.done.value
        rows.append((outcome.kind, outcome.name, done, limits_text(policy_words(outcome.policy)), spent))
        rows += [("", "", "", f"! {text}", "") for text in outcome.notes]
    print_table(("KIND", "NAME", "", "LIMITS, AND WHAT IS NOT CARRIED OVER", "SPENT IN LITELLM"), rows)
    counts = {done: sum(o.kind == "key" and o.done is done for o in outcomes) for done in Done}
    note(f"keys: {', '.join(f'{count} {done.value}' for done, count in counts.items())}")
    if adjusted:
        note(f"spend carried over for {adjusted} budgets")
    elif not spend and any(outcome.spends for outcome in outcomes):
        note("spend was not carried over: repeat with --spend while the gateway runs, after LiteLLM has stopped")
    if dry_run:
        note("nothing was made")


def _print_models(converted: Converted, written: Path | None) -> None:
    if written is None:
        typer.echo(converted.toml)
    else:
        note(f"{converted.models} models are in {written}; read it, and merge it into tollkeeper.toml")
    for text in converted.notes:
        note(f"! {text}")
    if converted.variables:
        note(f"set the providers' keys: {', '.join(converted.variables)}")


def _words(outcomes: list[Outcome] | None, converted: Converted | None, adjusted: list[Adjustment]) -> dict[str, Any]:
    return {
        "accounts": [
            {
                "kind": outcome.kind,
                "id": outcome.id,
                "name": outcome.name,
                "source": outcome.source,
                "done": outcome.done.value,
                "limits": policy_words(outcome.policy),
                "spent_usd": {one.period.value: usd(one.amount_nano) for one in outcome.spends},
                "notes": list(outcome.notes),
            }
            for outcome in outcomes or ()
        ],
        "spend_carried_over": len(adjusted),
        "models": None
        if converted is None
        else {"toml": converted.toml, "notes": list(converted.notes), "variables": list(converted.variables)},
    }
