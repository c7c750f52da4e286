"""The control plane as one ASGI application: probes, the page at `/docs`, and the admin API behind its guard.

Routes translate between HTTP and the ports of `domain/ports.py`; they decide nothing themselves.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from tollkeeper.admin import models
from tollkeeper.admin.asgi import Application, Guard, Receive, Scope, Send, error_body
from tollkeeper.admin.corrections import corrections, store_accounts
from tollkeeper.admin.openapi import document, page
from tollkeeper.admin.probes import Probes, Readiness
from tollkeeper.domain.accounts import KeyChange, NewKey, one_named
from tollkeeper.domain.errors import Busy, InvalidInput, NotFound, Unavailable
from tollkeeper.domain.log_search import LogFilters
from tollkeeper.domain.ports import AccountReader, Accounts, Corrector, Governor, LogAccounts, LogReader, SpendLedger
from tollkeeper.domain.words import (
    Words,
    instant,
    key_words,
    limit_words,
    log_stats_words,
    month_from,
    organisation_words,
    proof_words,
    team_words,
    time_us_from,
    usage_words,
)
from tollkeeper.observability.metrics import Metrics

Clock = Callable[[], int]
Sync = Callable[[], Awaitable[object]]

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": models.Error, "description": "A value that cannot be taken."},
    401: {"model": models.Error, "description": "No or a wrong admin token."},
    404: {"model": models.Error, "description": "There is no such thing."},
    503: {"model": models.Error, "description": "A dependency is away."},
}
DECLARED: Final = HTTPBearer(scheme_name="Bearer", auto_error=False)
"""For the document only: the guard before the framework has already compared the token."""
RANGES_MAX: Final = 1000
"""Ranges of numbers in an answer, of each producer and kind; `tollkeeper logs verify --json` has all."""
DOCS_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def create_admin(
    *,
    accounts: Accounts,
    spend: SpendLedger,
    governor: Governor,
    corrector: Corrector,
    account_reader: AccountReader,
    records_pending: Callable[[], int],
    logs: LogReader,
    log_accounts: LogAccounts,
    sync: Sync,
    readiness: Readiness,
    metrics: Metrics,
    admin_token: str,
    version: str,
    now_us: Clock,
) -> Application:
    """Everything that is not `/v1/`. `sync` brings the spend known to the store into the database."""
    api = FastAPI(title="Tollkeeper", version=version, docs_url=None, redoc_url=None, openapi_url=None)
    routers = (
        _keys(accounts, now_us),
        _groups(accounts),
        _usage(accounts, spend, sync, now_us),
        corrections(accounts, spend, corrector, sync, now_us),
        store_accounts(account_reader, records_pending),
        _logs(logs, log_accounts),
        _operations(accounts, governor, readiness, version, now_us),
    )
    for router in routers:
        api.include_router(router, prefix="/admin/v1", responses=ERRORS, dependencies=[Security(DECLARED)])
    _handle_errors(api)
    _serve_docs(api)
    guarded = Guard(api, admin_token)
    probes = Probes(readiness=readiness, metrics=metrics, version=version)

    async def control_plane(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in Probes.PATHS:
            await probes(scope, receive, send)
        else:
            await guarded(scope, receive, send)

    return control_plane


def _keys(accounts: Accounts, now_us: Clock) -> APIRouter:
    router = APIRouter(tags=["Keys"])

    @router.post("/keys", status_code=201, response_model=models.KeyWithSecret, summary="Create a key")
    async def create_key(request: models.NewKeyRequest) -> Words:
        key, secret = await accounts.create_key(
            NewKey(
                name=request.name,
                organisation=request.organisation,
                team=request.team,
                policy=request.policy(),
                expires_us=request.expires_us(),
            )
        )
        return key_words(key, now_us()) | {"secret": secret}

    @router.get("/keys", response_model=models.Keys, summary="List keys")
    async def list_keys(
        team: str | None = Query(None, description="Only those of this team."),
        include_revoked: bool = Query(False),
    ) -> Words:
        keys = await accounts.list_keys(team=team, include_revoked=include_revoked)
        return {"keys": [key_words(key, now_us()) for key in keys]}

    @router.get("/keys/{key}", response_model=models.Key, summary="Show a key, by name or id")
    async def get_key(key: str) -> Words:
        return key_words(await accounts.get_key(key), now_us())

    @router.patch("/keys/{key}", response_model=models.Key, summary="Change what the request names")
    async def update_key(key: str, request: models.KeyUpdateRequest) -> Words:
        before = await accounts.get_key(key)
        if request.name is None and "name" in request.model_fields_set:
            raise InvalidInput("name: a key needs one")
        change = KeyChange(
            name=request.given("name"),
            team=request.given("team"),
            policy=request.policy(before.policy),
            expires_us=request.expires_us(),
        )
        return key_words(await accounts.update_key(before.id, change), now_us())

    @router.post("/keys/{key}/rotate", response_model=models.KeyWithSecret, summary="Give a key a new secret")
    async def rotate_key(key: str) -> Words:
        rotated, secret = await accounts.rotate_key(key)
        return key_words(rotated, now_us()) | {"secret": secret}

    @router.post("/keys/{key}/revoke", response_model=models.Key, summary="Revoke a key, for good")
    async def revoke_key(key: str) -> Words:
        return key_words(await accounts.revoke_key(key), now_us())

    return router


def _groups(accounts: Accounts) -> APIRouter:
    router = APIRouter(tags=["Teams and organisations"])

    @router.post("/teams", status_code=201, response_model=models.Team, summary="Create a team")
    async def create_team(request: models.NewTeamRequest) -> Words:
        return team_words(await accounts.create_team(request.name, request.organisation, request.policy()))

    @router.get("/teams", response_model=models.Teams, summary="List teams")
    async def list_teams() -> Words:
        return {"teams": [team_words(team) for team in await accounts.list_teams()]}

    @router.patch("/teams/{team}", response_model=models.Team, summary="Change a team's limits")
    async def update_team(team: str, request: models.LimitsUpdateRequest) -> Words:
        before = one_named(await accounts.list_teams(), team, "team")
        return team_words(await accounts.update_team(before.id, request.policy(before.policy)))

    @router.post("/organisations", status_code=201, response_model=models.Organisation, summary="Create one")
    async def create_organisation(request: models.NewOrganisationRequest) -> Words:
        return organisation_words(await accounts.create_organisation(request.name, request.policy()))

    @router.get("/organisations", response_model=models.Organisations, summary="List organisations")
    async def list_organisations() -> Words:
        return {"organisations": [organisation_words(o) for o in await accounts.list_organisations()]}

    @router.patch(
        "/organisations/{organisation}", response_model=models.Organisation, summary="Change an organisation's limits"
    )
    async def update_organisation(organisation: str, request: models.LimitsUpdateRequest) -> Words:
        before = one_named(await accounts.list_organisations(), organisation, "organisation")
        return organisation_words(await accounts.update_organisation(before.id, request.policy(before.policy)))

    return router


def _usage(accounts: Accounts, spend: SpendLedger, sync: Sync, now_us: Clock) -> APIRouter:
    router = APIRouter(tags=["Usage"])

    @router.get("/usage", response_model=models.Usage, summary="Monthly usage, as of the last sync")
    async def usage(
        key: str | None = Query(None, description="Name or id; default: all keys."),
        month: str | None = Query(None, description="Like 2026-11; default: all months."),
    ) -> Words:
        year_month = (None, None) if month is None else month_from(month)
        key_id = None if key is None else (await accounts.get_key(key)).id
        names = {k.id: k.name for k in await accounts.list_keys(include_revoked=True)}
        rows = await spend.monthly_usage(key=key_id, year=year_month[0], month=year_month[1])
        return {"usage": [usage_words(row, names.get(row.key_id)) for row in rows]}

    @router.post("/sync", response_model=models.Synced, summary="Write spend to the database now")
    async def sync_now() -> Words:
        await sync()
        return {"synced_at": instant(now_us())}

    return router


def _logs(logs: LogReader, accounts: LogAccounts) -> APIRouter:
    router = APIRouter(tags=["Logs"])

    @router.get("/logs", response_model=models.LogRecords, summary="Log records that were delivered, newest first")
    async def search(
        *,
        since: str | None = Query(None, description="RFC 3339 or a date; from then on."),
        until: str | None = Query(None, description="Before then."),
        key: str | None = Query(None, description="Name or id."),
        team: str | None = Query(None, description="Id."),
        model: str | None = Query(None),
        user: str | None = Query(None, description="The client's end user."),
        tag: str | None = Query(None, description="One of the request's tags."),
        request_id: str | None = Query(None),
        status: str | None = Query(None, description="Like 429 or 4xx."),
        errors: bool = Query(False, description="Only what went wrong."),
        limit: int = Query(100, description="At most 1000; 100 with bodies."),
        cursor: str | None = Query(None, description="The `next_cursor` of the page before."),
        bodies: bool = Query(False, description="With request and response bodies, if they were logged."),
    ) -> Words:
        filters = LogFilters(
            since_us=None if since is None else time_us_from(since, what="since"),
            until_us=None if until is None else time_us_from(until, what="until"),
            key=key,
            team=team,
            model=model,
            user=user,
            tag=tag,
            request_id=request_id,
            status=status,
            errors=errors,
        )
        page = await logs.search(filters, limit, cursor, bodies=bodies)
        return {"records": page.records, "next_cursor": page.next_cursor}

    @router.get("/logs/stats", response_model=models.LogStats, summary="Log records on their way, counted")
    async def stats() -> Words:
        return log_stats_words(accounts.stats())

    @router.get(
        "/logs/verify",
        response_model=models.LogProof,
        responses={409: {"model": models.Error, "description": "Being verified for somebody else."}},
        summary="Prove the logs complete: what became of every record's number",
        description="Reads the queue and the whole store, one caller at a time, for at most two minutes.",
    )
    async def verify() -> Words:
        return proof_words(await accounts.verify(), RANGES_MAX)

    return router


def _operations(
    accounts: Accounts, governor: Governor, readiness: Readiness, version: str, now_us: Clock
) -> APIRouter:
    router = APIRouter(tags=["Operation"])
    started_us = now_us()

    @router.get("/limits/{key}", response_model=models.LimitStates, summary="Every limit of a key with its state")
    async def limits(key: str) -> Words:
        principal = await accounts.principal(key)
        states = await governor.limits(principal)
        return {"key_id": principal.key_id, "limits": [limit_words(state) for state in states]}

    @router.post("/limits/{key}/reset", status_code=204, summary="Empty a key's own windows; spend stays")
    async def reset_limits(key: str) -> Response:
        await governor.reset_limits(await accounts.principal(key))
        return Response(status_code=204)

    @router.get("/health", response_model=models.Health, summary="Version, readiness and dependencies")
    async def health() -> Words:
        checks = await readiness.checks()
        return {
            "version": version,
            "ready": all(check.ok for check in checks.values()),
            "started_at": instant(started_us),
            "checks": {name: {"ok": check.ok, "detail": check.detail} for name, check in checks.items()},
        }

    return router


def _handle_errors(api: FastAPI) -> None:
    async def not_found(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body("not_found", str(error)), 404)

    async def invalid(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body("invalid_request", str(error), _param(str(error))), 400)

    async def busy(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body("busy", str(error)), 409)

    async def unavailable(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body("unavailable", str(error)), 503)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kinds = {404: "not_found", 405: "method_not_allowed"}
        kind = kinds.get(error.status_code, "invalid_request")
        return JSONResponse(error_body(kind, f"{error.detail}. See /docs."), error.status_code, error.headers)

    async def malformed(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        message = f"{where or 'body'}: {first['msg']}"
        return JSONResponse(error_body("invalid_request", message, where or None), 400)

    async def broken(_: Request, __: Exception) -> Response:
        return JSONResponse(error_body("internal_error", "Something broke; the gateway's log says what."), 500)

    api.add_exception_handler(NotFound, not_found)
    api.add_exception_handler(InvalidInput, invalid)
    api.add_exception_handler(Busy, busy)
    api.add_exception_handler(Unavailable, unavailable)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(RequestValidationError, malformed)
    api.add_exception_handler(Exception, broken)


def _param(message: str) -> str | None:
    name, colon, _ = message.partition(": ")
    return name if colon and name.replace("_", "").replace(".", "").isalnum() else None


def _serve_docs(api: FastAPI) -> None:
    described = document(api)
    html = page(described)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        return JSONResponse(described)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(html, headers={"content-security-policy": DOCS_POLICY})
