"""Charges whose truth is not known, corrections of them, and what was changed by whom."""

from typing import Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.http import see
from tollkeeper.admin.dashboard.site import ADMINS, READERS, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.domain.audit import AuditFilters
from tollkeeper.domain.corrections import STATUSES
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.policy import ScopeKind

SHOWN: Final = 50


def register(site: Site, services: Services) -> None:
    """The pages below `/dashboard/charges`, and `/dashboard/audit`."""
    pages = ChargePages(site, services)
    site.page("GET", "/charges", READERS, pages.index)
    site.page("POST", "/charges", ADMINS, pages.adjust)
    site.page("GET", "/charges/{attempt}", READERS, pages.show)
    site.page("POST", "/charges/{attempt}", ADMINS, pages.correct)
    site.page("GET", "/audit", READERS, pages.audit)


class ChargePages:
    """All changes are the correction service's."""

    def __init__(self, site: Site, services: Services) -> None:
        self._site, self._services = site, services

    async def index(self, visit: Visit) -> Response:
        status = visit.query.given("status")
        if status is not None and status not in STATUSES:
            raise InvalidInput(f"status: {status!r} is none; known are {', '.join(STATUSES)}")
        found = await self._services.corrections.find(
            status, visit.query.given("key"), Paging(SHOWN, visit.query.given("after"))
        )
        return self._site.render(
            visit,
            "charges.html",
            title="Charges",
            charges=found["data"],
            next_cursor=found["next_cursor"],
            statuses=STATUSES,
            scopes=tuple(ScopeKind),
            done=visit.query.text("done"),
        )

    async def show(self, visit: Visit) -> Response:
        found = await self._services.corrections.show(visit.named("attempt"))
        return self._site.render(visit, "charge.html", title=visit.named("attempt"), charges=found["data"])

    async def correct(self, visit: Visit) -> Response:
        form = visit.form
        await self._services.corrections.correct(
            visit.caller, visit.named("attempt"), form.text("cost_usd"), (None, None, None), form.text("note")
        )
        return see("/charges", {"done": "corrected"})

    async def adjust(self, visit: Visit) -> Response:
        form = visit.form
        if form.text("scope") not in tuple(ScopeKind):
            raise InvalidInput("scope: choose one of the list")
        await self._services.corrections.adjust(
            visit.caller,
            ScopeKind(form.text("scope")),
            form.text("name"),
            amount_usd=form.text("amount_usd"),
            note=form.text("note"),
            month=form.given("month"),
        )
        return see("/charges", {"done": "corrected"})

    async def audit(self, visit: Visit) -> Response:
        query = visit.query
        filters = AuditFilters(
            object_id=query.given("object"), actor=query.given("actor"), action=query.given("action")
        )
        page = await self._services.audit.find(filters, Paging(50, query.given("after")))
        return self._site.render(
            visit, "audit.html", title="Audit log", events=page["data"], has_more=page["has_more"]
        )
