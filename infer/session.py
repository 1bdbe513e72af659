"""One onnxruntime session for a device: made once, read back, measured, safe to share between threads."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import DeviceError, PackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.package import Package

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}


@dataclass(frozen=True)
class Device:
    """A device by the words of `--device`: `cpu`, `cuda`, `cuda:1`, `mps`."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.kind == "cuda" else self.kind


def find_device(word: str = "auto") -> Device:
    """The device for a word. Raises DeviceError for an unknown word, and for a device that onnxruntime cannot use."""
    import onnxruntime as ort

    kind, _, index = word.partition(":")
    if kind not in ("auto", *PROVIDERS) or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"there is no device {word!r}.", mend="--device auto, cpu, cuda, cuda:1 or mps")
    available = ort.get_available_providers()
    if kind == "auto":
        return Device("cuda") if PROVIDERS["cuda"] in available and _cuda_devices() else Device("cpu")
    if PROVIDERS[kind] not in available:
        raise DeviceError(
            f"{word} was asked for, but this onnxruntime {ort.__version__} can use only: {_words(available)}.",
            mend='pip install "voidzoo[cuda]"   or add  --device cpu' if kind == "cuda" else "--device cpu",
        )
    return Device(kind, int(index or 0))


def _words(providers: Sequence[str]) -> str:
    return ", ".join(word for word, provider in PROVIDERS.items() if provider in providers)


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


class Session:
    """Runs a package's network. x: float32 (b, c, [z], y, x), raw intensities -> float32 (b, c_out, [z], y, x).

    workers: how many runs may go on at once, each in an onnxruntime session of its own; on the CPU they share out the
    processors. Safe to use from any number of threads. Raises DeviceError when the device that was asked for is not
    the one that runs, PackageError for weights that onnxruntime cannot load.
    """

    def __init__(self, package: Package, device: Device, workers: int = 1) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what it has to say of missing libraries is told below, once
        self.device = device
        self.workers = workers
        self.threads = max(1, cpu_count() // workers)
        if device.kind == "cuda" and hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()
        weights = package.onnx()
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(workers):
            session = self._load(package, weights)
            self._free.put(session)
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def _load(self, package: Package, weights: bytes) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        # the memory pattern keeps a second copy of all activations (twice the memory, no gain in speed)
        options.enable_mem_pattern = False
        provider = PROVIDERS[self.device.kind]
        wanted = [(provider, {"device_id": self.device.index})] if self.device.kind == "cuda" else [provider]
        try:
            session = ort.InferenceSession(weights, options, providers=wanted)
        except Exception as error:  # onnxruntime raises its own kinds, without a common base
            raise PackageError(f"onnxruntime cannot load {package.path}.", where=_first_line(error)) from error
        if (real := session.get_providers()[0]) != provider:
            raise DeviceError(
                f"{self.device} was asked for, but onnxruntime runs on {real.removesuffix('ExecutionProvider')}.",
                where="the libraries of CUDA or cuDNN were not found or do not fit this onnxruntime",
                mend='pip install "voidzoo[cuda]"   or add  --device cpu',
            )
        return session

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One run. float32 (b, c, [z], y, x) in and out."""
        session = self._free.get()
        try:
            return session.run([self._output], {self._input: x})[0]
        finally:
            self._free.put(session)

    @property
    def name(self) -> str:
        """The device that really runs, for people."""
        if self.device.kind != "cpu":
            return str(self.device)
        each = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"cpu ({each})" if self.workers == 1 else f"cpu ({self.workers} x {each})"


@dataclass(frozen=True)
class Probe:
    """What a short run measured: input voxels per second of all workers, and bytes of working memory per input voxel
    of one of them.
    """

    voxels_per_second: float
    bytes_per_voxel: float


def probe(session: Session, shape: Sequence[int], seconds: float = 0.05) -> Probe:
    """Measure speed and working memory on random tiles of `shape` (b, c, [z], y, x) in a session that is still new.

    The working memory is what the process grew by in the first run: onnxruntime's arena keeps all it took.
    """
    import psutil

    process = psutil.Process()
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    before = process.memory_info().rss
    with ThreadPoolExecutor(session.workers) as pool:

        def together() -> float:
            start = time.perf_counter()
            list(pool.map(lambda _: _run(session, x), range(session.workers)))
            return time.perf_counter() - start

        together()
        grown = max(0, process.memory_info().rss - before) / session.workers
        best, until = float("inf"), time.perf_counter() + seconds
        while True:
            best = min(best, together())
            if time.perf_counter() >= until:
                return Probe(session.workers * _voxels(x) / best, grown / _voxels(x))


def _run(session: Session, x: NDArray[np.float32]) -> None:
    try:
        session.run(x)
    except Exception as error:  # onnxruntime raises its own kinds, without a common base
        raise PackageError("the network cannot run on a tile of a size that its package calls legal.",
                           where=f"input {x.shape}: {_first_line(error)}") from error  # fmt: skip


def _voxels(x: NDArray[Any]) -> int:
    return x.size // x.shape[1]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def cpu_count() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
