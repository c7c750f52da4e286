"""The output limit that the bound relies on is the one the provider gets."""

import msgspec
import pytest

from tollkeeper.domain.policy import UNLIMITED, Budget, Policy, Principal, Scope, ScopeKind
from tollkeeper.gateway.bound import Bounder
from tollkeeper.gateway.catalog import Catalog
from tollkeeper.gateway.dialects import ENDPOINTS, parse
from tollkeeper.gateway.routing import Router
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings

SETTINGS = Settings(
    providers={
        "openai": ProviderSettings(base_url="https://api.openai.com/v1", dialect="openai", models=("gpt-*",)),
        "other": ProviderSettings(base_url="https://llm.example/v1", dialect="openai"),
    },
    models={"mine": ModelSettings(provider="other", input_usd="1", output_usd="2")},
)
BUDGETED = Policy(budgets=(Budget(10**12),))


@pytest.mark.parametrize(
    ("model", "stated", "policy", "written"),
    [
        ("mine", {"max_completion_tokens": 50}, BUDGETED, ("max_tokens", 50)),
        ("mine", {"max_tokens": 50}, BUDGETED, None),
        ("gpt-4o-mini", {"max_tokens": 50}, BUDGETED, ("max_completion_tokens", 50)),
        ("gpt-4o-mini", {"max_completion_tokens": 50}, BUDGETED, None),
        ("mine", {"max_completion_tokens": 50}, UNLIMITED, None),
        ("gpt-4o-mini", {}, BUDGETED, ("max_completion_tokens", 16_384)),
        ("gpt-4o-mini", {}, UNLIMITED, None),
    ],
)
def test_limit_is_written_where_the_provider_heeds_it(
    model: str, stated: dict[str, int], policy: Policy, written: tuple[str, int] | None
) -> None:
    """A budget relies on the limit: one that stands in a field the provider may ignore is moved to the other."""
    body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "Hello"}], **stated})
    call = parse(ENDPOINTS["/v1/chat/completions"], body)
    bounder = Bounder(SETTINGS, Catalog(SETTINGS))
    route = Router(SETTINGS).resolve(call.model, "openai")
    who = Principal("key_1", "one", "org_1", (Scope(ScopeKind.KEY, "key_1", policy),))
    plan = bounder.plan(call, route, who, 1_795_000_000_000_000)
    assert bounder.output_limit(plan) == written
