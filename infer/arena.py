"""The memory that networks on the CPU work in: one arena for the process, on huge pages where the system has them.

A network walks through hundreds of megabytes for each tile; with pages of 4 kB the processor spends a tenth of the time
looking them up. onnxruntime takes its arena from one large reservation, of which only what is used becomes memory, and
the kernel is asked to back that with pages of 2 MB. (glibc's tunable `hugetlb=1` does the same, but then the first tile
costs two seconds more, and it must be set before the process starts.)
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from functools import lru_cache
from typing import Any

import numpy as np

HUGE = 2**21
RESERVED = 2**31 - HUGE
"""What is reserved (address space, not memory): the most that onnxruntime's setting, a C int, can say."""
MADV_HUGEPAGE = 14
DOUBLE = bytes.fromhex(
    "08083a380a0e0a01780a01781201792203416464120474696e795a0f0a0178120a0a08080112040a020801620f0a0179120a"
    "0a08080112040a02080142040a001011"
)
"""An ONNX graph of one node, y = x + x of one float32 (opset 17, IR 8): what is smaller cannot be run."""
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s*$")


@lru_cache(maxsize=1)
def shared_arena() -> int:
    """Make the arena of this process once. -> bytes that were reserved, 0 where onnxruntime's own arenas are used."""
    import onnxruntime as ort
    import psutil

    if not sys.platform.startswith("linux"):
        return 0
    size = RESERVED
    if psutil.virtual_memory().available < size or _limited(size):
        return 0
    try:
        where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(where, ort.OrtArenaCfg({"initial_chunk_size_bytes": size}))
        options = ort.SessionOptions()
        options.add_session_config_entry("session.use_env_allocators", "1")
        first = ort.InferenceSession(DOUBLE, options, providers=["CPUExecutionProvider"])
        first.run(None, {"x": np.ones(1, np.float32)})  # the arena is made by the first who takes from it
        _ask_for_huge_pages(size)
    except Exception:  # an onnxruntime that knows no such setting: its own arenas are right, only slower
        return 0
    return size


def _limited(size: int) -> bool:
    """Whether the address space of this process is limited (ulimit -v) so that a reservation would not fit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return soft != resource.RLIM_INFINITY and soft < 4 * size


def _ask_for_huge_pages(reserved: int) -> None:
    """A kernel without them leaves everything as it is."""
    madvise: Any = ctypes.CDLL(None, use_errno=True).madvise
    with contextlib.suppress(OSError):
        for start, size in _mappings():
            if size >= reserved:
                first = -(-start // HUGE) * HUGE
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(start + size - first), MADV_HUGEPAGE)


def _mappings() -> list[tuple[int, int]]:
    """Start and size of the anonymous memory of this process."""
    found = []
    with open("/proc/self/maps") as file:  # noqa: PTH123
        for line in file:
            if match := _ANONYMOUS.match(line):
                start, stop = (int(n, 16) for n in match.groups())
                found.append((start, stop - start))
    return found
