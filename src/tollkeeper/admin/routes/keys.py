"""`/admin/v1/keys`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone
from tollkeeper.admin.routes.paging import Paged
from tollkeeper.admin.services import Services
from tollkeeper.domain.accounts import KeyChange, KeyFilters, NewKey
from tollkeeper.domain.words import Words


def keys(services: Services) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Keys"], prefix="/keys")
    service = services.keys

    @router.post("", status_code=201, response_model=models.KeyWithSecret, summary="Create a key")
    async def create_key(caller: Admin, request: models.NewKeyRequest) -> Words:
        new = NewKey(
            name=request.name,
            organisation=request.organisation,
            team=request.team,
            policy=request.policy(),
            expires_us=request.expires_us(),
        )
        return await service.create(caller, new)

    @router.get("", response_model=models.Keys, summary="List keys, newest first")
    async def list_keys(
        caller: Anyone,
        paging: Paged,
        team: Annotated[str | None, Query(description="Only those of this team.")] = None,
        organisation: Annotated[str | None, Query(description="Only those of this organisation.")] = None,
        state: Annotated[Literal["active", "expired", "revoked"] | None, Query()] = None,
        name: Annotated[str | None, Query(description="Only those whose name contains this.")] = None,
        include_revoked: Annotated[bool, Query(description="Without `state`, these too.")] = False,
    ) -> Words:
        filters = KeyFilters(
            team=team, organisation=organisation, state=state, name=name, include_revoked=include_revoked
        )
        return await service.find(caller, filters, paging)

    @router.get("/{key}", response_model=models.Key, summary="Show a key, by name or id")
    async def get_key(caller: Anyone, key: str) -> Words:
        return await service.show(caller, key)

    @router.patch("/{key}", response_model=models.Key, summary="Change what the request names")
    async def update_key(caller: Admin, key: str, request: models.KeyUpdateRequest) -> Words:
        change = KeyChange(
            name=request.given("name"),
            team=request.given("team"),
            policy=request.edit(),
            expires_us=request.expires_us(),
        )
        return await service.update(caller, key, change)

    @router.post("/{key}/rotate", response_model=models.KeyWithSecret, summary="Give a key a new secret")
    async def rotate_key(caller: Admin, key: str, request: models.RotateRequest | None = None) -> Words:
        return await service.rotate(caller, key, 0.0 if request is None else request.overlap_s)

    @router.post("/{key}/revoke", response_model=models.Key, summary="Revoke a key, for good")
    async def revoke_key(caller: Admin, key: str) -> Words:
        return await service.revoke(caller, key)

    return router
