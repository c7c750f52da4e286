from tests.servers.redis import own_redis, redis_server

__all__ = ["own_redis", "redis_server"]
