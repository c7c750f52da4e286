"""What an answer costs: by our own price, or by the provider's word where it is trusted."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.gateway.conftest import PROVIDER_KEY, Stand, chat
from tollkeeper.domain.pricing import Price, rates
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import ModelInfo
from tollkeeper.gateway.charge import Charge, CostSource, charge_of
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings
from tollkeeper.simulator import Simulator

PRICE = Price(rates(input=1_000_000, output=2_000_000), per_web_search=10**10)
USAGE = Usage(1000, 500)
OURS = 2_000_000


def info(reported_max_nano: int | None, price: Price | None = PRICE, unbounded: str | None = None) -> ModelInfo:
    return ModelInfo(
        price=price,
        image_tokens_max=1,
        output_default=1,
        reported_max_nano=reported_max_nano,
        unbounded=unbounded,
    )


def test_a_word_counts_only_where_it_is_trusted_and_can_be() -> None:
    """Absent, unreadable, negative or above the bound: our own price, and it is counted."""
    ours, doubted = (Charge(OURS, CostSource.PRICE, disbelieved) for disbelieved in (False, True))
    assert charge_of(info(None), USAGE, b"0.5") == ours
    assert charge_of(info(10**9), USAGE, b"0.0000000001") == Charge(1, CostSource.PROVIDER)
    assert charge_of(info(10**9), USAGE, b"0") == Charge(0, CostSource.PROVIDER)
    assert charge_of(info(10**9), USAGE, b"1") == Charge(10**9, CostSource.PROVIDER)
    for text in (b"", b"1.0000000001", b"-1", b"null", b"1e99", b"lots"):
        assert charge_of(info(10**9), USAGE, text) == doubted
    assert charge_of(info(10**9, None), USAGE, b"") == Charge(0, None, True)
    assert charge_of(info(10**9, None), USAGE, b"0.25") == Charge(250_000_000, CostSource.PROVIDER)


def test_a_model_that_always_searches_is_charged_for_one() -> None:
    """Where its answer does not count them."""
    always = info(None, unbounded="it searches")
    assert charge_of(always, USAGE, b"").cost_nano == OURS + 10**7
    assert charge_of(always, Usage(1000, 500, web_searches=2), b"").cost_nano == OURS + 2 * 10**7


@pytest.fixture
async def told() -> AsyncIterator[tuple[str, list[str]]]:
    """A provider that answers with the cost at the end of the list, and its address."""
    costs: list[str] = []

    async def answer(_: web.Request) -> web.Response:
        usage = f'{{"prompt_tokens":1000,"completion_tokens":500{costs.pop()}}}'
        return web.Response(text=f'{{"choices":[],"usage":{usage}}}', content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", costs
    await runner.cleanup()


async def test_the_record_says_whose_word_was_taken(
    tmp_path: Path, simulator: Simulator, told: tuple[str, list[str]]
) -> None:
    """Charge, source, header and counter, through the whole gateway."""
    base_url, costs = told
    settings = Settings(
        providers={
            "router": ProviderSettings(
                base_url=base_url, dialect="openai", trust_reported_cost=True, reported_cost_max_usd="0.5"
            )
        },
        models={"m": ModelSettings(input_usd="1", output_usd="2")},
    )
    stand = Stand(tmp_path, settings, simulator)
    stand.key()
    costs += [',"cost":0.5000001', "", ',"cost":0.0001234567891']
    async with stand.running():
        replies = [await stand.post(chat(model="m")) for _ in range(3)]
        await stand.settled()
    assert [reply.status for reply in replies] == [200, 200, 200]
    kept = [(record.cost_nano, record.cost_source) for record in stand.records.all]
    assert kept == [(123_457, "provider"), (OURS, "price"), (OURS, "price")]
    assert [end.cost_nano for end in stand.governor.ends] == [123_457, OURS, OURS]
    assert stand.count("tollkeeper_reported_costs_disbelieved_total") == 2
    assert PROVIDER_KEY not in str(stand.records.all)
