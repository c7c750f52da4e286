"""`/admin/v1/usage`, `/admin/v1/reports/usage` and `/admin/v1/sync`."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone
from tollkeeper.admin.downloads import csv_file
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.routes.paging import Paged
from tollkeeper.admin.services import Services
from tollkeeper.domain.periods import Period, span_at
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.reports import ROWS_MAX, ReportFilters, ReportQuery
from tollkeeper.domain.words import Words, time_us_from

Format = Annotated[Literal["json", "csv"], Query(description="`csv`: cells that look like formulas are escaped.")]
CSV: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
GROUPS: Final = (
    "Up to three of `day`, `hour`, `key`, `team`, `organisation`, `model`, `provider`, `tag`, `user`, `endpoint`, "
    "`status`, `error`, `refused_by`, with commas."
)


def usage(services: Services, parts: Parts) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Usage"])

    @router.get(
        "/usage",
        response_model=models.Usage,
        responses=CSV,
        summary="Monthly usage, exact, as of the last sync",
        description="The ledger's accounts, corrections included; the newest month first. As CSV all rows, up to "
        "10,000.",
    )
    async def monthly_usage(
        caller: Anyone,
        paging: Paged,
        *,
        by: Annotated[Literal["key", "team", "organisation"], Query(description="Whose months.")] = "key",
        key: Annotated[str | None, Query(description="Of one key, by name or id.")] = None,
        team: Annotated[str | None, Query(description="Of one team; with `by=team`.")] = None,
        organisation: Annotated[str | None, Query(description="Of one; with `by=organisation`.")] = None,
        month: Annotated[str | None, Query(description="Like 2026-11; default: all months.")] = None,
        format: Format = "json",  # noqa: A002 - the name of the parameter
    ) -> Any:
        kind = ScopeKind(by)
        scope = {ScopeKind.KEY: key, ScopeKind.TEAM: team, ScopeKind.ORGANISATION: organisation}[kind]
        if format == "csv":
            return csv_file(f"usage-by-{by}", await services.usage.export(caller, kind, scope, month))
        return await services.usage.monthly(caller, kind, scope, month, paging)

    @router.get(
        "/reports/usage",
        response_model=models.UsageReport,
        responses=CSV | {409: {"model": models.Error, "description": "Others are made, for too long."}},
        summary="Usage by model, provider, tag, day and more, from log records",
        description="Sums over delivered records of at most 366 days; a request counts with what it was charged when "
        "it ended, and for each of its tags. `/usage` has the exact accounts. Needs DuckDB (`tollkeeper[query]`).",
    )
    async def usage_report(
        caller: Anyone,
        *,
        since: Annotated[str | None, Query(description="RFC 3339 or a date; default: this month's first.")] = None,
        until: Annotated[str | None, Query(description="Before then; default: now.")] = None,
        group_by: Annotated[str | None, Query(description=GROUPS)] = None,
        key: Annotated[str | None, Query(description="Name or id.")] = None,
        team: Annotated[str | None, Query(description="Name or id.")] = None,
        organisation: Annotated[str | None, Query(description="Name or id.")] = None,
        model: Annotated[str | None, Query()] = None,
        provider: Annotated[str | None, Query()] = None,
        tag: Annotated[str | None, Query()] = None,
        user: Annotated[str | None, Query(description="The client's end user.")] = None,
        limit: Annotated[int, Query(ge=1, le=ROWS_MAX, description="Groups.")] = 100,
        format: Format = "json",  # noqa: A002 - the name of the parameter
    ) -> Any:
        now_us = parts.now_us()
        query = ReportQuery(
            since_us=span_at(Period.MONTH, now_us).starts_us if since is None else time_us_from(since, what="since"),
            until_us=now_us // MINUTE_US * MINUTE_US + MINUTE_US
            if until is None
            else time_us_from(until, what="until"),
            group_by=() if group_by is None else tuple(name.strip() for name in group_by.split(",")),
            filters=ReportFilters(
                key=key,
                team=team,
                organisation=organisation,
                model=model,
                provider=provider,
                tag=tag,
                user=user,
            ),
            limit=limit,
        )
        report = await services.reports.usage(caller, query)
        return csv_file("usage-report", report["data"]) if format == "csv" else report

    @router.post("/sync", response_model=models.Synced, summary="Write spend to the database now")
    async def sync_now(_: Admin) -> Words:
        return await services.usage.sync()

    return router


MINUTE_US: Final = 60_000_000
"""Reports until now end with the minute, so that those asked for within it are one."""
