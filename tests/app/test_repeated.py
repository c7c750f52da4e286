"""Heads known again: what is served without parsing is what the parser would have said, whatever a client sends."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.app import connection as rules
from tollkeeper.app.connection import Connection, Head, Repeated, Shared

HEAD = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-A: b\r\nx-a: c\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written; a closed one takes no more."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.closed = b"", False

    def write(self, data: Any) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    abort = pause_reading = resume_reading = close


async def conversation(pieces: list[bytes], *, tries: int) -> tuple[list[Any], bytes, bool, int]:
    """What the application was asked, what the client got, whether it was hung up on, how often a head was known."""
    asked: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        asked.append((scope, message))
        if message["type"] == "http.request" and not message["more_body"]:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    shared = Shared(application, connections_max=10)
    shared.date = b"date: today\r\n"
    connection, transport, known = Connection(shared), Transport(), 0
    connection._tries = tries
    connection.connection_made(transport)
    for piece in pieces:
        repeated = connection._repeated
        if not connection._deaf and repeated is not None and repeated.length_in(piece) is not None:
            known += 1
        connection.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    if shared.tasks:
        await asyncio.wait(tuple(shared.tasks), timeout=60)
    return asked, transport.out, transport.closed, known


async def same(pieces: list[bytes]) -> int:
    *with_heads, known = await conversation(pieces, tries=rules.REPEATED_TRIES)
    *parsed, none = await conversation(pieces, tries=0)
    assert with_heads == parsed and none == 0
    return known


async def test_a_head_is_known_whatever_the_length_of_the_body() -> None:
    """From the third request on, and told with its own length."""
    bodies = [b"abc", b"abc", b"0123456789", b"", b"de", b"f" * 1000]
    pieces = [HEAD.replace(b": 3", b": %d" % len(body)) + body for body in bodies]
    assert await same(pieces) == 3  # none is 0 long: such a length is parsed
    asked, *_ = await conversation(pieces, tries=rules.REPEATED_TRIES)
    scope, message = asked[-1]
    assert message["body"] == bodies[-1] and (b"content-length", b"1000") in scope["headers"]


async def test_a_client_whose_heads_differ_is_given_up() -> None:
    pieces = [HEAD.replace(b"X-A: b", b"X-A: %d" % n) + b"abc" for n in range(10)] + [HEAD + b"abc"] * 3
    assert await same(pieces) == 0


def but(old: bytes, new: bytes, body: bytes = b"abc") -> bytes:
    """The usual request with a change in its head."""
    return HEAD.replace(old, new) + body


@pytest.mark.parametrize(
    "odd",
    [
        but(b": 3", b": +3"), but(b": 3", b": 03"), but(b": 3", b":  3"), but(b": 3", b": 3 "), but(b": 3", b": "),
        but(b": 3", b": 3\n"), but(b": 3", b": 4"), but(b": 3", b": 2"), but(b": 3", b": \xb3"),
        but(b": 3", b": " + b"9" * 20), but(b": 3", b": 3\r\nexpect: 100-continue"), but(b"X-A", b"Content-Length"),
        but(b"X-A: b", b"Connection: close"), but(b"POST", b"GET"), but(b"1.1", b"1.0"), b"\r\n" + HEAD + b"abc",
        HEAD, HEAD[:30], HEAD + b"ab", HEAD + b"abcPOST",
        HEAD + b"abc" + HEAD + b"def",
    ],
)  # fmt: skip
async def test_what_is_almost_the_same_is_parsed(odd: bytes) -> None:
    """Once in the place of what follows a known head, once as what is to be known."""
    good = HEAD + b"abc"
    assert await same([good, good, odd, good, good]) <= 3
    await same([odd, odd, odd, good])


names = st.sampled_from([b"Host", b"X-A", b"x-a", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Connection"])
values = st.sampled_from(
    [b"3", b"1", b"chunked", b"close", b"keep-alive", b"100-continue", b"a: 3", b"content-length"]
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    target = draw(st.sampled_from([b"/", b"/v1/x?content-length: 3", b"/%41", b"*"]))
    fields = draw(st.lists(st.tuples(names, values), max_size=3))
    fields.insert(draw(st.integers(0, len(fields))), (b"content-length", b"3"))
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    return b"POST %b HTTP/1.1\r\n%b\r\nabc" % (target, lines)


@settings(deadline=None, max_examples=150)
@given(st.lists(messages(), min_size=1, max_size=2), st.data())
def test_known_heads_are_what_the_parser_says(kinds: list[bytes], data: st.DataObject) -> None:
    """Conversations of a few kinds of requests, some of them damaged or put together."""
    pieces = data.draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=6))
    at = data.draw(st.integers(0, len(pieces) - 1))
    begin = data.draw(st.integers(0, len(pieces[at])))
    pieces[at] = (
        pieces[at][:begin] + data.draw(st.binary(max_size=3)) + pieces[at][begin + data.draw(st.integers(0, 2)) :]
    )
    asyncio.run(same(pieces))


async def test_connections_of_one_client_share_its_head_while_one_of_them_lives() -> None:
    """Nothing of it stays when the last is gone: the head has the client's key in it."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    shared = Shared(application, connections_max=10)
    connections = [Connection(shared) for _ in range(3)]
    for connection in connections:
        connection.connection_made(Transport())
        for _ in range(3):
            connection.data_received(HEAD + b"abc")
            while shared.tasks:
                await asyncio.sleep(0)
    assert len({id(connection._repeated) for connection in connections}) == len(shared.repeated) == 1
    for connection in connections:
        connection.connection_lost(None)
    del connection
    connections.clear()
    assert not shared.repeated


def test_only_short_heads_are_kept() -> None:
    """So that connections stay small."""
    head = Head("1.1", "POST", "/", b"/", b"", [], {b"content-length": b"3"}, True)
    for size, kept in ((100, True), (rules.REPEATED_BYTES_MAX + 1, False)):
        data = b"POST / HTTP/1.1\r\nx: %b\r\ncontent-length: 3\r\n\r\nabc" % (b"y" * size)
        assert (Repeated.of(data, head) is not None) is kept
