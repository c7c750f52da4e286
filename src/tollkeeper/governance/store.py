"""The fast store behind admission and settlement: one Protocol, kept by memory and by Redis.

One contract suite runs on both (tests/governance/test_store_contract.py).
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from tollkeeper.domain.admission import Checks, Demand, Reply
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import Applied, Dispatch, Entry, Used
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.domain.recovery import Gate, Looked, Ready
from tollkeeper.domain.windows import LogPush

COUNTERS_PAGE: Final = 250
"""Counters that are looked at together, so that nobody waits for long."""


class Snapshot(msgspec.Struct, frozen=True):
    """Marks and changed totals of a root, true at one instant. `versions` are the flags to clear after the commit,
    `life` is that of the server. A memory without a number (`content.fence` 0) must be given one to be saved."""

    run: str
    life: str
    content: RootSnapshot
    versions: Mapping[str, str]


class Memory(msgspec.Struct, frozen=True):
    """Which memory of a root was looked at: its run, and how many records have left it."""

    run: str
    drops: int


class Held(msgspec.Struct, frozen=True):
    """A hold as the store has it."""

    attempt: str
    producer: str
    amount_nano: int
    counters: tuple[str, ...]
    slots: tuple[str, ...]


class SeedTotals(msgspec.Struct, frozen=True):
    """One counter as the database knows it; `expires_us` 0: never."""

    expires_us: int
    totals: SpendTotals


class Names(msgspec.Struct, frozen=True):
    """What an entry or an admission touches in a root, beside what every root has."""

    counters: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    used: tuple[str, ...] = ()


Done = Callable[[Applied | StoreUnavailable], None]


class Store(Protocol):
    """All methods are one atomic step of one root; every wait has a deadline. Raises `StoreUnavailable`, of which
    `StoreDamaged` says that `mend` may help."""

    async def start(self) -> None:
        """Connect. Raises `StoreUnavailable` if that fails; the store goes on trying."""
        ...

    async def stop(self) -> None: ...

    async def ping(self) -> None:
        """Raises `StoreUnavailable` with the reason."""
        ...

    def server(self, root: str) -> str:
        """The name of the server that keeps a root: what is away together has one name."""
        ...

    async def probe(self, server: str) -> None:
        """Whether that server answers and takes writes. Raises `StoreUnavailable` with the reason."""
        ...

    def watch(self, on_new_life: Callable[[], None]) -> None:
        """Have `on_new_life` called when the server is found to live another life than before: it may have lost
        something."""
        ...

    def now_us(self) -> int:
        """The store's clock, near enough for deadlines."""
        ...

    async def admit(self, checks: Checks, demand: Demand) -> Reply:
        """Decide. Idempotent by attempt id, so that it may be asked again when an answer was lost."""
        ...

    def apply(self, root: str, producer: str, entry: Entry, done: Done) -> None:
        """Send one entry at once, in the order of calls; `done` is called with the answer, or why there is none.

        Entries that share a `done` may share a call of it, with the mark of the last."""
        ...

    async def mend(self, root: str, names: Names) -> list[str]:
        """Remove what is not ours under our keys: all that every root has, all counters that are flagged or held, and
        those that are named. Returns the keys.

        A limit has then forgotten what it counted. If money was among it the tree is cold afterwards, as after a
        loss: the database and the producers know what it was.
        """
        ...

    async def marks(self, root: str) -> Mapping[str, int] | None:
        """Marks of all producers; None if the tree is cold."""
        ...

    async def memory(self, root: str) -> Memory | None:
        """To be asked before the database is, for `recall`; None if the tree is cold."""
        ...

    async def recall(
        self, root: str, memory: Memory, attempt: str, charge: Charge, marks: Mapping[str, int]
    ) -> bool | None:
        """Bring back a record that left when the database had it. False: ask again, the memory is another by now;
        None: it does not have all that the database has at `marks`."""
        ...

    async def held(self, root: str) -> list[Held]:
        """All holds of a root."""
        ...

    async def drop_marks(self, root: str, producers: Sequence[str]) -> None:
        """Forget the marks of buried producers."""
        ...

    def roots(self) -> AsyncIterator[str]:
        """Every root this store knows, some perhaps twice."""
        ...

    async def reset(self, root: str, logs: Sequence[str], slots: Sequence[str], buckets: Sequence[str] = ()) -> None:
        """Empty windows, fill buckets and free slots."""
        ...

    async def seed(
        self,
        root: str,
        run: str,
        marks: Mapping[str, int],
        totals: Mapping[str, SeedTotals],
        *,
        lost: bool,
        keys_follow: bool = False,
    ) -> bool:
        """Load a tree from the database unless it already dominates; True if it was loaded.

        If something may have been `lost`, the tree then waits for the producers (`gate`). If `keys_follow`, an
        idempotency key must be looked up in the database before it is charged, until all have been brought.
        """
        ...

    async def gate(self, root: str, run: str, grace_us: int, open_producers: Sequence[str]) -> Gate | None:
        """Who is waited for after a loss; begins to wait, in the new `run`, in a life of the server that the tree was
        not in before. None if the tree is cold."""
        ...

    async def ready(self, root: str, run: str, producer: str) -> Ready:
        """This producer has sent again all it has to that run."""
        ...

    async def announce(self, root: str, seconds: int) -> None:
        """Tell all producers, for so long, that a root waits for them."""
        ...

    async def announced(self) -> list[str]:
        """Roots that wait for producers."""
        ...

    async def unannounce(self, root: str) -> None: ...

    async def restore(self, root: str, name: str, seed: SeedTotals) -> None:
        """Bring back a counter of an ended period."""
        ...

    async def reassert(self, root: str, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
        """Hold again what was in flight when the producer had given its numbers up to `number`. False: the tree is
        cold, or beyond that number, and holds no more of them than before."""
        ...

    async def renew(self, leases: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        """Heartbeat: root → attempt → slot names in flight."""
        ...

    async def push(self, root: str, push_id: str, pushes: Sequence[LogPush]) -> bool:
        """Add by force what was admitted without this store; False if this push was here before."""
        ...

    async def claim(self, root: str, slots: Mapping[str, Sequence[str]]) -> None:
        """Lease slots for attempts in flight (slot name → attempts), whatever the limits."""
        ...

    async def used(self, root: str, digest: str) -> Used | None:
        """What is remembered of an idempotency key."""
        ...

    async def remember(self, root: str, used: Mapping[str, Used]) -> None:
        """Before a seed: the idempotency keys that the database knows."""
        ...

    async def looked_up(self, root: str, run: str, digest: str, known: Used | None) -> Looked:
        """While keys follow a seed: one as the database has it (None: not), by a look that began in this run."""
        ...

    async def bring(
        self, root: str, run: str, bearer: str, used: Mapping[str, Used], *, lease_us: int, last: bool
    ) -> bool:
        """Some of the keys that follow a seed. False: another memory, all are there, or another brings them."""
        ...

    async def snapshot(self, root: str) -> Snapshot | None:
        """What the sync worker writes; None if the tree is cold."""
        ...

    def counters(self) -> AsyncIterator[Mapping[str, Sequence[str]]]:
        """Every counter this store knows, some perhaps twice: in pages of at most `COUNTERS_PAGE`, root → names."""
        ...

    async def take_turn(self, who: str, seconds: int, *, first: bool) -> bool:
        """Whether this gateway may compare all counters with the database, or another has the turn, for so long. The
        `first` time it may whoever has it."""
        ...

    async def keep_turn(self, seconds: int) -> None:
        """From now on nobody else has the turn for so long."""
        ...

    async def totals(self, root: str, names: Sequence[str]) -> Mapping[str, SpendTotals]:
        """What the store has of counters; without those that it does not have."""
        ...

    async def flag(self, root: str, names: Sequence[str]) -> int:
        """Have the next snapshot bring these counters. Returns how many it would not have brought."""
        ...

    async def fence(self, root: str, run: str, life: str, number: int) -> bool:
        """Number the memory of which a snapshot told `run` and `life`; False: it is another by now."""
        ...

    async def clear(
        self,
        root: str,
        run: str,
        life: str,
        versions: Mapping[str, str],
        used: Mapping[str, Used] | None = None,
    ) -> None:
        """Clear flags that are unchanged since the snapshot, and forget that these keys were not saved."""
        ...
