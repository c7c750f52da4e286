"""`/admin/v1/teams` and `/admin/v1/organisations`."""

from typing import Annotated

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Admin, Anyone
from tollkeeper.admin.routes.paging import Paged
from tollkeeper.admin.services import Services
from tollkeeper.domain.accounts import GroupFilters, Unchanged
from tollkeeper.domain.words import Words

NamePart = Annotated[str | None, Query(description="Only those whose name contains this.")]


def teams(services: Services) -> APIRouter:
    """The routes of teams."""
    router = APIRouter(tags=["Teams and organisations"], prefix="/teams")
    service = services.teams

    @router.post("", status_code=201, response_model=models.Team, summary="Create a team")
    async def create_team(caller: Admin, request: models.NewTeamRequest) -> Words:
        return await service.create(caller, request.name, request.organisation, request.policy())

    @router.get("", response_model=models.Teams, summary="List teams, newest first")
    async def list_teams(
        caller: Anyone,
        paging: Paged,
        organisation: Annotated[str | None, Query(description="Only those of this organisation.")] = None,
        name: NamePart = None,
    ) -> Words:
        return await service.find(caller, GroupFilters(organisation=organisation, name=name), paging)

    @router.get("/{team}", response_model=models.Team, summary="Show a team, by name or id")
    async def get_team(caller: Anyone, team: str) -> Words:
        return await service.show(caller, team)

    @router.patch("/{team}", response_model=models.Team, summary="Change a team's limits")
    async def update_team(caller: Admin, team: str, request: models.LimitsUpdateRequest) -> Words:
        edit = request.edit()
        if isinstance(edit, Unchanged):
            return await service.show(caller, team)
        return await service.update(caller, team, edit)

    return router


def organisations(services: Services) -> APIRouter:
    """The routes of organisations."""
    router = APIRouter(tags=["Teams and organisations"], prefix="/organisations")
    service = services.organisations

    @router.post("", status_code=201, response_model=models.Organisation, summary="Create an organisation")
    async def create_organisation(caller: Admin, request: models.NewOrganisationRequest) -> Words:
        return await service.create(caller, request.name, request.policy())

    @router.get("", response_model=models.Organisations, summary="List organisations, newest first")
    async def list_organisations(caller: Anyone, paging: Paged, name: NamePart = None) -> Words:
        return await service.find(caller, GroupFilters(name=name), paging)

    @router.get("/{organisation}", response_model=models.Organisation, summary="Show one, by name or id")
    async def get_organisation(caller: Anyone, organisation: str) -> Words:
        return await service.show(caller, organisation)

    @router.patch("/{organisation}", response_model=models.Organisation, summary="Change an organisation's limits")
    async def update_organisation(caller: Admin, organisation: str, request: models.LimitsUpdateRequest) -> Words:
        edit = request.edit()
        if isinstance(edit, Unchanged):
            return await service.show(caller, organisation)
        return await service.update(caller, organisation, edit)

    return router
