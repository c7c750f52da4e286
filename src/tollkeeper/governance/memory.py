"""The memory store: one `Tree` per root in this process. The embedded default; only one process may use it.

It knows no more than where the trees are kept and what time it is: the rules are in domain/tree.py.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from tollkeeper.domain.admission import Checks, Demand, Reply
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import Dispatch, Entry, Used
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.domain.recovery import Gate, Looked, Ready
from tollkeeper.domain.tree import Tree
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance.store import COUNTERS_PAGE, Done, Held, Memory, Names, SeedTotals, Snapshot

SWEEP_EVERY: Final = 10_000
"""Admissions between two sweeps of what has expired in the tree that is asked."""


class MemoryStore:
    """Keeps `Store` with no IO at all: every method is done when it returns."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self.life = "memory"
        """The one life of this store: it ends with the process."""
        self._trees: dict[str, Tree] = {}
        self._admissions = 0

    def __repr__(self) -> str:
        return f"<MemoryStore roots={len(self._trees)}>"

    def tree(self, root: str) -> Tree:
        """The tree of a root; a cold one is made."""
        tree = self._trees.get(root)
        if tree is None:
            tree = self._trees[root] = Tree()
        return tree

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def ping(self) -> None: ...

    def server(self, root: str) -> str:
        return "memory"

    async def probe(self, server: str) -> None: ...

    def watch(self, on_new_life: Callable[[], None]) -> None:
        """This store has one life."""

    async def admit(self, checks: Checks, demand: Demand) -> Reply:
        now_us, tree = self.now_us(), self.tree(checks.root)
        self._admissions += 1
        if self._admissions % SWEEP_EVERY == 0:
            tree.sweep(now_us)
        return tree.admit(now_us, checks, demand, self.life if demand.attempt and checks.has_budget else "")

    def apply(self, root: str, producer: str, entry: Entry, done: Done) -> None:
        done(self.tree(root).apply(self.now_us(), producer, entry, self.life))

    async def mend(self, root: str, names: Names) -> list[str]:
        return []  # nobody else has a hand in it

    async def marks(self, root: str) -> Mapping[str, int] | None:
        tree = self.tree(root)
        return None if tree.run is None else dict(tree.marks)

    async def reset(self, root: str, logs: Sequence[str], slots: Sequence[str], buckets: Sequence[str] = ()) -> None:
        self.tree(root).reset(logs, slots, buckets)

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
        pairs = {name: (seed.expires_us, seed.totals) for name, seed in totals.items()}
        return self.tree(root).seed(run, marks, pairs, "" if lost else self.life, keys_follow=keys_follow)

    async def gate(self, root: str, run: str, grace_us: int, open_producers: Sequence[str]) -> Gate | None:
        return self.tree(root).gate(self.life, run, self.now_us() + grace_us, open_producers)

    async def ready(self, root: str, run: str, producer: str) -> Ready:
        return self.tree(root).ready(self.now_us(), run, producer)

    async def announce(self, root: str, seconds: int) -> None:
        """There is nobody else."""

    async def announced(self) -> list[str]:
        return []

    async def unannounce(self, root: str) -> None: ...

    async def restore(self, root: str, name: str, seed: SeedTotals) -> None:
        self.tree(root).restore(name, seed.expires_us, seed.totals)

    async def reassert(self, root: str, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
        return self.tree(root).reassert(producer, number, dispatches)

    async def renew(self, leases: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        now_us = self.now_us()
        for root, attempts in leases.items():
            self.tree(root).renew(now_us, attempts)

    async def push(self, root: str, push_id: str, pushes: Sequence[LogPush]) -> bool:
        return self.tree(root).push(self.now_us(), push_id, pushes)

    async def claim(self, root: str, slots: Mapping[str, Sequence[str]]) -> None:
        self.tree(root).claim(self.now_us(), slots)

    async def used(self, root: str, digest: str) -> Used | None:
        known = self.tree(root).used.get(digest)
        return known if known is not None and known.until_us > self.now_us() else None

    async def remember(self, root: str, used: Mapping[str, Used]) -> None:
        self.tree(root).remember(used)

    async def looked_up(self, root: str, run: str, digest: str, known: Used | None) -> Looked:
        return self.tree(root).looked_up(run, digest, known)

    async def bring(
        self, root: str, run: str, bearer: str, used: Mapping[str, Used], *, lease_us: int, last: bool
    ) -> bool:
        now_us = self.now_us()
        return self.tree(root).bring(now_us, run, bearer, now_us + lease_us, used, last=last)

    async def snapshot(self, root: str) -> Snapshot | None:
        tree = self.tree(root)
        if tree.run is None:
            return None
        totals, charges, flags = tree.changes()
        number = tree.numbers.get(self.life, 0)
        content = RootSnapshot(root, dict(tree.marks), totals, dict(tree.unsaved), charges, number)
        return Snapshot(tree.run, self.life, content, flags)

    async def counters(self) -> AsyncIterator[Mapping[str, Sequence[str]]]:
        for root, tree in tuple(self._trees.items()):
            names = tuple(tree.counters)
            for start in range(0, len(names), COUNTERS_PAGE):
                yield {root: names[start : start + COUNTERS_PAGE]}

    async def take_turn(self, who: str, seconds: int, *, first: bool) -> bool:
        return True  # there is nobody else

    async def keep_turn(self, seconds: int) -> None: ...

    async def totals(self, root: str, names: Sequence[str]) -> Mapping[str, SpendTotals]:
        counters = self.tree(root).counters
        return {name: counters[name].totals() for name in names if name in counters}

    async def flag(self, root: str, names: Sequence[str]) -> int:
        return self.tree(root).flag(names)

    async def fence(self, root: str, run: str, life: str, number: int) -> bool:
        return life == self.life and self.tree(root).fence(run, life, number)

    async def clear(
        self,
        root: str,
        run: str,
        life: str,
        versions: Mapping[str, str],
        used: Mapping[str, Used] | None = None,
    ) -> None:
        if life == self.life:
            self.tree(root).clear(run, versions, used or {})

    async def memory(self, root: str) -> Memory | None:
        tree = self.tree(root)
        return None if tree.run is None else Memory(tree.run, tree.drops)

    async def recall(
        self, root: str, memory: Memory, attempt: str, charge: Charge, marks: Mapping[str, int]
    ) -> bool | None:
        return self.tree(root).recall(memory.run, memory.drops, attempt, charge, marks)

    async def held(self, root: str) -> list[Held]:
        holds = self.tree(root).holds.items()
        return [Held(a, h.producer, h.amount, h.counters, h.slots) for a, h in holds]

    async def drop_marks(self, root: str, producers: Sequence[str]) -> None:
        self.tree(root).drop(producers)

    async def roots(self) -> AsyncIterator[str]:
        for root in tuple(self._trees):
            yield root
