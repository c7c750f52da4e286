"""Mutation of the scripts: change one comparison, operator or number at a time; a test must notice.

`python -m tests.governance.mutants` tries every mutant, writes docs/mutants.md, and fails if one survives that is not
argued below to be equivalent. `test_mutants.py` tries a sample in each test run. What notices is `suite`: fixed
schedules of `script_trials.py`, and a few made by hand for what random ones seldom reach.
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

from tests.governance.lua_redis import LuaRedis
from tests.governance.script_trials import (
    admissions,
    buckets,
    play_admission,
    play_bucket,
    play_replies,
    play_window,
    windows,
)
from tests.governance.test_twin import START_US
from tollkeeper.governance import scripts
from tollkeeper.governance.scripts import SCRIPTS, source

WORKERS: Final = 2
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "mutants.md"

_TOKEN: Final = re.compile(
    r"(?P<comment>--[^\n]*)|(?P<string>'(?:[^'\\\n]|\\.)*')|(?P<name>[A-Za-z_][\w.]*)|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<operator><=|>=|==|~=|\.\.|[-+*/%<>])|(?P<other>\s+|.)",
    re.DOTALL,
)
_INCLUDE: Final = re.compile(r"^-- include: ([a-z]+\.lua)$", re.MULTILINE)
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
    def key(self) -> tuple[str, str, str, int, str]:
        """What `EQUIVALENT` names it by: no line numbers, which move."""
        return (self.file, self.text, self.old, self.nth, self.new)


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

    texts = {name: _INCLUDE.sub(lambda found: read(found[1]), read(f"{name}.lua")) for name in SCRIPTS}
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


RUSH: Final = (1_000, [("ask", 1_000, 1), ("wait", 10)] * 1_300 + [("ask", 100, 80), ("wait", 400), ("ask", 100, 99)])
"""A hundred runs in the window and 1,300 in all: chunks end, and what has left is cut off."""

FULL_AGAIN: Final = [("ask", 2, 1), ("wait", 999_999), ("usage", 3), ("wait", 1), ("usage", 3)]
"""A bucket is forgotten in the very µs in which it is full, whatever it is asked for next."""


@cache
def schedules() -> dict[str, list[Any]]:
    """By what plays them."""
    return {
        "window": [*fixed(windows(50), 150), RUSH],
        "bucket": [*fixed(buckets(50), 150), FULL_AGAIN],
        "admission": fixed(admissions(40), 300),
    }


_PLAYERS: Final[dict[str, Any]] = {"window": play_window, "bucket": play_bucket, "admission": play_admission}


def suite(sources: dict[str, str]) -> None:
    """Raises if scripts with these texts differ from their twins."""
    kinds = []
    if not sources or "allow" in sources:
        kinds.append("window")
    if not sources or "bucket" in sources:
        kinds.append("bucket")
    if not sources or set(sources) - {"allow", "bucket"}:
        kinds.append("admission")

    async def run() -> None:
        lua = LuaRedis(lambda: START_US, sources)
        for script in {"allow", "bucket"} & set(sources or SCRIPTS):
            await play_replies(lua, script)
        for kind in kinds:
            for example in schedules()[kind]:
                await _PLAYERS[kind](lua, example)

    asyncio.run(run())


def survives(mutant: Mutant) -> bool:
    """True if no test notices it."""
    try:
        suite(mutated(mutant))
    except Exception:
        return False
    return True


def main() -> int:
    """Try all; write the document; the number of unargued survivors."""
    only = set(sys.argv[1:])
    everything = [mutant for file in lua_files() if not only or file in only for mutant in mutants_of(file)]
    suite({})
    with ProcessPoolExecutor(WORKERS) as pool:
        survived = [m for m, lives in zip(everything, pool.map(survives, everything), strict=True) if lives]
    for mutant in survived:
        print(mutant)
    print(f"{len(everything)} mutants, {len(survived)} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
