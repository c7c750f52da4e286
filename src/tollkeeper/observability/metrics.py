"""Metrics, declared once in this file's registry and counted in plain integers.

The data plane counts with `child.value += 1`-like calls on children bound at start; a collector turns the numbers
into Prometheus samples when somebody asks. No locks: one event loop, one process.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
)
CHILDREN_MAX: Final = 1000
"""Label values beyond this many share one child, `other`, so that labels stay bounded."""


class CounterChild:
    """One time series that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add a whole number."""
        self.value += amount


class HistogramChild:
    """One histogram series, in seconds."""

    __slots__ = ("buckets", "counts", "sum")

    def __init__(self, buckets: Sequence[float] = SECONDS) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value


Child = TypeVar("Child", CounterChild, HistogramChild)


class Family(Generic[Child]):
    """A metric with labels. `labels(…)` gives the child to bind; the same values give the same child."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], make: Callable[[], Child]) -> None:
        self.name, self.text, self.label_names = name, text, labels
        self._make: Callable[[], Child] = make
        self.children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self.children[()] = make()

    def labels(self, *values: str) -> Child:
        """The series of these label values, in the order of declaration."""
        child = self.children.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}, got {values}")
            if len(self.children) >= CHILDREN_MAX:
                values = ("other",) * len(values)
            child = self.children.setdefault(values, self._make())
        return child


class Metrics:
    """The registry of one process. Rooms declare what they count in their constructors."""

    def __init__(self) -> None:
        self._counters: dict[str, Family[CounterChild]] = {}
        self._histograms: dict[str, Family[HistogramChild]] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(_Reader(self))

    def counter(self, name: str, text: str, *labels: str) -> Family[CounterChild]:
        """Declare a counter; `name` ends in `_total`. Declaring it again gives the same one."""
        return self._counters.setdefault(name, Family(name, text, labels, CounterChild))

    def histogram(self, name: str, text: str, *labels: str) -> Family[HistogramChild]:
        """Declare a histogram of seconds; `name` ends in `_seconds`."""
        return self._histograms.setdefault(name, Family(name, text, labels, HistogramChild))

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Declare a value that is read when somebody asks."""
        self._gauges[name] = (text, read)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """All metrics as prometheus-client's families."""
        for counter in self._counters.values():
            family = CounterMetricFamily(
                counter.name.removesuffix("_total"), counter.text, labels=counter.label_names
            )
            for values, child in counter.children.items():
                family.add_metric(values, child.value)
            yield family
        for histogram in self._histograms.values():
            shape = HistogramMetricFamily(histogram.name, histogram.text, labels=histogram.label_names)
            for values, series in histogram.children.items():
                shape.add_metric(values, _cumulative(series), series.sum)
            yield shape
        for name, (text, read) in self._gauges.items():
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric((), read())
            yield gauge


def _cumulative(series: HistogramChild) -> list[tuple[str, float]]:
    total = 0
    rows: list[tuple[str, float]] = []
    for bound, count in zip((*series.buckets, "+Inf"), series.counts, strict=True):
        total += count
        rows.append((str(bound), total))
    return rows


class _Reader(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()
