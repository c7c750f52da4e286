"""What Redis clients count for themselves, as metrics: pools, pipelining, reconnections.

The clients know nothing of metrics, for they are also part of the library; their counters are read when asked for.
"""

from collections.abc import Callable, Iterator
from typing import Final

from tollkeeper.governance.redis_client import RedisClient, RedisStats
from tollkeeper.observability.metrics import Metrics, Rows, Sizes

LABELS: Final = ("client",)
STATES: Final = ("up", "connecting", "away", "stopped")


class RedisInstruments:
    """Declares the metrics; `watch` adds a client under a name of its own. Without clients they have no series."""

    def __init__(self, metrics: Metrics) -> None:
        self._clients: dict[str, RedisClient] = {}
        metrics.gauges(
            "tollkeeper_redis_connections",
            "Connections to Redis: idle (nothing on the way) or busy.",
            (*LABELS, "state"),
            self._connections,
        )
        metrics.gauges(
            "tollkeeper_redis_servers",
            "Redis servers by what their connection is: up, connecting, away (calls fail at once), stopped.",
            (*LABELS, "state"),
            self._servers,
        )
        for name, text, of in (
            ("hits", "Commands that found a connection with room.", lambda stats: stats.hits),
            ("misses", "Commands that found none: refused, kept waiting, or crowded.", lambda stats: stats.misses),
            ("timeouts", "Commands given up because Redis did not answer in time.", lambda stats: stats.timeouts),
            ("reconnects", "Connections to Redis that were lost and made again.", lambda stats: stats.reconnects),
            ("stale_connections", "Connections closed for age or idleness.", lambda stats: stats.stale_conns),
            ("busy_polls", "Times the process stayed awake for an answer of Redis.", lambda stats: stats.busy_polls),
            (
                "busy_polls_in_vain",
                "Times it did, and the answer took longer than `store.busy_poll_us`.",
                lambda stats: stats.busy_polls_in_vain,
            ),
        ):
            metrics.counters(f"tollkeeper_redis_{name}_total", text, LABELS, self._reader(of))
        metrics.sizes(
            "tollkeeper_redis_pipeline_commands",
            "Writes to Redis by the number of commands they carried.",
            LABELS,
            self._pipelines,
        )

    def watch(self, name: str, client: RedisClient) -> None:
        """From now on tell this client's numbers, labelled `client="<name>"`."""
        self._clients[name] = client

    def _reader(self, of: Callable[[RedisStats], int]) -> Callable[[], Rows]:
        return lambda: [((name,), of(client.get_stats())) for name, client in self._clients.items()]

    def _connections(self) -> Rows:
        for name, client in self._clients.items():
            stats = client.get_stats()
            yield (name, "idle"), stats.idle_conns
            yield (name, "busy"), stats.total_conns - stats.idle_conns

    def _servers(self) -> Rows:
        for name, client in self._clients.items():
            found = list(client.states.values())
            for state in STATES:
                yield (name, state), found.count(state)

    def _pipelines(self) -> Iterator[tuple[tuple[str, ...], Sizes]]:
        for name, client in self._clients.items():
            bounds, counts, commands = client.pipelines
            yield (name,), Sizes(bounds, counts, commands)
