"""Azurite, Microsoft's emulator of Azure Blob Storage, on a private port: checks signatures, enforces If-None-Match,
keeps metadata. An npm package with a lock file of its own in `azurite/`, installed when it is first asked for; where
it cannot be (no npm, no registry), its tests are skipped."""

import base64
import hashlib
import hmac
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.servers.npm import install
from tests.servers.s3 import START_TIMEOUT_S, free_port

PACKAGE = Path(__file__).parent / "azurite"
PROGRAM = PACKAGE / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's published account."""
API_VERSION = "2021-08-06"


class AzuriteServer:
    """A server process with one container. `environ` is what a client needs; `url()` gives each caller a prefix."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.container = "logs"
        self.endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        self.environ = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }
        address = ("--blobHost", "127.0.0.1", "--blobPort", str(self.port))
        options = ("--location", str(folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry")
        self._process = subprocess.Popen(
            [str(PROGRAM), *address, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait()
        self._make_container()

    def url(self, prefix: str | None = None) -> str:
        return f"az://{self.container}/{prefix or uuid.uuid4().hex[:12]}"

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError("azurite did not start") from None
                time.sleep(0.05)

    def _make_container(self) -> None:
        """Signed as Azure wants it: the client under test makes no containers."""
        moment = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = f"x-ms-date:{moment}\nx-ms-version:{API_VERSION}"
        resource = f"/{ACCOUNT}/{ACCOUNT}/{self.container}\nrestype:container"
        signed = hmac.digest(
            base64.b64decode(KEY), f"PUT{chr(10) * 12}{headers}\n{resource}".encode(), hashlib.sha256
        )
        request = urllib.request.Request(
            f"{self.endpoint}/{self.container}?restype=container",
            method="PUT",
            headers={
                "x-ms-date": moment,
                "x-ms-version": API_VERSION,
                "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            response.read()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    if why := install(PACKAGE, PROGRAM):
        pytest.skip(f"azurite cannot be installed: {why}")
    server = AzuriteServer(tmp_path_factory.mktemp("azurite"))
    yield server
    server.kill()
