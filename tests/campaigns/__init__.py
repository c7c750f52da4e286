"""Long trials with fixed seeds, behind `make campaign`; short slices of them are tests.

A campaign is a module with `QUESTION` and `run(seed, rounds)`, which yields one `Outcome` for each kind of trial.
Add it to `__main__.py`'s list.
"""

from typing import NamedTuple


class Outcome(NamedTuple):
    """What a number of rounds of one kind found. `differences` is what must be zero."""

    trial: str
    rounds: int
    checked: str
    differences: int
    notes: str = ""
