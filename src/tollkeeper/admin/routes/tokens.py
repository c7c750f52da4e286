"""`/admin/v1/admin-tokens`, `/admin/v1/me` and `/admin/v1/audit`."""

from typing import Annotated

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone, Reader
from tollkeeper.admin.routes.paging import Paged
from tollkeeper.admin.services import Services
from tollkeeper.domain.audit import AuditFilters
from tollkeeper.domain.operators import AdminTokenChange, NewAdminToken, Role
from tollkeeper.domain.words import Words, time_us_from


def tokens(services: Services) -> APIRouter:
    """The routes of tokens."""
    router = APIRouter(tags=["Admin tokens"], prefix="/admin-tokens")
    service = services.tokens

    @router.post("", status_code=201, response_model=models.AdminTokenWithSecret, summary="Create a token")
    async def create_admin_token(caller: Admin, request: models.NewAdminTokenRequest) -> Words:
        new = NewAdminToken(request.name, Role(request.role), tuple(request.owns), request.expires_us())
        return await service.create(caller, new)

    @router.get("", response_model=models.AdminTokens, summary="List tokens, newest first")
    async def list_admin_tokens(_: Reader, paging: Paged, include_revoked: Annotated[bool, Query()] = False) -> Words:
        return await service.find(paging, include_revoked=include_revoked)

    @router.get("/{token}", response_model=models.AdminToken, summary="Show a token, by name or id")
    async def get_admin_token(_: Reader, token: str) -> Words:
        return await service.show(token)

    @router.patch("/{token}", response_model=models.AdminToken, summary="Change what the request names")
    async def update_admin_token(caller: Admin, token: str, request: models.AdminTokenUpdateRequest) -> Words:
        owns = request.given("owns")
        change = AdminTokenChange(
            name=request.given("name"),
            owns=tuple(owns) if isinstance(owns, list) else owns,
            expires_us=request.expires_us(),
        )
        return await service.update(caller, token, change)

    @router.post("/{token}/rotate", response_model=models.AdminTokenWithSecret, summary="Give a token a new secret")
    async def rotate_admin_token(caller: Admin, token: str, request: models.RotateRequest | None = None) -> Words:
        return await service.rotate(caller, token, 0.0 if request is None else request.overlap_s)

    @router.post("/{token}/revoke", response_model=models.AdminToken, summary="Revoke a token, for good")
    async def revoke_admin_token(caller: Admin, token: str) -> Words:
        return await service.revoke(caller, token)

    return router


def audit(services: Services) -> APIRouter:
    """The routes of who asks, and of who has asked."""
    router = APIRouter(tags=["Admin tokens"])

    @router.get("/me", response_model=models.Actor, summary="Whose token this is")
    async def me(caller: Anyone) -> Words:
        return services.tokens.me(caller)

    @router.get("/audit", response_model=models.AuditEvents, summary="What was changed, and by whom, newest first")
    async def list_audit_events(
        _: Reader,
        paging: Paged,
        object_id: Annotated[str | None, Query(description="What was changed, by its id.")] = None,
        actor: Annotated[str | None, Query(description="Who changed it: a token's id, `bootstrap`, `cli`.")] = None,
        action: Annotated[str | None, Query(description="Like `key.update`.")] = None,
        request_id: Annotated[str | None, Query(description="As the answer said in `request-id`.")] = None,
        since: Annotated[str | None, Query(description="RFC 3339 or a date; from then on.")] = None,
        until: Annotated[str | None, Query(description="Before then.")] = None,
    ) -> Words:
        filters = AuditFilters(
            object_id=object_id,
            actor=actor,
            action=action,
            request_id=request_id,
            since_us=None if since is None else time_us_from(since, what="since"),
            until_us=None if until is None else time_us_from(until, what="until"),
        )
        return await services.audit.find(filters, paging)

    return router
