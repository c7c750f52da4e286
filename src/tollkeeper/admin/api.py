"""The control plane as one ASGI application: probes, dashboard, the page `/docs`, the admin API behind its guard."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from tollkeeper.admin import models
from tollkeeper.admin.access import describe_roles
from tollkeeper.admin.asgi import Guard, Receive, Scope, Send, answer_error
from tollkeeper.admin.authentication import Authenticator
from tollkeeper.admin.dashboard import dashboard
from tollkeeper.admin.dashboard.sessions import PATH as DASHBOARD
from tollkeeper.admin.errors import ERRORS, error_body
from tollkeeper.admin.idempotency import Idempotency
from tollkeeper.admin.openapi import Document, document, page
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.probes import INDEX, Probes
from tollkeeper.admin.routes.budgets import budgets
from tollkeeper.admin.routes.corrections import corrections, store_accounts
from tollkeeper.admin.routes.groups import organisations, teams
from tollkeeper.admin.routes.keys import keys
from tollkeeper.admin.routes.logs import logs
from tollkeeper.admin.routes.operation import operation
from tollkeeper.admin.routes.tokens import audit, tokens
from tollkeeper.admin.routes.usage import usage
from tollkeeper.admin.services import Services
from tollkeeper.domain.errors import Busy, ConfigurationError, Forbidden, InvalidInput, NotFound, Unavailable

PREFIX: Final = "/admin/v1"
DESCRIBED: Final = ("invalid_request", "unauthorized", "forbidden", "not_found", "too_many_attempts", "unavailable")
"""Errors that any route may answer with."""
DECLARED: Final = HTTPBearer(scheme_name="Bearer", auto_error=False)
"""For the document only: the guard before the framework has already looked at the token."""
DOCS_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class ControlPlane:
    """Everything that is not `/v1/`, as an ASGI application."""

    def __init__(self, parts: Parts) -> None:
        self.services = Services(parts)
        self.authenticator = Authenticator(
            bootstrap=parts.admin_token, tokens=parts.tokens, limiter=parts.logins, metrics=parts.metrics
        )
        self.api = _api(self.services, parts)
        self._guarded = Guard(Idempotency(self.api, parts.idempotency), self.authenticator)
        self._dashboard = dashboard(parts, self.services, self.authenticator)
        self._probes = Probes(
            readiness=parts.readiness, exposition=parts.exposition, index=INDEX.format(version=parts.version)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"] in Probes.PATHS:
            await self._probes(scope, receive, send)
        elif scope["type"] == "http" and (scope["path"] + "/").startswith(f"{DASHBOARD}/"):
            await self._dashboard(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def public(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Probes alone; everything else is as if it did not exist: the control plane has a listener of its own."""
        if scope["type"] == "http" and scope["path"] in Probes.PATHS:
            await self._probes(scope, receive, send)
        elif scope["type"] == "http":
            await answer_error(send, "not_found", "There is nothing here.")
        else:
            await self._guarded(scope, receive, send)


def _api(services: Services, parts: Parts) -> FastAPI:
    api = FastAPI(title="Tollkeeper", version=parts.version, docs_url=None, redoc_url=None, openapi_url=None)
    responses: dict[int | str, dict[str, Any]] = {
        ERRORS[code].status: {"model": models.Error, "description": ERRORS[code].text} for code in DESCRIBED
    }
    for router in (
        keys(services),
        teams(services),
        organisations(services),
        usage(services, parts),
        budgets(services),
        corrections(services),
        store_accounts(parts),
        logs(services),
        operation(services),
        tokens(services),
        audit(services),
    ):
        describe_roles(router.routes)
        api.include_router(router, prefix=PREFIX, responses=responses, dependencies=[Security(DECLARED)])

    @cache
    def described() -> Document:
        return document(api)

    _handle_errors(api, described)
    _serve_docs(api, described)
    return api


def _handle_errors(api: FastAPI, described: Callable[[], Document]) -> None:
    def answers(code: str) -> Any:
        async def handler(_: Request, error: Exception) -> Response:
            return _error(code, str(error))

        return handler

    async def invalid(_: Request, error: Exception) -> Response:
        return _error("invalid_request", str(error), _param(str(error)))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        headers = {"allow": _allowed(described(), request.url.path)} if error.status_code == 405 else error.headers
        return JSONResponse(error_body(code, f"{error.detail}. See /docs."), error.status_code, headers)

    async def malformed(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return _error("invalid_request", f"{where or 'body'}: {first['msg']}", where or None)

    async def broken(_: Request, __: Exception) -> Response:
        return _error("internal_error", "Something broke; the gateway's log says what.")

    for kind, code in (
        (NotFound, "not_found"),
        (Forbidden, "forbidden"),
        (Busy, "busy"),
        (ConfigurationError, "not_installed"),
        (Unavailable, "unavailable"),
    ):
        api.add_exception_handler(kind, answers(code))
    api.add_exception_handler(InvalidInput, invalid)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(RequestValidationError, malformed)
    api.add_exception_handler(Exception, broken)


def _allowed(described: Document, path: str) -> str:
    """All methods that the document has for a path; the framework tells those of one route."""
    for template, operations in described["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return ", ".join(sorted(method.upper() for method in operations))
    return ""


def _error(code: str, message: str, param: str | None = None) -> Response:
    return JSONResponse(error_body(code, message, param), ERRORS[code].status)


_IN_NAMES: Final = str.maketrans("", "", "_.[]")


def _param(message: str) -> str | None:
    name, colon, _ = message.partition(": ")
    return name if colon and name.translate(_IN_NAMES).isalnum() else None


def _serve_docs(api: FastAPI, described: Callable[[], Document]) -> None:
    @cache
    def html() -> str:
        return page(described())

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        return JSONResponse(described())

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(html(), headers={"content-security-policy": DOCS_POLICY})
