"""Providers behind a proxy, and providers with an authority of their own: real sockets, real TLS, both clients."""

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.test_upstream import failure, listening, request_head
from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import Certificates, certificates
from tollkeeper.domain.errors import ConfigurationError, Fault
from tollkeeper.gateway.egress import Proxy, proxy_of
from tollkeeper.gateway.http1_pool import Http1Upstream
from tollkeeper.gateway.upstream import Upstream
from tollkeeper.gateway.upstream_aiohttp import AiohttpUpstream
from tollkeeper.settings import ProviderSettings, load

__all__ = ["certificates"]  # a fixture
BOTH = pytest.mark.parametrize("made", [Http1Upstream, AiohttpUpstream])
Made = type[Http1Upstream] | type[AiohttpUpstream]


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """Both ways, until both have ended."""
    inner_reader, inner_writer = await asyncio.open_connection(host, port)
    try:
        await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))
    finally:
        inner_writer.close()


CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@asynccontextmanager
async def tunnels(answer: bytes = CONNECTED) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy; its port, and the heads it was asked with. It connects on if that is what it answers."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if answer == CONNECTED:
            host, _, port = heads[-1].split(b" ")[1].decode().rpartition(":")
            await relay(reader, writer, host, int(port))
        else:
            await reader.read()

    async with listening(serve) as url:
        yield int(url.rpartition(":")[2].removesuffix("/v1")), heads


def server_tls(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.folder / "server.pem", certificates.folder / "server.key")
    return context


@asynccontextmanager
async def reaching(made: Made, base_url: str, proxy: Proxy | None = None, **settings: Any) -> AsyncIterator[Upstream]:
    provider = ProviderSettings(base_url=base_url, dialect="openai", connect_timeout_s=1.0, **settings)
    upstream = made({"p": provider}, {"p": proxy})
    try:
        yield upstream
    finally:
        await upstream.close()


class Provider:
    """Answers every request of a connection, and keeps the heads."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.heads.append(await request_head(reader))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
            await writer.drain()


@BOTH
async def test_a_request_goes_through_the_proxy_and_tells_it_nothing(made: Made, certificates: Certificates) -> None:
    """It sees where to connect to; what is authenticated is the provider; the tunnel serves the next request, too."""
    provider, proxy_credentials = Provider(), "anna:s e:cret"
    async with listening(provider, tls=server_tls(certificates)) as url, tunnels() as (port, asked):
        proxy = Proxy("127.0.0.1", port, proxy_credentials)
        async with reaching(made, url, proxy, tls_ca_file=str(certificates.ca)) as upstream:
            for _ in range(2):
                response = await upstream.send("p", "/chat", {"authorization": "Bearer sk"}, b"{}")
                assert (response.status, await response.read()) == (200, b"hi")
                response.close()
    (head,) = asked
    authority = url.removeprefix("https://").removesuffix("/v1").encode()
    assert head.startswith(b"CONNECT %b HTTP/1.1\r\n" % authority) and b"sk" not in head and b"/chat" not in head
    assert b"proxy-authorization: basic yw5uytpzigu6y3jldA==\r\n".lower() in head.lower()
    assert len(provider.heads) == 2 and not any(b"proxy-" in seen.lower() for seen in provider.heads)


@BOTH
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", "other credentials"),
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "answered 403"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "answered 502"),
    ],
)
async def test_a_proxy_that_refuses_was_told_nothing(
    made: Made, certificates: Certificates, answer: bytes, reason: str
) -> None:
    provider = Provider()
    async with (
        listening(provider, tls=server_tls(certificates)) as url,
        tunnels(answer) as (port, _),
        reaching(made, url, Proxy("127.0.0.1", port)) as upstream,
    ):
        error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)
    assert reason in str(error) and str(port) not in str(error) and not provider.heads


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example.com ESMTP\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 20_000,
        b"HTTP/1.1 0200 OK\r\n\r\n",
    ],
)
async def test_what_is_no_proxy_is_not_believed(certificates: Certificates, answer: bytes) -> None:
    """Nor what it says in the provider's place."""
    async with (
        listening(Provider(), tls=server_tls(certificates)) as url,
        tunnels(answer) as (port, _),
        reaching(Http1Upstream, url, Proxy("127.0.0.1", port)) as upstream,
    ):
        error = await failure(upstream)
    assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False) and "not valid HTTP" in str(error)


@BOTH
async def test_a_proxy_that_is_silent_or_away_is_not_waited_for(made: Made, certificates: Certificates) -> None:
    async with listening(Provider(), tls=server_tls(certificates)) as url:
        async with tunnels(b"") as (port, _), reaching(made, url, Proxy("127.0.0.1", port)) as upstream:
            error = await failure(upstream)
            assert (error.fault, error.sent) == (Fault.UPSTREAM_TIMEOUT, False)
        async with reaching(made, url, Proxy("127.0.0.1", port)) as upstream:
            error = await failure(upstream)
            assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)


@BOTH
async def test_a_certificate_is_checked_against_its_authority(made: Made, certificates: Certificates) -> None:
    """The one that is named, else the system's; behind a proxy as without."""
    async with listening(Provider(), tls=server_tls(certificates)) as url, tunnels() as (port, _):
        for proxy in (None, Proxy("127.0.0.1", port)):
            async with reaching(made, url, proxy, tls_ca_file=str(certificates.ca)) as upstream:
                response = await upstream.send("p", "/chat", {}, b"{}")
                assert await response.read() == b"hi"
                response.close()
            for wrong in ({}, {"tls_ca_file": str(certificates.other_ca)}):
                async with reaching(made, url, proxy, **wrong) as upstream:
                    error = await failure(upstream)
                assert (error.fault, error.sent) == (Fault.UPSTREAM_DOWN, False)
                assert "its TLS certificate is not valid" in str(error)


P = "http://proxy.internal:3128"


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, None),
        ({}, {"HTTPS_PROXY": P}, Proxy("proxy.internal", 3128)),
        ({}, {"HTTPS_PROXY": "proxy.internal:3128"}, Proxy("proxy.internal", 3128)),
        ({}, {"HTTPS_PROXY": "http://proxy.internal"}, Proxy("proxy.internal", 80)),
        ({}, {"https_proxy": "http://a:1", "HTTPS_PROXY": P}, Proxy("a", 1)),
        ({}, {"HTTPS_PROXY": "http://anna:s%40crets@[::1]:3128/"}, Proxy("::1", 3128, "anna:s@crets")),
        ({}, {"HTTP_PROXY": P, "ALL_PROXY": P}, None),
        ({}, {"HTTPS_PROXY": P, "NO_PROXY": "other.com, *"}, None),
        ({}, {"HTTPS_PROXY": P, "NO_PROXY": "other.com,api.openai.com"}, None),
        ({}, {"HTTPS_PROXY": P, "NO_PROXY": ".openai.com"}, None),
        ({}, {"HTTPS_PROXY": P, "NO_PROXY": "*.OpenAI.com"}, None),
        ({}, {"HTTPS_PROXY": P, "no_proxy": "openai.com:443"}, None),
        ({}, {"HTTPS_PROXY": P, "NO_PROXY": "penai.com,openai.com:8443"}, Proxy("proxy.internal", 3128)),
        ({"base_url": "https://10.1.2.3/v1"}, {"HTTPS_PROXY": P, "NO_PROXY": "10.0.0.0/8"}, None),
        (
            {"base_url": "https://11.1.2.3/v1"},
            {"HTTPS_PROXY": P, "NO_PROXY": "10.0.0.0/8"},
            Proxy("proxy.internal", 3128),
        ),
        ({"base_url": "https://[fd00::1]/v1"}, {"HTTPS_PROXY": P, "NO_PROXY": "[fd00::1]"}, None),
        ({"base_url": "http://10.1.2.3/v1"}, {"HTTPS_PROXY": P}, None),
        ({"proxy": ""}, {"HTTPS_PROXY": P}, None),
        ({"proxy": "http://b:2"}, {"HTTPS_PROXY": P, "NO_PROXY": "*"}, Proxy("b", 2)),
        ({"proxy_env": "OURS"}, {"HTTPS_PROXY": P, "OURS": "http://u:p@c:3"}, Proxy("c", 3, "u:p")),
    ],
)
def test_which_proxy(settings: dict[str, Any], environ: dict[str, str], expected: Proxy | None) -> None:
    provider = ProviderSettings(**{"base_url": "https://api.openai.com/v1", "dialect": "openai"} | settings)
    assert proxy_of("p", provider, environ) == expected


@pytest.mark.parametrize(
    ("settings", "environ", "message"),
    [
        ({"proxy_env": "OURS"}, {}, "providers.p.proxy_env: OURS is not set"),
        ({"proxy_env": "OURS"}, {"OURS": "socks5://u:secret@c:3"}, "OURS: write it like http://proxy.internal:3128"),
        ({}, {"HTTPS_PROXY": "https://c:3"}, 'HTTPS_PROXY: write it like .*or proxy = "" under providers.p'),
        ({}, {"HTTPS_PROXY": "http://c:port"}, "HTTPS_PROXY: write it like"),
        ({}, {"HTTPS_PROXY": "http://u:%0d%0ax@c:3"}, "characters that no header can carry"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(
    settings: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    provider = ProviderSettings(base_url="https://api.openai.com/v1", dialect="openai", **settings)
    with pytest.raises(ConfigurationError, match=message) as caught:
        proxy_of("p", provider, environ)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('proxy = "http://anna:secret@c:3"', "a password does not belong in the file"),
        ('proxy = "http://c:3"\nproxy_env = "OURS"', "give proxy or proxy_env, not both"),
        ('proxy = "http://c:3/path"', "providers.p.proxy: write it like http://proxy.internal:3128"),
        ('proxy = "socks5://c:3"', "providers.p.proxy: write it like"),
        ('proxy = "c:3"', "providers.p.proxy: write it like"),
        ('tls_ca_file = "/nowhere/ca.pem"', "tls_ca_file: cannot use /nowhere/ca.pem: No such file"),
        ('tls_ca_file = "/dev/null"', "tls_ca_file: cannot use /dev/null: it holds no certificates in PEM"),
        ('proxy = "http://c:3"\nbase_url = "http://10.1.2.3/v1"', "proxy: is for https only"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    base = "" if "base_url" in lines else 'base_url = "https://api.openai.com/v1"\n'
    file = tmp_path / "tollkeeper.toml"
    file.write_text(f'[providers.p]\ndialect = "openai"\n{base}{lines}\n')
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(file, {})
    assert "secret" not in str(caught.value)


def chat(url: str, secret: str) -> int:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}',
        {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(response.status)


async def test_a_gateway_reaches_its_provider_through_the_proxy_of_the_environment(
    tmp_path: Path, certificates: Certificates
) -> None:
    """The whole way, as an operator sets it up: HTTPS_PROXY, SSL_CERT_FILE, a key, one request."""
    simulator = await asyncio.to_thread(SimulatorProcess, tmp_path)

    async def terminate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await relay(reader, writer, "127.0.0.1", simulator.port)

    try:
        async with listening(terminate, tls=server_tls(certificates)) as url, tunnels() as (port, asked):
            environ = {"HTTPS_PROXY": f"http://anna:hush@127.0.0.1:{port}", "SSL_CERT_FILE": str(certificates.ca)}
            base = url.removesuffix("/v1")
            gateway = await asyncio.to_thread(GatewayProcess, tmp_path / "g", base, environ)
            try:
                secret = (await asyncio.to_thread(gateway.admin, "POST", "/keys", {"name": "k"}))["secret"]
                assert await asyncio.to_thread(chat, gateway.url, str(secret)) == 200
                assert len(asked) == 1 and asked[0].startswith(b"CONNECT ")
                assert "hush" not in gateway.log.read_text()
            finally:
                await asyncio.to_thread(gateway.kill)
    finally:
        await asyncio.to_thread(simulator.kill)
