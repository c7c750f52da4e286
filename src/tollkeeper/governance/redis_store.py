"""The Redis store: one Lua script call per step. Script texts and their contracts are in `scripts/`.

It translates the domain's values into keys and arguments and back, and repeats only what is idempotent by id or
certainly did not run. What the scripts decide is specified by their twin, domain/tree.py.
"""

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from time import monotonic, monotonic_ns
from typing import Any, Final

from hiredis import pack_command
from msgspec import structs

from tollkeeper.domain.admission import (
    SLOT_LEASE_US,
    BucketState,
    Checks,
    CounterState,
    Demand,
    LimitKind,
    LogState,
    Refusal,
    Reply,
    Shadowed,
    Status,
)
from tollkeeper.domain.charges import QUARANTINED, Charge, charge_of, record_of
from tollkeeper.domain.entries import (
    RANKED,
    USED_KEEP_US,
    Applied,
    AppliedStatus,
    Dispatch,
    Entry,
    EntryKind,
    Used,
    is_buried,
    is_plain,
    used_from,
)
from tollkeeper.domain.errors import StoreDamaged, StoreUnavailable
from tollkeeper.domain.periods import RETENTION_US
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.domain.recovery import Gate, Looked, Ready
from tollkeeper.domain.tree import PUSH_REMEMBERED_US
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance import redis_settings
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.governance.redis_connection import ReplyError, Send
from tollkeeper.governance.redis_keys import (
    ROOT_SLOT,
    bucket_key,
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
from tollkeeper.governance.redis_plan import Plan, doubles
from tollkeeper.governance.scripts import SCRIPTS
from tollkeeper.governance.store import COUNTERS_PAGE, Done, Held, Memory, Names, SeedTotals, Snapshot
from tollkeeper.settings import StoreSettings

ANNOUNCED_KEY: Final = "recovering"
"""Sorted set of roots that wait for producers after a loss → when it is given up (s)."""
TURN_KEY: Final = "comparing"
"""Producer that compares all counters with the database, or has in this hour. What is left of the hour."""
ANNOUNCED_MAX: Final = 200
_RUN_ID: Final = re.compile(rb"run_id:(\w+)")
_NO_DECISION: Final = {-1: Status.LATE, -2: Status.COLD, -3: Status.RECOVERING, -4: Status.BURIED}
_OK, _DAMAGED = 0, 5
ADMITTED: Final = Status.ADMITTED
APPLIED: Final = AppliedStatus.OK
_DAMAGE: Final = re.compile(r"WRONGTYPE|(?<!@)user_script:\d+: (?!not enough memory)")
"""What only one root's content can cause: a key of another type, or an error of the script's own language on what it
read. Errors of commands (OOM, READONLY, a command that is not allowed …) come without the second."""
_HOLD: Final = re.compile(rb"(\d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n")
"""As scripts/holds.lua reads it: amount, producer, counters, slots."""
COUNTER_BYTES: Final = 48
LOG_BYTES, RUN_BYTES, BUCKET_BYTES = 96, 17, 48
MEND_KEYS_MAX: Final = 200
"""Keys that are looked at at a time."""
_STATUS: Final = {
    _OK: APPLIED,
    1: AppliedStatus.GAP,
    2: AppliedStatus.COLD,
    3: AppliedStatus.ABSENT,
    4: AppliedStatus.UNKNOWN,
}


class RedisStore:
    """Keeps `Store` on a client of its own: everything of a root goes out in order, on one connection.

    `time_us` is for tests: a fixed clock handed to the scripts instead of the server's.
    """

    def __init__(self, settings: StoreSettings, *, time_us: int = 0) -> None:
        redis_settings.read(**redis_settings.of_store(settings))  # refuses what cannot work, the pool's size too
        one = {"pool_size": 1, "min_idle_conns": 1}  # nothing here may be spread
        self.client = RedisClient(on_connect=self._on_connect, **redis_settings.of_store(settings) | one)
        self._digests = {name: self.client.know(name) for name in SCRIPTS}
        self.time_us = time_us
        self._admission_s = settings.admission_timeout_s
        self._offset_us = 0
        self._lives: set[str] = set()
        self._on_new_life: Callable[[], None] = lambda: None
        self._plans: dict[int, Plan] = {}  # by the identity of the checks
        self._plans_by_counters: dict[int, Plan] = {}  # and of what entries name of them
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gathered: dict[tuple[str, str], list[tuple[Entry, Done]]] = {}
        self._bringers: set[asyncio.Task[Any] | None] = set()

    def __repr__(self) -> str:
        return f"<RedisStore {self.client!r}>"

    async def start(self) -> None:
        await self.client.start()

    async def stop(self) -> None:
        await self.client.stop()

    async def ping(self) -> None:
        if not self.client.nodes:
            await self.client.call("PING")  # raises, and says why nothing is known of the cluster
        await asyncio.gather(*(node.send("PING") for node in self.client.nodes))

    def server(self, root: str) -> str:
        return self.client.server_of(marks_key(root))

    async def probe(self, server: str) -> None:
        health = await self.client.health()
        if not health.nodes:
            raise StoreUnavailable(health.reason, sent=False)
        for node in health.nodes:
            if node.address == server and node.failed:
                raise StoreUnavailable(f"{node.address} failed to {node.failed}: {node.reason}")

    def watch(self, on_new_life: Callable[[], None]) -> None:
        self._on_new_life = on_new_life

    def now_us(self) -> int:
        if self.time_us:
            return self.time_us
        return monotonic_ns() // 1000 + self._offset_us

    async def _on_connect(self, send: Send) -> str:
        (seconds, micros), about = await asyncio.gather(send("TIME"), send("INFO", "server"))
        self._learn_clock(int(seconds) * 1_000_000 + int(micros))
        found = _RUN_ID.search(about)
        if found is None:
            raise StoreUnavailable("the server does not tell its run_id", sent=False)
        life = found[1].decode()
        if life not in self._lives:
            self._lives.add(life)
            asyncio.get_running_loop().call_soon(self._on_new_life)
        return life

    def _learn_clock(self, server_us: int) -> None:
        self._offset_us = server_us - monotonic_ns() // 1000

    # Admission

    async def admit(self, checks: Checks, demand: Demand) -> Reply:
        if not demand.attempt:
            return await self._look(checks, demand)
        if self._gathered:
            self._send_own()
        plan, begun_s, unheard = self._plans.get(id(checks)), monotonic(), False
        if plan is None or plan.checks is not checks:
            plan = self._new_plan(checks)
        try:
            lead = self.client.lead_of(plan.keys[0])
            raw = await lead.write_packed(plan.admission(self.time_us, demand, lead.life if plan.has_budget else ""))
        except StoreUnavailable as error:
            misses = self.client.misses
            raw = await self._admit_again(error, plan, demand, begun_s + self._admission_s)
            unheard = self.client.misses != misses
        if not self.time_us:
            self._offset_us = raw[1] - monotonic_ns() // 1000
        reply = _reply(checks, raw)
        return structs.replace(reply, unheard=True) if unheard else reply

    async def _admit_again(self, error: StoreUnavailable, plan: Plan, demand: Demand, until_s: float) -> Any:
        """As long as it may be asked again."""
        arguments = plan.arguments(self.time_us, demand)
        try:
            if plan.has_budget:
                return await self.client.run_again(error, "admit", plan.keys, arguments, until_s, with_life=True)
            return await self.client.run_again(error, "admit", plan.keys, (*arguments, ""), until_s)
        except ReplyError as last:
            raise _told(last) from None

    async def _look(self, checks: Checks, demand: Demand) -> Reply:
        """The state alone; it holds nothing, so nobody need be waited for."""
        plan = self._plans.get(id(checks))
        if plan is None or plan.checks is not checks:
            plan = self._new_plan(checks)
        arguments = plan.arguments(self.time_us, demand)
        raw = await self._run("admit", plan.keys, *arguments, "", within_s=self._admission_s)
        if not self.time_us:
            self._learn_clock(raw[1])
        return _reply(checks, raw)

    def _new_plan(self, checks: Checks) -> Plan:
        """The part of the calls that is the same for every request of a principal."""
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
            self._plans_by_counters.clear()
        plan = Plan(checks, self._digests["admit"], self._digests["apply"], self._digests["batch"])
        self._plans[id(checks)] = self._plans_by_counters[id(checks.counter_refs)] = plan
        return plan

    def _plan_for(self, entry: Entry) -> Plan | None:
        """That of the checks which the entry's attempt was admitted by, if they are known."""
        plan = self._plans_by_counters.get(id(entry.counters))
        return plan if plan is not None and plan.checks.counter_refs is entry.counters else None

    # Settlement

    def apply(self, root: str, producer: str, entry: Entry, done: Done) -> None:
        """Plain entries leave at the end of the event loop's turn, those of one producer together: what they share
        Redis reads and writes once. For the task that brings one it is as if it had left at once: see `_send_own`."""
        if not is_plain(entry):
            self._send_gathered()
            self._apply_alone(root, producer, entry, done)
            return
        if not self._gathered:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._send_gathered)
        brought = self._gathered.get((root, producer))
        if brought is None:
            brought = self._gathered[root, producer] = []
        brought.append((entry, done))
        self._bringers.add(asyncio.current_task(self._loop))

    def _send_own(self) -> None:
        """Before anything else is asked: what the running task brought in this turn goes out first."""
        if self._gathered and asyncio.current_task(self._loop) in self._bringers:
            self._send_gathered()

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        self._bringers.clear()
        for (root, producer), brought in gathered.items():
            for start in range(0, len(brought), TOGETHER_MAX):
                part = brought[start : start + TOGETHER_MAX]
                if len(part) > 1 and _in_a_row(part):
                    self._apply_together(root, producer, part)
                else:
                    for entry, done in part:
                        self._apply_alone(root, producer, entry, done)

    def _apply_alone(self, root: str, producer: str, entry: Entry, done: Done) -> None:
        plan = self._plan_for(entry)
        packed = None if plan is None else plan.settlement(self.time_us, producer, entry)
        try:
            if packed is None:
                script, keys, arguments = self._apply_call(root, producer, entry)
                packed = pack_command(("EVALSHA", self._digests[script], len(keys), *keys, *arguments))
            self.client.lead_of(marks_key(root)).post(_Settling(entry, done), packed)
        except StoreUnavailable as error:
            done(error)

    def _apply_together(self, root: str, producer: str, brought: Sequence[tuple[Entry, Done]]) -> None:
        """All in one step. If the step finds anything in the way it does nothing, and each is sent alone, to be told
        what concerns it."""
        plan = self._plan_for(brought[0][0])
        packed = None if plan is None else plan.settlements(self.time_us, producer, brought)
        if packed is None:
            keys, arguments = self._batch_call(root, producer, [entry for entry, _ in brought])
            packed = pack_command(("EVALSHA", self._digests["batch"], len(keys), *keys, *arguments))

        def each_alone() -> None:
            for entry, done in brought:
                self._apply_alone(root, producer, entry, done)

        try:
            self.client.lead_of(marks_key(root)).post(_SettlingTogether(brought, each_alone), packed)
        except StoreUnavailable as error:
            for _, done in brought:
                done(error)

    def _apply_call(self, root: str, producer: str, entry: Entry) -> tuple[str, list[str], list[Any]]:
        keys = [marks_key(root), hold_key(root)]
        if entry.kind is EntryKind.BURY or entry.kind is EntryKind.CLOSE:
            prefixes = (counter_key(root, ""), slot_key(root, "") + ":", slot_key(root, ""))
            release = int(entry.kind is EntryKind.CLOSE)
            return "bury", keys, [producer, entry.number, entry.dead, release, *prefixes]
        if entry.kind is EntryKind.USAGE:
            return "once", *self._use_call(root, producer, entry)
        keys.append(changed_key(root))
        if entry.kind is EntryKind.QUARANTINE:
            record = (QUARANTINED + entry.attempt, charge_of(entry).text(), counter_key(root, ""))
            return "quarantine", [*keys, charges_key(root)], [producer, entry.number, entry.attempt, *record]
        if entry.kind in RANKED:
            return self._charge_call(root, producer, entry, keys)
        counters, runs, buckets, slots = entry.counters, entry.runs, entry.buckets, entry.slots
        prefix = counter_key(root, "")
        numbers: list[int] = [
            self.time_us,
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
        return "apply", keys, [doubles(numbers), producer, entry.attempt, entry.number]

    def _batch_call(self, root: str, producer: str, entries: Sequence[Entry]) -> tuple[list[str], list[Any]]:
        """Keys and arguments of `batch`, which name once what the entries share."""
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
        head = (self.time_us, entries[0].number, len(entries), len(counters), len(logs), len(slots), len(prefix))
        plan = doubles([*head, *spans, *numbers])
        return keys, [plan, producer, entries[-1].number, *[entry.attempt for entry in entries]]

    def _use_call(self, root: str, producer: str, entry: Entry) -> tuple[list[str], list[Any]]:
        keys = [marks_key(root), changed_key(root), unsaved_key(root), used_key(root, entry.attempt)]
        keys += [*(counter_key(root, c.name) for c in entry.counters), looked_key(root)]
        numbers: list[int] = [self.time_us, entry.number, entry.cost_nano, entry.requests, USED_KEEP_US]
        numbers += (int(entry.told), len(entry.counters), len(entry.origins))
        for counter in entry.counters:
            numbers += (counter.ends_us, counter.expires_us)
        numbers += [origin.number for origin in entry.origins]
        origins = [origin.producer for origin in entry.origins]
        named = [producer, entry.attempt, entry.number, counter_key(root, "")]
        return keys, [doubles(numbers), *named, *origins, self.client.life_of(keys[0])]

    def _charge_call(
        self, root: str, producer: str, entry: Entry, keys: list[str]
    ) -> tuple[str, list[str], list[Any]]:
        keys.append(charges_key(root))
        keys += [counter_key(root, c.name) for c in entry.counters]
        keys += [slot_key(root, s) for s in entry.slots]
        numbers: list[int] = [
            self.time_us,
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
        return "charge", keys, [doubles(numbers), producer, entry.attempt, entry.number, record, prefix, *producers]

    async def mend(self, root: str, names: Names) -> list[str]:
        tree = [f(root) for f in (marks_key, hold_key, changed_key, unsaved_key, charges_key, looked_key)]
        lost = [key for key in tree if await self._type(key) not in ("none", "hash")]
        counters = {counter_key(root, name) for name in names.counters}
        if hold_key(root) in lost or changed_key(root) in lost:  # nobody knows any more which counters are unsaved
            counters |= {key async for key in self._counters(root)}
            money = [*lost, *sorted(counters)]
        else:
            for name in await self._call("HKEYS", changed_key(root)):
                counters |= {counter_key(root, name.decode())} if name[:1] != b"!" else set()
            for held in await self.held(root):
                counters |= {counter_key(root, name) for name in held.counters}
            money = lost + await self._damaged_counters(sorted(counters))
        used = [used_key(root, digest) for digest in names.used]
        money += [key for key in used if not await self._is_string(key, 1)]
        limits = [key for name in names.logs if not await self._is_log(key := log_key(root, name))]
        limits += [
            k for name in names.buckets if not await self._is_string(k := bucket_key(root, name), BUCKET_BYTES)
        ]
        limits += [k for name in names.slots if await self._type(k := slot_key(root, name)) not in ("none", "zset")]
        limits += [k for k in (pushed_key(root),) if await self._type(k) not in ("none", "hash")]
        gone = money + limits
        if gone:  # in one step, and the marks with them: no memory may pass for whole that is not
            await self._call("DEL", *dict.fromkeys([*money, *limits, *([marks_key(root)] if money else [])]))
        return gone

    async def _damaged_counters(self, keys: list[str]) -> list[str]:
        damaged = []
        for start in range(0, len(keys), MEND_KEYS_MAX):
            some = keys[start : start + MEND_KEYS_MAX]
            whole = await asyncio.gather(*(self._is_string(key, COUNTER_BYTES) for key in some))
            damaged += [key for key, good in zip(some, whole, strict=True) if not good]
        return damaged

    async def _type(self, key: str) -> str:
        found = await self._call("TYPE", key)
        return found.decode() if isinstance(found, bytes) else str(found)

    async def _is_string(self, key: str, least: int) -> bool:
        kind = await self._type(key)
        return kind == "none" or (kind == "string" and int(await self._call("STRLEN", key)) >= least)

    async def _is_log(self, key: str) -> bool:
        if not await self._is_string(key, LOG_BYTES):
            return False
        length = int(await self._call("STRLEN", key))
        return length == 0 or (length - LOG_BYTES) % RUN_BYTES == 0

    async def _counters(self, root: str) -> AsyncIterator[str]:
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", counter_key(root, "")) + "*"
        async for key in self._scan(pattern):
            yield key

    async def marks(self, root: str) -> Mapping[str, int] | None:
        flat = await self._call("HGETALL", marks_key(root))
        return _marks(flat)[1] if flat else None

    async def reset(self, root: str, logs: Sequence[str], slots: Sequence[str], buckets: Sequence[str] = ()) -> None:
        keys = [log_key(root, name) for name in logs] + [slot_key(root, name) for name in slots]
        keys += [bucket_key(root, name) for name in buckets]
        if keys:
            await self._run("reset", keys, len(logs))

    async def renew(self, leases: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        until = self.now_us() + SLOT_LEASE_US
        for root, attempts in leases.items():
            by_slot: dict[str, list[str]] = {}
            for attempt, slots in attempts.items():
                for slot in slots:
                    by_slot.setdefault(slot, []).append(attempt)
            for slot, members in by_slot.items():
                pairs = [part for member in members for part in (until, member)]
                await self._call("ZADD", slot_key(root, slot), "XX", *pairs)
                await self._call("PEXPIRE", slot_key(root, slot), SLOT_LEASE_US // 1000)

    async def push(self, root: str, push_id: str, pushes: Sequence[LogPush]) -> bool:
        numbers: list[int] = [self.time_us]
        for push in pushes:
            numbers += (push.window_us, push.tick_us, push.generation, push.known_us)
            numbers += (push.known_requests, push.known_tokens, len(push.runs))
            for run in push.runs:
                numbers += run
        keys = [pushed_key(root), *(log_key(root, push.name) for push in pushes)]
        return bool(await self._run("push", keys, doubles(numbers), push_id, PUSH_REMEMBERED_US // 1000))

    async def claim(self, root: str, slots: Mapping[str, Sequence[str]]) -> None:
        until = self.now_us() + SLOT_LEASE_US
        for slot, attempts in slots.items():
            pairs = [part for attempt in attempts for part in (until, attempt)]
            await self._call("ZADD", slot_key(root, slot), *pairs)
            await self._call("PEXPIRE", slot_key(root, slot), SLOT_LEASE_US // 1000)

    # The way from and to the database

    async def seed(
        self,
        root: str,
        run: str,
        marks: Mapping[str, int],
        totals: Mapping[str, SeedTotals],
        *,
        lost: bool,
        keys_follow: bool = False,
    ) -> bool:
        server = "" if lost else self.client.life_of(marks_key(root))
        arguments: list[Any] = [run, counter_key(root, ""), len(marks), len(totals), used_key(root, ""), server]
        arguments.append("1" if keys_follow else "")
        for producer, number in marks.items():
            arguments += (producer, number)
        for name, seed in totals.items():
            arguments += (name, seed.expires_us, _packed(seed.totals))
        named = (marks_key, hold_key, changed_key, unsaved_key, charges_key, looked_key)
        return bool(await self._run("seed", [key(root) for key in named], *arguments))

    async def gate(self, root: str, run: str, grace_us: int, open_producers: Sequence[str]) -> Gate | None:
        key = marks_key(root)
        arguments = (self.client.life_of(key), run, doubles([self.time_us, grace_us]), *open_producers)
        raw = await self._run("gate", [key], *arguments)
        if not raw:
            return None
        waits = raw[2].decode()
        return Gate(raw[0].decode(), int(raw[1]), tuple(waits.split(",")) if waits else ())

    async def ready(self, root: str, run: str, producer: str) -> Ready:
        return Ready(await self._run("ready", [marks_key(root)], run, producer, doubles([self.time_us])))

    async def announce(self, root: str, seconds: int) -> None:
        await self._call("ZADD", ANNOUNCED_KEY, self.now_us() // 1_000_000 + seconds, root)
        await self._call("EXPIRE", ANNOUNCED_KEY, seconds)

    async def announced(self) -> list[str]:
        now_s = self.now_us() // 1_000_000
        found = await self._call("ZRANGE", ANNOUNCED_KEY, now_s, "+inf", "BYSCORE", "LIMIT", 0, ANNOUNCED_MAX)
        return [root.decode() for root in found]

    async def unannounce(self, root: str) -> None:
        await self._call("ZREM", ANNOUNCED_KEY, root)

    async def restore(self, root: str, name: str, seed: SeedTotals) -> None:
        # A late entry is about to be charged to it: it must not leave again before the database has that.
        live_ms = max(RETENTION_US, seed.expires_us - self.now_us()) // 1000
        keys = [marks_key(root), counter_key(root, name)]
        await self._run("restore", keys, live_ms, _packed(seed.totals))

    async def reassert(self, root: str, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
        for dispatch in dispatches:
            keys = [marks_key(root), hold_key(root), *(counter_key(root, c.name) for c in dispatch.counters)]
            counters = ",".join([c.name for c in dispatch.counters])
            slots = ",".join([s or ROOT_SLOT for s in dispatch.slots])
            taken = [number for r in dispatch.runs for number in (r.generation, r.index)]
            for b in dispatch.buckets:
                taken += (b.generation, b.last_us, b.level, b.returned)
            runs = doubles(taken)
            hold = f"{dispatch.hold_nano}\n{producer}\n{counters}\n{slots}\n".encode() + runs
            expiries = [c.expires_us for c in dispatch.counters]
            told = (dispatch.attempt, dispatch.hold_nano, hold, producer, number)
            if await self._run("reassert", keys, *told, *expiries) < 0:
                return False
        return True

    async def used(self, root: str, digest: str) -> Used | None:
        raw = await self._call("GET", used_key(root, digest))
        known = used_from(raw.decode()) if raw else None
        return known if known is not None and known.until_us > self.now_us() else None

    async def remember(self, root: str, used: Mapping[str, Used]) -> None:
        rows = [(digest, known.text, -(-known.until_us // 1000)) for digest, known in used.items()]
        for start in range(0, len(rows), REMEMBER_MAX):
            chunk = [part for row in rows[start : start + REMEMBER_MAX] for part in row]
            await self._run("remember", [unsaved_key(root)], used_key(root, ""), *chunk)

    async def looked_up(self, root: str, run: str, digest: str, known: Used | None) -> Looked:
        keys = [marks_key(root), looked_key(root), used_key(root, digest)]
        text, until_ms = ("", 0) if known is None else (known.text, -(-known.until_us // 1000))
        return Looked(await self._run("looked", keys, run, digest, text, until_ms))

    async def bring(
        self, root: str, run: str, bearer: str, used: Mapping[str, Used], *, lease_us: int, last: bool
    ) -> bool:
        rows = [(digest, known.text, -(-known.until_us // 1000)) for digest, known in used.items()]
        keys, common = [marks_key(root), looked_key(root)], (run, bearer, doubles([self.time_us, lease_us]))
        for start in range(0, max(1, len(rows)), REMEMBER_MAX):
            chunk = [part for row in rows[start : start + REMEMBER_MAX] for part in row]
            ends = "1" if last and start + REMEMBER_MAX >= len(rows) else ""
            if not await self._run("bring", keys, *common, ends, used_key(root, ""), *chunk):
                return False
        return True

    async def snapshot(self, root: str) -> Snapshot | None:
        keys = [marks_key(root), changed_key(root), unsaved_key(root), charges_key(root)]
        raw = await self._run("snapshot", keys, counter_key(root, ""), with_life=True)
        if not raw:
            return None
        (run, marks), life, fence, flagged = _marks(raw[0]), raw[2].decode(), int(raw[3]), raw[4:]
        used = {raw[1][i].decode(): used_from(raw[1][i + 1].decode()) for i in range(0, len(raw[1]), 2)}
        records = {
            name[1:].decode(): record_of(text.decode()) for name, _, text in flagged if name[:1] == b"!" and text
        }
        totals = {name.decode(): _totals(packed) for name, _, packed in flagged if name[:1] != b"!" and packed}
        versions = {name.decode(): flag.decode() for name, flag, _ in flagged}
        return Snapshot(run, life, RootSnapshot(root, marks, totals, used, records, fence), versions)

    async def counters(self) -> AsyncIterator[Mapping[str, Sequence[str]]]:
        page: dict[str, list[str]] = {}
        count = 0
        async for key in self._scan("cost:{*"):
            root, _, name = key.removeprefix("cost:{").partition("}:")
            page.setdefault(root, []).append(name)
            count += 1
            if count == COUNTERS_PAGE:
                yield page
                page, count = {}, 0
        if page:
            yield page

    async def take_turn(self, who: str, seconds: int, *, first: bool) -> bool:
        taken = await self._call("SET", TURN_KEY, who, "EX", seconds, *(() if first else ("NX",)))
        return taken is not None

    async def keep_turn(self, seconds: int) -> None:
        await self._call("EXPIRE", TURN_KEY, seconds)

    async def totals(self, root: str, names: Sequence[str]) -> Mapping[str, SpendTotals]:
        found = await self._call("MGET", *[counter_key(root, name) for name in names])
        pairs = zip(names, found, strict=True)
        return {name: _totals(packed) for name, packed in pairs if packed and len(packed) >= COUNTER_BYTES}

    async def flag(self, root: str, names: Sequence[str]) -> int:
        keys = [marks_key(root), changed_key(root), *(counter_key(root, name) for name in names)]
        return int(await self._run("flag", keys, len(counter_key(root, ""))))

    async def fence(self, root: str, run: str, life: str, number: int) -> bool:
        return bool(await self._run("fence", [marks_key(root)], run, life, number, with_life=True))

    async def clear(
        self,
        root: str,
        run: str,
        life: str,
        versions: Mapping[str, str],
        used: Mapping[str, Used] | None = None,
    ) -> None:
        await self._clear(changed_key(root), root, (run, life), versions)
        if used:
            texts = {digest: known.text for digest, known in used.items()}
            await self._clear(unsaved_key(root), root, (run, life), texts)

    async def _clear(self, key: str, root: str, of: tuple[str, str], fields: Mapping[str, str]) -> None:
        pairs = [part for pair in fields.items() for part in pair]
        for start in range(0, len(pairs), CLEAR_MAX):
            chunk = pairs[start : start + CLEAR_MAX]
            await self._run("clear", [marks_key(root), key, charges_key(root)], *of, *chunk, with_life=True)

    async def memory(self, root: str) -> Memory | None:
        run, drops = await self._call("HMGET", marks_key(root), "run", ".drops")
        return None if run is None else Memory(run.decode(), int(drops or 0))

    async def recall(
        self, root: str, memory: Memory, attempt: str, charge: Charge, marks: Mapping[str, int]
    ) -> bool | None:
        known = [part for pair in marks.items() for part in pair]
        keys = [marks_key(root), charges_key(root)]
        answer = await self._run("recall", keys, memory.run, memory.drops, attempt, charge.text(), *known)
        return None if answer < 0 else bool(answer)

    async def held(self, root: str) -> list[Held]:
        flat = await self._call("HGETALL", hold_key(root))
        holds = [_held(flat[i].decode(), flat[i + 1]) for i in range(0, len(flat), 2)]
        return [hold for hold in holds if hold is not None]

    async def drop_marks(self, root: str, producers: Sequence[str]) -> None:
        marks = await self.marks(root) or {}
        buried = [producer for producer in producers if is_buried(marks.get(producer, 0))]
        if buried:
            await self._call("HDEL", marks_key(root), *buried)

    async def roots(self) -> AsyncIterator[str]:
        async for key in self._scan("marks:{*"):
            yield key[len("marks:{") : -1]

    async def _scan(self, pattern: str) -> AsyncIterator[str]:
        for node in self.client.nodes:
            cursor = b"0"
            while True:
                cursor, keys = await node.send("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
                for key in keys:
                    yield key.decode()
                if cursor == b"0":
                    break

    # Calls. Everything that comes through here may be repeated: it is idempotent.

    async def _run(
        self,
        script: str,
        keys: Sequence[str],
        *arguments: Any,
        with_life: bool = False,
        within_s: float | None = None,
    ) -> Any:
        self._send_own()
        try:
            return await self.client.run(
                script, keys, arguments, idempotent=True, with_life=with_life, within_s=within_s
            )
        except ReplyError as error:
            raise _told(error) from None

    async def _call(self, command: str, key: str, *arguments: Any) -> Any:
        self._send_own()
        try:
            return await self.client.call(command, key, *arguments, key=key, idempotent=True)
        except ReplyError as error:
            raise _told(error) from None


def _in_a_row(brought: Sequence[tuple[Entry, Done]]) -> bool:
    """Whether no number is missing or there twice: a step marks all numbers up to its last as applied."""
    first = brought[0][0].number
    return [entry.number for entry, _ in brought] == list(range(first, first + len(brought)))


PLANS_MAX: Final = 10_000
TOGETHER_MAX: Final = 32
"""Entries applied in one step: a tenth of a millisecond, in which others wait."""
SCAN_KEYS: Final = 1_000
CLEAR_MAX: Final = 2_000
REMEMBER_MAX: Final = 500
"""Idempotency keys in one call: others wait for it, a millisecond or so."""


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


_COUNTER: Final = struct.Struct("<6d")


def _packed(totals: SpendTotals) -> bytes:
    """A counter as scripts/counter.lua tells, with nothing held."""
    tokens = (totals.input_tokens, totals.output_tokens, totals.cached_tokens)
    return _COUNTER.pack(totals.cost_nano, 0, totals.requests, *tokens)


def _totals(packed: bytes) -> SpendTotals:
    """Of a counter, without what is held. Raises StoreDamaged."""
    if len(packed) < COUNTER_BYTES:
        raise StoreDamaged(f"a counter has {len(packed)} bytes")
    cost, _, *counts = map(int, _COUNTER.unpack_from(packed))
    return SpendTotals(cost, *counts)


def _held(attempt: str, raw: bytes) -> Held | None:
    """None: it is no hold, and the scripts do not take it for one."""
    found = _HOLD.match(raw)
    if found is None:
        return None
    amount, producer, counters, slots = found.groups()
    names = [tuple(n.decode() for n in names.split(b",") if n) for names in (counters, slots)]
    freed = tuple("" if name == ROOT_SLOT else name for name in names[1])
    return Held(attempt, producer.decode(), int(amount), names[0], freed)


def _marks(flat: Sequence[bytes]) -> tuple[str, dict[str, int]]:
    fields = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    run = fields.pop("run", b"").decode()
    fields.pop("sync", None)
    return run, {producer: int(number) for producer, number in fields.items() if producer[0] != "."}


def _reply(checks: Checks, raw: Sequence[int]) -> Reply:
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


def _told(error: ReplyError) -> StoreUnavailable:
    """What an error of Redis means."""
    return StoreDamaged(f"Redis: {error}") if _DAMAGE.search(str(error)) else error


class _Settling:
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
        error = _told(exception) if isinstance(exception, ReplyError) else _lost(exception)
        if isinstance(error, ReplyError):
            error = StoreUnavailable(f"Redis refused a settlement: {error}", sent=error.sent)
        self._tell(error)

    def _tell(self, answer: Applied | StoreUnavailable) -> None:
        asyncio.get_running_loop().call_soon(self._done, answer)


class _SettlingTogether:
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


def _lost(error: BaseException) -> StoreUnavailable:
    return error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))
