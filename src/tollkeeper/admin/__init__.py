"""The control plane: the REST API for operators, probes and the page that describes them."""

from tollkeeper.admin.api import create_admin
from tollkeeper.admin.probes import Degraded, Probe, Readiness

__all__ = ["Degraded", "Probe", "Readiness", "create_admin"]
