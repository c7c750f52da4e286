"""What the store says to Redis: the domain's values as keys and arguments of the scripts.

Each function makes one call and sends nothing; the scripts' headers tell what each argument means. `time_us` is a
fixed clock for tests, 0 for the server's. Admissions and the ends of attempts are in redis_plan.py.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tollkeeper.domain.charges import QUARANTINED, charge_of
from tollkeeper.domain.entries import RANKED, USED_KEEP_US, Dispatch, Entry, EntryKind, Used
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.tree import PUSH_REMEMBERED_US
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance.redis_keys import (
    ROOT_SLOT,
    changed_key,
    charges_key,
    counter_key,
    hold_key,
    log_key,
    looked_key,
    marks_key,
    pushed_key,
    slot_key,
    unsaved_key,
    used_key,
)
from tollkeeper.governance.redis_plan import doubles, settlement_call
from tollkeeper.governance.store import SeedTotals

COUNTER: Final = struct.Struct("<6d")
"""As scripts/counter.lua tells, without the generation of its flag."""


# Entries


def entry_call(time_us: int, root: str, producer: str, entry: Entry) -> tuple[str, list[str], list[Any]]:
    """Script, keys and arguments that apply one entry. `once`, for usage, wants the server's life after them."""
    keys = [marks_key(root), hold_key(root)]
    if entry.kind is EntryKind.BURY or entry.kind is EntryKind.CLOSE:
        prefixes = (counter_key(root, ""), slot_key(root, "") + ":", slot_key(root, ""))
        release = int(entry.kind is EntryKind.CLOSE)
        return "bury", keys, [producer, entry.number, entry.dead, release, *prefixes]
    if entry.kind is EntryKind.USAGE:
        return "once", *_usage_call(time_us, root, producer, entry)
    keys.append(changed_key(root))
    if entry.kind is EntryKind.QUARANTINE:
        record = (QUARANTINED + entry.attempt, charge_of(entry).text(), counter_key(root, ""))
        return "quarantine", [*keys, charges_key(root)], [producer, entry.number, entry.attempt, *record]
    if entry.kind in RANKED:
        return "charge", *_charge_call(time_us, root, producer, entry, keys)
    return "apply", *settlement_call(time_us, root, producer, entry)


def _usage_call(time_us: int, root: str, producer: str, entry: Entry) -> tuple[list[str], list[Any]]:
    keys = [marks_key(root), changed_key(root), unsaved_key(root), used_key(root, entry.attempt)]
    keys += [*(counter_key(root, c.name) for c in entry.counters), looked_key(root)]
    numbers: list[int] = [time_us, entry.number, entry.cost_nano, entry.requests, USED_KEEP_US]
    numbers += (int(entry.told), len(entry.counters), len(entry.origins))
    for counter in entry.counters:
        numbers += (counter.ends_us, counter.expires_us)
    numbers += [origin.number for origin in entry.origins]
    origins = [origin.producer for origin in entry.origins]
    named = [producer, entry.attempt, entry.number, counter_key(root, "")]
    return keys, [doubles(numbers), *named, *origins]


def _charge_call(
    time_us: int, root: str, producer: str, entry: Entry, keys: list[str]
) -> tuple[list[str], list[Any]]:
    keys.append(charges_key(root))
    keys += [counter_key(root, c.name) for c in entry.counters]
    keys += [slot_key(root, s) for s in entry.slots]
    numbers: list[int] = [
        time_us,
        entry.number,
        entry.rank,
        entry.cost_nano,
        entry.requests,
        entry.input_tokens,
        entry.output_tokens,
        entry.cached_tokens,
        int(entry.fresh),
        len(entry.counters),
        len(entry.slots),
        len(entry.origins),
    ]
    for counter in entry.counters:
        numbers += (counter.ends_us, counter.expires_us)
    for origin in entry.origins:
        numbers += (origin.number, int(origin.held))
    record, prefix = charge_of(entry).text(), counter_key(root, "")
    producers = [origin.producer for origin in entry.origins]
    return keys, [doubles(numbers), producer, entry.attempt, entry.number, record, prefix, *producers]


# After a loss


def seed_call(
    root: str, run: str, marks: Mapping[str, int], totals: Mapping[str, SeedTotals], *, life: str, keys_follow: bool
) -> tuple[list[str], list[Any]]:
    """Keys and arguments of `seed`. `life` is the server's if nothing was lost, or empty."""
    arguments: list[Any] = [run, counter_key(root, ""), len(marks), len(totals), used_key(root, ""), life]
    arguments.append("1" if keys_follow else "")
    for producer, number in marks.items():
        arguments += (producer, number)
    for name, seed in totals.items():
        arguments += (name, seed.expires_us, packed_totals(seed.totals))
    named = (marks_key, hold_key, changed_key, unsaved_key, charges_key, looked_key)
    return [key(root) for key in named], arguments


def reassert_call(root: str, producer: str, number: int, dispatch: Dispatch) -> tuple[list[str], list[Any]]:
    """Keys and arguments of `reassert`: one attempt's hold, as `admit` has written it."""
    keys = [marks_key(root), hold_key(root), *(counter_key(root, c.name) for c in dispatch.counters)]
    counters = ",".join([c.name for c in dispatch.counters])
    slots = ",".join([s or ROOT_SLOT for s in dispatch.slots])
    taken = [number for r in dispatch.runs for number in (r.generation, r.index)]
    for b in dispatch.buckets:
        taken += (b.generation, b.last_us, b.level, b.returned)
    runs = doubles(taken)
    hold = f"{dispatch.hold_nano}\n{producer}\n{counters}\n{slots}\n".encode() + runs
    expiries = [c.expires_us for c in dispatch.counters]
    return keys, [dispatch.attempt, dispatch.hold_nano, hold, producer, number, *expiries]


def push_call(time_us: int, root: str, push_id: str, pushes: Sequence[LogPush]) -> tuple[list[str], list[Any]]:
    """Keys and arguments of `push`."""
    numbers: list[int] = [time_us]
    for push in pushes:
        numbers += (push.window_us, push.tick_us, push.generation, push.known_us)
        numbers += (push.known_requests, push.known_tokens, len(push.runs))
        for run in push.runs:
            numbers += run
    keys = [pushed_key(root), *(log_key(root, push.name) for push in pushes)]
    return keys, [doubles(numbers), push_id, PUSH_REMEMBERED_US // 1000]


def used_rows(used: Mapping[str, Used]) -> list[tuple[str, str, int]]:
    """Idempotency keys as `remember` and `bring` take them, three arguments each."""
    return [(digest, known.text, expiry_ms(known)) for digest, known in used.items()]


def expiry_ms(known: Used) -> int:
    """Until when Redis is to know it: not a moment less than told."""
    return -(-known.until_us // 1000)


def packed_totals(totals: SpendTotals) -> bytes:
    """A counter as scripts/counter.lua tells, with nothing held."""
    tokens = (totals.input_tokens, totals.output_tokens, totals.cached_tokens)
    return COUNTER.pack(totals.cost_nano, 0, totals.requests, *tokens)
