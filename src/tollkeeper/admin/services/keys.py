"""Keys: create, find, change, rotate, revoke."""

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.lists import listed
from tollkeeper.domain.accounts import Key, KeyChange, KeyFilters, NewKey
from tollkeeper.domain.errors import NotFound
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.words import Words, key_words


class KeyService:
    """An owner sees its keys; to it all others are as if they did not exist."""

    def __init__(self, parts: Parts) -> None:
        self._accounts, self._now_us = parts.accounts, parts.now_us

    async def create(self, caller: Caller, new: NewKey) -> Words:
        """The key with its `secret`, which is shown this once."""
        key, secret = await self._accounts.by(caller.author).create_key(new)
        return self._words(key) | {"secret": secret}

    async def find(self, caller: Caller, filters: KeyFilters, paging: Paging) -> Words:
        """A page, newest first."""
        filters = msgspec.structs.replace(filters, owned=caller.owned)
        return listed(await self._accounts.find_keys(filters, paging), self._words)

    async def show(self, caller: Caller, key: str) -> Words:
        """One, by name or id."""
        return self._words(await self.known(caller, key))

    async def update(self, caller: Caller, key: str, change: KeyChange) -> Words:
        """Change what is named and nothing else."""
        return self._words(await self._accounts.by(caller.author).update_key(key, change))

    async def rotate(self, caller: Caller, key: str, overlap_s: float = 0.0) -> Words:
        """The key with its new `secret`, which is shown this once; the old one works for `overlap_s` more."""
        rotated, secret = await self._accounts.by(caller.author).rotate_key(key, overlap_s=overlap_s)
        return self._words(rotated) | {"secret": secret}

    async def revoke(self, caller: Caller, key: str) -> Words:
        """For good."""
        return self._words(await self._accounts.by(caller.author).revoke_key(key))

    async def known(self, caller: Caller, key: str) -> Key:
        """A key that the caller may see. Raises NotFound."""
        found = await self._accounts.get_key(key)
        if not caller.actor.may_see(found):
            raise NotFound(f"there is no key {key!r}")
        return found

    def _words(self, key: Key) -> Words:
        return key_words(key, self._now_us())
