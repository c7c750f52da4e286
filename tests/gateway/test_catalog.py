"""Prices as integers equal genai-prices' own arithmetic, and settings override them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers as price_data

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.pricing import cost_nano
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import (
    MODELS_MAX,
    Catalog,
    output_limit_field,
)
from tollkeeper.settings import ProviderSettings, convert

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def catalog(models: dict[str, Any] | None = None) -> Catalog:
    """Every provider of the price data, by its id."""
    tree = {
        "providers": {
            re.sub(r"[^a-z0-9._-]", "-", p.id): {
                "base_url": "http://127.0.0.1:1/v1",
                "dialect": "anthropic" if p.id == "anthropic" else "openai",
                "prices": p.id,
            }
            for p in price_data
        },
        "models": models or {},
    }
    return Catalog(convert(tree))


EVERY = catalog()


def test_providers_are_found_by_id_or_address() -> None:
    """An address that no price data know has no prices, and says so."""
    tree = {
        "providers": {
            "one": {"base_url": "https://api.openai.com/v1", "dialect": "openai"},
            "two": {"base_url": "http://127.0.0.1:9/v1", "dialect": "openai", "prices": "openai"},
            "three": {"base_url": "http://127.0.0.1:9/v1", "dialect": "openai"},
        }
    }
    found = Catalog(convert(tree))
    one, two, three = (found.info(p, "gpt-4o-mini", "gpt-4o-mini", us(NOW)) for p in ("one", "two", "three"))
    assert one == two
    assert one.price is not None
    assert one.price.version == f"genai-prices {genai_prices.__version__} openai/gpt-4o-mini"
    assert three.price is None
    assert three.unpriced == "no prices are known for its provider"
    assert "gpt-4o-mini" in found.model_names("one")
    assert "gpt-image-1.5" in found.model_names("one")
    assert found.model_names("three") == []
    tree["providers"]["one"]["prices"] = "nobody"
    with pytest.raises(ConfigurationError, match=r"providers\.one\.prices: .* no provider 'nobody'; known: .*openai"):
        Catalog(convert(tree))


def test_settings_override_prices() -> None:
    """Both base prices configured: nothing else counts. A single kind replaces that kind alone, in every tier."""
    found = catalog(
        {
            "own": {"input_usd": "0.5", "output_usd": "1.5", "per_request_usd": "0.000001"},
            "claude-sonnet-4-5": {"provider": "anthropic", "cached_usd": "0.125", "context_window": 200000},
            "elsewhere": {"provider": "groq", "input_usd": "9", "output_usd": "9"},
        }
    )
    own = found.info("openai", "own", "whatever", us(NOW)).price
    assert own is not None
    assert own.version == "configuration"
    assert cost_nano(own, Usage(input_tokens=2, output_tokens=2, cached_tokens=1)) == 1000 + 3000 + 1000
    sonnet = found.info("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5", us(NOW))
    assert sonnet.price is not None
    assert sonnet.context_window == 200000
    assert {sonnet.price.base.cached, *(t.rates.cached for t in sonnet.price.tiers)} == {125_000}
    assert sonnet.price.base.input == 3_000_000
    assert sonnet.price.version.endswith("anthropic/claude-sonnet-4-5 + configuration")
    assert found.info("openai", "elsewhere", "elsewhere", us(NOW)).price is None
    assert {"own", "elsewhere"} <= set(found.model_names("groq"))
    assert "elsewhere" not in found.model_names("openai")


def test_models_that_always_search_are_unbounded() -> None:
    """Their searches are charged whether a request asks for them or not."""
    info = EVERY.info("openai", "gpt-4o-search-preview", "gpt-4o-search-preview", us(NOW))
    assert info.bound(Content(text_bytes=5), max_output=1, choices=1).unbounded is not None


def test_a_hold_is_above_any_cost_within_the_bound() -> None:
    """Dearest tier, cache writes and all."""
    info = EVERY.info("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5", us(NOW))
    assert info.price is not None
    content = Content(text_bytes=300_000, images=1, cache_write=True, cache_write_1h=True)
    tokens = info.bound(content, max_output=1000, choices=1)
    assert tokens.input_tokens == 305_000
    worst = Usage(305_000, 1000, 0, 305_000, 305_000)
    assert info.hold_nano(content, tokens) == cost_nano(info.price, worst)
    unknown = EVERY.info("openai", "nothing", "nothing", us(NOW))
    assert unknown.hold_nano(content, tokens) is None


def test_resolved_models_are_bounded() -> None:
    """A client that invents names does not fill the memory."""
    found = catalog()
    for i in range(MODELS_MAX + 10):
        found._models["x", str(i), str(i)] = EVERY.info("openai", "gpt-4o", "gpt-4o", us(NOW))
    before = len(found._models)
    found.info("openai", "gpt-4o", "gpt-4o", us(NOW))
    assert len(found._models) <= before


def test_output_limits_are_stated_in_the_field_that_the_provider_heeds() -> None:
    """OpenAI itself wants max_completion_tokens; those who follow it know max_tokens."""
    openai = ProviderSettings(base_url="https://api.openai.com/v1", dialect="openai")
    other = ProviderSettings(base_url="https://api.openai.com.example/v1", dialect="openai")
    own = ProviderSettings(
        base_url="http://127.0.0.1/v1", dialect="openai", output_limit_field="max_completion_tokens"
    )
    assert [output_limit_field("chat", p) for p in (openai, other, own)] == [
        "max_completion_tokens",
        "max_tokens",
        "max_completion_tokens",
    ]
    assert output_limit_field("responses", other) == "max_output_tokens"
    assert output_limit_field("messages", other) == "max_tokens"
    assert output_limit_field("embeddings", other) is None
    assert EVERY.info("openai", "gpt-4o-mini", "gpt-4o-mini", us(NOW)).output_default == 16_384
    assert EVERY.info("openai", "unheard-of", "unheard-of", us(NOW)).output_default == 4096
