"""The admin API as a FastAPI application, with the page `/docs`. control_plane.py puts the guard before it."""

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
from tollkeeper.admin.errors import ERRORS, error_body
from tollkeeper.admin.openapi import Document, document, page
from tollkeeper.admin.parts import Parts
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


def api_of(services: Services, parts: Parts) -> FastAPI:
    """The admin API and its documentation, for a guard to let callers through to."""
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
