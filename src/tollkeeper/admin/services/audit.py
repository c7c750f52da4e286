"""The audit log, read."""

from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.lists import listed
from tollkeeper.domain.audit import AuditFilters
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.words import Words, audit_words


class AuditService:
    """Nothing can be taken out of it by the API."""

    def __init__(self, parts: Parts) -> None:
        self._audit = parts.audit

    async def find(self, filters: AuditFilters, paging: Paging) -> Words:
        """A page, newest first: in the order in which changes were committed."""
        return listed(await self._audit.find(filters, paging), audit_words)
