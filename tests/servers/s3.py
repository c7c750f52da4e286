"""Real S3 servers on private ports: moto's (enforces If-None-Match, takes any secret) and rclone's (checks
signatures, ignores If-None-Match, keeps objects on disk). Stopped by pid."""

import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ACCESS_KEY = "tollkeeper-tests"
SECRET_KEY = "a-secret-of-forty-characters-for-testing"
START_TIMEOUT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server:
    """A server process with one bucket. `environ` is what a client needs; `url()` gives each caller a prefix of its
    own. It can be killed and started again on the same port."""

    def __init__(self, command: Callable[[int], list[str]], make_bucket: Callable[[str], None]) -> None:
        self.port = free_port()
        self.bucket = "logs"
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environ = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }
        self._command = command
        self._make_bucket = make_bucket
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, prefix: str | None = None) -> str:
        return f"s3://{self.bucket}/{prefix or uuid.uuid4().hex[:12]}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command(self.port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self._command(self.port)[0]} did not start") from None
                time.sleep(0.02)
        self._make_bucket(f"{self.endpoint}/{self.bucket}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def start_moto() -> S3Server:
    """moto keeps everything in memory: a killed one comes back empty."""
    program = Path(sys.executable).parent / "moto_server"

    def make_bucket(url: str) -> None:
        request = urllib.request.Request(url, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as response:
            response.read()

    server = S3Server(lambda port: [str(program), "-H", "127.0.0.1", "-p", str(port)], make_bucket)
    server.start()
    return server


def start_rclone(folder: Path) -> S3Server:
    """rclone keeps objects as files below `folder`, metadata in its memory."""
    program = Path(sys.executable).parent / "rclone"

    def make_bucket(_: str) -> None:
        (folder / "logs").mkdir(exist_ok=True)

    def command(port: int) -> list[str]:
        address = f"127.0.0.1:{port}"
        auth = f"{ACCESS_KEY},{SECRET_KEY}"
        return [
            str(program), "serve", "s3", "--addr", address, "--auth-key", auth, "--config", "/dev/null", str(folder)
        ]  # fmt: skip

    server = S3Server(command, make_bucket)
    server.start()
    return server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    server = start_moto()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_rclone(tmp_path_factory.mktemp("rclone"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_server(moto_server: S3Server) -> S3Server:
    """The S3 server for tests that need just one."""
    return moto_server


@pytest.fixture
def fresh_rclone(tmp_path: Path) -> Iterator[S3Server]:
    """A server of the test's own, to be killed and started again."""
    folder = tmp_path / "rclone"
    folder.mkdir()
    server = start_rclone(folder)
    yield server
    server.kill()
