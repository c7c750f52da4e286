"""Numbered entries: the only thing that ever changes spend, and the lines of a producer's outbox.

A producer (one gateway process) numbers its entries per root from 1. The store applies a producer's entries in order
and remembers the last number, the producer's *mark*; an entry at or below the mark changes nothing, so lost replies,
retries and restarts are harmless. `settlement_model.py` in the tests is the protocol in small.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec

from tollkeeper.domain.admission import CounterRef, Grant
from tollkeeper.domain.policy import Unit
from tollkeeper.domain.usage import Usage

BURIED: Final = 2**52
"""A producer that will never write again is *buried*: its mark is this plus the last number applied of it."""
PRESUMED: Final = 1
SETTLED: Final = 2
"""Ranks of charges; that of an operator's correction is its time (Unix µs). A higher rank replaces a lower one."""


def is_buried(mark: int) -> bool:
    """Whether a mark is that of a producer whose later numbers are refused."""
    return mark >= BURIED


def included(mark: int) -> int:
    """The last number that a mark includes."""
    return mark - BURIED if mark >= BURIED else mark


def covers(here: int, mark: int) -> bool:
    """Whether a producer's mark `here` includes everything that `mark` does: a burial at 7 has no entry 8."""
    return included(here) >= included(mark) and (mark < BURIED or here >= BURIED)


def dominates(newer: Mapping[str, int], older: Mapping[str, int]) -> bool:
    """Whether `newer` includes every entry that `older` includes; a producer it does not name is at 0."""
    return all(covers(newer.get(producer, 0), mark) for producer, mark in older.items())


class EntryKind(StrEnum):
    """*settle* charges the true cost and *void* nothing, by the producer that was admitted. *usage* charges what was
    used without a hold, once for each idempotency key.

    *presume* (the hold, where the truth is not known), *late* (the truth, where it may have been presumed) and
    *correct* (an operator's word) carry a rank and leave a record. *bury* refuses a dead producer's later numbers;
    *close* does so, too, and releases what it still holds. *quarantine* stands for an entry that the store refuses:
    it takes its number and lists its amount, which is not charged.
    """

    SETTLE = "settle"
    PRESUME = "presume"
    VOID = "void"
    USAGE = "usage"
    CLOSE = "close"
    LATE = "late"
    CORRECT = "correct"
    BURY = "bury"
    QUARANTINE = "quarantine"


SETTLE: Final = EntryKind.SETTLE
VOID: Final = EntryKind.VOID
"""Asked for with every request; a class of names is slow to tell one."""
QUARANTINE_NOTE_MAX: Final = 500
"""Characters that are kept of why an entry was refused."""
RANKED: Final = frozenset({EntryKind.PRESUME, EntryKind.LATE, EntryKind.CORRECT})


class RunRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The run of a log that holds an attempt's weight, and what to add to it (usually a negative number)."""

    name: str
    generation: int
    index: int
    requests: int = 0
    tokens: int = 0


class Origin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where an entry comes from that was issued for another producer: it was its entry `number`, and counts only
    where that does not; or, if `held`, the attempt was held when it was buried at `number`, and where it got further
    nobody can tell."""

    producer: str
    number: int
    held: bool = False


class BucketRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A bucket that an attempt has taken tokens from, what it was then (domain/bucket.py), and what to give back."""

    name: str
    unit: Unit
    rate: int
    burst: int
    generation: int
    last_us: int
    level: int
    returned: int
    tokens: int = 0


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One numbered change. Everything it needs travels with it, so that keys may move and limits may change.

    `hold_nano` is what the attempt held; it is released if the hold is still there. No counter is named twice.
    `told`: a caller was told that its idempotency key stands for this amount.
    `fresh`: nobody else can have charged the attempt. `dead` is the producer that is buried or closed, `note` what an
    operator says. Rank 0 charges nothing and is only listed.
    """

    number: int
    kind: EntryKind
    attempt: str = ""
    cost_nano: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    counters: tuple[CounterRef, ...] = ()
    runs: tuple[RunRef, ...] = ()
    slots: tuple[str, ...] = ()
    hold_nano: int = 0
    rank: int = 0
    origins: tuple[Origin, ...] = ()
    fresh: bool = False
    dead: str = ""
    note: str = ""
    buckets: tuple[BucketRef, ...] = ()
    told: bool = False


def is_plain(entry: Entry) -> bool:
    """Whether it may be applied in one step with others like it: it needs nothing but counters, runs and slots."""
    return (entry.kind is SETTLE or entry.kind is VOID) and not entry.buckets


class Dispatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The outbox line written before the first byte goes upstream: what a successor needs to presume the charge."""

    attempt: str
    hold_nano: int
    counters: tuple[CounterRef, ...]
    runs: tuple[RunRef, ...]
    slots: tuple[str, ...]
    buckets: tuple[BucketRef, ...] = ()


def dispatch_of(grant: Grant) -> Dispatch:
    """The dispatch line of an admitted attempt."""
    checks, demand, states, runs = grant.checks, grant.demand, grant.reply.logs, []
    for place, check in enumerate(checks.logs):
        state = states[place]
        runs.append(RunRef(check.name, state.generation, state.index))
    if checks.buckets:
        buckets = tuple(_bucket_refs(grant))
        return Dispatch(
            demand.attempt, demand.hold_nano, checks.counter_refs, tuple(runs), checks.slot_names, buckets
        )
    return Dispatch(demand.attempt, demand.hold_nano, checks.counter_refs, tuple(runs), checks.slot_names)


def _bucket_refs(grant: Grant) -> Iterable[BucketRef]:
    for check, state in zip(grant.checks.buckets, grant.reply.buckets, strict=True):
        if state.generation:
            yield BucketRef(
                check.name,
                check.unit,
                check.rate,
                check.burst,
                state.generation,
                state.last_us,
                state.level,
                state.returned,
            )


def _give_back(dispatch: Dispatch, requests: int, tokens: int) -> tuple[BucketRef, ...]:
    given = {Unit.REQUESTS: requests, Unit.TOKENS: tokens}
    return tuple([msgspec.structs.replace(b, tokens=given[b.unit]) for b in dispatch.buckets if given[b.unit]])


def settle_entry(number: int, dispatch: Dispatch, cost_nano: int, usage: Usage, token_delta: int) -> Entry:
    """Charge the truth; `token_delta` is true tokens less the estimate that was admitted."""
    runs = []
    if token_delta:
        for run in dispatch.runs:
            runs.append(RunRef(run.name, run.generation, run.index, 0, token_delta))
    return Entry(
        number,
        SETTLE,
        dispatch.attempt,
        cost_nano,
        1,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        dispatch.counters,
        tuple(runs),
        dispatch.slots,
        dispatch.hold_nano,
        buckets=_give_back(dispatch, 0, -token_delta) if dispatch.buckets else (),
    )


def presume_entry(number: int, dispatch: Dispatch, *, fresh: bool = True, origins: tuple[Origin, ...] = ()) -> Entry:
    """Charge the hold, because the truth is not known. The weights stay as they were estimated."""
    return Entry(
        number,
        EntryKind.PRESUME,
        dispatch.attempt,
        dispatch.hold_nano,
        1,
        counters=dispatch.counters,
        slots=dispatch.slots,
        rank=PRESUMED,
        fresh=fresh,
        origins=origins,
        hold_nano=dispatch.hold_nano,
    )


def void_entry(number: int, dispatch: Dispatch, requests: int, tokens: int) -> Entry:
    """Release an attempt that never ran: its weights go back to the windows they came from."""
    return Entry(
        number,
        VOID,
        dispatch.attempt,
        counters=dispatch.counters,
        runs=tuple([RunRef(r.name, r.generation, r.index, -requests, -tokens) for r in dispatch.runs]),
        slots=dispatch.slots,
        hold_nano=dispatch.hold_nano,
        buckets=_give_back(dispatch, requests, tokens) if dispatch.buckets else (),
    )


class Charged(StrEnum):
    """What became of a charge: it was made *now*, or had been *before* under its idempotency key; or it is *pending*:
    on local disk, to be charged when the store is back if it was not before."""

    NOW = "now"
    BEFORE = "before"
    PENDING = "pending"


USED_KEEP_US: Final = 24 * 3600 * 1_000_000
"""How long an idempotency key is remembered."""


class Used(msgspec.Struct, frozen=True, gc=False):
    """What a tree remembers of an idempotency key: the amount, until when, and the entry (`producer:number`) that
    charged it. That entry itself, applied again to a memory that knows less, charges again; no other does.

    `counters`, if there are any, are those that were charged after a loss, before all producers had come again, by an
    entry whose caller was not told: until they have, an entry whose caller was told another amount replaces it."""

    cost_nano: int
    until_us: int
    by: str
    counters: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As the scripts write it."""
        return f"{self.cost_nano} {self.until_us} {self.entry}"

    @property
    def entry(self) -> str:
        """Which entry, and what it may have to give back."""
        return f"{self.by} {','.join(self.counters)}" if self.counters else self.by


def used_from(text: str) -> Used:
    """The inverse of `Used.text`."""
    cost, until, by, *counters = text.split(" ", 3)
    return Used(int(cost), int(until), by, tuple(counters[0].split(",")) if counters else ())


def usage_digest(key_id: str, idempotency_key: str) -> str:
    """What stands for an idempotency key in a tree: callers' keys are any text, and each API key has its own."""
    text = f"{len(key_id)}:{key_id}{idempotency_key}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).hexdigest()


def usage_entry(number: int, digest: str, cost_nano: int, counters: tuple[CounterRef, ...]) -> Entry:
    """Charge what was used, unless its idempotency key is known. The digest stands where others have the attempt."""
    return Entry(number, EntryKind.USAGE, digest, cost_nano, 1, counters=counters)


def late_entry(number: int, dispatch: Dispatch, cost_nano: int, requests: int, usage: Usage) -> Entry:
    """The end of an attempt that was admitted under a name which is no more: its charge may have been presumed."""
    return Entry(
        number,
        EntryKind.LATE,
        dispatch.attempt,
        cost_nano,
        requests,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        counters=dispatch.counters,
        slots=dispatch.slots,
        rank=SETTLED,
    )


def bury_entry(number: int, dead: str) -> Entry:
    """Refuse a dead producer's later numbers."""
    return Entry(number, EntryKind.BURY, dead=dead)


def close_entry(number: int, dead: str) -> Entry:
    """The same, and release what it still holds: all that it dispatched has been charged by entries before this."""
    return Entry(number, EntryKind.CLOSE, dead=dead)


def quarantined(entry: Entry, producer: str, why: str) -> Entry:
    """What stands for an entry that the store refuses, for the reason `why`. It is not written down: after a loss of
    the store the entry itself comes again."""
    named = entry.attempt if entry.kind is not EntryKind.USAGE else ""
    note = " ".join(part for part in (entry.note, f"{entry.kind} {entry.dead}".strip(), f"refused: {why}") if part)
    return msgspec.structs.replace(
        entry,
        kind=EntryKind.QUARANTINE,
        attempt=named or f"{producer}#{entry.number}",
        runs=(),
        buckets=(),
        slots=(),
        rank=0,
        origins=(),
        note=note[:QUARANTINE_NOTE_MAX],
    )


def issued_again(entry: Entry, producer: str, forgotten: Collection[str]) -> Entry | None:
    """A dead producer's entry, to be issued by another under a number of its own (here 0); None if it is not needed.

    `forgotten` are producers whose marks were dropped: what must be compared with them is only listed, at rank 0.
    """
    if entry.kind in (EntryKind.BURY, EntryKind.CLOSE):
        return None if entry.dead in forgotten else msgspec.structs.replace(entry, number=0)
    origins = (*entry.origins, Origin(producer, entry.number))
    placeable = not any(origin.producer in forgotten for origin in origins)
    if entry.kind is EntryKind.USAGE and placeable:
        return msgspec.structs.replace(entry, number=0, origins=origins)
    kind, rank = (entry.kind, entry.rank) if entry.kind in RANKED else (EntryKind.LATE, SETTLED)
    named = entry.attempt or f"{producer}#{entry.number}"
    return msgspec.structs.replace(
        entry,
        number=0,
        kind=kind,
        attempt=f"{producer}#{entry.number}" if entry.kind is EntryKind.USAGE else named,
        runs=(),
        rank=rank if placeable else 0,
        origins=origins if placeable else (),
        fresh=False,
    )


class AppliedStatus(StrEnum):
    """*ok*: applied now or before, or refused if the mark is that of a buried producer. *gap*: an earlier number is
    missing; *cold*: the tree is not loaded; *absent*: a counter of an ended period has left the store and must be
    restored from the database first; *unknown*: so must the record of the attempt."""

    OK = "ok"
    GAP = "gap"
    COLD = "cold"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Applied(msgspec.Struct, frozen=True, gc=False):
    """The answer to an entry. `mark` is the producer's mark in the store, `absent` the name of the counter."""

    status: AppliedStatus
    mark: int = 0
    absent: str = ""
