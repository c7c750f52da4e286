"""Settlements of one turn of the event loop reach Redis in one step, and nobody can tell but by the cost.

That a step does what its entries would do one after the other is held by the schedules of test_twin.py and
test_lupa.py, and on damaged keys by test_damage.py.
"""

import asyncio
import itertools
import re
import struct
from collections.abc import AsyncIterator

import pytest

from tests.governance.test_twin import principal
from tests.servers.redis import RedisServer
from tollkeeper.domain.admission import Checks, CounterRef, Demand, Grant, Status, checks_for
from tollkeeper.domain.entries import Applied, AppliedStatus, Entry, EntryKind, dispatch_of, settle_entry
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, Unit, Window
from tollkeeper.domain.usage import Usage
from tollkeeper.governance.redis_keys import counter_key
from tollkeeper.governance.redis_store import TOGETHER_MAX, RedisStore
from tollkeeper.settings import StoreSettings

roots = itertools.count()


class Tree:
    """One root with a budget of 100 nano-dollars, and what it was told."""

    def __init__(self, store: RedisStore, server: RedisServer) -> None:
        self.store, self.server, self.root = store, server, f"org_together{next(roots)}"
        policy = Policy(windows=(Window(Unit.TOKENS, 10**6),), concurrency=100, budgets=(Budget(100, Period.MONTH),))
        self.who = principal(self.root, policy, None, None)
        self.attempts = 0

    @property
    def checks(self) -> Checks:
        return checks_for(self.who, self.store.now_us())

    async def admit(self, hold_nano: int) -> Grant | None:
        self.attempts += 1
        demand = Demand(f"a{self.attempts}.1", "p_1", 10, hold_nano, self.store.now_us() + 10**8)
        checks = self.checks
        reply = await self.store.admit(checks, demand)
        return Grant(demand, checks, reply) if reply.status is Status.ADMITTED else None

    def settle(self, grant: Grant, number: int, cost_nano: int) -> "asyncio.Future[Applied | StoreUnavailable]":
        return self.send(settle_entry(number, dispatch_of(grant), cost_nano, Usage(3, 4), -3))

    def send(self, entry: Entry) -> "asyncio.Future[Applied | StoreUnavailable]":
        answered: asyncio.Future[Applied | StoreUnavailable] = asyncio.get_running_loop().create_future()
        self.store.apply(self.root, "p_1", entry, answered.set_result)
        return answered

    async def spent(self) -> tuple[float, float]:
        key = counter_key(self.root, self.checks.counters[0].name)
        cost, held = struct.unpack_from("<2d", await self.store.client.call("GET", key, key=key))
        return cost, held

    def calls(self) -> int:
        """Scripts that Redis was asked for since the last time."""
        found = re.search(rb"cmdstat_evalsha:calls=(\d+)", self.server.command("INFO", "commandstats"))
        self.server.command("CONFIG", "RESETSTAT")
        return int(found[1]) if found else 0


@pytest.fixture
async def tree(redis_server: RedisServer) -> AsyncIterator[Tree]:
    store = RedisStore(StoreSettings(redis_url=redis_server.url, admission_timeout_s=30))
    await store.start()
    tree = Tree(store, redis_server)
    await store.seed(tree.root, "run", {}, {}, lost=False)
    yield tree
    await store.stop()


async def _granted(tree: Tree, count: int, hold_nano: int = 1) -> list[Grant]:
    grants = [await tree.admit(hold_nano) for _ in range(count)]
    assert None not in grants
    return [grant for grant in grants if grant is not None]


async def test_ends_of_one_turn_are_one_step(tree: Tree) -> None:
    count = 2 * TOGETHER_MAX + 5
    grants = await _granted(tree, count)
    tree.calls()
    answers = await asyncio.gather(*[tree.settle(grant, n, 1) for n, grant in enumerate(grants, 1)])
    assert tree.calls() == 3
    marks = [answer.mark for answer in answers if isinstance(answer, Applied)]
    assert marks == [TOGETHER_MAX] * TOGETHER_MAX + [2 * TOGETHER_MAX] * TOGETHER_MAX + [count] * 5
    assert await tree.spent() == (count, 0)
    (reply,) = [await tree.store.admit(tree.checks, Demand("last.1", "p_1", 1, 1, tree.store.now_us() + 10**8))]
    assert reply.logs[0].tokens == 7 * count + 1, "each gave 3 of its 10 tokens back"
    assert reply.slots == (1,), "all slots but its own are free"


async def test_what_a_task_settled_counts_in_its_next_question(tree: Tree) -> None:
    """Without a turn of the event loop between them, as after an attempt that is followed by another."""
    (grant,) = await _granted(tree, 1, hold_nano=100)
    answer = tree.settle(grant, 1, 40)
    assert await tree.admit(60) is not None, "100 are held no more"
    assert await tree.admit(1) is None, "40 are spent"
    assert await answer == Applied(AppliedStatus.OK, 1)


async def test_what_a_task_settled_is_in_every_answer(tree: Tree) -> None:
    (grant,) = await _granted(tree, 1, hold_nano=100)
    tree.settle(grant, 1, 40)
    assert await tree.store.marks(tree.root) == {"p_1": 1}


async def test_one_that_is_in_the_way_does_not_hide_the_others(tree: Tree) -> None:
    """Each is told what concerns it."""
    one, two, three = await _granted(tree, 3)
    ended = CounterRef("key_1:2001:01", 1, 10**15)
    other = Entry(2, EntryKind.SETTLE, two.demand.attempt, 5, 1, counters=(ended,), hold_nano=1)
    answers = [tree.settle(one, 1, 3), tree.send(other), tree.settle(three, 3, 4)]
    assert await asyncio.gather(*answers) == [
        Applied(AppliedStatus.OK, 1),
        Applied(AppliedStatus.ABSENT, 1, ended.name),
        Applied(AppliedStatus.GAP, 1),
    ]
    assert await tree.spent() == (3, 2)


async def test_a_missing_number_is_a_gap_though_the_last_is_far_enough(tree: Tree) -> None:
    """Else its entry would count as applied, and its charge be lost."""
    grants = await _granted(tree, 4)
    numbers = (1, 3, 3, 4)
    answers = [tree.settle(grant, number, 5) for grant, number in zip(grants, numbers, strict=True)]
    said = [answer.status for answer in await asyncio.gather(*answers) if isinstance(answer, Applied)]
    assert said == [AppliedStatus.OK, AppliedStatus.GAP, AppliedStatus.GAP, AppliedStatus.GAP]
    assert await tree.store.marks(tree.root) == {"p_1": 1}
    assert await tree.spent() == (5, 3)


async def test_a_step_that_is_repeated_changes_nothing(tree: Tree) -> None:
    grants = await _granted(tree, 3)
    for _ in range(2):
        answers = await asyncio.gather(*[tree.settle(grant, n, 5) for n, grant in enumerate(grants, 1)])
        assert answers == [Applied(AppliedStatus.OK, 3)] * 3
    assert await tree.spent() == (15, 0)
    more = await _granted(tree, 1)
    again = [*zip((2, 3), grants[1:], strict=True), (4, more[0])]
    assert await asyncio.gather(*[tree.settle(grant, n, 5) for n, grant in again]) == [
        Applied(AppliedStatus.OK, 3),
        Applied(AppliedStatus.OK, 3),
        Applied(AppliedStatus.OK, 4),
    ]
    assert await tree.spent() == (20, 0)
