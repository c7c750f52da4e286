"""The log pipeline of one process: takes records from the data plane and answers for every one of them.

    produced = delivered + dropped + pending

holds at every instant, in `stats()` and in one reading of the metrics. Knows neither where objects go (`sinks.py`)
nor when (`shipper.py`).

Records are encoded where they are put, one by one. Measured on an 800-byte record: 0.7–1.4 µs each, against
0.8–1.4 µs in lines of a whole batch, which then must be split again; so batching gains nothing, and encoding at once
makes byte bounds exact, keeps no object alive that the request might still change, and finds the one record that
cannot be encoded.
"""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs import duck, parquet
from tollkeeper.logs.buffer import BufferStats, LogBuffer, MemoryLogBuffer, NumberRange
from tollkeeper.logs.shipper import OBJECT_BYTES_MAX, Shipper
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

RECORD_BYTES_MAX: Final = 2**20
"""Largest encoded record; a larger one is replaced."""
STAND_IN_FIELD_MAX: Final = 256
"""Characters kept of each text in a record that stands in for another."""

_PRODUCER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_log = logger("logs")


class PipelineStats(msgspec.Struct, frozen=True):
    """The account of a pipeline: `produced` = `delivered` + `dropped` + `pending`, in records.

    `replaced` counts records (among those) that stand in for one that could not be kept. `dropped_ranges` are the
    numbers of the newest drops. `last_error` is None while deliveries succeed.
    """

    produced: int
    delivered: int
    dropped: int
    pending: int
    replaced: int
    dropped_ranges: tuple[NumberRange, ...]
    failures: int
    conflicts: int
    last_delivered_us: int | None
    last_error: str | None
    buffer: BufferStats


class LogPipeline:
    """Numbers, buffers and ships the records of one process. Implements `ports.RecordSink`.

    `producer` names this run of the process: letters, digits, `.`, `_`, `-`. It must be new for every start, since
    numbers begin at 1 (the names of objects are made of it; should a name be taken, both objects are kept and
    `tollkeeper_log_conflicts_total` counts). `url` is as for `sinks.open_store`. `buffer` and `store` replace the
    default ones. Raises ConfigurationError for a URL or credentials that cannot work, InvalidInput for the producer.
    """

    def __init__(
        self,
        *,
        settings: LogSettings,
        url: str,
        producer: str,
        metrics: Metrics,
        now_us: Callable[[], int],
        buffer: LogBuffer | None = None,
        store: LogStore | None = None,
    ) -> None:
        if not _PRODUCER.fullmatch(producer):
            raise InvalidInput(f"log producer {producer!r}: use letters, digits, '.', '_' and '-', at most 128")
        if settings.format == "parquet":
            duck.load(parquet.SETTING)  # now, not when the first batch is due
        self._producer = producer
        self._timeout_s = settings.timeout_s
        self._store = open_store(url, settings.timeout_s) if store is None else store
        self._declare(metrics)
        self._buffer: LogBuffer = buffer or MemoryLogBuffer(
            producer,
            records_max=settings.records_max,
            bytes_max=settings.buffer_bytes_max,
            now_us=_monotonic_us,
            on_drop=self._dropped_total.inc,
        )
        self._shipper = Shipper(
            self._buffer,
            self._store,
            # what is leased cannot be dropped: at most half, or an outage would keep the oldest, not the newest
            records_max=max(1, min(settings.object_records_max, settings.records_max // 2)),
            bytes_max=max(1, min(OBJECT_BYTES_MAX, settings.buffer_bytes_max // 2)),
            flush_interval_s=settings.flush_interval_s,
            form=settings.format,
            metrics=metrics,
            now_us=now_us,
        )
        self._task: asyncio.Task[None] | None = None
        self._encode = msgspec.json.Encoder().encode
        self._put = self._buffer.put
        self._produced = 0
        self._replaced = 0

    def _declare(self, metrics: Metrics) -> None:
        self._produced_total = metrics.counter(
            "tollkeeper_log_records_produced_total", "Log records numbered and put into the buffer."
        ).labels()
        self._dropped_total = metrics.counter(
            "tollkeeper_log_records_dropped_total", "Log records dropped because the buffer was full."
        ).labels()
        self._replaced_total = metrics.counter(
            "tollkeeper_log_records_replaced_total",
            "Log records that were too large or could not be encoded, delivered cut short.",
        ).labels()
        self._gauge(metrics, "tollkeeper_log_depth", "Log records in the buffer.", lambda stats: stats.size)
        self._gauge(metrics, "tollkeeper_log_bytes", "Encoded bytes in the log buffer.", lambda stats: stats.bytes)
        self._gauge(metrics, "tollkeeper_log_fill_ratio", "Fill of the buffer; above 0.8 warns.", lambda s: s.fill)
        self._gauge(
            metrics,
            "tollkeeper_log_shipping_lag_seconds",
            "Age of the oldest log record not yet delivered.",
            lambda stats: stats.oldest_age_us / 1_000_000,
        )

    def _gauge(self, metrics: Metrics, name: str, text: str, read: Callable[[BufferStats], float]) -> None:
        metrics.gauge(name, text, lambda: read(self._buffer.stats()))

    def put(self, record: RequestRecord) -> None:
        """Number the record, encode it and queue it. Never blocks, never raises; the record may be reused after."""
        number = self._produced + 1
        try:
            record.producer = self._producer
            record.number = number
            encoded = self._encode(record)
            if len(encoded) > RECORD_BYTES_MAX:
                encoded = self._stand_in(record, number, f"{len(encoded)} bytes are above {RECORD_BYTES_MAX}")
        except Exception as error:  # noqa: BLE001 - "never raises" is the promise; what failed is in the record
            encoded = self._stand_in(record, number, f"cannot be encoded: {type(error).__name__}")
        self._produced = number
        self._produced_total.value += 1
        self._put(number, encoded)

    def _stand_in(self, record: RequestRecord, number: int, reason: str) -> bytes:
        """A small record of the same number that says why it replaces the real one; keeps what can be kept."""
        self._replaced += 1
        self._replaced_total.inc()
        fields = {name: _small(getattr(record, name, None)) for name in RequestRecord.__struct_fields__}
        return self._encode(fields | {"producer": self._producer, "number": number, "replaced": reason})

    async def start(self) -> None:
        """Begin to ship. The store need not be there yet."""
        if self._task is None:
            self._task = asyncio.create_task(self._shipper.run(), name="log-shipper")

    async def stop(self, deadline_s: float | None = None) -> PipelineStats:
        """Ship what can be shipped within `deadline_s` (default: the settings' `timeout_s`); says what is left.

        A record that is still `pending` then is lost with the process, and is logged with its numbers.
        """
        if self._task is not None:
            self._shipper.drain()
            with suppress(TimeoutError):  # at the deadline the task is cancelled, and releases its batch
                async with asyncio.timeout(self._timeout_s if deadline_s is None else deadline_s):
                    await self._task
            self._task = None
        stats = self.stats()
        if stats.pending:
            _log.error(
                "log_records_left",
                producer=self._producer,
                records=stats.pending,
                last=stats.produced,
                error=stats.last_error,
            )
        _log.info(
            "log_pipeline_stopped",
            producer=self._producer,
            produced=stats.produced,
            delivered=stats.delivered,
            dropped=stats.dropped,
            pending=stats.pending,
        )
        return stats

    async def ping(self) -> None:
        """Raises `LogStoreUnavailable` if the store would not take an object now."""
        await self._store.ping()

    def stats(self) -> PipelineStats:
        """The account at this instant."""
        buffer = self._buffer.stats()
        return PipelineStats(
            produced=self._produced,
            delivered=self._shipper.delivered,
            dropped=buffer.dropped,
            pending=buffer.size,
            replaced=self._replaced,
            dropped_ranges=buffer.dropped_ranges,
            failures=self._shipper.failures,
            conflicts=self._shipper.conflicts,
            last_delivered_us=self._shipper.last_delivered_us,
            last_error=self._shipper.last_error,
            buffer=buffer,
        )


def _monotonic_us() -> int:
    """For ages: a wall clock that is set back would hold records up."""
    return time.monotonic_ns() // 1000


def _small(value: Any) -> Any:
    """The value if JSON certainly takes it and it is short, a text's beginning, else None."""
    if isinstance(value, str):
        return value[:STAND_IN_FIELD_MAX].encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    return None
