"""What figures were measured on: the machine in words, and the versions of the libraries that matter."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "voidzoo", "numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "onnx", "dask", "distributed", "zarr", "tifffile",
    "imagecodecs", "bioimageio.core", "bioimageio.spec", "torch", "scikit-image", "stardist",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, its widest vectors, cores, memory in GB, system, and the GPU where a driver shows one."""
    found = {
        "processor": _of_proc("cpuinfo", "model name") or platform.processor(),
        "vectors": _vectors(),
        "cores": cores(),
        "memory_gb": round(memory() / 1e9, 1) or None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    gpu = _gpu()
    return {**found, "gpu": gpu} if gpu else found


def _vectors() -> str:
    """AVX-512, AVX2 or nothing: a network runs two to three times as fast on the first as on the second."""
    flags = _of_proc("cpuinfo", "flags").split()
    return next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")


def has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16; False where /proc does not tell."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_of_proc("cpuinfo", "flags").split())


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory of the machine; 0 where /proc does not tell."""
    return int(_of_proc("meminfo", "MemTotal").removesuffix(" kB") or 0) * 1024


def processors(count: int | None) -> list[int] | None:
    """The first `count` of those that this process may use; None: no choice, or none that can be made here."""
    if count is None or not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0))[:count]


def load() -> float | None:
    """Processes that wanted a processor over the last minute: near 0 on a machine that is left alone."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _of_proc(file: str, key: str) -> str:
    path = Path("/proc") / file
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _gpu() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def versions() -> dict[str, str]:
    """The libraries that matter, those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found
