"""The dashboard: pages that the gateway renders itself, over the services of the admin API and with its roles.

Read sessions.py (who is it), site.py (one request: session, CSRF, role, errors), pages/ (one file a subject),
charts.py and formats.py (numbers as pictures and words). Templates and the few static files lie beside; nothing is
loaded from elsewhere, and a page works without JavaScript.
"""

from tollkeeper.admin.dashboard.pages import dashboard

__all__ = ["dashboard"]
