"""Usage of which no caller was told how it stands: what became of it, once the store has it and waits for nobody.

Under its idempotency key another charge may have come first, with another amount: then it has charged nothing, and
perhaps nobody asks again and hears of the conflict. So it is listed beside presumed charges and corrections, where it
charges nothing either. Kept in memory alone: a process that dies before it has looked leaves its entries to whoever
closes it, and who looks then; but for those that the database has by that time.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from tollkeeper.domain.entries import Entry, EntryKind, Used
from tollkeeper.domain.money import usd

PENDING_MAX: Final = 100_000
"""Entries that are looked after; of more than these nobody is told."""
AT_ONCE: Final = 100
"""Entries that are looked up before others have their turn."""


class Unanswered(NamedTuple):
    """An entry of the kind *usage*, by its producer's number."""

    root: str
    producer: str
    entry: Entry


class PendingUsage:
    """The entries that are to be looked up. `lookup` is the store's, `set_aside` has an entry listed."""

    def __init__(
        self,
        lookup: Callable[[str, str], Awaitable[Used | None]],
        is_settled: Callable[[Unanswered], bool],
        set_aside: Callable[[str, Entry], None],
    ) -> None:
        self._lookup, self._is_settled, self._set_aside = lookup, is_settled, set_aside
        self._waiting: dict[tuple[str, str, int], Unanswered] = {}
        self.left_out = 0  # by PENDING_MAX

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, root: str, producer: str, entry: Entry) -> None:
        """Look after an entry, if it is one whose caller was not told."""
        if entry.kind is not EntryKind.USAGE or entry.told:
            return
        if len(self._waiting) >= PENDING_MAX:
            self.left_out += 1
            return
        self._waiting[root, producer, entry.number] = Unanswered(root, producer, entry)

    def leave(self, producer: str) -> None:
        """Its entries are issued again under another name, and looked after there."""
        for key in [key for key in self._waiting if key[1] == producer]:
            del self._waiting[key]

    async def look(self) -> None:
        """Look up what can be told by now. Raises StoreUnavailable; the rest stays."""
        for one in self._ready():
            known = await self._lookup(one.root, one.entry.attempt)
            if self._waiting.pop((one.root, one.producer, one.entry.number), None) is None:
                continue
            if known is not None and known.cost_nano != one.entry.cost_nano:
                self._set_aside(one.root, lost_usage(one.producer, one.entry, known))

    def _ready(self) -> Iterator[Unanswered]:
        ready = [one for one in self._waiting.values() if self._is_settled(one)]
        yield from ready[:AT_ONCE]


def lost_usage(producer: str, entry: Entry, known: Used) -> Entry:
    """What lists an entry whose key stands for another amount; its number is the issuer's to give."""
    why = f"its idempotency key stands for {usd(known.cost_nano)} USD, charged by {known.by}; its caller was not told"
    return msgspec.structs.replace(
        entry,
        number=0,
        kind=EntryKind.LATE,
        attempt=f"{producer}#{entry.number}",
        origins=(),
        fresh=True,
        note=why,
    )
