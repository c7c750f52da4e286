"""Budgets that warn: once per threshold and period, whoever sees it, and a signed message that arrives."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from tests.billing.conftest import DAY_US, NOW_US, Shop, make_family, make_key, set_budgets, usd_budget
from tollkeeper import BillingCache
from tollkeeper.domain.alerts import ATTEMPTS_MAX, AlertFilters, retry_delay_s, signature
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Policy, Raise
from tollkeeper.governance import alerts
from tollkeeper.storage.tables import budget_alerts

SECRET = "whsec-0123456789abcdef"


class Receiver:
    """A webhook's other end: keeps what came and answers what it is told to."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.arrived = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        self.came.append(
            (headers | {":path": head[0].split()[1]}, await reader.readexactly(int(headers["content-length"])))
        )
        status = self.answers.pop(0) if self.answers else 204
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.arrived.set()

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(body) for _, body in self.came]


@pytest.fixture
async def receiver(shop: Shop) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    shop.webhook = {"webhook_url": f"http://127.0.0.1:{port}/hooks?team=1", "webhook_secret": SECRET}
    yield receiver
    server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "TICK_S", 0.0)


async def warned(cache: BillingCache) -> list[tuple[str, int]]:
    """What the database knows: counter and threshold in millionths of a dollar."""
    assert cache._database is not None
    async with cache._database._transactions.read() as transaction:
        query = select(budget_alerts.c.counter, budget_alerts.c.threshold_nano)
        return sorted((row.counter, row.threshold_nano // 1000) for row in await transaction.rows(query))


async def look(*caches: BillingCache) -> None:
    """Everything is applied and looked at."""
    for cache in caches:
        assert await cache._accounting.ledger.flush(5)
        assert cache._accounting.ledger.watch is not None
        await cache._accounting.ledger.watch.look()


def given(cache: BillingCache) -> int:
    text = cache.metrics.exposition().decode()
    return sum(
        int(float(line.split()[-1]))
        for line in text.splitlines()
        if line.startswith("tollkeeper_budget_alerts_total{")
    )


async def test_once_per_threshold_and_period(shop: Shop, cache: BillingCache) -> None:
    """Two processes at once, by usage and by holds: each threshold warns once, and again in the next period."""
    two = cache if shop.redis is None else await shop.open("b")
    key = await make_key(cache, usd_budget("1", Period.DAY, soft=True))
    await cache.add_usage(key, "0.49")
    await look(cache, two)
    assert await warned(cache) == []
    await asyncio.gather(
        *(billing.add_usage(key, "0.005", idempotency_key=str(n)) for n in range(4) for billing in (cache, two))
    )
    await look(cache, two)
    day = "2100:01:15"
    assert await warned(cache) == [(f"{key}:{day}", 500_000)]
    hold = await two.hold(key, 5)
    assert hold  # soft
    await look(cache, two)
    await two.settle(hold, 1)
    await look(two, cache)
    assert await warned(cache) == [(f"{key}:{day}", nano) for nano in (500_000, 800_000, 1_000_000)]
    shop.set_clock(NOW_US + DAY_US)
    await cache.add_usage(key, "0.6")
    await look(cache, two)
    assert (await warned(cache))[3:] == [(f"{key}:2100:01:16", 500_000)]
    assert given(cache) + (0 if two is cache else given(two)) == 4


async def test_changed_and_raised_budgets_warn_at_their_own_thresholds(shop: Shop, cache: BillingCache) -> None:
    """A hard budget may warn, too; a raise moves percentages, and its end repeats no warning."""
    key = await make_key(cache, usd_budget("1", warn_percents=(80,), warn_nanos=(100_000_000,)))
    name = f"{key}:2100:01"
    await cache.add_usage(key, "0.8")
    await look(cache)
    assert await warned(cache) == [(name, 100_000), (name, 800_000)]
    await set_budgets(cache, key, usd_budget("1", warn_percents=(80,), raised=Raise(10**9, NOW_US + DAY_US)))
    await cache.add_usage(key, "0.79")
    await look(cache)
    assert len(await warned(cache)) == 2
    await cache.add_usage(key, "0.01")
    await look(cache)
    shop.set_clock(NOW_US + DAY_US)
    await cache.add_usage(key, "0.01")
    await look(cache)
    assert await warned(cache) == [(name, 100_000), (name, 800_000), (name, 1_600_000)]


async def test_requests_that_end_in_another_order(cache: BillingCache) -> None:
    """The one that was admitted last ends first, far below the threshold; the crossing by the other is not missed."""
    key = await make_key(cache, usd_budget("1", soft=True))
    first, last = await cache.hold(key, "0.4"), await cache.hold(key, "0.3")
    await cache.settle(last, "0.15")
    await look(cache)
    await cache.settle(first, "0.4")
    await look(cache)
    assert await warned(cache) == [(f"{key}:2100:01", 500_000)]


async def test_the_message(shop: Shop, receiver: Receiver) -> None:
    """Its signature can be checked with nothing but the secret; it says which scope, how much, and of what budget."""
    cache = await shop.open()
    soft = Policy(budgets=(usd_budget("1", soft=True), usd_budget("2")))
    family = await make_family(cache, team=soft)
    await cache.add_usage(family.key, "0.6")
    await asyncio.wait_for(receiver.arrived.wait(), 10)
    ((headers, body),) = receiver.came
    stamp, digest = [part.split("=", 1)[1] for part in headers["tollkeeper-signature"].split(",")]
    assert digest == hmac.new(SECRET.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert (int(stamp), headers[":path"]) == (NOW_US // 1_000_000, "/hooks?team=1")
    event = json.loads(body)
    assert event["type"] == "budget.threshold_reached" and event["id"].startswith("evt_")
    assert event["data"] == {
        "scope": "team",
        "scope_id": family.team,
        "organisation_id": family.organisation,
        "period": "2100:01",
        "period_ends_at": "2100-02-01T00:00:00Z",
        "threshold_usd": "0.50",
        "spent_usd": "0.60",
        "budget_usd": "2.00",
        "soft_budget_usd": "1.00",
        "reached_at": datetime.fromtimestamp(NOW_US // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


async def test_while_the_secret_is_rotated_either_one_verifies(shop: Shop, receiver: Receiver) -> None:
    """A receiver may change over at any moment between the two restarts of the gateway."""
    old = "whsec-before-the-rotation"
    shop.webhook |= {"webhook_secret_previous": old}
    cache = await shop.open()
    key = await make_key(cache, usd_budget("1", soft=True))
    await cache.add_usage(key, "0.6")
    await asyncio.wait_for(receiver.arrived.wait(), 10)
    ((headers, body),) = receiver.came
    stamp, *digests = [part.split("=", 1)[1] for part in headers["tollkeeper-signature"].split(",")]
    assert digests == [
        hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        for secret in (SECRET, old)
    ]


async def test_a_webhook_that_fails_is_tried_again(shop: Shop, receiver: Receiver) -> None:
    """With growing waits, by the clock, always the same id and body; when it takes it, no more is sent."""
    receiver.answers = [500, 302, 404]
    cache = await shop.open()
    worker = cache._accounting.webhooks
    assert worker is not None and worker._task is not None
    await worker.stop()
    key = await make_key(cache, usd_budget("1", soft=True))
    await cache.add_usage(key, "0.6")
    await look(cache)
    assert await worker.deliver() == 1 and await worker.deliver() == 0
    for wait_s in (5, 20, 80):
        shop.set_clock(shop.now_us + wait_s * 10**6)
        assert await worker.deliver() == 1
    assert len(receiver.came) == 4 and len({body for _, body in receiver.came}) == 1
    assert len({headers["tollkeeper-signature"] for headers, _ in receiver.came}) == 4
    assert cache._database is not None
    (given,), _ = await cache._database.alerts.find(AlertFilters(), 10)
    assert (given.delivery, given.attempts, given.delivered_us) == ("delivered", 4, shop.now_us)
    shop.set_clock(shop.now_us + DAY_US)
    assert await worker.deliver() == 0


async def test_a_restart_delivers_what_was_not(shop: Shop, receiver: Receiver) -> None:
    """A process that dies with a message undelivered is followed by the next one, wherever that runs."""
    receiver.answers = [503]
    cache = await shop.open()
    key = await make_key(cache, usd_budget("1", soft=True))
    await cache.add_usage(key, "0.6")
    await asyncio.wait_for(receiver.arrived.wait(), 10)
    await shop.crash(cache)
    receiver.arrived.clear()
    shop.now_us += DAY_US
    await shop.open("a")
    await asyncio.wait_for(receiver.arrived.wait(), 10)
    assert len(receiver.came) == 2 and receiver.events[0] == receiver.events[1]


async def test_a_crossing_that_nobody_saw_is_found(shop: Shop, cache: BillingCache) -> None:
    """By the patrol at the next start, from the database; a scope that does not warn is left alone."""
    family = await make_family(cache, organisation=Policy(budgets=(usd_budget("1", Period.TOTAL, soft=True),)))
    cache._accounting.ledger.watch = None
    await cache.add_usage(family.key, "0.9")
    await cache.shutdown()
    shop.open_ones.clear()
    again = await shop.open()
    watch = again._accounting.ledger.watch
    assert watch is not None
    await watch.patrol()
    assert await warned(again) == [("total", 500_000), ("total", 800_000)]


async def test_old_alerts_are_forgotten(shop: Shop, cache: BillingCache) -> None:
    """When their counters have left the store; those of totals never."""
    key = await make_key(cache, usd_budget("1", soft=True), usd_budget("1", Period.TOTAL, soft=True))
    await cache.add_usage(key, "0.5")
    await look(cache)
    assert [name for name, _ in await warned(cache)] == [f"{key}:2100:01", f"{key}:total"]
    shop.set_clock(NOW_US + 90 * DAY_US)
    assert cache._accounting.ledger.watch is not None
    await cache._accounting.ledger.watch.patrol()
    assert [name for name, _ in await warned(cache)] == [f"{key}:total"]


def test_waits_grow_and_end() -> None:
    """About a day and a half in all, at most six hours each, never all gateways at once; then it is given up."""
    longest = [retry_delay_s(attempts, 1) for attempts in range(1, ATTEMPTS_MAX)]
    assert longest[:3] == [5, 20, 80] and max(d for d in longest if d is not None) == 6 * 3600
    assert 24 * 3600 > sum(d for d in longest if d is not None) > 12 * 3600
    assert retry_delay_s(1, 0) == 2.5 and retry_delay_s(ATTEMPTS_MAX, 0.5) is None


def test_signature_is_stripes() -> None:
    """As computed by hand: HMAC-SHA256 of `t.body`; under each of two secrets while one is rotated."""
    new, old = (hmac.new(s, b'1700000000.{"a":1}', hashlib.sha256).hexdigest() for s in (b"secret", b"old"))
    body, at_us = b'{"a":1}', 1_700_000_000_999_999
    assert signature(["secret"], body, at_us) == f"t=1700000000,v1={new}"
    assert signature(["secret", "old"], body, at_us) == f"t=1700000000,v1={new},v1={old}"


@pytest.mark.parametrize(
    ("url", "secret", "message"),
    [
        ("https://hooks.example.com/x", None, "TOLLKEEPER_WEBHOOK_SECRET must be 16 or more"),
        ("https://hooks.example.com/x", "short", "TOLLKEEPER_WEBHOOK_SECRET must be 16 or more"),
        ("ftp://hooks.example.com/x", SECRET, "is not an address that can be posted to"),
        ("https://user:secret@hooks.example.com/x", SECRET, "is not an address that can be posted to"),
        (None, SECRET, "no TOLLKEEPER_WEBHOOK_URL to sign for"),
    ],
)
def test_webhooks_that_cannot_work_are_refused(url: str | None, secret: str | None, message: str) -> None:
    """At the start, without showing the address, which may be a secret."""
    with pytest.raises(ConfigurationError, match=message) as refused:
        BillingCache(webhook_url=url, webhook_secret=secret)
    assert "hooks.example.com/x" not in str(refused.value)
