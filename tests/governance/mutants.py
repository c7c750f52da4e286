"""Mutation of the scripts: change one comparison, operator or number at a time; a test must notice.

`python -m tests.governance.mutants` tries every mutant, writes docs/mutants.md, and fails if one survives that is not
argued to be equivalent in equivalent_mutants.py. `test_mutants.py` tries a sample in each test run. What notices is
`suite`: fixed schedules of `script_trials.py`, and a few made by hand for what random ones seldom reach.
"""

import asyncio
import re
import sys
from collections.abc import Iterable, Iterator
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
    play_window,
    windows,
)
from tests.governance.test_twin import START_US
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, Unit, Window
from tollkeeper.governance import scripts
from tollkeeper.governance.scripts import SCRIPTS, assemble, source

WORKERS: Final = 2
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "mutants.md"

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
        return f"{self.file}:{self.line} `{self.text}`: {self.old} ({self.nth}) → {self.new}"

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
def _text(file: str) -> str:
    return (files(scripts) / file).read_text()


def lua_files() -> list[str]:
    """Every script and every part of one."""
    return sorted(path.name for path in files(scripts).iterdir() if path.name.endswith(".lua"))


def mutants_of(file: str) -> Iterator[Mutant]:
    """All of one file; comments and strings are left alone."""
    text = _text(file)
    for found in _TOKEN.finditer(text):
        old = found.group()
        news: Iterable[str] = _OTHERS.get(old, ())
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

    texts = {name: assemble(f"{name}.lua", read) for name in SCRIPTS}
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
SLOW_RUSH: Final = (6_000_000, [("ask", 10_000, 1), ("wait", 5_454)] * 2_320)
"""More in the window than is cut off at once."""
EDGES: Final = [
    (_MINUTE, [("ask", 9, 1), ("wait", _MINUTE), ("ask", 9, 1), ("wait", _MINUTE + 1_000), ("usage",)]),
    (7_001, [("ask", 9, 1), ("back", 500_000), ("ask", 9, 1), ("wait", 100_000), ("usage",)]),
    (7_001, [("ask", 9, 1), ("wait", 12_000), ("back", 500_000), ("ask", 9, 1), ("wait", 100_000), ("usage",)]),
]
"""A key that is about to expire, and a clock set back under a short window."""
_REQUESTS: Final = Policy(windows=(Window(Unit.REQUESTS, 3),))
_TOKENS: Final = Policy(windows=(Window(Unit.TOKENS, 30), Window(Unit.REQUESTS, 4, 6_000_000)))
_ROOMY: Final = Policy(windows=(Window(Unit.TOKENS, 1_000),))
_GROWING: Final = [("admit", 9, 1), ("wait", 1_000_000)] * 3
_FAR: Final = [("admit", 3, 1), ("wait", 10_000)] * 18
CROWDED: Final = [
    (_ROOMY, None, None, [*_FAR, ("settle", 0, 4, 1), ("void", 0), ("settle", 0, 4, 9), ("state",)], False),
    (
        _TOKENS,
        None,
        None,
        [*_GROWING, ("admit", 15, 1), ("admit", 28, 1), ("wait", 57_500_000), ("admit", 29, 1)],
        True,
    ),
    (_REQUESTS, None, None, [("admit", 0, 0), ("flood", 0, 2**40 - 1), ("admit", 1, 0)], False),
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
had."""
_BUDGET: Final = Policy(budgets=(Budget(10**6, Period.MONTH), Budget(10**6, Period.TOTAL)), concurrency=9)
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
    )
]
"""Who is waited for after a loss, and when it is given up, to the µs."""
FULL_AGAIN: Final = [("ask", 2, 1), ("wait", 999_999), ("usage", 3), ("wait", 1), ("usage", 3)]
"""A bucket is forgotten in the very µs in which it is full, whatever it is asked for next."""


@cache
def schedules() -> dict[str, list[Any]]:
    """By what plays them."""
    return {
        "window": [*EDGES, *fixed(windows(50), 150), RUSH, SLOW_RUSH],
        "bucket": [*fixed(buckets(50), 150), FULL_AGAIN],
        "admission": [*CROWDED, *SUCCESSION, *WAITING, *fixed(admissions(40), 300)],
        "queue": fixed(queue_schedules, 200),
    }


_PLAYERS: Final[dict[str, Any]] = {
    "window": play_window,
    "bucket": play_bucket,
    "admission": play_admission,
    "queue": play_queue_lua,
}


def suite(sources: dict[str, str]) -> None:
    """Raises if scripts with these texts differ from their twins."""
    kinds = []
    if not sources or "allow" in sources:
        kinds.append("window")
    if not sources or "bucket" in sources:
        kinds.append("bucket")
    queue = {name for name in sources or SCRIPTS if name.startswith("log")}
    if not sources or set(sources) - {"allow", "bucket"} - queue:
        kinds.append("admission")
    if queue:
        kinds.append("queue")

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a callback's answer is missed anyway
        lua = CheckedLua(lambda: START_US, sources)
        for script in {"allow", "bucket"} & set(sources or SCRIPTS):
            await play_replies(lua, script)
        if "admission" in kinds:
            await play_limits_of_nothing(lua)
            await play_heavy_runs(lua)
            await play_damage(lua)
        for kind in kinds:
            for example in schedules()[kind]:
                await _PLAYERS[kind](lua, example)
        if queue:
            for play in (play_large_queue, play_edges):
                lua.begin(lambda: START_US)
                await play(LuaClient(lua))
                nothing_is_left_behind(lua)

    asyncio.run(run())


def survives(mutant: Mutant) -> bool:
    """True if no test notices it."""
    try:
        suite(mutated(mutant))
    except Exception:
        return False
    return True


def document() -> str:
    """What docs/mutants.md says once every mutant that is not argued for was noticed."""
    rows: list[tuple[str, int, int, int]] = []
    arguments = []
    for file in lua_files():
        of_file = list(mutants_of(file))
        same = [mutant for mutant in of_file if mutant.equivalent]
        rows.append((file, len(of_file), len(of_file) - len(same), len(same)))
        arguments += [f"- `{m.file}` `{m.text}`: `{m.old}` ({m.nth}) → `{m.new}`. {m.equivalent}" for m in same]
    rows.append(("all", sum(r[1] for r in rows), sum(r[2] for r in rows), sum(r[3] for r in rows)))
    table = [f"| {file} | {tried} | {noticed} | {same} |" for file, tried, noticed, same in rows]
    return "\n".join([_HEAD, *table, "", _EQUIVALENT_HEAD, "", *arguments, ""])


_HEAD: Final = """# Mutants of the scripts

Written by `python -m tests.governance.mutants`; a test holds it equal to the scripts.

Each comparison, arithmetic operator, rounding and number of every Lua script is changed, one at a time, and the
schedules of `tests/governance/script_trials.py` are played against the result under Lua 5.1. A mutant is *noticed* if
an answer or a stored field then differs from the Python twin or from a brute-force oracle. A comparison becomes its
neighbour and its opposite (`<`: `<=`, `>=`), `+` `-` and `*` `/` are exchanged, as are `min` `max` and `ceil`
`floor`, and a number becomes one more and one less.

| script | mutants | noticed | equivalent |
|---|---|---|---|"""
_EQUIVALENT_HEAD: Final = """## Equivalent mutants

These change nothing that anybody could see, and why."""


def main() -> int:
    """Try all, or those of the files named; write the document if every mutant was noticed or is argued for."""
    only = set(sys.argv[1:])
    everything = [mutant for file in lua_files() if not only or file in only for mutant in mutants_of(file)]
    suite({})
    with ProcessPoolExecutor(WORKERS) as pool:
        lived = pool.map(survives, everything, chunksize=4)
        survived = [mutant for mutant, lives in zip(everything, lived, strict=True) if lives]
    unargued = [mutant for mutant in survived if not mutant.equivalent]
    wrong = [mutant for mutant in everything if mutant.equivalent and mutant not in survived]
    for mutant in unargued:
        print(f"survived: {mutant}")
    for mutant in wrong:
        print(f"not equivalent after all: {mutant}")
    print(f"{len(everything)} mutants, {len(survived)} survived, {len(unargued)} of them without an argument")
    if not unargued and not wrong and not only:
        DOCUMENT.write_text(document())
    return 1 if unargued or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
