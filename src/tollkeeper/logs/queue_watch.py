"""What a shared queue holds, looked at now and then for metrics: by gateways, which fill it, and by workers.

Knows nothing of who ships it.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.log_queue import Bounds, QueueStats
from tollkeeper.logs.queues import Queue
from tollkeeper.observability.metrics import Metrics

WATCH_INTERVAL_S: Final = 1.0
"""How old the picture of a shared queue may be in metrics."""


def declare_queue(metrics: Metrics, seen: Callable[[], QueueStats], bounds: Bounds) -> None:
    """The queue's gauges. `bounds` are those of all shards together."""

    def fill() -> float:
        queue = seen()
        return max(queue.size / bounds.records_max, queue.bytes / bounds.bytes_max)

    metrics.gauge("tollkeeper_log_depth", "Log records in the queue.", lambda: seen().size)
    metrics.gauge("tollkeeper_log_bytes", "Encoded bytes in the log queue.", lambda: seen().bytes)
    metrics.gauge("tollkeeper_log_fill_ratio", "Fill of the queue; above 0.8 warns.", fill)
    metrics.gauge(
        "tollkeeper_log_shipping_lag_seconds",
        "Age of the oldest log record not yet delivered.",
        lambda: age_s(seen()),
    )


async def watch(queues: Sequence[Queue], see: Callable[[QueueStats], None]) -> None:
    """Look at the queues for ever. While Redis is away the last picture stays."""
    while True:
        with suppress(Unavailable):
            see(together([await queue.stats() for queue in queues]))
        await asyncio.sleep(WATCH_INTERVAL_S)


def together(shards: list[QueueStats]) -> QueueStats:
    """Counts add up; the oldest record is the oldest of all."""
    oldest_us = min((s.oldest_us for s in shards if s.oldest_us), default=0)
    names = [name for name in QueueStats.__struct_fields__ if name not in ("oldest_us", "now_us")]
    sums = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    return QueueStats(**sums, oldest_us=oldest_us, now_us=max(shard.now_us for shard in shards))


def age_s(queue: QueueStats) -> float:
    """Of the oldest record; 0 if there is none."""
    return max(0, queue.now_us - queue.oldest_us) / 1_000_000 if queue.oldest_us else 0.0
