"""Real Redis servers for tests: `redis-server` on a unix socket (and a port if asked) in a temporary folder."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """One server of our own. `kill`, `freeze` and `thaw` are the faults tests inject."""

    def __init__(self, folder: Path, *, aof: bool = False) -> None:
        assert BINARY is not None, "redis-server is missing: run `make servers`"
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._aof = aof
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        log = (self.folder / "redis.log").open("ab")
        arguments = [
            *(str(BINARY), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "yes" if self._aof else "no", "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
        ]
        self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 10
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start: {(self.folder / 'redis.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def command(self, *parts: str) -> bytes:
        """One command by hand; the raw start of its reply."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            words = [f"${len(p.encode())}\r\n{p}\r\n" for p in parts]
            connection.sendall(f"*{len(parts)}\r\n{''.join(words)}".encode())
            return connection.recv(65536)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Stop by pid, whatever state it is in."""
        if self.process is not None:
            self.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that break nothing."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of the test's own, to break."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), aof=True)
    server.start()
    yield server
    server.stop()
