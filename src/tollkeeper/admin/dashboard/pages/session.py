"""One's own session: who one is, until when, and the way out of all of one's sessions."""

from starlette.responses import Response

from tollkeeper.admin.dashboard.site import ANYONE, Site, Visit
from tollkeeper.domain.words import instant


def register(site: Site) -> None:
    """The pages below `/dashboard/session`."""

    async def show(visit: Visit) -> Response:
        return site.render(visit, "session.html", title="Your session", ends_at=instant(visit.session.ends_us))

    async def end_all(visit: Visit) -> Response:
        actor = visit.caller.actor
        await site.parts.audit.append(visit.caller.author, "sessions.end_all", actor.id, {"name": actor.name})
        return await site.door.leave_everywhere(visit.request, actor)

    site.page("GET", "/session", ANYONE, show)
    site.page("POST", "/session/end-all", ANYONE, end_all)
