"""The upstream client against real sockets that misbehave: what failed, and can a byte have been sent?"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from tollkeeper.domain.errors import Fault, UpstreamError
from tollkeeper.gateway.http1_pool import Http1Upstream
from tollkeeper.gateway.upstream import Upstream
from tollkeeper.gateway.upstream_aiohttp import AiohttpUpstream
from tollkeeper.settings import ProviderSettings

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
made: type[Http1Upstream] | type[AiohttpUpstream] = Http1Upstream
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.fixture(autouse=True, params=[Http1Upstream, AiohttpUpstream])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file is a promise of each implementation."""
    monkeypatch.setitem(globals(), "made", request.param)


@asynccontextmanager
async def listening(
    handle: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A server that does with each connection what the test says; gives its base URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handle(reader, writer)
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    try:
        named = f"[{host}]" if ":" in host else host
        yield f"{'http' if tls is None else 'https'}://{named}:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def upstream_to(base_url: str, **settings: float) -> AsyncIterator[Upstream]:
    timeouts = {"connect_timeout_s": 1.0, "first_byte_timeout_s": 1.0, "idle_timeout_s": 0.3} | settings
    provider = ProviderSettings(base_url=base_url, dialect="openai", **timeouts)  # type: ignore[arg-type]
    upstream = made({"p": provider})
    try:
        yield upstream
    finally:
        await upstream.close()


async def request_head(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(li[15:]) for li in head.lower().split(b"\r\n") if li.startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    return head


async def failure(upstream: Upstream, body: bytes = b"{}") -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        response = await upstream.send("p", "/chat", {}, body)
        try:
            await response.read()
        finally:
            response.close()
    return caught.value


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


async def test_exchange_sends_only_what_it_was_given() -> None:
    """The request carries our headers, identity encoding and nothing of the library's own; redirects are not followed
    and cookies not kept."""
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append(await request_head(reader))
            writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\nset-cookie: a=b\r\n")
            writer.write(b"content-length: 2\r\n\r\nhi")
            await writer.drain()

    async with listening(handle) as url, upstream_to(url) as upstream:
        for _ in range(2):
            headers = {"authorization": "Bearer sk", "accept-encoding": "identity", "accept": "application/json"}
            response = await upstream.send("p", "/chat/completions", headers, b'{"a":1}')
            assert response.status == 302
            assert await response.read() == b"hi"
            assert await response.next_chunk() == b""
            response.close()
            response.close()
    assert len(heads) == 2, "the second request went over the same connection"
    for head in heads:
        names = {line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert names <= {b"host", b"authorization", b"accept", b"accept-encoding", b"content-length", b"content-type"}


async def test_refused_port_was_not_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        async with upstream_to(url) as upstream:
            error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)
    assert "127.0.0.1" not in str(error)


async def test_unknown_name_was_not_sent() -> None:
    async with upstream_to("http://no-such-host.invalid/v1") as upstream:
        error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)


async def test_connect_timeout_was_not_sent() -> None:
    """A listener whose backlog is full takes no connection."""
    with socket.socket() as listener, socket.socket() as filler, socket.socket() as more:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in (filler, more):
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(listener.getsockname())
        async with upstream_to(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.2) as upstream:
            error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_TIMEOUT, False)


async def test_pool_timeout_was_not_sent() -> None:
    """With all connections busy a request waits for one no longer than the connect timeout."""

    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        asked.set()
        await asyncio.sleep(60)

    async with (
        listening(silent) as url,
        upstream_to(url, connections_max=1, connect_timeout_s=0.5, first_byte_timeout_s=60.0) as upstream,
    ):
        first = asyncio.create_task(upstream.send("p", "/chat", {}, b"{}"))
        await asyncio.wait_for(asked.wait(), 60)
        error = await failure(upstream)
        assert (error.fault, error.sent) == (Fault.UPSTREAM_TIMEOUT, False)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_tls_failure_was_not_sent() -> None:
    """Speaking TLS to a plain port fails before the request."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with listening(plain) as url, upstream_to(url.replace("http:", "https:")) as upstream:
        error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)
    assert ssl.OPENSSL_VERSION  # the failure came from TLS, not from a missing module


async def accept_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def reset_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def reset_after_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    reset(writer)


async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def half_headers_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    writer.write(OK)
    await writer.drain()


async def half_headers_then_silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    writer.write(OK)
    await asyncio.sleep(30)


async def dripping_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nx-long: ")
    for _ in range(300):
        writer.write(b"a")
        await asyncio.sleep(0.1)


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    writer.write(b"\x00\x01\x02 this is not HTTP at all\r\n\r\n")
    await writer.drain()


async def endless_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * 100_000 + b"\r\n\r\n")
    await writer.drain()


async def too_many_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_head(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(1000)) + b"\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("handle", "fault"),
    [
        (accept_then_close, Fault.UPSTREAM_DOWN),
        (reset_unread, Fault.UPSTREAM_DOWN),
        (reset_after_reading, Fault.UPSTREAM_DOWN),
        (half_headers_then_close, Fault.UPSTREAM_DOWN),
        (never_answers, Fault.UPSTREAM_TIMEOUT),
        (half_headers_then_silence, Fault.UPSTREAM_TIMEOUT),
        (dripping_headers, Fault.UPSTREAM_TIMEOUT),
        (garbage, Fault.UPSTREAM_BROKEN),
        (endless_header, Fault.UPSTREAM_BROKEN),
        (too_many_headers, Fault.UPSTREAM_BROKEN),
    ],
)
async def test_no_status_back_counts_as_sent(handle: Handler, fault: Fault) -> None:
    """Once connected, whatever happens before a status line may have cost something."""
    patience_s = 0.3 if fault is Fault.UPSTREAM_TIMEOUT else 60.0
    async with (
        listening(handle) as url,
        upstream_to(url, first_byte_timeout_s=patience_s, connect_timeout_s=patience_s) as upstream,
    ):
        error = await failure(upstream)
    assert (error.fault, error.sent) == (fault, True)


def body_server(*parts: bytes, pause_s: float = 0.0, rude: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if rude:
            reset(writer)

    return handle


@pytest.mark.parametrize(
    ("handle", "fault"),
    [
        (body_server(OK + b"content-length: 100\r\n\r\n", b'{"half":'), Fault.UPSTREAM_BROKEN),
        (
            body_server(OK + b"content-length: 100\r\n\r\n", b'{"half":', pause_s=0.05, rude=True),
            Fault.UPSTREAM_BROKEN,
        ),
        (body_server(OK + b"transfer-encoding: chunked\r\n\r\n", b"5\r\nhello\r\n"), Fault.UPSTREAM_BROKEN),
        (body_server(OK + b"transfer-encoding: chunked\r\n\r\n", b"zz\r\nhello\r\n"), Fault.UPSTREAM_BROKEN),
        (
            body_server(
                OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", b"\0\xffgarbage\r\n\r\n", pause_s=0.05
            ),
            Fault.UPSTREAM_BROKEN,
        ),
        (body_server(OK + b"content-length: 100\r\n\r\n", b"{", pause_s=5), Fault.UPSTREAM_TIMEOUT),
        (body_server(OK + b"content-length: 100\r\n\r\n", pause_s=5), Fault.UPSTREAM_TIMEOUT),
    ],
)
async def test_cut_and_silent_bodies_are_errors(handle: Handler, fault: Fault) -> None:
    """A body that ends before its length, or pauses longer than the idle timeout, is never taken for a whole one."""
    async with listening(handle) as url, upstream_to(url) as upstream:
        error = await failure(upstream)
    assert (error.fault, error.sent) == (fault, True)


async def test_total_timeout_ends_a_steady_drip() -> None:
    """A body that never pauses long enough is ended by the total timeout."""
    drip = body_server(OK + b"content-length: 1000\r\n\r\n", *[b"x"] * 1000, pause_s=0.05)
    async with listening(drip) as url, upstream_to(url, total_timeout_s=0.5) as upstream:
        error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_TIMEOUT, True)


async def test_body_above_the_bound_is_refused() -> None:
    handle = body_server(OK + b"content-length: 1000\r\n\r\n" + b"x" * 1000)
    async with listening(handle) as url, upstream_to(url) as upstream:
        response = await upstream.send("p", "/chat", {}, b"{}")
        with pytest.raises(UpstreamError) as caught:
            await response.read(999)
        response.close()
    assert caught.value.fault is Fault.UPSTREAM_BROKEN


async def test_chunks_come_as_they_are_sent() -> None:
    """The first chunk is there before the second was sent."""
    more = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await writer.drain()

    async with listening(handle) as url, upstream_to(url) as upstream:
        response = await upstream.send("p", "/chat", {}, b"{}")
        assert await response.next_chunk() == b"one"
        more.set()
        assert await response.next_chunk() == b"two"
        assert await response.next_chunk() == b""
        response.close()


async def test_large_body_arrives_whole() -> None:
    """Bodies above the size at which the library wants a file object are sent with their length, unchanged."""
    body = bytes(range(256)) * 12_000
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head.lower()
        seen.append(await reader.readexactly(len(body)))
        writer.write(OK + b"content-length: 2\r\n\r\n{}")
        await writer.drain()

    async with listening(handle) as url, upstream_to(url) as upstream:
        response = await upstream.send("p", "/chat", {}, body)
        assert await response.read() == b"{}"
        response.close()
    assert seen == [body]


async def test_cancelled_send_closes_the_connection() -> None:
    """Nobody goes on with an exchange that was cancelled before its headers."""
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        await reader.read()
        closed.set()

    async with listening(handle) as url, upstream_to(url, first_byte_timeout_s=30) as upstream:
        task = asyncio.create_task(upstream.send("p", "/chat", {}, b"{}"))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(2):
            await closed.wait()


async def test_idle_connections_that_the_provider_resets_are_replaced() -> None:
    """A kept connection that was reset meanwhile is not used again, and nobody complains of it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(OK + b"content-length: 2\r\n\r\n{}")
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    async with listening(handle) as url, upstream_to(url) as upstream:
        for _ in range(3):
            response = await upstream.send("p", "/chat", {}, b"{}")
            assert await response.read() == b"{}"
            response.close()
            await asyncio.sleep(0.05)
