from tollkeeper.governance.redis_client import Health as Health
from tollkeeper.governance.redis_client import RedisClient as RedisClient
from tollkeeper.governance.redis_client import RedisStats as RedisStats
from tollkeeper.governance.redis_connection import ReplyError as ReplyError

__version__: str
