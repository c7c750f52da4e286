"""Searching log records: what may be asked, which records fit, and where the next page begins. Pure."""

import re
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import InvalidInput

PAGE_MAX: Final = 1000
"""Records of one page."""
BODIES_PAGE_MAX: Final = 100
"""Records of one page with their bodies, which may have a megabyte each."""

_STATUS: Final = re.compile(r"[1-5](?:\d\d|xx)")
_CURSOR: Final = re.compile(r"(\d{1,17})-(\w{0,128})")

Position = tuple[int, str]
"""Time and request id of a record: pages run from the newest to the oldest."""


class LogFilters(msgspec.Struct, frozen=True, kw_only=True):
    """What records must fit; None asks for nothing. Times are Unix µs, `until_us` excluded.

    `key` is a name or id, `team` an id, `status` like `429` or `4xx`. `errors`: only what ended with an error.
    `owned` are ids of keys, teams and organisations: only what belongs to one of them.
    """

    since_us: int | None = None
    until_us: int | None = None
    key: str | None = None
    team: str | None = None
    model: str | None = None
    user: str | None = None
    tag: str | None = None
    request_id: str | None = None
    status: str | None = None
    errors: bool = False
    owned: tuple[str, ...] | None = None


class LogPage(msgspec.Struct, frozen=True):
    """Records as they were written, newest first. `next_cursor` is None at the end, and may follow an empty page."""

    records: list[dict[str, Any]]
    next_cursor: str | None


class Indexed(msgspec.Struct):
    """The fields of a record that filters and order need."""

    time_us: int
    request_id: str
    key_id: str = ""
    key_name: str = ""
    team_id: str | None = None
    organisation_id: str = ""
    model: str = ""
    user: str | None = None
    tags: tuple[str, ...] = ()
    status: int = 0
    error: str | None = None

    @property
    def position(self) -> Position:
        """Where it stands among all."""
        return self.time_us, self.request_id


def check_filters(filters: LogFilters, limit: int, *, bodies: bool = False) -> None:
    """Raises InvalidInput naming what cannot be asked."""
    if filters.status is not None and not _STATUS.fullmatch(filters.status):
        raise InvalidInput(f'status: {filters.status!r} is not a status; write it like "429" or "4xx"')
    if filters.since_us is not None and filters.until_us is not None and filters.since_us >= filters.until_us:
        raise InvalidInput("since: must be before until")
    most = BODIES_PAGE_MAX if bodies else PAGE_MAX
    if not 1 <= limit <= most:
        raise InvalidInput(f"limit: must be from 1 to {most}{' with bodies' * bodies}")


def fits(record: Indexed, filters: LogFilters) -> bool:
    """Whether a record is asked for."""
    status = None if filters.status is None else filters.status.removesuffix("xx")
    return (
        (filters.since_us is None or record.time_us >= filters.since_us)
        and (filters.until_us is None or record.time_us < filters.until_us)
        and filters.key in (None, record.key_id, record.key_name)
        and filters.team in (None, record.team_id)
        and filters.model in (None, record.model)
        and filters.user in (None, record.user)
        and (filters.tag is None or filters.tag in record.tags)
        and filters.request_id in (None, record.request_id)
        and (status is None or str(record.status).startswith(status))
        and (filters.owned is None or _owned(record, filters.owned))
        and (not filters.errors or record.error is not None or record.status >= 400)
    )


def _owned(record: Indexed, owned: tuple[str, ...]) -> bool:
    return record.key_id in owned or record.team_id in owned or record.organisation_id in owned


def cursor_text(position: Position) -> str:
    """The cursor that begins behind a position."""
    return f"{position[0]}-{position[1]}"


def position_from(cursor: str) -> Position:
    """The inverse of `cursor_text`. Raises InvalidInput."""
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidInput("starting_after: give the next_cursor of the page before, unchanged")
    return int(match[1]), match[2]
