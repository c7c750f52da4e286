"""Log delivery: rounds of faults with two judges, broken shippers that must be caught, and overflow at full size."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, get_args

from tests.campaigns import Outcome
from tests.logs import overflow_latency
from tests.logs.fault_rounds import DURABLE, play
from tests.logs.overflow import overflow
from tests.logs.shipper_process import Broken
from tests.servers.redis import RedisServer
from tests.servers.s3 import start_moto, start_rclone
from tollkeeper.domain.log_account import count
from tollkeeper.logs import shipper
from tollkeeper.observability.logging import configure

QUESTION: Final = "Shippers, Redis and store are killed and fail at random: is each log record delivered once?"
FAULT_ROUNDS: Final = 30
"""For each round asked for."""
CONTROL_ROUNDS: Final = 5
QUIET_S: Final = 30.0
OVERFLOW: Final = (1_000_000, 100_000)


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """Rounds on moto (conditional writes) and rclone (signatures) in turn."""
    configure("error", "json")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tk-")))
        for name in ("redis", "rclone"):
            (folder / name).mkdir()
        redis = RedisServer(folder / "redis", aof=True, more=DURABLE)
        stack.callback(redis.stop)
        redis.start()
        servers = [start_moto(), start_rclone(folder / "rclone")]
        for server in servers:
            stack.callback(server.kill)
        first, total = seed * 10_000, rounds * FAULT_ROUNDS
        played = [asyncio.run(play(first + n, redis, servers[n % 2], folder)) for n in range(total)]
        records = sum(sum(o.produced.values()) for o in played)
        amid = records - sum(o.left for o in played)
        events = sum(len(o.events) for o in played)
        dirty = sum(not o.clean for o in played)
        notes = f"{events} faults, {amid:,} shipped amid them"
        yield Outcome("faults", total, f"{records:,} records", dirty, notes)
        for broken in get_args(Broken):
            caught = [
                not asyncio.run(play(first + n, redis, servers[0], folder, broken)).clean
                for n in range(CONTROL_ROUNDS)
            ]
            # a broken shipper that no round catches would be a difference
            notes = f"{sum(caught)} of {CONTROL_ROUNDS} rounds caught it"
            yield Outcome(f"control: {broken}", CONTROL_ROUNDS, "must be caught", int(not any(caught)), notes)
    yield _overflow()
    yield _latency()


def _latency() -> Outcome:
    records, bound = OVERFLOW
    outcome = overflow_latency.run(records, bound, QUIET_S)
    return Outcome(
        "a gateway's latency in an overflow",
        1,
        f"{records:,} records into {bound:,}",
        outcome.differences,
        overflow_latency.words(outcome),
    )


def _overflow() -> Outcome:
    records, bound = OVERFLOW
    shipper.BACKOFF_MAX_S = 2.0  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="tk-") as name:
        redis = RedisServer(Path(name))
        redis.start()
        s3 = start_moto()
        try:
            result = asyncio.run(overflow(records, bound, redis, s3, Path(name)))
        finally:
            redis.stop()
            s3.kill()
    report = result.report
    wrong = abs(count(report.dropped) - (records - bound)) + abs(result.dropped - (records - bound))
    wrong += abs(report.records - bound) + int(not result.complete)
    notes = (
        f"dropped {list(report.dropped)}; Redis {result.redis_full_bytes >> 20} MiB full, "
        f"{result.redis_peak_bytes >> 20} at most; process {result.process_full_bytes >> 20} MiB, "
        f"{result.process_peak_bytes >> 20} at most; slowest turn of the loop {result.worst_turn_s * 1000:.0f} ms"
    )
    return Outcome("overflow", 1, f"{records:,} records into {bound:,}", wrong, notes)
