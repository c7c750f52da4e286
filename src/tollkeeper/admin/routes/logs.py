"""`/admin/v1/logs`."""

from typing import Annotated

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Anyone, Reader
from tollkeeper.admin.services import Services
from tollkeeper.domain.log_search import PAGE_MAX, LogFilters
from tollkeeper.domain.words import Words, time_us_from


def logs(services: Services) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Logs"], prefix="/logs")
    service = services.logs

    @router.get("", response_model=models.LogRecords, summary="Log records that were delivered, newest first")
    async def search_logs(
        caller: Anyone,
        *,
        since: Annotated[str | None, Query(description="RFC 3339 or a date; from then on.")] = None,
        until: Annotated[str | None, Query(description="Before then.")] = None,
        key: Annotated[str | None, Query(description="Name or id.")] = None,
        team: Annotated[str | None, Query(description="Id.")] = None,
        model: Annotated[str | None, Query()] = None,
        user: Annotated[str | None, Query(description="The client's end user.")] = None,
        tag: Annotated[str | None, Query(description="One of the request's tags.")] = None,
        request_id: Annotated[str | None, Query()] = None,
        status: Annotated[str | None, Query(description="Like 429 or 4xx.")] = None,
        errors: Annotated[bool, Query(description="Only what went wrong.")] = False,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="At most 100 with bodies.")] = 100,
        starting_after: Annotated[
            str | None, Query(description="The `next_cursor` of the page before: the next page.")
        ] = None,
        bodies: Annotated[
            bool, Query(description="With request and response bodies, if they were logged. Not for viewers.")
        ] = False,
    ) -> Words:
        filters = LogFilters(
            since_us=None if since is None else time_us_from(since, what="since"),
            until_us=None if until is None else time_us_from(until, what="until"),
            key=key,
            team=team,
            model=model,
            user=user,
            tag=tag,
            request_id=request_id,
            status=status,
            errors=errors,
        )
        return await service.search(caller, filters, limit, starting_after, bodies=bodies)

    @router.get("/stats", response_model=models.LogStats, summary="Log records on their way, counted")
    async def log_stats(_: Reader) -> Words:
        return service.stats()

    @router.get(
        "/verify",
        response_model=models.LogProof,
        responses={409: {"model": models.Error, "description": "Being verified for somebody else."}},
        summary="Prove the logs complete: what became of every record's number",
        description="Reads the queue and the whole store, one caller at a time, for at most two minutes.",
    )
    async def verify_logs(_: Reader) -> Words:
        return await service.verify()

    return router
