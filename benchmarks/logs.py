"""What does a log record cost, from `put` to the object store? In memory, through Redis, and by its size."""

import asyncio
import random
import re
import tempfile
import time
from pathlib import Path

import uvloop
from tests.logs.conftest import make_record
from tests.servers.redis import RedisServer

from benchmarks.table import table
from tollkeeper.domain.record import RequestRecord
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.buffer import LogBuffer
from tollkeeper.logs.encoding import encode
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.logs.sinks import open_store
from tollkeeper.logs.worker import LogWorker
from tollkeeper.observability.logging import configure
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

QUESTION = "Log records: enqueued, shipped, kept"
NOTES = (
    "*put*: encode, number and hand over, as a request does it, 20 records a turn of the loop; CPU of the whole "
    "process for each record, the client of Redis included. *Redis*: time in scripts by `INFO commandstats`, and "
    "memory of the full queue, for each record. *shipped*: one worker, from Redis into a local folder, gzip "
    "included; texts are random words, ids random. *CPU s a million*: all three. A million records at S3's list "
    "price of 0.023 USD a GB and month and 0.005 USD a thousand PUTs comes to `object bytes` × 0.000023 USD a "
    "month and 0.0005 USD once: nothing beside the processor time, until bodies are large."
)
BODY_CHARS = (0, 4_000, 60_000, 900_000)
"""Of the longest text; a record without is about 0.9 kB."""
BYTES = 60 * 10**6
"""Of records in one measurement, and no more than RECORDS."""
RECORDS = 60_000
TURN = 20
VARIETY = 50
WORDS = [random.randbytes(2).hex() for _ in range(2_000)]


def sample(chars: int) -> RequestRecord:
    """A record as a gateway makes it, with an answer of that many characters."""
    words = " ".join(random.choices(WORDS, k=chars // 5)) if chars else None
    return make_record(
        random.randrange(10**6),
        request_id=f"req_{random.randbytes(16).hex()}",
        upstream_request_id=f"chatcmpl-{random.randbytes(12).hex()}",
        total_us=random.randrange(10**7),
        cost_nano=random.randrange(10**7),
        response_body=words,
    )


class Figures:
    """Of one size, in records and µs."""

    put_rate = put_cpu_us = redis_us = redis_bytes = ship_rate = ship_cpu_us = object_bytes = record_bytes = 0.0


async def measure(server: RedisServer, folder: Path, chars: int) -> Figures:
    """Put as many as fit into the queue, then ship them."""
    figures = Figures()
    records = [sample(chars) for _ in range(VARIETY)]
    size = sum(len(part) + len(body) for part, body in map(encode, records)) // VARIETY
    number = max(50, min(RECORDS, BYTES // size))
    settings = LogSettings(records_max=2 * number, buffer_bytes_max=4 * BYTES, ship=False)
    async with RedisClient(url=server.url, read_timeout_s=30.0) as client:
        before = memory(server)
        server.command("CONFIG", "RESETSTAT")
        pipeline = LogPipeline(
            settings=settings,
            url=(folder / "unused").as_uri(),
            producer="bench",
            metrics=Metrics(),
            now_us=lambda: 0,
            client=client,
            spool_root=folder / "spool",
        )
        await pipeline.start()
        begun, cpu = time.perf_counter(), time.process_time()
        for i in range(number):
            pipeline.put(records[i % VARIETY])
            if i % TURN == TURN - 1:
                await asyncio.sleep(0)
        await pipeline._producer.flush()
        elapsed, used = time.perf_counter() - begun, time.process_time() - cpu
        assert pipeline.stats().dropped == 0
        figures.put_rate, figures.put_cpu_us = number / elapsed, used / number * 1e6
        figures.redis_us = script_us(server) / number
        figures.redis_bytes = (memory(server) - before) / number
        await pipeline.stop()

        store = open_store((folder / "store").as_uri(), 30.0)
        worker = LogWorker(
            settings=LogSettings(records_max=2 * number, buffer_bytes_max=4 * BYTES), url="", metrics=Metrics(),
            now_us=lambda: 0, client=client, store=store,
        )  # fmt: skip
        begun, cpu = time.perf_counter(), time.process_time()
        while await worker.shipper.ship() is not None:
            pass
        elapsed, used = time.perf_counter() - begun, time.process_time() - cpu
        assert worker.shipper.delivered == number
        figures.ship_rate, figures.ship_cpu_us = number / elapsed, used / number * 1e6
    written = [path.stat().st_size for path in (folder / "store").rglob("*.gz")]
    figures.object_bytes = sum(written) / number
    figures.record_bytes = size
    return figures


async def library(store: RedisClient | None) -> tuple[float, float]:
    """`LogBuffer.enqueue` by 64 tasks: records a second, CPU µs each."""
    buffer = LogBuffer(store, max_records=10**6)
    number = 64_000

    async def task() -> None:
        for i in range(number // 64):
            await buffer.enqueue({"n": i, "text": "x" * 500})

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(task() for _ in range(64)))
    elapsed, used = time.perf_counter() - begun, time.process_time() - cpu
    await buffer.stop()
    return number / elapsed, used / number * 1e6


async def library_on(server: RedisServer) -> tuple[float, float]:
    """The same on Redis."""
    async with RedisClient(url=server.url) as client:
        return await library(client)


def memory(server: RedisServer) -> int:
    """Bytes that Redis uses."""
    return _number(rb"used_memory:(\d+)", server.command("INFO", "memory"))


def script_us(server: RedisServer) -> int:
    """µs spent in scripts since the last reset."""
    return _number(rb"cmdstat_evalsha:calls=\d+,usec=(\d+)", server.command("INFO", "commandstats"))


def _number(pattern: bytes, text: bytes) -> int:
    found = re.search(pattern, text)
    assert found is not None
    return int(found[1])


def run() -> str:
    """The table."""
    configure("error", "json")
    rows: list[tuple[str, ...]] = []
    for chars in BODY_CHARS:
        with tempfile.TemporaryDirectory() as name:
            server = RedisServer(Path(name))
            server.start()
            try:
                f = uvloop.run(measure(server, Path(name), chars))
            finally:
                server.stop()
        cells = (f"{f.put_rate:,.0f}", f"{f.put_cpu_us:.1f}", f"{f.redis_us:.2f}", f"{f.redis_bytes:,.0f}")
        shipped = (f"{f.ship_rate:,.0f}", f"{f.ship_cpu_us:.1f}", f"{f.object_bytes:,.0f}")
        million = f"{f.put_cpu_us + f.redis_us + f.ship_cpu_us:,.0f}"
        rows.append((f"{f.record_bytes / 1000:.1f} kB", *cells, *shipped, million))
    with tempfile.TemporaryDirectory() as name:
        server = RedisServer(Path(name))
        server.start()
        try:
            memory_rate, redis_rate = uvloop.run(library(None)), uvloop.run(library_on(server))
        finally:
            server.stop()
    empty = ("",) * 6
    rows.append(("LogBuffer.enqueue, memory", f"{memory_rate[0]:,.0f}", f"{memory_rate[1]:.1f}", *empty))
    rows.append(("LogBuffer.enqueue, Redis", f"{redis_rate[0]:,.0f}", f"{redis_rate[1]:.1f}", *empty))
    head = (
        *("record", "put/s", "CPU µs each", "Redis µs each", "Redis bytes each"),
        *("shipped/s", "CPU µs each", "object bytes each", "CPU s a million"),
    )
    return table(head, rows)
