"""`voidzoo` and `python -m voidzoo` are the command line."""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
from typing import NoReturn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGE = 4 * 2**20
"""Bytes from which on an array gets pages of its own, which go back when it is freed."""
KEPT = 4 * 2**20
"""Bytes of freed smaller ones that may stay for the next, in each heap: pages that come and go take a quarter of the
time of a job that is as fast as its files. 32 MB gain nothing more, and are missed where memory is short.
"""
SHARING = 4
"""Processors that share a heap. Each thread has one of its own by default, with gaps that only it can use: 10 of 170 MB
with two processors, and no time gained.
"""
NEW_OBJECTS = 50_000
"""Objects made since the last search for unreachable cycles at which Python looks for them again, 700 by default: the
libraries of a prediction make so many that stay that 50 of its first 500 ms go into searches that find nothing.
"""


def run() -> NoReturn:
    """The command line as a process. All is written and closed when `main` returns; taking the interpreter and its
    libraries apart object by object would cost an eighth of a second more, on every image.
    """
    gc.set_threshold(NEW_OBJECTS)
    _give_memory_back()
    from .cli import main

    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _give_memory_back() -> None:
    """glibc keeps large freed blocks for later once it has seen some, and their gaps: memory would creep up in a long
    job (832 instead of 576 MB with a network of two convolutions).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, LARGE)
            libc.mallopt(M_TRIM_THRESHOLD, KEPT)
            libc.mallopt(M_ARENA_MAX, max(1, (os.cpu_count() or 1) // SHARING))


if __name__ == "__main__":
    run()
