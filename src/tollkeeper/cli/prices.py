"""`tollkeeper prices`: what models cost at a time, from the price data and the configuration. Asks no gateway."""

from typing import Annotated, Any, Final

import msgspec
import typer

from tollkeeper.cli.common import ConfigOption, JsonOption, now_us, print_facts, print_json, print_table
from tollkeeper.domain.errors import ConfigurationError, RequestError
from tollkeeper.domain.words import time_us_from
from tollkeeper.gateway.routing import CHAT_PATHS, Route, Router
from tollkeeper.settings import Dialect, ProviderSettings, Settings, load

app = typer.Typer(help="Prices of models: show, list.", no_args_is_help=True)

ProviderOption = Annotated[
    str | None,
    typer.Option(
        "--provider", help="A provider of the configuration, or of the price data; default: the one that serves it."
    ),
]
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="DATE", help="2026-12-31 or 2026-12-31T12:00:00Z; default: now.")
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Its name, also as provider/name.")]
NOWHERE: Final = "http://127.0.0.1/v1"
"""The address of a provider that is only asked for its prices."""


@app.command()
def show(
    model: ModelArgument,
    provider: ProviderOption = None,
    at: AtOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a model costs for every kind of token, context tier and service tier, and how requests are bounded.

    Exit 1 for a model without a known price.
    """
    from tollkeeper.gateway.catalog import Catalog
    from tollkeeper.gateway.price_sheet import price_sheet

    settings = _with_provider(load(config), provider)
    at_us = now_us() if at is None else time_us_from(at, what="--at")
    route = _route(settings, model, provider)
    catalog = Catalog(settings)
    info = catalog.info(route.provider, route.settings_of or route.model, route.upstream_model, at_us)
    if info.price is None:
        near = catalog.nearest(route.provider, route.model)
        advice = f"; most like it: {', '.join(near)}" if near else ""
        raise ConfigurationError(f"no price of {route.model!r} at {route.provider!r}: {info.unpriced}{advice}")
    sheet = price_sheet(route, info, at_us)
    if json:
        print_json(sheet)
    else:
        _print(sheet)


@app.command("list")
def list_prices(
    provider: ProviderOption = None, at: AtOption = None, config: ConfigOption = None, json: JsonOption = False
) -> None:
    """List every model with a price, in USD per million tokens, standard and for short inputs."""
    from tollkeeper.gateway.catalog import Catalog
    from tollkeeper.gateway.price_sheet import price_sheet

    settings = _with_provider(load(config), provider)
    if not settings.providers:
        raise ConfigurationError(_unnamed())
    at_us = now_us() if at is None else time_us_from(at, what="--at")
    catalog = Catalog(settings)
    sheets = []
    for name in settings.providers if provider is None else (provider,):
        for model in catalog.model_names(name):
            info = catalog.info(name, model, model, at_us)
            if info.price is not None:
                sheets.append(price_sheet(Route(model, name, model), info, at_us))
    if json:
        print_json({"models": sheets})
        return
    rows = []
    for sheet in sheets:
        first, *others = sheet["prices"]
        usd = first["usd_per_million_tokens"]
        tiers = sorted({t["service_tier"] or f"above {t['above_input_tokens']:,}" for t in others})
        rows.append((sheet["provider"], sheet["model"], usd["input"], usd["cached"], usd["output"], ", ".join(tiers)))
    print_table(("PROVIDER", "MODEL", "INPUT", "CACHED", "OUTPUT", "ALSO"), rows, right=("INPUT", "CACHED", "OUTPUT"))


def _with_provider(settings: Settings, provider: str | None) -> Settings:
    """The settings, with a provider of the price data added to them if that is what is asked for."""
    if provider is None or provider in settings.providers:
        return settings
    dialect: Dialect = "anthropic" if provider == "anthropic" else "openai"
    added = ProviderSettings(base_url=NOWHERE, dialect=dialect, prices=provider)
    return msgspec.structs.replace(settings, providers={**settings.providers, provider: added})


def _route(settings: Settings, model: str, provider: str | None) -> Route:
    if provider is not None:
        own = settings.models.get(model)
        mine = own is not None and own.provider in (None, provider)
        return Route(model, provider, (own.upstream_model or model) if own is not None and mine else model)
    if not settings.providers:
        raise ConfigurationError(_unnamed())
    router = Router(settings)
    refused: RequestError | None = None
    for dialect in CHAT_PATHS:
        try:
            return router.resolve(model, dialect)
        except RequestError as error:
            refused = refused or error
    raise ConfigurationError(f"{refused} Or name a provider with --provider.")


def _unnamed() -> str:
    return "no provider is configured; name one of the price data with --provider, like openai or anthropic"


def _print(sheet: dict[str, Any]) -> None:
    window, listed = sheet["context_window"], sheet["context_window_listed"]
    limit = sheet["max_output_tokens"]
    known = f"{listed:,} (price data)" if listed else None
    print_facts(
        {
            "model": f"{sheet['provider']}/{sheet['model']}",
            "upstream model": sheet["upstream_model"],
            "source": sheet["source"],
            "at": sheet["at"],
            "valid": f"from {sheet['valid_from'] or 'ever'} until {sheet['valid_until'] or 'further notice'}",
            "context window": f"{window:,} (configured)" if window else known,
            "max output": f"{limit:,} (configured)" if limit else f"{sheet['output_limit_injected']:,} (injected)",
            "max for an image": sheet["image_tokens_max"],
            "not bounded": sheet["unbounded"],
            **{f"USD per {kind.replace('_', ' ')}": usd for kind, usd in sheet["usd_per_use"].items()},
        }
    )
    typer.echo("\nUSD per million tokens:")
    heads = [_head(table) for table in sheet["prices"]]
    tables = [table["usd_per_million_tokens"] for table in sheet["prices"]]
    rows = [(kind.replace("_", " "), *(table[kind] for table in tables)) for kind in tables[0]]
    print_table(("KIND", *heads), rows, right=heads)
    for head, table in zip(heads, sheet["prices"], strict=True):
        typer.echo(f"{head}: {table['version']}")


def _head(table: dict[str, Any]) -> str:
    above = table["above_input_tokens"]
    name = (table["service_tier"] or "standard").upper()
    return name if above is None else f"{name} >{above:,}"
