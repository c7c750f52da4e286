"""Integer prices: one ceiling per request, whole-request tiers, and a bound that no usage within it can exceed."""

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper.domain.pricing import Price, Tier, bound_nano, cost_nano, rates, rates_at, version_of
from tollkeeper.domain.tariff import Tariff, overlaid, price_of, scaled, usd_per_million, usd_per_use
from tollkeeper.domain.usage import Usage

MINI = Price(rates(input=150_000, output=600_000, cached=75_000))

RATE = st.integers(0, 10**8)
MAYBE = st.none() | RATE
TABLES = st.builds(
    rates,
    input=RATE,
    output=RATE,
    cached=MAYBE,
    cache_write=MAYBE,
    cache_write_1h=MAYBE,
    input_audio=MAYBE,
    cached_audio=MAYBE,
    output_audio=MAYBE,
    input_image=MAYBE,
    cached_image=MAYBE,
    output_image=MAYBE,
    reasoning=MAYBE,
    citation=MAYBE,
)
STANDARD = st.builds(
    Price,
    TABLES,
    st.lists(st.builds(Tier, st.integers(0, 5000), TABLES), max_size=3, unique_by=lambda t: t.start).map(
        lambda tiers: tuple(sorted(tiers, key=lambda t: t.start))
    ),
    st.integers(0, 10**9),
    per_nano=st.sampled_from((1000, 10**13)),
)
PRICES = st.builds(
    lambda price, served: structs.replace(price, served=served),
    STANDARD,
    st.dictionaries(st.sampled_from(("flex", "priority")), STANDARD),
)
TOKENS = st.integers(0, 3000)
REPORTS = st.builds(
    Usage,
    **dict.fromkeys(
        (
            *("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
            *("reasoning_tokens", "input_audio_tokens", "output_audio_tokens", "cached_audio_tokens"),
            *("input_image_tokens", "cached_image_tokens", "citation_tokens"),
        ),
        TOKENS,
    ),
    output_image_tokens=st.none() | TOKENS,
    service_tier=st.sampled_from(("", "flex", "priority", "scale")),
)
"""Any report, also one whose parts contradict their totals."""


def test_cost_is_rounded_up_once() -> None:
    """One token of 0.15 USD a million is 150 nano-dollars; a third of a nano is charged as one, not three times."""
    assert cost_nano(MINI, Usage(input_tokens=1)) == 150
    third = Price(rates(input=333, output=333))
    assert cost_nano(third, Usage(input_tokens=1, output_tokens=1)) == 1
    assert cost_nano(third, Usage(input_tokens=3, output_tokens=3)) == 2
    assert cost_nano(third, Usage()) == 0


def test_kinds_without_a_price_are_charged_as_what_contains_them() -> None:
    """Cached tokens without a cache price cost what input costs, 1 h writes what writes cost."""
    price = Price(rates(input=1000, output=2000, cache_write=1250))
    usage = Usage(
        input_tokens=30,
        cached_tokens=10,
        cache_write_tokens=10,
        cache_write_1h_tokens=5,
        output_tokens=4,
        reasoning_tokens=3,
    )
    assert cost_nano(price, usage) == -(-(20 * 1000 + 10 * 1250 + 4 * 2000) // 1000)
    assert rates(input=5, output=1, cached=1).cached_audio == 1
    assert rates(input=5, output=1, input_audio=9).cached_audio == 9
    assert rates(input=5, output=1, cached=1, input_image=9).cached_image == 9
    assert rates(input=5, output=1).cached_image == 5


def test_a_tier_charges_the_whole_request() -> None:
    """Exactly at the start the lower tier still counts; one token above it, every token is dearer."""
    price = Price(rates(input=1000, output=1000), (Tier(100, rates(input=2000, output=3000)),))
    assert cost_nano(price, Usage(input_tokens=100, output_tokens=10)) == 110
    assert cost_nano(price, Usage(input_tokens=101, output_tokens=10)) == 232
    assert rates_at(price, 100) is price.base


def test_uses_are_charged_besides_tokens() -> None:
    """A fee for the request, for each web search and each file search, in the same sum."""
    price = Price(rates(input=1000, output=0), per_request=5500, per_web_search=10_000_400, per_file_search=2_500_000)
    usage = Usage(input_tokens=1, web_searches=2, file_searches=1)
    assert cost_nano(price, usage) == 22_508


def test_the_service_tier_that_was_served_decides_the_price() -> None:
    """And its version; one without a price is charged as the standard, and the record says so."""
    flex = Price(rates(input=500, output=500), (Tier(10, rates(input=700, output=700)),), version="v flex")
    price = Price(rates(input=1000, output=1000), served={"flex": flex}, version="v")
    served = [Usage(input_tokens=2, service_tier=tier) for tier in ("", "flex", "scale")]
    assert [cost_nano(price, usage) for usage in served] == [2, 1, 2]
    assert [version_of(price, usage) for usage in served] == ["v", "v flex", "v (no price as scale)"]
    assert version_of(price, Usage(input_tokens=11, service_tier="flex")) == "v flex above 10"


@given(STANDARD, REPORTS, st.data())
def test_cost_equals_the_exact_sum_rounded_up(price: Price, report: Usage, data: st.DataObject) -> None:
    """The same sum in fractions of a nano-dollar, rounded up, is the cost; parts here fit into their totals."""
    plain, text = data.draw(TOKENS), data.draw(TOKENS)
    heard, seen = report.input_audio_tokens, report.input_image_tokens
    heard_again, seen_again = min(heard, report.cached_audio_tokens), min(seen, report.cached_image_tokens)
    write_1h = min(report.cache_write_tokens, report.cache_write_1h_tokens)
    drawn = report.output_image_tokens or 0
    usage = structs.replace(
        report,
        input_tokens=plain + report.cached_tokens + report.cache_write_tokens + heard + seen,
        output_tokens=text + report.output_audio_tokens + drawn + report.reasoning_tokens + report.citation_tokens,
        cached_tokens=report.cached_tokens + heard_again + seen_again,
        cache_write_1h_tokens=write_1h,
        cached_audio_tokens=heard_again,
        cached_image_tokens=seen_again,
        output_image_tokens=drawn,
    )
    at = next((t.rates for t in reversed(price.tiers) if usage.input_tokens > t.start), price.base)
    exact = Fraction(
        plain * at.input
        + report.cached_tokens * at.cached
        + (report.cache_write_tokens - write_1h) * at.cache_write
        + write_1h * at.cache_write_1h
        + (heard - heard_again) * at.input_audio
        + heard_again * at.cached_audio
        + (seen - seen_again) * at.input_image
        + seen_again * at.cached_image
        + text * at.output
        + report.reasoning_tokens * at.reasoning
        + report.citation_tokens * at.citation
        + report.output_audio_tokens * at.output_audio
        + drawn * at.output_image
        + price.per_request,
        price.per_nano,
    )
    assert cost_nano(price, usage) == -((-exact) // 1)


@given(PRICES, REPORTS, st.integers(0, 500), st.integers(0, 500))
def test_no_report_within_the_bound_costs_more(price: Price, report: Usage, more_in: int, more_out: int) -> None:
    """Never overspent begins here: whatever tier, service tier and kinds the tokens turn out to be, and however the
    report contradicts itself."""
    held = bound_nano(
        price,
        report.input_tokens + more_in,
        report.output_tokens + more_out,
        cache_write=True,
        cache_write_1h=True,
        images=True,
        audio=True,
        served=("flex", "priority"),
    )
    assert cost_nano(price, report) <= held


@given(PRICES, REPORTS)
def test_a_bound_leaves_out_only_what_cannot_occur(price: Price, report: Usage) -> None:
    """Without cache writes, media and service tiers in the request, their rates are not needed for the bound."""
    plain = structs.replace(
        report,
        cache_write_tokens=0,
        input_audio_tokens=0,
        output_audio_tokens=0,
        input_image_tokens=0,
        service_tier="",
    )
    assert cost_nano(price, plain) <= bound_nano(price, plain.input_tokens, plain.output_tokens)
    writing = structs.replace(plain, cache_write_tokens=report.cache_write_tokens, cache_write_1h_tokens=0)
    assert cost_nano(price, writing) <= bound_nano(
        price, writing.input_tokens, writing.output_tokens, cache_write=True
    )


@given(STANDARD, REPORTS, st.integers(0, 3000))
def test_more_tokens_never_lower_the_bound(price: Price, report: Usage, more: int) -> None:
    """What fits a budget with so many tokens fits it with fewer: the search for the largest output relies on it."""
    fewer = bound_nano(price, report.input_tokens, report.output_tokens)
    assert fewer <= bound_nano(price, report.input_tokens + more, report.output_tokens)
    assert fewer <= bound_nano(price, report.input_tokens, report.output_tokens + more)


def test_parts_that_contradict_their_total_are_cut_to_it() -> None:
    """More cached than input tokens: no token is free, none counts twice, nothing is negative."""
    assert cost_nano(MINI, Usage(input_tokens=1, cached_tokens=10)) == 75
    assert cost_nano(MINI, Usage(output_tokens=1, reasoning_tokens=10)) == 600
    assert cost_nano(MINI, Usage(input_tokens=2, input_audio_tokens=1, cached_tokens=2)) == 150 + 75


USD = st.decimals(0, 1000, places=9)


@given(USD, USD, st.decimals("0.01", 3, places=4), st.integers(0, 10**7))
def test_a_tariff_becomes_integers_without_loss(tokens: Decimal, fee: Decimal, multiplier: Decimal, n: int) -> None:
    """However many digits the amounts and the provider's multiplier have: only the cost itself is rounded, up."""
    tariff = Tariff(tokens={"input": tokens}, fees={"request": fee}, version="v", source="s")
    price = price_of(scaled(tariff, multiplier))
    exact = (Fraction(tokens) * n / 10**6 + Fraction(fee)) * Fraction(multiplier) * 10**9
    assert cost_nano(price, Usage(input_tokens=n)) == -((-exact) // 1)
    assert usd_per_million(price, price.base.input) == tokens * multiplier
    assert usd_per_use(price, "request") == fee * multiplier


def test_an_overlay_replaces_a_kind_everywhere() -> None:
    """In the base, above every tier, and in every service tier."""
    flex = Tariff(tokens={"input": Decimal(1)}, version="v flex", source="s")
    tariff = Tariff(
        tokens={"input": Decimal(2), "output": Decimal(4)},
        tiers=((10, {"input": Decimal(3), "output": Decimal(6)}),),
        served={"flex": flex},
        version="v",
        source="s",
    )
    price = price_of(overlaid(tariff, {"cached": Decimal(1)}, {"request": Decimal(5)}, version="v+c", source="s+c"))
    assert price.per_request == price.served["flex"].per_request == 5 * 10**12
    assert {at.cached for at in (price.base, price.tiers[0].rates, price.served["flex"].base)} == {10**6}
    assert (price.version, price.served["flex"].version) == ("v+c", "v+c flex")
