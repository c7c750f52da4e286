"""Mutants that change nothing that anybody could see, each with its argument. `mutants.py` reads this.

An argument names a line by how it begins, what was changed in it (old text, which occurrences, new texts; None: all),
and says why nothing follows. If a mutant named here is noticed after all, the campaign fails.
"""

from typing import Final

import msgspec


class Argument(msgspec.Struct, frozen=True):
    """Covers the mutants of a line that begins with `line`."""

    file: str
    line: str
    old: str
    why: str
    nth: tuple[int, ...] | None = None
    new: tuple[str, ...] | None = None


_LONGER = "It reads a byte or two more than are unpacked."
_FIRST_US = "No period ends and no key expires in the first microsecond of 1970; 0 alone stands for never."
_OVERWRITTEN = "The value is overwritten before it is read: "
_WAITLESS = (
    "The wait breaks ties between refusals of one severity, and here all of that severity come with the same one or "
    "after the one that must win; it is not in the reply."
)
_WALK = (
    "Whoever walks a log stops at a run that is there: the newest has not left, and the excess is at most the sum."
)

ARGUMENTS: Final = (
    Argument("admit.lua", "local worst, worst_wait, check", "1", "Every severity is above -2 as well as above -1."),
    Argument(
        "admit.lua", "local worst, worst_wait, check", "0", _OVERWRITTEN + "the first refusal sets all of them."
    ),
    Argument("admit.lua", "refuse(3, 0, i, at_unit, used, asked)", "0", _WAITLESS, new=("1",)),
    Argument("admit.lua", "refuse(1, 0, log_count + i, 0,", "0", _WAITLESS, nth=(1,)),
    Argument("admit.lua", "refuse(3, 0, place, 0, used, hold)", "0", _WAITLESS, nth=(1,), new=("(-1)",)),
    Argument("admit.lua", "refuse(2, 0, place, 0, used, hold)", "0", _WAITLESS, nth=(1,)),
    Argument("admit.lua", "for i = 1, #shadowed do", "1", "It appends nil first, which is nothing.", new=("(0)",)),
    Argument(
        "clear.lua",
        "for i = 2, #ARGV, 2 do",
        "2",
        "In between it takes a version for a counter and the next counter for its version: no counter is called like "
        "a version, `producer:number`.",
        nth=(2,),
        new=("(1)",),
    ),
    Argument("sliding.lua", "local CHUNK_RUNS = 64", "64", "How many runs are read at once changes no answer."),
    Argument("sliding.lua", "while index < log.tail do", "<", _WALK, new=("<=",)),
    Argument("sliding.lua", "local count = math.min(CHUNK_RUNS", "math.min", _WALK),
    Argument("sliding.lua", "local count = math.min(CHUNK_RUNS", "-", _WALK),
    Argument("sliding.lua", "local chunk = redis.call('GETRANGE'", "-", _LONGER, nth=(1,)),
    Argument("sliding.lua", "local chunk = redis.call('GETRANGE'", "1", _LONGER, new=("(0)",)),
    Argument(
        "sliding.lua",
        "if log.last - log.offset <= horizon then",
        "<=",
        "If just the newest run leaves now, the walk forgets the same runs one by one.",
        new=("<",),
    ),
    Argument(
        "sliding.lua",
        "if log.last + log.window > log.expires then",
        ">",
        "The key is prolonged though it would live long enough by a microsecond.",
        new=(">=",),
    ),
    Argument("apply.lua", "if not counters[i] and ends > 0", "0", _FIRST_US, new=("1",)),
    Argument("counter.lua", "if expires > 0 then", "0", _FIRST_US, new=("1",)),
    Argument("reset.lua", "local log = log_open(KEYS[i], 0, 0, 0)", "0", "They are for a log that is made."),
    Argument("sliding.lua", "if log.last > stamp then", ">", "Equal is set to equal.", new=(">=",)),
    Argument(
        "window.lua",
        "key = key, window = window, tick = tick, fresh = true",
        "0",
        "Any offset will do, since it is taken off each stamp and added again.",
        nth=(1,),
    ),
    Argument(
        "window.lua",
        "key = key, window = window, tick = tick, fresh = true",
        "0",
        _OVERWRITTEN + "the first write sets it.",
        nth=(2,),
    ),
    Argument(
        "window.lua",
        "requests = 0, tokens = 0, last = 0",
        "0",
        _OVERWRITTEN + "an empty log has no newest run.",
        nth=(3, 4, 5, 6, 7),
    ),
)
