"""Accepting: one connection a turn of the loop, more of those that waited through a long one."""

import asyncio
import contextlib
import socket
import time

import pytest

from tollkeeper.app import accepting
from tollkeeper.app.accepting import Acceptor

CLIENTS = 48


async def _turns_to_accept_all(turn_s: float) -> int:
    """How many turns of the loop, each of at least so many seconds, accept what waits in the socket."""
    made: list[asyncio.Protocol] = []

    def make() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=CLIENTS))
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        acceptor = Acceptor(listening, make)
        acceptor.start()
        turns = 0
        async with asyncio.timeout(60):
            while len(made) < CLIENTS:
                time.sleep(turn_s)  # requests that take the loop's time
                await asyncio.sleep(0)
                turns += 1
        acceptor.stop()
    return turns


async def test_who_waited_through_long_turns_is_accepted_at_once() -> None:
    """Under load nobody waits for as many turns as others came before."""
    assert await _turns_to_accept_all(0.002) < CLIENTS / 2


async def test_one_a_turn_is_accepted_of_a_loop_that_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """So workers that share a socket share what comes at once."""
    monkeypatch.setattr(accepting, "ACCEPT_EACH_S", 60.0)  # so that no turn is long, however slow the machine
    assert await _turns_to_accept_all(0.0) >= CLIENTS


async def test_no_more_than_a_bound_is_accepted_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is connected already is served in between."""
    monkeypatch.setattr(accepting, "ACCEPTED_MAX", 2)
    assert await _turns_to_accept_all(0.002) >= CLIENTS / 2
