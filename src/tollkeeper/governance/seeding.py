"""From the database's snapshot of a root to what the store is seeded with."""

from tollkeeper.domain.admission import split_counter
from tollkeeper.domain.periods import expiry_of_label
from tollkeeper.domain.ports import RootSnapshot
from tollkeeper.governance.store import SeedTotals


def seeds_of(snapshot: RootSnapshot, now_us: int) -> dict[str, SeedTotals]:
    """Counters that may still be asked for; those past their retention stay in the database alone."""
    seeds = {}
    for name, totals in snapshot.totals.items():
        expires_us = expiry_of_label(split_counter(name)[1])
        if expires_us == 0 or expires_us > now_us:
            seeds[name] = SeedTotals(expires_us, totals)
    return seeds
