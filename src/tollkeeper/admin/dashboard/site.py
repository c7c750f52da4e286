"""One request of a page: who is it, may they, is the form ours, and what to say if something is wrong.

A page is a function from a `Visit` to a response, registered with the roles it is for. Everything here holds for all
of them, so that no page can forget it. Knows nothing of what the pages show.
"""

import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

import jinja2
import msgspec
from markupsafe import Markup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route, Router

from tollkeeper.admin.access import Caller
from tollkeeper.admin.asgi import Receive, Scope, Send
from tollkeeper.admin.authentication import Authenticator, LoginRefusal
from tollkeeper.admin.dashboard import charts, formats
from tollkeeper.admin.dashboard.formats import nano_from_words
from tollkeeper.admin.dashboard.sessions import PATH, SESSION, VISIT, Session, Sessions, set_cookie
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.errors import Busy, DatabaseUnavailable, Forbidden, InvalidInput, NotFound, Unavailable
from tollkeeper.domain.idempotency import Answered, Fresh, TooMany
from tollkeeper.domain.operators import Actor, Role
from tollkeeper.domain.words import Words
from tollkeeper.observability.logging import about_request, logger

FORM_BYTES_MAX: Final = 2**17
FIELDS_MAX: Final = 200
VISIT_BYTES: Final = 24
ASSETS: Final = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}
POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
STATUSES: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (NotFound, 404, "Not found"),
    (Forbidden, 403, "Not allowed"),
    (Busy, 409, "Busy"),
    (InvalidInput, 400, "That cannot be taken"),
    (Unavailable, 503, "Something is away"),
)
FAILURES: Final = tuple(kind for kind, _, _ in STATUSES)


class Form:
    """The fields of a form, or of a query: text, trimmed."""

    def __init__(self, text: str) -> None:
        try:
            self.fields = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX)
        except ValueError:
            raise InvalidInput(f"at most {FIELDS_MAX} fields") from None

    def text(self, name: str) -> str:
        """The field, or empty."""
        return next((value.strip() for key, value in self.fields if key == name), "")

    def given(self, name: str) -> str | None:
        """The field, or None where it is empty."""
        return self.text(name) or None

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.fields)


class Visit(msgspec.Struct, frozen=True):
    """One request of somebody who is signed in."""

    caller: Caller
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
        self._authenticator = authenticator
        self._sessions = Sessions(parts.admin_token, parts.now_us)
        self._log = logger("admin")
        self._assets = {name: files(__package__).joinpath("static", name).read_bytes() for name in ASSETS}
        self._version = blake2b(b"".join(self._assets.values()), digest_size=6).hexdigest()
        self._templates = _environment(self._version, parts.version)
        self._routes: list[Route] = [
            Route("/login", self._login_page, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
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
        inner = dict(scope) | {"path": scope["path"].removeprefix(PATH).rstrip("/") or "/", "root_path": ""}
        try:
            await self._router(inner, receive, send)
        except ClientDisconnect:
            return

    def render(self, visit: Visit, template: str, *, status: int = 200, **context: Any) -> Response:
        """A page for somebody who is signed in."""
        text = self._templates.get_template(template).render(visit=visit, actor=visit.caller.actor, **context)
        return _html(text, status)

    def problem(self, visit: Visit | None, status: int, title: str, message: str) -> Response:
        """A page that says what is wrong."""
        template = self._templates.get_template("problem.html")
        actor = None if visit is None else visit.caller.actor
        return _html(template.render(visit=visit, actor=actor, title=title, message=message), status)

    async def _serve(self, request: Request, roles: tuple[Role, ...], serve: Page) -> Response:
        request_id = f"req_{secrets.token_hex(12)}"
        about_request(request_id)
        signed_in = await self._signed_in(request)
        if isinstance(signed_in, Response):
            return signed_in
        session, actor = signed_in
        try:
            form = await _form(request)
            query = Form(request.url.query)
        except InvalidInput as error:
            return self.problem(None, 400, "That cannot be taken", str(error))
        caller = Caller(actor, request_id, _address(request), source="dashboard")
        cookie = request.cookies[SESSION]
        visit = Visit(caller, request, query, form, self._sessions.form_token(cookie))
        if actor.role not in roles:
            needs = " or ".join(roles)
            return self.problem(
                visit, 403, "Not allowed", f"This needs the role {needs}; {actor.name} is {actor.role}."
            )
        if request.method == "POST" and not self._sessions.is_own(cookie, form.text("form_token")):
            return self.problem(visit, 403, "This form is not from here", _STALE)
        return await self._answered(visit, session, serve)

    async def _signed_in(self, request: Request) -> tuple[Session, Actor] | Response:
        """The session and whose it is, or what to answer instead."""
        session = self._sessions.read(request.cookies.get(SESSION, ""))
        if session is None:
            return self._to_login(request)
        try:
            actor = await self._authenticator.actor(session.token, _address(request))
        except DatabaseUnavailable as error:
            return self.problem(None, 503, "The database is away", str(error))
        if not isinstance(actor, LoginRefusal):
            return session, actor
        if actor.retry_after_s is not None:
            return self.problem(None, 429, "Too many tries", _too_many(actor.retry_after_s))
        return self._to_login(request)

    async def _answered(self, visit: Visit, session: Session, serve: Page) -> Response:
        try:
            return await (self._once(visit, session, serve) if visit.form.text("once") else serve(visit))
        except FAILURES as error:
            status, title = next((status, title) for kind, status, title in STATUSES if isinstance(error, kind))
            return self.problem(visit, status, title, str(error))

    async def _once(self, visit: Visit, session: Session, serve: Page) -> Response:
        """A form that makes something is taken once, however often it is sent."""
        book, once = self.parts.idempotency, visit.form.text("once")
        fingerprint = blake2b(visit.request.url.path.encode(), digest_size=32).digest()
        turn = await book.begin(session.token, f"dashboard-{once[:64]}", fingerprint)
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
            await book.answered(turn, session.token, f"dashboard-{once[:64]}", Answered(response.status_code, b""))
        return response

    # Signing in and out

    async def _login_page(self, request: Request) -> Response:
        return self._login_form(request, _within(request.query_params.get("next", "")))

    async def _login(self, request: Request) -> Response:
        try:
            form = await _form(request)
        except InvalidInput as error:
            return self._login_form(request, PATH, str(error), 400)
        next_path, address = _within(form.text("next")), _address(request)
        if not self._sessions.is_own(request.cookies.get(VISIT, ""), form.text("form_token")):
            return self._login_form(request, next_path, _STALE, 403)
        try:
            actor = await self._authenticator.actor(form.text("token"), address)
        except DatabaseUnavailable as error:
            return self._login_form(request, next_path, f"Tokens cannot be looked up now: {error}", 503)
        if isinstance(actor, LoginRefusal):
            if actor.retry_after_s is None:
                return self._login_form(request, next_path, "This token is not, or no longer, known.", 401)
            response = self._login_form(request, next_path, _too_many(actor.retry_after_s), 429)
            response.headers["retry-after"] = str(max(1, math.ceil(actor.retry_after_s)))
            return response
        self._log.info("dashboard_login", actor=actor.id, role=actor.role.value, address=address)
        response = _see(next_path)
        cookie = set_cookie(SESSION, self._sessions.begin(form.text("token")), secure=_is_secure(request))
        response.headers.append("set-cookie", cookie)
        return response

    async def _logout(self, request: Request) -> Response:
        try:
            form = await _form(request)
        except InvalidInput as error:
            return self.problem(None, 400, "That cannot be taken", str(error))
        if not self._sessions.is_own(request.cookies.get(SESSION, ""), form.text("form_token")):
            return self.problem(None, 403, "This form is not from here", _STALE)
        response = _see(f"{PATH}/login")
        self._end(response, request)
        return response

    def _login_form(self, request: Request, next_path: str, message: str = "", status: int = 200) -> Response:
        known = request.cookies.get(VISIT, "")
        cookie = known or secrets.token_urlsafe(VISIT_BYTES)
        text = self._templates.get_template("login.html").render(
            visit=None, actor=None, form_token=self._sessions.form_token(cookie), next_path=next_path, message=message
        )
        response = _html(text, status)
        if not known:
            response.headers.append("set-cookie", set_cookie(VISIT, cookie, secure=_is_secure(request)))
        return response

    def _to_login(self, request: Request) -> Response:
        wanted = PATH + ("" if request.url.path == "/" else request.url.path)
        if request.url.query:
            wanted += f"?{request.url.query}"
        response = _see(f"{PATH}/login" + (f"?next={quote(wanted)}" if request.method == "GET" else ""))
        if SESSION in request.cookies:
            self._end(response, request)
        return response

    def _end(self, response: Response, request: Request) -> None:
        response.headers.append("set-cookie", set_cookie(SESSION, "", secure=_is_secure(request), max_age_s=0))

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


_STALE: Final = "The form was made for another session, or by another site. Nothing was done; load the page again."
_TWICE: Final = (
    "It was taken the first time, and nothing was done now. A secret that nobody saw is replaced by rotating."
)


def _too_many(wait_s: float) -> str:
    return f"Too many tokens were tried from this address; wait {max(1, math.ceil(wait_s))} s."


def _environment(version: str, program: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= formats.FILTERS | {"limit_meter": _limit_meter, "with": _with}
    environment.globals |= {
        "base": PATH,
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


def _html(text: str, status: int) -> Response:
    return HTMLResponse(text, status, {**HEADERS, "cache-control": "no-store"})


def _see(path: str) -> Response:
    """Another page, to be fetched; for the answer to a form."""
    return RedirectResponse(path, 303, {**HEADERS, "cache-control": "no-store"})


def see(path: str, query: Mapping[str, str] | None = None) -> Response:
    """As `_see`, of a page below `/dashboard`."""
    asked = urlencode(query or {})
    return _see(f"{PATH}{path}" + (f"?{asked}" if asked else ""))


def _within(path: str) -> str:
    """The page to go to after signing in: ours, or the first one."""
    return path if path == PATH or path.startswith((f"{PATH}/", f"{PATH}?")) else PATH


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


def _is_secure(request: Request) -> bool:
    """Whether the browser came by https: the cookie is then never sent otherwise. A client that lies about it only
    keeps its own cookie from being sent."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))


async def _form(request: Request) -> Form:
    """The fields of a POST. Raises InvalidInput."""
    if request.method != "POST":
        return Form("")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise InvalidInput(f"a form may have {FORM_BYTES_MAX} bytes")
    try:
        return Form(body.decode())
    except UnicodeDecodeError:
        raise InvalidInput("a form is text in UTF-8") from None
