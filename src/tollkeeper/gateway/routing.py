"""Which provider serves a model name, under which name there, and whether a key may use it.

Routes are decided from the settings alone: a model's own entry first, then a `provider/` prefix, then the first
provider of the endpoint's dialect whose patterns match. It knows nothing of prices, keys' secrets or HTTP.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.policy import Principal, name_matches
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings

MODEL_CHARS_MAX: Final = 256
ROUTES_MAX: Final = 4096
CHAT_PATHS: Final[Mapping[str, str]] = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
"""Where each dialect's conversations go, for the advice in an error."""


class Route(msgspec.Struct, frozen=True):
    """Where a model's requests go. `model` is the client's name for it, without a provider's prefix."""

    model: str
    provider: str
    upstream_model: str


def model_allowed(principal: Principal, *names: str) -> bool:
    """Whether every scope above the request allows the model under one of its names."""
    return all(
        s.policy.models is None or any(name_matches(n, s.policy.models) for n in names) for s in principal.scopes
    )


def check_allowed(principal: Principal, *names: str) -> None:
    """Raises RequestError that says which models are allowed instead; `names[0]` is the client's."""
    for scope in principal.scopes:
        allowed = scope.policy.models
        if allowed is not None and not any(name_matches(n, allowed) for n in names):
            raise RequestError(
                Fault.MODEL_FORBIDDEN,
                f"The model '{names[0]}' is not allowed for this {scope.kind}. Allowed: {', '.join(allowed)}.",
                param="model",
            )


class Router:
    """Resolves model names by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._providers: Mapping[str, ProviderSettings] = settings.providers
        self._models: Mapping[str, ModelSettings] = settings.models
        self._routes: dict[tuple[str, str], Route] = {}

    def resolve(self, name: str, dialect: str) -> Route:
        """The route of a name asked for in a dialect.

        Raises RequestError: UNKNOWN_MODEL with what to do, WRONG_DIALECT with the path to use.
        """
        route = self._routes.get((name, dialect))
        if route is None:
            route = self._decide(name, dialect)
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            self._routes[name, dialect] = route
        return route

    def _decide(self, name: str, dialect: str) -> Route:
        if not name or len(name) > MODEL_CHARS_MAX:
            raise RequestError(
                Fault.UNKNOWN_MODEL, f"A model's name has 1 to {MODEL_CHARS_MAX} characters.", param="model"
            )
        route = self._configured(name, dialect) or self._prefixed(name) or self._by_pattern(name, dialect)
        if route is None:
            other = next((d for d in CHAT_PATHS if d != dialect and self._by_pattern(name, d)), None)
            if other is None:
                raise RequestError(Fault.UNKNOWN_MODEL, self._advice(name), param="model")
            raise _wrong_dialect(name, other)
        served = self._providers[route.provider].dialect
        if served != dialect:
            raise _wrong_dialect(name, served)
        return route

    def _configured(self, name: str, dialect: str) -> Route | None:
        model = self._models.get(name)
        if model is None or (model.provider is None and model.upstream_model is None):
            return None
        upstream = model.upstream_model or name
        if model.provider is not None:
            return Route(name, model.provider, upstream)
        for candidate in (name, upstream):
            for wanted in (dialect, *(d for d in CHAT_PATHS if d != dialect)):
                found = self._by_pattern(candidate, wanted)
                if found is not None:
                    return Route(name, found.provider, upstream)
        return None

    def _prefixed(self, name: str) -> Route | None:
        prefix, slash, rest = name.partition("/")
        if not slash or not rest or prefix not in self._providers:
            return None
        model = self._models.get(rest)
        upstream = model.upstream_model if model is not None and model.provider in (None, prefix) else None
        return Route(rest, prefix, upstream or rest)

    def _by_pattern(self, name: str, dialect: str) -> Route | None:
        for provider, settings in self._providers.items():
            if settings.dialect == dialect and name_matches(name, settings.models):
                return Route(name, provider, name)
        return None

    def _advice(self, name: str) -> str:
        if not self._providers:
            return f"The model '{name}' cannot be served: no provider is configured. Add one to tollkeeper.toml."
        return (
            f"The model '{name}' is not served here. Write 'provider/{name}' with one of the providers "
            f"{', '.join(sorted(self._providers))}, or have the name added to that provider's 'models'. "
            "GET /v1/models lists the names known."
        )


def _wrong_dialect(name: str, served: str) -> RequestError:
    return RequestError(
        Fault.WRONG_DIALECT,
        f"The model '{name}' speaks the {served} dialect: send the request to {CHAT_PATHS[served]}, in that format.",
        param="model",
    )
