"""Carries out a plan of what LiteLLM's accounts become: makes what is not there yet, and changes nothing that is.

Organisations and teams are known again by their names, keys by their secrets' digests, adjustments by their ids: so a
repetition makes only what was added in LiteLLM, and what was changed here in between stays.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum

import msgspec

from tollkeeper.domain.accounts import Key, NewKey, Organisation, Team
from tollkeeper.domain.litellm import Plan, PlannedGroup, PlannedKey, Spend
from tollkeeper.domain.periods import span_at
from tollkeeper.domain.policy import Policy
from tollkeeper.domain.ports import Accounts


class Done(StrEnum):
    """What became of a part of the plan."""

    MADE = "made"
    THERE = "already there"
    LEFT_OUT = "left out"


class Outcome(msgspec.Struct, frozen=True):
    """One part of the plan. `id` is None where nothing has been made."""

    kind: str
    name: str
    done: Done
    source: str
    policy: Policy
    spends: tuple[Spend, ...] = ()
    notes: tuple[str, ...] = ()
    id: str | None = None


class Adjustment(msgspec.Struct, frozen=True):
    """A scope's spend in LiteLLM, to be added to that of one period here; the same id is the same adjustment."""

    id: str
    scope: str
    scope_id: str
    spend: Spend


async def carry_out(plan: Plan, accounts: Accounts, *, dry_run: bool) -> list[Outcome]:
    """Make organisations, teams and keys, in this order. Raises what `Accounts` raises; what was made stays.

    With `dry_run` nothing is made, and `MADE` says what would be.
    """
    making = _Making(accounts, dry_run)
    await making.look()
    done = [await making.organisation(planned) for planned in plan.organisations]
    done += [await making.team(planned) for planned in plan.teams]
    done += [await making.key(planned) for planned in plan.keys]
    return done


def adjustments(outcomes: list[Outcome], now_us: int) -> list[Adjustment]:
    """The spend of everything that exists. Asked again in the same period it is the same adjustment, with the newest
    amount: what LiteLLM served meanwhile."""
    return [
        Adjustment(f"litellm {o.source} {span_at(spend.period, now_us).label}", o.kind, o.id, spend)
        for o in outcomes
        for spend in o.spends
        if o.id is not None
    ]


class _Making:
    def __init__(self, accounts: Accounts, dry_run: bool) -> None:
        self._accounts, self._dry_run = accounts, dry_run
        self._organisations: dict[str, Organisation] = {}
        self._teams: dict[tuple[str, str], Team] = {}
        self._ids: dict[str, str] = {}  # source of a planned team, and name of an organisation → id

    async def look(self) -> None:
        self._organisations = {found.name: found for found in await self._accounts.list_organisations()}
        self._teams = {(team.organisation_id, team.name): team for team in await self._accounts.list_teams()}

    async def organisation(self, planned: PlannedGroup) -> Outcome:
        there = self._organisations.get(planned.name)
        return await self._group(
            "organisation",
            planned,
            planned.name,
            there,
            lambda: self._accounts.create_organisation(planned.name, planned.policy),
        )

    async def team(self, planned: PlannedGroup) -> Outcome:
        assert planned.organisation is not None
        home = self._ids.get(planned.organisation)
        there = None if home is None else self._teams.get((home, planned.name))
        return await self._group(
            "team",
            planned,
            planned.source,
            there,
            lambda: self._accounts.create_team(planned.name, home, planned.policy),
        )

    async def _group(
        self,
        kind: str,
        planned: PlannedGroup,
        known_as: str,
        there: Organisation | Team | None,
        make: Callable[[], Awaitable[Organisation | Team]],
    ) -> Outcome:
        found = there
        if found is None and not self._dry_run:
            found = await make()
        if found is not None:
            self._ids[known_as] = found.id
        return Outcome(
            kind,
            planned.name,
            Done.MADE if there is None else Done.THERE,
            planned.source,
            planned.policy if there is None else there.policy,
            planned.spends,
            planned.notes,
            None if found is None else found.id,
        )

    async def key(self, planned: PlannedKey) -> Outcome:
        source = f"key {planned.sha256[:16]}"
        if planned.left_out is not None:
            notes = (planned.left_out, *planned.notes)
            return Outcome("key", planned.name, Done.LEFT_OUT, source, planned.policy, notes=notes)
        secret_sha256 = bytes.fromhex(planned.sha256)
        there = await self._accounts.imported_key(secret_sha256)
        made: Key | None = None
        if there is None and not self._dry_run:
            made = await self._accounts.import_key(self._new_key(planned), secret_sha256, planned.hint)
        found = there or made
        return Outcome(
            "key",
            planned.name,
            Done.MADE if there is None else Done.THERE,
            source,
            planned.policy if there is None else there.policy,
            planned.spends,
            planned.notes,
            None if found is None else found.id,
        )

    def _new_key(self, planned: PlannedKey) -> NewKey:
        return NewKey(
            planned.name,
            organisation=None if planned.organisation is None else self._ids[planned.organisation],
            team=None if planned.team is None else self._ids[planned.team],
            policy=planned.policy,
            expires_us=planned.expires_us,
        )
