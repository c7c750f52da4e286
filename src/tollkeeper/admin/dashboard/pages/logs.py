"""Log records: search with pages, one record in full, and the account of those on their way."""

from typing import Any, Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.http import Form, see
from tollkeeper.admin.dashboard.site import ADMINS, ANYONE, READERS, Site, Visit
from tollkeeper.admin.downloads import csv_file
from tollkeeper.admin.services import Services
from tollkeeper.domain.errors import InvalidInput, NotFound
from tollkeeper.domain.log_search import LogFilters
from tollkeeper.domain.operators import Role
from tollkeeper.domain.words import Words, time_us_from

PAGE: Final = 50


def register(site: Site, services: Services) -> None:
    """The pages below `/dashboard/logs`, and `/dashboard/delivery`."""
    pages = LogPages(site, services)
    site.page("GET", "/logs", ANYONE, pages.search)
    site.page("GET", "/logs.csv", ANYONE, pages.file)
    site.page("GET", "/logs/{request}", ANYONE, pages.show)
    site.page("GET", "/delivery", READERS, pages.delivery)
    site.page("GET", "/delivery/proof", READERS, pages.proof)
    site.page("POST", "/delivery/sync", ADMINS, pages.sync)


class LogPages:
    """Bodies are shown to admins and owners, as in the API."""

    def __init__(self, site: Site, services: Services) -> None:
        self._site, self._services = site, services

    async def file(self, visit: Visit) -> Response:
        """The newest records that fit, without bodies, as CSV: `EXPORTED_MAX` at most."""
        return csv_file("logs", await self._services.logs.export(visit.caller, _filters(visit.query)))

    async def search(self, visit: Visit) -> Response:
        page = await self._services.logs.search(visit.caller, _filters(visit.query), PAGE, visit.query.given("after"))
        return self._site.render(
            visit, "logs.html", title="Logs", records=page["data"], next_cursor=page["next_cursor"], **_columns(page)
        )

    async def show(self, visit: Visit) -> Response:
        at = visit.query.text("at")
        if not at.isdecimal() or len(at) > 17:
            raise InvalidInput("at: give the record's time in µs, as the list's links do")
        request_id = visit.named("request")
        filters = LogFilters(since_us=int(at), until_us=int(at) + 1, request_id=request_id)
        bodies = visit.caller.actor.role is not Role.VIEWER
        page = await self._services.logs.search(visit.caller, filters, 1, None, bodies=bodies)
        if not page["data"]:
            raise NotFound(f"there is no record of {request_id} at that time, or it is not yours")
        record = page["data"][0]
        return self._site.render(
            visit, "log.html", title=request_id, record=record, groups=_groups(record), bodies=bodies
        )

    async def delivery(self, visit: Visit) -> Response:
        return self._site.render(
            visit,
            "delivery.html",
            title="Delivery",
            stats=self._services.logs.stats(),
            statistics=await self._services.operation.statistics(),
            checks=await self._site.parts.readiness.checks(),
            proof=None,
            done=visit.query.text("done"),
        )

    async def proof(self, visit: Visit) -> Response:
        return self._site.render(
            visit, "proof.html", title="Proof of delivery", proof=await self._services.logs.verify()
        )

    async def sync(self, visit: Visit) -> Response:
        await self._services.usage.sync()
        return see("/delivery", {"done": "synced"})


def _filters(query: Form) -> LogFilters:
    """What the fields of the search say. Raises InvalidInput."""
    since, until = query.given("since"), query.given("until")
    return LogFilters(
        since_us=None if since is None else time_us_from(since, what="since"),
        until_us=None if until is None else time_us_from(until, what="until"),
        errors=query.text("errors") == "1",
        key=query.given("key"),
        model=query.given("model"),
        user=query.given("user"),
        tag=query.given("tag"),
        status=query.given("status"),
        request_id=query.given("request_id"),
    )


def _columns(page: Words) -> dict[str, Any]:
    """Columns that some record of the page has something in."""
    return {"has_user": any(record.get("user") for record in page["data"])}


def _groups(record: Words) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The record's fields for reading, those without a value left out."""

    def named(*names: str) -> list[tuple[str, Any]]:
        return [(name, record[name]) for name in names if record.get(name) not in (None, "", [], {}, 0, False)]

    counted = [
        name
        for name in record
        if name.startswith(("tokens_", "web_", "file_", "images", "audio_", "characters", "searches"))
    ]
    return [
        (
            "Request",
            named("endpoint", "dialect", "model", "streaming", "client_request_id", "user", "tags", "metadata"),
        ),
        ("Provider", named("provider", "upstream_model", "upstream_request_id", "attempts", "service_tier")),
        ("Usage", named(*counted)),
        ("Charge", named("price_version", "cost_source", "presumed")),
        (
            "What went wrong",
            named("error", "refused_by", "shadow_refusals", "client_disconnected", "replaced", "bodies_omitted"),
        ),
        ("Record", named("producer", "number", "schema_version")),
    ]
