"""Usage over time: a chart by model, key, team or provider from the log records, and the months' exact accounts."""

from typing import Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.charts import columns, largest
from tollkeeper.admin.dashboard.formats import axis_dollars, short
from tollkeeper.admin.dashboard.pages.figures import RANGES, Range, by_group, range_named, stacked
from tollkeeper.admin.dashboard.reporting import Reporting, Unready
from tollkeeper.admin.dashboard.site import ANYONE, Site, Visit
from tollkeeper.admin.downloads import csv_file
from tollkeeper.admin.services import Services
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.paging import PAGE_MAX, Paging
from tollkeeper.domain.periods import Period, span_at
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.reports import FIELDS, ReportFilters, ReportQuery
from tollkeeper.domain.words import Words

GROUPS: Final = ("model", "key", "team", "provider", "endpoint", "tag")
MEASURES: Final = {
    "cost_nano": "spend",
    "requests": "requests",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
}
ROWS_SHOWN: Final = 100


def register(site: Site, services: Services, reporting: Reporting) -> None:
    """The page at `/dashboard/usage`."""
    page = UsagePage(site, services, reporting)
    site.page("GET", "/usage", ANYONE, page.show)
    site.page("GET", "/usage/report.csv", ANYONE, page.report_file)
    site.page("GET", "/usage/months.csv", ANYONE, page.months_file)


class UsagePage:
    """Reports are sums over delivered log records; months are the ledger's."""

    def __init__(self, site: Site, services: Services, reporting: Reporting) -> None:
        self._site, self._services, self._reporting = site, services, reporting

    async def report_file(self, visit: Visit) -> Response:
        """The sums that the chart is made of, as CSV. Waits for them."""
        shown, group, asked = self._asked(visit)
        report = await self._services.reports.usage(visit.caller, asked)
        return csv_file(f"usage-by-{shown.step}-and-{group}", report["data"])

    async def months_file(self, visit: Visit) -> Response:
        """The accounts of a month by key, as CSV."""
        month = self._month(visit)
        return csv_file(f"usage-{month}", await self._services.usage.export(visit.caller, ScopeKind.KEY, None, month))

    def _month(self, visit: Visit) -> str:
        now_us = self._site.parts.now_us()
        return visit.query.text("month") or span_at(Period.MONTH, now_us).label.replace(":", "-")

    def _asked(self, visit: Visit) -> tuple[Range, str, ReportQuery]:
        query = visit.query
        shown = range_named(query.text("range") or "24h")
        group = _one_of("by", query.text("by") or "model", GROUPS)
        filters = ReportFilters(key=query.given("key"), model=query.given("model"), team=query.given("team"))
        return shown, group, shown.query(self._site.parts.now_us(), shown.step, group, filters=filters)

    async def show(self, visit: Visit) -> Response:
        query, now_us = visit.query, self._site.parts.now_us()
        shown, group, asked = self._asked(visit)
        measure = _one_of("show", query.text("show") or "cost_nano", tuple(MEASURES))
        report = await self._reporting.usage(visit.caller, asked)
        context: Words = {"unready": report if isinstance(report, Unready) else None}
        if not isinstance(report, Unready):
            label = "key_name" if group == "key" else FIELDS.get(group, group)
            field, names = FIELDS.get(group, group), shown.names(now_us)
            series = largest(stacked(report["data"], names, shown.step, field, label, measure))
            show = axis_dollars if measure == "cost_nano" else short
            title = f"{MEASURES[measure].capitalize()} by {group}, {shown.title.lower()}"
            context |= {
                "chart": columns(title, shown.labels(now_us), series, show),
                "series": series,
                "rows": by_group(report["data"], field, label)[:ROWS_SHOWN],
                "total": report["total"],
                "more": report["has_more"],
                "chart_title": title,
            }
        month = self._month(visit)
        months = await self._services.usage.monthly(
            visit.caller, ScopeKind.KEY, None, month, Paging(PAGE_MAX, query.given("after"))
        )
        return self._site.render(
            visit,
            "usage.html",
            title="Usage",
            ranges=RANGES,
            groups=GROUPS,
            measures=MEASURES,
            chosen={"range": query.text("range") or "24h", "by": group, "show": measure},
            group=group,
            month=month,
            months=months["data"],
            months_more=months["has_more"],
            **context,
        )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidInput(f"{name}: {value!r} is none; known are {', '.join(known)}")
    return value
