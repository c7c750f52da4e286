"""The simulator's start and stop. Composes account, service and connections; knows no wire format."""

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from tollkeeper.simulator.account import Account
from tollkeeper.simulator.connection import Connection
from tollkeeper.simulator.service import Service

BACKLOG: Final = 4096


def _unix_us() -> int:
    return time.time_ns() // 1000


class Simulator:
    """A simulated provider in the running event loop.

    `port` 0 takes a free one, known after `start()`. `first_byte_delay_s` and `chunk_delay_s` hold for requests
    without a directive. `api_keys` None: any key or none is fine. `models` None: every name is served. `journal`: a
    file that gets one JSON line a request. `now_us`: Unix microseconds. Raises OSError if it cannot listen or open
    its journal.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        first_byte_delay_s: float = 0.0,
        chunk_delay_s: float = 0.0,
        api_keys: Collection[str] | None = None,
        models: Collection[str] | None = None,
        journal: Path | None = None,
        now_us: Callable[[], int] = _unix_us,
    ) -> None:
        self.served = Account(journal=journal, now_us=now_us)
        self.host = host
        self._port = port
        self._now_us = now_us
        self._service = Service(
            account=self.served,
            first_byte_delay_s=first_byte_delay_s,
            chunk_delay_s=chunk_delay_s,
            api_keys=api_keys,
            models=models,
            now_us=now_us,
        )
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._server is None else f"at {self.base_url}, {len(self._connections)} connections"
        return f"<Simulator {state}>"

    @property
    def port(self) -> int:
        """The port it listens on, or was asked to."""
        return self._port

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes as `base_url`; Anthropic's takes it without `/v1`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._port}/v1"

    async def start(self) -> None:
        """Listen."""
        if self._server is not None:
            return
        self.served.open()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._connect, self.host, self._port, backlog=BACKLOG)
        except BaseException:
            self.served.close()
            raise
        self._port = self._server.sockets[0].getsockname()[1]

    def _connect(self) -> Connection:
        return Connection(self._service, self.served, self._connections, self._now_us)

    async def stop(self) -> None:
        """Close at once: answers in progress are cut, and recorded as such. A second call does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in list(self._connections):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        self.served.close()
