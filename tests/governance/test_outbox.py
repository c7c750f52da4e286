"""Outboxes on one disk, whose processes start, die and clear up at the same time."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
