"""Staying awake for an answer of Redis: for a short time, where it helps, and nowhere else."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from tests.governance.test_redis_connection import connect
from tests.servers.redis import RedisServer
from tollkeeper.governance.redis_busy_poll import SKIPPED_MAX, BusyPoll
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.governance.redis_connection import BUSY_PENDING_MAX, Counters, Waiter


class Loop:
    """An event loop's ready queue, turned by hand; each turn takes 10 µs."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], object]] = []
        self.now_s = 0.0
        self.turns = 0

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.ready.append(callback)

    def turn(self) -> None:
        ready, self.ready = self.ready, []
        self.now_s += 10e-6
        self.turns += 1
        for callback in ready:
            callback()

    def run(self) -> int:
        """Turn until it would sleep; how often that was."""
        before = self.turns
        while self.ready:
            self.turn()
        return self.turns - before


class Trial:
    def __init__(self, limit_s: float = 100e-6) -> None:
        self.loop, self.counts, self.answered = Loop(), Counters(), False
        self.poll = BusyPoll(limit_s, lambda: self.answered, self.counts, clock=lambda: self.loop.now_s)

    def begin(self) -> None:
        self.poll.begin(cast(Any, self.loop))


def test_the_loop_turns_until_the_answer_is_there() -> None:
    trial = Trial()
    trial.begin()
    for _ in range(3):
        trial.loop.turn()
        assert trial.loop.ready, "it does not sleep"
    trial.answered = True
    assert trial.loop.run() == 1
    assert (trial.counts.busy_polls, trial.counts.in_vain) == (1, 0)


def test_and_no_longer_than_the_limit() -> None:
    trial = Trial()
    trial.begin()
    assert 9 <= trial.loop.run() <= 11
    assert (trial.counts.busy_polls, trial.counts.in_vain) == (1, 1)


def test_a_second_write_meanwhile_starts_no_second_one() -> None:
    trial = Trial()
    trial.begin()
    trial.loop.turn()
    trial.begin()
    assert len(trial.loop.ready) == 1 and trial.counts.busy_polls == 1


def test_in_vain_again_and_again_it_is_tried_ever_less_often() -> None:
    """Redis is farther away than the limit: the share of writes that cost the limit falls to one in a thousand."""
    trial, gaps, gap = Trial(), [], 0
    for _ in range(5_000):
        trial.begin()
        if trial.loop.run():
            gaps.append(gap)
            gap = 0
        else:
            gap += 1
    assert gaps[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] and set(gaps[12:]) == {SKIPPED_MAX}
    trial.answered = True
    for _ in range(SKIPPED_MAX + 1):
        trial.begin()
        trial.loop.run()
    before = trial.counts.busy_polls
    for _ in range(10):
        trial.begin()
        trial.loop.run()
    assert trial.counts.busy_polls == before + 10, "one that was not in vain, and it is back"


def test_none_without_a_limit() -> None:
    trial = Trial(0.0)
    trial.begin()
    assert not trial.loop.ready and trial.counts.busy_polls == 0


async def test_a_connection_stays_awake_for_what_is_waited_for(redis_server: RedisServer) -> None:
    """Not for what nobody is in a hurry for, and not while so much is on its way that the loop has enough to do."""
    connection = connect(redis_server.url, busy_poll_s=60.0)
    await connection.start()
    counts = connection.counters
    try:
        await connection.send("PING")
        assert (counts.busy_polls, counts.in_vain) == (1, 0)
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection.post(cast(Waiter, ended), b"*1\r\n$4\r\nPING\r\n")
        await ended
        assert counts.busy_polls == 1
        await asyncio.gather(*(connection.send("PING") for _ in range(BUSY_PENDING_MAX + 1)))
        assert counts.busy_polls == 1
        await asyncio.gather(*(connection.send("PING") for _ in range(BUSY_PENDING_MAX)))
        assert counts.busy_polls == 2
    finally:
        await connection.stop()


async def test_an_answer_that_takes_longer_is_waited_for_asleep(redis_server: RedisServer) -> None:
    async with RedisClient(url=redis_server.url, busy_poll_us=1_000) as client:
        await client.call("EVAL", "local n = 0; for i = 1, 5e6 do n = n + i end; return 1", 0)
        stats = client.get_stats()
        assert (stats.busy_polls, stats.busy_polls_in_vain) == (1, 1)
    async with RedisClient(url=redis_server.url) as client:
        await client.call("PING")
        assert client.get_stats().busy_polls == 0, "a service that uses the library asks for it"
