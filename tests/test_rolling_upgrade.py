"""Promise 4 across an upgrade: two releases on one Redis and one PostgreSQL, under load, and no request fails.

The next release is today's code with a migration more. It is installed while the old one serves, its migration runs
while the old one serves, and then its workers replace the old ones one by one.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.app.test_supervisor import PATIENCE_S, Crew
from tests.servers.gateway import DIGEST_KEY
from tests.servers.postgres import PostgresServer, postgres
from tests.servers.redis import RedisServer
from tests.storage.next_release import make_release
from tollkeeper.domain.money import nano_from_usd

__all__ = ["postgres"]
CLIENTS = 6
PROGRAM = [sys.executable, "-m", "tollkeeper"]


class Installed:
    """A link to the release that is installed; `switch` is an upgrade of it."""

    def __init__(self, folder: Path) -> None:
        self.link = folder / "installed"
        self.releases = {
            "1.0": make_release(folder / "1.0", "1.0", migrates=False),
            "1.1": make_release(folder / "1.1", "1.1", migrates=True),
        }
        self.link.symlink_to(self.releases["1.0"])

    def switch(self, version: str) -> None:
        draft = self.link.with_suffix(".draft")
        draft.symlink_to(self.releases[version])
        draft.replace(self.link)


async def command(version: Path, database: str, *words: str) -> tuple[int | None, str]:
    """A command of a release; its exit code and what it says on standard error."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(version), "DATABASE_URL": database}
    environ["TOLLKEEPER_DIGEST_KEY"] = DIGEST_KEY
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *words, env=environ, cwd=version, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    _, err = await process.communicate()
    return process.returncode, err.decode()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(300)
async def test_an_upgrade_under_load_fails_no_request_and_loses_no_spend(
    tmp_path: Path, redis: RedisServer, postgres: PostgresServer
) -> None:
    """Every request is answered with 200, by old and new processes side by side; the database has each one once."""
    installed = Installed(tmp_path)
    database = postgres.create_database("upgraded")
    assert await command(installed.releases["1.0"], database, "migrate") == (0, "")
    environ = {"DATABASE_URL": database, "PYTHONPATH": str(installed.link)}
    crew = await asyncio.to_thread(Crew, tmp_path, redis, environ)
    statuses: Counter[int] = Counter()
    versions: set[frozenset[str]] = set()
    done = asyncio.Event()

    async def client(number: int) -> None:
        connector = aiohttp.TCPConnector(force_close=number % 2 == 0)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not done.is_set():
                statuses[await crew.ask(session, "[[sim input=10 output=5 delay_ms=50]]")] += 1

    async def watch() -> None:
        while not done.is_set():
            builds = await asyncio.to_thread(crew.samples, "tollkeeper_build_info")
            versions.add(frozenset(version for _, version in builds))
            await asyncio.sleep(0.05)

    running = [asyncio.create_task(client(number)) for number in range(CLIENTS)] + [asyncio.create_task(watch())]
    try:
        before = crew.processes()
        installed.switch("1.1")
        assert await command(installed.releases["1.1"], database, "migrate") == (0, "")
        os.kill(crew.gateway.process.pid, signal.SIGHUP)
        await asyncio.to_thread(crew.until, lambda: crew.events("renewal_ended"))
        assert crew.events("renewal_ended")[-1]["replaced"] is True
        await asyncio.to_thread(crew.until, lambda: not set(crew.processes().values()) & set(before.values()))
        await asyncio.to_thread(crew.until, lambda: versions_now(crew) == {"1.1"})
    finally:
        done.set()
        await asyncio.gather(*running)
    assert set(statuses) == {200}, statuses
    assert {frozenset({"1.0"}), frozenset({"1.0", "1.1"})} <= versions
    usage = await asyncio.to_thread(crew.usage)
    assert usage["requests"] == statuses[200]
    assert nano_from_usd(usage["cost_usd"]) == statuses[200] * (10 * 150 + 5 * 600)
    assert await asyncio.to_thread(crew.gateway.stop, PATIENCE_S) == 0
    crew.simulator.kill()


def versions_now(crew: Crew) -> set[str]:
    builds: Any = crew.samples("tollkeeper_build_info")
    return {version for _, version in builds}
