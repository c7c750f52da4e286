"""Blocking calls away from the loop."""

import asyncio
import threading

import pytest

from tollkeeper.logs.blocking import CALLS_MAX, BlockingCalls


async def test_results_and_errors_come_back() -> None:
    calls = BlockingCalls()
    assert await calls.run(lambda: threading.current_thread().daemon, 5) is True
    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda: 1 // 0, 5)


async def test_a_call_that_hangs_is_given_up_and_too_many_of_them_fail_at_once() -> None:
    """So a store that hangs for ever costs a bounded number of threads; they are usable again when it ends."""
    calls, gate = BlockingCalls(), threading.Event()
    for _ in range(CALLS_MAX):
        with pytest.raises(TimeoutError):
            await calls.run(gate.wait, 0.01)
    with pytest.raises(TimeoutError, match="still hang"):
        await calls.run(lambda: None, 5)
    gate.set()
    await asyncio.sleep(0.05)
    assert await calls.run(lambda: 7, 5) == 7


async def test_more_calls_than_places_wait_for_one_another() -> None:
    """Found in a test run: several that read much failed with "no answer within 5 s", at once."""
    calls = BlockingCalls()
    gates = [threading.Event() for _ in range(3 * CALLS_MAX)]
    running = [asyncio.create_task(calls.run(lambda gate=gate: gate.wait() and 7, 60)) for gate in gates]  # type: ignore[misc]
    await asyncio.sleep(0)  # they begin
    with pytest.raises(TimeoutError):
        await calls.run(lambda: None, 0.05)  # it waits for a place in vain, and no longer
    for gate in gates:
        gate.set()
    assert await asyncio.gather(*running) == [7] * len(gates)


async def test_a_cancelled_call_forgets_its_outcome() -> None:
    calls, gate = BlockingCalls(), threading.Event()
    task = asyncio.create_task(calls.run(gate.wait, 5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await calls.run(lambda: 7, 5) == 7
