"""Threads of a gateway share arenas of the allocator."""

import platform
import subprocess
import sys

import pytest

THREADS = """
import os, sys, threading
from tollkeeper.app.allocator import limit_arenas
limited = limit_arenas()
barrier = threading.Barrier(17)
def hold():
    mine = [bytes(2000) for _ in range(1000)]
    barrier.wait(); barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(16)]
for thread in threads: thread.start()
barrier.wait()
# a thread's arena is a mapping of its own, aligned to 64 MiB
starts = {int(line.split("-")[0], 16) for line in open("/proc/self/maps")}
print(limited, sum(start % (64 << 20) == 0 for start in starts))
barrier.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_arenas() -> None:
    def run(**environ: str) -> tuple[str, int]:
        told = subprocess.run(
            [sys.executable, "-c", THREADS], env=environ, check=True, capture_output=True, text=True
        )
        limited, arenas = told.stdout.split()
        return limited, int(arenas)

    assert run() == ("True", 1)  # beside the main one
    limited, arenas = run(MALLOC_ARENA_MAX="9")
    assert limited == "False"
    assert arenas > 1
