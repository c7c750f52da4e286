"""Prices as integers equal genai-prices' own arithmetic, and settings override them."""

import re
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers as price_data
from genai_prices.types import ModelPrice, TieredPrices
from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.money import NANO_PER_USD
from tollkeeper.domain.pricing import cost_nano
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import (
    MEASURED,
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


def _whole(prices: ModelPrice) -> bool:
    """Whether all token prices are whole pico-dollars per token."""
    values = [v for k, v in vars(prices).items() if k in MEASURED and v is not None]
    flat = [
        x for v in values for x in ([v.base, *(t.price for t in v.tiers)] if isinstance(v, TieredPrices) else [v])
    ]
    return all((x * 10**6) % 1 == 0 for x in flat)


PRICED = [
    (p.id, m.id)
    for p in price_data
    for m in p.models
    if m.is_match(m.id)
    and p.find_model(m.id) is m
    and _whole(m.get_prices(NOW))
    and EVERY.info(p.id, m.id, m.id, us(NOW)).price is not None
]
TIERED = [(p, m) for p, m in PRICED if (price := EVERY.info(p, m, m, us(NOW)).price) is not None and price.tiers]


def oracle_nano(provider: str, model: str, usage: Usage) -> int:
    """genai-prices' price of a usage, rounded up once."""
    values = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
        "input_audio_tokens": usage.input_audio_tokens,
        "output_audio_tokens": usage.output_audio_tokens,
    }
    if usage.input_audio_tokens and usage.cached_tokens:
        values["cache_audio_read_tokens"] = 0
    if usage.input_audio_tokens and usage.cache_write_tokens:
        values["cache_audio_write_tokens"] = 0
    if usage.output_audio_tokens and usage.reasoning_tokens:
        values["output_audio_reasoning_tokens"] = 0
    priced = genai_prices.calc_price(
        genai_prices.Usage(**values), model, provider_id=provider, genai_request_timestamp=NOW
    )
    return int((priced.total_price * NANO_PER_USD).to_integral_value(ROUND_CEILING))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    tokens = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 600_000))
    cached, write, heard, plain = draw(tokens), draw(tokens), draw(tokens), draw(tokens)
    spoken, reasoning, text = draw(tokens), draw(tokens), draw(tokens)
    return Usage(
        input_tokens=cached + write + heard + plain,
        output_tokens=spoken + reasoning + text,
        cached_tokens=cached,
        cache_write_tokens=write,
        cache_write_1h_tokens=draw(st.one_of(st.just(0), st.integers(0, write))),
        reasoning_tokens=reasoning,
        input_audio_tokens=heard,
        output_audio_tokens=spoken,
    )


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.sampled_from(PRICED), st.sampled_from(TIERED)), usages())
def test_cost_equals_genai_prices(model: tuple[str, str], usage: Usage) -> None:
    """To the nano-dollar, for any model and usage: tiers, caches and audio included."""
    price = EVERY.info(*model, model[1], us(NOW)).price
    assert price is not None
    assert cost_nano(price, usage) == oracle_nano(*model, usage)


def test_every_priced_model_equals_genai_prices() -> None:
    """One usage with all kinds for each of them, below and above every tier."""
    assert len(PRICED) > 1500
    for provider, model in PRICED:
        price = EVERY.info(provider, model, model, us(NOW)).price
        assert price is not None
        for factor in (1, 1000):
            usage = Usage(1009 * factor, 317 * factor, 101 * factor, 203 * factor, 67 * factor, 31 * factor)
            assert cost_nano(price, usage) == oracle_nano(provider, model, usage), (provider, model)


def test_prices_finer_than_a_pico_dollar_are_never_below_the_truth() -> None:
    """28 prices of the data have more digits: they are rounded up, by less than a pico-dollar a token."""
    fine = [
        (p.id, m.id)
        for p in price_data
        for m in p.models
        if p.find_model(m.id) is m and not _whole(m.get_prices(NOW)) and m.id
    ]
    assert fine
    usage = Usage(input_tokens=10_000, output_tokens=1000, cached_tokens=1000, cache_write_tokens=5000)
    for provider, model in fine:
        price = EVERY.info(provider, model, model, us(NOW)).price
        if price is not None:
            assert 0 <= cost_nano(price, usage) - oracle_nano(provider, model, usage) <= 12


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


def test_a_price_that_usage_cannot_tell_apart_is_no_price() -> None:
    """Charging image output as text would be below the truth."""
    info = EVERY.info("openai", "gpt-image-1.5", "gpt-image-1.5", us(NOW))
    assert info.price is None
    assert info.unpriced is not None
    assert "image" in info.unpriced


def test_a_price_by_the_hour_is_looked_up_anew_when_it_changes() -> None:
    """DeepSeek's off-peak prices: what is kept is valid until the minute they change."""
    noon, night = NOW, NOW.replace(hour=17)
    peak = EVERY.info("deepseek", "deepseek-chat", "deepseek-chat", us(noon))
    changed = EPOCH + timedelta(microseconds=peak.valid_until_us)
    model = next(m for p in price_data if p.id == "deepseek" for m in p.models if m.id == "deepseek-chat")
    assert noon < changed <= noon + timedelta(days=1)
    for moment in (noon, night, changed, changed - timedelta(microseconds=1)):
        price = catalog().info("deepseek", "deepseek-chat", "deepseek-chat", us(moment)).price
        assert price is not None
        expected = model.get_prices(moment).input_mtok
        assert isinstance(expected, Decimal)
        assert price.base.input == int(expected * 10**6)


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
