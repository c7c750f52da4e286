"""Attacks on the whole data plane, whose provider writes down what arrives. SECURITY.md lists them with others."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.gateway.conftest import PROVIDER_KEY, Stand, chat, patient, settings_for
from tests.gateway.test_choke_point import FORM, form
from tollkeeper.simulator import Simulator

ANSWER = b'{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


class Provider:
    """Answers every request with the same bytes, and keeps what it was sent."""

    def __init__(self, answer: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> None:
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        self.answer = head % (status, headers, len(answer)) + answer
        self.requests: list[tuple[bytes, bytes]] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Provider"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/v1"
        try:
            yield self
        finally:
            server.close()


@asynccontextmanager
async def standing(tmp_path: Path, simulator: Simulator, provider: Provider) -> AsyncIterator[Stand]:
    async with provider.running():
        stand = Stand(tmp_path, patient(settings_for(provider.url)), simulator)
        stand.key()
        async with stand.running():
            yield stand


async def raw(stand: Stand, data: bytes) -> bytes:
    """Bytes as they are, and all that comes back until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(data)

    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


def request(stand: Stand, target: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [b"POST %b HTTP/1.1" % target, b"authorization: Bearer " + stand.secret.encode(), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_a_client_cannot_choose_the_upstream_nor_get_its_headers_there(
    tmp_path: Path, simulator: Simulator
) -> None:
    """By target, host, forwarding headers or fields of the body: one address, and only headers of the allow-list."""
    body = msgspec.json.encode(
        chat(base_url="http://evil.example", api_base="http://evil.example", api_key="sk-mine")
    )
    headers = (
        *(b"host: evil.example", b"x-forwarded-host: evil.example", b"x-original-url: /evil", b"cookie: a=b"),
        *(b"x-api-key: sk-mine", b"api-key: sk-mine", b"openai-organization: org-mine", b"openai-project: p"),
        *(b"x-tollkeeper-provider: http://evil.example", b"forwarded: host=evil.example", b"te: trailers"),
        *(b"connection: close, authorization", b"content-type: text/evil", b"content-length: %d" % len(body)),
    )
    async with standing(tmp_path, simulator, provider := Provider(ANSWER)) as stand:
        for target in (b"/v1/chat/completions", b"http://evil.example/v1/chat/completions"):
            answer = await raw(stand, request(stand, target, *headers, body=body))
            assert answer.startswith(b"HTTP/1.1 200"), answer
        for head, _ in provider.requests:
            line, *lines = head.decode().strip().split("\r\n")
            assert line == "POST /base/v1/chat/completions HTTP/1.1"
            told = dict(entry.split(": ", 1) for entry in lines)
            assert told.pop("authorization") == f"Bearer {PROVIDER_KEY}"
            assert told.pop("host") == provider.url.split("/")[2]
            assert set(told) == {
                *("content-type", "accept", "accept-encoding", "user-agent", "x-request-id", "content-length")
            }
            assert told["content-type"] == "application/json" and stand.secret not in head.decode()


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 5",
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: 5, 6",
        b"content-length: 0x5",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
        b"transfer-encoding : chunked",
        b"transfer-encoding:\x0bchunked",
        b"x: y\r\n folded: z\r\ncontent-length: 5",
    ],
)
async def test_a_smuggled_request_reaches_nobody(stand: Stand, framing: bytes) -> None:
    """What frames a body in two ways is refused, and what hides behind it is never served."""
    hidden = msgspec.json.encode(chat())
    second = request(stand, b"/v1/chat/completions", b"host: x", b"content-length: %d" % len(hidden), body=hidden)
    answer = await raw(stand, request(stand, b"/v1/chat/completions", b"host: x", framing) + b"0\r\n\r\n" + second)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1, answer
    await stand.settled()
    assert stand.simulator.served.last == 0 and not stand.governor.granted


async def test_compressed_answers_are_not_unpacked(tmp_path: Path, simulator: Simulator) -> None:
    """A bomb from the provider's side: an error, charged at the hold, whatever it would have unpacked to."""
    bomb = gzip.compress(b"0" * 50_000_000)
    provider = Provider(bomb, headers=b"content-encoding: gzip\r\n")
    async with standing(tmp_path, simulator, provider) as stand:
        reply = await stand.post(chat(max_tokens=5))
        assert reply.status == 502 and b"compressed" in reply.body
        end, _ = await stand.one_end()
        assert end.kind == "presumed"


@pytest.mark.parametrize("path", ["/chat/completions", "/audio/transcriptions", "/files"])
async def test_compressed_requests_are_refused_unread(stand: Stand, path: str) -> None:
    body = form("file", b"x", model="whisper-1")
    headers = {"content-encoding": "gzip", "content-type": FORM}
    reply = await stand.post(gzip.compress(body), path, headers=headers)
    assert reply.status == 415 and stand.simulator.served.last == 0


@pytest.mark.parametrize("status", [b"400 Bad", b"401 No", b"403 No", b"404 No", b"429 No", b"500 No"])
async def test_a_providers_error_does_not_tell_its_key(tmp_path: Path, simulator: Simulator, status: bytes) -> None:
    """Not even where the provider repeats it."""
    told = b'{"error":{"message":"Incorrect API key provided: %b"}}' % PROVIDER_KEY.encode()
    provider = Provider(told, status=status, headers=b"x-api-key: %b\r\n" % PROVIDER_KEY.encode())
    async with standing(tmp_path, simulator, provider) as stand:
        reply = await stand.post(chat(max_tokens=5))
        assert reply.status >= 400
        assert PROVIDER_KEY.encode() not in reply.body
        assert PROVIDER_KEY not in str(reply.headers)


async def test_headers_of_a_provider_are_not_passed_on(tmp_path: Path, simulator: Simulator) -> None:
    """No cookie, no redirect, no policy of the provider's: only its request id, cleaned."""
    theirs = b"set-cookie: a=b\r\nlocation: http://evil.example\r\nx-request-id: up-1\r\n"
    theirs += b"access-control-allow-origin: *\r\n"
    async with standing(tmp_path, simulator, Provider(ANSWER, headers=theirs)) as stand:
        reply = await stand.post(chat(max_tokens=5))
        assert reply.status == 200 and reply.headers["x-upstream-request-id"] == "up-1"
        assert not {"set-cookie", "location", "access-control-allow-origin"} & set(reply.headers)


async def test_redirects_are_not_followed(tmp_path: Path, simulator: Simulator) -> None:
    """Our key would go wherever the provider, or who poses as it, says."""
    theirs = b"location: http://127.0.0.1:1/\r\n"
    async with standing(tmp_path, simulator, provider := Provider(ANSWER, b"307 Moved", theirs)) as stand:
        assert (await stand.post(chat(max_tokens=5))).status == 502
        assert len(provider.requests) == 1


@pytest.mark.parametrize("name", ["../../models", "a\r\nx-evil: 1", "a b", "%2e%2e%2f", "a?b=c#d"])
async def test_a_models_name_is_no_path(tmp_path: Path, simulator: Simulator, name: str) -> None:
    """It goes into the body alone, or is refused."""
    async with standing(tmp_path, simulator, provider := Provider(ANSWER)) as stand:
        for model in (f"sim/{name}", f"sim-azure/{name}"):
            await stand.post(chat(model=model, max_tokens=5))
        for head, body in provider.requests:
            assert head.startswith(b"POST /base/v1/chat/completions HTTP/1.1\r\n"), head
            assert b"x-evil" not in head and msgspec.json.decode(body)["model"] == name
