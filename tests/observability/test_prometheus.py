"""A real Prometheus with the alert rules scrapes a real gateway, and things go wrong.

The rules are those of `deploy/`, in a hurry: short windows, no waiting, small thresholds of time. What cannot be
brought about in seconds (a week's growth, an entry that cannot be placed) is played by `promtool test rules` alone.
"""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.observability.conftest import Watched
from tests.observability.test_alerts import RULES
from tests.servers.redis import RedisServer, free_port

FIRE_TIMEOUT_S = 90.0
SMALL = "records_max = 20\n[billing]\nsync_interval_s = 1\n"
"""Of the log queue, and a sync that is soon late."""


def hurried(rules: str) -> str:
    """The rules with 15 s for every window, without `for`, and with seconds for the times that things may last."""
    rules = re.sub(r"^ +for: .*\n", "", rules, flags=re.MULTILINE)
    rules = re.sub(r"\[\d+[mh]\]", "[15s]", rules)
    return re.sub(r"(_seconds\)?) > (?:60|300)\b", r"\1 > 3", rules)


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


@pytest.fixture
def small(tmp_path: Path, own_redis: RedisServer) -> Iterator[Watched]:
    made = Watched(tmp_path, own_redis, SMALL)
    yield made
    made.close()


@pytest.fixture
def prometheus(small: Watched, tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(tmp_path / "prometheus", small.gateway.url.removeprefix("http://"))
    yield made
    made.close()


def ask_of_frozen_redis(watched: Watched) -> None:
    """One request that waits for its decision in vain, until the gateway takes it alone."""
    watched.redis.freeze()
    watched.ask()
    watched.redis.thaw()
    time.sleep(0.5)  # until a probe has found Redis


def test_alerts_fire_when_things_go_wrong(small: Watched, prometheus: Prometheus) -> None:
    """One thing after the other fails for real, and the rules made for it fire; none does while all is well."""
    fresh = str(small.gateway.admin("POST", "/keys", {"name": "fresh"})["secret"])
    deadline = time.monotonic() + FIRE_TIMEOUT_S
    while not prometheus.up():
        assert time.monotonic() < deadline, "Prometheus does not scrape"
        time.sleep(0.1)
    for _ in range(30):
        assert small.ask() == 200
        time.sleep(0.1)
    assert prometheus.firing() == set()

    small.ask(text="[[sim input=1000000 output=10]]")
    prometheus.until("TollkeeperCostAboveHold", act=small.ask)
    small.ask(text="[[sim fault=no_usage]]")
    prometheus.until("TollkeeperPresumedCharges", act=small.ask)

    aside = small.logs.rename(small.logs.with_name("aside"))
    small.logs.write_text("a file where the log store's folder should be")
    logs = ("LogStoreFailing", "LogShippingLag", "LogQueueFilling", "LogRecordsDropped")
    prometheus.until(*(f"Tollkeeper{name}" for name in logs), act=small.ask)
    small.logs.unlink()
    aside.rename(small.logs)

    assert "TollkeeperUpstreamFailing" not in prometheus.seen
    small.simulator.kill()
    burns = ("ErrorBudgetBurnsFast", "ErrorBudgetBurnsSlowly")
    prometheus.until("TollkeeperUpstreamFailing", *(f"Tollkeeper{name}" for name in burns), act=small.ask)

    prometheus.until("TollkeeperAdmissionSlow", act=lambda: ask_of_frozen_redis(small))
    small.redis.kill()
    assert "TollkeeperDown" not in prometheus.seen
    prometheus.until("TollkeeperStoreDegraded", "TollkeeperSyncLag", act=small.ask)

    shutil.rmtree(small.data / "outbox")
    prometheus.until("TollkeeperOutboxFailed", act=lambda: small.ask(fresh))
    small.gateway.kill()
    prometheus.until("TollkeeperDown")

    lines = [json.loads(line) for line in small.gateway.log.read_text().splitlines() if line.startswith("{")]
    (away, *_) = [line for line in lines if line["event"] == "store_away"]
    assert away["request_id"] in small.request_ids
