"""The command in a fresh working directory: in this process where only its words matter, as a real process else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.servers.postgres import postgres
from tests.servers.redis import own_redis, redis_server
from tollkeeper.cli import main

__all__ = ["own_redis", "postgres", "redis_server"]

COMMAND = (sys.executable, "-m", "tollkeeper")
OWN_VARIABLES = (
    "TOLLKEEPER_",
    "OPENAI_",
    "ANTHROPIC_",
    "REDIS_",
    "DATABASE_URL",
    "LOG_STORE_URL",
    "BILLING_",
    "WEB_CONCURRENCY",
)


class Outcome(msgspec.Struct):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


Command = Callable[..., Outcome]


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that configures a gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment that configures nothing, with a port where nothing listens."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOLLKEEPER_PORT", "9")
    return tmp_path


@pytest.fixture
def command(workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def call(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tollkeeper", *args])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capfd.readouterr()
        return Outcome(int(code), out, err)

    return call


@pytest.fixture
def process(workdir: Path) -> Command:
    """Run the command as a process of its own."""

    def call(*args: str, **environ: str) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *args],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd=workdir,
            env=clean_environment() | {"TOLLKEEPER_PORT": "9"} | environ,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call
