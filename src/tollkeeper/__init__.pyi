from tollkeeper.domain.errors import InvalidInput as InvalidInput
from tollkeeper.domain.errors import StoreUnavailable as StoreUnavailable
from tollkeeper.domain.limits import LimitResult as LimitResult
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
