"""What glibc does with memory that was freed: give it back to the system, or keep it for the next who asks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
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
NEVER = 2**31 - 1
MAPPED = 65536
"""How many arrays may have pages of their own: glibc's default."""


def give_back() -> None:
    """For prediction. glibc keeps large freed blocks for later once it has seen some, and their gaps: memory would
    creep up in a long job (832 instead of 576 MB with a network of two convolutions).
    """
    _mallopt(
        (M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, max(1, (os.cpu_count() or 1) // SHARING))
    )


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """For training, whose steps all need the same memory: without this the system takes it back after each step and
    fills it with zeros for the next, a fifth of the time (a third where `give_back` was called before).
    """
    _mallopt((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER))
    try:
        yield
    finally:
        _mallopt((M_MMAP_MAX, MAPPED), (M_TRIM_THRESHOLD, KEPT))
        _trim()


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):  # Linux: getrusage would count what the parent held when it started us
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


def _trim() -> None:
    """Give back at once what was kept."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _mallopt(*settings: tuple[int, int]) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            for name, value in settings:
                libc.mallopt(name, value)
