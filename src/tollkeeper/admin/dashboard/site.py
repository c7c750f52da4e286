"""One request of a page: who is it, may they, is the form ours, and what to say if something is wrong.

A page is a function from a `Visit` to a response, registered with the roles it is for. Everything here holds for all
of them, so that no page can forget it. Knows nothing of what the pages show.
"""

import secrets
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
import msgspec
from markupsafe import Markup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router

from tollkeeper.admin.asgi import DASHBOARD, Receive, Scope, Send
from tollkeeper.admin.authentication import Authenticator
from tollkeeper.admin.caller import Caller
from tollkeeper.admin.dashboard import charts, formats
from tollkeeper.admin.dashboard.door import STALE, Door
from tollkeeper.admin.dashboard.formats import nano_from_words
from tollkeeper.admin.dashboard.http import HEADERS, Form, address_of, html, read_form
from tollkeeper.admin.dashboard.sessions import Session
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.errors import Busy, Forbidden, InvalidInput, NotFound, Unavailable
from tollkeeper.domain.idempotency import Answered, Fresh, TooMany
from tollkeeper.domain.operators import Role
from tollkeeper.domain.words import Words
from tollkeeper.observability.logging import about_request

ASSETS: Final = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}
STATUSES: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (NotFound, 404, "Not found"),
    (Forbidden, 403, "Not allowed"),
    (Busy, 409, "Busy"),
    (InvalidInput, 400, "That cannot be taken"),
    (Unavailable, 503, "Something is away"),
)
FAILURES: Final = tuple(kind for kind, _, _ in STATUSES)


class Visit(msgspec.Struct, frozen=True):
    """One request of somebody who is signed in."""

    caller: Caller
    session: Session
    request: Request
    query: Form
    form: Form
    form_token: str

    @property
    def may_change(self) -> bool:
        """Whether there are buttons that change something."""
        return self.caller.actor.role is Role.ADMIN

    @property
    def sees_all(self) -> bool:
        """Whether there are pages about the gateway itself."""
        return self.caller.actor.sees_all

    def named(self, part: str) -> str:
        """A part of the path."""
        name: str = self.request.path_params[part]
        return name


Page = Callable[[Visit], Awaitable[Response]]
ANYONE: Final = tuple(Role)
READERS: Final = (Role.ADMIN, Role.VIEWER)
ADMINS: Final = (Role.ADMIN,)


class Site:
    """Serves `/dashboard` and what is below it."""

    def __init__(self, parts: Parts, authenticator: Authenticator) -> None:
        self.parts = parts
        self._assets = {name: files(__package__).joinpath("static", name).read_bytes() for name in ASSETS}
        self._version = blake2b(b"".join(self._assets.values()), digest_size=6).hexdigest()
        self._templates = _environment(self._version, parts.version)
        login = self._templates.get_template("login.html")
        self.door = Door(parts, authenticator, login, lambda *said: self.problem(None, *said))
        self._routes: list[Route] = [
            *self.door.routes,
            Route("/static/{name}", self._asset, methods=["GET"]),
        ]
        self._router: Router | None = None
        self.roles: dict[tuple[str, str], tuple[Role, ...]] = {}
        """By method and path, who a page is for."""

    def page(self, method: str, path: str, roles: tuple[Role, ...], serve: Page) -> None:
        """Register a page for these roles."""

        async def endpoint(request: Request) -> Response:
            return await self._serve(request, roles, serve)

        self.roles[method, path] = roles
        self._routes.append(Route(path, endpoint, methods=[method]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._router is None:
            self._router = Router(self._routes, default=self._nothing, redirect_slashes=False)
        inner = dict(scope) | {"path": scope["path"].removeprefix(DASHBOARD).rstrip("/") or "/", "root_path": ""}
        try:
            await self._router(inner, receive, send)
        except ClientDisconnect:
            return

    def render(self, visit: Visit, template: str, *, status: int = 200, **context: Any) -> Response:
        """A page for somebody who is signed in."""
        text = self._templates.get_template(template).render(visit=visit, actor=visit.caller.actor, **context)
        return html(text, status)

    def problem(self, visit: Visit | None, status: int, title: str, message: str) -> Response:
        """A page that says what is wrong."""
        template = self._templates.get_template("problem.html")
        actor = None if visit is None else visit.caller.actor
        return html(template.render(visit=visit, actor=actor, title=title, message=message), status)

    async def _serve(self, request: Request, roles: tuple[Role, ...], serve: Page) -> Response:
        request_id = f"req_{secrets.token_hex(12)}"
        about_request(request_id)
        entered = await self.door.enter(request)
        if isinstance(entered, Response):
            return entered
        session, actor = entered
        try:
            form = await read_form(request)
            query = Form(request.url.query)
        except InvalidInput as error:
            return self.problem(None, 400, "That cannot be taken", str(error))
        caller = Caller(actor, request_id, address_of(request), source="dashboard")
        visit = Visit(caller, session, request, query, form, self.door.form_token(request))
        if actor.role not in roles:
            needs = " or ".join(roles)
            return self.problem(
                visit, 403, "Not allowed", f"This needs the role {needs}; {actor.name} is {actor.role}."
            )
        if request.method == "POST" and not self.door.is_own(request, form):
            return self.problem(visit, 403, "This form is not from here", STALE)
        return await self._answered(visit, serve)

    async def _answered(self, visit: Visit, serve: Page) -> Response:
        try:
            return await (self._once(visit, serve) if visit.form.text("once") else serve(visit))
        except FAILURES as error:
            status, title = next((status, title) for kind, status, title in STATUSES if isinstance(error, kind))
            return self.problem(visit, status, title, str(error))

    async def _once(self, visit: Visit, serve: Page) -> Response:
        """A form that makes something is taken once, however often it is sent."""
        book, token, once = self.parts.idempotency, visit.session.token, f"dashboard-{visit.form.text('once')[:64]}"
        fingerprint = blake2b(visit.request.url.path.encode(), digest_size=32).digest()
        turn = await book.begin(token, once, fingerprint)
        if isinstance(turn, TooMany):
            return await serve(visit)  # rather twice, if it is sent twice, than not at all
        if not isinstance(turn, Fresh):
            return self.problem(visit, 409, "This form was sent already", _TWICE)
        caller = msgspec.structs.replace(visit.caller, idempotency=turn.digest)
        try:
            response = await serve(msgspec.structs.replace(visit, caller=caller))
        except (InvalidInput, Forbidden):
            await book.refused(turn)
            raise
        except Exception:
            await book.lost(turn)
            raise
        if response.status_code >= 400:
            await book.refused(turn)
        else:
            await book.answered(turn, token, once, Answered(response.status_code, b""))
        return response

    # What needs no session

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._assets:
            return self.problem(None, 404, "Not found", "There is no such file.")
        kept = "public, max-age=31536000, immutable" if request.query_params.get("v") == self._version else "no-cache"
        return Response(self._assets[name], media_type=ASSETS[name], headers={**HEADERS, "cache-control": kept})

    async def _nothing(self, scope: Any, receive: Any, send: Any) -> None:
        response = self.problem(None, 404, "Not found", "There is no such page.")
        await response(scope, receive, send)


_TWICE: Final = (
    "It was taken the first time, and nothing was done now. A secret that nobody saw is replaced by rotating."
)


def _environment(version: str, program: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= formats.FILTERS | {"limit_meter": _limit_meter, "with": _with, "asked": _asked}
    environment.globals |= {
        "base": DASHBOARD,
        "assets": version,
        "program": program,
        "once": lambda: secrets.token_hex(16),
    }
    return environment


def _limit_meter(limit: Words, name: str) -> Markup:
    """The bar of a limit, in the words of the API."""
    money = limit["unit"] == "usd"
    used, held, whole = (nano_from_words(limit[field]) if money else int(limit[field]) for field in _LIMIT_FIELDS)
    return charts.meter(name, used, held, whole)


_LIMIT_FIELDS: Final = ("used", "held", "limit")


def _with(query: Form, name: str, value: str) -> str:
    """The query with one field set."""
    return urlencode([*((key, old) for key, old in query.fields if key != name), (name, value)])


def _asked(query: Form) -> str:
    """The whole query, but the place in a list."""
    return urlencode([(key, value) for key, value in query.fields if key != "after"])
