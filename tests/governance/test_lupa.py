"""Promises 1 to 3: the scripts under Lua in this process equal their twins in every answer and every stored field."""

import pytest
from hypothesis import example, given, settings

from tests.governance.damage_trials import play_damage
from tests.governance.limiter_trials import Move
from tests.governance.script_trials import (
    admissions,
    buckets,
    play,
    play_admission,
    play_bucket,
    play_heavy_runs,
    play_limits_of_nothing,
    play_replies,
    play_step,
    play_window,
    togethers,
    windows,
)
from tollkeeper.domain.policy import Policy, TokenBucket, Unit, Window

REQUESTS = Policy(windows=(Window(Unit.REQUESTS, 3),))
BUCKET = Policy(buckets=(TokenBucket(Unit.REQUESTS, 1, 1),))
Admission = tuple[Policy, Policy | None, Policy | None, list[Move], bool]


@settings(max_examples=150, deadline=None)
@given(admissions(0))
@example((REQUESTS, None, None, [("admit", 0, 0), ("flood", 0, 2**40 - 1), ("admit", 1, 0)], False))
@example((BUCKET, None, None, [("admit", 0, 0), ("void", 0), ("back", 1)], False))
def test_admission_and_settlement(trial: Admission) -> None:
    """Any schedule of admissions, entries, losses, forged corrections, dead producers and clock moves."""
    play(None, lambda lua: play_admission(lua, trial))


@settings(max_examples=100, deadline=None)
@given(togethers(0))
def test_settlements_together(trial: Admission) -> None:
    """What entries do in one step is what they do one after the other, or nothing."""
    play(None, lambda lua: play_admission(lua, trial))


def test_step() -> None:
    """The same, where schedules seldom get."""
    play(None, play_step)


@settings(max_examples=150, deadline=None)
@given(windows(0))
@example((60_000_000, [("ask", 9, 1), ("wait", 60_000_000), ("ask", 9, 1), ("wait", 60_001_000), ("usage",)]))
@example((7_001, [("ask", 9, 1), ("back", 500_000), ("ask", 9, 1), ("wait", 100_000), ("usage",)]))
def test_windows(trial: tuple[int, list[Move]]) -> None:
    """The library's sliding window equals its twin and the oracle; its key lives as long as it matters."""
    play(None, lambda lua: play_window(lua, trial))


@settings(max_examples=150, deadline=None)
@given(buckets(0))
def test_buckets(schedule: list[Move]) -> None:
    """The library's token bucket, the same."""
    play(None, lambda lua: play_bucket(lua, schedule))


@pytest.mark.parametrize("script", ["allow", "bucket"])
def test_replies(script: str) -> None:
    """To the last field, and deadlines to the µs."""
    play(None, lambda lua: play_replies(lua, script))


def test_damage() -> None:
    """What is not ours under a key of ours: an entry is applied whole, or not at all."""
    play(None, play_damage)


def test_limits_of_nothing() -> None:
    """What no policy can say, but a script must not misread."""
    play(None, play_limits_of_nothing)


def test_heavy_runs() -> None:
    """A thousand runs of the largest weights, and the log is cut."""
    play(None, play_heavy_runs)
