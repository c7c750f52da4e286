"""What the control plane can do and tell, as calls: the API's routes and the dashboard's pages both make them.

A service is asked by a `Caller`, shows an owner only what it owns, and answers in the words of `domain/words.py`. It
knows nothing of HTTP. The role that a change needs is checked by whoever calls: routes say theirs (access.py).
"""

from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.audit import AuditService
from tollkeeper.admin.services.budgets import BudgetService
from tollkeeper.admin.services.corrections import CorrectionService
from tollkeeper.admin.services.groups import OrganisationService, TeamService
from tollkeeper.admin.services.keys import KeyService
from tollkeeper.admin.services.limits import LimitService
from tollkeeper.admin.services.logs import LogService
from tollkeeper.admin.services.operation import OperationService
from tollkeeper.admin.services.reports import ReportService
from tollkeeper.admin.services.tokens import TokenService
from tollkeeper.admin.services.usage import UsageService

__all__ = ["Services"]


class Services:
    """All of them."""

    def __init__(self, parts: Parts) -> None:
        self.keys = KeyService(parts)
        self.teams = TeamService(parts)
        self.organisations = OrganisationService(parts)
        self.limits = LimitService(parts, self.keys)
        self.usage = UsageService(parts, self.keys)
        self.reports = ReportService(parts, self.keys)
        self.budgets = BudgetService(parts)
        self.operation = OperationService(parts)
        self.logs = LogService(parts)
        self.tokens = TokenService(parts)
        self.audit = AuditService(parts)
        self.corrections = CorrectionService(parts)
