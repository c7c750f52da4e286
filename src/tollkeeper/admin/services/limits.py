"""Limits of a key as they count now, and resetting them."""

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.keys import KeyService
from tollkeeper.domain.words import Words, limit_words


class LimitService:
    """Asks the running store."""

    def __init__(self, parts: Parts, keys: KeyService) -> None:
        self._accounts, self._governor, self._audit, self._keys = parts.accounts, parts.governor, parts.audit, keys

    async def show(self, caller: Caller, key: str) -> Words:
        """Every limit that the key's requests are checked against, with its state."""
        found = await self._keys.known(caller, key)
        states = await self._governor.limits(await self._accounts.principal(found.id))
        return {"key_id": found.id, "limits": [limit_words(state) for state in states]}

    async def reset(self, caller: Caller, key: str) -> None:
        """Empty the key's own windows and free its slots; spend stays. The audit log has it before it is done."""
        principal = await self._accounts.principal(key)
        await self._audit.append(caller.author, "limits.reset", principal.key_id, {"key_name": principal.key_name})
        await self._governor.reset_limits(principal)
