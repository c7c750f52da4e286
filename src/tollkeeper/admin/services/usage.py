"""What keys have spent, by month, from the database."""

from tollkeeper.admin.access import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.keys import KeyService
from tollkeeper.domain.words import Words, instant, month_from, usage_words


class UsageService:
    """As of the last sync."""

    def __init__(self, parts: Parts, keys: KeyService) -> None:
        self._accounts, self._spend, self._sync = parts.accounts, parts.spend, parts.sync
        self._keys, self._now_us = keys, parts.now_us

    async def monthly(self, caller: Caller, key: str | None, month: str | None) -> Words:
        """Months of one key, or of all that the caller may see; newest first."""
        year_month = (None, None) if month is None else month_from(month)
        key_id = None if key is None else (await self._keys.known(caller, key)).id
        known = await self._accounts.list_keys(include_revoked=True)
        names = {k.id: k.name for k in known if caller.actor.may_see(k)}
        rows = await self._spend.monthly_usage(key=key_id, year=year_month[0], month=year_month[1])
        seen = [row for row in rows if caller.actor.sees_all or row.key_id in names]
        return {"usage": [usage_words(row, names.get(row.key_id)) for row in seen]}

    async def sync(self) -> Words:
        """Write the spend that the store knows to the database."""
        await self._sync()
        return {"synced_at": instant(self._now_us())}
