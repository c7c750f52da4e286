"""The Redis store: one Lua script call per step. Script texts and their contracts are in `scripts/`.

It sends, in order, and repeats only what is idempotent by id or certainly did not run. How the domain's values become
keys and arguments, redis_plan.py and redis_calls.py know; what replies and errors mean, redis_replies.py. What the
scripts decide is specified by their twin, domain/tree.py.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from time import monotonic, monotonic_ns
from typing import Any, Final

from hiredis import pack_command
from msgspec import structs

from tollkeeper.domain.admission import SLOT_LEASE_US, Checks, Demand, Reply
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import Dispatch, Entry, EntryKind, Used, is_buried, is_plain, used_from
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.periods import RETENTION_US
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.recovery import Gate, Looked, Ready
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance import redis_settings
from tollkeeper.governance.redis_calls import (
    entry_call,
    expiry_ms,
    packed_totals,
    push_call,
    reassert_call,
    seed_call,
    used_rows,
)
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.governance.redis_connection import ReplyError, Send
from tollkeeper.governance.redis_keys import (
    bucket_key,
    changed_key,
    charges_key,
    counter_key,
    hold_key,
    log_key,
    looked_key,
    marks_key,
    slot_key,
    unsaved_key,
    used_key,
)
from tollkeeper.governance.redis_mending import Mending
from tollkeeper.governance.redis_plan import Plan, doubles, settlements_call
from tollkeeper.governance.redis_replies import (
    COUNTER_BYTES,
    Settling,
    SettlingTogether,
    gate_of,
    held_of,
    marks_of,
    reply_of,
    snapshot_of,
    told_error,
    totals_of,
)
from tollkeeper.governance.scripts import SCRIPTS
from tollkeeper.governance.store import COUNTERS_PAGE, Done, Held, Memory, Names, SeedTotals, Snapshot
from tollkeeper.settings import StoreSettings

ANNOUNCED_KEY: Final = "recovering"
"""Sorted set of roots that wait for producers after a loss → when it is given up (s)."""
TURN_KEY: Final = "comparing"
"""Producer that compares all counters with the database, or has in this hour. What is left of the hour."""
ANNOUNCED_MAX: Final = 200
PLANS_MAX: Final = 10_000
TOGETHER_MAX: Final = 32
"""Entries applied in one step: a tenth of a millisecond, in which others wait."""
SCAN_KEYS: Final = 1_000
CLEAR_MAX: Final = 2_000
REMEMBER_MAX: Final = 500
"""Idempotency keys in one call: others wait for it, a millisecond or so."""
_RUN_ID: Final = re.compile(rb"run_id:(\w+)")


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
        self._mending = Mending(self._call, self._scan, self.held)

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
        reply = reply_of(checks, raw)
        return structs.replace(reply, unheard=True) if unheard else reply

    async def _admit_again(self, error: StoreUnavailable, plan: Plan, demand: Demand, until_s: float) -> Any:
        """As long as it may be asked again."""
        arguments = plan.arguments(self.time_us, demand)
        try:
            if plan.has_budget:
                return await self.client.run_again(error, "admit", plan.keys, arguments, until_s, with_life=True)
            return await self.client.run_again(error, "admit", plan.keys, (*arguments, ""), until_s)
        except ReplyError as last:
            raise told_error(last) from None

    async def _look(self, checks: Checks, demand: Demand) -> Reply:
        """The state alone; it holds nothing, so nobody need be waited for."""
        plan = self._plans.get(id(checks))
        if plan is None or plan.checks is not checks:
            plan = self._new_plan(checks)
        arguments = plan.arguments(self.time_us, demand)
        raw = await self._run("admit", plan.keys, *arguments, "", within_s=self._admission_s)
        if not self.time_us:
            self._learn_clock(raw[1])
        return reply_of(checks, raw)

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
                script, keys, arguments = entry_call(self.time_us, root, producer, entry)
                if entry.kind is EntryKind.USAGE:
                    arguments.append(self.client.life_of(keys[0]))
                packed = pack_command(("EVALSHA", self._digests[script], len(keys), *keys, *arguments))
            self.client.lead_of(marks_key(root)).post(Settling(entry, done), packed)
        except StoreUnavailable as error:
            done(error)

    def _apply_together(self, root: str, producer: str, brought: Sequence[tuple[Entry, Done]]) -> None:
        """All in one step. If the step finds anything in the way it does nothing, and each is sent alone, to be told
        what concerns it."""
        plan = self._plan_for(brought[0][0])
        packed = None if plan is None else plan.settlements(self.time_us, producer, brought)
        if packed is None:
            keys, arguments = settlements_call(self.time_us, root, producer, [entry for entry, _ in brought])
            packed = pack_command(("EVALSHA", self._digests["batch"], len(keys), *keys, *arguments))

        def each_alone() -> None:
            for entry, done in brought:
                self._apply_alone(root, producer, entry, done)

        try:
            self.client.lead_of(marks_key(root)).post(SettlingTogether(brought, each_alone), packed)
        except StoreUnavailable as error:
            for _, done in brought:
                done(error)

    async def marks(self, root: str) -> Mapping[str, int] | None:
        flat = await self._call("HGETALL", marks_key(root))
        return marks_of(flat)[1] if flat else None

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
        keys, arguments = push_call(self.time_us, root, push_id, pushes)
        return bool(await self._run("push", keys, *arguments))

    async def claim(self, root: str, slots: Mapping[str, Sequence[str]]) -> None:
        until = self.now_us() + SLOT_LEASE_US
        for slot, attempts in slots.items():
            pairs = [part for attempt in attempts for part in (until, attempt)]
            await self._call("ZADD", slot_key(root, slot), *pairs)
            await self._call("PEXPIRE", slot_key(root, slot), SLOT_LEASE_US // 1000)

    async def mend(self, root: str, names: Names) -> list[str]:
        return await self._mending.mend(root, names)

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
        life = "" if lost else self.client.life_of(marks_key(root))
        keys, arguments = seed_call(root, run, marks, totals, life=life, keys_follow=keys_follow)
        return bool(await self._run("seed", keys, *arguments))

    async def gate(self, root: str, run: str, grace_us: int, open_producers: Sequence[str]) -> Gate | None:
        key = marks_key(root)
        arguments = (self.client.life_of(key), run, doubles([self.time_us, grace_us]), *open_producers)
        raw = await self._run("gate", [key], *arguments)
        return gate_of(raw) if raw else None

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
        await self._run("restore", keys, live_ms, packed_totals(seed.totals))

    async def reassert(self, root: str, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
        for dispatch in dispatches:
            keys, arguments = reassert_call(root, producer, number, dispatch)
            if await self._run("reassert", keys, *arguments) < 0:
                return False
        return True

    async def used(self, root: str, digest: str) -> Used | None:
        raw = await self._call("GET", used_key(root, digest))
        known = used_from(raw.decode()) if raw else None
        return known if known is not None and known.until_us > self.now_us() else None

    async def remember(self, root: str, used: Mapping[str, Used]) -> None:
        rows = used_rows(used)
        for start in range(0, len(rows), REMEMBER_MAX):
            chunk = [part for row in rows[start : start + REMEMBER_MAX] for part in row]
            await self._run("remember", [unsaved_key(root)], used_key(root, ""), *chunk)

    async def looked_up(self, root: str, run: str, digest: str, known: Used | None) -> Looked:
        keys = [marks_key(root), looked_key(root), used_key(root, digest)]
        text, until_ms = ("", 0) if known is None else (known.text, expiry_ms(known))
        return Looked(await self._run("looked", keys, run, digest, text, until_ms))

    async def bring(
        self, root: str, run: str, bearer: str, used: Mapping[str, Used], *, lease_us: int, last: bool
    ) -> bool:
        rows = used_rows(used)
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
        return snapshot_of(root, raw) if raw else None

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
        return {name: totals_of(packed) for name, packed in pairs if packed and len(packed) >= COUNTER_BYTES}

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
        holds = [held_of(flat[i].decode(), flat[i + 1]) for i in range(0, len(flat), 2)]
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
            raise told_error(error) from None

    async def _call(self, command: str, key: str, *arguments: Any) -> Any:
        self._send_own()
        try:
            return await self.client.call(command, key, *arguments, key=key, idempotent=True)
        except ReplyError as error:
            raise told_error(error) from None


def _in_a_row(brought: Sequence[tuple[Entry, Done]]) -> bool:
    """Whether no number is missing or there twice: a step marks all numbers up to its last as applied."""
    first = brought[0][0].number
    return [entry.number for entry, _ in brought] == list(range(first, first + len(brought)))
