"""Admin tokens: who may sign in here and use the admin API, and every change of one. For readers; admins change."""

from typing import Final

from starlette.responses import Response

from tollkeeper.admin.dashboard.http import see
from tollkeeper.admin.dashboard.pages.keys import OVERLAPS
from tollkeeper.admin.dashboard.site import ADMINS, READERS, Site, Visit
from tollkeeper.admin.services import Services
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.operators import NewAdminToken, Role
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.words import Words, time_us_from

FIELDS: Final = ("name", "role", "owns", "expires_at")
ROLES: Final = {
    Role.VIEWER: "viewer: reads everything but prompts and answers",
    Role.OWNER: "owner: reads what concerns the keys it owns",
    Role.ADMIN: "admin: may do everything",
}
"""The least powerful that most people need comes first."""


def register(site: Site, services: Services) -> None:
    """The pages below `/dashboard/tokens`."""
    pages = TokenPages(site, services)
    site.page("GET", "/tokens", READERS, pages.index)
    site.page("GET", "/tokens/new", ADMINS, pages.new)
    site.page("POST", "/tokens", ADMINS, pages.create)
    site.page("GET", "/tokens/{token}", READERS, pages.show)
    site.page("POST", "/tokens/{token}/rotate", ADMINS, pages.rotate)
    site.page("POST", "/tokens/{token}/revoke", ADMINS, pages.revoke)


class TokenPages:
    """All changes are the service's."""

    def __init__(self, site: Site, services: Services) -> None:
        self._site, self._service = site, services.tokens

    async def index(self, visit: Visit) -> Response:
        paging = Paging(starting_after=visit.query.given("after"))
        page = await self._service.find(paging, include_revoked=visit.query.text("revoked") == "1")
        return self._site.render(
            visit, "tokens.html", title="Admin tokens", tokens=page["data"], has_more=page["has_more"]
        )

    async def new(self, visit: Visit) -> Response:
        return self._form(visit, dict.fromkeys(FIELDS, "") | {"role": Role.VIEWER.value})

    def _form(self, visit: Visit, fields: dict[str, str], message: str = "") -> Response:
        return self._site.render(
            visit,
            "token_form.html",
            status=400 if message else 200,
            title="Create an admin token",
            fields=fields,
            was={},
            roles=ROLES,
            message=message,
        )

    async def create(self, visit: Visit) -> Response:
        form = visit.form
        try:
            if form.text("role") not in tuple(Role):
                raise InvalidInput("role: choose one of the list")
            expires = form.given("expires_at")
            new = NewAdminToken(
                form.text("name"),
                Role(form.text("role")),
                tuple(form.text("owns").split()),
                None if expires is None else time_us_from(expires, what="expires_at"),
            )
            token = await self._service.create(visit.caller, new)
        except InvalidInput as error:
            return self._form(visit, {name: form.text(name) for name in FIELDS}, str(error))
        return self._secret(visit, token, "The token is made")

    def _secret(self, visit: Visit, token: Words, title: str) -> Response:
        return self._site.render(
            visit,
            "secret.html",
            title=title,
            name=token["name"],
            secret=token["secret"],
            back=f"/tokens/{token['id']}",
            key=token,
        )

    async def show(self, visit: Visit) -> Response:
        token = await self._service.show(visit.named("token"))
        return self._site.render(
            visit,
            "token.html",
            title=token["name"],
            token=token,
            overlaps=OVERLAPS,
            done=visit.query.text("done"),
            own=token["id"] == visit.caller.actor.id,
        )

    async def rotate(self, visit: Visit) -> Response:
        overlap = visit.form.text("overlap_s")
        if overlap not in [str(seconds) for seconds, _ in OVERLAPS]:
            raise InvalidInput("overlap_s: choose one of the list")
        token = await self._service.rotate(visit.caller, visit.named("token"), float(overlap))
        return self._secret(visit, token, "The token has a new secret")

    async def revoke(self, visit: Visit) -> Response:
        token = await self._service.show(visit.named("token"))
        if visit.form.text("confirm") != token["name"]:
            raise InvalidInput(f"confirm: write the token's name, {token['name']!r}. Nothing was revoked.")
        await self._service.revoke(visit.caller, token["id"])
        return see(f"/tokens/{token['id']}", {"done": "token_revoked"})
