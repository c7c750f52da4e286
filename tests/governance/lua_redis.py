"""A small Redis in this process that runs the real scripts under Lua 5.1: a few µs a call, any clock, any source.

It models the commands the scripts use, types and expiry of keys, numbers and errors on their way between Lua and
Redis, and the `struct` library. It does not model replies' protocol, clients, or any other command.
`test_lua_redis.py` holds it equal to a real server.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from struct import pack, unpack_from
from typing import Any

from lupa import lua51

from tollkeeper.governance.redis_connection import ReplyError
from tollkeeper.governance.scripts import SCRIPTS, source

INSTRUCTIONS_MAX = 300_000
"""A script that runs longer will not end: mutants may loop."""
WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class RedisError(Exception):
    """An error reply."""


class Status(str):
    """A simple string reply: Lua sees a table."""


OK = Status("OK")


def number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise RedisError("ERR value is not an integer or out of range") from None


def double(word: bytes) -> float:
    return float(word)


class FakeRedis:
    """Keys with types and expiry at the time of `clock_us`. Commands take and give what redis-py's parser would."""

    def __init__(self, clock_us: Callable[[], int]) -> None:
        self.clock_us = clock_us
        self.values: dict[bytes, Any] = {}
        self.expires_ms: dict[bytes, int] = {}

    def execute(self, *words: bytes) -> Any:
        """One command."""
        handler = getattr(self, f"do_{words[0].decode().lower()}", None)
        if handler is None:
            raise RedisError(f"ERR unknown command '{words[0].decode()}'")
        return handler(*words[1:])

    # Keys

    def get(self, key: bytes, kind: type) -> Any:
        """The value, None if there is none, or WRONGTYPE."""
        expires = self.expires_ms.get(key)
        if expires is not None and self.clock_us() // 1000 > expires:
            self.remove(key)
        value = self.values.get(key)
        if value is not None and kind is not object and type(value) is not kind:
            raise RedisError(WRONGTYPE)
        return value

    def peek(self, key: bytes) -> Any:
        """The value, without the expiry that an access brings about."""
        expires = self.expires_ms.get(key)
        return None if expires is not None and self.clock_us() // 1000 > expires else self.values.get(key)

    def remove(self, key: bytes) -> None:
        self.values.pop(key, None)
        self.expires_ms.pop(key, None)

    def make(self, key: bytes, kind: type) -> Any:
        value = self.get(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def drop_empty(self, key: bytes) -> None:
        if not self.values.get(key, True):
            self.remove(key)

    def do_exists(self, *keys: bytes) -> int:
        return sum(self.get(key, object) is not None for key in keys)

    def do_del(self, *keys: bytes) -> int:
        there = self.do_exists(*set(keys))
        for key in keys:
            self.remove(key)
        return there

    do_unlink = do_del

    def do_mget(self, *keys: bytes) -> list[bytes | None]:
        found = [self.get(key, object) for key in keys]
        return [value if isinstance(value, bytes) else None for value in found]

    def do_pexpire(self, key: bytes, ms: bytes) -> int:
        return self.do_pexpireat(key, b"%d" % (self.clock_us() // 1000 + number(ms)))

    def do_pexpireat(self, key: bytes, at_ms: bytes) -> int:
        if self.get(key, object) is None:
            return 0
        self.expires_ms[key] = number(at_ms)
        if number(at_ms) <= self.clock_us() // 1000:
            self.remove(key)
        return 1

    def do_pexpiretime(self, key: bytes) -> int:
        return -2 if self.get(key, object) is None else self.expires_ms.get(key, -1)

    def do_time(self) -> list[bytes]:
        seconds, us = divmod(self.clock_us(), 1_000_000)
        return [b"%d" % seconds, b"%d" % us]

    # Strings

    def do_get(self, key: bytes) -> bytes | None:
        value: bytes | None = self.get(key, bytes)
        return value

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Status:
        expires = None
        if options[:1] == (b"PX",):
            if number(options[1]) <= 0:
                raise RedisError("ERR invalid expire time in 'set' command")
            expires = self.clock_us() // 1000 + number(options[1])
        elif options[:1] == (b"PXAT",):
            expires = number(options[1])
            if expires <= 0:
                raise RedisError("ERR invalid expire time in 'set' command")
        elif options == (b"KEEPTTL",):
            self.get(key, object)
            expires = self.expires_ms.get(key)
        elif options:
            raise RedisError("ERR syntax error")
        self.remove(key)
        self.values[key] = value
        if expires is not None:
            self.expires_ms[key] = expires
        return OK

    def do_strlen(self, key: bytes) -> int:
        return len(self.get(key, bytes) or b"")

    def do_getrange(self, key: bytes, start: bytes, end: bytes) -> bytes:
        value = self.get(key, bytes) or b""
        first, last = number(start), number(end)
        if first < 0 and last < 0 and first > last:
            return b""
        first = max(0, first + len(value) if first < 0 else first)
        last = max(0, last + len(value) if last < 0 else last)
        return bytes(value[first : last + 1])

    def do_setrange(self, key: bytes, offset: bytes, part: bytes) -> int:
        at = number(offset)
        if at < 0:
            raise RedisError("ERR offset is out of range")
        value = self.get(key, bytes)
        if part:
            value = (value or b"").ljust(at, b"\0")
            value = self.values[key] = value[:at] + part + value[at + len(part) :]
        return len(value or b"")

    # Hashes

    def do_hget(self, key: bytes, field: bytes) -> bytes | None:
        found: bytes | None = (self.get(key, dict) or {}).get(field)
        return found

    def do_hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        hashed = self.get(key, dict) or {}
        return [hashed.get(field) for field in fields]

    def do_hset(self, key: bytes, *pairs: bytes) -> int:
        if len(pairs) % 2 or not pairs:
            raise RedisError("ERR wrong number of arguments for 'hset' command")
        hashed = self.make(key, dict)
        before = len(hashed)
        hashed.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(hashed) - before

    def do_hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        return 0 if self.do_hget(key, field) is not None else self.do_hset(key, field, value)

    def do_hdel(self, key: bytes, *fields: bytes) -> int:
        hashed = self.get(key, dict) or {}
        removed = sum(hashed.pop(field, None) is not None for field in fields)
        self.drop_empty(key)
        return removed

    def do_hexists(self, key: bytes, field: bytes) -> int:
        return int(self.do_hget(key, field) is not None)

    def do_hkeys(self, key: bytes) -> list[bytes]:
        return list(self.get(key, dict) or {})

    def do_hgetall(self, key: bytes) -> list[bytes]:
        return [word for pair in (self.get(key, dict) or {}).items() for word in pair]

    def do_hincrby(self, key: bytes, field: bytes, by: bytes) -> int:
        step = number(by)
        hashed = self.make(key, dict)
        try:
            value = int(hashed.get(field, b"0")) + step
        except ValueError:
            raise RedisError("ERR hash value is not an integer") from None
        hashed[field] = b"%d" % value
        return value

    def do_hlen(self, key: bytes) -> int:
        return len(self.get(key, dict) or ())

    # Lists

    def do_rpush(self, key: bytes, *words: bytes) -> int:
        items: list[bytes] = self.make(key, list)
        items.extend(words)
        return len(items)

    def do_lpop(self, key: bytes) -> bytes | None:
        items: list[bytes] = self.get(key, list) or []
        first = items.pop(0) if items else None
        self.drop_empty(key)
        return first

    def do_lindex(self, key: bytes, index: bytes) -> bytes | None:
        items: list[bytes] = self.get(key, list) or []
        at = number(index)
        return items[at] if -len(items) <= at < len(items) else None

    def do_lset(self, key: bytes, index: bytes, value: bytes) -> Status:
        items = self.get(key, list)
        if items is None:
            raise RedisError("ERR no such key")
        if not -len(items) <= number(index) < len(items):
            raise RedisError("ERR index out of range")
        items[number(index)] = value
        return OK

    def do_lrange(self, key: bytes, start: bytes, end: bytes) -> list[bytes]:
        items: list[bytes] = self.get(key, list) or []
        first, last = number(start), number(end)
        first = max(0, first + len(items) if first < 0 else first)
        last = last + len(items) if last < 0 else last
        return items[first : last + 1] if last >= 0 else []

    # Sorted sets

    def do_zadd(self, key: bytes, *words: bytes) -> int:
        known_only = words[0] == b"XX"
        pairs = words[1:] if known_only else words
        scores = {member: double(score) for score, member in zip(pairs[::2], pairs[1::2], strict=True)}
        ranked = self.get(key, SortedSet)
        if known_only:
            scores = {member: score for member, score in scores.items() if ranked is not None and member in ranked}
        if not scores:
            return 0
        ranked = self.make(key, SortedSet)
        before = len(ranked)
        ranked.update(scores)
        return len(ranked) - before

    def do_zrem(self, key: bytes, *members: bytes) -> int:
        ranked = self.get(key, SortedSet) or {}
        removed = sum(ranked.pop(member, None) is not None for member in members)
        self.drop_empty(key)
        return removed

    def do_zcard(self, key: bytes) -> int:
        return len(self.get(key, SortedSet) or ())

    def do_zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        return len(self.do_zrangebyscore(key, low, high))

    def do_zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = (self.get(key, SortedSet) or {}).get(member)
        return None if score is None else b"%.17g" % score

    def do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *limit: bytes) -> list[bytes]:
        ranked = self.get(key, SortedSet) or {}
        found = sorted((score, m) for m, score in ranked.items() if double(low) <= score <= double(high))
        members = [member for _, member in found]
        return members[number(limit[1]) : number(limit[1]) + number(limit[2])] if limit else members

    def do_zrange(self, key: bytes, start: bytes, end: bytes) -> list[bytes]:
        assert (start, end) == (b"0", b"-1")
        return self.do_zrangebyscore(key, b"-inf", b"inf")

    def do_zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> int:
        ranked = self.get(key, SortedSet) or {}
        return self.do_zrem(key, *[m for m, score in ranked.items() if double(low) <= score <= double(high)])


class SortedSet(dict[bytes, float]):
    """Member → score."""


# The `struct` library of Redis' Lua: little-endian, doubles and unsigned integers of any width, no alignment.

_ITEM = re.compile(r"d|I(\d+)")


class _Layout:
    def __init__(self, form: bytes) -> None:
        text = form.decode()
        assert text.startswith("<"), "the scripts pack little-endian"
        widths = _ITEM.findall(text[1:])
        assert _ITEM.sub("", text[1:]) == "", form
        self.widths = [int(width) if width else 0 for width in widths]
        self.size = sum(width or 8 for width in self.widths)
        self.doubles = f"<{len(widths)}d" if not any(self.widths) else None


class Struct:
    """`pack(format, …)` and `unpack(format, data[, position])` → values and the position after them."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, _Layout] = {}

    def layout(self, form: bytes) -> _Layout:
        known = self._layouts.get(form)
        if known is None:
            known = self._layouts[form] = _Layout(form)
        return known

    def pack(self, form: bytes, *values: float) -> bytes:
        layout = self.layout(form)
        if len(values) < len(layout.widths) or any(not isinstance(v, int | float) for v in values):
            raise RedisError("bad argument to 'pack' (number expected)")
        parts = []
        for width, value in zip(layout.widths, values, strict=False):
            parts.append((int(value) % 2 ** (8 * width)).to_bytes(width, "little") if width else pack("<d", value))
        return b"".join(parts)

    def unpack(self, form: bytes, data: bytes, position: float = 1) -> tuple[Any, ...]:
        layout, at = self.layout(form), int(position) - 1
        if at < 0 or at + layout.size > len(data):
            raise RedisError("data string too short")
        if layout.doubles:
            return (*unpack_from(layout.doubles, data, at), at + layout.size + 1)
        values: list[Any] = []
        for width in layout.widths:
            values.append(
                int.from_bytes(data[at : at + width], "little") if width else unpack_from("<d", data, at)[0]
            )
            at += width or 8
        return (*values, at + 1)


_WRAP = b"""
local call, pack, unpack = ...
struct = {pack = pack, unpack = unpack}
redis = {call = call}
return function(text)
  return assert(loadstring(text, '@user_script'))
end, function(chunk, keys, argv, most)
  KEYS, ARGV = keys, argv
  debug.sethook(function() error('endless') end, '', most)
  local answer = chunk()
  debug.sethook()
  return answer
end
"""


class LuaRedis:
    """Runs scripts on a `FakeRedis`. `sources` replaces scripts, as mutants do."""

    def __init__(self, clock_us: Callable[[], int], sources: Mapping[str, str] | None = None) -> None:
        self.redis = FakeRedis(clock_us)
        self.calls = 0
        self._lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True, register_eval=False)
        layouts = Struct()
        compile_, self._run_chunk = self._lua.execute(_WRAP, self._call, layouts.pack, layouts.unpack)
        sources = sources or {}
        self._chunks = {name: compile_(sources.get(name, source(name)).encode()) for name in SCRIPTS}
        self._names = {hashlib.sha1(source(name).encode()).hexdigest(): name for name in SCRIPTS}

    def begin(self, clock_us: Callable[[], int]) -> None:
        """Forget everything, and go by another clock."""
        self.redis = FakeRedis(clock_us)

    def run(self, script: str, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> Any:
        """Run one script by name. Errors are ReplyError."""
        self.calls += 1
        table = self._lua.table_from
        try:
            answer = self._run_chunk(
                self._chunks[script],
                table([word(k) for k in keys]),
                table([word(a) for a in arguments]),
                INSTRUCTIONS_MAX,
            )
        except (lua51.LuaError, RedisError, OverflowError, ValueError) as error:
            text = str(error).partition("\n")[0]
            told = text.startswith(("ERR ", "WRONGTYPE ", "user_script:"))
            raise ReplyError("ERR " + text if told else f"ERR user_script:1: {text}") from error
        return self._to_client(answer)

    def execute(self, *parts: Any) -> Any:
        """Any command as a client sends it, EVALSHA included."""
        words = [word(part) for part in parts]
        if words[0] == b"EVALSHA":
            count = int(words[2])
            return self.run(self._names[words[1].decode()], words[3 : 3 + count], words[3 + count :])
        try:
            return self.redis.execute(*words)
        except RedisError as error:
            raise ReplyError(str(error)) from error

    def _call(self, *words: Any) -> Any:
        for given in words:
            if not isinstance(given, bytes | int | float) or isinstance(given, bool):
                raise RedisError("ERR Lua redis() command arguments must be strings or integers")
        return self._to_lua(self.redis.execute(*[word(w) for w in words]))

    def _to_lua(self, reply: Any) -> Any:
        if reply is None:
            return False
        if isinstance(reply, Status):
            return self._lua.table_from({b"ok": reply.encode()})
        if isinstance(reply, list):
            return self._lua.table_from([self._to_lua(item) for item in reply])
        return reply

    def _to_client(self, value: Any) -> Any:
        """Numbers lose their fraction, true is 1, false is nil, a table ends at its first nil."""
        if isinstance(value, bool):
            return 1 if value else None
        if isinstance(value, int | float):
            if not math.isfinite(value):
                raise ReplyError("ERR not a number")
            return int(value)
        if value is None or isinstance(value, bytes):
            return value
        if value[b"ok"] is not None:
            return value[b"ok"]
        answer: list[Any] = []
        while (item := value[len(answer) + 1]) is not None:
            answer.append(self._to_client(item))
        return answer


def word(value: Any) -> bytes:
    """An argument as Redis receives it; numbers from Lua are written with 17 digits."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return b"%.17g" % value
    return str(value).encode("utf-8", "surrogatepass")


def words_of(packed: bytes) -> list[bytes]:
    """The words of one packed command, which must be whole and nothing else."""
    at, words = packed.index(b"\r\n") + 2, list[bytes]()
    wanted = int(packed[1 : at - 2])
    while at < len(packed):
        end = packed.index(b"\r\n", at)
        start, length = end + 2, int(packed[at + 1 : end])
        assert packed[at : at + 1] == b"$" and packed[start + length : start + length + 2] == b"\r\n"
        words.append(packed[start : start + length])
        at = start + length + 2
    assert len(words) == wanted
    return words


class LuaClient:
    """Stands where a RedisClient stands: what is sent is done at once."""

    def __init__(self, lua: LuaRedis) -> None:
        self.lua = lua
        self.life = "memory"
        self.misses = 0

    def life_of(self, _: str) -> str:
        return self.life

    def lead_of(self, _: str) -> "LuaClient":
        return self

    def post(self, waiter: Any, packed: bytes) -> None:
        try:
            waiter.set_result(self.lua.execute(*words_of(packed)))
        except ReplyError as error:
            waiter.set_exception(error)

    def write_packed(self, packed: bytes) -> "asyncio.Future[Any]":
        return self.send(*words_of(packed))

    async def run_again(self, error: Exception, *_: Any, **__: Any) -> Any:
        raise error

    def send(self, *parts: Any, key: str | None = None) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(self.lua.execute(*parts))
        except ReplyError as error:
            future.set_exception(error)
        return future

    async def call(self, *parts: Any, key: str | None = None, idempotent: bool = False) -> Any:
        return self.lua.execute(*parts)

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        idempotent: bool = False,
        with_life: bool = False,
        within_s: float | None = None,
    ) -> Any:
        return self.lua.run(script, keys, (*args, self.life) if with_life else args)
