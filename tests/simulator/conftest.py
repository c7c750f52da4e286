"""A simulator for each test, and raw HTTP to talk to it below any client library."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tollkeeper.simulator import Simulator


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    server = Simulator()
    await server.start()
    yield server
    await server.stop()


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **fields}


def http(body: Any, path: str = "/v1/chat/completions", headers: str = "", method: str = "POST") -> bytes:
    """A request as bytes."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n{headers}\r\n".encode() + data


async def exchange(port: int, request: bytes, *, wait_s: float = 5) -> bytes:
    """Everything that comes back until the server closes. Raises ConnectionResetError on a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(-1), wait_s)
    finally:
        writer.close()


async def eventually(condition: Any, wait_s: float = 5) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(wait_s):
        while not condition():
            await asyncio.sleep(0.005)
