"""The one way to a provider leads through admission: every route is walked, with limits, store or disk against it.

A new endpoint or route has no sample here and fails the walk until it has one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import Reply, Stand, chat, message
from tests.gateway.test_media import wav
from tollkeeper.domain.policy import UNLIMITED, Policy, Unit, Window
from tollkeeper.gateway import followup
from tollkeeper.gateway.dialects.base import ENDPOINTS
from tollkeeper.gateway.dialects.kept import ROUTES

SOURCE = Path(__file__).parents[2] / "src" / "tollkeeper"
FORM = "multipart/form-data; boundary=x"


def form(name: str, content: bytes, **texts: str) -> bytes:
    head = b'--x\r\ncontent-disposition: form-data; name="%b"'
    parts = [head % n.encode() + b"\r\n\r\n" + text.encode() + b"\r\n" for n, text in texts.items()]
    parts.append(head % name.encode() + b'; filename="a"\r\n\r\n' + content + b"\r\n")
    return b"".join(parts) + b"--x--\r\n"


LINE = b'{"custom_id":"1","url":"/v1/embeddings","body":{"model":"text-embedding-3-small","input":"x"}}'
BODIES: dict[str, Any] = {
    "/v1/chat/completions": chat(max_tokens=5),
    "/v1/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "x"},
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "x"},
    "/v1/responses": {"model": "gpt-4o-mini", "input": "x"},
    "/v1/messages": message(),
    "/v1/messages/count_tokens": message(),
    "/v1/moderations": {"input": "x"},
    "/v1/rerank": {"model": "rerank-v3.5", "query": "q", "documents": ["d"]},
    "/v1/images/generations": {"model": "dall-e-3", "prompt": "x"},
    "/v1/images/edits": form("image", b"png", model="gpt-image-1", prompt="x"),
    "/v1/images/variations": form("image", b"png"),
    "/v1/audio/speech": {"model": "tts-1", "voice": "alloy", "input": "x"},
    "/v1/audio/transcriptions": form("file", wav(100), model="whisper-1"),
    "/v1/audio/translations": form("file", wav(100), model="whisper-1"),
    "/v1/batches": {"endpoint": "/v1/embeddings", "completion_window": "24h"},
    "/v1/files": form("file", LINE, purpose="batch"),
}
ANSWERED_HERE = {"file_list", "batch_list"}


async def kept(stand: Stand) -> dict[str, str]:
    """One object of each kind, of the current key's organisation."""
    response = await stand.post(BODIES["/v1/responses"], "/responses")
    file = await stand.post(BODIES["/v1/files"], "/files", headers={"content-type": FORM})
    assert (response.status, file.status) == (200, 200)
    ids = {"response": response.json["id"], "file": file.json["id"]}
    batch = await stand.post(batch_of(ids), "/batches")
    assert batch.status == 200, batch.body
    return ids | {"batch": batch.json["id"]}


def batch_of(ids: dict[str, str]) -> dict[str, Any]:
    return {**BODIES["/v1/batches"], "input_file_id": ids["file"]}


def walk(ids: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Method, path and body of every route that asks a provider, each object's deletion last."""
    for path in ENDPOINTS:
        yield "POST", path, BODIES[path]
    routes = [route for route in ROUTES if route.endpoint.name not in ANSWERED_HERE]
    for route in sorted(routes, key=lambda route: route.method == "DELETE"):
        path = route.endpoint.path
        if route.names_one:
            yield route.method, path.replace("{id}", ids[route.kind.value]), None
        else:
            yield route.method, path, batch_of(ids) if path == "/v1/batches" else BODIES[path]


async def ask(stand: Stand, method: str, path: str, body: Any, **more: Any) -> Reply:
    headers = {"content-type": FORM} if isinstance(body, bytes) else {}
    return await stand.post(body, path.removeprefix("/v1"), method=method, headers=headers, **more)


async def test_nothing_reaches_a_provider_that_was_not_admitted(stand: Stand) -> None:
    """Refused by a limit: 429 at every route, and the provider hears of none."""
    stand.key(Policy(windows=(Window(Unit.REQUESTS, 3),)))
    ids = await kept(stand)
    served = stand.simulator.served.last
    for method, path, body in walk(ids):
        reply = await ask(stand, method, path, body)
        assert reply.status == 429, (method, path, reply.body)
    assert stand.simulator.served.last == served


async def test_nothing_reaches_a_provider_while_nobody_can_admit(stand: Stand) -> None:
    """The store away: 503. The outbox full: 503, and what was admitted is void."""
    ids = await kept(stand)
    served = stand.simulator.served.last
    for fault in ("away", "outbox_full"):
        setattr(stand.governor, fault, True)
        for method, path, body in walk(ids):
            reply = await ask(stand, method, path, body)
            assert reply.status == 503, (fault, method, path, reply.body)
        setattr(stand.governor, fault, False)
    assert stand.simulator.served.last == served
    assert {end.kind for end in stand.governor.ends[3:]} == {"voided"}


async def test_nothing_reaches_a_provider_without_a_key(stand: Stand) -> None:
    ids = await kept(stand)
    served = stand.simulator.served.last
    for method, path, body in walk(ids):
        assert (await ask(stand, method, path, body, secret=None)).status == 401, path
        assert (await ask(stand, method, path, body, secret="tk_" + "w" * 43)).status == 401, path
    assert stand.simulator.served.last == served


async def test_what_reaches_a_provider_was_admitted_once_and_has_one_end(stand: Stand) -> None:
    """The walk does reach the provider, so that the tests above could have failed."""
    stand.key(UNLIMITED)
    ids = await kept(stand)
    for method, path, body in walk(ids):
        before = stand.simulator.served.last, len(stand.governor.granted), stand.governor.dispatches
        reply = await ask(stand, method, path, body)
        assert reply.status == 200, (method, path, reply.body)
        after = stand.simulator.served.last, len(stand.governor.granted), stand.governor.dispatches
        assert after == tuple(n + 1 for n in before), (method, path)
    await stand.settled()
    assert len(stand.governor.ends) == len(stand.governor.granted) == len(stand.records.all)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "POST"])
async def test_other_methods_and_paths_reach_nobody(stand: Stand, method: str) -> None:
    """Whatever is no route of the table is answered here."""
    known = {(route.method, route.endpoint.path) for route in ROUTES} | {("POST", path) for path in ENDPOINTS}
    paths = {path for _, path in known} | {f"{path}/" for _, path in known} | {f"{path}/x" for path in ENDPOINTS}
    paths |= {"/v1/", "/v1/models", "/v1/models/gpt-4o", "/v1/fine_tuning/jobs", "/v1//files", "/v1/files//content"}
    for path in paths:
        if (method, path) not in known:
            reply = await ask(stand, method, path.replace("{id}", "x-1"), b"")
            assert reply.status in (200, 400, 404, 405), (method, path, reply.status)
    assert stand.simulator.served.last == 0 and not stand.governor.granted


def test_one_file_sends() -> None:
    """`attempts.py`, behind the dispatch line; and `followup.py`, which only shows what was admitted before. Nothing
    else has the HTTP clients in its hands."""
    users = {file.name for file in SOURCE.rglob("*.py") if re.search(r"\.upstreams\[", file.read_text())}
    assert users == {"attempts.py", "followup.py"}
    assert {(route.method, route.endpoint.free) for route in followup._ROUTES.values()} == {("GET", True)}
    assert (SOURCE / "gateway" / "followup.py").read_text().count("].send(") == 1
    text = (SOURCE / "gateway" / "attempts.py").read_text()
    assert text.count("].send(") == 1
    assert text.index("attempt.dispatch()") < text.index("].send(")
    clients = {
        file.name
        for file in SOURCE.rglob("*.py")
        if re.search(r"\b(Http1Upstream|AiohttpUpstream)\(", file.read_text())
    }
    assert clients <= {"server.py", "http1_pool.py", "upstream_aiohttp.py", "webhook.py"}, "the last posts warnings"
