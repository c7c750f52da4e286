"""The keys of a root, all under its hash tag: what each holds, and for how long. Names in them are the checks'."""

from typing import Final

ROOT_SLOT: Final = "."
"""How a hold names the root's own slot set, whose name is empty."""


def marks_key(root: str) -> str:
    """`marks:{root}`: hash of producer → last number applied, `run` and `sync`. No TTL."""
    return f"marks:{{{root}}}"


def hold_key(root: str) -> str:
    """`hold:{root}`: hash of attempt → hold (scripts/holds.lua tells its form). No TTL."""
    return f"hold:{{{root}}}"


def changed_key(root: str) -> str:
    """`changed:{root}`: hash of counter → generation in which it was flagged as changed. No TTL."""
    return f"changed:{{{root}}}"


def charges_key(root: str) -> str:
    """`charges:{root}`: hash of attempt → record of a charge with a rank that the database may lack. No TTL."""
    return f"charges:{{{root}}}"


def log_key(root: str, name: str) -> str:
    """`ratelimit:{root}[:<scope>]:<window µs>`: a log of runs; scripts/window.lua tells its form. 2 × window."""
    return f"ratelimit:{{{root}}}:{name}"


def bucket_key(root: str, name: str) -> str:
    """`tokenbucket:{root}[:<scope>]:<unit>:<rate>:<burst>`: packed; scripts/refill.lua tells its form. Until full."""
    return f"tokenbucket:{{{root}}}:{name}"


def pushed_key(root: str) -> str:
    """`pushed:{root}`: hash of the ids of pushes that were added, for a day after the last."""
    return f"pushed:{{{root}}}"


def slot_key(root: str, name: str) -> str:
    """`slots:{root}[:<scope>]`: sorted set of attempt → end of its lease (µs). The lease."""
    return f"slots:{{{root}}}:{name}" if name else f"slots:{{{root}}}"


def counter_key(root: str, name: str) -> str:
    """`cost:{root}[:<scope>]:<period>`: packed; scripts/counter.lua tells its form. 60 days after the period's end,
    totals never."""
    return f"cost:{{{root}}}:{name}"


def used_key(root: str, digest: str) -> str:
    """`used:{root}:<digest>`: what is remembered of an idempotency key; scripts/use.lua tells its form. 24 h."""
    return f"used:{{{root}}}:{digest}"


def unsaved_key(root: str) -> str:
    """`unsaved:{root}`: hash of digest → the same, of the idempotency keys that the database may lack. No TTL."""
    return f"unsaved:{{{root}}}"


def looked_key(root: str) -> str:
    """`looked:{root}`: hash of the idempotency keys that were looked up in the database while all that it remembers
    are on their way after a loss; until then."""
    return f"looked:{{{root}}}"
