"""HTTP on a client's connection: what a hostile, careless or slow client may send, and what it gets back."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.app import connection as rules
from tollkeeper.app.connection import Connection, Shared
from tollkeeper.gateway import asgi as gateway

LINGER_S = 0.3


class Echo:
    """Answers with what it was asked. `/early` answers before it reads, `/held` waits for `release`."""

    def __init__(self) -> None:
        self.release, self.asked = asyncio.Event(), asyncio.Event()
        self.served: list[str] = []
        self.ends: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.served.append(path)
        self.asked.set()
        if path == "/held":
            await self.release.wait()
        body, more = b"", path != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ends.append(f"{path} left")
                return
            body, more = body + message["body"], message["more_body"]
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for part in (b"one", b"", b"two"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        if path == "/flood":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(400):
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
                self.ends.append("sent")
            await send({"type": "http.response.body", "body": b""})
            return
        if path == "/empty":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        query = scope["query_string"]
        text = f"{scope['method']} {path} {query.decode()} {len(body)} ".encode() + body[:20]
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(text)), (b"x-answer", b"yes")],
            }
        )
        await send({"type": "http.response.body", "body": text})


class Client:
    """Raw bytes to a listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), 10)

    async def all(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 10)

    async def nothing(self) -> None:
        """Nothing has come, after the server had every chance."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), 0.05)


class Served:
    """A listener for one application."""

    def __init__(self, application: Any, connections_max: int = 100) -> None:
        self.shared = Shared(application, connections_max)
        self.port = 0
        self.clients: list[Client] = []

    async def client(self) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]

    async def ask(self, data: bytes) -> bytes:
        client = await self.client()
        client.write(data)
        return await client.all()


@asynccontextmanager
async def served(application: Any, **options: Any) -> AsyncIterator[Served]:
    listener = Served(application, **options)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(listener.shared), "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        for client in listener.clients:
            client.writer.transport.abort()
        for connection in tuple(listener.shared.connections):
            connection.abort()
        if listener.shared.tasks:
            await asyncio.wait(tuple(listener.shared.tasks), timeout=5)


def request(path: str = "/", body: bytes = b"", *, close: bool = False, method: str = "POST") -> bytes:
    end = b"connection: close\r\n" if close else b""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n".encode() + end + b"\r\n" + body


def statuses(answer: bytes) -> list[int]:
    """Of the heads in what came back."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


async def test_a_whole_answer_leaves_in_one_write() -> None:
    """Head and body together: the client gets them from one read."""
    async with served(Echo()) as listener:
        client = await listener.client()
        client.write(request("/a?b=c", b"hello"))
        answer = await asyncio.wait_for(client.reader.read(65_536), 10)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: ")
        assert answer.endswith(b"\r\n\r\nPOST /a b=c 5 hello")
        assert b"date: " in answer and b"connection" not in answer


async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    """Also when the first takes its time; each runs only after the one before it."""
    async with served(echo := Echo()) as listener:
        client = await listener.client()
        client.write(request("/held", b"1") + request("/b", b"22") + request("/c", b"333", close=True))
        await echo.asked.wait()
        await client.nothing()
        assert echo.served == ["/held"]
        echo.release.set()
        answer = await client.all()
        assert statuses(answer) == [200, 200, 200]
        assert [answer.index(word) for word in (b"/held", b"/b", b"/c")] == sorted(
            answer.index(word) for word in (b"/held", b"/b", b"/c")
        )


async def test_a_large_body_behind_another_request_arrives_whole() -> None:
    """Reading stops while a request waits, and goes on when its turn has come."""
    body = b"z" * 1_000_000
    async with served(echo := Echo()) as listener:
        client = await listener.client()
        client.write(request("/held") + request("/big", body, close=True))
        await echo.asked.wait()
        echo.release.set()
        assert b"POST /big  1000000 " in await client.all()


async def test_too_many_requests_sent_ahead_are_refused() -> None:
    """What came before them is answered; then the connection ends."""
    async with served(echo := Echo()) as listener:
        client = await listener.client()
        client.write(request("/held") + request("/x") * (rules.PIPELINED_MAX + 5))
        await echo.asked.wait()
        echo.release.set()
        answer = await client.all()
        assert statuses(answer) == [200] * (rules.PIPELINED_MAX + 1) + [400]
        assert answer.endswith(b"Too many requests were sent without waiting for their answers.")


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length : 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\nx: a\rb\r\ncontent-length: 0\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 300 + b"\r\n",
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused(data: bytes) -> None:
    """One 400 and the end of the connection; a request hidden behind it is never run."""
    async with served(echo := Echo()) as listener:
        answer = await listener.ask(data + request("/smuggled"))
        assert statuses(answer) == [400]
        assert echo.served in ([], ["/"])  # at most the request itself was begun, and saw its client leave
        assert "/smuggled" not in echo.served


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "endless"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\nx-a: ", b"a"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx", b"a"),
        (CHUNKED + b"2\r\nhi\r\n0\r\nx-a: ", b"a"),
        (CHUNKED + b"2\r\nhi\r\n0\r\nx", b"a"),
        (CHUNKED + b"2;x=", b"a"),
        (b"", b"\r\n"),
    ],
    ids=repr,
)
async def test_what_never_ends_is_refused_before_it_fills_the_memory(begin: bytes, endless: bytes) -> None:
    """A field, a trailer or a chunk's extension: the parser keeps some of them until they are whole."""
    async with served(Echo()) as listener:
        client = await listener.client()
        client.write(begin)
        for _ in range(10 * rules.UNHEARD_BYTES_MAX // 10_000):
            client.write(endless * (10_000 // len(endless)))
        assert statuses(await client.all()) == [400]


async def test_a_body_that_becomes_unreadable_is_told_to_both_sides() -> None:
    """The application sees a client that left, the client a 400."""
    async with served(echo := Echo()) as listener:
        client = await listener.client()
        client.write(b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await echo.asked.wait()
        client.write(b"zz\r\n")
        assert statuses(await client.all()) == [400]
        assert echo.ends == ["/x left"]


async def test_chunked_bodies_of_any_cut_arrive_whole() -> None:
    """Byte by byte, with an extension and a trailer, which is dropped."""
    data = (
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        b"3;q=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nx-trailer: y\r\n\r\n"
    )
    async with served(Echo()) as listener:
        client = await listener.client()
        for i in range(len(data)):
            client.write(data[i : i + 1])
            await asyncio.sleep(0)
        assert (await client.all()).endswith(b"POST /x  13 abc0123456789")


async def test_an_answer_before_the_body_ends_the_connection_in_order() -> None:
    """What is left of the body is not read; the answer is not lost to a reset while the client still sends."""
    async with served(Echo()) as listener:
        client = await listener.client()
        client.write(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\n\r\n" + b"x" * 500_000)
        answer = await client.all()
        assert statuses(answer) == [200]
        assert b"connection: close" in answer


async def test_expect_100_continue_is_answered_when_the_body_is_wanted() -> None:
    """And not when the answer comes first."""
    async with served(Echo()) as listener:
        client = await listener.client()
        head = (
            b"POST %b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"
        )
        client.write(head % b"/x")
        assert await client.until(b"\r\n\r\n") == rules.CONTINUE
        client.write(b"hello")
        assert (await client.all()).endswith(b"5 hello")
        assert statuses(await listener.ask(head % b"/early")) == [200]


async def test_streams_are_chunked_and_those_of_http_10_end_with_the_connection() -> None:
    """An empty part is no chunk, which would be the end."""
    async with served(Echo()) as listener:
        answer = await listener.ask(request("/stream", close=True))
        assert b"transfer-encoding: chunked\r\n" in answer
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        old = await listener.ask(b"GET /stream HTTP/1.0\r\n\r\n")
        assert b"chunked" not in old and old.endswith(b"\r\n\r\nonetwo")


async def test_answers_without_a_body() -> None:
    """HEAD has the length and no body; 204 has neither."""
    async with served(Echo()) as listener:
        head = await listener.ask(request("/x", close=True, method="HEAD"))
        assert head.endswith(b"\r\n\r\n") and b"content-length: 1" in head
        empty = await listener.ask(request("/empty", close=True))
        assert empty.endswith(b"\r\n\r\n") and b"chunked" not in empty and b"content-length" not in empty


async def test_an_upgrade_is_ignored_and_nothing_after_it_is_read() -> None:
    """As RFC 9110 allows: the request is answered as if it had not asked."""
    async with served(echo := Echo()) as listener:
        data = b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
        assert statuses(await listener.ask(data + request("/y"))) == [200]
        assert echo.served == ["/x"]


async def test_a_client_that_reads_slowly_holds_the_application_back() -> None:
    """What waits to be sent is bounded by the transport's high-water mark."""
    async with served(echo := Echo()) as listener:
        client = await listener.client()
        client.write(request("/flood", close=True))
        await echo.asked.wait()
        before = -1
        while len(echo.ends) != before:
            before = len(echo.ends)
            await asyncio.sleep(0.05)
        assert 0 < before < 300
        assert (await client.all()).count(b"x") >= 400 * 65_536


async def test_a_client_that_leaves_is_noticed_by_whoever_waits() -> None:
    """In `receive`, and in a `send` that waits for it to read."""
    async with served(echo := Echo()) as listener:
        client = await listener.client()
        client.write(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab")
        await echo.asked.wait()
        client.writer.close()
        flood = await listener.client()
        flood.write(request("/flood"))
        await flood.until(b"\r\n\r\n")
        flood.writer.transport.abort()
        async with asyncio.timeout(10):
            while listener.shared.tasks:
                await asyncio.wait(tuple(listener.shared.tasks))
        assert "/x left" in echo.ends
        assert listener.shared.connections == set()


@pytest.mark.parametrize("value", [b"a\r\nx-evil: 1", b"a\nb", b"a\0b", b"a\rb"])
async def test_a_header_cannot_be_split(value: bytes) -> None:
    """A response with a line break in a header is a 500 without it."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-user", value)]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with served(application) as listener:
        answer = await listener.ask(request(close=True))
        assert statuses(answer) == [500] and b"evil" not in answer


@pytest.mark.parametrize(("stated", "body"), [(b"5", b"123456"), (b"5", b"1234")])
async def test_a_length_that_is_not_kept_cuts_the_connection(stated: bytes, body: bytes) -> None:
    """Rather than leave the client with a body that ends in the next answer."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", stated)]})
        await send({"type": "http.response.body", "body": body[:2], "more_body": True})
        await send({"type": "http.response.body", "body": body[2:]})

    async with served(application) as listener:
        client = await listener.client()
        client.write(request() + request())
        try:
            answer = await client.all()
        except ConnectionResetError:
            answer = b""
        assert answer.count(b"HTTP/1.1") <= 1 and not answer.endswith(body)


async def test_a_framing_header_of_the_application_is_left_out() -> None:
    """It cannot contradict ours."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"2"), (b"transfer-encoding", b"chunked"), (b"connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async with served(application) as listener:
        answer = await listener.ask(request(close=True))
        assert b"transfer-encoding" not in answer and answer.endswith(b"\r\n\r\nok")
        assert answer.count(b"connection:") == 1


@asynccontextmanager
async def theirs(application: Any) -> AsyncIterator[int]:
    """The same application under uvicorn."""
    config = uvicorn.Config(application, lifespan="off", log_level="critical", ws="none", http="httptools", port=0)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.force_exit = True
        await server.shutdown()


METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE"])
PATHS = st.sampled_from(["/", "/a/b", "/stream", "/empty", "/%41%20b", "/x?y=z&%20", "/?"])


@st.composite
def conversations(draw: Callable[..., Any]) -> list[bytes]:
    """A few requests, sent ahead, cut anywhere."""
    data = b""
    count = draw(st.integers(1, 4))
    for number in range(count):
        last = number == count - 1
        method, path, body = draw(METHODS), draw(PATHS), draw(st.binary(max_size=40))
        end = "connection: close\r\n" if last else ""
        if draw(st.booleans()):
            chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data += f"{method} {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{end}\r\n".encode()
            data += chunks + b"0\r\n\r\n"
        else:
            data += f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{end}\r\n".encode() + body
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_answers_are_those_of_uvicorn() -> None:
    """Random conversations, cut anywhere, get the same status lines, framing and bodies as from uvicorn."""

    async def converse(port: int, parts: list[bytes]) -> bytes:
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        for part in parts:
            client.write(part)
            await asyncio.sleep(0)
        answer = await client.all()
        client.writer.close()
        return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith(b"date: "))

    loop = asyncio.new_event_loop()
    stack: list[Any] = []

    async def start() -> tuple[int, int]:
        ours, other = served(Echo()), theirs(Echo())
        stack.extend((ours, other))
        return (await ours.__aenter__()).port, await other.__aenter__()

    our_port, their_port = loop.run_until_complete(start())

    @settings(max_examples=150, deadline=None)
    @given(conversations())
    def compare(parts: list[bytes]) -> None:
        ours, other = (loop.run_until_complete(converse(port, parts)) for port in (our_port, their_port))
        assert ours == other

    try:
        compare()
    finally:
        for part in stack:
            loop.run_until_complete(part.__aexit__(None, None, None))
        loop.close()


async def test_a_closed_connection_leaves_nothing_to_the_collector() -> None:
    """Connection and parser know each other; the end of a connection parts them."""
    async with served(Echo()) as listener:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert statuses(await listener.ask(request(close=True))) == [200]
            async with asyncio.timeout(60):
                while listener.shared.connections or listener.shared.tasks:
                    await asyncio.sleep(0.005)
            left = [its for its in gc.get_objects() if isinstance(its, Connection) and its.shared is listener.shared]
        finally:
            gc.enable()
    assert len(left) <= 1  # the last one may still be on its way out


class Watching:
    """Takes its requests as clients, and notes who leaves."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.waits, self.over = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("every request is taken as a client")

    async def direct(self, client: gateway.Client) -> None:
        path = client.path
        client.turn_slow()
        client.watch(lambda: self.told.append(path), lambda: None)
        if path == "/nevermind":
            client.unwatch()
        if path == "/answered":
            await client.respond(204, "", b"")
            client.unwatch()
        self.waits.set()
        await self.over.wait()
        client.watch(lambda: self.told.append(f"{path} late"), lambda: None)


async def test_who_asks_is_told_when_a_client_leaves() -> None:
    """Once, whether it leaves before or after; not after the answer, and not who has asked no more."""
    application = Watching()
    async with served(application) as listener:
        for path in ("/left", "/nevermind", "/answered"):
            application.waits.clear()
            application.over.clear()
            client = await listener.client()
            client.write(request(path))
            await asyncio.wait_for(application.waits.wait(), 60)
            client.writer.transport.abort()
            async with asyncio.timeout(60):
                while listener.shared.connections:
                    await asyncio.sleep(0.005)
                application.over.set()
                while listener.shared.tasks:
                    await asyncio.sleep(0.005)
    assert application.told == ["/left", "/left late", "/nevermind late"]
