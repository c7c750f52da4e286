"""Outboxes on one disk, whose processes start, die and clear up at the same time; and a disk that takes no more."""

import resource
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tollkeeper.domain.entries import Dispatch, settle_entry
from tollkeeper.domain.errors import OutboxUnavailable
from tollkeeper.domain.usage import Usage
from tollkeeper.governance.outbox import new_outbox, open_outbox

STARTERS = 8
STARTS = 40


def test_starters_at_the_same_time_never_take_each_other_for_dead(tmp_path: Path) -> None:
    """Each gets an outbox of its own, each dead one is closed by exactly one, and what is being removed is in no
    one's way. Locks are of open files, so threads stand for processes here."""
    closed: Counter[str] = Counter()

    def live_and_die(_: int) -> list[str]:
        names = []
        for _ in range(STARTS):
            own, dead = open_outbox(tmp_path)
            names.append(own.producer)
            for outbox in dead:
                closed[outbox.producer] += 1
                outbox.remove()
            own.unlock()  # as a crash does: no clean stop is left behind
        return names

    with ThreadPoolExecutor(STARTERS) as pool:
        names = [name for each in pool.map(live_and_die, range(STARTERS)) for name in each]
    assert len(set(names)) == STARTERS * STARTS
    _, dead = open_outbox(tmp_path)
    assert {*closed, *(outbox.producer for outbox in dead)} == set(names)
    assert set(closed.values()) == {1}


def test_a_new_outbox_is_locked_when_others_can_see_it(tmp_path: Path) -> None:
    """So a start that looks through the folder in that instant finds nothing to close."""
    tmp_path.joinpath(".p_being_made").mkdir()
    own = new_outbox(tmp_path)
    other, dead = open_outbox(tmp_path)
    assert dead == [] and other.producer != own.producer


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The kernel writes no byte of any file beyond `size`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_is_told_and_the_next_takes_its_place(tmp_path: Path) -> None:
    own = new_outbox(tmp_path)
    own.reserve()
    first, second, third = (Dispatch(f"{name}.1", 10, (), (), ()) for name in "abc")
    own.dispatch("org_a", first)
    with files_end_at(own.bytes_kept + 20), pytest.raises(OutboxUnavailable, match="No space left on device"):
        own.dispatch("org_a", second)  # cut off
    with files_end_at(own.bytes_kept), pytest.raises(OutboxUnavailable, match="File too large"):
        own.dispatch("org_a", second)
    own.failure = "nothing yet"
    with files_end_at(own.bytes_kept):
        own.append("org_a", settle_entry(1, first, 7, Usage(), 0))
    assert "File too large" in own.failure
    own.dispatch("org_a", third)
    own.unlock()
    _, (dead,) = open_outbox(tmp_path)
    assert {name: dispatch for name, (_, dispatch, _) in dead.in_flight.items()} == {"a.1": first, "c.1": third}
    assert dead.entries_above("org_a", 0) == []
