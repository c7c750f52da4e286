"""The figures of an interval of the log store: in total, and of the models and keys that cost most."""

from typing import Any, Final

import msgspec

from tollkeeper.logs.query import Interval, Rows, queries
from tollkeeper.logs.sinks import LogStore

TOP: Final = 10
"""Models and keys that are named."""
_MEASURES: Final = """
    count(*) AS requests, count(*) FILTER (error IS NOT NULL) AS errors,
    coalesce(sum(tokens_input), 0) AS tokens_input, coalesce(sum(tokens_output), 0) AS tokens_output,
    coalesce(sum(cost_usd), 0) AS cost_usd"""
_TOTAL: Final = f"""
SELECT {_MEASURES},
    count(*) FILTER (NOT admitted) AS refused, count(*) FILTER (presumed) AS presumed,
    count(*) FILTER (client_disconnected) AS hung_up,
    CAST(round(quantile_cont(total_us, 0.5) / 1000) AS BIGINT) AS total_ms_p50,
    CAST(round(quantile_cont(total_us, 0.95) / 1000) AS BIGINT) AS total_ms_p95,
    CAST(round(quantile_cont(first_byte_us, 0.5) / 1000) AS BIGINT) AS first_byte_ms_p50,
    min(time) AS first, max(time) AS last
FROM logs"""  # noqa: S608 - constants
_BY: Final = f"SELECT {{0}} AS name, {_MEASURES} FROM logs GROUP BY {{0}} ORDER BY sum(cost_nano) DESC, name"  # noqa: S608


class LogSummary(msgspec.Struct, frozen=True):
    """`total` holds the measures of all, `models` and `keys` those of each, the dearest first."""

    objects: int
    total: dict[str, Any]
    models: list[dict[str, Any]]
    keys: list[dict[str, Any]]


async def summary(store: LogStore, interval: Interval) -> LogSummary:
    """Raises as `query.query` does."""
    found = await queries(store, (_TOTAL, _BY.format("model"), _BY.format("key_name")), interval, limit=TOP)
    (total,), models, keys = map(named, found)
    return LogSummary(found[0].objects, total, models, keys)


def named(found: Rows) -> list[dict[str, Any]]:
    """Rows with the names of their columns."""
    return [dict(zip(found.names, row, strict=True)) for row in found.rows]
