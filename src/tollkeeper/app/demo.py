"""The demo: the gateway in front of the simulated provider, with a key to try it.

Changes the settings and creates one key; the gateway itself is the real one.
"""

from typing import Final

import msgspec

from tollkeeper.domain.accounts import NewKey
from tollkeeper.domain.money import NANO_PER_USD
from tollkeeper.domain.policy import Budget, Policy, Unit, Window
from tollkeeper.domain.ports import Accounts
from tollkeeper.settings import BillingSettings, ProviderSettings, Settings

KEY_NAME: Final = "demo"
POLICY: Final = Policy(
    windows=(Window(Unit.REQUESTS, 60), Window(Unit.TOKENS, 100_000)), budgets=(Budget(5 * NANO_PER_USD),)
)
POLICY_TEXT: Final = "60 requests and 100,000 tokens a minute, 5 USD a month"
SYNC_INTERVAL_S: Final = 5.0
FIRST_BYTE_DELAY_S: Final = 0.15
CHUNK_DELAY_S: Final = 0.015
"""Streams are seen to stream."""
OPENAI_MODEL: Final = "gpt-4o-mini"
ANTHROPIC_MODEL: Final = "claude-haiku-4-5"


def demo_settings(settings: Settings, simulator_port: int) -> Settings:
    """The settings with both dialects of the simulated provider as the only providers, and a short sync interval."""
    base_url = f"http://127.0.0.1:{simulator_port}/v1"
    return msgspec.structs.replace(
        settings,
        providers={
            "openai": ProviderSettings(base_url=base_url, dialect="openai", prices="openai"),
            "anthropic": ProviderSettings(
                base_url=base_url, dialect="anthropic", prices="anthropic", models=("claude-*",)
            ),
        },
        billing=BillingSettings(
            sync_interval_s=min(SYNC_INTERVAL_S, settings.billing.sync_interval_s),
            require_price=settings.billing.require_price,
        ),
        models={name: model for name, model in settings.models.items() if model.provider is None},
    )


async def demo_secret(accounts: Accounts) -> str:
    """A new secret for the demo key, which is created the first time: secrets are shown once, so none is kept."""
    known = [key for key in await accounts.list_keys() if key.name == KEY_NAME and key.expires_us is None]
    if not known:
        _, secret = await accounts.create_key(NewKey(name=KEY_NAME, policy=POLICY))
        return secret
    _, secret = await accounts.rotate_key(known[0].id)
    return secret


def examples(url: str, secret: str) -> list[tuple[str, str]]:
    """Title and a command to copy, for each way to call the gateway."""
    head = f"-H 'Authorization: Bearer {secret}' -H 'Content-Type: application/json'"
    message = '"messages":[{"role":"user","content":"Hello"}]'
    chat = f"""'{{"model":"{OPENAI_MODEL}",{message}}}'"""
    stream = f"""'{{"model":"{OPENAI_MODEL}","stream":true,{message}}}'"""
    claude = f"""'{{"model":"{ANTHROPIC_MODEL}","max_tokens":100,{message}}}'"""
    return [
        ("Chat", f"curl {url}/v1/chat/completions {head} -d {chat}"),
        ("Streaming", f"curl -N {url}/v1/chat/completions {head} -d {stream}"),
        ("Anthropic", f"curl {url}/v1/messages {head} -H 'anthropic-version: 2023-06-01' -d {claude}"),
    ]
