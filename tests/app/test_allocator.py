"""A gateway's threads share arenas of the allocator, and large buffers are given back."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these choices are glibc's")

THREADS = """
import ctypes, os, tempfile, threading
from tollkeeper.app.allocator import spare_memory
left = spare_memory()
barrier = threading.Barrier(17)
def hold():
    mine = [bytes(2000) for _ in range(1000)]
    barrier.wait(); barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(16)]
for thread in threads: thread.start()
barrier.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
with tempfile.TemporaryFile() as told:
    stream = ctypes.c_void_p(libc.fdopen(os.dup(told.fileno()), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    told.seek(0)
    print(told.read().count(b"<heap nr="), *left)
barrier.wait()
"""
BUFFERS = """
from tollkeeper.app.allocator import spare_memory
left = spare_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) >> 8
large = b"x" * (30 << 20)
del large
buffers, between = [], []
for _ in range(64):
    buffers.append(b"x" * (1 << 20))
    between.append(b"x" * 4000)
full = resident()
del buffers
print(full - resident(), *left)
"""

HOLES = """
import asyncio
from tollkeeper.app import allocator
allocator.TRIM_INTERVAL_S = 0.01
def resident():
    return int(open("/proc/self/statm").read().split()[1]) >> 8
async def main():
    done = [0]
    task = asyncio.create_task(allocator.give_back(lambda: done[0]))
    pieces = [b"x" * 5000 for _ in range(8000)]
    full = resident()
    pieces[:] = pieces[::40]
    await asyncio.sleep(0.2)
    idle = resident()
    done[0] = 1
    while resident() > full - 30:
        await asyncio.sleep(0.01)
    print(full - idle)
asyncio.run(main())
"""


def run(program: str, **environ: str) -> tuple[int, list[str]]:
    """The figure that it prints, and the choices that were left alone."""
    told = subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True)
    figure, *left = told.stdout.split()
    return int(figure), left


def test_threads_share_arenas() -> None:
    assert run(THREADS) == (2, [])
    arenas, left = run(THREADS, MALLOC_ARENA_MAX="9")
    assert left == ["MALLOC_ARENA_MAX"]
    assert arenas > 2


def test_freed_buffers_are_given_back() -> None:
    """Also after a larger one was freed."""
    given_back, left = run(BUFFERS)
    assert given_back >= 60 and left == []
    given_back, left = run(BUFFERS, MALLOC_MMAP_THRESHOLD_=str(32 << 20))
    assert given_back < 10 and left == ["MALLOC_MMAP_THRESHOLD_"]


def test_free_pages_between_what_lives_are_given_back() -> None:
    """When something was done, and not while nothing is."""
    given_back, _ = run(HOLES)  # it ends when 30 of the 38 MiB are
    assert given_back < 10
