"""`tollkeeper config`, `tollkeeper migrate` and `tollkeeper doctor`: is what was configured what can work?"""

import msgspec
import typer

from tollkeeper.cli.common import ConfigOption, JsonOption, print_json, run
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import Settings, load, mask_url, provider_key, shown

app = typer.Typer(help="The configuration: check, show.", no_args_is_help=True)

NO_PROVIDER = (
    "no provider is configured: set OPENAI_API_KEY or ANTHROPIC_API_KEY in the environment, or write a "
    "[providers.<name>] table into tollkeeper.toml (see tollkeeper.example.toml); "
    "`tollkeeper serve --demo` needs neither"
)


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Read the configuration as `serve` would, provider keys included; connect to nothing."""
    from tollkeeper.gateway.routing import Router
    from tollkeeper.logs.redact import Redactor

    settings = load(config)
    require_providers(settings)
    Redactor(settings.logs)
    Router(settings).named()
    if json:
        print_json({"ok": True, "providers": sorted(settings.providers)})
    else:
        typer.echo(f"the configuration is good; providers: {', '.join(sorted(settings.providers))}")


@app.command()
def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the settings in force, defaults and environment included, secrets masked."""
    tree = shown(load(config))
    if json:
        print_json(tree)
    else:
        _print_tree(tree, "")


def _print_tree(tree: dict[str, object], prefix: str) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _print_tree(value, f"{prefix}{name}.")
        else:
            typer.echo(f"{prefix}{name} = {'-' if value is None else msgspec.json.encode(value).decode()}")


def migrate(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Bring the database's schema up to date. Safe to repeat, and to run beside gateways of the version before."""
    settings = load(config)
    was_current = run(_migrate(settings))
    database = mask_url(settings.database_url)
    if json:
        print_json({"database": database, "changed": not was_current})
    else:
        typer.echo(f"the schema of {database} {'was current already' if was_current else 'is current now'}")


async def _migrate(settings: Settings) -> bool:
    from tollkeeper.app.data_dir import DataDir
    from tollkeeper.storage.database import Database

    DataDir(settings.data_dir).create()
    database = await Database.open(settings.database_url, pool_size=1, timeout_s=settings.database.timeout_s)
    try:
        was_current = await database.schema_is_current()
        await database.migrate()
        return was_current
    finally:
        await database.close()


def doctor(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check each part of the deployment and say how to mend what is wrong. Exit 1 if something fails."""
    from tollkeeper.cli.doctor import examine

    findings = run(examine(config))
    if json:
        print_json({"findings": findings})
    else:
        width = max(len(finding.part) for finding in findings)
        for finding in findings:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{finding.state:<4}  {finding.part:<{width}}  {finding.text}{remedy}")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def require_providers(settings: Settings) -> None:
    """Raises ConfigurationError if there is no provider, or a key that should exist is missing."""
    if not settings.providers:
        raise ConfigurationError(NO_PROVIDER)
    for name, provider in settings.providers.items():
        provider_key(name, provider)
