"""A call that is put together from what was packed before is, byte for byte, the call as it is packed whole."""

from typing import Any

import msgspec
from hiredis import pack_command
from hypothesis import given
from hypothesis import strategies as st

from tests.governance.lua_redis import words_of
from tests.governance.test_twin import MODELS, USERS, policies, principal
from tollkeeper.domain.admission import BucketState, Checks, Demand, Grant, LogState, Reply, Status, checks_for
from tollkeeper.domain.entries import Entry, EntryKind, dispatch_of, settle_entry, void_entry
from tollkeeper.domain.policy import Policy, Unit, Window
from tollkeeper.domain.usage import Usage
from tollkeeper.governance.redis_calls import entry_call
from tollkeeper.governance.redis_plan import Plan, settlements_call
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.settings import StoreSettings

NOW_US = 1_795_000_000_123_456
big = st.integers(0, 2**53 - 1)
names = st.text(st.characters(codec="utf-8"), max_size=40)
STORE = RedisStore(StoreSettings(redis_url="redis://127.0.0.1:1"))
DIGESTS = [STORE._digests[script] for script in ("admit", "apply", "batch")]
ADMIT = DIGESTS[0]


@st.composite
def all_checks(draw: st.DrawFn) -> Checks:
    who = principal("org_1", draw(policies), draw(st.none() | policies), draw(st.none() | policies))
    return checks_for(who, NOW_US, draw(st.sampled_from(MODELS)), draw(st.sampled_from(USERS)))


def demands() -> st.SearchStrategy[Demand]:
    return st.builds(Demand, names, names, big, big, big, st.integers(0, 1))


@given(all_checks(), st.lists(st.tuples(demands(), names), min_size=1, max_size=3), st.sampled_from([0, NOW_US]))
def test_admissions(checks: Checks, asks: list[tuple[Demand, str]], time_us: int) -> None:
    plan = Plan(checks, *DIGESTS)
    for demand, life in asks:
        words: tuple[Any, ...] = ("EVALSHA", ADMIT, len(plan.keys), *plan.keys)
        whole = pack_command((*words, *plan.arguments(time_us, demand), life))
        packed = plan.admission(time_us, demand, life)
        assert packed == whole
        assert words_of(packed)[1] == ADMIT.encode()


def grants(checks: Checks) -> st.SearchStrategy[Grant]:
    logs = st.tuples(*[st.builds(LogState, big, big, big, big, big) for _ in checks.logs])
    buckets = st.tuples(*[st.builds(BucketState, st.integers(0, 1), big, big, big, big) for _ in checks.buckets])
    replies = st.builds(Reply, st.just(Status.ADMITTED), big, logs, buckets=buckets)
    return st.builds(Grant, demands(), st.just(checks), replies)


@st.composite
def entries(draw: st.DrawFn, checks: Checks) -> Entry:
    dispatch, number = dispatch_of(draw(grants(checks))), draw(big)
    if draw(st.booleans()):
        return void_entry(number, dispatch, 1, draw(big))
    usage = draw(st.builds(Usage, big, big, big))
    return settle_entry(number, dispatch, draw(big), usage, draw(st.integers(-50, 50)))


@given(st.data(), all_checks(), names, st.sampled_from([0, NOW_US]))
def test_settlements(data: st.DataObject, checks: Checks, producer: str, time_us: int) -> None:
    """Alone and several in one step; what gives back to buckets is left to the whole call."""
    plan = Plan(checks, *DIGESTS)
    brought = data.draw(st.lists(entries(checks), min_size=1, max_size=4))
    for entry in brought:
        script, keys, arguments = entry_call(time_us, "org_1", producer, entry)
        whole = pack_command(("EVALSHA", STORE._digests[script], len(keys), *keys, *arguments))
        assert plan.settlement(time_us, producer, entry) == (None if entry.buckets else whole)
    keys, arguments = settlements_call(time_us, "org_1", producer, brought)
    whole = pack_command(("EVALSHA", DIGESTS[2], len(keys), *keys, *arguments))
    packed = plan.settlements(time_us, producer, [(entry, None) for entry in brought])
    assert packed == (None if any(entry.buckets for entry in brought) else whole)


def test_what_does_not_fit_is_left_to_the_whole_call() -> None:
    """An entry of the same counters, but of other windows or slots, or of a kind that another script applies."""
    minute, hour = (Window(Unit.REQUESTS, 5, window_us) for window_us in (60_000_000, 3_600_000_000))
    who = principal("org_1", Policy(windows=(minute, hour), concurrency=3), None, None)
    checks = checks_for(who, NOW_US)
    plan = Plan(checks, *DIGESTS)
    state = LogState(1, 2, 3, 4, 5)
    grant = Grant(Demand("a.1", "p_1", 5, 7, NOW_US), checks, Reply(Status.ADMITTED, NOW_US, (state, state)))
    entry = void_entry(1, dispatch_of(grant), 1, 5)
    assert plan.settlement(0, "p_1", entry) is not None
    others: tuple[dict[str, Any], ...] = (
        {"runs": entry.runs[:1]},
        {"runs": entry.runs[::-1]},
        {"slots": ()},
        {"counters": (*entry.counters,)},
        {"kind": EntryKind.PRESUME},
        {"kind": EntryKind.USAGE},
    )
    for fields in others:
        other = msgspec.structs.replace(entry, **fields)
        assert plan.settlement(0, "p_1", other) is None
        assert plan.settlements(0, "p_1", [(entry, None), (other, None)]) is None
