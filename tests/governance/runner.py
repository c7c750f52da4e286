"""A client of one connection, as far as the limiters need one."""

from collections.abc import Sequence
from typing import Any

from tollkeeper.governance.redis_connection import RedisConnection
from tollkeeper.governance.scripts import source


class ConnectionRunner:
    def __init__(self, url: str) -> None:
        self.connection = RedisConnection(url, dial_timeout_s=2, reply_timeout_s=2)

    async def start(self) -> None:
        await self.connection.start()

    async def stop(self) -> None:
        await self.connection.stop()

    async def command(self, *parts: Any) -> Any:
        return await self.connection.send(*parts)

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self.connection.send("EVAL", source(script), len(keys), *keys, *args)
