"""A plain redis-py client, as far as tests of scripts and limiters need one."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tollkeeper.governance.redis_connection import ReplyError
from tollkeeper.governance.scripts import source


class PlainRunner:
    """Replies as Redis sends them. Commands of concurrent callers take turns on the connections of a pool."""

    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url, protocol=2, max_connections=50)
        self.client.response_callbacks.clear()

    async def start(self) -> None:
        await self.command("PING")

    async def stop(self) -> None:
        await self.client.aclose()

    async def command(self, *parts: Any) -> Any:
        try:
            return await self.client.execute_command(*parts)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            raise ReplyError(str(error)) from error

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any], **how: Any) -> Any:
        return await self.command("EVAL", source(script), len(keys), *keys, *args)
