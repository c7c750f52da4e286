"""The other workers as one of them sees them: a supervisor to ask. What is asked of all is asked of it alone."""

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Final

from tollkeeper.app.channel import ALIVE, METRICS, READY, SYNC, Answer, Channel
from tollkeeper.app.supervisor import inherited
from tollkeeper.domain.errors import InvalidInput, Unavailable
from tollkeeper.observability.exposition import labelled
from tollkeeper.observability.logging import logger

METRICS_TIMEOUT_S: Final = 3.0
"""The supervisor waits for less; without its answer a worker tells its own metrics only."""
SYNC_TIMEOUT_S: Final = 9.0
READY_TIMEOUT_S: Final = 30.0


class Crew:
    """`join` before anything is asked; `ready` once connections are accepted."""

    def __init__(self, place: int, channel: Channel) -> None:
        self.place = place
        self._channel = channel
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def join(cls, place: int, channel_fd: int) -> "Crew":
        """Over the channel that was inherited. If the supervisor dies, this process stops as by SIGTERM."""
        crew = cls(place, await Channel.over(inherited(channel_fd)))
        crew._task = asyncio.create_task(crew._run())
        return crew

    async def _run(self) -> None:
        await self._channel.run()
        logger("worker").error("supervisor_gone", then="this worker stops")
        os.kill(os.getpid(), signal.SIGTERM)

    def may_ask(self, topics: Mapping[str, Answer]) -> None:
        """What the others may ask of this worker."""
        self._channel.topics.update({ALIVE: _alive, **topics})

    async def ready(self) -> None:
        """This worker accepts connections. Raises `Unavailable`."""
        await self._channel.ask(READY, READY_TIMEOUT_S)

    async def exposition(self) -> bytes:
        """The metrics of all; of this one alone if the supervisor does not tell."""
        try:
            return await self._channel.ask(METRICS, METRICS_TIMEOUT_S)
        except Unavailable as error:
            logger("worker").warning("others_unknown", asked=METRICS, why=str(error))
            return labelled(await self._channel.topics[METRICS](), "worker", str(self.place))

    async def sync(self) -> None:
        """All others write spend to the database. Raises `Unavailable`."""
        await self._channel.ask(SYNC, SYNC_TIMEOUT_S)

    async def leave(self) -> None:
        """Say nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._channel.close()


async def _alive() -> bytes:
    return b""


def read_place(text: str) -> tuple[int, tuple[int, ...], int]:
    """`place:listener[,admin's listener]:channel`, as the supervisor writes it: its number, descriptors.

    Raises InvalidInput."""
    try:
        number, listening, descriptor = text.split(":")
        place, channel = int(number), int(descriptor)
        listeners = tuple(map(int, listening.split(",")))
    except ValueError:
        raise InvalidInput("--as-worker is for the supervisor of `serve --workers N` alone") from None
    return place, listeners, channel
