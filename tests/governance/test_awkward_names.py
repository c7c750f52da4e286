"""Promise 2 for names nobody would choose: end users, models and patterns are kept apart; ids need no escaping."""

import itertools
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.governance.test_limiters import AWKWARD
from tests.governance.test_twin import START_US, principal
from tests.servers.redis import RedisServer
from tollkeeper.domain.admission import Checks, Demand, LimitKind, Reply, Status, checks_for
from tollkeeper.domain.policy import Policy, Principal, TokenBucket, Unit, Window
from tollkeeper.governance.memory import MemoryStore
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.governance.store import Store
from tollkeeper.settings import StoreSettings
from tollkeeper.storage.names import KEY, ORGANISATION, TEAM, new_id

attempts = itertools.count()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(lambda: START_US)
        return
    redis = RedisStore(StoreSettings(redis_url=redis_server.url))
    redis.time_us = START_US
    await redis.start()
    yield redis
    await redis.stop()


async def tree(store: Store, policy: Policy) -> Principal:
    who = principal(new_id(ORGANISATION), policy, None, None)
    await store.seed(who.root, "run", {}, {}, lost=False)
    return who


async def ask(store: Store, checks: Checks, tokens: int = 1) -> Reply:
    return await store.admit(checks, Demand(f"a{next(attempts)}.1", "p_1", tokens, 0, START_US + 1000))


async def test_each_end_user_has_limits_of_its_own(store: Store) -> None:
    """Braces, colons, newlines, NUL, lone surrogates, 10 kB, and none at all."""
    who = await tree(
        store,
        Policy(
            windows=(Window(Unit.REQUESTS, 1, per_user=True),),
            buckets=(TokenBucket(Unit.TOKENS, 1, 1, per_user=True),),
        ),
    )
    for user in [*AWKWARD, "?", "\ufffd"]:
        checks = checks_for(who, START_US, "m", user)
        assert (await ask(store, checks)).status is Status.ADMITTED, user
        refused = await ask(store, checks)
        assert refused.refusal is not None and refused.refusal.kind is LimitKind.REQUESTS, user


async def test_models_with_awkward_names_are_governed(store: Store) -> None:
    """By the pattern that takes them, which they share with all that it takes, and by no other."""
    who = await tree(
        store,
        Policy(windows=(Window(Unit.REQUESTS, len(AWKWARD), model="*"), Window(Unit.REQUESTS, 1, model="a}b{c"))),
    )
    for model in AWKWARD:
        assert (await ask(store, checks_for(who, START_US, model))).status is Status.ADMITTED, model
    for model in AWKWARD:
        refused = await ask(store, checks_for(who, START_US, model))
        assert refused.refusal is not None and refused.refusal.limit in (1, len(AWKWARD)), model


async def test_a_weight_above_the_limit_is_told_from_one_that_must_wait(store: Store) -> None:
    """*Never*, without a wait, and nothing is counted; a full limit is a wait. Of windows and of buckets."""
    for policy in (
        Policy(windows=(Window(Unit.TOKENS, 5),)),
        Policy(buckets=(TokenBucket(Unit.TOKENS, 1, 5),)),
    ):
        who = await tree(store, policy)
        checks = checks_for(who, START_US)
        for tokens in (6, 2**39):
            refusal = (await ask(store, checks, tokens)).refusal
            assert refusal is not None and (refusal.never, refusal.wait_us) == (True, None)
        assert (await ask(store, checks, 5)).status is Status.ADMITTED
        refusal = (await ask(store, checks, 5)).refusal
        assert refusal is not None and not refusal.never and (refusal.wait_us or 0) > 0


pattern = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.text("*:umab%", max_size=5)
user = st.text(st.characters(codec=None, exclude_categories=()), max_size=8) | st.text(":umab%?", max_size=5)


@given(st.lists(st.tuples(pattern, user), min_size=2, max_size=20, unique=True))
def test_names_are_injective(pairs: list[tuple[str, str]]) -> None:
    """No pattern and user together are called like another two; and no name could end a hash tag."""
    names = []
    for model, name in pairs:
        policy = Policy(windows=(Window(Unit.REQUESTS, 1, model=model, per_user=True),))
        (log,) = checks_for(principal("org_a", policy, None, None), START_US, None, name).logs
        names.append(log.name)
    assert len({*names}) == len({(model or "", name) for model, name in pairs})
    assert all(name.isascii() and name.isprintable() and not set(name) & set("{} ") for name in names)


def test_ids_need_no_escaping() -> None:
    """Ids of organisations, teams and keys are made here, of letters and digits: parts of keys as they are."""
    made = [new_id(prefix) for prefix in (ORGANISATION, TEAM, KEY) for _ in range(100)]
    assert len({*made}) == 300 and all(re.fullmatch(r"(org|team|key)_[a-z2-7]{16}", each) for each in made)
