"""`/admin/v1/budgets` and `/admin/v1/alerts`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from tollkeeper.admin import models
from tollkeeper.admin.access import Anyone
from tollkeeper.admin.routes.paging import Paged
from tollkeeper.admin.services import Services
from tollkeeper.domain.alerts import AlertFilters
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.ports import BudgetFilters
from tollkeeper.domain.words import Words, time_us_from

ScopeId = Annotated[str | None, Query(description="Of one key, team or organisation, by id.")]


def budgets(services: Services) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Budgets"])
    service = services.budgets

    @router.get(
        "/budgets",
        response_model=models.Budgets,
        summary="Budgets with their state, as of the last sync",
        description="A page is of scopes, newest first; `starting_after` is a `scope_id`. What is held now, "
        "`/limits/{key}` tells.",
    )
    async def list_budgets(
        caller: Anyone,
        paging: Paged,
        scope: Annotated[Literal["key", "team", "organisation"] | None, Query()] = None,
        scope_id: ScopeId = None,
    ) -> Words:
        kind = None if scope is None else ScopeKind(scope)
        return await service.find(caller, BudgetFilters(kind=kind, scope_id=scope_id), paging)

    @router.get(
        "/alerts",
        response_model=models.Alerts,
        summary="Warnings of budgets, and their delivery to the webhook",
        description="Newest first; `starting_after` is the `next_cursor` of the page before.",
    )
    async def list_alerts(
        caller: Anyone,
        paging: Paged,
        scope_id: ScopeId = None,
        delivery: Annotated[
            Literal["none", "waiting", "retrying", "delivered", "given_up"] | None,
            Query(description="`none`: there was no webhook."),
        ] = None,
        since: Annotated[str | None, Query(description="RFC 3339 or a date; reached from then on.")] = None,
        until: Annotated[str | None, Query(description="Reached before then.")] = None,
    ) -> Words:
        filters = AlertFilters(
            scope_id=scope_id,
            delivery=delivery,
            since_us=None if since is None else time_us_from(since, what="since"),
            until_us=None if until is None else time_us_from(until, what="until"),
        )
        return await service.alerts(caller, filters, paging.limit, paging.starting_after)

    return router
