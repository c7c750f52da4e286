"""The control plane: the REST API for operators, probes and the page that describes them.

Read control_plane.py (what is asked of whom), parts.py (what it is given), services/ (what it can do), routes/ and
api.py (how that is HTTP), authentication.py and access.py (who may).
"""

from tollkeeper.admin.control_plane import ControlPlane
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.probes import Degraded, Probe, Probes, Readiness

__all__ = ["ControlPlane", "Degraded", "Parts", "Probe", "Probes", "Readiness"]
