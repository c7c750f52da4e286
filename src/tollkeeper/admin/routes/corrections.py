"""`/admin/v1/corrections`: charges whose truth is not, or was not, known; and `/admin/v1/accounts`."""

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from tollkeeper.admin.access import Admin, Reader
from tollkeeper.admin.models import Listed
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.routes.paging import Paged
from tollkeeper.admin.services import Services
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import ScopeKind
from tollkeeper.domain.words import Words

Status = Literal["presumed", "settled", "corrected", "quarantined"]
Tokens = Annotated[int, Field(ge=0, lt=2**53)]


class Correction(BaseModel):
    """What an attempt cost. Tokens that are not named stay as they are counted."""

    cost_usd: str = Field(examples=["0.0123"])
    note: str = Field(description="Why; it is kept.")
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None


class Adjustment(BaseModel):
    """A change of the spend of one scope in one period; `amount_usd` may be negative, null takes it to zero."""

    scope: Literal["key", "team", "organisation"]
    name: str = Field(description="Name or id.")
    period: Period = Period.MONTH
    month: str | None = Field(None, description="Another month than this one, like 2026-10.")
    amount_usd: str | None = None
    note: str = Field(description="Why; it is kept.")
    id: str | None = Field(None, description="Asked twice under one id, it is one adjustment: the last.")


class ListedCharge(BaseModel):
    """A charge that carries a rank."""

    attempt: str
    status: Literal["presumed", "settled", "corrected", "quarantined", "adjusted"]
    why: str
    note: str | None
    root: str
    counters: list[str]
    cost_usd: str
    cost_nano: int
    presumed_usd: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    updated_at: str


class Charges(Listed):
    """A page; those that changed last first."""

    data: list[ListedCharge]
    next_cursor: str | None


class Issued(BaseModel):
    """A correction. `applied`: the store has it; else it waits on this gateway's disk until the store answers."""

    attempt: str
    cost_usd: str
    applied: bool


def corrections(services: Services) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Corrections"], prefix="/corrections")
    service = services.corrections

    @router.get(
        "",
        response_model=Charges,
        summary="Charges that are presumed, came late, were corrected",
        description="Those that changed last first; `starting_after` is the `next_cursor` of the page before.",
    )
    async def list_charges(
        _: Reader,
        paging: Paged,
        status: Annotated[Status | None, Query()] = None,
        key: str | None = Query(None, description="Name or id; default: all keys."),
    ) -> Words:
        return await service.find(status, key, paging)

    @router.get("/{attempt}", response_model=Charges, summary="One attempt, explained")
    async def show_charge(_: Reader, attempt: str) -> Words:
        return await service.show(attempt)

    @router.post("/{attempt}", response_model=Issued, summary="Say what an attempt cost")
    async def correct_charge(caller: Admin, attempt: str, request: Correction) -> Words:
        tokens = (request.input_tokens, request.output_tokens, request.cached_tokens)
        return await service.correct(caller, attempt, request.cost_usd, tokens, request.note)

    @router.post("", response_model=Issued, summary="Change or reset the spend of a scope in a period")
    async def adjust_spend(caller: Admin, request: Adjustment) -> Words:
        return await service.adjust(
            caller,
            ScopeKind(request.scope),
            request.name,
            amount_usd=request.amount_usd,
            note=request.note,
            period=request.period,
            month=request.month,
            asked_id=request.id,
        )

    return router


class StoreAccount(BaseModel):
    """A key's month in the fast store."""

    key_id: str
    year: int
    month: int
    spent_nano: int
    held_nano: int


class StoreAccounts(BaseModel):
    """`unconfirmed`: entries in this gateway's outbox that the store has not confirmed; `records_pending`: its log
    records that are not delivered."""

    accounts: list[StoreAccount]
    unconfirmed: int
    records_pending: int


def store_accounts(parts: Parts) -> APIRouter:
    """What `tollkeeper reconcile` compares with the database and the logs."""
    router = APIRouter(tags=["Corrections"])

    @router.get("/accounts", response_model=StoreAccounts, summary="What the fast store says that keys spent")
    async def list_store_accounts(_: Reader) -> Words:
        found: Words = msgspec.to_builtins(await parts.account_reader.accounts())
        return found | {"records_pending": parts.records_pending()}

    return router
