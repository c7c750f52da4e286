"""What does a stream cost? Processor time of a chunk, memory of an open stream, and how long a byte is on its way."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop
from tests.servers.redis import RedisServer
from tests.servers.s3 import free_port

from benchmarks.gateway import THEIRS, governed, pin, pinned
from benchmarks.gateways import cpu_s, memory_mib
from benchmarks.table import table

QUESTION = "Streams: processor time of a chunk, memory of an open stream, time from byte in to byte out"
NOTES = (
    "Chat streams of one event of 260 bytes every so often, each written by the provider when it is due, so that the "
    "gateway gets and passes them one by one; everything is on, with Redis. The gateway is pinned to one core; the "
    "provider, the reader and Redis share the other. *CPU* is the gateway's processor time while the streams run "
    "divided by the chunks that came out, and *chunks/s a core* is what that leaves room for; *chunks a read* is how "
    "many came at once, since who is late gets several, which then cost less. *On the way* is from "
    "the provider's write to the reader's read, by one clock; *direct* is the same without a gateway. *First byte* "
    "is that of the first chunk of streams that begin one after the other. Memory is the growth of the resident set "
    "with so many streams open that were never open before."
)
STREAMS: Final = (1, 64, 256)
EVERY_MS: Final = {1: 5, 16: 10, 64: 10, 256: 20}
SECONDS: Final = 5
FIRST_BYTES: Final = 300
OPEN: Final = 2000
STAMP: Final = re.compile(rb'"content":" (\d+)"')
MORE: Final = """
[server]
connections_max = 4096
drain_timeout_s = 1.0
[providers.many]
base_url = "{url}/v1"
dialect = "openai"
models = ["many"]
connections_max = 4096
idle_timeout_s = 600
total_timeout_s = 3600
[models.many]
provider = "many"
upstream_model = "gpt-4o-mini"
input_usd = "1"
output_usd = "2"
"""


class Reader(asyncio.Protocol):
    """One connection that asks for a stream and counts its chunks."""

    def __init__(self, secret: str, every_ms: int, chunks: int) -> None:
        text = f"Say something about the sea. [[pace every_ms={every_ms} chunks={chunks}]]"
        body = (
            f'{{"model":"many","max_tokens":64,"stream":true,"messages":[{{"role":"user","content":"{text}"}}]}}'
        ).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {secret}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.chunks = self.reads = 0
        self.way_ns: list[int] = []
        self.first_ns: int | None = None
        self.status = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.status:
            self.status = data[9:12]
        came = data.count(b'"content":')
        if came:
            self.chunks += came
            self.reads += 1
            stamp = STAMP.search(data)
            if stamp is not None:
                way = now - int(stamp[1])
                self.way_ns.append(way)
                if self.first_ns is None:
                    self.first_ns = way
        if b"[DONE]" in data or self.status != b"200":
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def opened(url: str, count: int, secret: str, every_ms: int, chunks: int) -> list[Reader]:
    """So many streams, begun a few at a time."""
    loop, at = asyncio.get_running_loop(), urlsplit(url)
    readers: list[Reader] = []
    for _ in range(count):
        _, reader = await loop.create_connection(
            lambda: Reader(secret, every_ms, chunks), at.hostname or "", at.port or 0
        )
        readers.append(reader)
        if len(readers) % 20 == 0:
            await asyncio.sleep(0.02)
    while any(not reader.status for reader in readers):
        await asyncio.sleep(0.05)
    failed = [reader.status for reader in readers if reader.status != b"200"]
    if failed:
        raise RuntimeError(f"{len(failed)} streams of {count} were refused: {failed[0]!r}")
    return readers


def closed(readers: list[Reader]) -> None:
    """Leave all of them."""
    for reader in readers:
        reader.transport.close()


async def passing(url: str, pid: int | None, secret: str, streams: int) -> tuple[float, float, list[int]]:
    """Processor time (µs) a chunk while so many streams run, how many came in one read, and how long they were on
    their way (ns)."""
    every_ms = EVERY_MS[streams]
    readers = await opened(url, streams, secret, every_ms, SECONDS * 1000 // every_ms * 2)
    await asyncio.sleep(0.5)
    before_s = 0.0 if pid is None else cpu_s(pid)
    before, read = sum(reader.chunks for reader in readers), sum(reader.reads for reader in readers)
    for reader in readers:
        reader.way_ns.clear()
    await asyncio.sleep(SECONDS)
    spent_s = (0.0 if pid is None else cpu_s(pid)) - before_s
    came = sum(reader.chunks for reader in readers) - before
    reads = sum(reader.reads for reader in readers) - read
    ways = [way for reader in readers for way in reader.way_ns]
    closed(readers)
    await asyncio.sleep(0.5)
    return spent_s / came * 1e6, came / reads, ways


async def first_bytes(url: str, secret: str) -> list[int]:
    """How long the first chunk was on its way, of streams one after the other."""
    found = []
    for _ in range(FIRST_BYTES):
        (reader,) = await opened(url, 1, secret, 3, 2)
        await reader.over
        closed([reader])
        if reader.first_ns is not None:
            found.append(reader.first_ns)
    return found


async def held(url: str, pid: int, secret: str) -> float:
    """KiB of an open stream."""
    before = memory_mib(pid)
    readers = await opened(url, OPEN, secret, 3000, 100)
    await asyncio.sleep(4)
    grown = memory_mib(pid) - before
    closed(readers)
    await asyncio.sleep(4)
    return grown * 1024 / OPEN


@contextmanager
def paced(folder: Path) -> Iterator[str]:
    """The provider; its URL."""
    port = free_port()
    command = [*pinned(THEIRS), sys.executable, "-m", "benchmarks.pacer", str(port)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _ms(values: list[int], share: float) -> str:
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6:.2f}"


async def measure(direct: str, ours: str, pid: int, secret: str) -> list[tuple[str, ...]]:
    """The rows of the table."""
    rows: list[tuple[str, ...]] = []
    await passing(ours, pid, secret, 16)  # warm
    kib = await held(ours, pid, secret)  # first, since memory that was used before is used again
    for streams in STREAMS:
        _, _, plain = await passing(direct, None, secret, streams)
        cpu_us, at_once, ways = await passing(ours, pid, secret, streams)
        rows.append(
            (
                f"{streams} stream{'s' * (streams > 1)}, a chunk every {EVERY_MS[streams]} ms",
                *((f"{cpu_us:.1f}", f"{1e6 / cpu_us:,.0f}", f"{at_once:.1f}") if streams > 1 else ("", "", "")),
                *(_ms(ways, 0.5), _ms(ways, 0.99), _ms(plain, 0.5), _ms(plain, 0.99)),
            )
        )
    plain, ways = await first_bytes(direct, secret), await first_bytes(ours, secret)
    rows.append(
        ("first byte", "", "", "", _ms(ways, 0.5), _ms(ways, 0.99), _ms(plain, 0.5), _ms(plain, 0.99)),
    )
    rows.append((f"memory of one of {OPEN:,} open streams: {kib:.1f} KiB", *[""] * 7))
    return rows


def run() -> str:
    """The table."""
    if pinned(THEIRS):
        os.sched_setaffinity(0, {THEIRS})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisServer(folder)
        redis.start()
        stack.callback(redis.stop)
        assert redis.process is not None
        pin(redis.process.pid, THEIRS)
        direct = stack.enter_context(paced(folder))
        gateway, secret = governed(folder / "ours", direct, {"REDIS_URL": redis.url}, 1, MORE.format(url=direct))
        stack.callback(gateway.kill)
        rows = uvloop.run(measure(direct, gateway.url, gateway.process.pid, secret))
    head = (
        "",
        "CPU µs a chunk",
        "chunks/s a core",
        "chunks a read",
        "on the way p50 ms",
        "p99",
        "direct p50 ms",
        "p99",
    )
    return table(head, rows)
