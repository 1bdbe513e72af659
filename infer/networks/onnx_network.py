"""One onnxruntime session: the package's graph on a device, in float32 or float16."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import DeviceError, PackageError
from .device import INDEXED, PROVIDERS, Device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...zoo.package import Package


class OnnxNetwork:
    """One onnxruntime session."""

    def __init__(self, package: Package, weights: bytes, device: Device, threads: int) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what it has to say of missing libraries is told below, once
        ort.disable_telemetry_events()  # on Windows, and where it was imported before voidzoo
        if device.kind in ("cuda", "tensorrt") and hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # the memory pattern keeps a second copy of all activations (twice the memory, no gain in speed)
        options.enable_mem_pattern = False
        provider = PROVIDERS[device.kind]
        wanted = [(provider, {"device_id": device.index})] if device.kind in INDEXED else [provider]
        try:
            alone = {} if device.kind == "cpu" else {"enable_fallback": 0}  # it prints, and runs on the CPU instead
            self._session = ort.InferenceSession(weights, options, providers=wanted, **alone)
        except Exception as error:  # onnxruntime raises its own kinds, without a common base
            if device.kind != "cpu":
                raise _not_this_device(device, first_line(error)) from error
            raise PackageError(f"onnxruntime cannot load {package.path}.", where=first_line(error)) from error
        if (real := self._session.get_providers()[0]) != provider:
            raise _not_this_device(device, f"it runs on {real.removesuffix('ExecutionProvider')} instead")
        inputs = self._session.get_inputs()
        if len(inputs) != len(package.inputs) or len(self._session.get_outputs()) < len(package.outputs):
            raise PackageError(
                f"{package.path}: rdf.yaml describes {len(package.inputs)} inputs and {len(package.outputs)} outputs, "
                f"the network has {len(inputs)} and {len(self._session.get_outputs())}.", mend="get the package again"
            )  # fmt: skip
        self.inputs = [i.name for i in inputs]
        self._kinds = [_NUMPY.get(i.type, "float32") for i in inputs]
        self.outputs = [o.name for o in self._session.get_outputs()[: len(package.outputs)]]
        batch = [a.letter for a in package.main.axes].index("b") if package.main.axis("b") else None
        shape = inputs[package.inputs.index(package.main)].shape
        self.batch_limit = shape[batch] if batch is not None and isinstance(shape[batch], int) else None
        self._binding = device.kind == "cuda"

    def run(self, given: Mapping[int, NDArray[Any]]) -> list[NDArray[Any]]:
        """Arrays in the package's axes, by the position of the input -> one an output."""
        feeds = {self.inputs[i]: np.ascontiguousarray(x, self._kinds[i]) for i, x in given.items()}
        if not self._binding:
            # what it returns lies in its arena: kept there until it is stored, it would make the arena grow
            return [np.array(y) for y in self._session.run(self.outputs, feeds)]
        # outputs stay on the device until the run is over: one copy each way, no synchronisation in between
        binding = self._session.io_binding()
        for name, x in feeds.items():
            binding.bind_cpu_input(name, x)
        for name in self.outputs:
            binding.bind_output(
                name, "cuda", self._session.get_provider_options()["CUDAExecutionProvider"]["device_id"]
            )
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()


def _not_this_device(device: Device, why: str) -> DeviceError:
    return DeviceError(
        f"{device} was asked for, but onnxruntime cannot use it.",
        where=f"its libraries were not found or do not fit this onnxruntime: {why}",
        mend='pip install "voidzoo[cuda]"   or add  --device cpu' if device.kind == "cuda" else "--device cpu",
    )


_NUMPY = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def to_fp16(package: Package, weights: bytes) -> bytes:
    """The same graph with float16 inside and float32 at its ends. Raises PackageError for one that cannot be cast."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        model = onnx.load_from_string(weights)
        return convert_float_to_float16(model, keep_io_types=True).SerializeToString()
    except Exception as error:  # the converter raises whatever it trips over
        raise PackageError(
            f"{package.name} cannot run in float16.", where=first_line(error), mend="--precision fp32"
        ) from error


OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "bad_alloc", "alloc_failed", "bfcarena")
"""What onnxruntime, CUDA and torch say when memory does not suffice, in small letters."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a run failed because its tensors did not fit the device."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def first_line(error: Exception) -> str:
    """What an error of onnxruntime says, without the rest of its page."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
