"""Structured logs: one line an event, JSON or for people. Never on the path of a single request.

Events are names (`database_away`), facts are fields. Values of fields whose names speak of secrets are masked. What
happens in the course of a request carries its `request_id`, also from rooms that know of no requests.
"""

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Final

import structlog

SECRET_FIELDS: Final = ("secret", "token", "password", "authorization", "api_key", "digest_key")

Logger = structlog.typing.FilteringBoundLogger


_request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)


def about_request(request_id: str | None) -> None:
    """From now on events of this task, and of those that it begins, carry this id. None: they are no request's."""
    _request_id.set(request_id)


def _name_request(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = _request_id.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if any(name == secret or name.endswith(f"_{secret}") for secret in SECRET_FIELDS):
            event[name] = "***"
    return event


def configure(level: str, style: str | None, **always: int | str) -> None:
    """Send events to standard error: `json`, `console`, or what fits (None: console on a terminal). Every event
    carries the fields in `always`."""

    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**always, **event}

    as_json = style == "json" or (style is None and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            _name_request,
            add,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _mask,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger(room: str) -> Logger:
    """The logger of a room. It may be made before `configure` is called: it asks anew for each event."""
    lazy: Logger = structlog.get_logger(room=room)
    return lazy
