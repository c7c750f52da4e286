"""LiteLLM's model list: what becomes of it is a configuration that the gateway takes, and the rest is told."""

from pathlib import Path
from typing import Any

import yaml

from tollkeeper.domain.litellm_models import Converted, convert
from tollkeeper.settings import Settings, load

CONFIG = """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: azure/gpt-4o-eu, api_base: "https://eu.example.com/", api_key: os.environ/AZURE_EU_KEY,
                     rpm: 600, weight: 3}
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
  - model_name: cheap
    litellm_params: {model: gpt-4o-mini, api_key: sk-secret-in-the-file, timeout: 30}
  - model_name: other account
    litellm_params: {model: gpt-4o-mini, api_key: os.environ/SECOND_KEY}
  - model_name: local
    litellm_params: {model: hosted_vllm/meta-llama/Llama-3.1-8B, api_base: "http://vllm:8000/v1",
                     input_cost_per_token: 5e-8, output_cost_per_token: 0.00000008}
    model_info: {max_input_tokens: 131072, max_output_tokens: 4096, access_groups: [free]}
  - model_name: haiku
    litellm_params: {model: claude-haiku-4-5}
  - model_name: far
    litellm_params: {model: bedrock/anthropic.claude}
  - model_name: "groq/*"
    litellm_params: {model: "groq/*", api_key: os.environ/GROQ_API_KEY}
  - nonsense
router_settings:
  routing_strategy: latency-based-routing
  fallbacks: [{gpt-4o: [cheap, haiku]}, {cheap: [far]}]
  model_group_alias: {smart: gpt-4o, lost: nowhere}
litellm_settings:
  context_window_fallbacks: [{gpt-4o: [cheap]}]
"""


def converted(text: str) -> Converted:
    return convert(yaml.safe_load(text))


def loaded(made: Converted, tmp_path: Path) -> Settings:
    (tmp_path / "t.toml").write_text(made.toml)
    return load(tmp_path / "t.toml")


def test_what_is_made_is_taken_by_the_settings(tmp_path: Path) -> None:
    made = converted(CONFIG)
    settings = loaded(made, tmp_path)
    providers = {name: (p.base_url, p.dialect, p.api_key_env) for name, p in settings.providers.items()}
    assert providers == {
        "azure": ("https://eu.example.com/openai/v1", "openai", "AZURE_EU_KEY"),
        "openai": ("https://api.openai.com/v1", "openai", "OPENAI_API_KEY"),
        "openai-2": ("https://api.openai.com/v1", "openai", "SECOND_KEY"),
        "hosted-vllm": ("http://vllm:8000/v1", "openai", None),
        "anthropic": ("https://api.anthropic.com/v1", "anthropic", "ANTHROPIC_API_KEY"),
        "groq": ("https://api.groq.com/openai/v1", "openai", "GROQ_API_KEY"),
    }
    assert all(provider.models == () for provider in settings.providers.values()), "only what is named is served"
    both = [
        (d.provider, d.upstream_model, d.weight, d.requests_per_minute) for d in settings.models["gpt-4o"].deployments
    ]
    assert both == [("azure", "gpt-4o-eu", 3, 600), ("openai", None, 1, None)]
    assert (settings.models["gpt-4o"].strategy, settings.models["gpt-4o"].fallbacks) == (
        "latency",
        ("cheap", "haiku"),
    )
    assert [d.upstream_model for d in settings.models["smart"].deployments] == ["gpt-4o-eu", "gpt-4o"]
    local = settings.models["local"]
    assert (local.input_usd, local.output_usd, local.context_window, local.max_output_tokens) == (
        *("0.05", "0.08"),
        *(131072, 4096),
    )
    assert made.models == 6 and made.variables == (
        *("AZURE_EU_KEY", "OPENAI_API_KEY", "SECOND_KEY", "ANTHROPIC_API_KEY", "GROQ_API_KEY"),
    )


def test_what_is_not_carried_over_is_told_and_no_secret_is() -> None:
    made = converted(CONFIG)
    assert "secret-in-the-file" not in made.toml + " ".join(made.notes)
    for told in (
        "cheap: its key stands in the file",
        "`timeout`",
        "access groups",
        "'bedrock/anthropic.claude'",
        "groq/*: a wildcard",
        "model_list[8]",
        "fallbacks of 'cheap'",
        "lost: 'nowhere'",
        "context_window_fallbacks",
    ):
        assert any(told in note for note in made.notes), told


def test_names_that_need_quotes_and_odd_files(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"model_name": 'a "b".c/é', "litellm_params": {"model": "openai/x\ty"}}
    settings = loaded(convert({"model_list": [entry]}), tmp_path)
    assert settings.models['a "b".c/é'].upstream_model == "x\ty"
    for odd in ({}, {"model_list": None}, {"model_list": [None, {}, {"model_name": 1}], "router_settings": []}):
        assert convert(odd).toml == ""
