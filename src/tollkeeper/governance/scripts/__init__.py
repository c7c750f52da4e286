"""The Lua scripts, loaded from the files beside this one. `-- include: x.lua` is replaced by that file.

Every script begins with a comment that names its keys, arguments and replies. All keys of a call carry one hash
tag (the root's, or a log queue's), so each call is one slot on a cluster. Integers stay below 2^53.
"""

import re
from functools import cache
from importlib.resources import files
from typing import Final

SCRIPTS: Final = (
    *("admit", "apply", "close", "seed", "restore", "reassert", "snapshot", "clear", "reset"),
    *("push",),
    *("allow", "bucket"),
    *("logput", "lognote", "loglease", "logrenew", "logack", "logtake", "logclear", "logstats"),
)
_INCLUDE: Final = re.compile(r"^-- include: ([a-z]+\.lua)$", re.MULTILINE)


@cache
def source(name: str) -> str:
    """The text of a script, as Redis runs it."""
    folder = files(__package__)
    text = (folder / f"{name}.lua").read_text()
    return _INCLUDE.sub(lambda match: (folder / match[1]).read_text(), text)
