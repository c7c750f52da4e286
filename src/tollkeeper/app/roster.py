"""Which worker processes should run: the supervisor's decisions, without processes, signals or a clock.

The first worker starts alone, so that a configuration that cannot work is refused once and not N times. A worker
that dies is replaced, at once the first time, then after pauses that double until one has served for a while. A
renewal (SIGHUP) brings up one new worker after the other and lets an old one go for each that serves; if a new one
fails to start, the old ones stay.
"""

from enum import StrEnum
from typing import Final

import msgspec

RESTART_MIN_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
STABLE_S: Final = 60.0
"""A worker that has served for so long forgives those that died before."""


class State(StrEnum):
    """Of a worker."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"


class End(StrEnum):
    """How a worker ended."""

    LEFT = "left"
    DIED = "died"
    NOT_STARTED = "not_started"


class Start(msgspec.Struct, frozen=True):
    """Start a worker in this place."""

    place: int


class Stop(msgspec.Struct, frozen=True):
    """Tell the worker in this place to finish what it has and go."""

    place: int


class _Worker(msgspec.Struct):
    generation: int
    state: State
    since_s: float


class Roster:
    """Asked what is `due`, told what happened. Places are numbers from 0; there are at most `2 * wanted`."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.failed = False
        """The first worker did not start: everything ends."""
        self.gave_up = False
        """A new worker did not start in the last renewal, so the old ones stayed."""
        self._workers: dict[int, _Worker] = {}
        self._generation = 0
        self._served = self._closing = self._renew_again = False
        self._deaths = 0
        self._not_before_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Roster wanted={self.wanted} {self.counts()}>"

    def counts(self) -> dict[State, int]:
        """Workers in each state."""
        states = [worker.state for worker in self._workers.values()]
        return {state: states.count(state) for state in State}

    @property
    def done(self) -> bool:
        """Nothing runs and nothing shall."""
        return self._closing and not self._workers

    @property
    def renewed(self) -> bool:
        """No renewal is under way."""
        return not (self._renew_again or self._of_before()) and len(self._of_now(State.SERVING)) >= self.wanted

    def state(self, place: int) -> State | None:
        """None: nobody is there."""
        worker = self._workers.get(place)
        return None if worker is None else worker.state

    # What happened

    def serves(self, place: int, now_s: float) -> None:
        """A worker accepts connections."""
        worker = self._workers[place]
        if worker.state is State.STARTING:
            worker.state, worker.since_s = State.SERVING, now_s
            self._served = True

    def ended(self, place: int, now_s: float) -> End:
        """A worker's process is gone."""
        worker = self._workers.pop(place)
        if worker.state is State.LEAVING:
            return End.LEFT
        if worker.state is State.STARTING and not self._served:
            self.failed = self._closing = True
            return End.NOT_STARTED
        if worker.state is State.SERVING and now_s - worker.since_s >= STABLE_S:
            self._deaths = 0
        if self._deaths:
            self._not_before_s = now_s + min(RESTART_MAX_S, RESTART_MIN_S * 2.0 ** (self._deaths - 1))
        self._deaths += 1
        if worker.state is State.SERVING:
            return End.DIED
        if self._of_before():
            self.gave_up = True
            for other in self._workers.values():
                other.generation = self._generation
        return End.NOT_STARTED

    def renew(self) -> None:
        """Replace all workers by new ones, one after the other. While that is under way: once more after it."""
        if self._of_before() or self.counts()[State.STARTING]:
            self._renew_again = True
            return
        self._generation += 1
        self.gave_up = self._renew_again = False
        self._deaths = 0
        self._not_before_s = float("-inf")

    def close(self) -> None:
        """All shall go."""
        self._closing = True

    # What to do

    def due(self, now_s: float) -> list[Start | Stop]:
        """What is to be done now; it counts as done."""
        if self._closing:
            return [self._stop(place, now_s) for place in self._places(State.STARTING, State.SERVING)]
        if self._renew_again and not self._of_before() and not self.counts()[State.STARTING]:
            self.renew()
        actions: list[Start | Stop] = []
        before = self._of_before()
        serving = len(self._of_now(State.SERVING))
        for place in before[: max(0, len(before) + serving - self.wanted)]:
            actions.append(self._stop(place, now_s))
        while self._may_start(now_s):
            place = next(n for n in range(2 * self.wanted) if n not in self._workers)
            self._workers[place] = _Worker(self._generation, State.STARTING, now_s)
            actions.append(Start(place))
        return actions

    def wait_s(self, now_s: float) -> float | None:
        """How long until something may be due without anything happening; None: for ever."""
        missing = self.wanted - len(self._of_now(State.STARTING, State.SERVING))
        return max(0.0, self._not_before_s - now_s) if missing > 0 and not self._closing else None

    def _may_start(self, now_s: float) -> bool:
        starting = len(self._of_now(State.STARTING))
        if starting + len(self._of_now(State.SERVING)) >= self.wanted or now_s < self._not_before_s:
            return False
        alone = not self._served or bool(self._of_before()) or self._deaths > 1
        return len(self._workers) < 2 * self.wanted and not (alone and starting)

    def _stop(self, place: int, now_s: float) -> Stop:
        worker = self._workers[place]
        worker.state, worker.since_s = State.LEAVING, now_s
        return Stop(place)

    def _places(self, *states: State) -> list[int]:
        return sorted(place for place, worker in self._workers.items() if worker.state in states)

    def _of_now(self, *states: State) -> list[int]:
        return [p for p in self._places(*states) if self._workers[p].generation == self._generation]

    def _of_before(self) -> list[int]:
        live = self._places(State.STARTING, State.SERVING)
        return [p for p in live if self._workers[p].generation < self._generation]
