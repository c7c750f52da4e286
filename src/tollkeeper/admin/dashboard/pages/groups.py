"""Teams and organisations: lists, one with its keys and what is left of its limits, and changes of both.

The two differ in little, so a `Kind` says what: its words, its services, and where its limits are found. What a team
or organisation has left is read from the state of one of its keys, since limits are asked for by key.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec
from starlette.responses import Response

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.dashboard.http import see
from tollkeeper.admin.dashboard.pages.policies import EMPTY, limits_change, policy_fields
from tollkeeper.admin.dashboard.site import ADMINS, ANYONE, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.admin.services.groups import OrganisationService, TeamService
from tollkeeper.domain.accounts import GroupFilters, KeyFilters
from tollkeeper.domain.errors import InvalidInput, Unavailable
from tollkeeper.domain.paging import PAGE_MAX, Paging
from tollkeeper.domain.policy import UNLIMITED, Policy, ScopeKind
from tollkeeper.domain.ports import BudgetFilters
from tollkeeper.domain.words import Words

Make = Callable[[Caller, str, str | None, Policy], Awaitable[Words]]


class Kind(msgspec.Struct, frozen=True):
    """Teams or organisations. `path` is the page's and `scope` the limits'."""

    scope: ScopeKind
    path: str
    title: str
    service: TeamService | OrganisationService
    make: Make

    def keys_of(self, group: str) -> KeyFilters:
        """The filter for its keys."""
        return KeyFilters(team=group) if self.scope is ScopeKind.TEAM else KeyFilters(organisation=group)


def register(site: Site, services: Services) -> None:
    """The pages below `/dashboard/teams` and `/dashboard/organisations`."""

    async def make_team(caller: Caller, name: str, organisation: str | None, policy: Policy) -> Words:
        return await services.teams.create(caller, name, organisation, policy)

    async def make_organisation(caller: Caller, name: str, _: str | None, policy: Policy) -> Words:
        return await services.organisations.create(caller, name, policy)

    for kind in (
        Kind(ScopeKind.TEAM, "/teams", "Teams", services.teams, make_team),
        Kind(ScopeKind.ORGANISATION, "/organisations", "Organisations", services.organisations, make_organisation),
    ):
        pages = GroupPages(site, services, kind)
        site.page("GET", kind.path, ANYONE, pages.index)
        site.page("GET", f"{kind.path}/new", ADMINS, pages.new)
        site.page("POST", kind.path, ADMINS, pages.create)
        site.page("GET", kind.path + "/{group}", ANYONE, pages.show)
        site.page("GET", kind.path + "/{group}/edit", ADMINS, pages.edit)
        site.page("POST", kind.path + "/{group}", ADMINS, pages.update)


NAMES: Final = ("name", "organisation", *policy_fields(EMPTY))


class GroupPages:
    """The pages of one kind."""

    def __init__(self, site: Site, services: Services, kind: Kind) -> None:
        self._site, self._services, self._kind = site, services, kind

    async def index(self, visit: Visit) -> Response:
        filters = GroupFilters(
            name=visit.query.given("name"),
            organisation=visit.query.given("organisation") if self._kind.scope is ScopeKind.TEAM else None,
        )
        page = await self._kind.service.find(visit.caller, filters, Paging(starting_after=visit.query.given("after")))
        return self._site.render(
            visit,
            "groups.html",
            title=self._kind.title,
            kind=self._kind,
            groups=page["data"],
            has_more=page["has_more"],
            organisations=await self._organisations(visit.caller),
            budgets=await self._budgets(visit.caller),
        )

    async def _budgets(self, caller: Caller) -> dict[str, list[Words]]:
        """Budgets with their state as of the last sync, of the newest that have some."""
        page = await self._services.budgets.find(caller, BudgetFilters(kind=self._kind.scope), Paging(PAGE_MAX))
        return {scope["scope_id"]: scope["budgets"] for scope in page["data"]}

    async def _organisations(self, caller: Caller) -> dict[str, str]:
        if self._kind.scope is ScopeKind.ORGANISATION:
            return {}
        page = await self._services.organisations.find(caller, GroupFilters(), Paging(PAGE_MAX))
        return {organisation["id"]: organisation["name"] for organisation in page["data"]}

    async def show(self, visit: Visit) -> Response:
        group = await self._kind.service.show(visit.caller, visit.named("group"))
        keys = await self._services.keys.find(visit.caller, self._kind.keys_of(group["id"]), Paging(PAGE_MAX))
        return self._site.render(
            visit,
            "group.html",
            title=group["name"],
            kind=self._kind,
            group=group,
            keys=keys["data"],
            has_more=keys["has_more"],
            limits=await self._limits(visit.caller, keys["data"]),
            organisations=await self._organisations(visit.caller),
            done=visit.query.text("done"),
        )

    async def _limits(self, caller: Caller, keys: list[Words]) -> list[Words] | None:
        """The state of its own limits; None if they cannot be asked for."""
        active = next((key for key in keys if key["state"] == "active"), None)
        if active is None:
            return None
        with suppress(Unavailable):
            found = (await self._services.limits.show(caller, active["id"]))["limits"]
            return [limit for limit in found if limit["scope"] == self._kind.scope]
        return None

    async def new(self, visit: Visit) -> Response:
        fields = policy_fields(EMPTY) | {"name": "", "organisation": visit.query.text("organisation")}
        return await self._form(visit, fields, None)

    async def _form(
        self,
        visit: Visit,
        fields: dict[str, str],
        group: Words | None,
        message: str = "",
        was: dict[str, str] | None = None,
    ) -> Response:
        return self._site.render(
            visit,
            "group_form.html",
            status=400 if message else 200,
            title=f"Create {'a team' if self._kind.scope is ScopeKind.TEAM else 'an organisation'}"
            if group is None
            else f"Edit {group['name']}",
            kind=self._kind,
            group=group,
            fields=fields,
            was=was or ({} if group is None else fields),
            message=message,
            organisations=await self._organisations(visit.caller),
        )

    async def create(self, visit: Visit) -> Response:
        form = visit.form
        try:
            change = limits_change(form)
            policy = UNLIMITED if change is None else change.applied(UNLIMITED)
            group = await self._kind.make(visit.caller, form.text("name"), form.given("organisation"), policy)
        except InvalidInput as error:
            return await self._form(visit, _returned(visit), None, str(error))
        return see(f"{self._kind.path}/{group['id']}", {"done": "made"})

    async def edit(self, visit: Visit) -> Response:
        group = await self._kind.service.show(visit.caller, visit.named("group"))
        return await self._form(visit, policy_fields(group["limits"]), group)

    async def update(self, visit: Visit) -> Response:
        group = await self._kind.service.show(visit.caller, visit.named("group"))
        try:
            change = limits_change(visit.form)
            if change is not None:
                await self._kind.service.update(visit.caller, group["id"], change.applied)
        except InvalidInput as error:
            was = {name.removeprefix("was_"): value for name, value in visit.form.fields if name.startswith("was_")}
            return await self._form(visit, _returned(visit), group, str(error), was)
        return see(f"{self._kind.path}/{group['id']}", {"done": "saved"})


def _returned(visit: Visit) -> dict[str, str]:
    return {name: visit.form.text(name) for name in NAMES}
