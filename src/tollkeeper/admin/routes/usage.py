"""`/admin/v1/usage` and `/admin/v1/sync`."""

from typing import Annotated

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone
from tollkeeper.admin.services import Services
from tollkeeper.domain.words import Words


def usage(services: Services) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Usage"])

    @router.get("/usage", response_model=models.Usage, summary="Monthly usage, as of the last sync")
    async def monthly_usage(
        caller: Anyone,
        key: Annotated[str | None, Query(description="Name or id; default: all keys.")] = None,
        month: Annotated[str | None, Query(description="Like 2026-11; default: all months.")] = None,
    ) -> Words:
        return await services.usage.monthly(caller, key, month)

    @router.post("/sync", response_model=models.Synced, summary="Write spend to the database now")
    async def sync_now(_: Admin) -> Words:
        return await services.usage.sync()

    return router
