"""What is not ours under our keys: found, and removed together with the marks, if it was money.

The store answers *damaged* when a script reads something else than ours. Which keys it was about is named by whoever
asked; what more a tree has is found here. What the removed money was, database and outboxes know.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from tollkeeper.governance.redis_keys import (
    bucket_key,
    changed_key,
    charges_key,
    counter_key,
    hold_key,
    log_key,
    looked_key,
    marks_key,
    pushed_key,
    slot_key,
    unsaved_key,
    used_key,
)
from tollkeeper.governance.redis_replies import COUNTER_BYTES
from tollkeeper.governance.store import Held, Names

LOG_BYTES, RUN_BYTES, BUCKET_BYTES = 96, 17, 48
MEND_KEYS_MAX: Final = 200
"""Keys that are looked at at a time."""


class Mending:
    """Looks at keys and removes. `call`, `scan` and `held` are the store's."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        scan: Callable[[str], AsyncIterator[str]],
        held: Callable[[str], Awaitable[list[Held]]],
    ) -> None:
        self._call, self._scan, self._held = call, scan, held

    async def mend(self, root: str, names: Names) -> list[str]:
        """Remove what is not ours, with the marks if it was money. Returns the keys that are gone."""
        tree = [f(root) for f in (marks_key, hold_key, changed_key, unsaved_key, charges_key, looked_key)]
        lost = [key for key in tree if await self._type(key) not in ("none", "hash")]
        counters = {counter_key(root, name) for name in names.counters}
        if hold_key(root) in lost or changed_key(root) in lost:  # nobody knows any more which counters are unsaved
            counters |= {key async for key in self._counters(root)}
            money = [*lost, *sorted(counters)]
        else:
            for name in await self._call("HKEYS", changed_key(root)):
                counters |= {counter_key(root, name.decode())} if name[:1] != b"!" else set()
            for held in await self._held(root):
                counters |= {counter_key(root, name) for name in held.counters}
            money = lost + await self._damaged_counters(sorted(counters))
        used = [used_key(root, digest) for digest in names.used]
        money += [key for key in used if not await self._is_string(key, 1)]
        limits = [key for name in names.logs if not await self._is_log(key := log_key(root, name))]
        limits += [
            k for name in names.buckets if not await self._is_string(k := bucket_key(root, name), BUCKET_BYTES)
        ]
        limits += [k for name in names.slots if await self._type(k := slot_key(root, name)) not in ("none", "zset")]
        limits += [k for k in (pushed_key(root),) if await self._type(k) not in ("none", "hash")]
        gone = money + limits
        if gone:  # in one step, and the marks with them: no memory may pass for whole that is not
            await self._call("DEL", *dict.fromkeys([*money, *limits, *([marks_key(root)] if money else [])]))
        return gone

    async def _damaged_counters(self, keys: list[str]) -> list[str]:
        damaged = []
        for start in range(0, len(keys), MEND_KEYS_MAX):
            some = keys[start : start + MEND_KEYS_MAX]
            whole = await asyncio.gather(*(self._is_string(key, COUNTER_BYTES) for key in some))
            damaged += [key for key, good in zip(some, whole, strict=True) if not good]
        return damaged

    async def _type(self, key: str) -> str:
        found = await self._call("TYPE", key)
        return found.decode() if isinstance(found, bytes) else str(found)

    async def _is_string(self, key: str, least: int) -> bool:
        kind = await self._type(key)
        return kind == "none" or (kind == "string" and int(await self._call("STRLEN", key)) >= least)

    async def _is_log(self, key: str) -> bool:
        if not await self._is_string(key, LOG_BYTES):
            return False
        length = int(await self._call("STRLEN", key))
        return length == 0 or (length - LOG_BYTES) % RUN_BYTES == 0

    async def _counters(self, root: str) -> AsyncIterator[str]:
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", counter_key(root, "")) + "*"
        async for key in self._scan(pattern):
            yield key
