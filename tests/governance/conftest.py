from tests.servers.redis import (
    certificates,
    guarded_redis,
    own_redis,
    redis_cluster,
    redis_server,
    sentinel_group,
)

__all__ = ["certificates", "guarded_redis", "own_redis", "redis_cluster", "redis_server", "sentinel_group"]
