"""The alert rules and dashboards: Prometheus takes them, they use what exists, each rule fires when it should."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.write_reference import declared, declared_by_supervisors

from tollkeeper.observability.metrics import Declaration

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
OF_THE_TARGET = {"job", "instance"}
_SELECTOR = re.compile(r"\b((?:tollkeeper|process)_\w+)\s*(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"}


def promtool(*arguments: str | Path) -> str:
    """What it says; the test fails if it finds fault."""
    program = shutil.which("promtool")
    assert program, "promtool is missing: run `make servers`"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_annotations(rules: str) -> str:
    """The rules without what they say to people, which `promtool test rules` would want repeated word for word."""
    return re.sub(r"^        annotations:\n(?:^          .*\n)*", "", rules, flags=re.MULTILINE)


def expressions(file: Path) -> list[str]:
    """All PromQL of the rules or a dashboard."""
    if file.suffix == ".yml":
        return re.findall(r"^        expr: (?:>-\n)?((?:.*\n)(?:^          .*\n)*)", file.read_text(), re.MULTILINE)
    return list(_expressions(json.loads(file.read_text())))


def _expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "expr":
                yield value
            elif name == "query" and isinstance(value, str) and value.startswith("label_values("):
                selector, _, label = value.removeprefix("label_values(").removesuffix(")").rpartition(",")
                yield f"count by ({label.strip()}) ({selector})"
            else:
                yield from _expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _expressions(value)


def faults(expression: str, metrics: dict[str, Declaration]) -> list[str]:
    """What an expression uses and no gateway has."""
    found: list[str] = []
    usable = set(OF_THE_TARGET)
    plain = re.sub(r'"[^"]*"', '""', expression)
    for name, matchers in _SELECTOR.findall(plain):
        metric = metrics.get(name)
        labels = set() if metric is None else set(metric.labels)
        if metric is None and _OF_HISTOGRAMS.search(name):
            metric = metrics.get(_OF_HISTOGRAMS.sub("", name))
            if metric is not None and metric.kind == "histogram":
                labels = {*metric.labels, *(("le",) if name.endswith("_bucket") else ())}
            else:
                metric = None
        elif metric is not None and metric.kind == "histogram":
            found.append(f"{name} is a histogram: it has _bucket, _sum and _count")
        if metric is None and name not in PROCESS:
            found.append(f"no metric {name}")
        usable |= labels
        found += [
            f"{name} has no label {label}"
            for label in _MATCHER.findall(matchers)
            if label not in labels | OF_THE_TARGET
        ]
    for labels_text in _GROUPING.findall(plain):
        wanted = {label.strip() for label in labels_text.split(",") if label.strip()}
        found += [f"no label {label} to group by" for label in wanted - usable]
    return found


@pytest.fixture(scope="module")
def metrics() -> dict[str, Declaration]:
    return {metric.name: metric for metric in (*declared(), *declared_by_supervisors())}


@pytest.mark.parametrize("file", [RULES, *DASHBOARDS], ids=lambda file: file.name)
def test_what_is_asked_for_exists(file: Path, metrics: dict[str, Declaration]) -> None:
    """Every metric and label that a rule or a dashboard uses is one that gateways have."""
    asked = expressions(file)
    assert len(asked) >= 10
    assert {expression: faults(expression, metrics) for expression in asked if faults(expression, metrics)} == {}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.name)
def test_dashboards_ask_in_promql(file: Path, tmp_path: Path) -> None:
    """Prometheus parses every query, with the variables that Grafana puts in; no panel lies on another."""
    rules = tmp_path / "rules.yml"
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, expression in enumerate(expressions(file)):
        filled = re.sub(r"\[\$__\w+\]", "[5m]", expression)
        lines += [f"      - record: panel:{number}", f"        expr: {json.dumps(filled)}"]
    rules.write_text("\n".join(lines) + "\n")
    promtool("check", "rules", rules)
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(file.read_text())["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"] and x < 24, panel["title"]


def test_the_check_itself_finds_what_is_missing(metrics: dict[str, Declaration]) -> None:
    """Wrong names, wrong labels in selectors and in groupings, and parts of histograms that are none."""
    for wrong in (
        "tollkeeper_no_such_total",
        'tollkeeper_requests_total{provider="x"}',
        "sum by (model) (tollkeeper_requests_total)",
        "tollkeeper_holds_bucket",
        "tollkeeper_request_seconds",
    ):
        assert faults(wrong, metrics), wrong
    assert faults('sum by (job, le) (rate(tollkeeper_request_seconds_bucket{instance="a"}[5m]))', metrics) == []


def test_promtool_takes_the_rules() -> None:
    """Syntax, templates and names of every rule; each has a severity and says what to do."""
    assert "SUCCESS" in promtool("check", "rules", RULES)
    rules = RULES.read_text().split("- alert: ")[1:]
    assert len(rules) == 22
    for rule in rules:
        assert re.search(r"severity: (critical|warning)", rule), rule
        assert "summary:" in rule and "runbook:" in rule, rule


def test_runbooks_name_what_exists(metrics: dict[str, Declaration]) -> None:
    """Metrics, settings and log lines that a runbook sends somebody to are there."""
    text = RULES.read_text()
    for name in set(re.findall(r"\btollkeeper_\w+", text)):
        assert name in metrics or _OF_HISTOGRAMS.sub("", name) in metrics, name
    source = "".join(file.read_text() for file in (HERE.parents[1] / "src").rglob("*.py"))
    events = {
        name
        for group in re.findall(r"[Ll]og lines? ((?:\w+_\w+)(?: and \w+_\w+)*)", " ".join(text.split()))
        for name in group.split(" and ")
    }
    assert len(events) >= 4
    for event in events:
        assert f'"{event}"' in source, event
    reference = (HERE.parents[1] / "docs" / "SETTINGS.md").read_text()
    for setting in set(re.findall(r"\b(?:billing|logs|server)\.(\w+)", text)):
        assert f"`{setting}`" in reference, setting


def test_each_rule_fires_when_it_should(tmp_path: Path) -> None:
    """`promtool test rules` on series made for it: silent just below, firing above. Every rule has such a test."""
    rules = tmp_path / "alerts.yml"
    rules.write_text(without_annotations(RULES.read_text()))
    tests = (HERE / "alerts_test.yml").read_text()
    (tmp_path / "test.yml").write_text(tests.replace("../../deploy/prometheus/alerts.yml", str(rules)))
    promtool("test", "rules", tmp_path / "test.yml")
    fired = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\s*(?:\[\{|\n)", tests))
    assert fired == set(re.findall(r"- alert: (\w+)", rules.read_text()))
