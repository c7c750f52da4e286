"""Whole gateways and simulated providers as processes of their own, as an operator runs them."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.servers.s3 import free_port

START_TIMEOUT_S = 90.0
ADMIN_TOKEN = "an-admin-token-for-tests-of-32-chars"
DIGEST_KEY = "a-digest-key-for-tests-of-32-chars-"


class Program:
    """`tollkeeper …` on a free port; `stop` is the operator's SIGTERM and gives the exit status.

    `module` is what Python runs. It can be killed and launched again, on the same port.
    """

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        environ: Mapping[str, str],
        ready_path: str,
        *,
        module: str = "tollkeeper",
        wait: bool = True,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{arguments[0]}-{self.port}.log"
        self._folder, self._arguments, self._module = folder, arguments, module
        self._environ, self._ready_path = environ, ready_path
        self.launch()
        if wait:
            self.wait_until_ready()

    def launch(self, environ: Mapping[str, str] | None = None) -> None:
        """Start the process and do not wait for it. `environ` comes on top, this time only."""
        base = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module, *self._arguments, "--port", str(self.port)],
                cwd=self._folder,
                env={**base, **self._environ, **(environ or {})},
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        """RuntimeError, with the end of its log, if it does not get ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers(self._ready_path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                name = f"tollkeeper {self._arguments[0]}"
                raise RuntimeError(f"{name} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return bytes(response.read())

    def stop(self, timeout_s: float = 30) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> bool:
        """SIGKILL; whether it was still alive."""
        alive = self.process.poll() is None
        if alive:
            self.process.kill()
            self.process.wait()
        return alive


class GatewayProcess(Program):
    """`tollkeeper serve` with its own data directory and both dialects at one upstream."""

    def __init__(
        self,
        folder: Path,
        upstream: str,
        environ: Mapping[str, str],
        more: str = "",
        *,
        module: str = "tollkeeper",
        wait: bool = True,
    ) -> None:
        """`more`: further tables of the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "tollkeeper.toml"
        config.write_text(
            f'[providers.openai]\nbase_url = "{upstream}/v1"\ndialect = "openai"\nprices = "openai"\n'
            f'[providers.anthropic]\nbase_url = "{upstream}/v1"\ndialect = "anthropic"\nprices = "anthropic"\n'
            f'models = ["claude-*"]\n{more}'
        )
        own = {
            "TOLLKEEPER_DATA_DIR": str(folder / "data"),
            "TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN,
            "TOLLKEEPER_DIGEST_KEY": DIGEST_KEY,
        }
        arguments = ["serve", "--config", str(config)]
        super().__init__(folder, arguments, {**own, **environ}, "/readyz", module=module, wait=wait)

    def admin(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """One call of the admin API."""
        request = urllib.request.Request(
            f"{self.url}/admin/v1{path}",
            method=method,
            data=None if body is None else msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer: dict[str, object] = msgspec.json.decode(response.read() or b"{}")
                return answer
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None


class SimulatorProcess(Program):
    """`tollkeeper simulate`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder, ["simulate", *arguments], {}, "/sim/served")
