"""What pages are made of: amounts for reading, charts, what was counted, and reports that pages do not wait for."""

import asyncio
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.dashboard.charts import SERIES_MAX, Series, ceiling, columns, largest, meter
from tollkeeper.admin.dashboard.formats import changes, dollars, money
from tollkeeper.admin.dashboard.pages.counted import counted, quantile_s
from tollkeeper.admin.dashboard.reporting import KEPT_S, SHARE, Reporting, Unready
from tollkeeper.domain.admission import LimitKind
from tollkeeper.domain.errors import Busy
from tollkeeper.domain.operators import BOOTSTRAP
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.reports import ReportQuery
from tollkeeper.gateway.instruments import Instruments
from tollkeeper.observability.exposition import labelled, merged
from tollkeeper.observability.metrics import Metrics

NANO = st.integers(-(2**53), 2**53)


@pytest.mark.parametrize(
    ("nano", "words"),
    [
        (0, "$0.00"),
        (1, "<$0.000001"),
        (500, "$0.000001"),
        (4_200_000, "$0.0042"),
        (999_999_999, "$1.00"),
        (1_005_000_000, "$1.01"),
        (1_234_567_890_000_000, "$1,234,567.89"),
        (-1_250_000_000, "-$1.25"),
    ],
)
def test_amounts_for_reading(nano: int, words: str) -> None:
    assert dollars(nano) == words


@given(NANO)
def test_what_is_shown_is_near_and_what_is_beside_it_exact(nano: int) -> None:
    shown = Decimal(re.sub(r"[$,<]", "", dollars(nano)))
    off = abs(shown - Decimal(nano).scaleb(-9))
    assert off <= (Decimal("0.005") if abs(nano) >= 10**9 else Decimal("0.000001"))
    exact = re.search(r'value="(-?[\d.]+)"', money(nano))
    assert exact is not None and Decimal(exact[1]).scaleb(9) == nano


@given(st.lists(st.lists(st.integers(0, 10**12), min_size=3, max_size=3), min_size=1, max_size=9))
def test_a_chart_has_all_that_was_counted(values: list[list[int]]) -> None:
    """Nothing is lost when small series are put together, and no column is higher than the axis."""
    series = [Series(f"s{number}", tuple(row)) for number, row in enumerate(values)]
    kept = largest(series)
    assert len(kept) <= SERIES_MAX
    assert [sum(s.values[i] for s in kept) for i in range(3)] == [sum(row[i] for row in values) for i in range(3)]
    heights = [
        float(text) for text in re.findall(r'class="series-\d" [^>]*height="([\d.]+)"', columns("c", "abc", kept))
    ]
    assert all(height <= 142.1 for height in heights)


@given(st.integers(0, 10**15))
def test_an_axis_ends_above_the_highest_value(highest: int) -> None:
    assert highest <= ceiling(highest) <= max(1.0, 2 * highest)


def test_words_in_charts_are_escaped() -> None:
    drawn = columns("<x>", ["<l>", "b"], [Series("<script>", (1, 2))]) + meter("<m>", 1, 0, 2)
    assert "<script>" not in drawn and "<x>" not in drawn and "<l>" not in drawn and "<m>" not in drawn


def test_a_meter_tells_how_near_the_limit_is() -> None:
    assert [
        "fine" in meter("m", 79, 0, 100),
        "high" in meter("m", 80, 5, 100),
        "full" in meter("m", 120, 0, 100),
    ] == [True] * 3
    assert 'class="meter full"' in meter("m", 0, 0, 0)


def test_an_audit_event_tells_what_changed() -> None:
    event = {
        "before": {"id": "x", "limits": {"rpm": 1, "budgets": {}}, "team_id": None},
        "after": {"id": "x", "limits": {"rpm": 7, "budgets": {"day": "1.00"}}, "team_id": "team_1"},
    }
    assert changes(event) == [
        ("limits.rpm", "1", "7"),
        ("limits.budgets.day", "", "1.00"),
        ("team_id", "", "team_1"),
    ]
    assert changes({"before": None, "after": {"id": "x", "name": "n", "models": ["a", "b"]}}) == [
        ("name", "", "n"),
        ("models", "", "a, b"),
    ]


def test_what_was_counted_is_of_all_workers() -> None:
    pages = []
    for worker in ("0", "1"):
        metrics = Metrics()
        instruments = Instruments(metrics)
        for seconds in (0.003, 0.004, 0.2):
            instruments.count("/v1/chat/completions", 200)
            instruments.total.observe(seconds)
        instruments.refused(LimitKind.BUDGET, ScopeKind.TEAM)
        pages.append(labelled(metrics.exposition(), "worker", worker))
    found = counted(merged(pages))
    assert (found.requests, found.by_status, found.refusals) == (6, {"2xx": 6}, [("team budget", 2)])
    assert (found.refused, found.errors, found.half_s, found.most_s) == (2, [], 0.005, 0.25)
    nothing = counted(Metrics().exposition())
    assert (nothing.requests, nothing.half_s, nothing.refusals) == (0, None, [])


def test_a_quantile_above_all_bounds_is_not_known() -> None:
    assert quantile_s({"1.0": 1, "+Inf": 10}, 0.5) is None
    assert quantile_s({"1.0": 5, "2.0": 9, "+Inf": 10}, 0.5) == 1.0


class Service:
    """Makes reports when told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.Future()

    async def usage(self, _: Caller, __: ReportQuery) -> dict[str, Any]:
        self.asked += 1
        return await asyncio.shield(self.answer)


CALLER = Caller(BOOTSTRAP, "req_1", "192.0.2.1")
QUERY = ReportQuery(since_us=1, until_us=2)


async def test_pages_do_not_wait_for_a_report_and_it_is_made_once() -> None:
    """Until it is there they are told that it is being made; then it is kept for as long as pays for it."""
    now, service = [0], Service()
    reporting = Reporting(service, lambda: now[0], patience_s=0.0)  # type: ignore[arg-type]
    assert await reporting.usage(CALLER, QUERY) == Unready()
    assert await reporting.usage(CALLER, QUERY) == Unready()
    now[0] = 3_000_000
    service.answer.set_result({"n": 1})
    while (found := await reporting.usage(CALLER, QUERY)) == Unready():
        pass
    assert found == {"n": 1} and service.asked == 1
    now[0] += 3_000_000 * SHARE - 1
    assert await reporting.usage(CALLER, QUERY) == {"n": 1} and service.asked == 1
    service.answer = asyncio.Future()
    now[0] += 1
    assert await reporting.usage(CALLER, QUERY) == {"n": 1}, "the one before, while the next is made"
    while service.asked == 1:
        await asyncio.sleep(0)
    service.answer.set_exception(Busy("others first"))
    while reporting._kept[None, QUERY].failure is None:
        await reporting.usage(CALLER, QUERY)
    assert await reporting.usage(CALLER, QUERY) == {"n": 1}


async def test_a_failure_is_kept_too() -> None:
    now, service = [0], Service()
    service.answer.set_exception(Busy("others first"))
    reporting = Reporting(service, lambda: now[0], patience_s=60.0)  # type: ignore[arg-type]
    assert await reporting.usage(CALLER, QUERY) == Unready("others first")
    now[0] += KEPT_S * 1_000_000 - 1
    assert await reporting.usage(CALLER, QUERY) == Unready("others first") and service.asked == 1
    now[0] += 1
    service.answer = asyncio.Future()
    service.answer.set_result({})
    assert await reporting.usage(CALLER, QUERY) == {} and service.asked == 2
