"""How the gateway is: health, totals over all accounts, and the configuration in force."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollkeeper.admin.parts import Parts
from tollkeeper.domain.money import usd
from tollkeeper.domain.words import Words, instant


class OperationService:
    """For whoever runs it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started_us = parts.now_us()

    async def health(self) -> Words:
        """Version, readiness and dependencies."""
        checks = await self._parts.readiness.checks()
        return {
            "version": self._parts.version,
            "ready": all(check.ok for check in checks.values()),
            "degraded": any(check.degraded for check in checks.values()),
            "started_at": instant(self._started_us),
            "checks": {
                name: {"ok": check.ok, "detail": check.detail, "degraded": check.degraded}
                for name, check in checks.items()
            },
        }

    async def statistics(self) -> Words:
        """How much there is of everything, and the spend of this month as of `synced_at`."""
        tally = await self._parts.budgets.tally(self._parts.now_us())
        words: Words = msgspec.to_builtins(tally)
        words["cost_usd"] = usd(tally.cost_nano)
        words["synced_at"] = instant(words.pop("synced_us"))
        return words

    def configuration(self) -> Mapping[str, Any]:
        """Every setting in force, secrets masked."""
        return self._parts.configuration
