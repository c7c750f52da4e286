"""Which deployment is next, by strategy, limits and health: decisions with time and chance passed in."""

from collections import Counter
from typing import Any

import pytest

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.breaker import BreakerRules
from tollkeeper.gateway.fleet import MEMBERS_MAX, Fleet, Option, choose
from tollkeeper.gateway.itinerary import Itinerary, Stop
from tollkeeper.gateway.routing import Deployment, Pool, Route
from tollkeeper.settings import RoutingSettings

S = 1_000_000
RULES = BreakerRules(failures=1, failure_ratio=0.5, requests_min=10, window_us=60 * S, cooldown_us=30 * S)


def deployment(name: str, weight: int = 1, **limits: Any) -> Deployment:
    return Deployment(Route("smart", name, name), weight, **limits)


def fleet_of(*deployments: Deployment) -> tuple[Fleet, list[Option]]:
    fleet = Fleet(RULES, deployments)
    return fleet, [(d, fleet.member(d)) for d in deployments]


def names(*pools: Pool) -> list[str]:
    return [d.route.provider for pool in pools for d in pool.deployments]


def test_weights_are_shares() -> None:
    """Over all of [0, 1) each gets exactly its share, and weights belong to the name, not to the deployment."""
    _, options = fleet_of(deployment("a", 1), deployment("b", 3))
    drawn = Counter(choose("weighted", options, 0, n / 1000)[0].route.provider for n in range(1000))
    assert drawn == {"a": 250, "b": 750}
    other = [(deployment("a", 9), options[0][1]), options[1]]
    assert Counter(choose("weighted", other, 0, n / 1200)[0].route.provider for n in range(1200)) == {
        "a": 900,
        "b": 300,
    }


def test_the_quickest_first_byte_wins_and_the_unknown_are_measured_by_one_request() -> None:
    _, options = fleet_of(deployment("a"), deployment("b"))
    a, b = options[0][1], options[1][1]
    for member in (a, b):
        turn = member.take(0, 1)
        assert choose("latency", options, 0, 0.0)[1] is not member, "one request under way measures it"
        turn.member.measure(S, 100_000 if member is a else 50_000)
        turn.end(Usage(1))
    assert choose("latency", options, S, 0.0)[1] is b
    for _ in range(20):
        turn = b.take(S, 1)
        turn.member.measure(S, 400_000)
        turn.end(Usage(1))
    assert choose("latency", options, S, 0.9)[1] is a
    assert choose("latency", options, 62 * S, 0.9)[1] in (a, b), "old measurements are not believed: both are unknown"
    assert b.latency_us(62 * S) == 0 and 300_000 < b.latency_us(2 * S) <= 400_000


def test_least_busy_is_by_weight() -> None:
    _, options = fleet_of(deployment("a", 1), deployment("b", 2))
    chosen = []
    for _ in range(6):
        picked = choose("busy", options, 0, 0.0)
        picked[1].take(0, 1)
        chosen.append(picked[0].route.provider)
    assert Counter(chosen) == {"a": 2, "b": 4}


def test_a_minute_of_requests_and_tokens() -> None:
    """Exact in any minute, like a key's limits; the truth replaces the estimate; what was not sent never counted."""
    _, [(_, member)] = fleet_of(deployment("a", requests_per_minute=2, tokens_per_minute=1000))
    member.take(0, 600).end(Usage(100))
    assert member.full_for_us(S, 900) is None
    assert member.full_for_us(S, 901) == 59 * S
    member.take(S, 900).end(None, sent=False)
    assert member.full_for_us(2 * S, 900) is None
    member.take(2 * S, 10).end(None)
    assert member.full_for_us(3 * S, 1) == 57 * S, "two requests"
    assert member.full_for_us(60 * S, 1) is None
    assert member.full_for_us(200 * S, 5000) is None, "more than the limit waits for an empty minute only"


def test_concurrency() -> None:
    _, [(_, member)] = fleet_of(deployment("a", concurrency=1))
    turn = member.take(0, 1)
    assert member.full_for_us(0, 1)
    turn.end(Usage(1))
    assert member.full_for_us(0, 1) is None


def test_names_that_clients_make_up_are_forgotten() -> None:
    fleet, [(_, kept)] = fleet_of(deployment("a"))
    busy = fleet.member(deployment("busy"))
    busy.take(0, 1)
    for number in range(2 * MEMBERS_MAX):
        fleet.member(deployment(f"made-up-{number}"))
    assert len(fleet._members) <= MEMBERS_MAX
    assert fleet.member(deployment("a")) is kept and fleet.member(deployment("busy")) is busy


ROUTING = RoutingSettings(attempts_max=5, attempts_per_model_max=3, backoff_min_s=1.0, retry_after_max_s=10.0)


def way(fleet: Fleet, *pools: Pool, routing: RoutingSettings = ROUTING) -> Itinerary:
    return Itinerary(pools, fleet, routing)


def test_untried_deployments_first_then_the_tried_after_a_pause_then_the_fallbacks() -> None:
    fleet = Fleet(BreakerRules(100, 1.0, 100, S, S))
    its = way(fleet, Pool("m", (deployment("a"), deployment("b"))), Pool("f", (deployment("c"),)))
    seen: list[tuple[str, int]] = []
    while (stop := its.next(0, 0.0 if not seen else 0.5)) is not None:
        its.went(stop)
        seen.append((stop.deployment.route.provider, stop.pause_us))
    assert [name for name, _ in seen] == ["a", "b", "a", "c", "c"]
    assert [pause_us for _, pause_us in seen] == [0, 0, S // 2, 0, S // 2]


def test_no_more_than_the_attempts_of_a_request() -> None:
    fleet = Fleet(BreakerRules(100, 1.0, 100, S, S))
    its = way(fleet, *(Pool(n, (deployment(n),)) for n in "abcdefgh"), routing=RoutingSettings(attempts_max=3))
    for _ in range(3):
        stop = its.next(0, 0.0)
        assert stop is not None
        its.went(stop)
    assert its.next(0, 0.0) is None


@pytest.mark.parametrize("options", [{}, {"concurrency": 1}, {"requests_per_minute": 1}])
@pytest.mark.parametrize("state", ["well", "open", "tried", "barred", "left"])
def test_where_nothing_is_to_be_chosen_the_choice_is_the_same(state: str, options: dict[str, Any]) -> None:
    """The quick first choice is that of the whole rule, or none."""
    only, other = deployment("a", **options), deployment("b")
    fleet = Fleet(RULES)
    its = way(fleet, Pool("m", (only,)), Pool("f", (other,)))
    if state == "open":
        open_it(fleet, "a")
    elif state == "tried":
        its.went(Stop(only, fleet.member(only), Pool("m", (only,))))
    elif state == "barred":
        its.bar(fleet.member(only))
    elif state == "left":
        its.leave_model()
    quick = its.only_one()
    assert (quick is not None) is (state == "left" or (state == "well" and not options))
    assert quick is None or quick == its.next(S, 0.5)
    assert way(fleet, Pool("m", (only, other))).only_one() is None


def open_it(fleet: Fleet, name: str) -> None:
    member = fleet.member(deployment(name))
    member.take(0, 1).failed(0)


@pytest.mark.parametrize("strategy", ["weighted", "latency", "busy"])
def test_what_cools_down_is_passed_over_unless_everything_does(strategy: str) -> None:
    a, b, c = deployment("a"), deployment("b"), deployment("c")
    fleet = Fleet(RULES)
    pools = Pool("m", (a, b), strategy), Pool("f", (c,))  # type: ignore[arg-type]
    open_it(fleet, "a")
    stop = way(fleet, *pools).next(S, 0.0)
    assert stop is not None and stop.deployment is b
    open_it(fleet, "b")
    stop = way(fleet, *pools).next(S, 0.0)
    assert stop is not None and stop.deployment is c, "a fallback that is well before a model that is not"
    open_it(fleet, "c")
    its = way(fleet, *pools)
    stop = its.next(S, 0.0)
    assert stop is not None and stop.deployment in (a, b), "the model itself, as if nothing cooled down"
    its.went(stop)
    assert its.next(S, 0.0) is None, "but a retry does not go to what cools down"


def test_a_short_cooldown_is_waited_for_a_long_one_is_not() -> None:
    for cool_s, waits in ((5, True), (11, False)):
        fleet = Fleet(RULES)
        its = way(fleet, Pool("m", (deployment("a"),)))
        stop = its.next(0, 0.5)
        assert stop is not None
        its.went(stop)
        stop.member.take(0, 1).failed(0, cool_s * S)
        stop = its.next(0, 0.5)
        assert (stop is not None) is waits
        if stop is not None:
            assert stop.pause_us == cool_s * S + S // 2


def test_barred_is_not_asked_again() -> None:
    fleet = Fleet(RULES)
    its = way(fleet, Pool("m", (deployment("a"), deployment("b"))))
    stop = its.next(0, 0.0)
    assert stop is not None
    its.went(stop)
    its.bar(stop.member)
    second = its.next(0, 0.0)
    assert second is not None and second.member is not stop.member
    its.bar(second.member)
    assert its.next(0, 0.0) is None
