"""Alerts: which thresholds of budgets were reached, and whether the webhook has been told."""

from typing import Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.site import ANYONE, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.domain.alerts import DELIVERIES, AlertFilters
from tollkeeper.domain.errors import InvalidInput

SHOWN: Final = 50
SCOPE_PATHS: Final = {"key": "/keys", "team": "/teams", "organisation": "/organisations"}


def register(site: Site, services: Services) -> None:
    """The page at `/dashboard/alerts`."""

    async def index(visit: Visit) -> Response:
        delivery = visit.query.given("delivery")
        if delivery is not None and delivery not in DELIVERIES:
            raise InvalidInput(f"delivery: {delivery!r} is none; known are {', '.join(DELIVERIES)}")
        filters = AlertFilters(scope_id=visit.query.given("scope"), delivery=delivery)
        page = await services.budgets.alerts(visit.caller, filters, SHOWN, visit.query.given("after"))
        return site.render(
            visit,
            "alerts.html",
            title="Alerts",
            alerts=page["data"],
            next_cursor=page["next_cursor"],
            deliveries=DELIVERIES,
            paths=SCOPE_PATHS,
        )

    site.page("GET", "/alerts", ANYONE, index)
