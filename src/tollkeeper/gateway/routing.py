"""Which deployments serve a model name, which names are tried after it, and whether a key may use it.

Routes are decided from the settings alone: a model's own entry first, then a `provider/` prefix, then the first
provider of the endpoint's dialect whose patterns match. It knows nothing of prices, keys' secrets or HTTP, nor of how
the deployments are doing.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Final

import msgspec

from tollkeeper.domain.errors import ConfigurationError, Fault, RequestError
from tollkeeper.domain.policy import Principal, name_matches
from tollkeeper.settings import DeploymentSettings, ModelSettings, ProviderSettings, Settings, Strategy

MODEL_CHARS_MAX: Final = 256
ROUTES_MAX: Final = 4096
POOLS_MAX: Final = 16
"""A model and its fallbacks, theirs included."""
CHAT_PATHS: Final[Mapping[str, str]] = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
"""Where each dialect's conversations go, for the advice in an error."""


class Route(msgspec.Struct, frozen=True, dict=True):
    """Where a model's requests go. `model` is the client's name for it, without a provider's prefix."""

    model: str
    provider: str
    upstream_model: str
    settings_of: str | None = None
    """The entry of [models.<name>] with its prices and limits; None: that of `model`."""

    @cached_property
    def place(self) -> str:
        """Provider and model there, in one name."""
        return f"{self.provider}/{self.upstream_model}"


class Deployment(msgspec.Struct, frozen=True, dict=True):
    """One place that serves a model. `named`: the settings name it, so that it may be a metric's label."""

    route: Route
    weight: int = 1
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    named: bool = False

    @cached_property
    def labels(self) -> tuple[str, str]:
        """Provider and model as metrics name them; model `other`: a name that the settings do not have."""
        return self.route.provider, self.route.upstream_model if self.named else "other"


class Pool(msgspec.Struct, frozen=True):
    """What serves one name in one dialect: at least one deployment with a weight."""

    name: str
    deployments: tuple[Deployment, ...]
    strategy: Strategy = "weighted"


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
    """Resolves model names by the settings. Raises ConfigurationError for fallbacks that cannot be reached."""

    def __init__(self, settings: Settings) -> None:
        self._providers: Mapping[str, ProviderSettings] = settings.providers
        self._models: Mapping[str, ModelSettings] = settings.models
        self._pools: dict[tuple[str, str], tuple[Pool, ...]] = {}
        for name, model in settings.models.items():
            if model.fallbacks and settings.providers:
                self._check_fallbacks(name, model)

    def resolve(self, name: str, dialect: str) -> Route:
        """The first route of a name asked for in a dialect. Raises as `pools`."""
        return self.pools(name, dialect)[0].deployments[0].route

    def pools(self, name: str, dialect: str) -> tuple[Pool, ...]:
        """What serves a name asked for in a dialect, then its fallbacks in the order in which they are tried.

        Raises RequestError: UNKNOWN_MODEL with what to do, WRONG_DIALECT with the path to use.
        """
        pools = self._pools.get((name, dialect))
        if pools is None:
            pools = (self._pool(name, dialect), *self._fallbacks(name, dialect))
            if len(self._pools) >= ROUTES_MAX:
                self._pools.clear()
            self._pools[name, dialect] = pools
        return pools

    def named(self) -> list[Deployment]:
        """Every deployment that the settings name. Raises ConfigurationError if two give one different limits."""
        plain = [
            Deployment(Route(name, model.provider, model.upstream_model or name), named=True)
            for name, model in self._models.items()
            if model.provider is not None
        ]
        found: dict[tuple[str, str], tuple[str, Deployment]] = {}
        for name, model in self._models.items():
            for number, its in enumerate(model.deployments):
                where, deployment = f"models.{name}.deployments[{number}]", self._deployment(name, its)
                key = (deployment.route.provider, deployment.route.upstream_model)
                other, known = found.setdefault(key, (where, deployment))
                if _limits(known) != _limits(deployment):
                    raise ConfigurationError(
                        f"{where}: is the same deployment as {other}, with other limits; it has only one state, so "
                        "write the same limits in both"
                    )
        return [*(deployment for _, deployment in found.values()), *plain]

    def _pool(self, name: str, dialect: str) -> Pool:
        model = self._models.get(name)
        if model is None or not model.deployments:
            route = self._decide(name, dialect)
            return Pool(name, (Deployment(route, named=name in self._models),))
        everything = [self._deployment(name, its) for its in model.deployments if its.weight]
        spoken = [self._providers[deployment.route.provider].dialect for deployment in everything]
        ours = tuple(d for d, its in zip(everything, spoken, strict=True) if its == dialect)
        if not ours:
            raise _wrong_dialect(name, spoken[0])
        return Pool(name, ours, model.strategy)

    def _deployment(self, name: str, its: DeploymentSettings) -> Deployment:
        if its.model is None:
            assert its.provider is not None
            route = Route(name, its.provider, its.upstream_model or name)
        else:
            entry = self._models[its.model]
            assert entry.provider is not None
            route = Route(name, entry.provider, entry.upstream_model or its.model, its.model)
        return Deployment(route, its.weight, *_limits(its), named=True)

    def _fallbacks(self, name: str, dialect: str) -> list[Pool]:
        """Depth first, each name once. Names that only another dialect serves are left out."""
        found: dict[str, Pool] = {}
        waiting = list(reversed(self._fallback_names(name)))
        while waiting and len(found) < POOLS_MAX - 1:
            following = waiting.pop()
            if following in found or following == name:
                continue
            try:
                found[following] = self._pool(following, dialect)
            except RequestError:
                continue
            waiting += reversed(self._fallback_names(following))
        return list(found.values())

    def _fallback_names(self, name: str) -> tuple[str, ...]:
        model = self._models.get(name)
        return () if model is None else model.fallbacks

    def _check_fallbacks(self, name: str, model: ModelSettings) -> None:
        dialects = [dialect for dialect in CHAT_PATHS if self._serves(name, dialect)]
        for following in model.fallbacks:
            if not any(self._serves(following, dialect) for dialect in dialects):
                spoken = " or ".join(dialects) or "any dialect, nor is it itself"
                raise ConfigurationError(
                    f"models.{name}.fallbacks: {following!r} is not served in {spoken}; name a model of the same "
                    "dialect that a provider serves, or write 'provider/model'"
                )

    def _serves(self, name: str, dialect: str) -> bool:
        try:
            self._pool(name, dialect)
        except RequestError:
            return False
        return True

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
        for its in () if model is None else model.deployments:
            deployment = self._deployment(rest, its)
            if deployment.route.provider == prefix:
                return deployment.route
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


def confined(pools: tuple[Pool, ...], provider: str) -> Pool:
    """The first pool as far as it is at one provider, where something is kept that the request needs.

    Raises RequestError ELSEWHERE if it is not there.
    """
    pool = pools[0]
    there = tuple(d for d in pool.deployments if d.route.provider == provider)
    if not there:
        raise RequestError(
            Fault.ELSEWHERE,
            f"The request refers to something that is kept at the provider '{provider}', which does not serve "
            f"'{pool.name}' under this name. Name a model that it serves, like '{provider}/{pool.name}'.",
            param="model",
        )
    return msgspec.structs.replace(pool, deployments=there)


def pool_at(provider: str, model: str = "", upstream_model: str = "") -> Pool:
    """One place and no other: where something is kept."""
    return Pool(model, (Deployment(Route(model, provider, upstream_model)),))


def _wrong_dialect(name: str, served: str) -> RequestError:
    return RequestError(
        Fault.WRONG_DIALECT,
        f"The model '{name}' speaks the {served} dialect: send the request to {CHAT_PATHS[served]}, in that format.",
        param="model",
    )


def _limits(of: Deployment | DeploymentSettings) -> tuple[int | None, int | None, int | None]:
    return of.requests_per_minute, of.tokens_per_minute, of.concurrency
