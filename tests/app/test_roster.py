"""Which workers should run: decided without processes, with a clock that is passed in."""

from collections.abc import Sequence

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tollkeeper.app.roster import RESTART_MAX_S, RESTART_MIN_S, STABLE_S, End, Roster, Start, State, Stop

Actions = Sequence[Start | Stop]


def serving(wanted: int, now_s: float = 0.0) -> Roster:
    """A roster whose workers all serve."""
    roster = Roster(wanted)
    assert roster.due(now_s) == [Start(0)], "the first one alone"
    roster.serves(0, now_s)
    assert roster.due(now_s) == [Start(place) for place in range(1, wanted)]
    for place in range(1, wanted):
        roster.serves(place, now_s)
    assert roster.due(now_s) == [] and roster.wait_s(now_s) is None
    return roster


def test_a_configuration_that_cannot_work_is_refused_once() -> None:
    """The first worker does not start: no other is tried."""
    roster = Roster(4)
    roster.due(0.0)
    assert roster.ended(0, 1.0) is End.NOT_STARTED
    assert (roster.due(1.0), roster.failed, roster.done) == ([], True, True)


def test_the_dead_are_replaced_with_growing_pauses() -> None:
    """At once, then after 0.5 s, 1 s … 30 s; and at once again after one that served for a minute."""
    roster, now_s, pauses = serving(1), 0.0, []
    for _ in range(9):
        assert roster.ended(0, now_s) is End.DIED
        wait_s = roster.wait_s(now_s)
        assert wait_s is not None
        assert wait_s == 0 or roster.due(now_s + wait_s / 2) == []
        now_s += wait_s
        assert roster.due(now_s) == [Start(0)]
        roster.serves(0, now_s)
        pauses.append(wait_s)
    assert pauses == [0.0, *(RESTART_MIN_S * 2**n for n in range(6)), RESTART_MAX_S, RESTART_MAX_S]
    assert roster.ended(0, now_s + STABLE_S) is End.DIED
    assert roster.wait_s(now_s + STABLE_S) == 0


def test_a_renewal_replaces_one_after_the_other() -> None:
    """A new one serves before an old one is told to go; places are taken anew."""
    roster = serving(2)
    roster.renew()
    assert (roster.due(1.0), roster.renewed) == ([Start(2)], False)
    assert roster.due(2.0) == []
    roster.serves(2, 3.0)
    assert roster.due(3.0) == [Stop(0), Start(3)]
    roster.serves(3, 4.0)
    assert (roster.due(4.0), roster.renewed, roster.gave_up) == ([Stop(1)], True, False)
    assert (roster.ended(0, 5.0), roster.ended(1, 5.0)) == (End.LEFT, End.LEFT)
    assert roster.due(5.0) == [] and roster.counts()[State.SERVING] == 2


def test_a_renewal_that_cannot_work_leaves_the_old_ones() -> None:
    roster = serving(2)
    roster.renew()
    roster.due(1.0)
    assert roster.ended(2, 2.0) is End.NOT_STARTED
    assert (roster.due(2.0), roster.gave_up, roster.renewed) == ([], True, True)
    assert roster.counts()[State.SERVING] == 2
    roster.renew()
    assert roster.due(3.0) == [Start(2)], "another renewal is another try"


def test_a_second_renewal_waits_for_the_first() -> None:
    roster = serving(1)
    roster.renew()
    assert roster.due(1.0) == [Start(1)]
    roster.renew()
    assert roster.due(1.5) == []
    roster.serves(1, 2.0)
    assert (roster.due(2.0), roster.renewed) == ([Stop(0)], False)
    assert roster.due(2.5) == [], "two processes at most: the first one is still leaving"
    roster.ended(0, 3.0)
    assert roster.due(3.0) == [Start(0)]


def test_all_go_at_the_end() -> None:
    roster = serving(3)
    roster.ended(1, 1.0)
    roster.due(1.0)
    roster.close()
    assert roster.due(2.0) == [Stop(0), Stop(1), Stop(2)]
    assert (roster.due(2.0), roster.done, roster.wait_s(2.0)) == ([], False, None)
    for place in range(3):
        assert roster.ended(place, 3.0) is End.LEFT
    assert (roster.done, roster.failed) == (True, False)


class AnyLife(RuleBasedStateMachine):
    """Whatever happens, in whatever order."""

    @initialize(wanted=st.integers(1, 4))
    def begin(self, wanted: int) -> None:
        self.roster, self.now_s, self.places, self.closed = Roster(wanted), 0.0, set[int](), False
        self.served = False
        self.look()

    def look(self) -> Actions:
        actions = self.roster.due(self.now_s)
        for action in actions:
            if isinstance(action, Start):
                assert action.place not in self.places
                self.places.add(action.place)
        return actions

    def draw(self, data: st.DataObject, *states: State) -> int | None:
        places = [place for place in sorted(self.places) if self.roster.state(place) in states]
        return data.draw(st.sampled_from(places)) if places else None

    @rule(data=st.data())
    def one_serves(self, data: st.DataObject) -> None:
        place = self.draw(data, State.STARTING)
        if place is not None:
            self.roster.serves(place, self.now_s)
            self.served = True
            self.look()

    @rule(data=st.data())
    def one_ends(self, data: st.DataObject) -> None:
        place = self.draw(data, *State)
        if place is not None:
            self.roster.ended(place, self.now_s)
            self.places.remove(place)
            self.look()

    @rule(after_s=st.sampled_from([0.1, 1.0, 40.0, 100.0]))
    def time_passes(self, after_s: float) -> None:
        self.now_s += after_s
        self.look()

    @rule()
    def is_renewed(self) -> None:
        self.roster.renew()
        self.look()

    @precondition(lambda self: self.served)
    @rule(data=st.data())
    def closes(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 9)) == 0:
            self.roster.close()
            self.closed = True
            self.look()

    @invariant()
    def bounded(self) -> None:
        assert len(self.places) <= 2 * self.roster.wanted
        assert all(0 <= place < 2 * self.roster.wanted for place in self.places)

    def teardown(self) -> None:
        """Left alone with workers that start, everything comes to rest: all wanted ones serve, or none is left."""
        if not hasattr(self, "roster"):
            return
        for _ in range(100):
            for place in sorted(self.places):
                state = self.roster.state(place)
                if state is State.STARTING:
                    self.roster.serves(place, self.now_s)
                elif state is State.LEAVING:
                    self.roster.ended(place, self.now_s)
                    self.places.remove(place)
            wait_s = self.roster.wait_s(self.now_s)
            if not self.look() and wait_s is None and State.LEAVING not in map(self.roster.state, self.places):
                break
            self.now_s += wait_s or 0.0
        ends = self.closed or self.roster.failed
        assert self.roster.counts()[State.SERVING] == (0 if ends else self.roster.wanted)
        assert self.roster.done == ends and (ends or self.roster.renewed)


AnyLife.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyLife = AnyLife.TestCase
