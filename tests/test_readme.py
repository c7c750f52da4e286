"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.servers.redis import RedisServer, redis_server

__all__ = ["redis_server"]
README = Path(__file__).parent.parent / "README.md"


def test_limiter_example_runs(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example service answers, with its limits in headers."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    redis_server.command("FLUSHALL")
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    with TestClient(names["app"]) as client:  # type: ignore[arg-type]
        answers = [client.get("/search") for _ in range(101)]
    assert [answer.status_code for answer in answers] == [200] * 100 + [429]
    assert answers[0].json() == "999 left"
    assert int(answers[-1].headers["retry-after"]) <= 61


def test_files_it_points_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
