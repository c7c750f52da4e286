"""What callers of a gateway feel while its log queue overflows and the store is away.

A gateway serves a steady stream of requests; another producer floods the queue that they share. Three times: without
a flood, with the same flood into another Redis (the machine is as busy, the queue is not), and with the flood into
the gateway's own queue. Then the store comes back, and every record is accounted for.

    python -m tests.logs.overflow_latency [records] [bound]
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.logs.faulty_proxy import Fault, FaultyProxy
from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server, start_moto
from tollkeeper.domain.log_account import VerifyReport, count
from tollkeeper.domain.log_queue import Bounds
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.queues import RedisQueue
from tollkeeper.logs.sinks import open_store
from tollkeeper.logs.verify import verify

REQUESTS_PER_S = 50
FLOOD_PER_S = 15_000
"""The original target of a whole deployment."""
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


class Felt(msgspec.Struct):
    """Times in ms, of requests that were due every 1/REQUESTS_PER_S, from when each was due. `cpu` is the gateway's
    processor time, all that it did meanwhile, by the number of requests: it hardly depends on how busy others are."""

    p50: float
    p99: float
    requests: int
    failed: int
    cpu: float


class Outcome(msgspec.Struct):
    """`flooded` and `dropped` in records; `dropped` as the queue counted."""

    quiet: Felt
    busy: Felt
    overflowing: Felt
    flooded: int
    dropped: int
    shipped_failures: int
    report: VerifyReport

    @property
    def differences(self) -> int:
        """Requests that failed, and records that nothing accounts for."""
        felt = (self.quiet, self.busy, self.overflowing)
        told = sum(count(producer.dropped) for producer in self.report.producers.values())
        return sum(f.failed for f in felt) + abs(told - self.dropped) + int(not self.report.complete)


class Caller:
    """One client, open loop."""

    def __init__(self, session: aiohttp.ClientSession, gateway: GatewayProcess, secret: str) -> None:
        self._session, self._url = session, f"{gateway.url}/v1/chat/completions"
        self._pid = gateway.process.pid
        self._headers = {"Authorization": f"Bearer {secret}"}

    async def during(self, ended: asyncio.Event) -> Felt:
        """Call until `ended`."""
        times: list[float] = []
        failed = 0
        cpu = processor_ms(self._pid)

        async def call(due: float) -> None:
            nonlocal failed
            try:
                async with self._session.post(self._url, json=BODY, headers=self._headers) as answer:
                    await answer.read()
                    failed += answer.status != 200
            except aiohttp.ClientError:
                failed += 1
            times.append((time.perf_counter() - due) * 1000)

        due = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            while not ended.is_set():
                calls.create_task(call(due))
                due += 1 / REQUESTS_PER_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        times.sort()
        cpu = (processor_ms(self._pid) - cpu) / len(times)
        return Felt(times[len(times) // 2], times[len(times) * 99 // 100], len(times), failed, cpu)


def processor_ms(pid: int) -> float:
    """What a process has used so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * 1000 / os.sysconf("SC_CLK_TCK")


async def measure(
    records: int, bound: int, folder: Path, redis: RedisServer, other: RedisServer, s3: S3Server, quiet_s: float
) -> Outcome:
    """See above; `other` is any Redis that nobody else uses."""
    url = s3.url()
    async with FaultyProxy(s3.port) as proxy:
        proxy.fault = Fault.ERROR_503  # it starts and is ready without the store, too
        environ = {**s3.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "LOG_STORE_URL": url}
        simulator = await asyncio.to_thread(SimulatorProcess, folder)
        logs = f"[logs]\nrecords_max = {bound}\nobject_records_max = {max(1, bound // 10)}\nflush_interval_s = 0.2\n"
        more = environ | {"REDIS_URL": redis.url}
        gateway = await asyncio.to_thread(GatewayProcess, folder / "gateway", simulator.url, more, logs)
        try:
            made = await asyncio.to_thread(gateway.admin, "POST", "/keys", {"name": "app"})
            async with aiohttp.ClientSession() as session:
                caller = Caller(session, gateway, str(made["secret"]))
                quiet = await _quiet(caller, quiet_s)
                busy, _ = await _flooded(caller, other.url, "elsewhere", records, bound, folder)
                overflowing, flooded = await _flooded(caller, redis.url, "flood", records, bound, folder)
            async with RedisClient(url=redis.url, read_timeout_s=5.0) as client:
                queue = RedisQueue(client, "judge", Bounds())
                dropped = (await queue.stats()).dropped
                stats: Any = await asyncio.to_thread(gateway.admin, "GET", "/logs/stats")
                proxy.fault = Fault.NONE
                while (await queue.stats()).size:
                    await asyncio.sleep(0.1)
                await asyncio.to_thread(gateway.stop)
                report = await verify(open_store(url, 10.0, s3.environ), {"flood": flooded}, [queue])
        finally:
            gateway.kill()
            simulator.kill()
    return Outcome(quiet, busy, overflowing, flooded, dropped, stats["failures"], report)


async def _quiet(caller: Caller, seconds: float) -> Felt:
    ended = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, ended.set)
    return await caller.during(ended)


async def _flooded(
    caller: Caller, url: str, producer: str, records: int, bound: int, folder: Path
) -> tuple[Felt, int]:
    """What was felt, and how many records were produced meanwhile."""
    ended = asyncio.Event()
    arguments = [url, producer, str(records), str(bound), str(FLOOD_PER_S)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.logs.flood", *arguments), stdout=subprocess.PIPE
    )
    calling = asyncio.create_task(caller.during(ended))
    output, _ = await process.communicate()
    ended.set()
    felt = await calling
    if process.returncode:
        raise RuntimeError(f"the flood ended with {process.returncode}")
    return felt, int(output.split()[0])


def run(records: int, bound: int, quiet_s: float) -> Outcome:
    """On servers of its own."""
    with tempfile.TemporaryDirectory(prefix="tk-") as name:
        folders = [Path(name) / sub for sub in ("redis", "other")]
        for folder in folders:
            folder.mkdir()
        redis, other = (RedisServer(folder) for folder in folders)
        s3 = start_moto()
        try:
            redis.start()
            other.start()
            return asyncio.run(measure(records, bound, Path(name), redis, other, s3, quiet_s))
        finally:
            redis.stop()
            other.stop()
            s3.kill()


def words(outcome: Outcome) -> str:
    """One line."""
    felt = {"quiet": outcome.quiet, "flood elsewhere": outcome.busy, "overflow": outcome.overflowing}
    shown = "; ".join(
        f"{n} {f.p50:.1f}, {f.p99:.1f}, {f.cpu:.1f} ms ({f.requests:,} requests)" for n, f in felt.items()
    )
    ends = f"{outcome.dropped:,} dropped, {outcome.shipped_failures} tries of the store failed"
    return f"p50, p99, processor time a request: {shown}; {ends}"


def main() -> int:
    """One run at full size."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    bound = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    outcome = run(records, bound, 30.0)
    print(words(outcome))
    return 1 if outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main())
