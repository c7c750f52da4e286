"""Routes to what providers keep: stored answers, files, batches. Paths, ids and queries; no IO, no owner.

The path and the query that go upstream are built from what is read here, never passed on as they came.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.objects import ObjectKind
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.base import Call, Dialect, Endpoint, Sold

QUERY_MAX: Final = 32
"""Parameters of a query."""
VALUE_CHARS_MAX: Final = 256

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PREFIXES: Final = ("/v1/responses/", "/v1/files", "/v1/batches")

OFF: Final[Mapping[str, str]] = {
    "/v1/vector_stores": "Vector stores",
    "/v1/assistants": "Assistants",
    "/v1/threads": "Threads",
    "/v1/fine_tuning": "Fine-tuning",
    "/v1/conversations": "Conversations",
    "/v1/containers": "Containers",
    "/v1/uploads": "Uploads in parts (send the file to /v1/files)",
    "/v1/evals": "Evals",
    "/v1/skills": "Skills",
    "/v1/videos": "Videos",
    "/v1/realtime": "Realtime sessions",
    "/v1/chat/completions/": "Stored chat completions",
    "/v1/messages/batches": "Message batches",
}
"""Routes whose objects cannot be told apart by organisation, or whose cost cannot be governed."""


class Kept(msgspec.Struct, frozen=True):
    """A route to stored objects. `kind` of the object that the path names, or of those that it lists or makes.

    `query`: parameters that are passed on. `here`: the gateway answers it from its own record.
    """

    method: str
    endpoint: Endpoint
    kind: ObjectKind
    query: frozenset[str] = frozenset()
    here: bool = False

    @property
    def names_one(self) -> bool:
        """Whether the path has an id."""
        return "{id}" in self.endpoint.path


def _kept(method: str, path: str, name: str, kind: ObjectKind, *query: str, here: bool = False, **more: bool) -> Kept:
    endpoint = Endpoint(path, "openai", name, free=True, **more)  # type: ignore[arg-type]
    return Kept(method, endpoint, kind, frozenset(query), here)


_PAGES: Final = ("after", "limit", "order", "include", "include[]")
ROUTES: Final = (
    _kept(
        *("GET", "/v1/responses/{id}", "response_get", ObjectKind.RESPONSE),
        *("stream", "starting_after", "include", "include[]", "include_obfuscation"),
        media=True,
    ),
    _kept("DELETE", "/v1/responses/{id}", "response_delete", ObjectKind.RESPONSE),
    _kept("POST", "/v1/responses/{id}/cancel", "response_cancel", ObjectKind.RESPONSE),
    _kept("GET", "/v1/responses/{id}/input_items", "response_items", ObjectKind.RESPONSE, *_PAGES),
    _kept("POST", "/v1/files", "file_create", ObjectKind.FILE, form=True, once=True),
    _kept("GET", "/v1/files", "file_list", ObjectKind.FILE, here=True),
    _kept("GET", "/v1/files/{id}", "file_get", ObjectKind.FILE),
    _kept("DELETE", "/v1/files/{id}", "file_delete", ObjectKind.FILE),
    _kept("GET", "/v1/files/{id}/content", "file_content", ObjectKind.FILE, media=True),
    Kept("POST", Endpoint("/v1/batches", "openai", "batch_create", fees=("request",), once=True), ObjectKind.BATCH),
    _kept("GET", "/v1/batches", "batch_list", ObjectKind.BATCH, here=True),
    _kept("GET", "/v1/batches/{id}", "batch_get", ObjectKind.BATCH),
    _kept("POST", "/v1/batches/{id}/cancel", "batch_cancel", ObjectKind.BATCH),
)
"""The first that fits counts."""
_ANTHROPIC: Final = frozenset(("file_create", "file_list", "file_get", "file_delete", "file_content"))
"""Anthropic's files have the same paths; its clients are known by a header."""


class Named(msgspec.Struct, frozen=True):
    """A path that was read: the route, and the id in it."""

    route: Kept
    id: str = ""


def find_route(method: str, path: str, dialect: Dialect) -> Named | tuple[str, ...] | None:
    """What a path names; the methods that it takes if not this one; None if it is no such path."""
    if not path.startswith(_PREFIXES):
        return None
    methods: list[str] = []
    for route in ROUTES:
        found = _match(route.endpoint.path, path)
        if found is None or (dialect == "anthropic" and route.endpoint.name not in _ANTHROPIC):
            continue
        if route.method == method:
            if dialect == "anthropic":
                endpoint = msgspec.structs.replace(route.endpoint, dialect="anthropic")
                route = msgspec.structs.replace(route, endpoint=endpoint)  # noqa: PLW2901 - its twin
            return Named(route, found)
        methods.append(route.method)
    return tuple(methods) or None


def _match(template: str, path: str) -> str | None:
    """The id in a path that has this form; empty for one without."""
    before, mark, after = template.partition("{id}")
    if not mark:
        return "" if path == template else None
    if not path.startswith(before) or not path.endswith(after):
        return None
    found = path[len(before) : len(path) - len(after)]
    return found if _ID.fullmatch(found) else None


def kept_call(named: Named, query: bytes, *, model: str = "") -> Call:
    """The call of a route without a body. Raises RequestError for a query that is not passed on."""
    route = named.route
    path = route.endpoint.path.replace("{id}", quote(named.id, safe=""))
    passed = urlencode(pairs_of(query, route.query))
    return Call(
        *(route.endpoint, model, False, 0, 1, None, False, Content(text_bytes=0), {}),
        sold=Sold(counted=Usage()),
        method=route.method,
        path=f"{path}?{passed}" if passed else path,
    )


def pairs_of(query: bytes, known: frozenset[str]) -> list[tuple[str, str]]:
    """The query's parameters. Raises RequestError for those that are not known."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=QUERY_MAX)
    except (ValueError, UnicodeDecodeError):
        raise RequestError(Fault.INVALID, "The query of your request cannot be read.") from None
    for name, value in pairs:
        if name not in known:
            raise RequestError(Fault.INVALID, f"Unknown query parameter: '{name[:64]}'.", param=name[:64])
        if len(value) > VALUE_CHARS_MAX:
            raise RequestError(Fault.INVALID, f"The query parameter '{name}' is too long.", param=name)
    return pairs


def off_route(path: str) -> str | None:
    """Why a path of a provider's is not served here, if it is one of those."""
    for prefix, what in OFF.items():
        if path.startswith(prefix):
            return (
                f"{what} are off: this gateway cannot tell apart which organisation's they are, or what they cost. "
                "docs/endpoints.md lists what is served."
            )
    return None
