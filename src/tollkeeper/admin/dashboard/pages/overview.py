"""The first page: how the gateway is, what is spent, what was refused."""

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.charts import Series, columns
from tollkeeper.admin.dashboard.site import ANYONE, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.admin.services.activity import Activity
from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.periods import US_PER_S, Period, span_at
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.observability.samples import samples

HOUR_US: Final = 3600 * US_PER_S
HOURS: Final = 24
KEYS_SHOWN: Final = 8


def register(site: Site, services: Services) -> None:
    """The page at `/dashboard`."""

    async def overview(visit: Visit) -> Response:
        now_us = site.parts.now_us()
        month = span_at(Period.MONTH, now_us)
        usage = await services.usage.export(visit.caller, ScopeKind.KEY, None, month.label.replace(":", "-"))
        rows = sorted(usage, key=lambda row: -row["cost_nano"])
        lately: Activity | None = None
        with suppress(Unavailable):
            lately = await services.activity.lately(visit.caller, HOURS, HOUR_US)
        context: dict[str, Any] = {
            "month": rows[:KEYS_SHOWN],
            "month_name": datetime.fromtimestamp(month.starts_us / US_PER_S, UTC).strftime("%B"),
            "month_nano": sum(row["cost_nano"] for row in rows),
            "month_requests": sum(row["requests"] for row in rows),
            "keys_more": max(0, len(rows) - KEYS_SHOWN),
            "synced_at": max((row["updated_at"] for row in rows), default=None),
            "lately": lately,
            "refused": refusals(await site.parts.exposition()) if visit.sees_all else [],
            "checks": await site.parts.readiness.checks() if visit.sees_all else {},
        }
        if lately is not None:
            context |= _pictures(lately, span_at(Period.DAY, now_us).starts_us)
        return site.render(visit, "overview.html", title="Overview", **context)

    site.page("GET", "/", ANYONE, overview)


def refusals(exposition: bytes) -> list[tuple[str, int]]:
    """What was refused since the start of this gateway, all its workers together, by `scope kind`."""
    found: Counter[str] = Counter()
    for labels, value in samples(exposition, "tollkeeper_refusals_total"):
        found[f"{labels['scope']} {labels['kind']}"] += int(value)
    return found.most_common()


def _pictures(lately: Activity, today_us: int) -> dict[str, Any]:
    hours = [
        datetime.fromtimestamp((lately.since_us + i * lately.step_us) / US_PER_S, UTC).strftime("%H:%M")
        for i in range(len(lately.columns))
    ]
    outcomes = [
        Series("answered", tuple(t.answered for t in lately.columns)),
        Series("refused", tuple(t.refused for t in lately.columns)),
        Series("failed", tuple(t.failed for t in lately.columns)),
    ]
    return {
        "today": lately.since(today_us),
        "hours": hours,
        "outcomes": outcomes,
        "chart": columns("Requests of the last 24 hours by outcome", hours, outcomes),
        "median_us": lately.quantile_us(0.5),
        "slow_us": lately.quantile_us(0.95),
    }
