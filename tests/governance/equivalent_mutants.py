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

_MADE_IN_VAIN = "Functions are made that nothing calls."
_NEW = "The number of a chunk need only be new."
_NO_HEAD = "An empty list has no head: there is nothing to look at either way."
_LAST_LIFE = (
    "Behind the last pair there is only the life: a name without a generation, which no flag equals; the last pair "
    "begins two before it."
)
_BEGINNING = "0 is the beginning, too."
_NO_SLOTS = "The key before the slot sets is of another type: its error is caught, as that of a broken slot set is."
_NO_PLACE = "Places begin at 1, so nothing is found at 0."
_NOTHING_LEASED = "Nothing leased is less than half of any bound."
_FEWER_CALLS = "Only the number of calls differs."
_NONE_REPEATED = "Of no repeated records nothing is subtracted."
_EMPTY_RANGE = "Texts begin after their lengths, so a range of no bytes ends before it begins, and is empty."
_UNLINKED_TWICE = "A key is named in two calls; the second finds it gone."
_ORDER = "Only the order of these counts."
_NO_HEAD = "An empty queue has no head."
_UNLIKE = "Numbers of chunks name their keys: no two are alike, and they grow."
_FLAGGED = (
    "A flag that is misread is set once more, to what it is: it is never read as the tree's, which is as long. Only "
    "the number of writes differs."
)

ARGUMENTS: Final = (
    Argument(
        "allow.lua",
        "if log[WRITES] > NOTHING then",
        ">",
        "What is written again is the same; where there is no log, an empty one is left, which answers like none.",
        new=(">=",),
    ),
    Argument("batch.lua", "for i = 1, log_count do", "1", _NO_PLACE, new=("(0)",)),
    Argument("batch.lua", "for i = 1, slot_count do", "1", _NO_PLACE, new=("(0)",)),
    Argument("apply.lua", "for i = 1, slot_count do", "1", _NO_SLOTS, new=("(0)",)),
    Argument("apply.lua", "if bucket_count > 0 then", ">", _MADE_IN_VAIN, new=(">=",)),
    Argument("apply.lua", "if bucket_count > 0 then", "0", _MADE_IN_VAIN, new=("(-1)",)),
    Argument("charge.lua", "for i = 1, slot_count do", "1", _NO_SLOTS, new=("(0)",)),
    Argument(
        "loglease.lua",
        "while q.count > 0 and taken < count",
        "<",
        "A lease that is full takes nothing of the next chunk, which ends it, too.",
        nth=(1,),
        new=("<=",),
    ),
    Argument("remember.lua", "local unsaved = redis.call('HLEN'", ">", _FEWER_CALLS, new=(">=",)),
    Argument("remember.lua", "local unsaved = redis.call('HLEN'", "0", _FEWER_CALLS, new=("(-1)",)),
    Argument("loglease.lua", "if q.leased > 0 and (q.leased * 2", ">", _NOTHING_LEASED, new=(">=",)),
    Argument("loglease.lua", "if q.leased > 0 and (q.leased * 2", "0", _NOTHING_LEASED, new=("(-1)",)),
    Argument("admit.lua", "local WAIT, BUSY, SPENT, NEVER", "0", _ORDER, new=("(-1)",)),
    Argument("admit.lua", "lapsed = lapsed or ended > 0", ">", _FEWER_CALLS, new=(">=",)),
    Argument("admit.lua", "lapsed = lapsed or ended > 0", "0", _FEWER_CALLS, new=("(-1)",)),
    Argument("admit.lua", "local WAIT, BUSY, SPENT, NEVER", "3", _ORDER, new=("4",)),
    Argument("admit.lua", "local raw, cost, held = call('GETRANGE'", "'15'", _LONGER, new=("'16'",)),
    Argument("sliding.lua", "local NOTHING, CHANGES, EVERYTHING", "0", _ORDER, new=("(-1)",)),
    Argument("sliding.lua", "local NOTHING, CHANGES, EVERYTHING", "2", _ORDER, new=("3",)),
    Argument(
        "sliding.lua",
        "return {key, window, stamp, 0, NOTHING, now",
        "0",
        "Any offset will do, since it is taken off each stamp and added again.",
        nth=(2,),
    ),
    Argument(
        "sliding.lua",
        "return {key, window, stamp, 0, NOTHING, now",
        "0",
        _OVERWRITTEN + "the first write sets `first`, and an empty log has no newest run.",
        nth=(3, 8, 9, 10, 11),
    ),
    Argument(
        "sliding.lua", "local log = {key, window, stamp, 0, NOTHING", "0", _OVERWRITTEN + "the next line sets it."
    ),
    Argument("snapshot.lua", "if #changed > 0 then", "0", "It has two elements for each counter.", new=("1",)),
    Argument("admit.lua", "refusals[#refusals + 1] = {NEVER, 0,", "0", _WAITLESS, new=("1",)),
    Argument("admit.lua", "refusals[#refusals + 1] = {BUSY, 0,", "0", _WAITLESS, nth=(1,)),
    Argument("admit.lua", "{severity, severity == WAIT and ends - now or 0", "0", _WAITLESS, nth=(1,), new=("(-1)",)),
    Argument("batch.lua", "if ends > 0 and ends <= clock", "0", _FIRST_US, new=("1",)),
    Argument("batch.lua", "counter.flagged = string.sub(raw, COUNTER_BYTES + 1)", "+", _FLAGGED),
    Argument("batch.lua", "counter.flagged = string.sub(raw, COUNTER_BYTES + 1)", "1", _FLAGGED),
    Argument("amend.lua", "local raw = call('GETRANGE', key, '-96'", "'-17'", _LONGER, new=("'-16'",)),
    Argument("amend.lua", "local stamp, had_requests, had_tokens = read(RUN", "-", _LONGER),
    Argument("amend.lua", "local stamp, had_requests, had_tokens = read(RUN", "1", _LONGER, new=("(0)",)),
    Argument("apply.lua", "if ends > 0 and ends <= clock", "0", _FIRST_US, new=("1",)),
    Argument("apply.lua", "flagging = flagging or string.sub(raw, COUNTER_BYTES + 1)", "+", _FLAGGED),
    Argument("apply.lua", "flagging = flagging or string.sub(raw, COUNTER_BYTES + 1)", "1", _FLAGGED),
    Argument("charge.lua", "if rises and not counters[i] and ends[i] > 0", "0", _FIRST_US, new=("1",)),
    Argument("use.lua", "if not counters[i] and ends > 0", "0", _FIRST_US, new=("1",)),
    Argument(
        "use.lua",
        "local open = gate[1] == ARGV[#ARGV] and now >= tonumber(gate[2] or 0)",
        "0",
        "Where nobody is waited for there is no end, and any time is later than the first microsecond of 1970.",
    ),
    Argument(
        "use.lua", "if tonumber(number) <= included(tonumber(call('HGET'", "0", "Numbers begin at 1.", new=("(-1)",)
    ),
    Argument(
        "clear.lua",
        "for i = 3, #ARGV - 1, 2 do",
        "2",
        "In between it takes a generation for a counter and the next counter for its generation: no counter "
        "is called like a generation, `run:number`.",
        new=("(1)",),
    ),
    Argument("clear.lua", "for i = 3, #ARGV - 1, 2 do", "-", _LAST_LIFE),
    Argument("clear.lua", "for i = 3, #ARGV - 1, 2 do", "1", _LAST_LIFE),
    Argument("flag.lua", "call('SET', key, string.sub(raw, 1,", "1", _BEGINNING, new=("(0)",)),
    Argument("fence.lua", "if life ~= ARGV[4] or tonumber(number) <", "<", "Equal is set to equal.", new=("<=",)),
    Argument("counter.lua", "if expires > 0 then", "0", _FIRST_US, new=("1",)),
    Argument(
        "gate.lua",
        "local run, until_us, waits, named = tree[1], tree[3] or '0'",
        "'0'",
        "A gate without an end waits for nobody, and then that is the reply.",
    ),
    Argument(
        "charge.lua",
        "local reached = included(tonumber(there or 0))",
        "0",
        "What comes from a producer without a mark cannot be placed, however far it got.",
    ),
    Argument("logput.lua", "q.next_chunk = q.next_chunk + 1", "1", _UNLIKE, new=("2",)),
    Argument(
        "loglease.lua", "local expired = redis.call('ZRANGEBYSCORE'", "1", "Only the first is used.", new=("2",)
    ),
    Argument("loglease.lua", "local head, gaps = q.count > 0", ">", _NO_HEAD, new=(">=",)),
    Argument("loglease.lua", "local head, gaps = q.count > 0", "0", _NO_HEAD, new=("(-1)",), nth=(1,)),
    Argument(
        "admit.lua",
        "local BURIED = ",
        "4503599627370496",
        "No producer has applied as many entries as BURIED - 1.",
        new=("(4503599627370495)",),
    ),
    Argument("loglease.lua", "q.next_chunk = q.next_chunk + 1", "1", _UNLIKE, new=("2",)),
    Argument("correct.lua", "read(RUN, newest and raw or call('GETRANGE'", "-", _LONGER),
    Argument("correct.lua", "read(RUN, newest and raw or call('GETRANGE'", "1", _LONGER, new=("(0)",)),
    Argument("sliding.lua", "local CHUNK_RUNS = 64", "64", "How many runs are read at once changes no answer."),
    Argument("sliding.lua", "while index < log[TAIL] do", "<", _WALK, new=("<=",)),
    Argument("sliding.lua", "local count = math.min(CHUNK_RUNS", "math.min", _WALK),
    Argument("sliding.lua", "local count = math.min(CHUNK_RUNS", "-", _WALK),
    Argument("sliding.lua", "local chunk = call('GETRANGE'", "-", _LONGER),
    Argument("sliding.lua", "local chunk = call('GETRANGE'", "1", _LONGER, new=("(0)",)),
    Argument(
        "sliding.lua",
        "if log[LAST] - log[OFFSET] <= horizon then",
        "<=",
        "If just the newest run leaves now, the walk forgets the same runs one by one.",
        new=("<",),
    ),
    Argument(
        "sliding.lua",
        "local prolong = log[LAST] + log[WINDOW] > log[EXPIRES]",
        ">",
        "The key is prolonged though it would live long enough by a microsecond.",
        new=(">=",),
    ),
    Argument("sliding.lua", "if log[LAST] > stamp then", ">", "Equal is set to equal.", new=(">=",)),
    Argument(
        "loglease.lua",
        "if taken + n > count or taken_bytes + e.bytes > bytes",
        ">",
        "Record by record a chunk that just fits is taken whole, too.",
        new=(">=",),
    ),
    Argument(
        "loglease.lua",
        "local told = {struct.pack(LEASE",
        "0",
        "Whoever reads it asks for more than 0.",
        new=("(-1)",),
    ),
    Argument("logput.lua", "q.next_chunk = q.next_chunk + 1", "1", _NEW, new=("2",)),
    Argument("logput.lua", "if e.skip > 0 then", ">", _NONE_REPEATED, new=(">=",)),
    Argument("logput.lua", "if e.skip > 0 then", "0", _NONE_REPEATED, new=("(-1)",)),
    Argument("logqueue.lua", "local ARGUMENTS_MAX = 500", "500", _FEWER_CALLS),
    Argument(
        "logqueue.lua",
        "local q = {prefix = string.sub",
        "1",
        _BEGINNING,
        nth=(2,),
        new=("(0)",),
    ),
    Argument("logqueue.lua", "q.next_lease, q.next_chunk, q.count", "1", _NEW, nth=(2,)),
    Argument("logqueue.lua", "local packed, found = redis.call('GETRANGE'", "4", _LONGER, nth=(2,), new=("5",)),
    Argument("logqueue.lua", "local packed, found = redis.call('GETRANGE'", "-", _LONGER),
    Argument("logqueue.lua", "local packed, found = redis.call('GETRANGE'", "1", _LONGER, new=("(0)",)),
    Argument("logqueue.lua", "found[i] = length > 0 and", ">", _EMPTY_RANGE, new=(">=",)),
    Argument("logqueue.lua", "found[i] = length > 0 and", "0", _EMPTY_RANGE, new=("(-1)",)),
    Argument("logqueue.lua", "redis.call('UNLINK', unpack", "-", _UNLINKED_TWICE),
    Argument("logqueue.lua", "redis.call('UNLINK', unpack", "1", _UNLINKED_TWICE, new=("(0)",)),
    Argument(
        "logqueue.lua",
        "q.bare = math.max(0, q.bare - 1)",
        "1",
        "A chunk that has no bodies is looked at again, and gives none.",
        new=("2",),
    ),
    Argument(
        "logqueue.lua",
        "if records < dropped and bytes < e.bytes",
        "<",
        "Record by record all of the chunk is counted, too.",
        nth=(1,),
        new=("<=",),
    ),
    Argument("logqueue.lua", "return 0", "0", "Numbers begin at 1.", new=("(-1)",)),
    Argument("logstats.lua", "if stamp > 0 and", "0", _FIRST_US, nth=(1,), new=("1",)),
    Argument("logstats.lua", "if stamp > 0 and", "<", "Equal is set to equal.", new=("<=",)),
)
