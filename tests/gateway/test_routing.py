"""Model names: who serves them, and what the refusal of a name advises."""

import pytest

from tests.gateway.fakes import principal_of
from tollkeeper.domain.errors import ConfigurationError, Fault, RequestError
from tollkeeper.domain.policy import Policy, name_matches
from tollkeeper.gateway.routing import Route, Router, check_allowed, model_allowed
from tollkeeper.settings import DeploymentSettings, ModelSettings, ProviderSettings, Settings, check, convert

SETTINGS = Settings(
    providers={
        "openai": ProviderSettings(base_url="http://o", dialect="openai", models=("gpt-*", "text-*")),
        "anthropic": ProviderSettings(base_url="http://a", dialect="anthropic", models=("claude-*",)),
        "vllm": ProviderSettings(base_url="http://v", dialect="openai", models=("llama-*",)),
    },
    models={
        "fast": ModelSettings(provider="vllm", upstream_model="llama-3-8b"),
        "best": ModelSettings(upstream_model="claude-9"),
        "gpt-5": ModelSettings(max_output_tokens=100),
    },
)


@pytest.mark.parametrize(
    ("name", "dialect", "route"),
    [
        ("gpt-4o", "openai", Route("gpt-4o", "openai", "gpt-4o")),
        ("gpt-5", "openai", Route("gpt-5", "openai", "gpt-5")),
        ("fast", "openai", Route("fast", "vllm", "llama-3-8b")),
        ("best", "anthropic", Route("best", "anthropic", "claude-9")),
        ("vllm/meta/llama", "openai", Route("meta/llama", "vllm", "meta/llama")),
        ("vllm/fast", "openai", Route("fast", "vllm", "llama-3-8b")),
        ("anthropic/claude-9", "anthropic", Route("claude-9", "anthropic", "claude-9")),
    ],
)
def test_routes(name: str, dialect: str, route: Route) -> None:
    assert Router(SETTINGS).resolve(name, dialect) == route


@pytest.mark.parametrize(
    ("name", "dialect", "fault", "advice"),
    [
        ("claude-9", "openai", Fault.WRONG_DIALECT, "/v1/messages"),
        ("gpt-4o", "anthropic", Fault.WRONG_DIALECT, "/v1/chat/completions"),
        ("fast", "anthropic", Fault.WRONG_DIALECT, "/v1/chat/completions"),
        ("anthropic/claude-9", "openai", Fault.WRONG_DIALECT, "/v1/messages"),
        ("mystery", "openai", Fault.UNKNOWN_MODEL, "GET /v1/models"),
        ("nobody/mystery", "openai", Fault.UNKNOWN_MODEL, "anthropic, openai, vllm"),
        ("x" * 300, "openai", Fault.UNKNOWN_MODEL, "256 characters"),
        ("", "openai", Fault.UNKNOWN_MODEL, "256 characters"),
    ],
)
def test_refused_names(name: str, dialect: str, fault: Fault, advice: str) -> None:
    with pytest.raises(RequestError) as caught:
        Router(SETTINGS).resolve(name, dialect)
    assert caught.value.fault is fault
    assert advice in caught.value.message


def test_only_the_star_is_special() -> None:
    assert name_matches("gpt-4.1", ["gpt-4.1"])
    assert not name_matches("gpt-4x1", ["gpt-4.1*"])
    assert name_matches("a[1]-b", ["a[1]*"])
    assert name_matches("anything", ["*"])
    assert name_matches("gpt-4o-mini-audio", ["gpt-*-audio"])
    assert not name_matches("gpt-4o", [])


def test_every_scope_must_allow_the_model() -> None:
    principal = principal_of("a", Policy(models=("gpt-*",)), organisation=Policy(models=("gpt-4*", "claude-*")))
    assert model_allowed(principal, "gpt-4o")
    assert not model_allowed(principal, "claude-9")
    with pytest.raises(RequestError) as caught:
        check_allowed(principal, "gpt-5")
    assert caught.value.fault is Fault.MODEL_FORBIDDEN
    assert "organisation" in caught.value.message
    assert "gpt-4*, claude-*" in caught.value.message


def spread(**models: ModelSettings) -> Settings:
    return Settings(providers=SETTINGS.providers, models=SETTINGS.models | models)


OPENAI = DeploymentSettings(provider="openai", upstream_model="gpt-4o", weight=3)
VLLM = DeploymentSettings(provider="vllm", upstream_model="llama-3")
CLAUDE = DeploymentSettings(provider="anthropic", upstream_model="claude-9")


def test_deployments_of_a_name_by_dialect_and_without_those_of_no_weight() -> None:
    none = DeploymentSettings(provider="vllm", upstream_model="old", weight=0)
    router = Router(spread(smart=ModelSettings(deployments=(OPENAI, VLLM, CLAUDE, none), strategy="busy")))
    (pool,) = router.pools("smart", "openai")
    assert (pool.name, pool.strategy) == ("smart", "busy")
    assert [d.route for d in pool.deployments] == [
        Route("smart", "openai", "gpt-4o"),
        Route("smart", "vllm", "llama-3"),
    ]
    assert [d.weight for d in pool.deployments] == [3, 1]
    assert router.resolve("smart", "anthropic") == Route("smart", "anthropic", "claude-9")
    assert router.resolve("vllm/smart", "openai") == Route("smart", "vllm", "llama-3")


def test_a_deployment_may_be_another_entry_with_its_prices() -> None:
    router = Router(spread(smart=ModelSettings(deployments=(DeploymentSettings(model="fast"), OPENAI))))
    assert router.resolve("smart", "openai") == Route("smart", "vllm", "llama-3-8b", "fast")


def test_fallbacks_depth_first_each_once_in_the_callers_dialect() -> None:
    router = Router(
        spread(
            a=ModelSettings(deployments=(OPENAI, CLAUDE), fallbacks=("b", "gpt-4o", "claude-9", "c")),
            b=ModelSettings(provider="vllm", fallbacks=("c", "vllm/x")),
            c=ModelSettings(provider="openai"),
        )
    )
    assert [pool.name for pool in router.pools("a", "openai")] == ["a", "b", "c", "vllm/x", "gpt-4o"]
    assert [pool.name for pool in router.pools("a", "anthropic")] == ["a", "claude-9"]


def test_a_fallback_that_cannot_be_reached_is_refused_at_start() -> None:
    for name in ("mystery", "claude-9"):
        with pytest.raises(ConfigurationError, match=f"models.a.fallbacks: '{name}' is not served in openai"):
            Router(spread(a=ModelSettings(provider="openai", fallbacks=(name,))))


def test_one_deployment_has_one_limit() -> None:
    limited = DeploymentSettings(provider="openai", upstream_model="gpt-4o", concurrency=3)
    settings = spread(a=ModelSettings(deployments=(OPENAI,)), b=ModelSettings(deployments=(limited,)))
    with pytest.raises(ConfigurationError, match=r"models.b.deployments\[0\]: is the same deployment as models.a"):
        Router(settings).named()


@pytest.mark.parametrize(
    ("models", "complaint"),
    [
        ({"a": {"deployments": [{"provider": "nobody"}]}}, r"there is no provider 'nobody'; known: p"),
        ({"a": {"deployments": [{"provider": "p", "weight": 0}]}}, "all weights are zero"),
        ({"a": {"deployments": [{"provider": "p", "weight": -1}]}}, "must be zero or more"),
        ({"a": {"deployments": [{"provider": "p"}, {"provider": "p"}]}}, "stands there twice"),
        ({"a": {"deployments": [{}]}}, "give a provider"),
        ({"a": {"deployments": [{"model": "b"}]}}, "that names its provider"),
        ({"a": {"provider": "p", "deployments": [{"provider": "p"}]}}, "not both"),
        ({"a": {"deployments": [{"provider": "p", "concurrency": 0}]}}, "must be a number above zero"),
        ({"a": {"deployments": [{"provider": "p", "wieght": 1}]}}, "did you mean weight"),
        ({"a": {"strategy": "random"}}, "is not one of weighted, latency, busy"),
        ({"a": {"fallbacks": ["a"]}}, "a → a goes round in a circle"),
        ({"a": {"fallbacks": ["b"]}, "b": {"fallbacks": ["c"]}, "c": {"fallbacks": ["b"]}}, "b → c → b goes round"),
    ],
)
def test_wrong_models_are_refused_at_start(models: dict[str, object], complaint: str) -> None:
    tree = {"providers": {"p": {"base_url": "http://p/v1", "dialect": "openai"}}, "models": models}
    with pytest.raises(ConfigurationError, match=complaint):
        check(convert(tree))


@pytest.mark.parametrize(
    ("routing", "complaint"),
    [
        ({"attempts_max": 0}, "attempts_max"),
        ({"retry_ratio": 1.5}, "retry_ratio"),
        ({"retry_burst": -1}, "retry_burst"),
        ({"cooldown_failure_ratio": 2}, "cooldown_failure_ratio"),
    ],
)
def test_wrong_routing_is_refused_at_start(routing: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        check(convert({"routing": routing}))
