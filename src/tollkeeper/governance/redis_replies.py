"""What Redis says, as the domain's values: replies of the scripts, stored counters, holds and marks, and its errors.

It asks nothing. The scripts' headers tell what each number of a reply means; what only one root's content can cause
is told apart from what every root would be refused.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from tollkeeper.domain.admission import (
    BucketState,
    Checks,
    CounterState,
    LimitKind,
    LogState,
    Refusal,
    Reply,
    Shadowed,
    Status,
)
from tollkeeper.domain.charges import record_of
from tollkeeper.domain.entries import Applied, AppliedStatus, Entry, used_from
from tollkeeper.domain.errors import StoreDamaged, StoreUnavailable
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.domain.recovery import Gate
from tollkeeper.governance.redis_calls import COUNTER
from tollkeeper.governance.redis_connection import ReplyError
from tollkeeper.governance.redis_keys import ROOT_SLOT
from tollkeeper.governance.store import Done, Held, Snapshot

_NO_DECISION: Final = {-1: Status.LATE, -2: Status.COLD, -3: Status.RECOVERING, -4: Status.BURIED}
_OK, _DAMAGED = 0, 5
ADMITTED: Final = Status.ADMITTED
APPLIED: Final = AppliedStatus.OK
_DAMAGE: Final = re.compile(r"WRONGTYPE|(?<!@)user_script:\d+: (?!not enough memory)")
"""What only one root's content can cause: a key of another type, or an error of the script's own language on what it
read. Errors of commands (OOM, READONLY, a command that is not allowed …) come without the second."""
_HOLD: Final = re.compile(rb"(\d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n")
"""As scripts/holds.lua reads it: amount, producer, counters, slots."""
COUNTER_BYTES: Final = COUNTER.size
_STATUS: Final = {
    _OK: APPLIED,
    1: AppliedStatus.GAP,
    2: AppliedStatus.COLD,
    3: AppliedStatus.ABSENT,
    4: AppliedStatus.UNKNOWN,
}


# Admission


def reply_of(checks: Checks, raw: Sequence[int]) -> Reply:
    """The decision that `admit` tells, in the order of the checks."""
    status, now_us = raw[0], raw[1]
    if status < 0:
        return Reply(_NO_DECISION[status], now_us)
    at = 2 if status else 8
    logs: list[LogState] = []
    buckets: tuple[BucketState, ...] = ()
    counters: list[CounterState] = []
    for _ in checks.logs:
        logs.append(LogState(raw[at], raw[at + 1], raw[at + 2], raw[at + 3], raw[at + 4]))
        at += 5
    if checks.buckets:
        end = at + 5 * len(checks.buckets)
        buckets = tuple([BucketState(*raw[place : place + 5]) for place in range(at, end, 5)])
        at = end
    slots = tuple(raw[at : at + len(checks.slots)])
    at += len(slots)
    for _ in checks.counters:
        counters.append(CounterState(raw[at], raw[at + 1]))
        at += 2
    if not status:
        return Reply(
            Status.REFUSED, now_us, tuple(logs), slots, tuple(counters), _refusal(checks, raw), (), "", buckets
        )
    shadowed = () if at == len(raw) else _all_shadowed(checks, raw[at:])
    return Reply(ADMITTED, now_us, tuple(logs), slots, tuple(counters), None, shadowed, "", buckets)


def _all_shadowed(checks: Checks, told: Sequence[int]) -> tuple[Shadowed, ...]:
    return tuple([_shadowed(checks, told[i] - 1, told[i + 1]) for i in range(0, len(told), 2)])


def _shadowed(checks: Checks, position: int, unit: int) -> Shadowed:
    if position < len(checks.logs):
        return Shadowed(LimitKind.REQUESTS if unit == 1 else LimitKind.TOKENS, checks.logs[position].scope)
    position -= len(checks.logs)
    if position < len(checks.buckets):
        bucket = checks.buckets[position]
        return Shadowed(LimitKind(bucket.unit.value), bucket.scope)
    return Shadowed(LimitKind.CONCURRENCY, checks.slots[position - len(checks.buckets)].scope)


def _refusal(checks: Checks, raw: Sequence[int]) -> Refusal:
    position, unit, used, asked, wait, never = raw[2:8]
    wait_us = None if wait < 0 else wait
    position -= 1
    if position < len(checks.logs):
        log = checks.logs[position]
        kind, limit = (LimitKind.REQUESTS, log.requests_limit) if unit == 1 else (LimitKind.TOKENS, log.tokens_limit)
        return Refusal(kind, log.scope, _or(limit, 0), used, asked, wait_us, bool(never))
    position -= len(checks.logs)
    if position < len(checks.buckets):
        bucket = checks.buckets[position]
        kind = LimitKind(bucket.unit.value)
        return Refusal(kind, bucket.scope, bucket.burst, used, asked, wait_us, bool(never))
    position -= len(checks.buckets)
    if position < len(checks.slots):
        slot = checks.slots[position]
        return Refusal(LimitKind.CONCURRENCY, slot.scope, slot.limit, used, asked, wait_us)
    counter = checks.counters[position - len(checks.slots)]
    budget = _or(counter.budget_nano, 0)
    return Refusal(LimitKind.BUDGET, counter.scope, budget, used, asked, wait_us, bool(never), counter.span.period)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


# What is stored


def totals_of(packed: bytes) -> SpendTotals:
    """Of a counter, without what is held. Raises StoreDamaged."""
    if len(packed) < COUNTER_BYTES:
        raise StoreDamaged(f"a counter has {len(packed)} bytes")
    cost, _, *counts = map(int, COUNTER.unpack_from(packed))
    return SpendTotals(cost, *counts)


def held_of(attempt: str, raw: bytes) -> Held | None:
    """None: it is no hold, and the scripts do not take it for one."""
    found = _HOLD.match(raw)
    if found is None:
        return None
    amount, producer, counters, slots = found.groups()
    names = [tuple(n.decode() for n in names.split(b",") if n) for names in (counters, slots)]
    freed = tuple("" if name == ROOT_SLOT else name for name in names[1])
    return Held(attempt, producer.decode(), int(amount), names[0], freed)


def marks_of(flat: Sequence[bytes]) -> tuple[str, dict[str, int]]:
    """The memory's life and the producers' marks, without what else the hash has."""
    fields = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    run = fields.pop("run", b"").decode()
    fields.pop("sync", None)
    return run, {producer: int(number) for producer, number in fields.items() if producer[0] != "."}


def gate_of(raw: Sequence[bytes]) -> Gate:
    """Who is waited for, as `gate` tells it."""
    waits = raw[2].decode()
    return Gate(raw[0].decode(), int(raw[1]), tuple(waits.split(",")) if waits else ())


def snapshot_of(root: str, raw: Sequence[Any]) -> Snapshot:
    """What the database lacks, as `snapshot` tells it."""
    (run, marks), life, fence, flagged = marks_of(raw[0]), raw[2].decode(), int(raw[3]), raw[4:]
    used = {raw[1][i].decode(): used_from(raw[1][i + 1].decode()) for i in range(0, len(raw[1]), 2)}
    records = {name[1:].decode(): record_of(text.decode()) for name, _, text in flagged if name[:1] == b"!" and text}
    totals = {name.decode(): totals_of(packed) for name, _, packed in flagged if name[:1] != b"!" and packed}
    versions = {name.decode(): flag.decode() for name, flag, _ in flagged}
    return Snapshot(run, life, RootSnapshot(root, marks, totals, used, records, fence), versions)


# Errors


def told_error(error: ReplyError) -> StoreUnavailable:
    """What an error of Redis means."""
    return StoreDamaged(f"Redis: {error}") if _DAMAGE.search(str(error)) else error


def _lost(error: BaseException) -> StoreUnavailable:
    return error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))


# Settlement


class Settling:
    """Waits for the answer to an entry. What is usual is told at once; all else in the next turn of the loop, for it
    may have consequences."""

    __slots__ = ("_done", "_entry")

    def __init__(self, entry: Entry, done: Done) -> None:
        self._entry, self._done = entry, done

    def done(self) -> bool:
        return False

    def set_result(self, result: Sequence[int]) -> None:
        status, mark, *absent = result
        if status == _OK and mark == self._entry.number:
            self._done(Applied(APPLIED, mark))
            return
        name = self._entry.counters[absent[0] - 1].name if absent and absent[0] else ""
        if status == _DAMAGED:
            self._tell(StoreDamaged(f"a counter is too short: {name or 'one of a hold'}"))
        else:
            self._tell(Applied(_STATUS[status], mark, name))

    def set_exception(self, exception: BaseException) -> None:
        error = told_error(exception) if isinstance(exception, ReplyError) else _lost(exception)
        if isinstance(error, ReplyError):
            error = StoreUnavailable(f"Redis refused a settlement: {error}", sent=error.sent)
        self._tell(error)

    def _tell(self, answer: Applied | StoreUnavailable) -> None:
        asyncio.get_running_loop().call_soon(self._done, answer)


class SettlingTogether:
    """The same for entries that are applied in one step; `each_alone` sends them again if that could not be done."""

    __slots__ = ("_brought", "_each_alone")

    def __init__(self, brought: Sequence[tuple[Entry, Done]], each_alone: Callable[[], None]) -> None:
        self._brought, self._each_alone = brought, each_alone

    def done(self) -> bool:
        return False

    def set_result(self, result: Sequence[int]) -> None:
        status, mark = result
        if status != _OK:
            asyncio.get_running_loop().call_soon(self._each_alone)
        elif mark == self._brought[-1][0].number:
            self._tell(Applied(APPLIED, mark))
        else:
            asyncio.get_running_loop().call_soon(self._tell, Applied(APPLIED, mark))

    def set_exception(self, exception: BaseException) -> None:
        if isinstance(exception, ReplyError):
            asyncio.get_running_loop().call_soon(self._each_alone)
        else:
            asyncio.get_running_loop().call_soon(self._tell, _lost(exception))

    def _tell(self, answer: Applied | StoreUnavailable) -> None:
        told: Done | None = None
        for _, done in self._brought:
            if done is not told:
                done(answer)
                told = done
