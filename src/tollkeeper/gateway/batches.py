"""Batches: each line is bounded when its file is uploaded, the sum is charged when the batch is made, then the truth.

A batch runs for a day, longer than any hold should live, so its bound is charged at once, as *presumed*, and
corrected when the provider tells what was used; spend is never below what the batch can still cost. Lines are not
rewritten: one without an output limit is bounded only by its model's own, and models must have the provider's names.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.money import usd
from tollkeeper.domain.objects import StoredObject
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.pricing import Price, cost_nano
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.bound import Bounder
from tollkeeper.gateway.dialects import (
    ENDPOINTS,
    Call,
    Endpoint,
    Reference,
    Sold,
    parse,
    read_answer,
    references,
)
from tollkeeper.gateway.dialects.base import ABSENT
from tollkeeper.gateway.late import ChargeNotes, Truth, truth
from tollkeeper.gateway.routing import Router, check_allowed

LINES_MAX: Final = 50_000
"""OpenAI's own maximum."""
MODELS_MAX: Final = 16
LINES_A_TURN: Final = 64
"""Read before others have their turn."""
Prices = Mapping[str, str]
"""Models → the versions of their prices."""
ENDED: Final = ("completed", "failed", "expired", "cancelled")
SERVED: Final = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations")
)
NOTE: Final = "the batch has ended, and the provider told what it used"


class _Line(msgspec.Struct):
    url: str
    body: msgspec.Raw
    method: str = "POST"


class FileNotes(msgspec.Struct, frozen=True):
    """What a batch of this file can cost. `models`: their prices' versions. `reason`: why there is no bound."""

    lines: int
    hold_nano: int
    line_max_nano: int
    models: dict[str, str]
    reason: str | None = None


class _Create(msgspec.Struct):
    input_file_id: str
    endpoint: str


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _BatchUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Counts(msgspec.Struct):
    completed: int = 0


class _Answered(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = ABSENT


class _Output(msgspec.Struct):
    """A line of an output file."""

    response: _Answered | None = None


class Seen(msgspec.Struct):
    """A batch as far as it matters here."""

    endpoint: str = ""

    status: str = ""
    usage: _BatchUsage | None = None
    request_counts: _Counts | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None


_LINE: Final = re.compile(rb"[^\n]*[^\s][^\n]*")
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_create = msgspec.json.Decoder(_Create).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_output = msgspec.json.Decoder(_Output).decode
_decode_seen = msgspec.json.Decoder(Seen).decode
_decode_file = msgspec.json.Decoder(FileNotes).decode


async def bounded_file(
    data: memoryview, provider: str, router: Router, bounder: Bounder, now_us: int
) -> tuple[FileNotes, set[Reference]]:
    """Bound every line; and the objects that they name. Raises RequestError that tells the first line at fault."""
    total = largest = lines = 0
    models: dict[str, str] = {}
    reason: str | None = None
    named: set[Reference] = set()
    for number, found in enumerate(_LINE.finditer(data), 1):
        raw = found[0]
        if number % LINES_A_TURN == 0:
            await asyncio.sleep(0)
        try:
            call = _call_of(raw)
            named |= references(call, bytes(_decode_line(raw).body))
            pool = router.pools(call.model, "openai")[0]
            route = next((d.route for d in pool.deployments if d.route.provider == provider), None)
            if route is None or route.upstream_model != call.model:
                message = f"the provider '{provider}' does not serve '{call.model}' under this very name"
                raise RequestError(Fault.INVALID, message)
        except RequestError as error:
            raise RequestError(error.fault, f"Line {number} of the batch: {error.message}", param="file") from None
        bound = bounder.line(call, route, now_us)
        lines, total, largest = lines + 1, total + bound.hold_nano, max(largest, bound.hold_nano)
        models[call.model] = bound.version
        if bound.reason is not None and reason is None:
            reason = f"line {number}: {bound.reason}"
        if lines > LINES_MAX or len(models) > MODELS_MAX:
            message = f"A batch has at most {LINES_MAX} lines and {MODELS_MAX} models."
            raise RequestError(Fault.INVALID, message, param="file")
    if not lines:
        raise RequestError(Fault.INVALID, "The batch has no line.", param="file")
    return FileNotes(lines, total, largest, models, reason), named


def _call_of(raw: bytes) -> Call:
    try:
        line = _decode_line(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = "it must be a JSON object with custom_id, method, url and body."
        raise RequestError(Fault.INVALID, message) from None
    if line.method != "POST" or line.url not in SERVED:
        raise RequestError(Fault.INVALID, f"a batch can have POST to {', '.join(sorted(SERVED))}.")
    return parse(ENDPOINTS[line.url], bytes(line.body))


def asked_of(body: bytes) -> str:
    """The id of the file that a batch is made of. Raises RequestError."""
    try:
        asked = _decode_create(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = "A batch needs input_file_id, endpoint and completion_window, as JSON."
        raise RequestError(Fault.INVALID, message, param="input_file_id") from None
    if asked.endpoint not in SERVED:
        message = f"'endpoint' must be one of {', '.join(sorted(SERVED))}."
        raise RequestError(Fault.INVALID, message, param="endpoint")
    return asked.input_file_id


def batch_call(endpoint: Endpoint, body: bytes, file: StoredObject, principal: Principal, prices: Prices) -> Call:
    """The call that makes a batch of a file, under the bound of its lines.

    Raises RequestError: INVALID, MODEL_FORBIDDEN, UNBOUNDED, COST_CAP.
    """
    if not file.notes:
        message = "The file was not uploaded with purpose 'batch' through this gateway, so its lines have no bound."
        raise RequestError(Fault.INVALID, message, param="input_file_id")
    notes = _decode_file(file.notes)
    for model, version in notes.models.items():
        check_allowed(principal, model)
        if prices.get(model) != version:
            message = f"The price of '{model}' has changed since the file was uploaded. Upload it again."
            raise RequestError(Fault.INVALID, message, param="input_file_id")
    if notes.reason is not None and principal.has_budget:
        message = f"The cost of this batch cannot be bounded, which its budget needs: {notes.reason}."
        raise RequestError(Fault.UNBOUNDED, message)
    caps = [s.policy.cost_cap_nano for s in principal.scopes if s.policy.cost_cap_nano is not None]
    if caps and notes.line_max_nano > min(caps):
        message = f"A line of this batch could cost up to {usd(notes.line_max_nano)} USD; at most {usd(min(caps))} "
        raise RequestError(Fault.COST_CAP, message + "USD are allowed for one request.")
    model = next(iter(notes.models))
    fields = _decode_fields(body)
    sold = Sold(batch_nano=notes.hold_nano)
    return Call(endpoint, model, False, 0, 1, None, False, Content(text_bytes=0), fields, sold=sold)


def models_of(file: StoredObject) -> tuple[str, ...]:
    """The models of a file's lines."""
    return tuple(_decode_file(file.notes).models) if file.notes else ()


def read_seen(seen: bytes) -> Seen | None:
    """A batch as the provider shows it."""
    try:
        return _decode_seen(seen)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def truth_of(notes: ChargeNotes, seen: Seen, price: Price | None) -> Truth | None:
    """What an ended batch truly cost.

    None if nothing is to be changed: it is not over, was settled, or the provider does not tell enough. Sums of
    tokens tell no line's price where that depends on its size, nor which of several models used them.
    """
    completed = 0 if seen.request_counts is None else seen.request_counts.completed
    if seen.status not in ENDED or notes.settled:
        return None
    if completed == 0 and seen.output_file_id is None:
        return truth(notes, 0, Usage())
    if seen.usage is None or price is None or price.tiers or len(notes.models) != 1:
        return None
    given, made = seen.usage.input_tokens_details or _Details(), seen.usage.output_tokens_details or _Details()
    usage = Usage(
        seen.usage.input_tokens,
        seen.usage.output_tokens,
        given.cached_tokens or 0,
        reasoning_tokens=made.reasoning_tokens or 0,
        service_tier="batch",
    )
    fees = price.served.get("batch", price).per_request * max(0, completed - 1)
    return truth(notes, cost_nano(price, usage) - (-fees // price.per_nano), usage)


async def truth_of_lines(notes: ChargeNotes, seen: Seen, output: bytes, prices: Mapping[str, Price]) -> Truth | None:
    """The same from the answers themselves, line by line, which tell what sums do not. `prices` of all its models.

    None if there is a line whose usage or model cannot be told: then the bound stays.
    """
    endpoint = ENDPOINTS.get(seen.endpoint)
    if endpoint is None or seen.status not in ENDED or notes.settled:
        return None
    cost, total, answered = 0, Usage(), 0
    for number, found in enumerate(_LINE.finditer(output), 1):
        if number % LINES_A_TURN == 0:
            await asyncio.sleep(0)
        try:
            line = _decode_output(found[0]).response
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if line is None or line.status_code >= 300:
            continue  # an error costs nothing
        answer = read_answer(endpoint, bytes(line.body))
        price = prices.get(_model_of(answer.model or "", notes.models))
        if answer.usage is None or price is None or answer.parts:
            return None
        usage = msgspec.structs.replace(answer.usage, service_tier="batch")
        cost += cost_nano(price, usage)
        total = Usage(
            total.input_tokens + usage.input_tokens,
            total.output_tokens + usage.output_tokens,
            total.cached_tokens + usage.cached_tokens,
        )
        answered += 1
    completed = answered if seen.request_counts is None else seen.request_counts.completed
    return truth(notes, cost, total) if answered == completed else None


def _model_of(told: str, models: tuple[str, ...]) -> str:
    """Which of a batch's models answered: by its own name, or by one with a date behind it; empty for none."""
    if len(models) == 1:
        return models[0]
    return max((name for name in models if told == name or told.startswith(f"{name}-")), key=len, default="")
