"""`/admin/v1/limits` and `/admin/v1/health`."""

from fastapi import APIRouter, Response

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone, Reader
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services import Services
from tollkeeper.domain.words import Words, instant


def operation(services: Services, parts: Parts) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Operation"])
    started_us = parts.now_us()

    @router.get("/limits/{key}", response_model=models.LimitStates, summary="Every limit of a key with its state")
    async def show_limits(caller: Anyone, key: str) -> Words:
        return await services.limits.show(caller, key)

    @router.post("/limits/{key}/reset", status_code=204, summary="Empty a key's own windows; spend stays")
    async def reset_limits(caller: Admin, key: str) -> Response:
        await services.limits.reset(caller, key)
        return Response(status_code=204)

    @router.get("/health", response_model=models.Health, summary="Version, readiness and dependencies")
    async def health(_: Reader) -> Words:
        checks = await parts.readiness.checks()
        return {
            "version": parts.version,
            "ready": all(check.ok for check in checks.values()),
            "started_at": instant(started_us),
            "checks": {name: {"ok": check.ok, "detail": check.detail} for name, check in checks.items()},
        }

    return router
