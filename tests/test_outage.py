"""Promise 6 on whole gateways: four processes, one Redis that is killed or frozen under load, and what the provider
says it served.

`make test-outage` is the long run whose figures are in docs/outages.md.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.postgres import PostgresServer, postgres
from tests.servers.redis import RedisServer, own_redis
from tests.test_replay import migrate, true_cost_nano
from tollkeeper.storage.database import Database

__all__ = ["own_redis", "postgres"]

OUTAGE_S = float(os.environ.get("OUTAGE_S", "3"))
INSTANCES = 4
WINDOW_S = 2.0
LIMIT = 24
FILLED = 30
PAUSE_S = 0.05
BUDGET_NANO = 2_000_000
"""Some 60 requests: used up during the outage."""
ANSWER_S = 8.0
"""Far above every deadline on the way, far below a hang: an answer that takes longer fails the test."""
BODY = {
    "model": "gpt-4o-mini",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "[[sim input=9 output=50]]"}],
}


class Answer(msgspec.Struct):
    """What one request came to. Times are seconds of the run."""

    key: str
    instance: int
    sent_s: float
    took_s: float
    status: int
    degraded: str | None


class Fleet:
    """Gateways on one Redis, with one key each for a window, a limit that is filled early, and a budget."""

    def __init__(self, folder: Path, redis: RedisServer, database: str) -> None:
        self.redis, self.environ = redis, {"REDIS_URL": redis.url, "DATABASE_URL": database}
        migrate(self.environ)
        self.simulator = SimulatorProcess(folder)
        self.gateways = [GatewayProcess(folder / f"g{n}", self.simulator.url, self.environ) for n in range(INSTANCES)]
        self.answers: list[Answer] = []
        self.secrets = {
            "window": self._key("window", {"windows": [f"requests={LIMIT}/{WINDOW_S:g}s"]}),
            "filled": self._key("filled", {"rpm": FILLED}),
            "budget": self._key("budget", {"budgets": {"month": f"{BUDGET_NANO / 1e9:.3f}"}}),
        }
        self.begun_s = time.monotonic()

    def _key(self, name: str, limits: dict[str, Any]) -> str:
        return str(self.gateways[0].admin("POST", "/keys", {"name": name, "limits": limits})["secret"])

    def close(self) -> None:
        for program in (*self.gateways, self.simulator):
            program.kill()

    def metric(self, number: int, name: str) -> float:
        lines = self.gateways[number].get("/metrics").decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    async def wait_for(self, name: str, true: Callable[[float], bool]) -> None:
        """Until a metric of every instance is so."""
        async with asyncio.timeout(30):
            for number in range(INSTANCES):
                while not true(await asyncio.to_thread(self.metric, number, name)):
                    await asyncio.sleep(0.1)

    async def ask(self, session: aiohttp.ClientSession, key: str, instance: int) -> Answer:
        """One request; an answer that does not come fails the test."""
        headers = {"Authorization": f"Bearer {self.secrets[key]}"}
        sent_s = time.monotonic()
        async with session.post(
            self.gateways[instance].url + "/v1/chat/completions", json=BODY | {"user": key}, headers=headers
        ) as response:
            await response.read()
            took_s = time.monotonic() - sent_s
            degraded = response.headers.get("x-tollkeeper-degraded")
            answer = Answer(key, instance, sent_s - self.begun_s, took_s, response.status, degraded)
        self.answers.append(answer)
        return answer

    async def load(self, session: aiohttp.ClientSession, key: str, instances: Iterable[int]) -> None:
        """Ask these instances, one after the other."""
        for instance in instances:
            await self.ask(session, key, instance)
            await asyncio.sleep(PAUSE_S)

    def served(self) -> list[dict[str, Any]]:
        """The provider's own account."""
        found: list[dict[str, Any]] = msgspec.json.decode(self.simulator.get("/sim/requests?since=0"))["requests"]
        return found


@pytest.fixture
def fleet(tmp_path: Path, own_redis: RedisServer, postgres: PostgresServer) -> Iterator[Fleet]:
    assert own_redis.process is not None
    made = Fleet(tmp_path, own_redis, postgres.create_database(f"outage_{own_redis.process.pid}"))
    yield made
    made.close()


async def run(fleet: Fleet, break_it: Callable[[], None], mend_it: Callable[[], None]) -> tuple[float, float]:
    """Load, an outage, and load until all is well again; when it began and ended, in seconds of the run."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await fleet.wait_for("tollkeeper_instances", lambda count: count == INSTANCES)
        for _ in range(FILLED + 1):  # until every instance was refused
            await asyncio.gather(*(fleet.ask(session, "filled", n) for n in range(INSTANCES)))
        loads = [fleet.load(session, "window", repeat(n)) for n in range(INSTANCES)]
        loads += [fleet.load(session, key, cycle(range(INSTANCES))) for key in ("budget", "filled")]
        tasks = [asyncio.create_task(load) for load in loads]
        await asyncio.sleep(WINDOW_S + 0.5)
        began_s = time.monotonic() - fleet.begun_s
        break_it()
        await asyncio.sleep(OUTAGE_S / 2)
        readiness = msgspec.json.decode(await asyncio.to_thread(fleet.gateways[0].get, "/readyz"))
        assert readiness["ready"] and readiness["degraded"] and "bounded" in readiness["checks"]["store"]["detail"]
        assert await asyncio.to_thread(fleet.metric, 0, "tollkeeper_store_breaker") >= 1
        await asyncio.sleep(OUTAGE_S / 2)
        mend_it()
        ended_s = time.monotonic() - fleet.begun_s
        await fleet.wait_for("tollkeeper_degraded_roots", lambda count: count == 0)
        await fleet.wait_for("tollkeeper_store_breaker", lambda state: state == 0)
        await asyncio.sleep(WINDOW_S + 0.5)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
    return began_s, ended_s


def most_in_a_window(times_us: list[int], window_us: int) -> int:
    """The largest number of times in any interval of that length, wherever it starts."""
    times_us, first, most = sorted(times_us), 0, 0
    for last, time_us in enumerate(times_us):
        while times_us[first] <= time_us - window_us:
            first += 1
        most = max(most, last - first + 1)
    return most


def check(fleet: Fleet, began_s: float, ended_s: float) -> dict[str, float]:
    """Every promise of docs/outages.md; returns its figures."""
    served = fleet.served()
    by_key = {key: [each for each in served if each["user"] == key] for key in fleet.secrets}
    during = [a for a in fleet.answers if began_s < a.sent_s < ended_s]
    assert {a.status for a in fleet.answers} <= {200, 429, 503}
    assert {a.status for a in during if a.key != "budget"} <= {200, 429}, "limits go on in bounded mode"

    # A provider's clock sees a request a little later than the decision was taken.
    window_us = int((WINDOW_S - 0.25) * 1e6)
    most = most_in_a_window([each["time_us"] for each in by_key["window"]], window_us)
    assert most <= 2 * LIMIT
    assert len(by_key["filled"]) == FILLED, "what was full is not filled again"
    alone = [a for a in during if a.degraded]
    assert {a.degraded for a in alone} >= {"limits", "budgets"}
    assert any(a.status == 200 for a in alone if a.degraded == "limits")
    cost = sum(true_cost_nano(each) for each in by_key["budget"])
    assert cost <= BUDGET_NANO + 2 * true_cost_nano(by_key["budget"][0]), "see the bound in docs/outages.md"
    return {
        "requests": len(fleet.answers),
        "during": len(during),
        "admitted alone": sum(a.status == 200 for a in alone),
        "most in a window": most,
        "budget spent (nano-dollars)": cost,
        "slowest (ms)": 1e3 * max(a.took_s for a in during),
        "median alone (ms)": 1e3 * sorted(a.took_s for a in alone)[len(alone) // 2],
    }


async def totals_equal_the_providers(fleet: Fleet) -> None:
    """After a clean stop the database knows every request that was served, to the nano-dollar."""
    assert [await asyncio.to_thread(gateway.stop) for gateway in fleet.gateways] == [0] * INSTANCES
    served = fleet.served()
    database = await Database.open(fleet.environ["DATABASE_URL"])
    rows = await database.spend.monthly_usage()
    accounts = database.accounts(b"x" * 32, lambda: 0)
    names = {key.id: key.name for key in await accounts.list_keys()}
    await database.close()
    summary = {names[row.key_id]: (row.requests, row.cost_nano) for row in rows}
    truth = {
        key: (len(mine), sum(map(true_cost_nano, mine)))
        for key in fleet.secrets
        if (mine := [each for each in served if each["user"] == key])
    }
    assert summary == truth
    for gateway in fleet.gateways:
        log = gateway.log.read_text()
        assert log.count('"store_away"') == log.count('"store_back"') == 1, "one line at each change"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killed_under_load_and_restarted_empty(fleet: Fleet) -> None:
    """SIGKILL; it comes back with nothing in it. No window has more than twice its limit, what was full stays full,
    the budget holds, nothing hangs, and every nano-dollar is accounted for."""

    def restart() -> None:
        fleet.redis.forget()
        fleet.redis.start()

    began_s, ended_s = await run(fleet, fleet.redis.kill, restart)
    figures = check(fleet, began_s, ended_s)
    await totals_equal_the_providers(fleet)
    print(f"\nkilled for {ended_s - began_s:.1f} s: {figures}")


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_frozen_under_load(fleet: Fleet) -> None:
    """SIGSTOP: it keeps its connections and answers nothing, then goes on with all it knew."""
    began_s, ended_s = await run(fleet, fleet.redis.freeze, fleet.redis.thaw)
    figures = check(fleet, began_s, ended_s)
    await totals_equal_the_providers(fleet)
    print(f"\nfrozen for {ended_s - began_s:.1f} s: {figures}")


async def test_closed_is_not_ready_and_says_why(tmp_path: Path, own_redis: RedisServer) -> None:
    """A request with the closed concern gets a 503 and when to come again; one without it is served; `/readyz` is 503
    with the reason; all of it ends by itself."""
    simulator = SimulatorProcess(tmp_path)
    environ = {"REDIS_URL": own_redis.url, "TOLLKEEPER_OUTAGE_LIMITS": "closed"}
    gateway = GatewayProcess(tmp_path / "gateway", simulator.url, environ)
    try:
        secrets = {
            name: gateway.admin("POST", "/keys", {"name": name, "limits": limits})["secret"]
            for name, limits in (("limited", {"rpm": 100}), ("free", {}))
        }
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as session:

            async def ask(name: str) -> tuple[int, str | None, str]:
                headers = {"Authorization": f"Bearer {secrets[name]}"}
                async with session.post(gateway.url + "/v1/chat/completions", json=BODY, headers=headers) as response:
                    return response.status, response.headers.get("retry-after"), await response.text()

            async def ready() -> tuple[int, str]:
                async with session.get(gateway.url + "/readyz") as response:
                    return response.status, (await response.json())["checks"]["store"]["detail"]

            assert [(await ask(name))[0] for name in secrets] == [200, 200]
            own_redis.kill()
            async with asyncio.timeout(5):
                while (await ready())[0] != 503:  # though no request has met it yet
                    await asyncio.sleep(0.1)
            for _ in range(3):
                status, retry_after, text = await ask("limited")
                assert (status, retry_after) == (503, "1") and "cannot be checked at the moment" in text
            assert (await ask("free"))[0] == 200
            status, detail = await ready()
            assert status == 503 and detail.startswith("limits closed, budgets bounded: ")
            own_redis.start()
            async with asyncio.timeout(20):
                while (await ready())[0] != 200 or (await ask("limited"))[0] != 200:
                    await asyncio.sleep(0.1)
        assert gateway.stop() == 0
    finally:
        gateway.kill()
        simulator.kill()
