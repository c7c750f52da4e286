"""The Lua scripts, loaded from the files beside this one. `-- include: x.lua` is replaced by that file.

Every script begins with a comment that names its keys, arguments and replies. All keys of a call carry one hash
tag (the root's, or a log queue's), so each call is one slot on a cluster. Integers travel as decimal text or as
doubles and stay below 2^53.

A line `local NAME = value` with a name in capitals is a constant: its value is put wherever the name stands. Lua 5.1
would make a variable of it, and one that several functions share takes longer than a command of Redis.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final

SCRIPTS: Final = (
    *(
        "admit",
        "apply",
        "batch",
        "charge",
        "quarantine",
        "bury",
        "seed",
        "restore",
        "reassert",
        "snapshot",
        "clear",
        "reset",
    ),
    *("push",),
    *("once", "remember", "looked", "bring"),
    *("gate", "ready", "recall", "fence", "flag"),
    *("allow", "bucket"),
    *("logput", "lognote", "loglease", "logrenew", "logack", "logtake", "logclear", "logstats"),
)
_INCLUDE: Final = re.compile(r"^-- include: ([a-z]+\.lua)$", re.MULTILINE)
_CONSTANTS: Final = re.compile(r"^local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) = (.+?)(?: -- .*)?$", re.MULTILINE)
_NAME: Final = re.compile(r"--.*|'(?:[^'\\\n]|\\.)*'|\b[A-Z][A-Z0-9_]*\b")
"""And what only looks like one, in comments and strings."""


@cache
def source(name: str) -> str:
    """The text of a script, as Redis runs it."""
    folder = files(__package__)
    return assemble(f"{name}.lua", lambda file: (folder / file).read_text())


def _with_parts(file: str, read: Callable[[str], str]) -> str:
    return _INCLUDE.sub(lambda found: _with_parts(found[1], read), read(file))


def assemble(file: str, read: Callable[[str], str]) -> str:
    """A script with its parts and constants put in."""
    text = _with_parts(file, read)
    constants: dict[str, str] = {}
    for found in _CONSTANTS.finditer(text):
        constants |= zip(found[1].split(", "), found[2].split(", "), strict=True)
    return _NAME.sub(lambda found: constants.get(found[0], found[0]), _CONSTANTS.sub("", text))
