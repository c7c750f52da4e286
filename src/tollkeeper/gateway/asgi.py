"""The client's side of one exchange: headers, body, hang-up, and the way back.

Deadlines and size limits of reading are here; what a request or an error means is not. A client that has hung up
is no error: what is sent to it is dropped, and `gone` tells. `AsgiClient` is one as any ASGI server gives it; our own
server's requests are clients themselves (`app/connection.py`), so that nothing is packed into messages for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

from tollkeeper.domain.errors import Fault, RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

SLOW_AFTER_S: Final = 0.1
"""Requests that take less are not watched for hang-ups and have no deadlines of their own: a watcher is a task, a
deadline is a timer, and most requests need neither. Those that take twice as long are and have, for sure."""
MEGABYTE: Final = 10**6
CLIENT_REQUEST_ID_BYTES_MAX: Final = 128


class HttpError(RequestError):
    """A request that is wrong by HTTP's own rules, with the status or headers that these ask for."""

    def __init__(
        self, fault: Fault, message: str, *, status: int | None = None, headers: tuple[Header, ...] = ()
    ) -> None:
        super().__init__(fault, message)
        self.status, self.headers = status, headers


class Client:
    """One request's client. `gone`: it hung up, as far as anybody heard. `started`: the response's status is out.
    `task` carries the request out. What differs between servers is said by the classes below this one."""

    __slots__ = (
        "_on_gone",
        "_on_slow",
        "_slow",
        "gone",
        "headers",
        "method",
        "path",
        "query",
        "started",
        "task",
    )

    task: asyncio.Task[Any]

    def __init__(self, method: str, path: str, query: bytes, headers: dict[bytes, bytes]) -> None:
        """`headers`: the first of each name, which is in lower case."""
        self.method, self.path, self.query, self.headers = method, path, query, headers
        self.gone = self.started = self._slow = False
        self._on_gone: Callable[[], None] | None = None
        self._on_slow: Callable[[], None] | None = None

    def header(self, name: bytes) -> bytes:
        """A header by its lower-case name; empty if absent. The first of several counts."""
        return self.headers.get(name, b"")

    @property
    def request_id(self) -> str | None:
        """The client's own id for the request, only ever recorded."""
        value = self.header(b"x-request-id")[:CLIENT_REQUEST_ID_BYTES_MAX]
        return value.decode("ascii", "replace") or None

    def body_at_once(self, bytes_max: int) -> bytes | None:
        """The whole body if it is here already, else None: see `body`. Raises as that does."""
        return None

    async def body(self, bytes_max: int, timeout_s: float) -> bytes | None:
        """The whole body, or None if the client hung up.

        Raises RequestError: TOO_LARGE (before reading, if the length is stated), or a 408.
        """
        self._check_length(bytes_max)
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(None) as deadline:
                self.when_slow(partial(deadline.reschedule, until))
                return await self._read(bytes_max)
        except TimeoutError:
            message = f"The request's body did not arrive within {timeout_s:g} s."
            raise HttpError(Fault.INVALID, message, status=408) from None
        finally:
            self._on_slow = None

    def when_slow(self, act: Callable[[], None]) -> None:
        """Call back once the request has become slow; only the last callback counts."""
        if self._slow:
            act()
        else:
            self._on_slow = act

    def turn_slow(self) -> None:
        """The request takes longer than `SLOW_AFTER_S`. Called once, by `InFlight`."""
        self._slow = True
        act, self._on_slow = self._on_slow, None
        if act is not None:
            act()
        if self._on_gone is not None:
            self._listen()

    async def upload(self, bytes_max: int, timeout_s: float) -> bytearray | None:
        """The same for a body that may be large: in one buffer, of which views are taken instead of copies.

        A client that goes on sending gets `timeout_s` for each megabyte, so that a large file needs no other limit.
        """
        buffer = bytearray()
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return buffer if await self._fill(buffer, bytes_max, deadline, timeout_s) else None
        except TimeoutError:
            message = f"The request's body stopped arriving ({timeout_s:g} s for a megabyte)."
            raise HttpError(Fault.INVALID, message, status=408) from None

    async def _fill(self, buffer: bytearray, bytes_max: int, deadline: asyncio.Timeout, timeout_s: float) -> bool:
        self._check_length(bytes_max)
        loop, counted = asyncio.get_running_loop(), 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self._left()
                return False
            buffer += message.get("body", b"")
            if len(buffer) > bytes_max:
                raise too_large(bytes_max)
            if not message.get("more_body", False):
                return True
            if len(buffer) - counted >= MEGABYTE:
                counted = len(buffer)
                deadline.reschedule(loop.time() + timeout_s)

    def check_encoding(self) -> None:
        """Raises HttpError 415 for a compressed body: what it would grow to is nobody's bound."""
        if self.header(b"content-encoding") not in (b"", b"identity"):
            raise HttpError(Fault.INVALID, "Send the body uncompressed, without content-encoding.", status=415)

    def _check_length(self, bytes_max: int) -> None:
        stated = self.header(b"content-length")
        if stated.isdigit() and int(stated) > bytes_max:
            raise too_large(bytes_max)

    async def _read(self, bytes_max: int) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self._left()
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > bytes_max:
                raise too_large(bytes_max)
            if not message.get("more_body", False):
                return chunk if not chunks else b"".join((*chunks, chunk))
            chunks.append(chunk)

    def watch(self, on_gone: Callable[[], None], on_slow: Callable[[], None]) -> None:
        """Call back once if the client hangs up before `unwatch`, and once if the request is slow. Only after the
        body was read."""
        self._on_gone, self._on_slow = on_gone, on_slow
        if self._slow:
            self.turn_slow()

    def unwatch(self) -> None:
        """Stop watching, for hang-ups and slowness."""
        self._on_gone = self._on_slow = None
        if self._slow:
            self._stop_listening()

    def _left(self) -> None:
        self.gone = True
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    # ---- what each server has its own way for

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        raise NotImplementedError

    def _listen(self) -> None:
        """From now on `_left` is to be called when the client leaves."""
        raise NotImplementedError

    def _stop_listening(self) -> None:
        """No more. May be called without `_listen`, and twice."""
        raise NotImplementedError

    async def respond(self, status: int, lines: str, body: bytes) -> None:
        """A whole response at once. `lines`: header fields, each with its line end. Nothing for a client that is
        gone."""
        raise NotImplementedError

    async def start(self, status: int, lines: str) -> None:
        """Status and headers. Nothing starts for a client that is gone."""
        raise NotImplementedError

    async def send(self, body: bytes, *, last: bool = False) -> None:
        """Part of the body; waits while the client reads more slowly than we send."""
        raise NotImplementedError


class AsgiClient(Client):
    """A client as an ASGI server gives it. A task of its own waits for its hang-up."""

    __slots__ = ("_receive", "_send", "_watcher")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = dict(reversed(scope["headers"]))
        super().__init__(scope["method"], scope["path"], scope.get("query_string", b""), fields)
        self._receive, self._send = receive, send
        self._watcher: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """ASGI's."""
        return await self._receive()

    def _listen(self) -> None:
        self._watcher = self.task.get_loop().create_task(self._wait_for_hangup())

    def _stop_listening(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _wait_for_hangup(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    async def respond(self, status: int, lines: str, body: bytes) -> None:
        """See `Client`."""
        await self.start(status, f"{lines}content-length: {len(body)}\r\n")
        await self.send(body, last=True)

    async def start(self, status: int, lines: str) -> None:
        """See `Client`."""
        if self.gone:
            return
        self.started = True
        await self._out({"type": "http.response.start", "status": status, "headers": _fields(lines)})

    async def send(self, body: bytes, *, last: bool = False) -> None:
        """See `Client`."""
        await self._out({"type": "http.response.body", "body": body, "more_body": not last})

    async def _out(self, message: Message) -> None:
        if self.gone:
            return
        try:
            await self._send(message)
        except OSError:
            self._left()


class InFlight:
    """The clients whose requests are being carried out. One timer tells all of them that have become slow."""

    def __init__(self) -> None:
        # Each turn of the timer finds those slow that the turn before has seen already.
        self._young: dict[Client, None] = {}
        self._older: dict[Client, None] = {}
        self._slow: dict[Client, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()

    def __len__(self) -> int:
        return len(self._young) + len(self._older) + len(self._slow)

    def begin(self, client: Client) -> None:
        """Its request has begun."""
        self._young[client] = None
        if self._timer is None:
            self._timer = client.task.get_loop().call_later(SLOW_AFTER_S, self._turn)

    def end(self, client: Client) -> None:
        """It has come to its end."""
        if client in self._young:
            del self._young[client]
        else:
            self._older.pop(client, None)
            self._slow.pop(client, None)
        if not self._young and not len(self):
            self._over.set()

    def _turn(self) -> None:
        slow, self._older, self._young, self._timer = self._older, self._young, {}, None
        self._slow |= slow
        if self._older:
            self._timer = next(iter(self._older)).task.get_loop().call_later(SLOW_AFTER_S, self._turn)
        for client in slow:
            client.turn_slow()

    async def over(self) -> None:
        """Return when there are none."""
        while len(self):
            self._over.clear()
            await self._over.wait()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Those that carry them out."""
        return [client.task for among in (self._young, self._older, self._slow) for client in among]


def _fields(lines: str) -> list[Header]:
    fields = [line.partition(b": ") for line in lines.encode("ascii").split(b"\r\n")[:-1]]
    return [(name, value) for name, _, value in fields]


def too_large(bytes_max: int) -> RequestError:
    """The body is larger than its reader takes."""
    return RequestError(Fault.TOO_LARGE, f"The request's body is larger than {bytes_max} bytes.")
