"""Step 6: every admitted attempt comes to exactly one end, a settlement or a void, whatever happens to its task.

An attempt is a small state machine: admitted → dispatched → ended. Whoever holds it calls `finish` in a `finally`,
which charges the hold if the truth is not known by then. It knows nothing of HTTP or of how usage is read.
"""

from enum import Enum

from tollkeeper.domain.admission import Grant
from tollkeeper.domain.ports import Governor
from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.gateway.charge import Charge, CostSource
from tollkeeper.gateway.instruments import Instruments


class State(Enum):
    """How far an attempt has come."""

    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    ENDED = "ended"


_ADMITTED, _DISPATCHED, _ENDED = State.ADMITTED, State.DISPATCHED, State.ENDED


class Attempt:
    """One admitted attempt. After its end `cost_nano`, `cost_source`, `usage`, `presumed` tell what was charged."""

    __slots__ = (
        *("_governor", "_instruments", "cost_nano", "cost_source", "ended", "grant", "presumed", "state", "usage"),
    )

    def __init__(self, grant: Grant, governor: Governor, instruments: Instruments) -> None:
        self.grant, self._governor, self._instruments = grant, governor, instruments
        self.state = _ADMITTED
        self.ended = False
        self.cost_nano = 0
        self.cost_source: CostSource | None = None
        self.usage = NO_USAGE
        self.presumed = False

    def __repr__(self) -> str:
        return f"<Attempt {self.grant.demand.attempt} {self.state.value} cost_nano={self.cost_nano}>"

    def _end(self) -> bool:
        """It ends here; False: it has ended before."""
        if self.ended:
            return False
        self.state, self.ended = _ENDED, True
        return True

    def dispatch(self) -> None:
        """Must be called before the first byte goes upstream. Raises OutboxUnavailable; then nothing may be sent."""
        self._governor.dispatched(self.grant)
        self.state = _DISPATCHED

    def void(self) -> None:
        """Nothing was sent: release everything."""
        if self._end():
            self._instruments.voided.inc()
            self._governor.void(self.grant)

    def settle(self, usage: Usage, charge: Charge) -> None:
        """Charge the true cost, also above the hold: that is counted, never cut."""
        if not self._end():
            return
        self.usage, self.cost_nano, self.cost_source = usage, charge.cost_nano, charge.source
        if charge.disbelieved:
            self._instruments.disbelieved.inc()
        if charge.unpriced_tier:
            self._instruments.unpriced_tiers.inc()
        excess = charge.cost_nano - self.grant.demand.hold_nano
        if excess > 0:
            self._instruments.excess.inc()
            self._instruments.excess_nano.inc(excess)
        self._governor.settle(self.grant, charge.cost_nano, usage)

    def presume(self) -> None:
        """It was sent and its cost cannot be known: charge the hold."""
        if not self._end():
            return
        self.cost_nano, self.presumed = self.grant.demand.hold_nano, True
        self.cost_source = CostSource.HOLD
        self._instruments.presumed.inc()
        self._governor.settle(self.grant, self.cost_nano, NO_USAGE, presumed=True)

    def finish(self) -> None:
        """The last resort of a `finally`: void what was never sent, presume what was."""
        if self.ended:
            return
        if self.state is _DISPATCHED:
            self.presume()
        else:
            self.void()
