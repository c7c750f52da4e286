"""The memory store: one `Tree` per root in this process. The embedded default; only one process may use it.

It knows no more than where the trees are kept and what time it is: the rules are in domain/tree.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tollkeeper.domain.admission import Checks, Demand, Reply
from tollkeeper.domain.entries import Dispatch, Entry, Used
from tollkeeper.domain.ports import RootSnapshot
from tollkeeper.domain.tree import Tree
from tollkeeper.domain.windows import LogPush
from tollkeeper.governance.store import Done, SeedTotals, Snapshot

SWEEP_EVERY: Final = 10_000
"""Admissions between two sweeps of what has expired in the tree that is asked."""


class MemoryStore:
    """Keeps `Store` with no IO at all: every method is done when it returns."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
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

    async def admit(self, checks: Checks, demand: Demand) -> Reply:
        now_us, tree = self.now_us(), self.tree(checks.root)
        self._admissions += 1
        if self._admissions % SWEEP_EVERY == 0:
            tree.sweep(now_us)
        return tree.admit(now_us, checks, demand)

    def apply(self, root: str, producer: str, entry: Entry, done: Done) -> None:
        done(self.tree(root).apply(self.now_us(), producer, entry))

    async def marks(self, root: str) -> Mapping[str, int] | None:
        tree = self.tree(root)
        return None if tree.run is None else dict(tree.marks)

    async def reset(self, root: str, logs: Sequence[str], slots: Sequence[str]) -> None:
        self.tree(root).reset(logs, slots)

    async def seed(self, root: str, run: str, marks: Mapping[str, int], totals: Mapping[str, SeedTotals]) -> bool:
        pairs = {name: (seed.expires_us, seed.totals) for name, seed in totals.items()}
        return self.tree(root).seed(run, marks, pairs)

    async def restore(self, root: str, name: str, seed: SeedTotals) -> None:
        self.tree(root).restore(name, seed.expires_us, seed.totals)

    async def reassert(self, root: str, producer: str, dispatches: Iterable[Dispatch]) -> None:
        self.tree(root).reassert(producer, dispatches)

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

    async def snapshot(self, root: str) -> Snapshot | None:
        tree = self.tree(root)
        if tree.run is None:
            return None
        totals, flags = tree.changes()
        return Snapshot(tree.run, RootSnapshot(root, dict(tree.marks), totals, dict(tree.unsaved)), flags)

    async def clear(
        self, root: str, run: str, versions: Mapping[str, str], used: Mapping[str, Used] | None = None
    ) -> None:
        tree = self.tree(root)
        if tree.run == run:
            for digest, known in (used or {}).items():
                if tree.unsaved.get(digest) == known:
                    del tree.unsaved[digest]
            for name, version in versions.items():
                if tree.changed.get(name) == version:
                    del tree.changed[name]
