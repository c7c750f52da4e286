"""Integer prices: one ceiling per request, whole-request tiers, and a bound that no usage within it can exceed."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.pricing import Price, Tier, bound_nano, cost_nano, rates, rates_at
from tollkeeper.domain.usage import Usage

MINI = Price(rates(input=150_000, output=600_000, cached=75_000))

RATE = st.integers(0, 10**8)
TABLES = st.builds(
    rates,
    input=RATE,
    output=RATE,
    cached=st.none() | RATE,
    cache_write=st.none() | RATE,
    cache_write_1h=st.none() | RATE,
    input_audio=st.none() | RATE,
    output_audio=st.none() | RATE,
    reasoning=st.none() | RATE,
)
PRICES = st.builds(
    Price,
    TABLES,
    st.lists(st.builds(Tier, st.integers(0, 5000), TABLES), max_size=3, unique_by=lambda t: t.start).map(
        lambda tiers: tuple(sorted(tiers, key=lambda t: t.start))
    ),
    st.integers(0, 10**7),
)


@st.composite
def usages(draw: st.DrawFn, audio: bool = True) -> Usage:
    """Consistent usage: the parts of a total never exceed it together."""
    parts = [draw(st.integers(0, 3000)) for _ in range(4)]
    cached, write, heard, plain = parts if audio else (*parts[:2], 0, parts[3])
    spoken = draw(st.integers(0, 3000)) if audio else 0
    reasoning, text = draw(st.integers(0, 3000)), draw(st.integers(0, 3000))
    return Usage(
        input_tokens=cached + write + heard + plain,
        output_tokens=spoken + reasoning + text,
        cached_tokens=cached,
        cache_write_tokens=write,
        cache_write_1h_tokens=draw(st.integers(0, write)),
        reasoning_tokens=reasoning,
        input_audio_tokens=heard,
        output_audio_tokens=spoken,
    )


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


def test_a_tier_charges_the_whole_request() -> None:
    """Exactly at the start the lower tier still counts; one token above it, every token is dearer."""
    price = Price(rates(input=1000, output=1000), (Tier(100, rates(input=2000, output=3000)),))
    assert cost_nano(price, Usage(input_tokens=100, output_tokens=10)) == 110
    assert cost_nano(price, Usage(input_tokens=101, output_tokens=10)) == 232
    assert rates_at(price, 100) is price.base


@given(PRICES, usages())
def test_cost_equals_the_exact_sum_rounded_up(price: Price, usage: Usage) -> None:
    """The same sum in fractions of a nano-dollar, rounded up, is the cost."""
    at = next((t.rates for t in reversed(price.tiers) if usage.input_tokens > t.start), price.base)
    special = usage.cached_tokens + usage.cache_write_tokens + usage.input_audio_tokens
    exact = Fraction(
        (usage.input_tokens - special) * at.input
        + usage.cached_tokens * at.cached
        + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * at.cache_write
        + usage.cache_write_1h_tokens * at.cache_write_1h
        + usage.input_audio_tokens * at.input_audio
        + (usage.output_tokens - usage.reasoning_tokens - usage.output_audio_tokens) * at.output
        + usage.reasoning_tokens * at.reasoning
        + usage.output_audio_tokens * at.output_audio,
        1000,
    )
    assert cost_nano(price, usage) == -((-exact) // 1) + price.per_request_nano


@given(PRICES, usages(), st.integers(0, 500), st.integers(0, 500))
def test_no_usage_within_the_bound_costs_more(price: Price, usage: Usage, more_in: int, more_out: int) -> None:
    """Never overspent begins here: whatever tier and kinds the tokens turn out to be."""
    held = bound_nano(
        price,
        usage.input_tokens + more_in,
        usage.output_tokens + more_out,
        cache_write=True,
        cache_write_1h=True,
        audio=True,
    )
    assert cost_nano(price, usage) <= held


@given(PRICES, usages(audio=False))
def test_a_bound_leaves_out_only_what_cannot_occur(price: Price, usage: Usage) -> None:
    """Without cache writes and audio in the request, their rates are not needed for the bound to hold."""
    plain = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
    assert cost_nano(price, plain) <= bound_nano(price, plain.input_tokens, plain.output_tokens)


def test_parts_that_contradict_their_total_are_never_free() -> None:
    """More cached than input tokens: nothing is negative, what was reported is charged."""
    assert cost_nano(MINI, Usage(input_tokens=1, cached_tokens=10)) == 750
    assert cost_nano(MINI, Usage(output_tokens=1, reasoning_tokens=10)) == 600
