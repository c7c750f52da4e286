"""A real PostgreSQL in a temporary folder: on a Unix socket, without TCP, fsync off.

PostgreSQL refuses to run as root; then it runs as `postgres`, the user of Debian's package, or as `nobody`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

USER: Final = "tollkeeper"
OPTIONS: Final = ("-F", "-c", "listen_addresses=", "-c", "max_connections=60", "-c", "shared_buffers=32MB")
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0


def binary(name: str) -> str:
    """Where a program of PostgreSQL is: in Debian's folders, newest first, or on PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda f: int(f.parent.name), reverse=True)
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"PostgreSQL's {name} is not installed: `make servers` installs it")
    return found


def _owner() -> pwd.struct_passwd | None:
    """Who runs the server, if it cannot be us."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")


class PostgresServer:
    """One server with its own data. `stop` ends it and removes the folder."""

    def __init__(self) -> None:
        self._owner = _owner()
        # Not in pytest's folder: others than its owner cannot enter that, and socket paths must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="tk-pg-"))
        if self._owner is not None:
            os.chown(self.folder, self._owner.pw_uid, self._owner.pw_gid)
        self.data = self.folder / "data"
        self.databases: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._run(
                "initdb", "-D", str(self.data), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
            )
            self.start()
        except BaseException:
            self.stop()
            raise

    def url(self, database: str = "postgres", *, password: str | None = None) -> str:
        """The URL of one of its databases."""
        login = USER if password is None else f"{USER}:{quote(password, safe='')}"
        return f"postgresql://{login}@/{database}?host={self.folder}"

    def start(self) -> None:
        """Start on the data as they are, and wait until it answers."""
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [binary("postgres"), "-D", str(self.data), "-k", str(self.folder), *OPTIONS],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(
            [binary("pg_isready"), "-q", "-h", str(self.folder), "-d", "postgres"], check=False
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def create_database(self, name: str, *, template: str = "template0") -> str:
        """A new database; gives its URL."""
        self._run("createdb", "-h", str(self.folder), "-U", USER, "-T", template, name)
        self.databases.append(name)
        return self.url(name)

    def schema_of(self, database: str) -> str:
        """All that makes the schema, as PostgreSQL itself writes it down."""
        return self._run(
            "pg_dump", "-h", str(self.folder), "-U", USER, "--schema-only", "--no-owner", "-T", "alembic_version",
            database,
        )  # fmt: skip

    def freeze(self) -> None:
        """Stop the postmaster and its children where they are (SIGSTOP): connections stay open and silent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End all of it at once (SIGKILL), and wait until none is left: one would keep the next from starting."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGSTOP)  # it starts no more children, and stays their parent until all are known
        children = _children(process.pid)
        self._signal(signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)
        self._process = None
        for child in children:
            _end(child, STOP_TIMEOUT_S)

    def stop(self) -> None:
        """End it and remove its folder."""
        process = self._process
        if process is not None and process.poll() is None:
            self.thaw()
            process.send_signal(signal.SIGINT)  # PostgreSQL's "fast": clients are disconnected
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        # Each backend is a process group of its own. The postmaster goes first, so that it starts no new ones.
        os.kill(self._process.pid, number)
        for pid in _children(self._process.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _run(self, name: str, *arguments: str) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [binary(name), *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **self._identity(),
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
        return done.stdout

    def _identity(self) -> Mapping[str, Any]:
        if self._owner is None:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}


def _stat(pid: int) -> list[str]:
    """State, parent and so on of a process; nothing if there is none."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _stat(pid)[1:2] == [str(parent)]]


def _end(pid: int, timeout_s: float) -> None:
    """Kill a process and wait until it has let go of everything."""
    deadline = time.monotonic() + timeout_s
    while _stat(pid)[:1] not in ([], ["Z"], ["X"]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {pid} does not end")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a session: each makes its own databases in it."""
    server = PostgresServer()
    yield server
    server.stop()
