"""The composition root: the data directory, the listener's bounds, and the whole gateway on its own parts."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from tollkeeper.app import server
from tollkeeper.app.data_dir import ADMIN_TOKEN_FILE, DIGEST_KEY_FILE, DataDir, admin_token, digest_key
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.observability.logging import configure
from tollkeeper.settings import SecretSettings, ServerSettings, Settings


def test_secrets_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    """0600 files in a 0700 directory; the next process reads the same; a configured secret makes no file."""
    settings = Settings(data_dir=tmp_path / "data")
    key, token = digest_key(settings), admin_token(settings)
    assert (len(key), len(token)) == (64, 64)
    assert (digest_key(settings), admin_token(settings)) == (key, token)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for name in (DIGEST_KEY_FILE, ADMIN_TOKEN_FILE):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [ADMIN_TOKEN_FILE, DIGEST_KEY_FILE]
    configured = Settings(data_dir=tmp_path / "other", secrets=SecretSettings(digest_key="d" * 40))
    assert digest_key(configured) == b"d" * 40
    assert not (tmp_path / "other").exists()


async def test_processes_that_make_a_secret_at_once_agree(tmp_path: Path) -> None:
    """Whoever is first decides; nobody reads half a secret."""
    data_dir = DataDir(tmp_path)
    found = await asyncio.gather(*(asyncio.to_thread(data_dir.secret, DIGEST_KEY_FILE) for _ in range(32)))
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [DIGEST_KEY_FILE]


def test_one_process_uses_a_data_directory(tmp_path: Path) -> None:
    """A second one is refused with the first one's process id and what to do; a dead one holds nothing."""
    first, second = DataDir(tmp_path), DataDir(tmp_path)
    first.lock()
    with pytest.raises(ConfigurationError) as refused:
        second.lock()
    assert f"in use by another gateway (process {os.getpid()})" in str(refused.value)
    assert "TOLLKEEPER_DATA_DIR" in str(refused.value)
    first.unlock()
    second.lock()
    second.unlock()
    code = (
        f"import time; from pathlib import Path; from tollkeeper.app.data_dir import DataDir; "
        f"DataDir(Path({str(tmp_path)!r})).lock(); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigurationError, match=f"process {holder.pid}"):
            first.lock()
        holder.kill()
        holder.wait()
    first.lock()
    first.unlock()


def test_the_address_is_left_only_while_it_is_true(tmp_path: Path) -> None:
    """A process takes back its own address, not one that another wrote since."""
    data_dir = DataDir(tmp_path)
    assert data_dir.address() is None
    data_dir.write_address("http://127.0.0.1:1")
    data_dir.write_address("http://127.0.0.1:2")
    data_dir.remove_address("http://127.0.0.1:1")
    assert data_dir.address() == "http://127.0.0.1:2"
    data_dir.remove_address("http://127.0.0.1:2")
    assert data_dir.address() is None


def test_an_address_that_cannot_be_had_is_refused() -> None:
    """Each with its reason and what to set instead."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"port {port} of 127.0.0.1 is in use; choose another with --port"
        ):
            server.bind("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1 is not an address of this machine"):
        server.bind("192.0.2.1", 0)
    with pytest.raises(ConfigurationError, match=r"server\.host: 'no such host' is not an address to listen on"):
        server.bind("no such host", 0)


def test_the_address_for_clients() -> None:
    """A wildcard is shown as the loopback address, IPv6 in brackets."""
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")):
        with server.bind(host, 0) as bound:
            assert server.url_of(bound) == f"http://{shown}:{bound.getsockname()[1]}"


class Listener:
    """A listener around a tiny application: `/slow` answers after `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.asked = asyncio.Event()
        self.listening = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.set()
        if scope["path"] == "/broken":
            raise ValueError("broken on purpose")
        if scope["path"] == "/slow":
            await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


Exchange = Callable[[bytes], Awaitable[bytes]]


async def ask(port: int, request: bytes) -> bytes:
    """Send bytes, read all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


GET = b"GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def run_listener(listener: Listener, settings: ServerSettings, work: Callable[[int], Awaitable[None]]) -> None:
    """Serve while `work` runs, then stop as a signal would."""
    bound = server.bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    serving = asyncio.create_task(server.run(listener, bound, settings, listener.listening.set))
    await asyncio.wait_for(listener.listening.wait(), 5)
    try:
        await work(port)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 10)
        bound.close()


async def test_requests_in_flight_are_answered_at_a_stop() -> None:
    """A signal stops accepting; what is in flight gets its answer first."""
    listener = Listener()
    answers: list[asyncio.Task[bytes]] = []

    async def work(port: int) -> None:
        assert (await ask(port, GET % b"/")).startswith(b"HTTP/1.1 200")
        listener.asked.clear()
        answers.append(asyncio.create_task(ask(port, GET % b"/slow")))
        await listener.asked.wait()
        asyncio.get_running_loop().call_later(0.3, listener.release.set)

    await run_listener(listener, ServerSettings(), work)
    assert (await answers[0]).endswith(b"ok")


async def test_a_header_that_is_too_large_is_refused() -> None:
    """64 KiB of target and fields together; the connection is closed."""

    async def work(port: int) -> None:
        many = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(80))
        answer = await ask(port, b"GET / HTTP/1.1\r\nhost: x\r\n" + many + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        assert (await ask(port, b"GET /" + b"z" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(
            b"HTTP/1.1 400"
        )

    await run_listener(Listener(), ServerSettings(), work)


async def test_connections_that_never_send_a_request_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones and those that dribble a header, within the deadline; an idle kept connection stays."""
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.5)

    async def work(port: int) -> None:
        kept_reader, kept_writer = await asyncio.open_connection("127.0.0.1", port)
        kept_writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await kept_reader.readuntil(b"ok")
        answers = await asyncio.gather(ask(port, b""), ask(port, b"GET / HTTP/1.1\r\nhost:"), return_exceptions=True)
        assert all(answer == b"" or isinstance(answer, ConnectionResetError) for answer in answers)
        kept_writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await kept_reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        kept_writer.close()

    await run_listener(Listener(), ServerSettings(), work)


async def test_connections_above_the_limit_get_a_503() -> None:
    """`server.connections_max`."""

    async def work(port: int) -> None:
        first = asyncio.create_task(ask(port, GET % b"/slow"))
        await listener.asked.wait()
        assert (await ask(port, GET % b"/")).startswith(b"HTTP/1.1 503")
        listener.release.set()
        assert (await first).startswith(b"HTTP/1.1 200")

    listener = Listener()
    await run_listener(listener, ServerSettings(connections_max=1), work)


async def test_what_breaks_is_told_in_our_own_log(capfd: pytest.CaptureFixture[str]) -> None:
    """An application that raises is a 500, and one event with the traceback, in the format that was configured."""

    async def work(port: int) -> None:
        assert (await ask(port, GET % b"/broken")).startswith(b"HTTP/1.1 500")

    configure("info", "json")
    try:
        await run_listener(Listener(), ServerSettings(), work)
    finally:
        structlog.reset_defaults()
    (line,) = capfd.readouterr().err.strip().splitlines()
    event = json.loads(line)
    assert (event["event"], event["room"]) == ("request_crashed", "server")
    assert "ValueError: broken on purpose" in event["exception"]
