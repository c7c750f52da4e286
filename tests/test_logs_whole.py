"""From a client's request to an answer in SQL: gateway, bucket and command as an operator runs them.

What a client said and got is in the bucket, in both formats, with nothing in it that is secret, and costs what the
provider's own account says.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.s3 import S3Server, moto_server, s3_server
from tests.test_replay import SCHEMA, true_cost_nano
from tollkeeper.logs import objects
from tollkeeper.logs.sinks import open_store

__all__ = ["moto_server", "s3_server"]

LOGS = """
[logs]
format = "{form}"
bodies = "full"
refusals = true
redact = ['[\\w.]+@[\\w.]+']
"""
MAIL = "ann@example.org"


class Whole:
    def __init__(self, folder: Path, server: S3Server, form: str) -> None:
        self.environ = {"LOG_STORE_URL": server.url(), **server.environ}
        self.simulator = SimulatorProcess(folder)
        self.gateway = GatewayProcess(folder / "gateway", self.simulator.url, self.environ, LOGS.format(form=form))
        made = self.gateway.admin("POST", "/keys", {"name": "app", "limits": {"rpm": 6}})
        self.secret = str(made["secret"])

    def post(self, path: str, body: dict[str, Any], **headers: str) -> int:
        request = urllib.request.Request(
            f"{self.gateway.url}/v1{path}",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.secret}", "x-tollkeeper-tags": "whole", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def query(self, sql: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "tollkeeper", "logs", "query", "--json", sql],
            env={"PATH": os.environ["PATH"], **self.environ}, capture_output=True, check=False, timeout=60,
            cwd=self.gateway.log.parent.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)


@pytest.fixture(params=["jsonl.gz", "parquet"])
def whole(request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server) -> Iterator[Whole]:
    made = Whole(tmp_path, s3_server, request.param)
    yield made
    made.gateway.kill()
    made.simulator.kill()


async def test_what_was_asked_is_in_the_bucket_and_nothing_secret(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"I am {MAIL}, my key is {whole.secret}"
    chat = {"model": "gpt-4o-mini", "user": MAIL, "messages": [{"role": "user", "content": text}]}
    claude = {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": [{"role": "user", "content": text}]}
    statuses = [
        whole.post("/chat/completions", chat),
        whole.post("/chat/completions", {**chat, "stream": True}),
        whole.post("/messages", claude),
        whole.post("/messages", {**claude, "stream": True}),
        whole.post("/responses", {"model": "gpt-4.1-nano", "input": text, "stream": True}),
        whole.post("/chat/completions", {**chat, "n": "many"}),
        whole.post("/chat/completions", chat, **{"x-tollkeeper-log-bodies": "off"}),
        whole.post("/chat/completions", chat),
    ]
    assert statuses == [200] * 5 + [400, 200, 429]
    assert whole.gateway.stop() == 0
    served = msgspec.json.decode(whole.simulator.get("/sim/requests?since=0"))["requests"]

    (total,) = whole.query("SELECT count(*) AS n, sum(cost_nano) AS cost, sum(tokens_output) AS output FROM logs")
    assert total == {
        "n": 8,
        "cost": sum(map(true_cost_nano, served)),
        "output": sum(each["usage"]["output_tokens"] for each in served),
    }
    rows = whole.query("SELECT status, refused_by, request_body, response_body FROM logs ORDER BY time")
    assert [row["status"] for row in rows] == statuses
    assert rows[7]["refused_by"] == "key/requests" and rows[6]["request_body"] is None
    for row in (*rows[:6], rows[7]):
        assert "I am [redacted], my key is [redacted]" in row["request_body"]
        assert isinstance(json.loads(row["response_body"]), dict)  # streams too: put together
    assert "data:" not in rows[1]["response_body"]

    for name, value in whole.environ.items():
        monkeypatch.setenv(name, value)
    store = open_store(whole.environ["LOG_STORE_URL"], 10.0)
    async for path in store.list():
        lines = objects.records_in(await store.read(path)) if objects.is_log_object(path) else None
        for line in (lines or b"").splitlines():
            assert MAIL.encode() not in line and whole.secret.encode() not in line
            jsonschema.validate(json.loads(line), SCHEMA)
