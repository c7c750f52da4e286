"""Model names: who serves them, and what the refusal of a name advises."""

import pytest

from tests.gateway.fakes import principal_of
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.policy import Policy, name_matches
from tollkeeper.gateway.routing import Route, Router, check_allowed, model_allowed
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings

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
