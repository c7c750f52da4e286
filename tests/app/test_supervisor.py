"""`tollkeeper serve --workers 2` as an operator meets it: one port, one scrape, deaths, renewals and stops."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import RedisServer
from tollkeeper.domain.money import nano_from_usd
from tollkeeper.governance.outbox import DispatchLine, EntryLine, Segment
from tollkeeper.observability.exposition import labelled, merged

PATIENCE_S = 60.0
SETTINGS = "[server]\nworkers = 2\n[billing]\nsync_interval_s = 3600.0\n"
CLIENTS = 6


class Crew:
    """Two workers on a Redis of their own, with a key without limits."""

    def __init__(self, folder: Path, redis: RedisServer, environ: Mapping[str, str] | None = None) -> None:
        self.simulator = SimulatorProcess(folder)
        environ = {"REDIS_URL": redis.url, **(environ or {})}
        self.gateway = GatewayProcess(folder / "gateway", self.simulator.url, environ, SETTINGS)
        self.outboxes = folder / "gateway" / "data" / "outbox"
        self.until(lambda: self.processes().keys() == {0, 1})
        self.secret = str(self.gateway.admin("POST", "/keys", {"name": "one"})["secret"])
        self.until(lambda: all(keys == 1 for keys in self.samples("tollkeeper_keys").values()))

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.gateway.log.read_text()[-4000:]
            time.sleep(0.05)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.gateway.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def processes(self) -> dict[int, int]:
        """Place → process, of those that serve."""
        found = {event["worker"]: event["process"] for event in self.events("worker_serves")}
        return {place: process for place, process in found.items() if alive(process)}

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Label values → value, of one scrape."""
        text = self.gateway.get("/metrics").decode()
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    async def ask(self, session: aiohttp.ClientSession, text: str = "Hi") -> int:
        body = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {self.secret}"}
        url = self.gateway.url + "/v1/chat/completions"
        async with session.post(url, json=body, headers=headers) as response:
            await response.read()
            return response.status

    def usage(self) -> dict[str, Any]:
        """The key's month, as the database has it after a sync."""
        self.gateway.admin("POST", "/sync")
        listed: Any = self.gateway.admin("GET", "/usage")
        (row,) = listed["data"]
        return dict(row)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    folder = tmp_path_factory.mktemp("crew")
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis")
    redis.start()
    made = Crew(folder, redis)
    yield made
    made.gateway.kill()
    made.simulator.kill()
    redis.stop()


async def test_the_port_is_shared_and_one_scrape_and_one_sync_are_of_all(crew: Crew) -> None:
    """New connections reach both workers; /metrics tells of both, whoever answers; a sync brings what both know."""
    asked = 40
    for _ in range(asked):
        async with aiohttp.ClientSession() as session:
            assert await crew.ask(session) == 200
    admitted = crew.samples("tollkeeper_admissions_total")
    by_worker = {worker: count for (worker, result), count in admitted.items() if result == "admitted"}
    assert by_worker.keys() == {"0", "1"} and sum(by_worker.values()) == asked
    assert min(by_worker.values()) > 0
    assert crew.samples("tollkeeper_workers")[("supervisor", "serving")] == 2
    assert crew.samples("process_resident_memory_bytes").keys() == {("supervisor",), ("0",), ("1",)}
    assert crew.usage()["requests"] == asked
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: run `make servers`"
    page = crew.gateway.get("/metrics")
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_a_renewal_under_load_fails_no_request(crew: Crew) -> None:
    """SIGHUP: all processes are new, and clients with kept and with new connections noticed nothing."""
    before, done = crew.processes(), asyncio.Event()
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        connector = aiohttp.TCPConnector(force_close=number % 2 == 0)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not done.is_set():
                statuses[await crew.ask(session, "[[sim delay_ms=20]]")] += 1

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    os.kill(crew.gateway.process.pid, signal.SIGHUP)
    await asyncio.to_thread(crew.until, lambda: crew.events("renewal_ended"))
    await asyncio.to_thread(crew.until, lambda: not any(map(alive, before.values())))
    done.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200} and statuses[200] > CLIENTS
    after = crew.processes()
    assert len(after) == 2 and not set(after.values()) & set(before.values())
    assert crew.events("renewal_ended")[-1]["replaced"] is True


async def test_a_dead_worker_is_replaced_and_its_outbox_closed(crew: Crew) -> None:
    """What it had dispatched is charged at its hold, once; the others serve on."""
    before = crew.usage()
    (place, victim), *_ = crew.processes().items()
    other = next(process for process in crew.processes().values() if process != victim)
    os.kill(other, signal.SIGSTOP)  # so that the victim gets the request
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(crew.ask(session, "[[sim delay_ms=60000]]"))
        await asyncio.to_thread(crew.until, lambda: in_flight(crew.outboxes))
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        with pytest.raises(aiohttp.ClientError):
            await asking
        assert await crew.ask(session) == 200, "the other one serves"
    await asyncio.to_thread(crew.until, lambda: crew.events("producer_closed"))
    await asyncio.to_thread(crew.until, lambda: len(crew.processes()) == 2)
    (death,) = [event for event in crew.events("worker_ended") if event["how"] == "died"]
    assert (death["worker"], death["status"]) == (place, -signal.SIGKILL)
    assert crew.samples("tollkeeper_worker_ends_total")[("supervisor", "died")] == 1
    after = crew.usage()
    assert after["requests"] == before["requests"] + 2
    charge = nano_from_usd(after["cost_usd"]) - nano_from_usd(before["cost_usd"])
    listed: Any = crew.gateway.admin("GET", "/corrections")
    (presumed,) = listed["data"]
    assert presumed["status"] == "presumed"
    assert charge > nano_from_usd(presumed["cost_usd"]) > 0


def in_flight(outboxes: Path) -> set[str]:
    """Attempts that were dispatched and have no entry yet."""
    lines = [line for path in outboxes.glob("*/*.seg") for line in Segment(path).read()]
    dispatched = {line.dispatch.attempt for line in lines if isinstance(line, DispatchLine)}
    return dispatched - {line.entry.attempt for line in lines if isinstance(line, EntryLine)}


async def test_a_stop_answers_what_is_in_flight(crew: Crew) -> None:
    """SIGTERM to the supervisor alone: all drain, and the command ends with 0."""
    processes = crew.processes()
    async with aiohttp.ClientSession() as session:
        asking = [asyncio.create_task(crew.ask(session, "[[sim delay_ms=1500]]")) for _ in range(CLIENTS)]
        await asyncio.to_thread(crew.until, lambda: crew.samples("tollkeeper_holds") and holds(crew) == CLIENTS)
        code = await asyncio.to_thread(crew.gateway.stop, PATIENCE_S)
        assert await asyncio.gather(*asking) == [200] * CLIENTS
    assert code == 0 and crew.gateway.log.read_text().endswith("stopped cleanly\n")
    assert not any(map(alive, processes.values()))


def holds(crew: Crew) -> float:
    return sum(crew.samples("tollkeeper_holds").values())


def test_workers_do_not_outlive_their_supervisor() -> None:
    """Killed or crashed, it leaves nobody on the port: a worker whose channel has ended stops as by SIGTERM."""
    code = (
        "import asyncio; from tollkeeper.app.crew import Crew, read_place\n"
        "async def live():\n"
        "    place, _, channel = read_place('0:0:%d')\n"
        "    crew = await Crew.join(place, channel)\n"
        "    print('lives', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(live())"
    )
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", code % theirs.fileno()]
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdout=pipe, stderr=pipe)
    with worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"lives\n"
        ours.close()
        assert worker.wait(PATIENCE_S) == -signal.SIGTERM


def test_pages_are_merged_by_family() -> None:
    """Each family's text once, all samples below it, whatever a label's value contains."""
    one = (
        b'# HELP a_total A.\n# TYPE a_total counter\na_total{x="# HELP {b"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    )
    two = b"# HELP b Other.\n# TYPE b gauge\nb 3.0\n# HELP c C.\n# TYPE c gauge\nc 4.0\n"
    assert merged([labelled(one, "worker", "0"), labelled(two, "worker", "1")]).decode().splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{worker="0",x="# HELP {b"} 1.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{worker="0"} 2.0',
        'b{worker="1"} 3.0',
        "# HELP c C.",
        "# TYPE c gauge",
        'c{worker="1"} 4.0',
    ]
