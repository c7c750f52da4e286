"""Calls of `admit`, `apply` and `batch`: as bytes for requests of known checks, and whole for any entry.

The keys, the limits and most of each command do not change while a principal's checks are valid: a `Plan` has them in
the form in which Redis reads them (RESP: `*words`, then `$length` and bytes for each), and each call puts its few
numbers between them. `settlement_call` and `settlements_call` are the same calls of an entry whose checks are not
known, or that names something else. What a plan makes is what packing them would make, byte for byte; that is tested.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from tollkeeper.domain.admission import SLOT_LEASE_US, Checks, Demand
from tollkeeper.domain.entries import SETTLE, VOID, Entry, EntryKind, RunRef
from tollkeeper.domain.policy import Unit
from tollkeeper.governance.redis_keys import (
    ROOT_SLOT,
    bucket_key,
    changed_key,
    counter_key,
    hold_key,
    log_key,
    marks_key,
    slot_key,
)

_UNIT: Final = {Unit.REQUESTS: 1, Unit.TOKENS: 2}
_MOVING: Final = struct.Struct("<7d").pack
_ALONE: Final = struct.Struct("<9d").pack
_ALONE_RUN: Final = struct.Struct("<4d").pack
_BATCH: Final = struct.Struct("<5d").pack
_AMONG: Final = struct.Struct("<10d").pack
_AMONG_RUN: Final = struct.Struct("<5d").pack


def doubles(numbers: Sequence[int]) -> bytes:
    """Scripts read many numbers from one argument; integers below 2^53 are exact as doubles."""
    return _struct_of(len(numbers)).pack(*numbers)


@lru_cache(maxsize=1_000)
def _struct_of(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


def _word(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _words(digest: str, keys: Sequence[str]) -> bytes:
    """The words of a script's call before its first argument."""
    return b"".join(map(_word, (b"EVALSHA", digest.encode(), b"%d" % len(keys), *[key.encode() for key in keys])))


def _call(digest: str, keys: Sequence[str], arguments: int) -> bytes:
    """The beginning of a script's call, up to its first argument."""
    return b"*%d\r\n%b" % (3 + len(keys) + arguments, _words(digest, keys))


class Plan:
    """Keys and arguments that depend on the checks alone; `keys`, `numbers` and `meta` are those of `admit`."""

    __slots__ = (
        "_admit",
        "_admit_numbers",
        "_apply",
        "_apply_numbers",
        "_batch",
        "_batch_numbers",
        "_counter_places",
        "_counters",
        "_log_names",
        "_meta",
        "_slot_names",
        "_slot_places",
        "_whom",
        "_whose",
        "checks",
        "has_budget",
        "keys",
        "meta",
        "numbers",
    )

    def __init__(self, checks: Checks, admit_digest: str, apply_digest: str, batch_digest: str) -> None:
        root = checks.root
        self.checks = checks
        self.has_budget = checks.has_budget
        logs = [log_key(root, c.name) for c in checks.logs]
        buckets = [bucket_key(root, c.name) for c in checks.buckets]
        slots = [slot_key(root, c.name) for c in checks.slots]
        counters = [counter_key(root, c.name) for c in checks.counters]
        self.keys = (marks_key(root), hold_key(root), *logs, *buckets, *slots, *counters)
        names = ",".join(checks.counter_names)
        self.meta = f"{names}\n{','.join([name or ROOT_SLOT for name in checks.slot_names])}\n"
        self.numbers = _numbers(checks)

        self._admit = _call(admit_digest, self.keys, 5) + b"$%d\r\n" % (8 * 7 + len(self.numbers))
        self._admit_numbers = self.numbers + b"\r\n"
        self._whose: tuple[str, str] | None = None  # the producer and the server's life that the next two are for
        self._meta = self._whom = b""

        self._counters = checks.counter_refs
        self._log_names, self._slot_names = [log.name for log in checks.logs], checks.slot_names
        self._counter_places = doubles(range(1, len(counters) + 1))
        self._slot_places = doubles(range(1, len(slots) + 1))
        self._apply: list[bytes] = []
        self._apply_numbers: list[bytes] = []
        self._batch: list[tuple[int, bytes]] = []
        self._batch_numbers: list[tuple[int, bytes]] = []
        to_charge = (marks_key(root), hold_key(root), changed_key(root), *counters)
        spans = [number for ref in checks.counter_refs for number in (ref.ends_us, ref.expires_us)]
        prefix = len(counter_key(root, ""))
        for runs in ([], logs):  # without runs to correct, and with all
            keys = (*to_charge, *runs, *slots)
            numbers = doubles([len(counters), len(runs), 0, len(slots), prefix, *spans])
            size = 8 * 9 + len(numbers) + 8 * 4 * len(runs)
            self._apply.append(_call(apply_digest, keys, 4) + b"$%d\r\n" % size)
            self._apply_numbers.append(numbers)
            self._batch.append((3 + len(keys), _words(batch_digest, keys)))
            self._batch_numbers.append((len(runs), doubles([len(slots), prefix, *spans])))

    def admission(self, time_us: int, demand: Demand, life: str) -> bytes:
        """The call of `admit` for an attempt. `life` is as the script takes it."""
        if self._whose != (demand.producer, life):
            producer = demand.producer.encode()
            self._whose, self._meta = (demand.producer, life), b"\n%b\n%b\r\n" % (producer, self.meta.encode())
            self._whom = _word(producer) + _word(life.encode())
        attempt, hold, moving = demand.attempt.encode(), b"%d" % demand.hold_nano, self._moving(time_us, demand)
        return b"%b%b%b$%d\r\n%b\r\n$%d\r\n%b%b%b" % (
            self._admit,
            moving,
            self._admit_numbers,
            len(attempt),
            attempt,
            len(hold) + len(self._meta) - 2,
            hold,
            self._meta,
            self._whom,
        )

    def _moving(self, time_us: int, demand: Demand) -> bytes:
        checks, until_us = self.checks, demand.not_after_us
        return _MOVING(
            time_us,
            checks.valid_from_us,
            until_us if until_us < checks.valid_until_us else checks.valid_until_us,
            demand.requests,
            demand.tokens,
            demand.hold_nano,
            SLOT_LEASE_US,
        )

    def arguments(self, time_us: int, demand: Demand) -> tuple[bytes | str, ...]:
        """Those of `admit` but the last, the life, where the call is not packed here."""
        hold = f"{demand.hold_nano}\n{demand.producer}\n{self.meta}"
        return (self._moving(time_us, demand) + self.numbers, demand.attempt, hold, demand.producer)

    def _fits(self, entry: Entry) -> bool:
        """Whether an entry names what an attempt does that was admitted by these checks, and is applied by scripts
        that are called here."""
        kind = entry.kind
        return (
            (kind is SETTLE or kind is VOID)
            and not entry.buckets
            and entry.counters is self._counters
            and entry.slots == self._slot_names
            and (not entry.runs or self._corrects(entry.runs))
        )

    def _corrects(self, runs: Sequence[RunRef]) -> bool:
        names = self._log_names
        if len(runs) == 1 == len(names):
            return runs[0].name == names[0]
        return [run.name for run in runs] == names

    def settlement(self, time_us: int, producer: str, entry: Entry) -> bytes | None:
        """The call of `apply` for an entry; None if it does not fit, and the call must be made from it alone."""
        if not self._fits(entry):
            return None
        with_runs = 1 if entry.runs else 0
        numbers = self._apply_numbers[with_runs]
        for run in entry.runs:
            numbers += _ALONE_RUN(run.generation, run.index, run.requests, run.tokens)
        moving = _ALONE(
            time_us,
            entry.number,
            entry.kind is SETTLE,
            entry.hold_nano,
            entry.cost_nano,
            entry.requests,
            entry.input_tokens,
            entry.output_tokens,
            entry.cached_tokens,
        )
        by, attempt, number = producer.encode(), entry.attempt.encode(), b"%d" % entry.number
        return b"%b%b%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            self._apply[with_runs],
            moving,
            numbers,
            len(by),
            by,
            len(attempt),
            attempt,
            len(number),
            number,
        )

    def settlements(self, time_us: int, producer: str, brought: Sequence[tuple[Entry, object]]) -> bytes | None:
        """The call of `batch` for several entries; None if one does not fit."""
        slots, with_runs = len(self._slot_names), 0
        counters, fits = len(self._counters), self._fits
        numbers: list[bytes] = []
        attempts: list[bytes] = []
        for entry, _ in brought:
            if not fits(entry):
                return None
            runs, attempt = entry.runs, entry.attempt.encode()
            numbers.append(
                _AMONG(
                    entry.kind is SETTLE,
                    entry.hold_nano,
                    entry.cost_nano,
                    entry.requests,
                    entry.input_tokens,
                    entry.output_tokens,
                    entry.cached_tokens,
                    counters,
                    len(runs),
                    slots,
                )
            )
            numbers.append(self._counter_places)
            if runs:
                with_runs = 1
                for place, run in enumerate(runs, 1):
                    numbers.append(_AMONG_RUN(place, run.generation, run.index, run.requests, run.tokens))
            numbers.append(self._slot_places)
            attempts.append(b"$%d\r\n%b\r\n" % (len(attempt), attempt))
        words, call = self._batch[with_runs]
        logs, common = self._batch_numbers[with_runs]
        first, last = brought[0][0].number, b"%d" % brought[-1][0].number
        plan = b"%b%b%b" % (_BATCH(time_us, first, len(brought), counters, logs), common, b"".join(numbers))
        return b"*%d\r\n%b%b%b%b%b" % (
            words + 3 + len(brought),
            call,
            _word(plan),
            _word(producer.encode()),
            _word(last),
            b"".join(attempts),
        )


def _numbers(checks: Checks) -> bytes:
    """The limits, in the order of the keys."""
    numbers: list[int] = [len(checks.logs), len(checks.buckets), len(checks.slots), len(checks.counters)]
    for log in checks.logs:
        limits = (log.requests_limit, log.tokens_limit, log.requests_shadow, log.tokens_shadow)
        numbers += (log.window_us, log.tick_us, *(-1 if limit is None else limit for limit in limits))
    for bucket in checks.buckets:
        numbers += (_UNIT[bucket.unit], bucket.rate, bucket.burst, int(bucket.shadow))
    for slot in checks.slots:
        numbers += (slot.limit, int(slot.shadow))
    for counter, ref in zip(checks.counters, checks.counter_refs, strict=True):
        numbers += (-1 if counter.budget_nano is None else counter.budget_nano, ref.ends_us, ref.expires_us)
    return doubles(numbers)


def settlement_call(time_us: int, root: str, producer: str, entry: Entry) -> tuple[list[str], list[Any]]:
    """Keys and arguments of `apply` for the end of an attempt, from the entry alone."""
    keys = [marks_key(root), hold_key(root), changed_key(root)]
    counters, runs, buckets, slots = entry.counters, entry.runs, entry.buckets, entry.slots
    prefix = counter_key(root, "")
    numbers: list[int] = [
        time_us,
        entry.number,
        int(entry.kind is not EntryKind.VOID),
        entry.hold_nano,
        entry.cost_nano,
        entry.requests,
        entry.input_tokens,
        entry.output_tokens,
        entry.cached_tokens,
        len(counters),
        len(runs),
        len(buckets),
        len(slots),
        len(prefix),
    ]
    for counter in counters:
        keys.append(prefix + counter.name)
        numbers += (counter.ends_us, counter.expires_us)
    for run in runs:
        keys.append(log_key(root, run.name))
        numbers += (run.generation, run.index, run.requests, run.tokens)
    for b in buckets:
        keys.append(bucket_key(root, b.name))
        numbers += (b.rate, b.burst, b.generation, b.last_us, b.level, b.returned, b.tokens)
    for slot in slots:
        keys.append(slot_key(root, slot))
    return keys, [doubles(numbers), producer, entry.attempt, entry.number]


def settlements_call(time_us: int, root: str, producer: str, entries: Sequence[Entry]) -> tuple[list[str], list[Any]]:
    """Keys and arguments of `batch` for several, which name once what the entries share."""
    counters: dict[str, int] = {}
    logs: dict[str, int] = {}
    slots: dict[str, int] = {}
    spans: list[int] = []
    numbers: list[int] = []
    for entry in entries:
        numbers += (
            int(entry.kind is not EntryKind.VOID),
            entry.hold_nano,
            entry.cost_nano,
            entry.requests,
            entry.input_tokens,
            entry.output_tokens,
            entry.cached_tokens,
            len(entry.counters),
            len(entry.runs),
            len(entry.slots),
        )
        for counter in entry.counters:
            place = counters.get(counter.name)
            if place is None:
                place = counters[counter.name] = len(counters) + 1
                spans += (counter.ends_us, counter.expires_us)
            numbers.append(place)
        for run in entry.runs:
            place = logs.setdefault(run.name, len(logs) + 1)
            numbers += (place, run.generation, run.index, run.requests, run.tokens)
        for slot in entry.slots:
            numbers.append(slots.setdefault(slot, len(slots) + 1))
    prefix = counter_key(root, "")
    keys = [marks_key(root), hold_key(root), changed_key(root)]
    keys += [prefix + name for name in counters]
    keys += [log_key(root, name) for name in logs]
    keys += [slot_key(root, name) for name in slots]
    head = (time_us, entries[0].number, len(entries), len(counters), len(logs), len(slots), len(prefix))
    plan = doubles([*head, *spans, *numbers])
    return keys, [plan, producer, entries[-1].number, *[entry.attempt for entry in entries]]
