"""`/admin/v1/corrections`: charges whose truth is not, or was not, known; and an operator's word on them.

Each correction is an entry of this gateway's own, on its disk when the answer is sent. What is listed is what the
database has: routes bring it up to date first, and list as of the last sync if that cannot be done.
"""

import secrets
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from tollkeeper.admin.access import Admin, Caller, Reader
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.corrections import (
    ADJUSTMENT,
    adjustment,
    adjustment_id,
    charge_words,
    checked_note,
    corrected,
    counter_of,
)
from tollkeeper.domain.entries import CounterRef
from tollkeeper.domain.errors import InvalidInput, NotFound, Unavailable
from tollkeeper.domain.money import nano_from_usd, usd
from tollkeeper.domain.periods import Period, month_start_us
from tollkeeper.domain.ports import Accounts
from tollkeeper.domain.ports import ListedCharge as Row
from tollkeeper.domain.words import Words, month_from

LISTED_MAX = 1000
FLUSH_S = 5.0
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


class Charges(BaseModel):
    """Newest first."""

    charges: list[ListedCharge]


class Issued(BaseModel):
    """A correction. `applied`: the store has it; else it waits on this gateway's disk until the store answers."""

    attempt: str
    cost_usd: str
    applied: bool


def corrections(parts: Parts) -> APIRouter:
    """The routes."""
    accounts, spend, corrector, sync, now_us = (
        parts.accounts,
        parts.spend,
        parts.corrector,
        parts.sync,
        parts.now_us,
    )
    router = APIRouter(tags=["Corrections"], prefix="/corrections")

    async def known(attempt: str) -> Row:
        found = await spend.listed(attempt=attempt)
        if not found:
            await sync()
            found = await spend.listed(attempt=attempt)
        if not found:
            raise NotFound(f"no charge of {attempt!r} is listed; what is settled is changed by an adjustment")
        return max(found, key=lambda listed: listed.charge.rank)

    async def issue(caller: Caller, root: str, attempt: str, charge: Charge, note: str) -> Words:
        after = {"root": root, "cost_usd": usd(charge.cost_nano), "note": note}
        await parts.audit.append(caller.author, "correction.issue", attempt, after)
        corrector.correct(root, attempt, charge, note)
        applied = await corrector.flush(FLUSH_S)
        if applied:
            with suppress(Unavailable):
                await sync()
        return {"attempt": attempt, "cost_usd": usd(charge.cost_nano), "applied": applied}

    @router.get("", response_model=Charges, summary="Charges that are presumed, came late, were corrected")
    async def list_charges(
        _: Reader,
        status: Annotated[Status | None, Query()] = None,
        key: str | None = Query(None, description="Name or id; default: all keys."),
        limit: int = Query(100, ge=1, le=LISTED_MAX),
    ) -> Words:
        with suppress(Unavailable):
            await sync()
        key_id = None if key is None else (await accounts.get_key(key)).id
        rows = await spend.listed(status=status, key=key_id, limit=limit)
        return {"charges": [charge_words(row) for row in rows]}

    @router.get("/{attempt}", response_model=Charges, summary="One attempt, explained")
    async def show_charge(_: Reader, attempt: str) -> Words:
        with suppress(Unavailable):
            await sync()
        await known(attempt)
        return {"charges": [charge_words(row) for row in await spend.listed(attempt=attempt)]}

    @router.post("/{attempt}", response_model=Issued, summary="Say what an attempt cost")
    async def correct_charge(caller: Admin, attempt: str, request: Correction) -> Words:
        row = await known(attempt)
        signed = attempt.startswith(ADJUSTMENT)
        cost_nano = _nano(request.cost_usd, "cost_usd", signed=signed)
        tokens = (request.input_tokens, request.output_tokens, request.cached_tokens)
        return await issue(caller, row.root, attempt, corrected(row, cost_nano, tokens), checked_note(request.note))

    @router.post("", response_model=Issued, summary="Change or reset the spend of a scope in a period")
    async def adjust_spend(caller: Admin, request: Adjustment) -> Words:
        note = checked_note(request.note)
        root, scope_id = await _scope(accounts, request.scope, request.name)
        counter = counter_of(scope_id, *_period(request, now_us()))
        if request.amount_usd is None:
            amount_nano = -(await _spent(root, counter))
        else:
            amount_nano = _nano(request.amount_usd, "amount_usd", signed=True)
        if amount_nano == 0:
            raise InvalidInput("amount_usd: there is nothing to change")
        attempt = adjustment_id(request.id or secrets.token_hex(16))
        return await issue(caller, root, attempt, adjustment(amount_nano, counter), note)

    async def _spent(root: str, counter: CounterRef) -> int:
        await sync()
        totals = (await spend.load(root)).totals.get(counter.name)
        return totals.cost_nano if totals is not None else 0

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


def _nano(text: str, what: str, *, signed: bool) -> int:
    """An amount; below zero only where that makes sense."""
    negative = text.startswith("-")
    if negative and not signed:
        raise InvalidInput(f"{what}: what an attempt cost is zero or more")
    nano = nano_from_usd(text.removeprefix("-"), what=what)
    return -nano if negative else nano


def _period(request: Adjustment, now_us: int) -> tuple[Period, int]:
    if request.month is None:
        return request.period, now_us
    if request.period is not Period.MONTH:
        raise InvalidInput("month: only for the period month")
    return Period.MONTH, month_start_us(*month_from(request.month))


async def _scope(accounts: Accounts, scope: str, name: str) -> tuple[str, str]:
    """Root and id of a scope; the id of an organisation among its counters is empty."""
    if scope == "key":
        principal = await accounts.principal(name)
        return principal.root, principal.key_id
    if scope == "team":
        team = await accounts.get_team(name)
        return team.organisation_id, team.id
    return (await accounts.get_organisation(name)).id, ""
