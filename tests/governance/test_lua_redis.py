"""The small Redis under which scripts are tried equals a real server: commands, conversions, `struct`, errors."""

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.governance.lua_redis import FakeRedis, LuaRedis, RedisError, word
from tests.governance.runner import PlainRunner
from tests.servers.redis import RedisServer
from tollkeeper.governance.redis_connection import ReplyError

START_US = 4_101_900_000_123_456
FAR_MS = START_US // 1000 + 10**9
rounds = itertools.count()

keys = st.sampled_from(["k1", "k2"])
fields = st.sampled_from(["f", "g", "h"])
texts = st.sampled_from(["", "a", "7", "-3", "hello, world", "\0\1\xff"])
small = st.integers(-12, 12)


def command(name: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), keys, *parts)


commands = st.one_of(
    st.tuples(st.just("EXISTS"), keys, keys),
    st.tuples(st.just("DEL"), keys, keys),
    command("PEXPIREAT", st.sampled_from([FAR_MS, FAR_MS + 5, 1])),
    command("PEXPIRETIME"),
    command("GET"),
    command("STRLEN"),
    command("SET", texts),
    command("SET", texts, st.just("KEEPTTL")),
    command("SET", texts, st.just("PX"), st.sampled_from([0, -1, "x"])),
    command("SET", texts, st.just("PXAT"), st.sampled_from([0, -1, "x", 1, 99_999_999_999_999])),
    command("GETRANGE", small, small),
    command("SETRANGE", small, texts),
    command("HGET", fields),
    command("HMGET", fields, fields),
    command("HSET", fields, texts),
    command("HSET", fields, texts, fields, texts),
    command("HSETNX", fields, texts),
    command("HDEL", fields, fields),
    command("HEXISTS", fields),
    command("HKEYS"),
    command("HGETALL"),
    command("HLEN"),
    st.tuples(st.just("UNLINK"), keys),
    st.tuples(st.just("MGET"), keys, keys),
    command("RPUSH", texts, texts),
    command("LPOP"),
    command("LINDEX", small),
    command("LSET", small, texts),
    command("LRANGE", small, small),
    command("ZRANGEBYSCORE", st.just("-inf"), small),
    command("ZRANGEBYSCORE", st.just("-inf"), st.just("+inf"), st.just("LIMIT"), st.just(0), st.just(1)),
    command("HINCRBY", fields, st.sampled_from([1, -5, 9_007_199_254_740_993, "x", "1.5"])),
    command("ZADD", small, fields),
    command("ZADD", st.just("XX"), small, fields, small, fields),
    command("ZREM", fields, fields),
    command("ZCARD"),
    command("ZCOUNT", st.just("-inf"), small),
    command("ZSCORE", fields),
    command("ZREMRANGEBYSCORE", st.just("-inf"), small),
)
relaxed = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def outcome(call: Any) -> Any:
    try:
        return await call
    except ReplyError as error:
        return error.code if error.code == "WRONGTYPE" else "error"


async def fake_outcome(lua: LuaRedis, *parts: Any) -> Any:
    try:
        return lua.execute(*parts)
    except ReplyError as error:
        return error.code if error.code == "WRONGTYPE" else "error"


@relaxed
@given(st.lists(commands, max_size=60))
def test_commands_equal_a_real_server(redis_server: RedisServer, schedule: list[tuple[Any, ...]]) -> None:
    """Any sequence of the commands that scripts use gives the same replies, and errors of the same code."""

    async def run() -> None:
        runner = PlainRunner(redis_server.url)
        await runner.start()
        await runner.command("DEL", "k1", "k2")
        lua = LuaRedis(lambda: START_US)
        try:
            for parts in schedule:
                real = await outcome(runner.command(*parts))
                fake = await fake_outcome(lua, *parts)
                assert plain(fake) == plain(real), parts
        finally:
            await runner.command("DEL", "k1", "k2")
            await runner.stop()

    asyncio.run(run())


def plain(reply: Any) -> Any:
    """Replies without order where Redis gives none, and simple strings like others."""
    if isinstance(reply, list) and len(reply) > 2:
        return sorted(reply, key=repr)
    return reply.encode() if isinstance(reply, str) else reply


SNIPPETS = [
    "return {1, 2.9, -2.9, 'x', true, false, 3}",
    "return {1, nil, 3}",
    "return 2^53 - 1",
    "return -0.5",
    "return false",
    "return {}",
    "return {{1, {2}}, 'a'}",
    "return redis.call('SET', KEYS[1], 'v').ok",
    "return redis.call('SET', KEYS[1], 'v')",
    "return redis.call('GET', KEYS[1]) == false",
    "redis.call('HSET', KEYS[1], 'f', 9007199254740991) return redis.call('HGET', KEYS[1], 'f')",
    "redis.call('HSET', KEYS[1], 'f', 1.5, 'g', 0.1) return redis.call('HMGET', KEYS[1], 'f', 'g', 'h')",
    "redis.call('HSET', KEYS[1], 'f', 3) local a = redis.call('HMGET', KEYS[1], 'x', 'f') return tostring(a[1])",
    "return type(redis.call('HINCRBY', KEYS[1], 'f', 7))",
    "redis.call('ZADD', KEYS[1], 4101900000123456, 'm') return redis.call('ZSCORE', KEYS[1], 'm')",
    "redis.call('ZADD', KEYS[1], 7, 'm') return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', 6.5)",
    "return #redis.call('TIME')",
    "return #redis.call('GETRANGE', KEYS[1], 0, 95)",
    "return redis.call('SET', KEYS[1], 'v', 'PX', 0)",
    "return redis.call('HGET', 'k', nil)",
    "return redis.call('HGET', 'k', {})",
    "return redis.call('HGET', 'k', true)",
    "local x = nil + 1",
    "return {ARGV[1], #ARGV, #KEYS, KEYS[2]}",
    "return struct.pack('<dd', 1, 2^53)",
    "return struct.pack('<I7I5I5', 4101900000123456, 0, 2^40 - 1)",
    "return struct.pack('<I7I5I5', -1, 2^40, 1.9)",
    "return struct.pack('<d')",
    "return struct.pack('<d', 'x')",
    "local a, b, at = struct.unpack('<dd', struct.pack('<ddd', 1, 2.5, 3)) return {a, b * 2, at}",
    "local a, at = struct.unpack('<d', struct.pack('<ddd', 1, 2.5, 3), 17) return {a, at}",
    "return {struct.unpack('<I7I5I5', struct.pack('<I7I5I5', 4101900000123456, 5, 2^40 - 1))}",
    "return struct.unpack('<dd', 'too short')",
    "return struct.unpack('<d', string.rep('x', 16), 10)",
    "return string.format('%.0f', 4101900000123456)",
    "return math.fmod(7, 4) + math.fmod(-7, 4) * 10",
]


@pytest.mark.parametrize("text", SNIPPETS)
async def test_conversions_equal_a_real_server(redis_server: RedisServer, text: str) -> None:
    """Values on their way from Lua to Redis, back, and to the client; `struct`; errors."""
    runner = PlainRunner(redis_server.url)
    await runner.start()
    lua = LuaRedis(lambda: START_US, {"clear": text})
    try:
        await runner.command("DEL", "conv")
        real = await outcome(runner.command("EVAL", text, 2, "conv", "second", "arg"))
        try:
            fake = lua.run("clear", ["conv", "second"], ["arg"])
        except ReplyError:
            fake = "error"
        assert fake == ("error" if isinstance(real, str) else real)
    finally:
        await runner.command("DEL", "conv")
        await runner.stop()


def test_keys_expire_by_the_clock() -> None:
    """Like Redis, which forgets a key in the first ms after the one it was told."""
    now_us = START_US
    redis = FakeRedis(lambda: now_us)
    redis.execute(b"SET", b"k", b"v", b"PX", b"2")
    redis.execute(b"HSET", b"h", b"f", b"1")
    assert redis.execute(b"PEXPIRE", b"h", b"1") == 1 and redis.execute(b"PEXPIRE", b"none", b"1") == 0
    now_us = START_US // 1000 * 1000 + 1999
    assert redis.execute(b"GET", b"k") == b"v" and redis.execute(b"EXISTS", b"h") == 1
    now_us += 1
    assert redis.execute(b"GET", b"k") == b"v" and redis.execute(b"EXISTS", b"h") == 0
    now_us += 1000
    assert redis.execute(b"GET", b"k") is None and not redis.values and not redis.expires_ms
    assert redis.execute(b"TIME") == [b"%d" % (now_us // 10**6), b"%d" % (now_us % 10**6)]
    with pytest.raises(RedisError, match="unknown command"):
        redis.execute(b"FLUSHALL")
    assert word("é") == "é".encode() and word(0.1) == b"0.10000000000000001"


def test_endless_scripts_end() -> None:
    """Mutants may loop."""
    lua = LuaRedis(lambda: START_US, {"clear": "while true do end", "reset": "return 1"})
    for _ in range(2):
        with pytest.raises(ReplyError, match="endless"):
            lua.run("clear", [], [])
        assert lua.run("reset", [], []) == 1
