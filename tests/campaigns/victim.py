"""A gateway that a campaign breaks from inside: `python -m tests.campaigns.victim serve …`.

The environment, of tests only, says how: `VICTIM_DIES` is a point of the code and which pass of it kills the process;
`VICTIM_BROKEN` takes one rule of the settlement protocol away; `VICTIM_TAP` is a file that gets every decision of the
store; `VICTIM_SAVE_S` is how long a snapshot lies about before it is saved; `VICTIM_CLOCK` is a file that
moves all clocks while it runs. What
goes upstream always bears the id of its attempt, so that the provider's record knows which hold it was for. The
product has no switch for any of it.
"""

import asyncio
import mmap
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper.cli import main
from tollkeeper.domain.admission import Checks, Demand, Grant, Reply, Status
from tollkeeper.domain.ports import RootSnapshot
from tollkeeper.gateway import attempts, dispatch, stream
from tollkeeper.gateway.settle import Attempt
from tollkeeper.gateway.upstream import RequestHeaders
from tollkeeper.governance import Ledger, RedisStore, scripts
from tollkeeper.governance.outbox import Outbox, Segment
from tollkeeper.storage import spend
from tollkeeper.storage.spend import StoredSpend

DEATHS: Final = (
    *("before its dispatch line", "dispatched", "mid-stream", "answered", "appended", "sent"),
    *("snapshot taken", "snapshot saved", "closing"),
)
"""Points at which a gateway may be killed, in the order of a request's life, then of its way into the database."""
AFTER_SENDING_S: Final = 0.002
CLOCK_BYTES: Final = 8


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """One decision of the store as the gateway heard it. `budgets`: (scope, budget, spent + held after it) of each
    budget; `refused`: (scope, limit, used, asked) if a budget refused."""

    attempt: str
    hold_nano: int
    budgets: tuple[tuple[str, int, int], ...]
    refused: tuple[str, int, int, int] | None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Deaths


def doomed(point: str, passes: int) -> None:
    """Kill this process at that pass of a point."""
    passed = count(1)

    def at(here: str, *, later_s: float = 0.0) -> None:
        if here == point and next(passed) == passes:
            if later_s:
                asyncio.get_running_loop().call_later(later_s, die)
            else:
                die()

    around(Outbox, "dispatch", before=lambda: at(DEATHS[0]), after=lambda: at("dispatched"))
    around(Attempt, "settle", before=lambda: at("answered"))
    around(RedisStore, "apply", before=lambda: at("appended"), after=lambda: at("sent", later_s=AFTER_SENDING_S))
    around(Ledger, "take_over", after=lambda: at("closing"))
    around_async(stream, "_next_chunk", after=lambda: at("mid-stream"))
    around_async(RedisStore, "snapshot", after=lambda: at("snapshot taken"))
    around_async(StoredSpend, "save_all", after=lambda: at("snapshot saved"))


def nothing() -> None:
    """At a point where nothing is asked for."""


def around(owner: Any, name: str, before: Callable[[], None] = nothing, after: Callable[[], None] = nothing) -> None:
    original = getattr(owner, name)

    def method(*args: Any, **named: Any) -> Any:
        before()
        result = original(*args, **named)
        after()
        return result

    setattr(owner, name, method)


def around_async(owner: Any, name: str, after: Callable[[], None]) -> None:
    original = getattr(owner, name)

    async def method(*args: Any, **named: Any) -> Any:
        result = await original(*args, **named)
        after()
        return result

    setattr(owner, name, method)


# What is taken away


def no_mark_check() -> None:
    """An entry changes the counters whatever number it has."""
    patched_script(
        "numbered.lua",
        "if entry <= mark then\n  return {0, mark, 0}\nend\nif entry ~= mark + 1 then\n  return {1, mark, 0}\nend\n",
        "",
    )


def seeding_adds() -> None:
    """Totals of the database are added to the counters that are there."""
    patched_script("seed.lua", "  redis.call('DEL', prefix .. name)\n", "")
    patched_script(
        "seed.lua",
        "  counter_make(prefix .. ARGV[at + 1], ARGV[at + 3] .. sync, tonumber(ARGV[at + 2]))\n",
        "  local new, old = {struct.unpack('<dddddd', ARGV[at + 3])}, redis.call('GET', prefix .. ARGV[at + 1])\n"
        "  local had = old and {struct.unpack('<dddddd', old)} or {0, 0, 0, 0, 0, 0}\n"
        "  for n = 1, 6 do\n    new[n] = new[n] + had[n]\n  end\n"
        "  local sum = struct.pack('<dddddd', new[1], 0, new[3], new[4], new[5], new[6])\n"
        "  counter_make(prefix .. ARGV[at + 1], sum .. sync, tonumber(ARGV[at + 2]))\n",
    )


def no_guard() -> None:
    """The database takes any snapshot, also an older one."""
    setattr(spend, "dominates", lambda newer, older: True)  # noqa: B010 - it is imported there


def two_transactions() -> None:
    """Marks are committed first, totals in a transaction of their own."""
    save_all = StoredSpend.save_all

    async def save_in_two(self: StoredSpend, snapshots: Sequence[RootSnapshot], now_us: int) -> set[str]:
        saved = await save_all(
            self, [RootSnapshot(each.root, each.marks, {}, fence=each.fence) for each in snapshots], now_us
        )
        await asyncio.sleep(save_s())
        return await save_all(self, [each for each in snapshots if each.root in saved], now_us)

    StoredSpend.save_all = save_in_two  # type: ignore[method-assign]


def no_outbox() -> None:
    """Nothing is written down before it is done."""
    Segment.write = lambda self, line: None  # type: ignore[method-assign]


BROKEN: Final[dict[str, Callable[[], None]]] = {
    "no mark check": no_mark_check,
    "seeding adds": seeding_adds,
    "no guard": no_guard,
    "two transactions": two_transactions,
    "no outbox": no_outbox,
}


def patched_script(file_name: str, old: str, new: str) -> None:
    """Replace a text in one file of a script, which must be in it."""
    assemble = scripts.assemble

    def patched(whole: str, read: Callable[[str], str]) -> str:
        def replaced(part: str) -> str:
            text = read(part)
            if part == file_name:
                assert old in text, f"{part} has changed: {old!r} is not in it"
                text = text.replace(old, new)
            return text

        return assemble(whole, replaced)

    setattr(scripts, "assemble", patched)  # noqa: B010 - a function of a module


# Clocks, names and ears


def save_s() -> float:
    return float(os.environ.get("VICTIM_SAVE_S", "0"))


def slow_saves() -> None:
    """A snapshot is old when it is saved, as those of a worker that was held up are."""
    save_all = StoredSpend.save_all

    async def late(self: StoredSpend, snapshots: Sequence[RootSnapshot], now_us: int) -> set[str]:
        await asyncio.sleep(save_s())
        return await save_all(self, snapshots, now_us)

    StoredSpend.save_all = late  # type: ignore[method-assign]


def shifted(path: str) -> None:
    """Another time, by so many µs as the file says at that instant: for the process, and in every script in place of
    the server's."""
    with Path(path).open("rb") as file:
        by_us = memoryview(mmap.mmap(file.fileno(), CLOCK_BYTES, access=mmap.ACCESS_READ)).cast("q")
    real_ns, real = time.time_ns, time.time
    time.time_ns = lambda: real_ns() + by_us[0] * 1000
    time.time = lambda: real() + by_us[0] / 1e6
    shown = property(lambda self: time.time_ns() // 1000, lambda self, value: None)
    RedisStore.time_us = shown  # type: ignore[assignment]


def attempts_named() -> None:
    """The provider is told the attempt's id in place of the request's: one request may have several."""
    latest = ContextVar[str]("latest")
    begin, headers = Attempt.__init__, dispatch.upstream_headers

    def begun(self: Attempt, grant: Grant, *rest: Any) -> None:
        begin(self, grant, *rest)
        latest.set(grant.demand.attempt)

    def named(*args: Any, request_id: str, **more: Any) -> RequestHeaders:
        return headers(*args, request_id=latest.get(), **more)

    setattr(Attempt, "__init__", begun)  # noqa: B010 - a method
    setattr(attempts, "upstream_headers", named)  # noqa: B010 - it is imported there


def tapped(path: str) -> None:
    """Write down each decision."""
    ear = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    encode = msgspec.json.Encoder().encode
    admit = RedisStore.admit

    async def heard(self: RedisStore, checks: Checks, demand: Demand) -> Reply:
        reply = await admit(self, checks, demand)
        if demand.attempt and reply.status in (Status.ADMITTED, Status.REFUSED):
            os.write(ear, encode(decision_of(checks, demand, reply)) + b"\n")
        return reply

    RedisStore.admit = heard  # type: ignore[method-assign]


def decision_of(checks: Checks, demand: Demand, reply: Reply) -> Decision:
    states = zip(checks.counters, reply.counters, strict=True)
    budgets = tuple([(c.scope, c.budget_nano, s.spent + s.held) for c, s in states if c.budget_nano is not None])
    refusal = reply.refusal
    refused = None if refusal is None else (refusal.scope, refusal.limit, refusal.used, refusal.asked)
    return Decision(demand.attempt, demand.hold_nano, budgets, refused)


if __name__ == "__main__":
    attempts_named()
    if dies := os.environ.get("VICTIM_DIES"):
        doomed(dies.rpartition(":")[0], int(dies.rpartition(":")[2]))
    if broken := os.environ.get("VICTIM_BROKEN"):
        BROKEN[broken]()
    if save_s() and broken != "two transactions":
        slow_saves()
    if tap := os.environ.get("VICTIM_TAP"):
        tapped(tap)
    if clock := os.environ.get("VICTIM_CLOCK"):
        shifted(clock)
    main()
