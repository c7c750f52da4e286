"""HTTP to the providers: one pool of connections each, deadlines for every phase, bounded headers and bodies.

This is the only file that touches the HTTP client library. Every failure leaves it as an UpstreamError that says
whether a byte of the request can have left this machine, because that decides between void and charge. It knows
nothing of dialects, money or the client.
"""

import asyncio
import io
import os
import ssl
from collections.abc import Mapping
from typing import Final, Protocol

import aiohttp

from tollkeeper.domain.errors import Fault, UpstreamError
from tollkeeper.settings import ProviderSettings

RESPONSE_BYTES_MAX: Final = 64 * 2**20
"""Largest body read whole: a batch of 2,048 embeddings with 3,072 dimensions is about 60 MB of JSON at most."""
HEADER_FIELD_BYTES_MAX: Final = 8190
HEADERS_MAX: Final = 128
KEEPALIVE_S: Final = 4.0
"""Idle connections are dropped before common servers drop them (uvicorn, Node: 5 s), because a request that meets
a connection being closed may or may not have been taken."""
READ_BUFFER_BYTES: Final = 2**16
COPY_BYTES_MAX: Final = 2**20
"""Above this the library wants a file object instead of bytes, to be able to yield while it writes."""


class UpstreamResponse(Protocol):
    """A response whose headers have arrived. It must be closed; `close` may be called at any time and twice."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By case-insensitive name."""
        ...

    async def read(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes:
        """The whole body. Raises UpstreamError if it is cut, silent for too long, or larger than `bytes_max`."""
        ...

    async def next_chunk(self) -> bytes:
        """What has arrived since, at least one byte; empty at the end. Raises UpstreamError if the body is cut or
        silent for too long."""
        ...

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        ...


class Upstream(Protocol):
    """Sends requests to the configured providers."""

    async def send(self, provider: str, path: str, headers: Mapping[str, str], body: bytes) -> UpstreamResponse:
        """POST to the provider's base URL + `path`. Raises UpstreamError. Cancelling it closes the connection."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class _Response:
    """An aiohttp response behind the port.

    The library does not wake a reader when the framing of a body breaks: it closes the connection and stops its
    timer. So the connection's end is watched here, and a body that is not whole by then is an error.
    """

    __slots__ = ("_closed", "_response")

    def __init__(self, response: aiohttp.ClientResponse, idle_timeout_s: float) -> None:
        self._response = response
        self._closed: asyncio.Future[None] | None = None
        protocol = None if response.connection is None else response.connection.protocol
        if protocol is None:  # the body is here already
            return
        protocol.read_timeout = idle_timeout_s
        protocol.start_timeout()
        self._closed = protocol.closed
        if self._closed is None:
            self._cut(None)
        else:
            self._closed.remove_done_callback(_heed)  # one is enough for a connection that serves many requests
            self._closed.add_done_callback(_heed)
            self._closed.add_done_callback(self._cut)

    def _cut(self, _: object) -> None:
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection was closed"))

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def read(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := await self.next_chunk():
            size += len(chunk)
            if size > bytes_max:
                raise UpstreamError(
                    Fault.UPSTREAM_BROKEN, f"The provider's answer is larger than {bytes_max} bytes.", sent=True
                )
            chunks.append(chunk)
        return b"".join(chunks)

    async def next_chunk(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _after_headers(error) from error

    def close(self) -> None:
        if self._closed is not None:
            self._closed.remove_done_callback(self._cut)
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()


class _Pool:
    """The connections of one provider."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings = settings
        self.base_url = settings.base_url.rstrip("/")
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.connections_max, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_FIELD_BYTES_MAX,
            max_field_size=HEADER_FIELD_BYTES_MAX,
            max_headers=HEADERS_MAX,
            skip_auto_headers=("User-Agent",),
            timeout=aiohttp.ClientTimeout(
                total=settings.total_timeout_s,
                connect=settings.connect_timeout_s,
                sock_connect=settings.connect_timeout_s,
            ),
        )

    async def send(self, path: str, headers: Mapping[str, str], body: bytes) -> UpstreamResponse:
        deadline_s = self.settings.connect_timeout_s + self.settings.first_byte_timeout_s
        try:
            async with asyncio.timeout(deadline_s):
                response = await self.session.post(
                    self.base_url + path,
                    data=io.BytesIO(body) if len(body) > COPY_BYTES_MAX else body,
                    headers=headers,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise _before_headers(error) from error
        return _Response(response, self.settings.idle_timeout_s)


class AiohttpUpstream:
    """`Upstream` on aiohttp. Must be made inside a running event loop."""

    def __init__(self, providers: Mapping[str, ProviderSettings]) -> None:
        self._pools = {name: _Pool(provider) for name, provider in providers.items()}

    async def send(self, provider: str, path: str, headers: Mapping[str, str], body: bytes) -> UpstreamResponse:
        """See `Upstream.send`."""
        return await self._pools[provider].send(path, headers, body)

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.session.close()


def _heed(closed: "asyncio.Future[None]") -> None:
    """Take note of how a connection ended, or asyncio would complain that nobody did."""
    if not closed.cancelled():
        closed.exception()


def _before_headers(error: Exception) -> UpstreamError:
    """What happened before a status line was there. Anything not certainly unsent counts as sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamError(Fault.UPSTREAM_DOWN, f"The provider cannot be reached: {_reason(error)}.", sent=False)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        message = "No connection to the provider in time (it is away, or all connections to it are busy)."
        return UpstreamError(Fault.UPSTREAM_TIMEOUT, message, sent=False)
    if isinstance(error, aiohttp.InvalidURL):
        return UpstreamError(Fault.UPSTREAM_DOWN, "The provider's base_url cannot be used.", sent=False)
    if isinstance(error, TimeoutError):
        return UpstreamError(Fault.UPSTREAM_TIMEOUT, "The provider did not answer in time.", sent=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's answer is not valid HTTP.", sent=True)
    return UpstreamError(Fault.UPSTREAM_DOWN, "The provider closed the connection without an answer.", sent=True)


def _after_headers(error: Exception) -> UpstreamError:
    if isinstance(error, TimeoutError):
        return UpstreamError(Fault.UPSTREAM_TIMEOUT, "The provider stopped in the middle of its answer.", sent=True)
    return UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's answer was cut short.", sent=True)


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """The cause without host and address, which are none of the client's business."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its TLS certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    return os.strerror(error.os_error.errno).lower() if error.os_error.errno else "connection failed"
