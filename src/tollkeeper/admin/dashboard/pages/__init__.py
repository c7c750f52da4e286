"""The pages, one file a subject: what each shows, and which forms it takes. `dashboard` puts them together."""

from tollkeeper.admin.authentication import Authenticator
from tollkeeper.admin.dashboard.pages import alerts, charges, groups, keys, logs, overview, session, tokens, usage
from tollkeeper.admin.dashboard.reporting import Reporting
from tollkeeper.admin.dashboard.site import Site
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services import Services


def dashboard(parts: Parts, services: Services, authenticator: Authenticator) -> Site:
    """The whole dashboard, as an ASGI application for `/dashboard`."""
    site = Site(parts, authenticator)
    reporting = Reporting(services.reports, parts.now_us)
    overview.register(site, services, reporting)
    usage.register(site, services, reporting)
    for subject in (keys, groups, logs, alerts, charges, tokens):
        subject.register(site, services)
    session.register(site)
    return site
