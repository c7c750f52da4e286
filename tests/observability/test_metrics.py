"""What a gateway tells Prometheus, and that the reference says the same."""

import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tools.write_reference import DOCS, declared, declared_by_buffers, declared_by_supervisors, metrics_page

from tests.observability.conftest import Watched
from tollkeeper.observability.metrics import PENDING_MAX, SECONDS, HistogramChild, Metrics, Sizes

SOURCE = Path(__file__).resolve().parents[2] / "src"
EVERY = (*declared(), *declared_by_buffers(), *declared_by_supervisors())
UNITS = ("seconds", "bytes", "nanodollars", "ratio", "commands")


def test_the_reference_is_up_to_date() -> None:
    """docs/METRICS.md has every metric that a started gateway declares; `make docs` writes it."""
    assert (DOCS / "METRICS.md").read_text() == metrics_page()


def test_every_metric_says_what_it_means() -> None:
    """A metric without a sentence is not finished; names follow Prometheus' conventions."""
    for metric in EVERY:
        assert metric.text.endswith((".", "…")) and len(metric.text) > 10, metric
        assert metric.name.startswith("tollkeeper_"), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.kind != "histogram" or metric.name.endswith(UNITS), metric
        assert "le" not in metric.labels and len(metric.labels) <= 3, metric


def test_no_metric_is_hidden() -> None:
    """Whatever the source names as a metric is among those that the reference tells."""
    texts = (file.read_text() for file in SOURCE.rglob("*.py"))
    named = {name for text in texts for name in re.findall(r'"(tollkeeper_[a-z_]+)"', text)}
    # a SQL function, a field of request bodies, and the dashboard's cookies
    named -= {"tollkeeper_begin", "tollkeeper_user", "tollkeeper_session", "tollkeeper_visit"}
    assert len(named) > 60
    named = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    assert named <= {metric.name for metric in EVERY}


def test_promtool_finds_nothing_to_improve(watched: Watched) -> None:
    """`promtool check metrics` on /metrics of a gateway that has admitted, refused, settled and shipped; and what it
    tells of them is true."""
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: run `make servers`"
    statuses = [watched.ask() for _ in range(5)] + [watched.ask(watched.poor) for _ in range(3)]
    assert statuses == [200] * 6 + [429] * 2
    text = watched.gateway.get("/metrics")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    refused = samples["tollkeeper_refusals_total", ("kind", "requests"), ("scope", "key")]
    deployment = (("model", "gpt-4o-mini"), ("provider", "openai"))
    assert refused == 2
    assert samples["tollkeeper_admissions_total", ("result", "admitted")] == 6
    assert samples["tollkeeper_charged_requests_total", *deployment] == 6
    assert samples["tollkeeper_charged_nanodollars_total", *deployment] == 6 * (9 * 150 + 50 * 600)
    assert samples["tollkeeper_charged_tokens_total", ("kind", "output"), *deployment] == 6 * 50
    assert samples["tollkeeper_upstream_seconds_count", ("model", "other"), ("provider", "openai")] == 6
    assert samples["tollkeeper_authentication_seconds_count",] == 8
    assert samples["tollkeeper_redis_connections", ("client", "accounts"), ("state", "idle")] >= 1
    commands = samples["tollkeeper_redis_pipeline_commands_sum", ("client", "accounts")]
    assert commands == samples["tollkeeper_redis_hits_total", ("client", "accounts")] >= 12
    assert samples["tollkeeper_entries_unsynced",] == 6
    assert samples["tollkeeper_holds",] == samples["tollkeeper_holds_nanodollars",] == 0


def test_what_is_counted_elsewhere_is_read_when_asked() -> None:
    """Counters, gauges with labels and histograms of others, in Prometheus' format."""
    metrics, seen = Metrics(), [1]
    metrics.counters("a_total", "A.", ("x",), lambda: [(("one",), seen[0])])
    metrics.gauges("b", "B.", (), lambda: [((), 2.5)])
    metrics.sizes("c_commands", "C.", (), lambda: [((), Sizes((1, 3), (4, 5, 6), 60))])
    seen[0] = 7
    lines = metrics.exposition().decode().splitlines()
    assert 'a_total{x="one"} 7.0' in lines and "b 2.5" in lines
    assert [line for line in lines if line.startswith("c_commands")] == [
        'c_commands_bucket{le="1"} 4.0',
        'c_commands_bucket{le="3"} 9.0',
        'c_commands_bucket{le="+Inf"} 15.0',
        "c_commands_count 15.0",
        "c_commands_sum 60.0",
    ]


@given(st.lists(st.sampled_from((*SECONDS, 0.0, 0.0007, 0.3, 1000.0)), max_size=3 * PENDING_MAX), st.integers(0, 300))
def test_values_are_counted_as_one_by_one(values: list[float], read_after: int) -> None:
    """Counted together they come to the same buckets, whenever somebody asks."""
    series = HistogramChild()
    for number, value in enumerate(values):
        series.observe(value)
        assert len(series.pending) < PENDING_MAX
        if number == read_after:
            assert sum(series.counts) == number + 1
    bounds = (*SECONDS, math.inf)
    assert series.counts == [sum(below < v <= bound for v in values) for below, bound in pairwise((-1.0, *bounds))]
    assert series.sum == pytest.approx(sum(values))
