"""A real Prometheus with the alert rules scrapes a real gateway, and things go wrong.

The rules are those of `deploy/`, in a hurry: short windows, no waiting, small thresholds of time and number. Every
one of them fires here. The gateway is two processes on Redis, PostgreSQL and a folder, all of the test's own.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
import redis

from tests.observability.conftest import Watched
from tests.observability.test_alerts import RULES
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer, free_port
from tollkeeper.domain.alerts import ATTEMPTS_MAX
from tollkeeper.storage.database import Database

FIRE_TIMEOUT_S = 90.0
DATABASE = "alerts"
SMALL = "records_max = 20\n[billing]\nsync_interval_s = 1\norphan_after_s = 30\n[server]\nworkers = 2\n"
"""A log queue that is soon full, a sync that is soon late, looks for the dead every few seconds."""


def hurried(rules: str) -> str:
    """The rules without `for`, with 15 s for every window (3 s where the least of it is asked for), seconds for the
    times that things may last, and 10 instead of 1000 settlements."""
    rules = re.sub(r"^ +for: .*\n", "", rules, flags=re.MULTILINE)
    rules = re.sub(r"(min_over_time\(\w+)\[\w+\]", r"\1[3s]", rules).replace("offset 30m", "offset 3s")
    rules = re.sub(r"\[\d+[mh]\]", "[15s]", rules).replace("> 1000", "> 10")
    return re.sub(r"(_seconds\)?) > (?:30|60|300)\b", r"\1 > 3", rules)


class Prometheus:
    """Debian's, as a process of our own, scraping one gateway every second."""

    def __init__(self, folder: Path, target: str) -> None:
        program = shutil.which("prometheus")
        assert program, "prometheus is missing: run `make servers`"
        folder.mkdir()
        (folder / "alerts.yml").write_text(hurried(RULES.read_text()))
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            "rule_files: [alerts.yml]\n"
            f'scrape_configs: [{{job_name: tollkeeper, static_configs: [{{targets: ["{target}"]}}]}}]\n'
        )
        self.url = f"http://127.0.0.1:{free_port()}"
        self.seen: set[str] = set()
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def firing(self) -> set[str]:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=5) as response:
                alerts = json.load(response)["data"]["alerts"]
        except OSError:
            return set()  # it is starting
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def until(self, *names: str, act: Callable[[], object] = lambda: None) -> None:
        """Repeat `act` until each of these alerts has fired; nothing else may have by then but what had before."""
        deadline = time.monotonic() + FIRE_TIMEOUT_S
        missing = set(names)
        while missing:
            assert time.monotonic() < deadline, f"never fired: {missing}; firing: {self.firing()}"
            act()
            firing = self.firing()
            missing -= firing
            self.seen |= firing
            time.sleep(0.1)

    def up(self) -> bool:
        query = f"{self.url}/api/v1/query?query=up==1"
        try:
            with urllib.request.urlopen(query, timeout=5) as response:
                return bool(json.load(response)["data"]["result"])
        except OSError:
            return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


async def migrate(url: str) -> None:
    database = await Database.open(url)
    await database.migrate()
    await database.close()


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    made = PostgresServer()
    asyncio.run(migrate(made.create_database(DATABASE)))
    yield made
    made.stop()


@pytest.fixture
def small(tmp_path: Path, own_redis: RedisServer, database: PostgresServer) -> Iterator[Watched]:
    environ = {
        "DATABASE_URL": database.url(DATABASE),
        "TOLLKEEPER_WEBHOOK_URL": f"http://127.0.0.1:{free_port()}/nobody-listens",
        "TOLLKEEPER_WEBHOOK_SECRET": "a-webhook-secret-for-tests-of-32-chars",
    }
    made = Watched(tmp_path, own_redis, SMALL, environ)
    yield made
    made.close()


@pytest.fixture
def prometheus(small: Watched, tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(tmp_path / "prometheus", small.gateway.url.removeprefix("http://"))
    yield made
    made.close()


def processes(watched: Watched) -> dict[int, int]:
    """Place → process of the gateways that serve, as the log tells."""
    serving: dict[int, int] = {}
    for line in watched.events("worker_serves", "worker_ended"):
        if line["event"] == "worker_serves":
            serving[line["worker"]] = line["process"]
        else:
            serving.pop(line["worker"], None)
    return serving


def ask_of_frozen_redis(watched: Watched) -> None:
    """One request that waits for its decision in vain, until the gateway takes it alone."""
    watched.redis.freeze()
    watched.ask()
    watched.redis.thaw()
    time.sleep(0.5)  # until a probe has found Redis


def kill_a_process(watched: Watched) -> None:
    """One of two, if both serve; replacing one again and again takes longer and longer."""
    serving = processes(watched)
    if len(serving) == 2:
        os.kill(serving[min(serving)], signal.SIGKILL)


async def freeze_a_process(watched: Watched, url: str) -> None:
    """Until the other one has closed its accounts; that it was frozen for long is put into the database."""
    until(lambda: len(processes(watched)) == 2)
    frozen = processes(watched)[min(processes(watched))]
    os.kill(frozen, signal.SIGSTOP)
    try:
        connection = await asyncpg.connect(url)
        long_ago = "UPDATE producers SET seen_us = 1 WHERE id = $1"
        assert await connection.execute(long_ago, producer_of(frozen)) == "UPDATE 1"
        await connection.close()
        until(lambda: watched.events("orphan_closed"))
    finally:
        os.kill(frozen, signal.SIGCONT)


def producer_of(process: int) -> str:
    """By the outbox that it has open."""
    files = [file.readlink() for file in Path(f"/proc/{process}/fd").iterdir()]
    (name,) = {file.parent.name for file in files if "outbox" in file.parts}
    return name


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + FIRE_TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def give_up(watched: Watched, url: str) -> None:
    """A warning that was tried nine times already is tried a last time, in vain."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "UPDATE budget_alerts SET attempts = $1, due_us = 0 WHERE attempts > 0", ATTEMPTS_MAX - 1
        )
    finally:
        await connection.close()
    watched.ask(watched.warned())  # another warning wakes who delivers


@contextmanager
def overwriting(watched: Watched, keys: list[str]) -> Iterator[None]:
    """Somebody goes on putting something else under our keys, faster than anybody can mend it."""
    ended = threading.Event()

    def work() -> None:
        with redis.Redis.from_url(watched.redis.url) as client:
            while not ended.is_set():
                pipeline = client.pipeline(transaction=False)
                for key in keys * 20:
                    pipeline.delete(key).rpush(key, "x")
                pipeline.execute()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def ask_under_a_stranger(watched: Watched, secret: str, root: str) -> None:
    """A request whose accounts are overwritten while it is answered, until its settlement is set aside."""
    asking = threading.Thread(target=watched.ask, args=(secret, "[[sim input=9 output=50 delay_ms=300]]"))
    asking.start()
    until(lambda: watched.redis.lines("KEYS", f"hold:{{{root}}}*"))
    with overwriting(watched, watched.redis.lines("KEYS", f"cost:{{{root}}}*")):
        until(lambda: watched.events("entry_refused"))
    asking.join()


def test_every_alert_fires_when_things_go_wrong(
    small: Watched, prometheus: Prometheus, database: PostgresServer
) -> None:
    """One thing after the other fails for real, and the rules made for it fire; none does while all is well."""
    fresh = str(small.gateway.admin("POST", "/keys", {"name": "fresh"})["secret"])
    poor = small.gateway.admin("POST", "/keys", {"name": "poor", "limits": {"budgets": {"month": "1.00"}}})
    until(prometheus.up)
    for _ in range(30):
        assert small.ask() == 200
        time.sleep(0.1)
    assert prometheus.firing() <= {"TollkeeperAdmissionSlow"}, "a busy machine is slow"

    small.ask(text="[[sim input=1000000 output=10]]")
    prometheus.until("TollkeeperCostAboveHold", act=small.ask)
    small.ask(text="[[sim fault=no_usage]]")
    prometheus.until("TollkeeperPresumedCharges", act=small.ask)

    assert small.ask(small.warned()) == 200
    until(lambda: small.events("webhook_failed"))
    asyncio.run(give_up(small, database.url(DATABASE)))
    prometheus.until("TollkeeperWarningsUndelivered")

    ask_under_a_stranger(small, str(poor["secret"]), str(poor["organisation_id"]))
    prometheus.until("TollkeeperEntriesQuarantined")

    aside = small.logs.rename(small.logs.with_name("aside"))
    small.logs.write_text("a file where the log store's folder should be")
    logs = ("LogStoreFailing", "LogShippingLag", "LogQueueFilling", "LogRecordsDropped")
    prometheus.until(*(f"Tollkeeper{name}" for name in logs), act=small.ask)
    small.logs.unlink()
    aside.rename(small.logs)

    prometheus.until("TollkeeperWorkersMissing", "TollkeeperWorkersDie", act=lambda: kill_a_process(small))
    asyncio.run(freeze_a_process(small, database.url(DATABASE)))
    prometheus.until("TollkeeperTakenForDead", act=small.ask)

    assert "TollkeeperUpstreamFailing" not in prometheus.seen
    small.simulator.kill()
    burns = ("ErrorBudgetBurnsFast", "ErrorBudgetBurnsSlowly")
    prometheus.until("TollkeeperUpstreamFailing", *(f"Tollkeeper{name}" for name in burns), act=small.ask)

    prometheus.until("TollkeeperAdmissionSlow", act=lambda: ask_of_frozen_redis(small))
    database.kill()
    small.redis.command("FLUSHALL")
    prometheus.until("TollkeeperRecoveryStuck", "TollkeeperKeyTableStale", act=small.ask)
    small.redis.kill()
    away = ("StoreDegraded", "SyncLag", "OutboxGrowing")
    prometheus.until(*(f"Tollkeeper{name}" for name in away), act=small.ask)

    shutil.rmtree(small.data / "outbox")
    prometheus.until("TollkeeperOutboxFailed", act=lambda: small.ask(fresh))
    until(lambda: "TollkeeperDown" not in prometheus.firing())
    serving = processes(small)
    small.gateway.kill()
    for process in serving.values():
        os.kill(process, signal.SIGKILL)  # nor do they go on without the one that started them
    prometheus.until("TollkeeperDown")
    assert prometheus.seen == set(re.findall(r"- alert: (\w+)", RULES.read_text()))

    away_lines = small.events("store_away")
    assert {line["request_id"] for line in away_lines} & small.request_ids
