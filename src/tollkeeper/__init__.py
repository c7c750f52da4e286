"""Tollkeeper: an LLM gateway with exact limits, hard budgets and proven logs.

The composition root is `app/gateway.py`; the rules are in `domain/`. ARCHITECTURE.md is the map.
What other services may use is in `_HOMES`; each name is loaded when it is first asked for, so that importing a part
stays as light as the part. Type checkers read `__init__.pyi`; a test holds the two equal.
"""

from importlib import import_module
from typing import Any, Final

__version__ = "0.1.0"
_HOMES: Final = {
    "tollkeeper.app.billing": ("BillingCache",),
    "tollkeeper.domain.accounts": ("KeyChange", "NewKey"),
    "tollkeeper.domain.billing": ("Hold", "Standing"),
    "tollkeeper.domain.entries": ("Charged",),
    "tollkeeper.domain.errors": (
        "IdempotencyConflict",
        "InvalidInput",
        "NotFound",
        "StoreUnavailable",
        "Unavailable",
    ),
    "tollkeeper.domain.limits": ("LimitResult",),
    "tollkeeper.domain.money": ("MoneyError",),
    "tollkeeper.domain.periods": ("Period",),
    "tollkeeper.domain.policy": ("Budget", "Policy", "Raise"),
    "tollkeeper.governance.asgi_limits": ("RateLimitMiddleware",),
    "tollkeeper.governance.fastapi_limits": ("rate_limit",),
    "tollkeeper.governance.limit_stores": ("MemoryLimits",),
    "tollkeeper.governance.limiters": ("SlidingWindowLimiter", "TokenBucketLimiter"),
    "tollkeeper.governance.redis_client": ("Health", "RedisClient", "RedisStats"),
    "tollkeeper.governance.redis_connection": ("ReplyError",),
    "tollkeeper.logs.buffer": ("LogBatch", "LogBuffer", "LogBufferStats"),
}


__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
