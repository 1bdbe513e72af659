"""Devices by the words of `--device`: which there are, which onnxruntime can use, how much memory they have."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...zoo.errors import DeviceError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",  # where OpenVINO itself is not installed
    "directml": "DmlExecutionProvider",
}
INDEXED = ("cuda", "tensorrt", "directml")
"""Kinds of which a machine may have several."""


@dataclass(frozen=True)
class Device:
    """A device by the words of `--device`: `cpu`, `cuda`, `cuda:1`, `mps`. pinned: it may not become another runtime on
    the same processor (`onnxruntime`)."""

    kind: str
    index: int = 0
    pinned: bool = False

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.kind in INDEXED else self.kind


def find_device(word: str = "auto") -> Device:
    """The device for a word. Raises DeviceError for an unknown word, and for a device that onnxruntime cannot use."""
    import onnxruntime as ort

    kind, _, index = word.partition(":")
    if word == "onnxruntime":
        return Device("cpu", pinned=True)
    if kind not in ("auto", *PROVIDERS) or (index and (kind not in INDEXED or not index.isdigit())):
        words = ", ".join(("auto", "cuda:1", "onnxruntime", *PROVIDERS))
        raise DeviceError(f"there is no device {word!r}.", mend=f"--device {words}")
    available = ort.get_available_providers()
    if kind == "openvino" and openvino_installed():
        return Device(kind)
    if kind == "auto":
        return Device("cuda") if PROVIDERS["cuda"] in available and _cuda_devices() else Device("cpu")
    if PROVIDERS[kind] not in available:
        raise DeviceError(
            f"{word} was asked for, but this onnxruntime {ort.__version__} can use only: {_words(available)}.",
            mend='pip install "voidzoo[cuda]"   or add  --device cpu' if kind == "cuda" else "--device cpu",
        )
    return Device(kind, int(index or 0))


def _words(providers: Sequence[str]) -> str:
    there = [word for word, provider in PROVIDERS.items() if provider in providers]
    return ", ".join(there + ["openvino"] * (openvino_installed() and "openvino" not in there))


def openvino_installed() -> bool:
    """Whether OpenVINO itself is there, beside what onnxruntime was built with; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def openvino() -> Any:
    """The module, without the reports of use that its converter sends when it is imported.

    Those go to Google Analytics through a fork of this process and leave an identity in the home folder; nobody who
    denoises an image was asked. Without the package that sends them, the converter takes an empty one of its own.
    Raises ImportError.
    """
    silenced = "openvino_telemetry" not in sys.modules
    if silenced:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it cannot be imported
    try:
        return importlib.import_module("openvino")
    finally:
        if silenced:
            del sys.modules["openvino_telemetry"]


def _cuda_devices() -> bool:
    """Whether a driver shows a CUDA device; the provider is listed by the wheel even on machines without a GPU."""
    import ctypes

    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
        count = ctypes.c_int(0)
        return bool(cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0)
    except OSError:
        return False


def device_memory(device: Device) -> tuple[int, int] | None:
    """Free and total bytes of a CUDA device, None for others and where the driver does not tell."""
    if device.kind not in ("cuda", "tensorrt"):
        return None
    query = ["nvidia-smi", f"--id={device.index}", "--query-gpu=memory.free,memory.total",
             "--format=csv,noheader,nounits"]  # fmt: skip
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        free, total = (int(n) * 2**20 for n in told.strip().splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return free, total


def cpu_count() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
