"""The package's ONNX graph in OpenVINO: on CPUs the faster runtime for volumes (docs/decisions/0012)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import DependencyError, DeviceError, PackageError
from .device import Device, openvino, openvino_installed
from .onnx_network import first_line
from .upsampling import with_merged_upsampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...zoo.package import Package


@lru_cache(maxsize=1)
def _core() -> Any:
    """One for the process, and for ever.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and takes the memory away when the last
    core goes, on whatever thread that happens: the next Ctrl-C would then write into nothing and end the process.
    """
    return openvino().Core()


def refuse_bf16(package: Package, device: Device, weights: str) -> None:
    """Raise DeviceError, DependencyError or PackageError where a network cannot be run in bfloat16.

    weights: their kind. OpenVINO does it, on processors that multiply in it: elsewhere it would be slower than float32.
    """
    if device.kind not in ("cpu", "openvino") or device.pinned:
        raise DeviceError(
            "bfloat16 is run by OpenVINO on the CPU; another device or runtime was asked for.",
            mend="--device cpu, or --precision fp16",
        )
    if weights != "onnx":
        raise PackageError(f"{package.name} has no ONNX weights, which bfloat16 is made of.", mend="--precision fp32")
    if not openvino_installed():
        raise DependencyError("bfloat16 on the CPU needs OpenVINO.", mend='pip install "openvino>=2025.0"')
    if "BF16" not in capabilities():
        raise DeviceError("this processor does not multiply in bfloat16.", mend="--precision fp32")


def capabilities() -> list[str]:
    """What the processor computes in without a detour, in OpenVINO's words: FP32, BF16, INT8, ..."""
    return list(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoNetwork:
    """A compiled network on the CPU, in float32 or with `bf16` inside in bfloat16. One run at a time. threads: that a
    run may use. one_shape: what is run next is compiled for its shapes, which takes a twentieth of a second, a third
    less memory and a twentieth less time (docs/decisions/0012).

    Raises DependencyError without OpenVINO, PackageError for a graph that it cannot compile.
    """

    one_shape = False

    def __init__(self, package: Package, weights: bytes, threads: int, *, bf16: bool = False) -> None:
        try:
            openvino()
        except ImportError as error:
            raise DependencyError(
                f"{package.name} was begun with OpenVINO, which is not installed here.",
                mend='pip install "openvino>=2025.0"   or begin anew with  --overwrite',
            ) from error
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # by itself bfloat16 where the processor has it
            "EXECUTION_MODE_HINT": "PERFORMANCE" if bf16 else "ACCURACY",
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
        }
        try:
            self._model = model = _core().read_model(with_merged_upsampling(weights), b"")
            self._request = self._compiled(model)
        except Exception as error:  # OpenVINO raises its own kinds, without a common base
            raise PackageError(f"OpenVINO cannot load {package.path}.", where=first_line(error)) from error
        if len(model.inputs) != len(package.inputs) or len(model.outputs) < len(package.outputs):
            seen = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
            raise PackageError(f"{package.path}: OpenVINO sees {seen}.")
        self.inputs = [i.get_any_name() for i in model.inputs]
        self.outputs = [o.get_any_name() for o in model.outputs[: len(package.outputs)]]
        self._kinds = [i.get_element_type().to_dtype() for i in model.inputs]
        batch = [a.letter for a in package.main.axes].index("b") if package.main.axis("b") else None
        shape = model.inputs[package.inputs.index(package.main)].get_partial_shape()
        fixed = batch is not None and not shape[batch].is_dynamic
        self.batch_limit = shape[batch].get_length() if fixed else None

        self._shapes: list[tuple[int, ...]] = []

    def _compiled(self, model: Any) -> Any:
        return _core().compile_model(model, "CPU", self._settings).create_infer_request()

    def fit(self, shapes: list[tuple[int, ...]]) -> None:
        """Compile for these shapes, or for any, if it is not so already."""
        wanted = shapes if self.one_shape else []
        if self._request is not None and self._shapes in (shapes, wanted):
            return
        self._request = None  # its memory goes before more is taken
        model = self._model
        if wanted:
            model = self._model.clone()
            model.reshape({i: list(shape) for i, shape in enumerate(wanted)})
        self._request, self._shapes = self._compiled(model), wanted

    def run(self, given: Mapping[int, NDArray[Any]]) -> list[NDArray[Any]]:
        """Arrays in the package's axes, by the position of the input -> one an output, float32.

        Raises PackageError for an optional input that was left out: here every input is needed.
        """
        if missing := [name for i, name in enumerate(self.inputs) if i not in given]:
            raise PackageError(f"OpenVINO needs the input {', '.join(missing)}, too.", mend="--device cpu")
        feeds = [np.ascontiguousarray(given[i], kind) for i, kind in enumerate(self._kinds)]
        self.fit([x.shape for x in feeds])
        found = self._request.infer(feeds, share_inputs=True)
        return [found[i] for i in range(len(self.outputs))]
