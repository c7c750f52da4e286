"""What anyone may ask: index, health, readiness, metrics, and the pages about the API."""

import re
from typing import Any

import msgspec

from tests.admin.conftest import Control
from tollkeeper.admin.probes import Degraded, Probes, Readiness


async def test_health_and_readiness(control: Control) -> None:
    """Alive is 200 while the process serves; ready tells each dependency's state, and is 503 when one is away."""
    assert (await control("GET", "/healthz", token=None)).json == {"alive": True}
    ready = await control("GET", "/readyz", token=None)
    assert (ready.status, ready.json) == (
        200,
        {
            "ready": True,
            "degraded": False,
            "checks": {"database": {"ok": True, "detail": "ok"}, "store": {"ok": True, "detail": "memory"}},
        },
    )


async def test_readiness_tells_the_truth(control: Control) -> None:
    """A dependency that is away makes it 503, with the reason; alive stays 200."""
    control.database_away = True
    ready = await control("GET", "/readyz", token=None)
    assert (ready.status, ready.json["ready"]) == (503, False)
    assert ready.json["checks"]["database"] == {"ok": False, "detail": "the database does not answer"}
    assert ready.json["checks"]["store"]["ok"]
    assert (await control("GET", "/healthz", token=None)).status == 200
    health = (await control("GET", "/admin/v1/health")).json
    assert (health["version"], health["ready"], health["checks"]["database"]["ok"]) == ("1.2.3", False, False)


async def test_degraded_is_ready_and_says_so() -> None:
    """What is served without a dependency, as its operator chose, is ready, degraded, and tells why."""

    async def store() -> str:
        return Degraded("limits bounded: Redis does not answer")

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def exposition() -> bytes:
        return b""

    probes = Probes(readiness=Readiness({"store": store}), exposition=exposition)
    await probes({"type": "http", "method": "GET", "path": "/readyz"}, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 200
    check = {"ok": True, "detail": "limits bounded: Redis does not answer", "degraded": True}
    assert msgspec.json.decode(sent[1]["body"]) == {"ready": True, "degraded": True, "checks": {"store": check}}


async def test_metrics(control: Control) -> None:
    """Prometheus' text format, with what the rooms declared."""
    answer = await control("GET", "/metrics", token=None)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"tollkeeper_admissions_total" in answer.body


async def test_index(control: Control) -> None:
    """A short text with the addresses; other methods are refused."""
    answer = await control("GET", "/", token=None)
    assert answer.status == 200
    assert b"/docs" in answer.body
    refused = await control("POST", "/", token=None)
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert (await control("GET", "/nonsense", token=None)).status == 404


async def test_the_document_covers_the_whole_api(control: Control) -> None:
    """Admin, data plane and probes; what needs a token says so; no internal error model is left in it."""
    document = (await control("GET", "/openapi.json", token=None)).json
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/models", "/admin/v1/keys/{key}", "/readyz"):
        assert path in document["paths"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            scheme = {"/admin/v1/": "Bearer", "/v1/": "Key"}
            wanted: list[dict[str, list[str]]] = [
                {name: []} for prefix, name in scheme.items() if path.startswith(prefix)
            ]
            assert operation.get("security", []) == wanted
    assert "HTTPValidationError" not in repr(document)


async def test_the_page_loads_nothing_from_anywhere(control: Control) -> None:
    """One HTML document: no script, no address but its own, every endpoint on it."""
    answer = await control("GET", "/docs", token=None)
    page = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert re.findall(r'(?:href|src)="([^"]*)"', page) == ["/openapi.json"]
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    document = (await control("GET", "/openapi.json", token=None)).json
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page
    assert "limits.max_parallel" in page
