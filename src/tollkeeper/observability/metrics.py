"""Metrics, declared once in this file's registry and counted in plain integers.

The data plane counts with `child.value += 1`-like calls on children bound at start; a collector turns the numbers
into Prometheus samples when somebody asks. No locks: one event loop, one process, one `/metrics`; several processes
are several targets.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Literal, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
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

PENDING_MAX: Final = 128
"""Values of a histogram that are not counted yet: 4 kB."""


class CounterChild:
    """One time series that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add a whole number."""
        self.value += amount


class HistogramChild:
    """One histogram series, in seconds.

    A value is only taken down when it is observed. They are counted together, once there are `PENDING_MAX` of them or
    somebody asks: to sort many costs a tenth of finding the bucket of each.
    """

    __slots__ = ("_counts", "_sum", "buckets", "pending")

    def __init__(self, buckets: Sequence[float] = SECONDS) -> None:
        self.buckets = buckets
        self.pending: list[float] = []
        """Not counted yet. Who appends to it directly calls `count` when it has `PENDING_MAX`."""
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.pending.append(value)
        if len(self.pending) >= PENDING_MAX:
            self.count()

    def count(self) -> None:
        """Count what is pending."""
        values, self.pending = self.pending, []
        values.sort()
        self._sum += sum(values)
        below = 0
        for bucket, bound in enumerate(self.buckets):
            upto = bisect_right(values, bound, below)
            self._counts[bucket] += upto - below
            below = upto
        self._counts[-1] += len(values) - below

    @property
    def counts(self) -> Sequence[int]:
        """Of the values in each bucket, and of those above the last."""
        self.count()
        return self._counts

    @property
    def sum(self) -> float:
        """Of all values."""
        self.count()
        return self._sum


Child = TypeVar("Child", CounterChild, HistogramChild)
Rows = Iterable[tuple[Sequence[str], float]]
"""Label values and a number, one row a series."""


class Sizes(msgspec.Struct, frozen=True):
    """A histogram as somebody else keeps it: `counts` of the values up to each of `bounds`, then of those above."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


class Declaration(msgspec.Struct, frozen=True, order=True):
    """A metric as the reference tells it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str


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
    """The registry of one process. Rooms declare what they count in their constructors; a second declaration of a
    counter or histogram gives the first one, of anything that is read replaces it."""

    def __init__(self) -> None:
        self._counters: dict[str, Family[CounterChild]] = {}
        self._histograms: dict[str, Family[HistogramChild]] = {}
        self._read: dict[str, tuple[Declaration, Callable[[], Rows]]] = {}
        self._sizes: dict[str, tuple[Declaration, Callable[[], Iterable[tuple[Sequence[str], Sizes]]]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(_Reader(self))
        ProcessCollector(registry=self._registry)

    def counter(self, name: str, text: str, *labels: str) -> Family[CounterChild]:
        """Declare a counter; `name` ends in `_total`. Declaring it again gives the same one."""
        return self._counters.setdefault(name, Family(name, text, labels, CounterChild))

    def histogram(self, name: str, text: str, *labels: str) -> Family[HistogramChild]:
        """Declare a histogram of seconds; `name` ends in `_seconds`."""
        return self._histograms.setdefault(name, Family(name, text, labels, HistogramChild))

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Declare a value that is read when somebody asks."""
        self.gauges(name, text, (), lambda: [((), read())])

    def gauges(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Rows]) -> None:
        """Declare values that are read when somebody asks, each with its labels."""
        self._read[name] = (Declaration(name, "gauge", labels, text), read)

    def counters(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Rows]) -> None:
        """Declare numbers that only grow and are counted elsewhere; `name` ends in `_total`."""
        self._read[name] = (Declaration(name, "counter", labels, text), read)

    def sizes(
        self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Iterable[tuple[Sequence[str], Sizes]]]
    ) -> None:
        """Declare histograms that are counted elsewhere."""
        self._sizes[name] = (Declaration(name, "histogram", labels, text), read)

    def declared(self) -> list[Declaration]:
        """All metrics of this registry by name; those of the process itself (`process_…`) are prometheus-client's."""
        found = [Declaration(f.name, "counter", f.label_names, f.text) for f in self._counters.values()]
        found += [Declaration(f.name, "histogram", f.label_names, f.text) for f in self._histograms.values()]
        found += [declaration for declaration, _ in (*self._read.values(), *self._sizes.values())]
        return sorted(found)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """All metrics as prometheus-client's families."""
        for counter in self._counters.values():
            rows = [(values, child.value) for values, child in counter.children.items()]
            yield _counter(counter.name, counter.text, counter.label_names, rows)
        for histogram in self._histograms.values():
            shape = HistogramMetricFamily(histogram.name, histogram.text, labels=histogram.label_names)
            for values, series in histogram.children.items():
                shape.add_metric(values, _cumulative(series.buckets, series.counts), series.sum)
            yield shape
        for told, read in self._read.values():
            if told.kind == "counter":
                yield _counter(told.name, told.text, told.labels, read())
                continue
            gauge = GaugeMetricFamily(told.name, told.text, labels=told.labels)
            for labels, value in read():
                gauge.add_metric(labels, value)
            yield gauge
        for told, sizes in self._sizes.values():
            shape = HistogramMetricFamily(told.name, told.text, labels=told.labels)
            for labels, kept in sizes():
                shape.add_metric(labels, _cumulative(kept.bounds, kept.counts), kept.sum)
            yield shape


def _counter(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = CounterMetricFamily(name.removesuffix("_total"), text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    total = 0
    rows: list[tuple[str, float]] = []
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        total += count
        rows.append((str(bound), total))
    return rows


class _Reader(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()
