"""Who comes in: signing in, whose session a request shows, and signing out, here or everywhere.

A cookie alone proves nothing: its token must still be known, and its session must not have been ended. Both are asked
of the database at every request, so that a copied cookie is worth nothing after its owner signed out, on any gateway.
While the database is away only the token of the environment is known without it; a session of that token stands on
the gateways that have seen it stand, because that is when an operator needs the pages.
"""

import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import jinja2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tollkeeper.admin.asgi import DASHBOARD
from tollkeeper.admin.authentication import Authenticator, LoginRefusal
from tollkeeper.admin.dashboard.http import Form, address_of, html, is_secure, read_form, redirect
from tollkeeper.admin.dashboard.sessions import SESSION, VISIT, Session, Sessions, set_cookie
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.errors import DatabaseUnavailable, InvalidInput
from tollkeeper.domain.operators import Actor
from tollkeeper.domain.ports import SessionEnds
from tollkeeper.domain.words import instant
from tollkeeper.observability.logging import logger

VISIT_BYTES: Final = 24
SEEN_MAX: Final = 1024
"""Sessions that this process has seen stand, for when the database is away."""

Problem = Callable[[int, str, str], Response]
"""A page from status, title and message."""


class Standing:
    """Whether sessions still stand: as the database says, or while it is away, as it last did."""

    def __init__(self, ends: SessionEnds) -> None:
        self._ends = ends
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def era(self, actor: Actor) -> int:
        """The era for a new session. With the database away the first: once it is back, whoever ended all sessions
        before signs in again."""
        try:
            return await self._ends.era(actor.id)
        except DatabaseUnavailable:
            return 0

    def began(self, session_id: str) -> None:
        """Remember one that stands."""
        self._seen[session_id] = None
        self._seen.move_to_end(session_id)
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)

    async def stands(self, session: Session, actor: Actor) -> bool:
        """Whether it was not ended. Raises `DatabaseUnavailable`: it is away, and this process does not know."""
        try:
            ended = await self._ends.has_ended(session.id, actor.id, session.era)
        except DatabaseUnavailable:
            if session.id in self._seen:
                return True
            raise
        if ended:
            self._seen.pop(session.id, None)
            return False
        self.began(session.id)
        return True

    async def end(self, session: Session) -> None:
        """End one; here, even if it raises `DatabaseUnavailable`."""
        self._seen.pop(session.id, None)
        await self._ends.end(session.id, session.ends_us)

    async def end_all(self, actor: Actor) -> None:
        """End all of an actor. Raises `DatabaseUnavailable`: then none has ended."""
        await self._ends.end_all(actor.id)


class Door:
    """Lets requests in, and serves the form that one signs in with."""

    def __init__(self, parts: Parts, authenticator: Authenticator, login: jinja2.Template, problem: Problem) -> None:
        self._authenticator, self._login_template, self._problem = authenticator, login, problem
        self._sessions = Sessions(parts.admin_token, parts.now_us)
        self._standing = Standing(parts.session_ends)
        self._log = logger("admin")
        self.routes = [
            Route("/login", self._login_page, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
        ]

    async def enter(self, request: Request) -> tuple[Session, Actor] | Response:
        """The session and whose it is, or what to answer instead."""
        session = self._sessions.read(request.cookies.get(SESSION, ""))
        if session is None:
            return self._to_login(request)
        try:
            actor = await self._authenticator.actor(session.token, address_of(request))
            if not isinstance(actor, LoginRefusal):
                stands = await self._standing.stands(session, actor)
                return (session, actor) if stands else self._to_login(request)
        except DatabaseUnavailable as error:
            return self._problem(503, "The database is away", str(error))
        if actor.retry_after_s is not None:
            return self._problem(429, "Too many tries", _too_many(actor.retry_after_s))
        return self._to_login(request)

    def form_token(self, request: Request) -> str:
        """What forms carry from signing in to signing out."""
        return self._sessions.form_token(request.cookies.get(SESSION, ""))

    def is_own(self, request: Request, form: Form) -> bool:
        """Whether a form was made since this signing in."""
        return self._sessions.is_own(request.cookies.get(SESSION, ""), form.text("form_token"))

    async def leave_everywhere(self, request: Request, actor: Actor) -> Response:
        """End all sessions of the actor. Raises `DatabaseUnavailable`."""
        await self._standing.end_all(actor)
        self._log.info("dashboard_logout_everywhere", actor=actor.id, address=address_of(request))
        return self._take_cookie(redirect(f"{DASHBOARD}/login"), request)

    async def _login_page(self, request: Request) -> Response:
        return self._login_form(request, _within(request.query_params.get("next", "")))

    async def _login(self, request: Request) -> Response:
        try:
            form = await read_form(request)
        except InvalidInput as error:
            return self._login_form(request, DASHBOARD, str(error), 400)
        next_path, token = _within(form.text("next")), form.text("token")
        if not self._sessions.is_own(request.cookies.get(VISIT, ""), form.text("form_token")):
            return self._login_form(request, next_path, STALE, 403)
        try:
            actor = await self._authenticator.actor(token, address_of(request))
        except DatabaseUnavailable as error:
            return self._login_form(request, next_path, f"Tokens cannot be looked up now: {error}", 503)
        if isinstance(actor, LoginRefusal):
            if actor.retry_after_s is None:
                return self._login_form(request, next_path, "This token is not, or no longer, known.", 401)
            response = self._login_form(request, next_path, _too_many(actor.retry_after_s), 429)
            response.headers["retry-after"] = str(max(1, math.ceil(actor.retry_after_s)))
            return response
        session = self._sessions.begin(token, await self._standing.era(actor))
        self._standing.began(session.id)
        self._log.info("dashboard_login", actor=actor.id, role=actor.role.value, address=address_of(request))
        response = redirect(next_path)
        cookie = set_cookie(SESSION, self._sessions.cookie(session), secure=is_secure(request))
        response.headers.append("set-cookie", cookie)
        return response

    async def _logout(self, request: Request) -> Response:
        """Needs no valid token: a session whose token was revoked can be left, too."""
        try:
            form = await read_form(request)
        except InvalidInput as error:
            return self._problem(400, "That cannot be taken", str(error))
        if not self.is_own(request, form):
            return self._problem(403, "This form is not from here", STALE)
        session = self._sessions.read(request.cookies[SESSION])
        response = redirect(f"{DASHBOARD}/login")
        if session is not None:
            try:
                await self._standing.end(session)
            except DatabaseUnavailable:
                until = instant(session.ends_us)
                response = self._problem(503, "The database is away", _HALF_OUT.format(until=until))
        return self._take_cookie(response, request)

    def _login_form(self, request: Request, next_path: str, message: str = "", status: int = 200) -> Response:
        known = request.cookies.get(VISIT, "")
        cookie = known or secrets.token_urlsafe(VISIT_BYTES)
        text = self._login_template.render(
            visit=None, actor=None, form_token=self._sessions.form_token(cookie), next_path=next_path, message=message
        )
        response = html(text, status)
        if not known:
            response.headers.append("set-cookie", set_cookie(VISIT, cookie, secure=is_secure(request)))
        return response

    def _to_login(self, request: Request) -> Response:
        wanted = DASHBOARD + ("" if request.url.path == "/" else request.url.path)
        if request.url.query:
            wanted += f"?{request.url.query}"
        response = redirect(f"{DASHBOARD}/login" + (f"?next={quote(wanted)}" if request.method == "GET" else ""))
        return self._take_cookie(response, request) if SESSION in request.cookies else response

    def _take_cookie(self, response: Response, request: Request) -> Response:
        response.headers.append("set-cookie", set_cookie(SESSION, "", secure=is_secure(request), max_age_s=0))
        return response


STALE: Final = "The form was made for another session, or by another site. Nothing was done; load the page again."
_HALF_OUT: Final = (
    "This browser is signed out, but the session could not be ended for whoever has a copy of its cookie; it ends at "
    "{until}. Once the database is back, sign in and choose “Sign out everywhere”."
)


def _too_many(wait_s: float) -> str:
    return f"Too many tokens were tried from this address; wait {max(1, math.ceil(wait_s))} s."


def _within(path: str) -> str:
    """The page to go to after signing in: ours, or the first one."""
    return path if path == DASHBOARD or path.startswith((f"{DASHBOARD}/", f"{DASHBOARD}?")) else DASHBOARD
