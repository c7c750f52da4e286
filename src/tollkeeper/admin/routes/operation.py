"""`/admin/v1/limits`, `/admin/v1/health`, `/admin/v1/statistics` and `/admin/v1/configuration`."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone, Reader
from tollkeeper.admin.services import Services
from tollkeeper.domain.words import Words


def operation(services: Services) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Operation"])

    @router.get("/limits/{key}", response_model=models.LimitStates, summary="Every limit of a key with its state")
    async def show_limits(caller: Anyone, key: str) -> Words:
        return await services.limits.show(caller, key)

    @router.post("/limits/{key}/reset", status_code=204, summary="Empty a key's own windows; spend stays")
    async def reset_limits(caller: Admin, key: str) -> Response:
        await services.limits.reset(caller, key)
        return Response(status_code=204)

    @router.get("/health", response_model=models.Health, summary="Version, readiness and dependencies")
    async def health(_: Reader) -> Words:
        return await services.operation.health()

    @router.get("/statistics", response_model=models.Statistics, summary="How much there is, and this month's spend")
    async def statistics(_: Reader) -> Words:
        return await services.operation.statistics()

    @router.get("/configuration", summary="Every setting in force, secrets masked")
    async def configuration(_: Admin) -> Mapping[str, Any]:
        return services.operation.configuration()

    return router
