"""Mutation of the scripts: change one comparison, operator or number at a time; a test must notice.

`python -m tests.governance.mutants` tries every mutant of the scripts that changed since (with names of files: of
these; with `all`: of all), writes docs/mutants.json and docs/mutants.md, and fails if one survives that is not argued
to be equivalent in equivalent_mutants.py. `test_mutants.py` tries a sample in each test run. What notices are
`trials`: fixed schedules of `script_trials.py`, and a few made by hand for what random ones seldom reach.
"""

import asyncio
import hashlib
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, Phase, given, settings

from tests.governance.damage_trials import play_damage
from tests.governance.equivalent_mutants import ARGUMENTS
from tests.governance.log_trials import nothing_is_left_behind, play_edges, play_large_queue, play_queue_lua
from tests.governance.log_trials import schedules as queue_schedules
from tests.governance.lua_redis import LuaClient
from tests.governance.script_trials import (
    CheckedLua,
    admissions,
    buckets,
    play_admission,
    play_bucket,
    play_heavy_runs,
    play_limits_of_nothing,
    play_replies,
    play_step,
    play_window,
    togethers,
    windows,
)
from tests.governance.test_twin import START_US
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, TokenBucket, Unit, Window
from tollkeeper.governance import scripts
from tollkeeper.governance.scripts import SCRIPTS, assemble, source

WORKERS: Final = 2
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "mutants.md"
RESULTS: Final = DOCUMENT.with_suffix(".json")

_TOKEN: Final = re.compile(
    r"(?P<comment>--[^\n]*)|(?P<digits>'-?\d+')|(?P<string>'(?:[^'\\\n]|\\.)*')"
    r"|(?P<name>[A-Za-z_][\w.]*)|(?P<number>\d+(?:\.\d+)?)|(?P<operator><=|>=|==|~=|\.\.|[-+*/%<>])|(?P<other>\s+|.)",
    re.DOTALL,
)
_OTHERS: Final = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("~=",),
    "~=": ("==",),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "%": ("*",),
    "math.min": ("math.max",),
    "math.max": ("math.min",),
    "math.ceil": ("math.floor",),
    "math.floor": ("math.ceil",),
}
_KINDS: Final = {
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "~="), "comparison"),
    **dict.fromkeys(("+", "-", "*", "/", "%"), "arithmetic"),
    **dict.fromkeys(("math.min", "math.max", "math.ceil", "math.floor"), "rounding and bounds"),
}
KINDS: Final = ("comparison", "arithmetic", "rounding and bounds", "number")
_BEFORE_A_SIGN: Final = frozenset("=({,<>+-*/%") | {
    "return",
    "and",
    "or",
    "==",
    "~=",
    "<=",
    ">=",
    "..",
    "then",
    "not",
}
"""A minus after one of these is a sign: it is left out, since a plus would be no Lua."""


class Mutant(msgspec.Struct, frozen=True):
    """`file` with `old` at `offset` replaced by `new`."""

    file: str
    offset: int
    old: str
    new: str
    line: int
    text: str
    nth: int
    """Which `old` of its line it is, from 1."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} `{self.text}`: {self.old} ({self.nth}) → {self.new or 'nothing'}"

    @property
    def kind(self) -> str:
        """What was changed in it."""
        return _KINDS.get(self.old, "number")

    @property
    def draw(self) -> str:
        """Its place in a draw, which hangs on nothing else in the scripts."""
        text = f"{self.file}\n{self.text}\n{self.old}\n{self.nth}\n{self.new}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def equivalent(self) -> str | None:
        """Why nobody could notice it, if nobody could."""
        for argument in ARGUMENTS:
            if (
                (argument.file, argument.old) == (self.file, self.old)
                and self.text.startswith(argument.line)
                and (argument.nth is None or self.nth in argument.nth)
                and (argument.new is None or self.new in argument.new)
            ):
                return argument.why
        return None


@cache
def _within(file: str) -> tuple[str, ...]:
    """The scripts that a file is, or is a part of."""

    def contains(name: str) -> bool:
        found = []

        def read(part: str) -> str:
            found.append(part)
            return _text(part)

        assemble(f"{name}.lua", read)
        return file in found

    return tuple([name for name in SCRIPTS if contains(name)])


@cache
def _text(file: str) -> str:
    return (files(scripts) / file).read_text()


def lua_files() -> list[str]:
    """Every script and every part of one."""
    return sorted(path.name for path in files(scripts).iterdir() if path.name.endswith(".lua"))


def mutants_of(file: str) -> Iterator[Mutant]:
    """All of one file; comments and strings are left alone."""
    text = _text(file)
    last = ""
    for found in _TOKEN.finditer(text):
        old = found.group()
        news: Iterable[str] = _OTHERS.get(old, ())
        if old == "-" and last in _BEFORE_A_SIGN:
            news = ("",)
        if found.lastgroup != "comment" and not old.isspace():
            last = old
        if found.lastgroup == "number":
            news = (str(int(old) + 1), f"({int(old) - 1})")
        if found.lastgroup == "digits":
            value = int(old.strip("'"))
            news = (f"'{value + 1}'", f"'{value - 1}'")
        if found.lastgroup in ("comment", "string", "other"):
            continue
        start = text.rfind("\n", 0, found.start()) + 1
        whole = text[start : text.find("\n", found.start())]
        before = [t.group() for t in _TOKEN.finditer(text[start : found.start()])]
        line = text.count("\n", 0, start) + 1
        for new in news:
            yield Mutant(file, found.start(), old, new, line, whole.strip(), before.count(old) + 1)


def mutated(mutant: Mutant) -> dict[str, str]:
    """Name → text of every script that the mutant changes."""
    changed = _text(mutant.file)
    changed = changed[: mutant.offset] + mutant.new + changed[mutant.offset + len(mutant.old) :]

    def read(file: str) -> str:
        return changed if file == mutant.file else _text(file)

    texts = {name: assemble(f"{name}.lua", read) for name in _within(mutant.file)}
    return {name: text for name, text in texts.items() if text != source(name)}


# What must notice


def fixed(strategy: Any, number: int) -> list[Any]:
    """The first examples of a strategy: the same in every run."""
    found: list[Any] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


_MINUTE: Final = 60_000_000
RUSH: Final = (1_000, [("ask", 1_000, 1), ("wait", 10)] * 2_500 + [("ask", 100, 80), ("wait", 400), ("ask", 100, 99)])
"""A hundred runs in the window and 2,500 in all: chunks end, and what has left is cut off, twice."""
SLOW_RUSH: Final = (6_000_000, [("ask", 10_000, 1), ("wait", 5_454)] * 3_330)
"""More in the window than is cut off at once, twice."""
EDGES: Final = [
    (_MINUTE, [("ask", 9, 1), ("wait", _MINUTE), ("ask", 9, 1), ("wait", _MINUTE + 1_000), ("usage",)]),
    (7_001, [("ask", 9, 1), ("back", 500_000), ("ask", 9, 1), ("wait", 100_000), ("usage",)]),
    (7_001, [("ask", 9, 1), ("wait", 5_000), ("ask", 9, 1), ("wait", 2_542), ("ask", 9, 1), ("usage",)]),
    (7_001, [("ask", 9, 1), ("wait", 12_000), ("back", 500_000), ("ask", 9, 1), ("wait", 100_000), ("usage",)]),
]
"""A key that is about to expire, or lives on, to the ms; and a clock set back under a short window."""
_REQUESTS: Final = Policy(windows=(Window(Unit.REQUESTS, 3),))
_TOKENS: Final = Policy(windows=(Window(Unit.TOKENS, 30), Window(Unit.REQUESTS, 4, 6_000_000)))
_SHADOW: Final = Policy(windows=(Window(Unit.TOKENS, 5, shadow=True),))
_ALL_SHADOW: Final = Policy(
    windows=_SHADOW.windows, buckets=(TokenBucket(Unit.REQUESTS, 6_000, 40),), concurrency=1, concurrency_shadow=True
)
_ROOMY: Final = Policy(windows=(Window(Unit.TOKENS, 1_000),))
_BUDGET: Final = Policy(budgets=(Budget(10**6, Period.MONTH), Budget(10**6, Period.TOTAL)), concurrency=9)
_GROWING: Final = [("admit", 9, 1), ("wait", 1_000_000)] * 3
_FAR: Final = [("admit", 3, 1), ("wait", 10_000)] * 18
CROWDED: Final = [
    (_ROOMY, None, None, [*_FAR, ("settle", 0, 4, 1), ("void", 0), ("settle", 0, 4, 9), ("state",)], False),
    (_ROOMY, None, None, [("admit", 3, 1), ("wait", 60_010_000), *_FAR, ("settle", 1, 4, 1), ("state",)], False),
    (
        _TOKENS,
        None,
        None,
        [*_GROWING, ("admit", 15, 1), ("admit", 28, 1), ("wait", 57_500_000), ("admit", 29, 1)],
        True,
    ),
    (_REQUESTS, None, None, [("admit", 0, 0), ("flood", 0, 2**40 - 1), ("admit", 1, 0)], False),
    (_ROOMY, None, None, [*_FAR, ("admit", 3, 1), ("wait", 10_000), ("admit", 3, 1), ("settle", 2, 4, 1)], False),
    (_ROOMY, None, None, [("admit", 3, 1), ("wait", 60_010_000), ("admit", 3, 1), ("settle", 1, 4, 1)], False),
    (_ROOMY, None, None, [("admit", 3, 1), ("forged", 0, 1, 1), ("state",)], False),
    (_SHADOW, None, None, [("admit", 5, 0), ("admit", 1, 0)], False),
    (_ALL_SHADOW, None, None, [("admit", 1, 0), ("admit", 1, 0)], False),
    (_ROOMY, None, None, [("admit", 1, 0), ("wait", 60_010_000), ("admit", 1, 0), ("reset",), ("state",)], False),
    (_SHADOW, None, None, [("admit", 1, 0), ("flood", 0, 2**40 - 1), ("admit", 1, 0), ("state",)], False),
    (_TOKENS, None, None, [("admit", 0, 0), ("admit", 0, 0), ("push", 0, 1, 1, [])], True),
    (_TOKENS, None, None, [("admit", 20, 0), ("push", 0, 1, 3, [])], True),
    (_TOKENS, None, None, [("push", 0, 0, 0, [(START_US % 10_000, 1, 0)]), ("state",)], True),
    (_TOKENS, None, None, [("push", 0, 0, 0, [])], True),
    (_TOKENS, None, None, [("admit", 1, 9), ("settle", 0, 5, 5), ("rank", 5, 9, 4, True, (1, 1, False))], False),
    (
        _TOKENS,
        None,
        None,
        [("admit", 0, 0), ("wait", 3_000_000), ("reset",), ("push", 0, 0, 0, [(4_000_000, 1, 0)])],
        True,
    ),
    (
        _TOKENS,
        None,
        None,
        [("admit", 0, 0), ("wait", 3_000_000), ("admit", 0, 0), ("wait", 58_000_000), ("push", 0, 0, 0, [])],
        True,
    ),
    (_TOKENS, None, None, [("push", 0, 0, 0, [(START_US % 10_000 - 1, 1, 0)]), ("state",)], True),
    (_TOKENS, None, None, [("admit", 1, 9), ("admit", 2, 9), ("lose", 5), ("settle", 0, 4, 3), ("state",)], False),
    (_TOKENS, None, None, [("admit", 1, 9), ("rank", 0, 2, 4, True, (1, 9, True)), ("held",), ("state",)], False),
    (_TOKENS, None, None, [("ended", ends) for ends in (-1, 0, 1)], False),
    (_BUDGET, None, None, [("admit", 1, 9), ("flag", True), ("state",)], False),
    (_BUDGET, None, None, [("admit", 1, 9), *[("fence", number, False) for number in (3, 2, 5)]], False),
    *[(Policy(), None, None, [("use", 0, 1, 0), ("keep", us), ("use", 0, 2, 0)], False) for us in (-1, 0)],
    (
        Policy(),
        None,
        Policy(concurrency=3),
        [("admit", 1, 9), ("orphan", 1, 9), ("orphan", 1, 9), ("bury", 1)],
        False,
    ),
    (Policy(windows=(Window(Unit.TOKENS, 5),)), None, None, [("admit", 3, 1), ("admit", 5, 1)], False),
    (Policy(windows=(Window(Unit.REQUESTS, 1),)), None, None, [("admit", 0, 1), ("admit", 0, 1)], False),
    (
        Policy(concurrency=1, budgets=(Budget(5, Period.TOTAL),)),
        None,
        None,
        [("admit", 0, 5), ("admit", 0, 5)],
        False,
    ),
]
"""Refusals that end only when several runs have left; a run that is full; holds that are made again; weights that are
just as large as the limit; refusals without a wait at once; corrections of runs that are not among the newest; a log
that knows more of one unit and less of the other than was seen of it; a charge that was counted under the number it
had, or is held by a producer that is taken for dead; corrections in a period that has just ended; slots of the
root itself that a dead producer held; an idempotency key in the last µs of its day, and in the next; counters that
are flagged though they have only been held against; numbers of one memory that come in any order."""
_ORIGINS: Final = [None, *[(p, n, held) for p in (2, 9) for n in (0, 1, 2) for held in (False, True)]]
SUCCESSION = [
    (_BUDGET, None, None, [("admit", 1, 9), *before, ("rank", 0, rank, 5, fresh, origin), *after], False)
    for origin in _ORIGINS
    for fresh in (True, False)
    for rank, before, after in (
        (2, [("close", 9, False)], [("rank", 0, 1, 7, True, None), ("rank", 0, 3, 8, True, None)]),
        (0, [("close", 2, True)], [("snapshot", True), ("rank", 0, 4, 16, False, None), ("snapshot", True)]),
        (1, [("close", 2, False), ("drop", 2), ("drop", 9)], [("held",), ("reassert",), ("close", 1, True)]),
    )
]
SUCCESSION += [
    (_BUDGET, None, None, [("orphan", 1, 9), ("close", 2, False), ("rank", 3, 1, 9, True, (p, 0, True))], False)
    for p in (2, 9)
]
"""What is issued for a dead producer, by where it got and how it was held; truths that come before and after."""
WAITING: Final = [
    (_BUDGET, None, None, [("gate", 7, grace, True), ("admit", 1, 9), *moves], True)
    for grace in (0, 1, 700_000)
    for moves in (
        [("ready", 1, True), ("ready", 2, True), ("admit", 1, 9), ("ready", 3, True), ("admit", 1, 9)],
        [("ready", 2, True), ("wait", grace), ("ready", 1, True), ("admit", 1, 9), ("ready", 3, True)],
        [("ready", 3, True), ("gate", 2, 5, False), ("wait", 1), ("ready", 2, True), ("ready", 2, True)],
        [("gate", 5, 9, False), ("ready", 2, True), ("ready", 1, False), ("gate", 0, 9, False), ("admit", 1, 9)],
        [("gate", 9, 9, False), ("ready", 1, True), ("gate", 2, 9, False), ("gate", 8, 9, False)],
        [("use", 3, 1, 0), ("remember", 0, 1), ("use", 2, 5, 0, 0, True), ("use", 2, 5, 0, 0, True)],
        [
            ("gate", 9, 9, True),
            ("ready", 1, True),
            ("gate", 12, 9, False),
            ("gate", 3, 9, False),
            ("gate", 8, 9, True),
        ],
        [("gate", 8, 9, True), ("gate", 0, 9, False), ("gate", 8, 9, False), ("admit", 1, 9), ("gate", 3, 9, False)],
    )
]
"""Who is waited for after a loss, and when it is given up, to the µs."""
_BUCKET: Final = Policy(buckets=(TokenBucket(Unit.TOKENS, 60, 10),))
REFUNDS: Final = [
    (_BUCKET, None, None, moves, False)
    for moves in (
        [("admit", 5, 1), ("wait", 4_000_000), ("admit", 9, 1), ("settle", 0, 0, 0)],
        [("admit", 5, 1), ("admit", 3, 1), ("settle", 1, 0, 0), ("settle", 0, 0, 0)],
        [("admit", 5, 1), ("wait", 500_000), ("admit", 5, 1), ("void", 0)],
        [("admit", 3, 1), ("admit", 5, 1), ("void", 0), ("admit", 4, 1), ("void", 1)],
        [("admit", 5, 1), ("admit", 4, 1), ("void", 1), ("wait", 500_000), ("void", 0)],
        [("admit", 5, 1), ("wait", 1_000_000), ("refund", 0, 0), ("refund", 0, 1), ("refund", 0, -1)],
    )
]
"""Tokens that come back to a bucket into which something has flowed meanwhile, or which others have given back to."""
_BUSY: Final = Policy(buckets=(TokenBucket(Unit.REQUESTS, 6_000, 40),), concurrency=1)
_LONG, _SHORT = [Policy(windows=(Window(Unit.REQUESTS, 1, us),)) for us in (_MINUTE, 6_000_000)]
REFUSALS: Final = [
    (_BUCKET, None, None, [("admit", 5, 1), ("wait", 500_000), ("admit", 10, 1)], False),
    (_BUCKET, None, None, [("admit", 5, 1), ("wait", 500_000), ("admit", 0, 1)], False),
    (_BUSY, None, None, [("admit", 1, 1), ("admit", 1, 1)], False),
    *[(one, two, None, [("admit", 1, 1)] * 2, False) for one, two in ((_LONG, _SHORT), (_SHORT, _LONG))],
]
"""A bucket that refuses its whole burst, and one of which nothing is taken; which of several limits refuses, and
which of two waits is told."""
KNOWN: Final = [
    (_BUDGET, None, None, [("admit", 1, 9), *before, ("known", marks), ("state",)], False)
    for before in ([], [("close", 2, False)])
    for marks in (
        [("z", 0, False)],
        [("z", 1, False)],
        [("z", 0, False), ("p_2", 0, True)],
        [("p_2", 0, True), ("z", 1, False)],
        [("p_2", 0, False)],
        [("p_2", 1, True)],
    )
]
"""What a database knows of producers that this memory has buried, or has never heard of."""
YET_TO_COME: Final = [
    (
        _BUDGET,
        None,
        None,
        [("use", 1, 5, 0), ("remember", 0, 1), ("gate", 7, 1_000_000, True), ("use", 2, 9, 0, 0, True)],
        False,
    )
]
"""The first entry of a producer that this memory has never heard of, known by its idempotency key alone."""
FOLLOWING: Final = [
    (_BUDGET, None, None, [("looked", 0, 1, True), ("seed", 1, 4), *moves], server_time)
    for server_time in (False, True)
    for moves in (
        [("use", 0, 1, 0), ("looked", 0, 1, True), ("use", 0, 1, 0), ("looked", 0, 2, True), ("use", 0, 2, 0)],
        [("looked", 0, 0, True), ("use", 0, 1, 0), ("carry", 2, 1, 1, True), ("use", 0, 1, 0), ("use", 1, 1, 0)],
        [("looked", 0, 0, False), ("use", 0, 1, 0), ("carry", 1, 1, 1, False), ("carry", 2, 2, 1, False)],
        [("carry", 1, 1, 1, False), ("carry", 2, 1, 1, True), ("use", 0, 1, 0)],
        [("carry", 1, 1, 1, False), ("wait", 1), ("carry", 2, 2, 1, False), ("carry", 3, 1, 1, True)],
        [("carry", 1, 1, 0, False), ("carry", 2, 2, 0, False), ("carry", 3, 1, 1, True), ("looked", 1, 0, True)],
        [("carry", 3, 1, 1, True), ("carry", 2, 1, 1, True), ("use", 0, 1, 0), ("seed", 1, 4), ("use", 0, 1, 0)],
        [("looked", 3, 1, True), ("looked", 2, 0, True), ("seed", 1, 4), ("use", 3, 1, 0), ("use", 2, 1, 1)],
        [
            ("use", 3, 1, 1),
            ("use", 3, 1, -1),
            ("use", 3, 1, 0),
            ("looked", 3, 0, True),
            ("use", 3, 1, 0),
            ("lose", 4),
        ],
    )
]
"""Keys that follow a seed: used before and after they are looked up or brought, by whom, and how long others wait."""
BY_HAND: Final = [
    [("put", "gw-a", [b"", b"", b""], 0, False), ("clear", 1)],
    [("put", "gw-a", [b"xxxxx"], 0, False), *[("due", 6, size, 1_000) for size in range(20, 0, -1)]],
    [("put", "gw-a", [b"xxxxx"], 0, False), *[("due", 6, 90, 5), ("wait", 1)] * 7],
]
"""Of a chunk without a byte all is dropped at once; a lease is due at its very size, and in its very µs."""
FULL_AGAIN: Final = [("ask", 2, 1), ("wait", 999_999), ("usage", 3), ("wait", 1), ("usage", 3)]
"""A bucket is forgotten in the very µs in which it is full, whatever it is asked for next."""


class Trial(msgspec.Struct, frozen=True):
    """Something to play with the scripts, and what it is called."""

    name: str
    play: Callable[[CheckedLua], Awaitable[None]]


def _each(name: str, play: Callable[[CheckedLua, Any], Awaitable[None]], examples: Sequence[Any]) -> list[Trial]:
    def trial(number: int, example: Any) -> Trial:
        return Trial(f"{name} {number}", lambda lua: play(lua, example))

    return [trial(number, example) for number, example in enumerate(examples, 1)]


async def _large_queue(lua: CheckedLua) -> None:
    lua.begin(lambda: START_US)
    await play_large_queue(LuaClient(lua))
    nothing_is_left_behind(lua)


async def _queue_edges(lua: CheckedLua) -> None:
    lua.begin(lambda: START_US)
    await play_edges(LuaClient(lua))
    nothing_is_left_behind(lua)


@cache
def trials(kind: str) -> list[Trial]:
    """All of one kind: of the limiter's window, its bucket, admission and settlement, or log queues."""
    if kind == "window":
        played = [*EDGES, *fixed(windows(50), 150), RUSH, SLOW_RUSH]
        return [
            Trial("window replies", lambda lua: play_replies(lua, "allow")),
            *_each("window", play_window, played),
        ]
    if kind == "bucket":
        return [
            Trial("bucket replies", lambda lua: play_replies(lua, "bucket")),
            *_each("bucket", play_bucket, [*fixed(buckets(50), 150), FULL_AGAIN]),
        ]
    if kind == "admission":
        return [
            Trial("limits of nothing", play_limits_of_nothing),
            *_each("crowded", play_admission, CROWDED),
            *_each("succession", play_admission, SUCCESSION),
            *_each("waiting", play_admission, WAITING),
            *_each("refund", play_admission, REFUNDS),
            *_each("refusal", play_admission, REFUSALS),
            *_each("known", play_admission, KNOWN),
            *_each("yet to come", play_admission, YET_TO_COME),
            *_each("following", play_admission, FOLLOWING),
            Trial("step", play_step),
            *_each("together", play_admission, fixed(togethers(6), 100)),
            *_each("admission", play_admission, fixed(admissions(40), 300)),
            Trial("heavy runs", play_heavy_runs),
            Trial("damage", play_damage),
        ]
    return [
        *_each("queue by hand", play_queue_lua, BY_HAND),
        *_each("queue", play_queue_lua, fixed(queue_schedules, 200)),
        Trial("large queue", _large_queue),
        Trial("queue edges", _queue_edges),
    ]


def _kinds(scripts_changed: Iterable[str]) -> list[str]:
    """Of the trials that run any of these scripts."""
    names = set(scripts_changed)
    queue = {name for name in names if name.startswith("log")}
    kinds = {"window": names & {"allow"}, "bucket": names & {"bucket"}, "queue": queue}
    kinds["admission"] = names - {"allow", "bucket"} - queue
    return [kind for kind, played in kinds.items() if played]


def suite(kinds: Iterable[str] = ("window", "bucket", "admission", "queue")) -> None:
    """Raises if the scripts themselves differ from their twins."""

    async def run() -> None:
        lua = CheckedLua(lambda: START_US)
        for kind in kinds:
            for trial in trials(kind):
                await trial.play(lua)

    asyncio.run(run())


_lately: dict[str, int] = {}
"""When a trial last noticed a mutant: what noticed the last one often notices the next, so it is played first."""


def noticed_by(mutant: Mutant) -> str | None:
    """The trial that first notices it; None: it survives."""
    sources = mutated(mutant)
    lua = CheckedLua(lambda: START_US, sources)
    played = [trial for kind in _kinds(sources) for trial in trials(kind)]
    played.sort(key=lambda trial: -_lately.get(trial.name, 0))

    async def run() -> str | None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a callback's answer is missed anyway
        for trial in played:
            try:
                await trial.play(lua)
            except Exception:
                _lately[trial.name] = max(_lately.values(), default=0) + 1
                return trial.name
        return None

    return asyncio.run(run())


class Tried(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mutant of a script, as docs/mutants.json has it: noticed by a trial, or argued to be equivalent."""

    line: int
    old: str
    nth: int
    new: str
    kind: str
    noticed_by: str | None = None
    text: str = ""
    """Its line, and"""
    why: str = ""
    """the argument, of an equivalent one."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one script's mutants."""

    digest: str
    """The first digits of the SHA-256 of the file they were made of,"""
    within: str
    """and of all scripts it is part of."""
    mutants: list[Tried]


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]


def digests(file: str) -> tuple[str, str]:
    """Of the file as it is now, and of the scripts it is part of."""
    return _digest(_text(file)), _digest(*[source(name) for name in _within(file)])


def results() -> dict[str, Outcome]:
    """By file, as they were written last."""
    if not RESULTS.exists():
        return {}
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Outcome])


def write(outcomes: dict[str, Outcome]) -> None:
    """Both documents; a mutant a line, so that a change can be read."""
    text = msgspec.json.encode(dict(sorted(outcomes.items()))).decode()
    RESULTS.write_text(re.sub(r'(?<=[\[,])(?=\{"line")|(?<=[{,])(?="[a-z]+\.lua")', "\n", text) + "\n")
    DOCUMENT.write_text(document(outcomes))


def document(outcomes: dict[str, Outcome]) -> str:
    """What docs/mutants.md says of them."""
    rows, arguments, everything = [], [], list[Tried]()
    for file, outcome in sorted(outcomes.items()):
        rows.append(_row(file, f"`{outcome.digest}`", outcome.mutants))
        everything += outcome.mutants
        same = [m for m in outcome.mutants if m.noticed_by is None]
        arguments += [
            f"- {file}:{m.line} `{m.text}`: `{m.old}` ({m.nth}) → `{m.new or 'nothing'}`. {m.why}" for m in same
        ]
    rows.append(_row("all", "", everything))
    untried = [f"`{file}`" for file in lua_files() if file not in outcomes]
    left = (
        f"\nNot clean yet, or not tried to the end: {', '.join(untried)}; `make mutants` names what survives there.\n"
        if untried
        else ""
    )
    return "\n".join([_HEAD, *rows, left, _EQUIVALENT_HEAD, "", *arguments, ""])


def _row(file: str, digest: str, mutants: Sequence[Tried]) -> str:
    noticed = [m for m in mutants if m.noticed_by is not None]
    kinds = [f"{sum(m.kind == kind for m in noticed)}/{sum(m.kind == kind for m in mutants)}" for kind in KINDS]
    cells = [file, digest, *kinds, str(len(mutants)), str(len(noticed)), str(len(mutants) - len(noticed))]
    return f"| {' | '.join(cells)} |"


_HEAD: Final = f"""# Mutants of the scripts

Written by `make mutants`, which tries the scripts that have changed since; one mutant a line is in
[mutants.json](mutants.json), with the trial that first noticed it.

Each comparison, arithmetic operator, sign, rounding and number of a Lua script is changed, one at a time, and the
trials of `tests/governance/mutants.py` are played with the result under Lua 5.1 in one process: fixed random
schedules, and some made by hand for what random ones seldom reach. A mutant is *noticed* if an answer or a stored
field then differs from the Python twin or from a brute-force oracle. A comparison becomes its neighbour and its
opposite (`<`: `<=`, `>=`), `+` `-` and `*` `/` are exchanged, `%` becomes `*`, a sign is left out, `min` `max` and
`ceil` `floor` are exchanged, a number becomes one more and one less. Of the scripts in the table none survived but
those argued to be equivalent.

The digest is the beginning of the SHA-256 of the file whose mutants were tried (`sha256sum`): a script with another
one has changed since. Of each kind: noticed/tried.

| script | digest | {" | ".join(KINDS)} | mutants | noticed | equivalent |
|---|---|{"---|" * len(KINDS)}---|---|---|"""
_EQUIVALENT_HEAD: Final = """## Equivalent mutants

These change nothing that anybody could see, and why. A campaign fails if one is noticed after all."""


def try_all(files_named: Sequence[str], pool: ProcessPoolExecutor) -> Iterator[tuple[str, Outcome, list[str]]]:
    """File by file, and what is wrong with it: mutants that live, and arguments that do not hold."""
    for file in files_named:
        mutants = list(mutants_of(file))
        names = list(pool.map(noticed_by, mutants, chunksize=4))
        wrong = []
        for mutant, name in zip(mutants, names, strict=True):
            if name is None and not mutant.equivalent:
                wrong.append(f"survived: {mutant}")
            if name is not None and mutant.equivalent:
                wrong.append(f"not equivalent after all ({name}): {mutant}")
        tried = [_tried(mutant, name) for mutant, name in zip(mutants, names, strict=True)]
        yield file, Outcome(*digests(file), tried), wrong


def _tried(mutant: Mutant, name: str | None) -> Tried:
    text, why = ("", "") if name is not None else (mutant.text, mutant.equivalent or "")
    return Tried(mutant.line, mutant.old, mutant.nth, mutant.new, mutant.kind, name, text, why)


def main() -> int:
    """Try what is asked for; write the documents file by file; fail if anything is wrong."""
    outcomes = {file: outcome for file, outcome in results().items() if file in lua_files()}
    named = sys.argv[1:]
    if not named:
        named = [
            f for f in lua_files() if f not in outcomes or digests(f) != (outcomes[f].digest, outcomes[f].within)
        ]
    suite()
    failed = False
    with ProcessPoolExecutor(WORKERS) as pool:
        for file, outcome, wrong in try_all(lua_files() if named == ["all"] else named, pool):
            print(f"{file}: {len(outcome.mutants)} mutants", *wrong, sep="\n  ", flush=True)
            failed |= bool(wrong)
            if not wrong:  # others may have written theirs meanwhile
                write({f: o for f, o in results().items() if f in lua_files()} | {file: outcome})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
