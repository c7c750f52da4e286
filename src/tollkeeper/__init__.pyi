from tollkeeper.app.billing import BillingCache as BillingCache
from tollkeeper.domain.accounts import KeyChange as KeyChange
from tollkeeper.domain.accounts import NewKey as NewKey
from tollkeeper.domain.billing import Hold as Hold
from tollkeeper.domain.billing import Standing as Standing
from tollkeeper.domain.errors import InvalidInput as InvalidInput
from tollkeeper.domain.errors import NotFound as NotFound
from tollkeeper.domain.errors import StoreUnavailable as StoreUnavailable
from tollkeeper.domain.errors import Unavailable as Unavailable
from tollkeeper.domain.limits import LimitResult as LimitResult
from tollkeeper.domain.money import MoneyError as MoneyError
from tollkeeper.domain.periods import Period as Period
from tollkeeper.domain.policy import Budget as Budget
from tollkeeper.domain.policy import Policy as Policy
from tollkeeper.domain.policy import Raise as Raise
from tollkeeper.governance.asgi_limits import RateLimitMiddleware as RateLimitMiddleware
from tollkeeper.governance.fastapi_limits import rate_limit as rate_limit
from tollkeeper.governance.limit_stores import MemoryLimits as MemoryLimits
from tollkeeper.governance.limiters import SlidingWindowLimiter as SlidingWindowLimiter
from tollkeeper.governance.limiters import TokenBucketLimiter as TokenBucketLimiter
from tollkeeper.governance.redis_client import Health as Health
from tollkeeper.governance.redis_client import RedisClient as RedisClient
from tollkeeper.governance.redis_client import RedisStats as RedisStats
from tollkeeper.governance.redis_connection import ReplyError as ReplyError

__version__: str
