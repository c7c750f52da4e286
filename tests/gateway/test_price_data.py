"""Prices as integers equal genai-prices' own arithmetic: every kind, tier, service tier and moment."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal

import genai_prices
import pytest
from genai_prices.data import providers as price_data
from genai_prices.types import ModelInfo, ModelPrice, Provider, StartDateConstraint, TieredPrices
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper.domain.money import NANO_PER_USD, PICO_PER_NANO
from tollkeeper.domain.pricing import Price, bound_nano, cost_nano
from tollkeeper.domain.tariff import price_of
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.price_data import CONTEXTS, SOURCE, PriceData

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DATA = PriceData()
UNTOLD = ("cache_audio_write_tokens", "cache_image_write_tokens", "output_audio_reasoning_tokens")
"""Joint parts that the oracle wants told, and no provider of ours reports."""


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def price(provider: str, model: str, now: datetime = NOW) -> Price | None:
    tariff = DATA.look_up(provider, model, us(now)).tariff
    return None if tariff is None else price_of(tariff)


MODELS: list[tuple[Provider, ModelInfo]] = [(p, m) for p in price_data for m in p.models if p.find_model(m.id) is m]
PRICED = [(p, m) for p, m in MODELS if price(p.id, m.id) is not None]


def having(*keys: str) -> list[tuple[Provider, ModelInfo]]:
    return [(p, m) for p, m in PRICED if any(getattr(m.get_prices(NOW), key) is not None for key in keys)]


TIERED = [(p, m) for p, m in PRICED if any(isinstance(v, TieredPrices) for v in vars(m.get_prices(NOW)).values())]
SEEN_OR_HEARD = having("input_audio_mtok", "output_image_mtok", "input_image_mtok", "output_citation_mtok")
SERVED = [(p, m) for p, m in PRICED if m.price_variants]
CONDITIONAL = [(p, m) for p, m in PRICED if not isinstance(m.prices, ModelPrice)]


def oracle_nano(
    provider: Provider, model: ModelInfo, usage: Usage, now: datetime = NOW, context: Mapping[str, str] | None = None
) -> int:
    """genai-prices' price of a usage, rounded up once."""
    told = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        output_citation_tokens=usage.citation_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        cache_audio_read_tokens=usage.cached_audio_tokens,
        input_image_tokens=usage.input_image_tokens,
        cache_image_read_tokens=usage.cached_image_tokens,
        output_image_tokens=usage.output_image_tokens,
        web_searches=usage.web_searches,
        storage_searches=usage.file_searches,
        **dict.fromkeys(UNTOLD, 0),
    )
    priced = model.calc_price(told, provider, genai_request_timestamp=now, price_context=context)
    return int((priced.total_price * NANO_PER_USD).to_integral_value(ROUND_CEILING))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Any report whose parts fit into their totals."""
    tokens = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 300_000))
    plain, cached, write, heard, seen = (draw(tokens) for _ in range(5))
    spoken, drawn, reasoning, cited, text = (draw(tokens) for _ in range(5))
    heard_again, seen_again = draw(st.integers(0, heard)), draw(st.integers(0, seen))
    return Usage(
        input_tokens=plain + cached + write + heard + seen,
        output_tokens=spoken + drawn + reasoning + cited + text,
        cached_tokens=cached + heard_again + seen_again,
        cache_write_tokens=write,
        cache_write_1h_tokens=draw(st.one_of(st.just(0), st.integers(0, write))),
        reasoning_tokens=reasoning,
        input_audio_tokens=heard,
        output_audio_tokens=spoken,
        cached_audio_tokens=heard_again,
        input_image_tokens=seen,
        cached_image_tokens=seen_again,
        output_image_tokens=drawn,
        citation_tokens=cited,
        web_searches=draw(st.integers(0, 3)),
        file_searches=draw(st.integers(0, 3)),
    )


@settings(max_examples=500, deadline=None)
@given(st.one_of(*map(st.sampled_from, (PRICED, TIERED, SEEN_OR_HEARD, CONDITIONAL))), usages())
def test_cost_equals_genai_prices(model: tuple[Provider, ModelInfo], usage: Usage) -> None:
    """To the nano-dollar, for any model and usage: tiers, caches, audio, images, searches and fees included."""
    provider, its = model
    found = price(provider.id, its.id)
    assert found is not None
    assert cost_nano(found, usage) == oracle_nano(provider, its, usage)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SERVED), usages(), st.data())
def test_service_tiers_equal_genai_prices(
    model: tuple[Provider, ModelInfo], usage: Usage, data: st.DataObject
) -> None:
    """Batch, flex, priority and fast: the prices that genai-prices gives for that context."""
    provider, its = model
    found = price(provider.id, its.id)
    assert found is not None
    for variant in its.price_variants or ():
        (key, value), *more = variant.when.items()
        if key in CONTEXTS and not more:
            served = structs.replace(usage, service_tier=value)
            assert cost_nano(found, served) == oracle_nano(provider, its, usage, context={key: value})


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(CONDITIONAL),
    usages(),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 6, 1), timezones=st.just(UTC)),
    st.sampled_from((-1, 0, 1)),
)
@example(next(x for x in CONDITIONAL if x[1].id == "deepseek-v4-pro"), Usage(1000, 1000), NOW, 0)
def test_prices_of_another_time(
    model: tuple[Provider, ModelInfo], usage: Usage, moment: datetime, off_us: int
) -> None:
    """At any time, and a microsecond around each change, the price is that of the time; in between it stays."""
    provider, its = model
    listed = DATA.look_up(provider.id, its.id, us(moment))
    for at_us in {us(moment), listed.until_us + off_us, listed.from_us + off_us}:
        if not us(datetime(2024, 1, 1, tzinfo=UTC)) < at_us < us(datetime(2028, 1, 1, tzinfo=UTC)):
            continue
        at = EPOCH + timedelta(microseconds=at_us)
        found = price(provider.id, its.id, at)
        if found is not None:
            assert cost_nano(found, usage) == oracle_nano(provider, its, usage, at)
        if listed.from_us <= at_us < listed.until_us:
            assert DATA.look_up(provider.id, its.id, at_us).tariff == listed.tariff


def test_every_priced_model_equals_genai_prices() -> None:
    """One usage with all kinds for each of them, below and above every tier."""
    assert len(PRICED) > 2000
    assert len(TIERED) > 100
    assert len(SERVED) > 80
    for provider, model in PRICED:
        found = price(provider.id, model.id)
        assert found is not None
        for factor in (1, 1000):
            usage = Usage(
                *(1009 * factor, 317 * factor, 101 * factor, 203 * factor, 67 * factor, 31 * factor),
                output_image_tokens=0,
            )
            assert cost_nano(found, usage) == oracle_nano(provider, model, usage), (provider.id, model.id)


def test_prices_finer_than_a_pico_dollar_stay_exact() -> None:
    """Some prices of the data have more digits: their unit is finer, and nothing is rounded but the cost."""
    fine = [(p, m) for p, m in PRICED if (found := price(p.id, m.id)) is not None and found.per_nano > PICO_PER_NANO]
    assert len(fine) > 10
    usage = Usage(10_000, 1000, 1000, 5000, output_image_tokens=0)
    for provider, model in fine:
        found = price(provider.id, model.id)
        assert found is not None
        assert cost_nano(found, usage) == oracle_nano(provider, model, usage)


@settings(max_examples=300, deadline=None)
@given(st.one_of(*map(st.sampled_from, (PRICED, TIERED, SEEN_OR_HEARD, SERVED))), usages(), st.integers(0, 100))
def test_the_hold_of_any_model_covers_any_usage_within_it(
    model: tuple[Provider, ModelInfo], usage: Usage, more: int
) -> None:
    """Every kind, context tier and service tier that the request allows."""
    found = price(model[0].id, model[1].id)
    assert found is not None
    held = bound_nano(
        found,
        usage.input_tokens + more,
        usage.output_tokens + more,
        cache_write=True,
        cache_write_1h=True,
        images=True,
        audio=True,
        served=tuple(found.served),
    )
    for tier in ("", *found.served):
        served = structs.replace(usage, web_searches=0, file_searches=0, service_tier=tier)
        assert cost_nano(found, served) <= held


def test_a_price_that_usage_cannot_tell_apart_is_no_price() -> None:
    """Charging video output as text would be below the truth."""
    listed = DATA.look_up("google", "gemini-omni-1.1-flash", us(NOW))
    assert listed.tariff is None
    assert listed.unpriced is not None
    assert "output_video_mtok" in listed.unpriced
    assert (
        DATA.look_up("mistral", "mistral-ocr-latest", us(NOW)).unpriced == f"{SOURCE} has no price per token for it"
    )
    assert DATA.look_up("openai", "gtp-5", us(NOW)).unpriced == f"{SOURCE} does not know it at openai"


def test_untold_images_are_charged_as_images() -> None:
    """A model that draws, and a report that does not say what of its output was drawn: the dearer price counts."""
    found = price("google", "gemini-2.5-flash-image")
    assert found is not None
    assert (
        cost_nano(found, Usage(0, 1000)) == cost_nano(found, Usage(0, 1000, output_image_tokens=1000)) == 30_000_000
    )
    assert cost_nano(found, Usage(0, 1000, output_image_tokens=0)) == 2_500_000


@pytest.mark.parametrize(
    ("hour", "microsecond", "dear"),
    [(0, 0, False), (1, 0, True), (3, 999_999, True), (4, 0, False), (10, 0, False), (23, 999_999, False)],
)
def test_a_price_by_the_hour_changes_on_the_microsecond(hour: int, microsecond: int, dear: bool) -> None:
    """DeepSeek's peak hours, 01:00 to 04:00 and 06:00 to 10:00 UTC: the start belongs to them, the end does not."""
    second = 59 if microsecond else 0
    at = NOW.replace(hour=hour, minute=second, second=second, microsecond=microsecond)
    found, calm = price("deepseek", "deepseek-v4-pro", at), price("deepseek", "deepseek-v4-pro", NOW)
    assert found is not None
    assert calm is not None
    assert (found.base.input > calm.base.input) is dear
    listed = DATA.look_up("deepseek", "deepseek-v4-pro", us(at))
    assert us(at) - 86_400_000_000 <= listed.from_us <= us(at) < listed.until_us <= us(at) + 86_400_000_000


def test_a_price_with_a_date_begins_at_midnight_utc() -> None:
    """The last microsecond of the day before still has the old price."""
    provider, model = next((p, m) for p, m in CONDITIONAL if p.id == "mistral" and m.id == "mistral-large-4")
    assert not isinstance(model.prices, ModelPrice)
    dates = [c.constraint.start_date for c in model.prices if isinstance(c.constraint, StartDateConstraint)]
    assert len(dates) == 2
    for day in dates:
        begins = datetime(day.year, day.month, day.day, tzinfo=UTC)
        before, after = (price(provider.id, model.id, at) for at in (begins - timedelta(microseconds=1), begins))
        assert before is not None
        assert after is not None
        listed = model.get_prices(begins).input_mtok
        assert before != after or isinstance(listed, Decimal)
        assert DATA.look_up(provider.id, model.id, us(begins)).from_us == us(begins)
        assert DATA.look_up(provider.id, model.id, us(begins) - 1).until_us == us(begins)
