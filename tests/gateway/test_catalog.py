"""Prices as integers equal genai-prices' own arithmetic, and settings override them."""

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import genai_prices
import msgspec
import pytest
from genai_prices.data import providers as price_data
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.pricing import Price, Tier, cost_nano, rates, version_of
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import (
    MODELS_MAX,
    Catalog,
    ModelInfo,
    asks_stream_usage,
    output_limit_field,
)
from tollkeeper.settings import ProviderSettings, Settings, convert

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
    assert re.fullmatch(r"configuration models\.own [0-9a-f]{8}", own.version)
    assert cost_nano(own, Usage(input_tokens=2, output_tokens=2, cached_tokens=1)) == 1000 + 3000 + 1000
    sonnet = found.info("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5", us(NOW))
    assert sonnet.price is not None
    assert sonnet.context_window == 200000
    assert {sonnet.price.base.cached, *(t.rates.cached for t in sonnet.price.tiers)} == {125_000}
    assert sonnet.price.base.input == 3_000_000
    assert "anthropic/claude-sonnet-4-5 + configuration models.claude-sonnet-4-5 " in sonnet.price.version
    assert found.info("openai", "elsewhere", "elsewhere", us(NOW)).price is None
    assert {"own", "elsewhere"} <= set(found.model_names("groq"))
    assert "elsewhere" not in found.model_names("openai")


DATED: dict[str, Any] = {
    "gpt-4o-mini": {
        "prices": [
            {"from": date(2026, 12, 1), "input_usd": "9", "output_usd": "9"},
            {
                "until": datetime(2026, 11, 23, 12, 0),
                "input_usd": "1",
                "output_usd": "2",
                "cached_usd": "0.5",
                "per_web_search_usd": "0.01",
                "tiers": [{"above_tokens": 1000, "input_usd": "3", "output_usd": "4"}],
                "service_tiers": {"flex": {"input_usd": "0.25", "output_usd": "0.5"}},
            },
        ]
    }
}


def test_configured_prices_count_for_their_time() -> None:
    """To the microsecond, the built-in price in between; what is kept is valid exactly as long."""
    found = catalog(DATED)
    noon, december = us(NOW), us(datetime(2026, 12, 1, tzinfo=UTC))

    def input_usd(now_us: int) -> int:
        info = found.info("openai", "gpt-4o-mini", "gpt-4o-mini", now_us)
        assert info.valid_from_us <= now_us < info.valid_until_us
        assert info.price is not None
        return info.price.base.input

    assert [input_usd(t) for t in (noon - 1, noon, december - 1, december)] == [10**6, 150_000, 150_000, 9 * 10**6]
    # In the other order, as a clock that goes back would ask.
    assert [input_usd(t) for t in (december, december - 1, noon, noon - 1)] == [9 * 10**6, 150_000, 150_000, 10**6]
    info = found.info("openai", "gpt-4o-mini", "gpt-4o-mini", noon)
    assert (info.valid_from_us, info.valid_until_us) == (noon, december)


def test_a_configured_entry_has_every_kind_and_tier() -> None:
    """Context tiers, service tiers and fees, and its version names the entry, the tier and its content."""
    found = catalog(DATED)
    price = found.info("openai", "gpt-4o-mini", "gpt-4o-mini", us(NOW) - 1).price
    assert price is not None
    assert cost_nano(price, Usage(1000, 10, 400, web_searches=1)) == 600_000 + 200_000 + 20_000 + 10_000_000
    assert cost_nano(price, Usage(1001, 10)) == 3_003_000 + 40_000
    assert cost_nano(price, Usage(1000, 10, service_tier="flex")) == 250_000 + 5_000
    named = r"configuration models\.gpt-4o-mini\.prices\[1\] [0-9a-f]{8}"
    assert re.fullmatch(named, version_of(price, Usage(1)))
    assert re.fullmatch(named + " above 1000", version_of(price, Usage(1001)))
    assert re.fullmatch(named + " flex", version_of(price, Usage(1, service_tier="flex")))
    changed = catalog({"gpt-4o-mini": {"prices": [DATED["gpt-4o-mini"]["prices"][0] | {"output_usd": "8"}]}})
    late = us(datetime(2027, 1, 1, tzinfo=UTC))
    one, other = (c.info("openai", "gpt-4o-mini", "gpt-4o-mini", late).price for c in (found, changed))
    assert one is not None
    assert other is not None
    assert one.version != other.version


@given(st.integers(1, 10**12).map(lambda n: Decimal(n).scaleb(-9)), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_multiplier_is_exact(multiplier: Decimal, given_in: int, given_out: int) -> None:
    """Cost with it is the exact cost times it, rounded up once; configured prices are not multiplied."""
    tree: dict[str, Any] = {
        "providers": {
            "openai": {
                "base_url": "https://api.openai.com/v1",
                "dialect": "openai",
                "price_multiplier": format(min(multiplier, Decimal(100)), "f"),
            }
        },
        "models": {"gpt-4o": {"input_usd": "1", "output_usd": "1"}},
    }
    found = Catalog(convert(tree))
    price = found.info("openai", "gpt-4o-mini", "gpt-4o-mini", us(NOW)).price
    assert price is not None
    times = Fraction(min(multiplier, Decimal(100)))
    exact = (Fraction("0.15") * given_in + Fraction("0.6") * given_out) * 1000 * times
    assert cost_nano(price, Usage(given_in, given_out)) == -((-exact) // 1)
    assert times == 1 or f" × {min(multiplier, Decimal(100))}" in price.version
    configured = found.info("openai", "gpt-4o", "gpt-4o", us(NOW)).price
    assert configured is not None
    assert configured.base.input == 10**6


def test_a_service_tier_is_bounded_by_its_price() -> None:
    """Asked for, or possible unasked; one without a price has no bound."""
    plain, fast = Content(text_bytes=1000), Content(text_bytes=1000, service_tiers=("priority",))
    info = EVERY.info("openai", "gpt-5", "gpt-5", us(NOW))
    tokens = info.bound(fast, max_output=100, choices=1)
    assert tokens.unbounded is None
    held, standard = info.hold_nano(fast, tokens), info.hold_nano(plain, tokens)
    assert held is not None
    assert standard is not None
    assert held == 2 * standard
    cheap = Content(text_bytes=1000, service_tiers=("flex",))
    assert info.hold_nano(cheap, tokens) == standard, "a provider may fall back to its standard"
    unasked = msgspec.structs.replace(info, served_unasked=("priority",))
    assert unasked.hold_nano(plain, tokens) == held
    unknown = info.bound(Content(text_bytes=1, service_tiers=("ultrafast",)), max_output=1, choices=1).unbounded
    assert unknown == "the service tier 'ultrafast' has no known price for this model"


def test_models_that_always_search_are_unbounded() -> None:
    """Their searches are charged whether a request asks for them or not."""
    info = EVERY.info("openai", "gpt-4o-search-preview", "gpt-4o-search-preview", us(NOW))
    assert info.bound(Content(text_bytes=5), max_output=1, choices=1).unbounded is not None
    assert info.searches


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
    assert EVERY.info("openai", "gpt-6-sol", "gpt-6-sol", us(NOW)).output_default == 128_000
    assert EVERY.info("openai", "unheard-of", "unheard-of", us(NOW)).output_default == 4096


def test_who_is_asked_for_the_usage_of_a_stream() -> None:
    """Everybody but Mistral, unless the settings say otherwise."""
    for base_url, asked in (
        ("https://api.openai.com/v1", True),
        ("https://api.mistral.ai/v1", False),
        ("https://api.eu.mistral.ai/v1", False),
        ("https://api.mistral.ai.example.com/v1", True),
    ):
        provider = ProviderSettings(base_url=base_url, dialect="openai")
        assert asks_stream_usage(provider) is asked
        assert asks_stream_usage(structs.replace(provider, asks_stream_usage=not asked)) is not asked


def test_inference_in_one_place_is_bounded_by_its_price() -> None:
    """Anthropic's tenth on every token, also in fast mode; searches cost the same."""
    catalog = Catalog(
        Settings(providers={"a": ProviderSettings(base_url="https://api.anthropic.com/v1", dialect="anthropic")})
    )
    info = catalog.info("a", "claude-opus-4-6", "claude-opus-4-6", us(NOW))
    assert info.price is not None
    usage = Usage(1000, 100, 200, 300, 100, web_searches=2)
    plain, kept = (cost_nano(info.price, structs.replace(usage, service_tier=tier)) for tier in ("", "us"))
    searches = 2 * 10_000_000
    assert kept - searches == (plain - searches) * 11 // 10
    content = Content(text_bytes=1000, service_tiers=("us",))
    tokens = info.bound(content, max_output=100, choices=1)
    assert tokens.unbounded is None
    assert info.hold_nano(content, tokens) == (1000 * 5000 + 100 * 25_000) * 11 // 10


FEW = st.integers(0, 9)
RATES = st.builds(
    rates,
    input=FEW,
    output=FEW,
    **dict.fromkeys(("cached", "cache_write", "reasoning", "output_image"), FEW | st.none()),
)
PRICES = st.builds(
    Price,
    RATES,
    st.sampled_from(((), (), (Tier(3, rates(input=99, output=99)),))),
    per_request=FEW,
    per_nano=st.sampled_from((1, 7)),
    served=st.just({"flex": Price(rates(input=99, output=99), per_nano=1)}),
)
KNOWN = st.builds(
    ModelInfo,
    price=PRICES,
    image_tokens_max=FEW,
    output_default=FEW,
    context_window=st.sampled_from((None, 2, 5)),
    max_output_tokens=st.sampled_from((None, 2, 5)),
    unbounded=st.sampled_from((None, None, None, "it searches")),
    served_unasked=st.sampled_from(((), (), (), ("flex",))),
)


@given(KNOWN, st.integers(1, 20), st.integers(0, 20), st.integers(1, 3))
def test_text_is_held_for_like_anything_else(info: ModelInfo, size: int, output: int, choices: int) -> None:
    """Where a model's hold for plain text is a line, it is the very hold that the whole rule gives, and a bound."""
    quick = info.text_nano(size, max_output=output, choices=choices)
    if quick is None:
        return
    content = Content(text_bytes=size, cache_write=True, plain=True)
    bound = info.bound(content, max_output=output, choices=choices)
    assert bound.unbounded is None
    assert quick == info.hold_nano(content, bound)
