"""Keeps a process that runs for months small: memory that threads have freed is used again by all."""

import ctypes
import os
from contextlib import suppress
from typing import Final

ARENAS_MAX: Final = 2
_M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


def limit_arenas() -> bool:
    """To be called before threads are started. glibc gives each an arena of its own, and what was freed there stays:
    a busy gateway grew from 114 to 182 MB within 20 s, and with two arenas to 139. False: the operator has said
    something else by MALLOC_ARENA_MAX, or the C library has no arenas."""
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS_MAX))
    return False
