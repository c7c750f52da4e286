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

START_TIMEOUT_S = 30.0
ADMIN_TOKEN = "an-admin-token-for-tests-of-32-chars"
DIGEST_KEY = "a-digest-key-for-tests-of-32-chars-"


class Program:
    """`tollkeeper …` on a free port; `stop` is the operator's SIGTERM and gives the exit status."""

    def __init__(self, folder: Path, arguments: list[str], environ: Mapping[str, str], ready_path: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{arguments[0]}-{self.port}.log"
        base = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tollkeeper", *arguments, "--port", str(self.port)],
                cwd=folder,
                env={**base, **environ},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers(ready_path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"tollkeeper {arguments[0]} did not start:\n{self.log.read_text()[-4000:]}")
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

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class GatewayProcess(Program):
    """`tollkeeper serve` with its own data directory and both dialects at one upstream."""

    def __init__(self, folder: Path, upstream: str, environ: Mapping[str, str], more: str = "") -> None:
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
        super().__init__(folder, ["serve", "--config", str(config)], {**own, **environ}, "/readyz")

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
