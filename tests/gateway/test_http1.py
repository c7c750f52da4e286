"""Our HTTP/1.1 client on both event loops: what it takes for an answer, what it reuses, and when it lets go.

What it promises as any `Upstream` is in `test_upstream.py`.
"""

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import httptools
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.test_upstream import OK, Handler, listening, request_head
from tollkeeper.domain.errors import Fault, UpstreamError
from tollkeeper.gateway import http1, http1_pool
from tollkeeper.gateway.http1 import BUFFER_BYTES_MAX, Connection, Http1Response
from tollkeeper.gateway.http1_pool import Http1Upstream, Pool
from tollkeeper.gateway.upstream import FixedHeaders, RequestHeaders, Upstream
from tollkeeper.gateway.upstream_aiohttp import AiohttpUpstream
from tollkeeper.settings import ProviderSettings

HTTP = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HTTP + b"transfer-encoding: chunked\r\n\r\n"


def provider(base_url: str, **changed: Any) -> ProviderSettings:
    short = {"connect_timeout_s": 1.0, "first_byte_timeout_s": 1.0, "idle_timeout_s": 0.5} | changed
    return ProviderSettings(base_url=base_url, dialect="openai", **short)


@asynccontextmanager
async def http1_to(base_url: str, **changed: Any) -> AsyncIterator[tuple[Http1Upstream, Pool]]:
    upstream = Http1Upstream({"p": provider(base_url, **changed)})
    try:
        yield upstream, upstream._pools["p"]
    finally:
        await upstream.close()


async def ask(upstream: Upstream, body: bytes = b"{}") -> bytes:
    response = await upstream.send("p", "/chat", {}, body)
    try:
        return await response.read()
    finally:
        response.close()


# ---- the reader of answers, without a network: pieces in, an outcome out


class Wire(asyncio.Transport):
    """A transport that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.paused = self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Owned:
    """An owner that counts."""

    def __init__(self) -> None:
        self.reusable = 0

    def made(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def idle(self, connection: Connection) -> None:
        self.reusable += 1


class Outcome(msgspec.Struct):
    """What a request came to. `fault` None: `body` is whole."""

    status: int
    body: bytes
    fault: Fault | None
    reusable: bool
    length: int | None
    """As the answer states it."""


async def take(pieces: Sequence[bytes], *, eof: bool = True) -> Outcome:
    """One exchange whose answer arrives in these pieces; the end of input follows the last one."""
    owner, wire = Owned(), Wire()
    connection = Connection(owner, asyncio.get_running_loop())
    connection.connection_made(wire)
    task = asyncio.create_task(connection.exchange(b"POST / HTTP/1.1\r\n\r\n", b"", provider("http://h"), 1e12))
    await asyncio.sleep(0)
    for piece in pieces:
        if not connection.closed:
            connection.data_received(piece)
    reusable = owner.reusable == 1 and not connection.closed
    if eof:
        connection.eof_received()
        connection.connection_lost(None)
    body, status, length = b"", 0, None
    try:
        async with asyncio.timeout(1):
            response = await task
            status = response.status
            stated = response.headers.get("content-length")
            length = None if stated is None else int(stated)
            while chunk := await response.next_chunk():
                body += chunk
    except UpstreamError as error:
        assert error.sent
        return Outcome(status, body, error.fault, reusable, length)
    finally:
        connection.close()
        assert connection._timer is None
    return Outcome(status, body, None, reusable, length)


@pytest.mark.parametrize(
    "answer",
    [
        HTTP + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HTTP + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
        HTTP + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi!",
        HTTP + b"content-length: 2\r\ncontent-length: 2\r\n\r\nhi",
        HTTP + b"content-length: -2\r\n\r\nhi",
        HTTP + b"content-length: +2\r\n\r\nhi",
        HTTP + b"content-length: 0x2\r\n\r\nhi",
        HTTP + b"content-length: 2, 2\r\n\r\nhi",
        HTTP + b"content-length: 2 2\r\n\r\nhi",
        HTTP + b"content-length:\r\n\r\nhi",
        HTTP + b"content-length: 99999999999999999999\r\n\r\nhi",
        HTTP + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HTTP + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        HTTP + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        HTTP + b"transfer-encoding: identity\r\n\r\nhi",
        HTTP + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HTTP + b"a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n",
        HTTP + b"a: 1\rb: 2\r\ncontent-length: 0\r\n\r\n",
        HTTP + b"a: 1\nb: 2\r\ncontent-length: 0\r\n\r\n",
        HTTP + b"a: \0\r\ncontent-length: 0\r\n\r\n",
        HTTP + b"a : 1\r\ncontent-length: 0\r\n\r\n",
        HTTP + b": 1\r\ncontent-length: 0\r\n\r\n",
        HTTP + b"nothing\r\ncontent-length: 0\r\n\r\n",
        HTTP + b" a: 1\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"http/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 103 Hints\r\ncontent-length: 3\r\n\r\nabc" + OK + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 200 " + b"a" * 70_000,
        HTTP + b"a: " + b"a" * 70_000 + b"\r\n\r\n",
        HTTP + b"a: b\r\n" * 129 + b"\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:70]),
)
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
async def test_head_that_could_mean_two_things_is_no_answer(answer: bytes, pieces: str) -> None:
    """Refused, not interpreted: an answer is either unmistakable or broken."""
    outcome = await take([answer] if pieces == "whole" else split(answer, range(len(answer))))
    assert (outcome.status, outcome.fault, outcome.reusable) == (0, Fault.UPSTREAM_BROKEN, False)


@pytest.mark.parametrize(
    "body",
    [
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\ncontent-length: 5\r\n\r\n",
        b"5;" + b"a" * 400_000,
        b"5\r\nhello\r\n0\r\na: " + b"a" * 400_000,
        b"5\r\nhello\r\n0\r\n" + b"a: b\r\n" * 60_000 + b"\r\n",
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_chunks_out_of_form_or_bounds_cut_the_body(body: bytes) -> None:
    outcome = await take(split(CHUNKED + body, range(0, len(body), 60_000)))
    assert (outcome.status, outcome.fault, outcome.reusable) == (200, Fault.UPSTREAM_BROKEN, False)
    assert outcome.body in (b"", b"hello")


@pytest.mark.parametrize(
    ("answer", "body", "reusable"),
    [
        (HTTP + b"content-length: 2\r\n\r\nhi", b"hi", True),
        (HTTP + b"content-length: 2 \r\n\r\nhi", b"hi", True),
        (HTTP + b"content-length: 0\r\n\r\n", b"", True),
        (HTTP + b"a:\r\ncontent-length: 2\r\n\r\nhi", b"hi", True),
        (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", b"hi", True),
        (CHUNKED + b"2;a=b\r\nhi\r\n0\r\nx: y\r\n\r\n", b"hi", True),
        (CHUNKED + b"0000002\r\nhi\r\n0\r\n\r\n", b"hi", True),
        (b"HTTP/1.1 204 None\r\n\r\n", b"", True),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\na: b\r\n\r\n" + OK + b"content-length: 0\r\n\r\n",
            b"",
            True,
        ),
        (HTTP + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
        (HTTP + b"connection: keep-alive, close\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi", b"hi", True),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi", False),
        (HTTP + b"\r\nhi", b"hi", False),
        (HTTP + b"content-length: 2\r\n\r\nhi!", b"hi", False),
        (HTTP + b"content-length: 2\r\n\r\nhi\r\n", b"hi", False),
        (HTTP + b"content-length: 2\r\n\r\nhi\r\n\r\n", b"hi", False),
        (HTTP + b"content-length: 2\r\n\r\nhi" + OK + b"content-length: 1\r\n\r\n!", b"hi", False),
        (HTTP + b"content-length: 0\r\n\r\n\r\n", b"", False),
        (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n\r\n", b"hi", False),
        (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n5\r\nhello\r\n", b"hi", False),
    ],
    ids=repr,
)
async def test_what_ends_clean_is_used_again(answer: bytes, body: bytes, reusable: bool) -> None:
    """Bytes after an answer never belong to it, and what brought them carries no other request."""
    outcome = await take([answer])
    assert (outcome.body, outcome.fault, outcome.reusable) == (body, None, reusable)


async def test_arrived_bytes_are_there_at_once() -> None:
    """What one tick of the event loop brought is taken without waiting for another, in one piece."""
    loop = asyncio.get_running_loop()
    connection = Connection(Owned(), loop)
    connection.connection_made(Wire())
    task = asyncio.create_task(connection.exchange(b"", b"", provider("http://h"), loop.time() + 9))
    await asyncio.sleep(0)
    connection.data_received(CHUNKED + b"3\r\none\r\n3\r\ntwo\r\n")
    response = await task
    with pytest.raises(StopIteration) as stopped:
        response.next_chunk().send(None)
    assert stopped.value.value == b"onetwo"
    assert repr(connection) == (
        "<Connection <Http1Response 200 open received=6 buffered=0> requests=1 reading=True writable=True>"
    )
    response.close()
    assert repr(connection) == "<Connection closed requests=1 reading=True writable=True>"
    assert repr(response) == "<Http1Response 200 failed received=6 buffered=0>"


async def test_headers_by_any_case_and_the_first_of_several() -> None:
    loop = asyncio.get_running_loop()
    connection = Connection(Owned(), loop)
    connection.connection_made(Wire())
    task = asyncio.create_task(connection.exchange(b"", b"", provider("http://h"), loop.time() + 9))
    await asyncio.sleep(0)
    connection.data_received(HTTP + b"X-Id: \xe9 \r\nx-iD: other\r\nContent-Length: 0\r\n\r\n")
    headers = (await task).headers
    assert headers["x-ID"] == headers.get("X-Id") == "é"
    assert (headers.get("none"), headers.get("none", "1"), "x-id" in headers) == (None, "1", True)
    assert (list(headers), len(headers)) == (["x-id", "content-length"], 2)
    connection.close()


class Fields:
    """The plain way to read a head: the parser tells each field."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t"))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.complete = True
        raise RuntimeError("the rest is no matter")


FIELD_NAMES = st.one_of(
    st.sampled_from(["Content-Type", "X-Request-Id", "x-request-id", "request-id", "Date", "Retry-After", "A", "b"]),
    st.text("abcXYZ-_.0", min_size=1, max_size=6),
)
FIELD_VALUES = st.one_of(
    st.sampled_from(["", " ", "x-request-id: 1", "a:b", ":", "\t tab \t", "HTTP/1.1 200 OK", "\xe9"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12),
)
SPACES = st.sampled_from(["", " ", "\t", "  "])


@given(st.lists(st.tuples(FIELD_NAMES, SPACES, FIELD_VALUES, SPACES), max_size=12), st.sampled_from(["", "\r\n"]))
@settings(max_examples=300, deadline=None)
def test_a_head_that_is_searched_says_what_the_parser_reads_in_it(
    fields: list[tuple[str, str, str, str]], before: str
) -> None:
    lines = "".join([f"{name}:{left}{value}{right}\r\n" for name, left, value, right in fields])
    head = f"{before}HTTP/1.1 200 OK\r\n{lines}\r\n".encode("latin-1")
    plain = Fields()
    with suppress(httptools.HttpParserCallbackError):
        httptools.HttpResponseParser(plain).feed_data(head)
    assert plain.complete

    async def run() -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(Owned(), loop)
        connection.connection_made(Wire())
        task = asyncio.create_task(connection.exchange(b"", b"", provider("http://h"), loop.time() + 9))
        await asyncio.sleep(0)
        connection.data_received(head + b"x-request-id: of the body\r\n\r\n")
        headers = (await task).headers
        assert dict(headers) == plain.found
        assert [headers.get(name.upper()) for name in plain.found] == list(plain.found.values())
        connection.close()

    asyncio.run(run())


# ---- the same, with what nobody thought of


def split(data: bytes, at: Sequence[int]) -> list[bytes]:
    """The data cut at these places."""
    places = sorted({0, len(data), *(place for place in at if 0 < place < len(data))})
    return [data[a:b] for a, b in pairwise(places)]


BODIES = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 5000])
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """A valid answer, its status and its body."""
    status = draw(st.sampled_from([200, 201, 400, 429, 503]))
    parts = draw(st.lists(BODIES, max_size=5))
    informational = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n"[
        : draw(st.sampled_from([0, 25, 60]))
    ]
    head = informational + b"HTTP/1.%d %d Reason\r\n" % (draw(st.integers(0, 1)), status)
    for name in draw(
        st.lists(st.sampled_from([b"x-empty:", b"x-text: a \xff b", b"connection: close"]), unique=True)
    ):
        head += name + b"\r\n"
    body = b"".join(parts)
    how = draw(st.sampled_from(["length", "chunked", "eof"]))
    if how == "length":
        return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body), status, body
    if how == "eof":
        return head + b"\r\n" + body, status, body
    if b"HTTP/1.0" in head:
        head = head.replace(b"HTTP/1.0", b"HTTP/1.1")
    extension = draw(st.sampled_from([b"", b";a=1", b';a="q"']))
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts if part)
    trailer = draw(st.sampled_from([b"", b"x-trailer: 1\r\n"]))
    return head + b"Transfer-Encoding: Chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n", status, body


@given(answers(), CUTS)
@settings(max_examples=300, deadline=None)
def test_any_split_gives_the_same_answer(answer: tuple[bytes, int, bytes], cuts: list[int]) -> None:
    data, status, body = answer

    async def run() -> None:
        whole, cut = await take([data]), await take(split(data, cuts))
        for outcome in (whole, cut):
            assert (outcome.status, outcome.body, outcome.fault) == (status, body, None)
        assert whole.reusable or not cut.reusable or b"\r\n\r\n" in data[-4:]

    asyncio.run(run())


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid answer with some bytes changed, taken out, put in or said twice."""
    data = bytearray(draw(answers())[0])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        piece = draw(
            st.one_of(
                st.binary(max_size=3),
                st.sampled_from(
                    [b"\r", b"\n", b"\r\n", b":", b"0", b"f", b"\0", b"Content-Length: 3\r\n", b"HTTP/1.1 "]
                ),
                st.just(bytes(data[place : place + 40])),
            )
        )
        data[place : place + size] = piece
    return bytes(data)


@given(mutated(), CUTS)
@settings(max_examples=500, deadline=None)
def test_no_mutation_hangs_crashes_or_overflows(data: bytes, cuts: list[int]) -> None:
    """Any bytes end in an answer or an UpstreamError, and never in more than the answer's length."""

    async def run() -> None:
        for pieces in ([data], split(data, cuts)):
            outcome = await take(pieces)
            if outcome.length is not None:
                assert len(outcome.body) <= outcome.length
                assert outcome.fault is not None or len(outcome.body) == outcome.length
            assert not outcome.reusable or outcome.fault is None

    asyncio.run(run())


@given(st.lists(st.tuples(answers(), CUTS), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_answers_are_what_aiohttp_takes_them_for(cases: list[tuple[tuple[bytes, int, bytes], list[int]]]) -> None:
    """Over real sockets, with another's parser as the oracle."""

    async def run() -> None:
        data, cuts = b"", list[int]()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request_head(reader)
            for piece in split(data, cuts):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

        async with listening(serve) as url:
            ours, theirs = Http1Upstream({"p": provider(url)}), AiohttpUpstream({"p": provider(url)})
            for (data, status, body), cuts in cases:  # noqa: B007 - read by the server
                seen = []
                for upstream in (ours, theirs):
                    response = await upstream.send("p", "/chat", {}, b"{}")
                    seen.append((response.status, await response.read()))
                    response.close()
                assert seen == [(status, body)] * 2
            await ours.close()
            await theirs.close()

    asyncio.run(run())


# ---- the pool


def counting(handle: Handler) -> tuple[Handler, list[int]]:
    """The handler, and a list with the connections it was called for."""
    seen: list[int] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(len(seen))
        await handle(reader, writer)

    return count, seen


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the number of the request on its connection."""
    for number in range(1000):
        await request_head(reader)
        await asyncio.sleep(0.01)
        writer.write(OK + b"content-length: 3\r\n\r\n%03d" % number)


async def test_never_more_connections_than_allowed_and_none_idle_while_requests_wait() -> None:
    handle, seen = counting(endless)
    async with listening(handle) as url, http1_to(url, connections_max=3) as (upstream, pool):
        bodies = await asyncio.gather(*(ask(upstream) for _ in range(12)))
        assert len(seen) == 3
        assert sorted(bodies) == [b"000"] * 3 + [b"001"] * 3 + [b"002"] * 3 + [b"003"] * 3
        assert repr(pool) == "<Pool live=3 idle=3 slots=0 waiting=0>"
    assert repr(pool) == "<Pool live=0 idle=0 slots=3 waiting=0 closed>"


async def test_the_connection_used_last_is_used_first() -> None:
    async with listening(endless) as url, http1_to(url) as (upstream, pool):
        await asyncio.gather(*(ask(upstream) for _ in range(3)))
        assert [await ask(upstream) for _ in range(3)] == [b"001", b"002", b"003"]
        assert len(pool._idle) == 3


async def test_who_gives_up_waiting_leaves_its_place() -> None:
    async with listening(endless) as url, http1_to(url, connections_max=1) as (upstream, pool):
        asking = [asyncio.create_task(ask(upstream)) for _ in range(5)]
        while len(pool._waiting) < 4:
            await asyncio.sleep(0)
        asking[2].cancel()
        asking[1].cancel()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert results[0] == b"000"
        assert [type(result) for result in results[1:3]] == [asyncio.CancelledError] * 2
        assert results[3:] == [b"001", b"002"]
        assert repr(pool) == "<Pool live=1 idle=1 slots=0 waiting=0>"


@pytest.mark.parametrize("turn", ["a connection", "a free slot"])
async def test_a_turn_that_comes_together_with_a_cancellation_goes_to_the_next(turn: str) -> None:
    async with listening(endless) as url, http1_to(url, connections_max=1) as (upstream, pool):
        response = await upstream.send("p", "/chat", {}, b"{}")
        await response.read()
        response.close()
        connection = pool._take()
        assert connection is not None
        waiting = [asyncio.create_task(ask(upstream)) for _ in range(2)]
        await asyncio.sleep(0)
        if turn == "a connection":
            pool.idle(connection)
        else:
            connection.close()
        waiting[0].cancel()
        with suppress(asyncio.CancelledError):
            await waiting[0]
        assert await waiting[1] == (b"001" if turn == "a connection" else b"000")
        assert repr(pool) == "<Pool live=1 idle=1 slots=0 waiting=0>"


async def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_pool, "WAITERS_MAX", 1)
    async with listening(endless) as url, http1_to(url, connections_max=1) as (upstream, _):
        first, second = (asyncio.create_task(ask(upstream)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream)
        assert (caught.value.fault, caught.value.sent) == (Fault.UPSTREAM_TIMEOUT, False)
        assert (await first, await second) == (b"000", b"001")


async def test_idle_connections_grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEPALIVE_S", 0.05)
    handle, seen = counting(endless)
    async with listening(handle) as url, http1_to(url) as (upstream, pool):
        await ask(upstream)
        await asyncio.sleep(0.15)
        assert repr(pool) == "<Pool live=0 idle=0 slots=1000 waiting=0>"
        await ask(upstream)
    assert len(seen) == 2


@pytest.mark.parametrize("after", [b"", b"\r\n", b"HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n"])
async def test_a_connection_that_speaks_or_ends_while_idle_is_replaced(after: bytes) -> None:
    """Its bytes would be taken for the next request's answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(OK + b"content-length: 2\r\n\r\nhi")
        await asyncio.sleep(0.02)
        writer.write(after)
        if after:
            await reader.read()

    counted, seen = counting(handle)
    async with listening(counted) as url, http1_to(url) as (upstream, pool):
        for _ in range(3):
            assert await ask(upstream) == b"hi"
            async with asyncio.timeout(60):
                while "idle=0" not in repr(pool):
                    await asyncio.sleep(0.005)
    assert len(seen) == 3


async def test_an_unread_answer_frees_its_connection_when_it_is_whole() -> None:
    """A slow client of ours does not keep a connection to the provider."""
    async with listening(endless) as url, http1_to(url, connections_max=1) as (upstream, _):
        first = await upstream.send("p", "/chat", {}, b"{}")
        await asyncio.sleep(0.05)
        assert await ask(upstream) == b"001"
        assert await first.read() == b"000"
        first.close()


# ---- requests


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nb: c"},
        {"x": "a\nb"},
        {"x": "a\0b"},
        {"x": "a\rb"},
        {"x\r\ny": "a"},
        {"x: y": "a"},
        {"": "a"},
        {"x y": "a"},
        {"X": "a"},
        {"x": "é"},
        {"host": "elsewhere"},
        {"content-length": "1"},
        {"transfer-encoding": "chunked"},
        {"connection": "close"},
        {"x": "1\r\n", "y": "2"},
    ],
    ids=repr,
)
async def test_headers_that_would_frame_something_else_are_not_sent(headers: dict[str, str]) -> None:
    handle, seen = counting(endless)
    async with listening(handle) as url, http1_to(url) as (upstream, _):
        with pytest.raises(UpstreamError) as caught:
            await upstream.send("p", "/chat", headers, b"{}")
        assert (caught.value.fault, caught.value.sent, seen) == (Fault.INTERNAL, False, [])
        with pytest.raises(UpstreamError):
            await upstream.send("p", "/chat HTTP/1.1\r\nx: y", {}, b"{}")
        for fixed, own in ((headers, {}), ({}, headers), ({"a": "b"}, headers)):
            with pytest.raises(UpstreamError) as caught:
                await upstream.send("p", "/chat", RequestHeaders(FixedHeaders(fixed), own), b"{}")
            assert (caught.value.fault, caught.value.sent, seen) == (Fault.INTERNAL, False, [])


async def test_fixed_headers_are_written_as_any_others() -> None:
    """The first time, and when they are known; other ones on the same path are told apart."""
    handle, _ = counting(endless)
    async with listening(handle) as url, http1_to(url) as (_, pool):
        for value in ("1", "2"):
            fixed = FixedHeaders({"accept": "*/*", "key": value})
            for number in ("a", "b"):
                head = pool._head("POST", "/chat", RequestHeaders(fixed, {"x-id": number}), 5)
                assert head == pool._head("POST", "/chat", {"accept": "*/*", "key": value, "x-id": number}, 5)
        assert len(pool._heads) == 3  # the two, and none fixed


async def test_a_body_that_is_here_is_taken_at_once() -> None:
    """Whole, once, within the bound; never a part."""
    for pieces, whole in ((1, b"abc"), (2, None)):
        loop = asyncio.get_running_loop()
        connection = Connection(Owned(), loop)
        connection.connection_made(Wire())
        task = asyncio.create_task(connection.exchange(b"", b"", provider("http://h"), loop.time() + 9))
        await asyncio.sleep(0)
        data = HTTP + b"content-length: 3\r\n\r\nabc"
        connection.data_received(data if pieces == 1 else data[:-1])
        response = await task
        assert response.whole(2) is None
        assert response.whole() == whole
        if pieces == 2:
            connection.data_received(b"c")
            assert response.whole() is None  # in two parts: it is read
            assert await response.read() == b"abc"
        assert response.whole() is None and await response.read() == b""
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_address_forms(host: str) -> None:
    """Port, path prefix, IPv6 and names: as they are in base_url so they are in the request."""
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request_head(reader))
        writer.write(OK + b"content-length: 2\r\n\r\nhi")

    async with listening(handle, host.strip("[]")) as url, http1_to(url.replace("/v1", "/a b/v1/")) as (upstream, _):
        assert await ask(upstream) == b"hi"
    port = int(url.split(":")[-1].split("/")[0])
    assert heads[0].startswith(b"POST /a%%20b/v1/chat HTTP/1.1\r\nhost: %s:%d\r\n" % (host.encode(), port))


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with addresses that refuse or stay silent is reached by the one that answers."""
    with socket.socket() as refusing, socket.socket() as silent, socket.socket() as filler:
        refusing.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        filler.connect(silent.getsockname())
        async with (
            listening(endless) as url,
            http1_to(url.replace("127.0.0.1", "name"), connect_timeout_s=3) as (
                upstream,
                pool,
            ),
        ):
            good = ("127.0.0.1", int(url.split(":")[2].split("/")[0]))
            addresses = [refusing.getsockname(), silent.getsockname(), silent.getsockname(), good]
            pool._dialer._addresses = [(socket.AF_INET, 0, address) for address in addresses]
            monkeypatch.setattr(pool._dialer, "_resolved_at", 1e12)
            assert await ask(upstream) == b"000"


# ---- flow control


async def test_a_slow_reader_slows_the_provider() -> None:
    """No more is kept than the bound and one read, and nothing of it is lost."""
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_head(reader)
        writer.write(OK + b"content-length: %d\r\n\r\n" % (64 * 2**20))
        for _ in range(1024):
            writer.write(b"x" * 2**16)
            await writer.drain()
            sent += 2**16

    async with listening(handle) as url, http1_to(url) as (upstream, _):
        response = await upstream.send("p", "/chat", {}, b"{}")
        assert isinstance(response, Http1Response)
        await asyncio.sleep(0.7)  # longer than the idle timeout, which is not for readers
        assert BUFFER_BYTES_MAX < response._buffered <= BUFFER_BYTES_MAX + 2**18
        assert sent < 32 * 2**20
        assert len(await response.read()) == 64 * 2**20
        response.close()


async def test_a_large_request_waits_for_the_provider_to_read_it() -> None:
    body = bytes(range(256)) * 40_000
    read = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        assert await reader.readexactly(len(body)) == body
        read = len(body)
        writer.write(OK + b"content-length: 2\r\n\r\nhi")
        await reader.read()

    async with listening(handle) as url, http1_to(url, connections_max=1) as (upstream, pool):
        task = asyncio.create_task(ask(upstream, body))
        await asyncio.sleep(0.05)
        (connection,) = pool._live
        assert connection._transport.get_write_buffer_size() < 2**19
        assert await task == b"hi"
        assert (read, len(pool._idle)) == (len(body), 1)


async def test_a_request_refused_before_its_end_is_not_written_further() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.sleep(1)

    async with listening(handle) as url, http1_to(url) as (upstream, pool):
        response = await upstream.send("p", "/chat", {}, b"x" * 20_000_000)
        assert (response.status, await response.read()) == (413, b"no")
        response.close()
        assert repr(pool) == "<Pool live=0 idle=0 slots=1000 waiting=0>"


async def test_a_request_that_nobody_reads_is_given_up() -> None:
    """Writing is within the deadline of the answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async with listening(handle) as url, http1_to(url, first_byte_timeout_s=0.2) as (upstream, _):
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream, b"x" * 20_000_000)
    assert (caught.value.fault, caught.value.sent) == (Fault.UPSTREAM_TIMEOUT, True)


async def test_bytes_that_carry_no_body_do_not_put_off_the_deadline() -> None:
    """A chunk extension can drip for ever; the time between two pieces of a body is what counts."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(CHUNKED + b"2\r\nhi\r\n1;a=")
        for _ in range(100):
            writer.write(b"a")
            await asyncio.sleep(0.05)

    async with listening(handle) as url, http1_to(url, idle_timeout_s=0.2) as (upstream, _):
        response = await upstream.send("p", "/chat", {}, b"{}")
        assert await response.next_chunk() == b"hi"
        with pytest.raises(UpstreamError) as caught:
            await response.next_chunk()
        response.close()
    assert caught.value.fault is Fault.UPSTREAM_TIMEOUT


# ---- the end


@pytest.mark.parametrize(
    "answer", [b"", OK + b"content-length: 10\r\n\r\nhello"], ids=["before headers", "in the body"]
)
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_the_provider_sees_the_end_at_once(answer: bytes, how: str) -> None:
    """A cancelled task or a response closed early closes the connection within 100 ms."""
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(answer)
        arrived.set()
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with listening(handle) as url, http1_to(url, idle_timeout_s=9, first_byte_timeout_s=9) as (upstream, pool):
        if how == "close" and answer:
            response = await upstream.send("p", "/chat", {}, b"{}")
            assert await response.next_chunk() == b"hello"
            response.close()
            with pytest.raises(UpstreamError):
                await response.next_chunk()
        else:
            task = asyncio.create_task(ask(upstream))
            await arrived.wait()
            await asyncio.sleep(0.05)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        async with asyncio.timeout(0.1):
            await gone.wait()
        assert repr(pool) == "<Pool live=0 idle=0 slots=1000 waiting=0>"


async def test_nothing_is_left_after_close() -> None:
    """No task, no timer, no socket, whatever was going on."""
    loop = asyncio.get_running_loop()
    tasks_before = asyncio.all_tasks()
    async with listening(endless) as url:
        async with http1_to(url, connections_max=4) as (upstream, pool):
            await asyncio.gather(*(ask(upstream) for _ in range(3)))
            doomed = [asyncio.create_task(ask(upstream)) for _ in range(8)]
            await asyncio.sleep(0)
            connections = list(pool._sockets)
            assert connections
        results = await asyncio.gather(*doomed, return_exceptions=True)
        assert {type(result) for result in results} <= {UpstreamError}
        assert all(connection.closed and connection._timer is None for connection in connections)
        assert repr(pool) == "<Pool live=0 idle=0 slots=4 waiting=0 closed>"
        assert not pool._sockets
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream)
        assert not caught.value.sent
        await upstream.close()
    assert asyncio.all_tasks() == tasks_before
    timers = [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]
    assert not [timer for timer in timers if "Connection" in repr(timer)]
    gc.collect()


# ---- TLS


class Authority:
    """A certificate authority made on the spot, and contexts of servers it vouches for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        self.file = folder / "authority.pem"
        self.file.write_bytes(
            self._signed(self._name, self._key, constraint).public_bytes(serialization.Encoding.PEM)
        )

    def _signed(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256())

    def server(self, *names: x509.GeneralName) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        certificate = self._signed(name, key, x509.SubjectAlternativeName(names))
        file = self._folder / "server.pem"
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Trusted, in the way an operator makes it trusted."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


LOCALHOST = x509.DNSName("localhost")


async def test_tls_by_an_authority_of_ones_own(authority: Authority) -> None:
    """Connections are kept, bodies of any size go both ways, and only HTTP/1.1 is spoken."""
    protocols: list[str | None] = []
    body = bytes(range(256)) * 8_000

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while True:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body
            writer.write(OK + b"content-length: %d\r\n\r\n%s" % (len(body), body))

    context = authority.server(LOCALHOST, x509.IPAddress(ip_address("127.0.0.1")))
    async with listening(handle, "localhost", context) as url:
        for base_url in (url, url.replace("localhost", "127.0.0.1")):
            async with http1_to(base_url, connect_timeout_s=5) as (upstream, _):
                for _ in range(3):
                    assert await ask(upstream, body) == body
    assert protocols == ["http/1.1", "http/1.1"]


async def test_certificates_of_others_are_refused_unsent(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate for another name, or by an authority that is not trusted, gets no byte of a request."""
    reached: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read())

    async with listening(handle, "localhost", authority.server(x509.DNSName("elsewhere.example"))) as url:
        errors = [await refusal(url)]
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    async with listening(handle, "localhost", authority.server(LOCALHOST)) as url:
        errors.append(await refusal(url))
    for error in errors:
        assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)
        assert "certificate is not valid" in str(error)
    assert not any(reached)


async def refusal(url: str) -> UpstreamError:
    async with http1_to(url, connect_timeout_s=5) as (upstream, pool):
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream)
        assert repr(pool) == "<Pool live=0 idle=0 slots=1000 waiting=0>"
    return caught.value


async def test_a_handshake_that_does_not_end_is_given_up_unsent() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async with (
        listening(mute) as url,
        http1_to(url.replace("http:", "https:"), connect_timeout_s=0.2) as (upstream, pool),
    ):
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream)
        assert (caught.value.fault, caught.value.sent) == (Fault.UPSTREAM_TIMEOUT, False)
        assert repr(pool) == "<Pool live=0 idle=0 slots=1000 waiting=0>"


async def test_tls_is_let_go_of_at_once(authority: Authority) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        with suppress(ConnectionError, ssl.SSLError):
            await reader.read()
        gone.set()

    async with (
        listening(handle, "localhost", authority.server(LOCALHOST)) as url,
        http1_to(url, connect_timeout_s=5) as (
            upstream,
            _,
        ),
    ):
        task = asyncio.create_task(ask(upstream))
        await asyncio.sleep(0.2)
        task.cancel()
        async with asyncio.timeout(0.1):
            await gone.wait()
        with suppress(asyncio.CancelledError):
            await task
