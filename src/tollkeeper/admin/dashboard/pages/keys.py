"""Keys: the list with budgets as they are now, one key with its limits and usage, and every change of one."""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.responses import Response

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.dashboard.charts import Series, columns
from tollkeeper.admin.dashboard.formats import axis_dollars
from tollkeeper.admin.dashboard.http import see
from tollkeeper.admin.dashboard.pages.policies import EMPTY, is_changed, limits_change, policy_fields
from tollkeeper.admin.dashboard.site import ADMINS, ANYONE, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.domain.accounts import UNCHANGED, GroupFilters, KeyChange, KeyFilters, NewKey
from tollkeeper.domain.errors import InvalidInput, Unavailable
from tollkeeper.domain.paging import PAGE_MAX, Paging
from tollkeeper.domain.periods import Period, span_at
from tollkeeper.domain.policy import UNLIMITED, ScopeKind
from tollkeeper.domain.words import Words, time_us_from

MONTHS_SHOWN: Final = 12
OVERLAPS: Final = ((0, "at once"), (3600, "in an hour"), (86_400, "in a day"), (604_800, "in a week"))
"""When the old secret ends, after a rotation."""
STATES: Final = ("active", "expired", "revoked")


def register(site: Site, services: Services) -> None:
    """The pages below `/dashboard/keys`."""
    pages = KeyPages(site, services)
    site.page("GET", "/keys", ANYONE, pages.index)
    site.page("GET", "/keys/new", ADMINS, pages.new)
    site.page("POST", "/keys", ADMINS, pages.create)
    site.page("GET", "/keys/{key}", ANYONE, pages.show)
    site.page("GET", "/keys/{key}/edit", ADMINS, pages.edit)
    site.page("POST", "/keys/{key}", ADMINS, pages.update)
    site.page("POST", "/keys/{key}/rotate", ADMINS, pages.rotate)
    site.page("POST", "/keys/{key}/revoke", ADMINS, pages.revoke)
    site.page("POST", "/keys/{key}/reset-limits", ADMINS, pages.reset_limits)


class KeyPages:
    """All changes are the services'."""

    def __init__(self, site: Site, services: Services) -> None:
        self._site, self._services = site, services

    async def index(self, visit: Visit) -> Response:
        query = visit.query
        state = query.given("state")
        if state is not None and state not in STATES:
            raise InvalidInput(f"state: {state!r} is none; known are {', '.join(STATES)}")
        filters = KeyFilters(
            name=query.given("name"), state=state, team=query.given("team"), organisation=query.given("organisation")
        )
        page = await self._services.keys.find(visit.caller, filters, Paging(starting_after=query.given("after")))
        now_us = self._site.parts.now_us()
        month = span_at(Period.MONTH, now_us).label.replace(":", "-")
        usage = await self._services.usage.export(visit.caller, ScopeKind.KEY, None, month)
        limits = await asyncio.gather(*(self.limits(visit.caller, key["id"]) for key in page["data"]))
        return self._site.render(
            visit,
            "keys.html",
            title="Keys",
            keys=page["data"],
            has_more=page["has_more"],
            spent={row["key_id"]: row["cost_nano"] for row in usage},
            limits=dict(zip((key["id"] for key in page["data"]), limits, strict=True)),
            teams=await self.teams(visit.caller),
            states=STATES,
        )

    async def limits(self, caller: Caller, key: str) -> list[Words] | None:
        """Every limit with its state now; None while the store is away."""
        with suppress(Unavailable):
            found: list[Words] = (await self._services.limits.show(caller, key))["limits"]
            return found
        return None

    async def teams(self, caller: Caller) -> dict[str, str]:
        """Names by id, of the newest ones."""
        page = await self._services.teams.find(caller, GroupFilters(), Paging(PAGE_MAX))
        return {team["id"]: team["name"] for team in page["data"]}

    async def organisations(self, caller: Caller) -> dict[str, str]:
        """Names by id, of the newest ones."""
        page = await self._services.organisations.find(caller, GroupFilters(), Paging(PAGE_MAX))
        return {organisation["id"]: organisation["name"] for organisation in page["data"]}

    async def new(self, visit: Visit) -> Response:
        fields = policy_fields(EMPTY) | {
            "name": "",
            "organisation": visit.query.text("organisation"),
            "team": visit.query.text("team"),
            "expires_at": "",
        }
        return await self._form(visit, fields, None)

    async def _form(
        self,
        visit: Visit,
        fields: dict[str, str],
        key: Words | None,
        message: str = "",
        was: dict[str, str] | None = None,
    ) -> Response:
        return self._site.render(
            visit,
            "key_form.html",
            status=400 if message else 200,
            title="Create a key" if key is None else f"Edit {key['name']}",
            key=key,
            fields=fields,
            was=was or ({} if key is None else fields),
            message=message,
            teams=await self.teams(visit.caller),
            organisations=await self.organisations(visit.caller),
        )

    async def create(self, visit: Visit) -> Response:
        form = visit.form
        try:
            change = limits_change(form)
            new = NewKey(
                name=form.text("name"),
                organisation=form.given("organisation"),
                team=form.given("team"),
                policy=UNLIMITED if change is None else change.applied(UNLIMITED),
                expires_us=_expiry(form.text("expires_at")),
            )
            key = await self._services.keys.create(visit.caller, new)
        except InvalidInput as error:
            return await self._form(visit, _returned(visit), None, str(error))
        return self._secret(visit, key, "The key is made")

    def _secret(self, visit: Visit, key: Words, title: str) -> Response:
        return self._site.render(
            visit,
            "secret.html",
            title=title,
            name=key["name"],
            secret=key["secret"],
            back=f"/keys/{key['id']}",
            key=key,
        )

    async def show(self, visit: Visit) -> Response:
        key = await self._services.keys.show(visit.caller, visit.named("key"))
        paging = Paging(MONTHS_SHOWN)
        usage = (await self._services.usage.monthly(visit.caller, ScopeKind.KEY, key["id"], None, paging))["data"]
        months = list(reversed(usage))
        cost = Series("cost", tuple(row["cost_nano"] for row in months))
        chart = columns(f"Spend of {key['name']} by month", [r["month"] for r in months], [cost], axis_dollars)
        return self._site.render(
            visit,
            "key.html",
            title=key["name"],
            key=key,
            limits=await self.limits(visit.caller, key["id"]) if key["state"] != "revoked" else [],
            usage=usage,
            chart=chart if len(usage) > 1 else None,
            teams=await self.teams(visit.caller),
            organisations=await self.organisations(visit.caller),
            overlaps=OVERLAPS,
            done=visit.query.text("done"),
        )

    async def edit(self, visit: Visit) -> Response:
        key = await self._services.keys.show(visit.caller, visit.named("key"))
        return await self._form(visit, await self._fields(visit.caller, key), key)

    async def _fields(self, caller: Caller, key: Words) -> dict[str, str]:
        return policy_fields(key["limits"]) | {
            "name": key["name"],
            "team": (await self.teams(caller)).get(key["team_id"], key["team_id"] or ""),
            "expires_at": key["expires_at"] or "",
        }

    async def update(self, visit: Visit) -> Response:
        form, key = visit.form, await self._services.keys.show(visit.caller, visit.named("key"))
        try:
            limits = limits_change(form)
            change = KeyChange(
                name=form.text("name") if is_changed(form, "name") else UNCHANGED,
                team=form.given("team") if is_changed(form, "team") else UNCHANGED,
                policy=UNCHANGED if limits is None else limits.applied,
                expires_us=_expiry(form.text("expires_at")) if is_changed(form, "expires_at") else UNCHANGED,
            )
            await self._services.keys.update(visit.caller, key["id"], change)
        except InvalidInput as error:
            was = {name.removeprefix("was_"): value for name, value in form.fields if name.startswith("was_")}
            return await self._form(visit, _returned(visit), key, str(error), was)
        return see(f"/keys/{key['id']}", {"done": "saved"})

    async def rotate(self, visit: Visit) -> Response:
        overlap = visit.form.text("overlap_s")
        if overlap not in [str(seconds) for seconds, _ in OVERLAPS]:
            raise InvalidInput("overlap_s: choose one of the list")
        key = await self._services.keys.rotate(visit.caller, visit.named("key"), float(overlap))
        return self._secret(visit, key, "The key has a new secret")

    async def revoke(self, visit: Visit) -> Response:
        key = await self._services.keys.show(visit.caller, visit.named("key"))
        if visit.form.text("confirm") != key["name"]:
            raise InvalidInput(f"confirm: write the key's name, {key['name']!r}. Nothing was revoked.")
        await self._services.keys.revoke(visit.caller, key["id"])
        return see(f"/keys/{key['id']}", {"done": "revoked"})

    async def reset_limits(self, visit: Visit) -> Response:
        key = await self._services.keys.show(visit.caller, visit.named("key"))
        await self._services.limits.reset(visit.caller, key["id"])
        return see(f"/keys/{key['id']}", {"done": "reset"})


def _returned(visit: Visit) -> dict[str, str]:
    """The fields as they came, for the form to be mended."""
    names = ("name", "organisation", "team", "expires_at", *policy_fields(EMPTY))
    return {name: visit.form.text(name) for name in names}


def _expiry(text: str) -> int | None:
    return time_us_from(text, what="expires_at") if text else None
