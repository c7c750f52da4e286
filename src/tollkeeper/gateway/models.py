"""`GET /v1/models`: the names a key may use, in the shape its client expects. Nothing here asks a provider."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import RequestError
from tollkeeper.domain.policy import Principal, name_matches
from tollkeeper.gateway.catalog import Catalog
from tollkeeper.gateway.dialects import Dialect
from tollkeeper.gateway.routing import CHAT_PATHS, Route, Router, check_allowed, model_allowed
from tollkeeper.settings import Settings

LISTED_MAX: Final = 10_000
CREATED: Final = "1970-01-01T00:00:00Z"
"""When a model came to be is not known here, but clients want a date."""

UNTOLD: Final = dict.fromkeys(
    ("capabilities", "deprecated_at", "line", "max_input_tokens", "max_tokens", "retires_at"), None
)
"""What clients of Anthropic's dialect want to be there, if only as unknown."""


class Listed(msgspec.Struct, frozen=True):
    """One name with the provider that serves it."""

    id: str
    bare: str
    provider: str


class ModelList:
    """All names that are known beforehand; wildcards serve more."""

    def __init__(self, settings: Settings, catalog: Catalog, router: Router) -> None:
        self._router = router
        self._listed = tuple(_listed(settings, catalog, router))[:LISTED_MAX]

    def all(self, principal: Principal, dialect: Dialect) -> bytes:
        """The list, in the dialect's shape."""
        allowed = [m for m in self._listed if model_allowed(principal, m.id, m.bare)]
        data = [_shown(m.id, m.provider, dialect) for m in allowed]
        if dialect == "openai":
            return msgspec.json.encode({"object": "list", "data": data})
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return msgspec.json.encode({"data": data, "has_more": False, "first_id": first, "last_id": last})

    def one(self, principal: Principal, name: str, dialect: Dialect) -> bytes:
        """One name, also one that only a wildcard serves. Raises RequestError: UNKNOWN_MODEL, MODEL_FORBIDDEN."""
        route = self._route(name)
        check_allowed(principal, name, route.model)
        return msgspec.json.encode(_shown(name, route.provider, dialect))

    def _route(self, name: str) -> Route:
        first, second = CHAT_PATHS
        try:
            return self._router.resolve(name, first)
        except RequestError:
            return self._router.resolve(name, second)


def _listed(settings: Settings, catalog: Catalog, router: Router) -> Iterable[Listed]:
    seen: set[str] = set()
    for provider, its in settings.providers.items():
        for name in catalog.model_names(provider):
            if name not in settings.models and not name_matches(name, its.models):
                continue
            try:
                bare = router.resolve(name, its.dialect).provider == provider
            except RequestError:
                bare = False
            if not bare and name in settings.models and settings.models[name].deployments:
                continue
            shown = name if bare else f"{provider}/{name}"
            if shown not in seen:
                seen.add(shown)
                yield Listed(shown, name, provider)


def _shown(name: str, provider: str, dialect: Dialect) -> dict[str, Any]:
    if dialect == "anthropic":
        shown = {"type": "model", "id": name, "display_name": name, "created_at": CREATED, "lifecycle": "active"}
        return shown | UNTOLD
    return {"id": name, "object": "model", "created": 0, "owned_by": provider}
