"""The first page: how the gateway is, what is spent, what was refused."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.charts import Series, columns
from tollkeeper.admin.dashboard.pages.counted import counted
from tollkeeper.admin.dashboard.pages.figures import RANGES, by_column
from tollkeeper.admin.dashboard.reporting import Reporting, Unready
from tollkeeper.admin.dashboard.site import ANYONE, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.domain.paging import PAGE_MAX, Paging
from tollkeeper.domain.periods import US_PER_S, Period, span_at
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import BudgetFilters
from tollkeeper.domain.words import Words, instant

KEYS_SHOWN: Final = 8
BUDGETS_SHOWN: Final = 8
REASONS_SHOWN: Final = 12
REASONS_MAX: Final = 100
DAY: Final = RANGES["24h"]


def register(site: Site, services: Services, reporting: Reporting) -> None:
    """The page at `/dashboard`."""
    page = Overview(site, services, reporting)
    site.page("GET", "/", ANYONE, page.show)


class Overview:
    """Figures of the month are the database's, of the last day the logs', of the present the gateway's own."""

    def __init__(self, site: Site, services: Services, reporting: Reporting) -> None:
        self._site, self._services, self._reporting = site, services, reporting

    async def show(self, visit: Visit) -> Response:
        now_us = self._site.parts.now_us()
        context = await self._month(visit, now_us)
        context |= await self._lately(visit, now_us)
        context |= await self._gateway(visit)
        context["budgets"] = await self._budgets(visit)
        return self._site.render(visit, "overview.html", title="Overview", **context)

    async def _month(self, visit: Visit, now_us: int) -> dict[str, Any]:
        month = span_at(Period.MONTH, now_us)
        label = month.label.replace(":", "-")
        rows = await self._services.usage.export(visit.caller, ScopeKind.KEY, None, label)
        rows.sort(key=lambda row: -row["cost_nano"])
        return {
            "month": rows[:KEYS_SHOWN],
            "month_name": datetime.fromtimestamp(month.starts_us / US_PER_S, UTC).strftime("%B"),
            "month_nano": sum(row["cost_nano"] for row in rows),
            "month_requests": sum(row["requests"] for row in rows),
            "keys_more": max(0, len(rows) - KEYS_SHOWN),
            "synced_at": max((row["updated_at"] for row in rows), default=None),
        }

    async def _lately(self, visit: Visit, now_us: int) -> dict[str, Any]:
        hours, reasons = await asyncio.gather(
            self._reporting.usage(visit.caller, DAY.query(now_us, "hour")),
            self._reporting.usage(
                visit.caller, DAY.query(now_us, "refused_by", "error", "status", limit=REASONS_MAX)
            ),
        )
        if isinstance(hours, Unready) or isinstance(reasons, Unready):
            return {"lately": None, "unready": hours if isinstance(hours, Unready) else reasons}
        return _pictures(hours, now_us) | {"reasons": _reasons(reasons["data"])}

    async def _budgets(self, visit: Visit) -> list[Words]:
        """The fullest of the newest, as of the last sync."""
        page = await self._services.budgets.find(visit.caller, BudgetFilters(), Paging(PAGE_MAX))
        found = [{**scope, **budget} for scope in page["data"] for budget in scope["budgets"]]
        return sorted(found, key=lambda budget: -budget["used_percent"])[:BUDGETS_SHOWN]

    async def _gateway(self, visit: Visit) -> dict[str, Any]:
        if not visit.sees_all:
            return {"checks": {}, "counted": None}
        parts = self._site.parts
        return {"checks": await parts.readiness.checks(), "counted": counted(await parts.exposition())}


def _pictures(report: Words, now_us: int) -> dict[str, Any]:
    names, labels, rows = DAY.names(now_us), DAY.labels(now_us), report["data"]
    refused, failed, requests = (by_column(rows, names, "hour", field) for field in ("refused", "errors", "requests"))
    answered = tuple(all_ - no - bad for all_, no, bad in zip(requests, refused, failed, strict=True))
    outcomes = [Series("answered", answered), Series("refused", refused), Series("failed", failed)]
    midnight = instant(span_at(Period.DAY, now_us).starts_us) or ""
    today: Counter[str] = Counter()
    for row in rows:
        if row["hour"] >= midnight:
            today.update({field: row[field] for field in ("requests", "refused", "errors", "cost_nano")})
    return {
        "lately": report["total"],
        "today": {field: today[field] for field in ("requests", "refused", "errors", "cost_nano")},
        "hours": rows,
        "outcomes": outcomes,
        "chart": columns("Requests of the last 24 hours by outcome", labels, outcomes),
    }


def _reasons(rows: list[Words]) -> list[tuple[str, str, int]]:
    """What went wrong, its kind, and how often."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        why = (row["refused_by"] or "").replace("/", " ") or row["error"] or f"status {row['status']}"
        for kind, field in (("refused", "refused"), ("failed", "errors")):
            if row[field]:
                found[why, kind] += row[field]
    return [(why, kind, count) for (why, kind), count in found.most_common(REASONS_SHOWN)]
