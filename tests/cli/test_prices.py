"""`tollkeeper prices`: every kind, tier, source and time, exact; nearest names for an unknown model."""

from pathlib import Path

import genai_prices

from tests.cli.conftest import Command

SOURCE = f"genai-prices {genai_prices.__version__}"
CONFIGURED = """
[providers.mine]
base_url = "https://api.openai.com/v1"
dialect = "openai"
price_multiplier = "0.9"

[models.house]
upstream_model = "gpt-4o-mini"
context_window = 100_000
max_output_tokens = 2000
[[models.house.prices]]
from = 2026-11-01
until = 2026-12-01
input_usd = "1"
output_usd = "2.5"
per_web_search_usd = "0.0125"
[[models.house.prices.tiers]]
above_tokens = 50_000
input_usd = "2"
output_usd = "5"
"""


def test_show_every_table_of_the_price_data(command: Command) -> None:
    """Without a configuration, by the provider's id: context tiers and service tiers side by side."""
    shown = command("prices", "show", "gpt-5.5", "--provider", "openai", "--at", "2026-11-20")
    assert shown.code == 0, shown.err
    rows = {line.split("  ")[0]: line.split() for line in shown.out.splitlines()}
    head = "KIND            STANDARD  STANDARD >272,000  BATCH  BATCH >272,000  FAST  FLEX  FLEX >272,000  PRIORITY"
    assert head in shown.out
    assert rows["cached"] == ["cached", "0.5", "1", "0.25", "0.5", "1.25", "0.25", "0.5", "1.25"]
    assert rows["USD per web search"][-1] == "0.01"
    assert f"STANDARD >272,000: {SOURCE} openai/gpt-5.5 above 272000\n" in shown.out
    assert "valid                from 2026-10-14T00:00:00Z until further notice\n" in shown.out


def test_show_what_is_configured(command: Command, workdir: Path) -> None:
    """The entry of the time, the built-in price with the multiplier besides, and the caps that bound a request."""
    (workdir / "tollkeeper.toml").write_text(CONFIGURED)
    sheet = command("prices", "show", "house", "--at", "2026-11-30T23:59:59Z", "--json").json
    assert (sheet["provider"], sheet["upstream_model"]) == ("mine", "gpt-4o-mini")
    assert (sheet["valid_from"], sheet["valid_until"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    assert (sheet["context_window"], sheet["max_output_tokens"]) == (100_000, 2000)
    low, high = sheet["prices"]
    assert low["version"].startswith("configuration models.house.prices[0] ")
    assert (low["above_input_tokens"], high["above_input_tokens"]) == (None, 50_000)
    assert (low["usd_per_million_tokens"]["cached"], high["usd_per_million_tokens"]["output"]) == ("1", "5")
    assert sheet["usd_per_use"] == {"web_search": "0.0125"}
    later = command("prices", "show", "house", "--at", "2026-12-01", "--json").json
    assert later["prices"][0]["version"] == f"{SOURCE} openai/gpt-4o-mini × 0.9"
    assert later["prices"][0]["usd_per_million_tokens"]["input"] == "0.135"
    assert "100,000 (configured)" in command("prices", "show", "house").out


def test_an_unknown_model_is_told_its_nearest_names(command: Command, workdir: Path) -> None:
    """Exit 1, and what to write instead."""
    refused = command("prices", "show", "gtp-5", "--provider", "openai")
    assert refused.code == 1
    assert "does not know it" in refused.err
    assert "most like it: gpt-5," in refused.err
    (workdir / "tollkeeper.toml").write_text(CONFIGURED)
    assert "most like it: gpt-4o-mini" in command("prices", "show", "gpt-4o-mimi").err
    assert "no provider 'nobody'; known: anthropic" in command("prices", "show", "x", "--provider", "nobody").err
    (workdir / "tollkeeper.toml").unlink()
    assert "name one of the price data with --provider" in command("prices", "show", "gpt-5").err
    assert "is not a date" in command("prices", "show", "gpt-5", "--provider", "openai", "--at", "soon").err


def test_list(command: Command) -> None:
    """All models of a provider with a price."""
    lines = command("prices", "list", "--provider", "anthropic").out.splitlines()
    assert lines[0].split() == ["PROVIDER", "MODEL", "INPUT", "CACHED", "OUTPUT", "ALSO"]
    haiku = next(line.split() for line in lines if " claude-haiku-4-5 " in line)
    assert haiku[2:5] == ["1", "0.1", "5"]
    found = command("prices", "list", "--provider", "openai", "--json").json["models"]
    assert {"gpt-4o-mini", "text-embedding-3-small"} <= {sheet["model"] for sheet in found}
