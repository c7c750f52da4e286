"""What the README and the library's page show works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.servers.redis import RedisServer, redis_server

__all__ = ["redis_server"]
README = Path(__file__).parent.parent / "README.md"
LIBRARY = README.parent / "docs" / "howto" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", LIBRARY.read_text(), re.DOTALL)
OURS = ("TOLLKEEPER_", "REDIS_", "DATABASE_URL", "LOG_STORE_URL", "BILLING_")


def test_limiter_example_runs(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example service answers, with its limits in headers."""
    example, _ = EXAMPLES
    redis_server.command("FLUSHALL")
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    names: dict[str, object] = {}
    exec(compile(example, "library.md", "exec"), names)
    with TestClient(names["app"]) as client:  # type: ignore[arg-type]
        answers = [client.get("/search") for _ in range(101)]
    assert [answer.status_code for answer in answers] == [200] * 100 + [429]
    assert answers[0].json() == "999 left"
    assert int(answers[-1].headers["retry-after"]) <= 61


def test_the_tutorials_service_runs(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's blocks, one after the other: 100 pass in a minute, the next one is told when to come again."""
    names = service(README.parent / "docs" / "tutorial" / "limiter.md", redis_server, monkeypatch)
    with TestClient(names["app"]) as client:
        answers = [client.get("/search?q=x") for _ in range(101)]
    assert [answer.status_code for answer in answers] == [200] * 100 + [429]
    assert answers[0].json() == {"found": "x"} and answers[0].headers["x-ratelimit-remaining"] == "99"
    assert callable(names["by_customer"])


def test_the_service_of_the_fastapi_page_runs(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Middleware, bucket by user and a question of one's own, together."""
    names = service(README.parent / "docs" / "howto" / "fastapi.md", redis_server, monkeypatch)
    with TestClient(names["app"]) as client:
        answers = [client.post("/ask", headers={"x-user": "ann"}) for _ in range(11)]
        assert client.post("/ask", headers={"x-user": "bob"}).json() == "yes"
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    assert answers[0].json() == "yes"


def service(page: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the Python blocks of a page define, on an empty Redis."""
    redis.command("FLUSHALL")
    monkeypatch.setenv("REDIS_URL", redis.url)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
    return names


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_billing_example_runs(store: str, redis_server: RedisServer, tmp_path: Path) -> None:
    """As a program of its own: what it prints is exact, and a second run finds what the first one left."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environ["TOLLKEEPER_DATA_DIR"] = str(tmp_path / "data")
    if store == "redis":
        redis_server.command("FLUSHALL")
        environ["REDIS_URL"] = redis_server.url
    _, example = EXAMPLES
    for _ in range(2):
        command = [sys.executable, "-c", example]
        ran = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[-1] == "0.112300000 USD spent, 4.887700000 left"
