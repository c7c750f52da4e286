"""Requests that never reach a provider: each bad input gets its status, in its dialect, and costs nothing."""

import asyncio
from typing import Any

import pytest

from tests.gateway.conftest import MODEL, Reply, Stand, chat, message, now_us
from tests.gateway.fakes import principal_of
from tollkeeper.domain.policy import Policy


def openai_error(reply: Reply) -> dict[str, Any]:
    """The error object, after checking that it has the shape of OpenAI's."""
    error = reply.json["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["content-type"] == "application/json"
    return dict(error)


def anthropic_error(reply: Reply) -> dict[str, Any]:
    """The error object, after checking that it has the shape of Anthropic's."""
    assert reply.json["type"] == "error"
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    assert set(reply.json["error"]) >= {"type", "message"}
    return dict(reply.json["error"])


def nothing_happened(stand: Stand) -> None:
    assert not stand.governor.granted
    assert not stand.governor.ends
    assert not stand.records.all
    assert stand.simulator.served.last == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (b"", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b'{"model": 7, "messages": []}', 400),
        (b'{"messages": []}', 400),
        (b'{"model": "gpt-4o", "messages": [], "max_tokens": -1}', 400),
        (b'{"model": "gpt-4o", "messages": [], "max_tokens": "many"}', 400),
        (b'{"model": "gpt-4o", "messages": [], "stream": "yes"}', 400),
        (b"\xff\xfe\x00", 400),
        (b'{"model": "gpt-4o", "model": ' + b"[" * 5000, 400),
    ],
)
async def test_malformed_bodies(stand: Stand, body: bytes, status: int) -> None:
    reply = await stand.post(body)
    assert reply.status == status, reply.body
    assert openai_error(reply)["type"] == "invalid_request_error"
    reply = await stand.post(body, "/messages")
    assert reply.status == status, reply.body
    assert anthropic_error(reply)["type"] == "invalid_request_error"
    nothing_happened(stand)


async def test_missing_wrong_expired_and_revoked_keys(stand: Stand) -> None:
    """401 each, told apart, and the secret is never repeated."""
    expired, revoked = "tk_" + "e" * 43, "tk_" + "r" * 43
    stand.directory.put(expired, principal_of("expired", expires_at_us=now_us() - 1))
    stand.directory.put(revoked, principal_of("revoked", revoked_at_us=1))
    codes = set()
    for secret in (None, "tk_" + "w" * 43, "sk-" + "w" * 43, expired, revoked):
        for path, body, error_of in (
            ("/chat/completions", chat(), openai_error),
            ("/messages", message(), anthropic_error),
        ):
            reply = await stand.post(body, path, secret=secret)
            assert reply.status == 401, reply.body
            error = error_of(reply)
            assert secret is None or secret[:-4].encode() not in reply.body
            codes.add(error.get("code"))
    assert {"missing_api_key", "invalid_api_key", "expired_api_key", "revoked_api_key"} <= codes
    nothing_happened(stand)


async def test_key_in_either_header(stand: Stand) -> None:
    assert (await stand.post(chat(), secret=None, headers={"x-api-key": stand.secret})).status == 200
    assert (await stand.post(message(), "/messages", secret=None, headers={"x-api-key": stand.secret})).status == 200
    assert (await stand.post(message(), "/messages")).status == 200


async def test_revoked_key_stops_within_two_seconds(stand: Stand) -> None:
    assert (await stand.post(chat())).status == 200
    stand.directory.put(stand.secret, principal_of("test", revoked_at_us=1))
    await asyncio.sleep(1.2)
    assert (await stand.post(chat())).status == 401


async def test_database_away(stand: Stand) -> None:
    """Known keys go on; unknown ones get a 503, because nobody can say that they are wrong."""
    stand.directory.away = True
    assert (await stand.post(chat())).status == 200
    reply = await stand.post(chat(), secret="tk_" + "n" * 43)
    assert reply.status == 503
    assert reply.headers["retry-after"]


async def test_body_above_the_limit(stand: Stand) -> None:
    """413, also when the client does not tell the length beforehand."""
    large = b'{"model": "gpt-4o", "messages": "' + b"x" * 300_000 + b'"}'
    assert (await stand.post(large)).status == 413
    reply = await raw(stand, b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(large), large))
    assert b" 413 " in reply.splitlines()[0]
    nothing_happened(stand)


@pytest.mark.hasty
async def test_slow_body(stand: Stand) -> None:
    """408 after the body's deadline."""
    reply = await raw(stand, b"content-length: 100\r\n\r\n{")
    assert b" 408 " in reply.splitlines()[0]
    nothing_happened(stand)


async def test_hang_up_while_sending_the_body(stand: Stand) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(head(stand, b"content-length: 100\r\n\r\n{"))
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await stand.settled()
    nothing_happened(stand)


async def test_compressed_body(stand: Stand) -> None:
    reply = await stand.post(b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert reply.status == 415
    assert "content-encoding" in openai_error(reply)["message"]


async def test_unknown_paths_and_methods(stand: Stand) -> None:
    reply = await stand.post(chat(), "/nowhere")
    assert reply.status == 404
    assert "/v1/chat/completions" in openai_error(reply)["message"]
    reply = await stand.post(chat(), "/nowhere", headers={"anthropic-version": "2023-06-01"})
    assert anthropic_error(reply)["type"] == "not_found_error"
    reply = await stand.post(None, method="GET")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    reply = await stand.post(None, "/messages", method="DELETE")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    anthropic_error(reply)
    reply = await stand.post(chat(), "/models")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


async def test_unknown_model_and_wrong_dialect(stand: Stand) -> None:
    reply = await stand.post(chat(model="nothing-like-it"))
    assert (reply.status, openai_error(reply)["code"]) == (404, "model_not_found")
    reply = await stand.post(chat(model="claude-haiku-4-5"))
    assert reply.status == 400
    assert "/v1/messages" in openai_error(reply)["message"]
    reply = await stand.post(message(model="gpt-4o"), "/messages")
    assert "/v1/chat/completions" in anthropic_error(reply)["message"]
    nothing_happened(stand)


async def test_model_not_allowed(stand: Stand) -> None:
    stand.key(Policy(models=("claude-*", "gpt-4o")))
    reply = await stand.post(chat())
    assert reply.status == 403
    assert "claude-*, gpt-4o" in openai_error(reply)["message"]
    assert (await stand.post(chat(model="sim/gpt-4o"))).status == 200


async def test_models_of_a_key(stand: Stand) -> None:
    """The list has configured and known names that the key may use, in the client's shape."""
    reply = await stand.post(None, "/models", method="GET")
    names = {m["id"] for m in reply.json["data"]}
    assert reply.json["object"] == "list"
    assert {"house-model", MODEL} <= names
    assert any(name.startswith("claude-") for name in names)
    reply = await stand.post(None, "/models", method="GET", headers={"anthropic-version": "2023-06-01"})
    assert reply.json["has_more"] is False
    assert reply.json["data"][0]["type"] == "model"
    stand.key(Policy(models=("house-m*",)))
    reply = await stand.post(None, "/models", method="GET")
    assert [m["id"] for m in reply.json["data"]] == ["house-model"]
    assert (await stand.post(None, "/models/house-model", method="GET")).json["owned_by"] == "sim"
    assert (await stand.post(None, "/models/gpt-4o", method="GET")).status == 403
    assert (await stand.post(None, "/models", method="GET", secret=None)).status == 401
    assert (await stand.post(None, "/models/nobody", method="GET")).status == 404


async def test_store_away(stand: Stand) -> None:
    """503 with a time to come back; nothing was admitted."""
    stand.governor.away = True
    reply = await stand.post(chat())
    assert (reply.status, openai_error(reply)["code"]) == (503, "governance_unavailable")
    assert reply.headers["retry-after"]
    assert anthropic_error(await stand.post(message(), "/messages"))["type"] in ("api_error", "overloaded_error")
    nothing_happened(stand)


async def test_full_outbox_dispatches_nothing(stand: Stand) -> None:
    """Without a dispatch line nothing may be sent: 503, and the admission is released."""
    stand.governor.outbox_full = True
    reply = await stand.post(chat())
    assert reply.status == 503
    end, record = await stand.one_end()
    assert (end.kind, record.status) == ("voided", 503)
    assert stand.simulator.served.last == 0


async def test_defect_is_a_500_with_the_request_id(stand: Stand) -> None:
    """The client learns what to quote and nothing of the cause."""
    stand.governor.broken = True
    reply = await stand.post(chat())
    assert reply.status == 500
    message_text = openai_error(reply)["message"]
    assert reply.headers["x-request-id"] in message_text
    assert "defect" not in message_text
    nothing_happened(stand)


def head(stand: Stand, rest: bytes) -> bytes:
    line = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    return line + b"authorization: Bearer " + stand.secret.encode() + b"\r\n" + rest


async def raw(stand: Stand, rest: bytes) -> bytes:
    """Send a request as it is and read what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(head(stand, rest))
    answer = b""
    async with asyncio.timeout(5):
        while b"\r\n\r\n" not in answer:
            answer += await reader.read(65536)
    writer.close()
    return answer
