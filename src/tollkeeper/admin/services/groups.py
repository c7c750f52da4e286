"""Teams and organisations: create, find, change their limits."""

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.lists import listed
from tollkeeper.domain.accounts import GroupFilters, PolicyEdit
from tollkeeper.domain.errors import NotFound
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.policy import Policy
from tollkeeper.domain.words import Words, organisation_words, team_words


class TeamService:
    """An owner sees the teams that it owns, or whose organisation it owns."""

    def __init__(self, parts: Parts) -> None:
        self._accounts = parts.accounts

    async def create(self, caller: Caller, name: str, organisation: str | None, policy: Policy) -> Words:
        return team_words(await self._accounts.by(caller.author).create_team(name, organisation, policy))

    async def find(self, caller: Caller, filters: GroupFilters, paging: Paging) -> Words:
        """A page, newest first."""
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        return listed(await self._accounts.find_teams(filters, paging), team_words)

    async def show(self, caller: Caller, team: str) -> Words:
        """One, by name or id."""
        found = await self._accounts.get_team(team)
        if caller.owned is not None and not {found.id, found.organisation_id} & set(caller.owned):
            raise NotFound(f"there is no team {team!r}")
        return team_words(found)

    async def update(self, caller: Caller, team: str, policy: Policy | PolicyEdit) -> Words:
        return team_words(await self._accounts.by(caller.author).update_team(team, policy))


class OrganisationService:
    """An owner sees those that it owns."""

    def __init__(self, parts: Parts) -> None:
        self._accounts = parts.accounts

    async def create(self, caller: Caller, name: str, policy: Policy) -> Words:
        return organisation_words(await self._accounts.by(caller.author).create_organisation(name, policy))

    async def find(self, caller: Caller, filters: GroupFilters, paging: Paging) -> Words:
        """A page, newest first."""
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        return listed(await self._accounts.find_organisations(filters, paging), organisation_words)

    async def show(self, caller: Caller, organisation: str) -> Words:
        """One, by name or id."""
        found = await self._accounts.get_organisation(organisation)
        if caller.owned is not None and found.id not in caller.owned:
            raise NotFound(f"there is no organisation {organisation!r}")
        return organisation_words(found)

    async def update(self, caller: Caller, organisation: str, policy: Policy | PolicyEdit) -> Words:
        return organisation_words(await self._accounts.by(caller.author).update_organisation(organisation, policy))
