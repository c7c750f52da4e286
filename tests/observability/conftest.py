"""A whole gateway on a Redis of its own, with a simulated provider and a folder for logs, to be looked at."""

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import RedisServer, own_redis

__all__ = ["own_redis"]

ANSWERED = "[[sim input=9 output=50]]"


class Watched:
    """`ask` sends a request and gives its status. Log records are shipped at once."""

    def __init__(
        self, folder: Path, redis: RedisServer, more: str = "", environ: Mapping[str, str] | None = None
    ) -> None:
        self.request_ids: set[str] = set()
        self._warned = 0
        self.redis, self.logs = redis, folder / "logs"
        self.simulator = SimulatorProcess(folder)
        environ = {"REDIS_URL": redis.url, "LOG_STORE_URL": f"file://{self.logs}", **(environ or {})}
        self.gateway = GatewayProcess(folder / "gateway", self.simulator.url, environ, MORE + more)
        self.data = folder / "gateway" / "data"
        self.secret = str(self.gateway.admin("POST", "/keys", {"name": "one", "limits": {"rpm": 100_000}})["secret"])
        self.poor = str(self.gateway.admin("POST", "/keys", {"name": "two", "limits": {"rpm": 1}})["secret"])

    def ask(self, secret: str = "", text: str = ANSWERED) -> int:
        body = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": text}]}
        request = urllib.request.Request(
            f"{self.gateway.url}/v1/chat/completions",
            data=msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {secret or self.secret}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                response.read()
                self.request_ids.add(response.headers["x-request-id"])
                return int(response.status)
        except urllib.error.HTTPError as error:
            self.request_ids.add(error.headers["x-request-id"])
            error.close()
            return error.code

    def warned(self) -> str:
        """A key whose first request reaches a threshold that warns."""
        self._warned += 1
        limits = {"soft_budgets": {"month": "1.00"}, "warn_at": {"month": ["0.000001"]}}
        made = self.gateway.admin("POST", "/keys", {"name": f"warned {self._warned}", "limits": limits})
        return str(made["secret"])

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the gateway's log has of these events."""
        lines = [line for line in self.gateway.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(msgspec.json.decode, lines) if event["event"] in names]

    def close(self) -> None:
        for program in (self.gateway, self.simulator):
            program.kill()


MORE = '[logs]\nflush_interval_s = "100ms"\n'


@pytest.fixture
def watched(tmp_path: Path, own_redis: RedisServer) -> Iterator[Watched]:
    made = Watched(tmp_path, own_redis)
    yield made
    made.close()
