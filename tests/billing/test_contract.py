"""The billing cache on every store and database: spend is exact, hard budgets hold, through losses and restarts."""

import asyncio
import random
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tests.billing.conftest import DAY_US, NOW_US, Shop, make_family, make_key, set_budgets, usd_budget
from tests.servers.redis import RedisServer
from tollkeeper import BillingCache, InvalidInput, KeyChange, MoneyError, NotFound
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Policy, Raise
from tollkeeper.governance.redis_keys import counter_key


def at(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * 1_000_000


async def test_usage_is_spend(cache: BillingCache) -> None:
    """What is added is this month's spend at once, to the last digit, and after a sync the database's too."""
    key = await make_key(cache, usd_budget("10"))
    assert await cache.get_monthly_spending(key) == 0
    for amount in (Decimal("0.000000001"), "1.25", 3):
        await cache.add_usage(key, amount)
    assert await cache.get_monthly_spending(key) == Decimal("4.250000001")
    assert await cache.get_spending(key, 2100, 1) == Decimal("4.250000001")
    standing = await cache.within_budget(key)
    assert standing and standing.remaining_usd == Decimal("5.749999999")
    assert await cache.within_budget("solo", "5.749999999") and not await cache.within_budget("solo", "5.75")
    assert await cache.sync() == 1
    assert cache._database is not None
    (row,) = await cache._database.spend.monthly_usage(key=key)
    assert (row.year, row.month, row.cost_nano, row.requests) == (2100, 1, 4_250_000_001, 3)


async def test_used_up_means_not_within(cache: BillingCache) -> None:
    """Usage is never refused; of a budget that is used up, or overdrawn, nothing is left."""
    key = await make_key(cache, usd_budget("1"))
    await cache.add_usage(key, 1)
    assert not await cache.within_budget(key)
    await cache.add_usage(key, "0.5")
    standing = await cache.within_budget(key)
    assert not standing and standing.remaining_usd == 0 and standing.budgets[0].used == 1_500_000_000


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (0.1, 'cost_usd: write a Decimal, a string like "12.50" or an int, not float'),
        (True, "not bool"),
        (None, "not NoneType"),
        ("-1", "must be zero or more"),
        ("0.0000000001", "has more than nine decimals"),
        ("NaN", "must be zero or more, and finite"),
        (Decimal("9007199.254740992"), "is above the largest amount, 9007199.254740991 USD"),
        ("ten", 'is not an amount in USD; write it like "12.50"'),
    ],
)
async def test_amounts_that_cannot_be_taken(cache: BillingCache, amount: object, message: str) -> None:
    """The error names the argument and says what to write; nothing is charged or held."""
    key = await make_key(cache, usd_budget("10"))
    with pytest.raises(MoneyError, match=message):
        await cache.add_usage(key, amount)  # type: ignore[arg-type]
    with pytest.raises(MoneyError):
        await cache.hold(key, amount)  # type: ignore[arg-type]
    with pytest.raises(MoneyError):
        await cache.within_budget(key, amount)  # type: ignore[arg-type]
    assert await cache.get_monthly_spending(key) == 0


async def test_key_ids_that_cannot_be(cache: BillingCache) -> None:
    """What is no text is refused, what is no key's id or name is not found; no other key pays for it."""
    key = await make_key(cache, usd_budget("10"))
    for bad in (7, None, True, key.encode(), [key], (key,)):
        with pytest.raises(InvalidInput, match="key_id must be a str"):
            await cache.add_usage(bad, 1)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="key_id must be a str"):
            await cache.within_budget(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="key_id must be a str"):
            await cache.hold(bad, 1)  # type: ignore[arg-type]
    awkward = (
        "",
        " ",
        "{" + key + "}",
        key + ":",
        f"{key}\n",
        f"{key}\0",
        f"\0{key}",
        f" {key}",
        key.upper(),
        "\ud800",
    )
    for unknown in (*awkward, "x" * 10_240, "' or 1=1 --", "%", "_" * len(key)):
        with pytest.raises(NotFound, match="there is no key"):
            await cache.add_usage(unknown, 1)
        with pytest.raises(NotFound, match="there is no key"):
            await cache.get_monthly_spending(unknown)
    assert await cache.get_monthly_spending(key) == 0


async def test_misuse_is_named(shop: Shop, cache: BillingCache) -> None:
    with pytest.raises(NotFound, match="there is no key 'nobody'"):
        await cache.add_usage("nobody", 1)
    key = await make_key(cache, usd_budget("1"))
    with pytest.raises(InvalidInput, match="month: 13 is not a whole number from 1 to 12"):
        await cache.get_spending(key, 2100, 13)
    refused = await cache.hold(key, 2)
    with pytest.raises(InvalidInput, match="was refused: nothing to end"):
        await cache.settle(refused, 1)
    with pytest.raises(InvalidInput, match="open already"):
        await cache.start()
    await cache.shutdown()
    await cache.shutdown()
    with pytest.raises(InvalidInput, match="is not open"):
        await cache.add_usage(key, 1)
    shop.open_ones.clear()


async def test_holds_never_overspend(cache: BillingCache) -> None:
    """Spent + held + this hold never pass the budget; settling gives back what was not used, voiding all of it."""
    key = await make_key(cache, usd_budget("1"))
    first, second = await cache.hold(key, "0.6"), await cache.hold(key, "0.4")
    third = await cache.hold(key, "0.000000001")
    assert first and second and not third
    assert third.refusal is not None and third.refusal.wait_us == at(2100, 2, 1) - NOW_US
    assert not await cache.within_budget(key)
    await cache.settle(first, "0.1")
    await cache.void(second)
    assert await cache.get_monthly_spending(key) == Decimal("0.1")
    assert await cache.within_budget(key, "0.9") and not await cache.within_budget(key, "0.900000001")
    for ended in (first, second):
        with pytest.raises(InvalidInput, match="has ended already"):
            await cache.settle(ended, 1)


async def test_storm_of_holds(shop: Shop, cache: BillingCache) -> None:
    """Many callers of two processes at once, on key, team and organisation: never a nano-dollar over, on any."""
    two = cache if shop.redis is None else await shop.open("b")
    family = await make_family(
        cache,
        Policy(budgets=(usd_budget("0.9"),)),
        Policy(budgets=(usd_budget("0.7", Period.DAY),)),
        Policy(budgets=(usd_budget("0.5", Period.TOTAL),)),
    )
    rng = random.Random(7)

    async def one(billing: BillingCache, bound: int, cost: int) -> int:
        hold = await billing.hold(family.key, Decimal(bound).scaleb(-9))
        if not hold:
            return 0
        await asyncio.sleep(0)
        await billing.settle(hold, Decimal(cost).scaleb(-9))
        return cost

    for _ in range(8):
        bounds = [rng.randrange(1, 40_000_000) for _ in range(60)]
        costs = await asyncio.gather(
            *(one(cache if n % 2 else two, bound, rng.randrange(bound + 1)) for n, bound in enumerate(bounds))
        )
        for billing in (cache, two):
            assert await billing._accounting.ledger.flush(5)
        standing = await cache.within_budget(family.key)
        assert all(b.used - b.held <= b.limit and b.used <= b.limit for b in standing.budgets)
        assert all(b.held == 0 for b in standing.budgets), costs
    spent = await cache.get_monthly_spending(family.key)
    assert Decimal("0.45") < spent <= Decimal("0.5")


async def test_raise_applies_and_ends_by_the_stores_clock(shop: Shop, cache: BillingCache) -> None:
    """It is in force at the next admission, and over at the first one after its end, though holds are in flight."""
    key = await make_key(cache, usd_budget("1"))
    held = await cache.hold(key, 1)
    assert held and not await cache.hold(key, "0.5")
    until_us = NOW_US + DAY_US
    await set_budgets(cache, key, usd_budget("1", raised=Raise(500_000_000, until_us)))
    more = await cache.hold(key, "0.5")
    assert more and not await cache.hold(key, "0.000000001")
    shop.set_clock(until_us)
    await cache.settle(held, "0.9")
    await cache.void(more)
    assert (await cache.hold(key, "0.1")) and not await cache.hold(key, "0.000000001")
    standing = await cache.within_budget(key)
    assert not standing and standing.budgets[0].limit == 1_000_000_000


async def test_budget_changes_apply_while_requests_are_in_flight(cache: BillingCache) -> None:
    """Holds of before the budget was set count against it; lowered below what is spent it refuses everything."""
    key = await make_key(cache)
    held = [await cache.hold(key, 1) for _ in range(3)]
    await set_budgets(cache, key, usd_budget("3.5"))
    assert not await cache.hold(key, "0.6") and await cache.hold(key, "0.5")
    await set_budgets(cache, key, usd_budget("2"))
    for hold in held:
        await cache.settle(hold, 1)
    assert not await cache.hold(key, 0) and (await cache.within_budget(key)).remaining_usd == 0
    assert await cache.get_monthly_spending(key) == 3
    await set_budgets(cache, key)
    assert await cache.within_budget(key, 9_000_000) and await cache.hold(key, 9_000_000)


async def test_keys_move_between_teams_with_requests_in_flight(cache: BillingCache) -> None:
    """A hold and its settlement stay with the team of their admission; the next admission is the new team's."""
    family = await make_family(cache, team=Policy(budgets=(usd_budget("1"),)))
    blue = await cache.accounts.create_team("blue", family.organisation, Policy(budgets=(usd_budget("1"),)))
    stop, charged = asyncio.Event(), {"red": 0, "blue": 0}

    async def work() -> None:
        while not stop.is_set():
            hold = await cache.hold(family.key, "0.001")
            assert hold
            team = "blue" if any(c.name.startswith(blue.id) for c in hold.grant.checks.counters) else "red"
            await asyncio.sleep(0)
            charged[team] += 1
            await cache.settle(hold, "0.001")
            await asyncio.sleep(0.001)

    workers = [asyncio.create_task(work()) for _ in range(8)]
    await asyncio.sleep(0.05)
    across = await cache.hold(family.key, "0.5")
    await cache.accounts.update_key(family.key, KeyChange(team=blue.id))
    await cache.refresh()
    await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*workers)
    await cache.settle(across, "0.25")
    await cache.sync()
    assert cache._database is not None and charged["red"] and charged["blue"]
    totals = (await cache._database.spend.load(family.organisation)).totals
    month = "2100:01"
    assert totals[f"{family.team}:{month}"].cost_nano == charged["red"] * 1_000_000 + 250_000_000
    assert totals[f"{blue.id}:{month}"].cost_nano == charged["blue"] * 1_000_000
    assert totals[month].cost_nano == sum(charged.values()) * 1_000_000 + 250_000_000


async def test_month_boundary(shop: Shop, cache: BillingCache) -> None:
    """What was held in a month is charged to it; what comes after midnight begins the next, with a fresh budget."""
    key = await make_key(cache, usd_budget("1"))
    shop.set_clock(at(2100, 2, 1) - 1)
    held = await cache.hold(key, 1)
    assert held and not await cache.hold(key, 1)
    shop.set_clock(at(2100, 2, 1))
    assert await cache.hold(key, 1)
    await cache.settle(held, "0.75")
    assert await cache.get_spending(key, 2100, 1) == Decimal("0.75")
    assert await cache.get_monthly_spending(key) == 0


async def test_a_weeks_budget_after_a_loss(shop: Shop, cache: BillingCache) -> None:
    """A flushed store knows a week's spend again before it admits anything: from the database and the outbox."""
    key = await make_key(cache, usd_budget("5", Period.WEEK))
    await cache.add_usage(key, 2)
    await cache.sync()
    await cache.add_usage(key, 1)
    held = await cache.hold(key, "0.5")
    shop.forget(cache)
    assert not await cache.hold(key, "2.000000001")
    standing = await cache.within_budget(key)
    assert standing.budgets[0].used == 3_500_000_000
    await cache.settle(held, "0.5")
    await cache.sync()
    assert await cache.get_monthly_spending(key) == Decimal("3.5")


async def test_a_total_budget_that_nobody_touched_for_a_year(shop: Shop, cache: BillingCache) -> None:
    """Totals never leave; not through a year of silence, nor a store that is empty at its end."""
    key = await make_key(cache, usd_budget("5", Period.TOTAL))
    await cache.add_usage(key, 4)
    await cache.sync()
    shop.set_clock(NOW_US + 366 * DAY_US)
    assert await cache.within_budget(key, 1) and not await cache.within_budget(key, "1.000000001")
    shop.forget(cache)
    assert not await cache.hold(key, "1.000000001") and await cache.hold(key, 1)
    assert await cache.get_monthly_spending(key) == 0
    assert await cache.get_spending(key, 2100, 1) == 4


async def test_a_late_entry_for_a_month_that_has_left_the_store(shop: Shop, cache: BillingCache) -> None:
    """Its month comes back from the database first, so that the sum is right there and in the store."""
    key = await make_key(cache)
    await cache.add_usage(key, 4)
    held = await cache.hold(key, 1)
    await cache.sync()
    shop.set_clock(NOW_US + 200 * DAY_US)
    shop.forget(cache)
    assert await cache.get_spending(key, 2100, 1) == 4
    await cache.settle(held, "0.25")
    assert await cache._accounting.ledger.flush(5)
    assert await cache.get_spending(key, 2100, 1) == Decimal("4.25")
    if isinstance(shop.redis, RedisServer):  # it stays for longer than any sync takes
        left_ms = shop.redis.command("PTTL", counter_key(held.grant.checks.root, f"{key}:2100:01"))
        assert int(left_ms.strip().lstrip(b":")) > 10**9
    await cache.sync()
    shop.forget(cache)
    assert await cache.get_spending(key, 2100, 1) == Decimal("4.25")
    assert await cache.get_monthly_spending(key) == 0


async def test_a_restart_goes_on(shop: Shop, cache: BillingCache) -> None:
    """A shutdown leaves everything in the database; the next start knows it, on an empty store too."""
    key = await make_key(cache, usd_budget("1"))
    await cache.add_usage(key, "0.75")
    await cache.shutdown()
    shop.open_ones.clear()
    again = await shop.open()
    shop.forget(again)
    assert await again.get_monthly_spending(key) == Decimal("0.75")
    assert not await again.hold(key, "0.26") and await again.hold(key, "0.25")


async def test_a_crash_loses_no_usage_and_presumes_holds(shop: Shop, cache: BillingCache) -> None:
    """What add_usage took is charged by whoever opens the same disk next; a hold without an end is charged whole."""
    key = await make_key(cache)
    await cache.add_usage(key, "0.75")
    assert await cache.hold(key, "0.2")
    shop.forget(cache)
    await shop.crash(cache)
    again = await shop.open()
    assert await again.get_monthly_spending(key) == Decimal("0.95")
    await again.sync()
    assert await again.get_spending(key, 2100, 1) == Decimal("0.95")
