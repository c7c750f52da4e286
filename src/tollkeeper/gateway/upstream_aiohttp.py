"""`Upstream` on aiohttp: for a provider that the own client does not get on with (`http_client = "aiohttp"`).

This is the only file that touches aiohttp. A governed request costs about 100 µs of processor time more with it.
"""

import asyncio
import io
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import aiohttp

from tollkeeper.domain.errors import UpstreamError
from tollkeeper.gateway.egress import Proxy, tls_context
from tollkeeper.gateway.upstream import (
    HEADERS_MAX,
    KEEPALIVE_S,
    RESPONSE_BYTES_MAX,
    Body,
    UpstreamResponse,
    cut,
    hung_up,
    no_answer,
    no_connection,
    not_http,
    proxy_refused,
    silent,
    too_large,
    unreachable,
    unusable_url,
)
from tollkeeper.settings import ProviderSettings

HEADER_FIELD_BYTES_MAX: Final = 8190
READ_BUFFER_BYTES: Final = 2**16
COPY_BYTES_MAX: Final = 2**20
"""Above this the library wants a file object instead of bytes, to be able to yield while it writes."""


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
                raise too_large(bytes_max)
            chunks.append(chunk)
        return b"".join(chunks)

    def whole(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes | None:
        return None

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

    def __init__(self, settings: ProviderSettings, proxy: Proxy | None) -> None:
        self.settings = settings
        self._proxy_url: str | None = None
        self._proxy_headers: dict[str, str] | None = None
        if proxy is not None:
            host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
            self._proxy_url = f"http://{host}:{proxy.port}"
            self._proxy_headers = {"proxy-authorization": proxy.authorization} if proxy.credentials else None
        self.base_url = settings.base_url.rstrip("/")
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.connections_max,
                keepalive_timeout=KEEPALIVE_S,
                ssl=tls_context(settings.tls_ca_file) if settings.base_url.startswith("https:") else True,
            ),
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

    async def send(self, path: str, headers: Mapping[str, str], body: Body, method: str) -> UpstreamResponse:
        deadline_s = self.settings.connect_timeout_s + self.settings.first_byte_timeout_s
        try:
            async with asyncio.timeout(deadline_s):
                response = await self.session.request(
                    method,
                    self.base_url + path,
                    headers=headers if isinstance(body, bytes) else {**headers, "content-length": _length(body)},
                    data=_data(body),
                    allow_redirects=False,
                    proxy=self._proxy_url,
                    proxy_headers=self._proxy_headers,
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise _before_headers(error) from error
        return _Response(response, self.settings.idle_timeout_s)


class AiohttpUpstream:
    """`Upstream` on aiohttp. Must be made inside a running event loop."""

    def __init__(
        self, providers: Mapping[str, ProviderSettings], proxies: Mapping[str, Proxy | None] | None = None
    ) -> None:
        self._pools = {name: _Pool(provider, (proxies or {}).get(name)) for name, provider in providers.items()}

    async def send(
        self, provider: str, path: str, headers: Mapping[str, str], body: Body, method: str = "POST"
    ) -> UpstreamResponse:
        """See `Upstream.send`."""
        return await self._pools[provider].send(path, headers, body, method)

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.session.close()


def _data(body: Body) -> Any:
    if isinstance(body, bytes):
        return io.BytesIO(body) if len(body) > COPY_BYTES_MAX else body
    return _pieces(body)


async def _pieces(body: Sequence[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    for piece in body:
        for start in range(0, len(piece), COPY_BYTES_MAX):
            yield piece[start : start + COPY_BYTES_MAX]


def _length(body: Sequence[bytes | memoryview]) -> str:
    return str(sum(map(len, body)))


def _heed(closed: "asyncio.Future[None]") -> None:
    """Take note of how a connection ended, or asyncio would complain that nobody did."""
    if not closed.cancelled():
        closed.exception()


def _before_headers(error: Exception) -> UpstreamError:
    """What happened before a status line was there. Anything not certainly unsent counts as sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return unreachable(_reason(error))
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return no_connection()
    if isinstance(error, aiohttp.InvalidURL):
        return unusable_url()
    if isinstance(error, TimeoutError):
        return no_answer()
    if isinstance(error, aiohttp.ClientResponseError):
        return proxy_refused(error.status) if isinstance(error, aiohttp.ClientHttpProxyError) else not_http()
    return hung_up()


def _after_headers(error: Exception) -> UpstreamError:
    return silent() if isinstance(error, TimeoutError) else cut()


def _reason(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its TLS certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    return os.strerror(error.os_error.errno).lower() if error.os_error.errno else "connection failed"
