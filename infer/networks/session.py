"""The networks of one process: made once, shared by threads, whatever runs them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import DeviceError, PackageError
from ..geometry import Geometry, geometry
from .device import Device, cpu_count, find_device, openvino_installed
from .graph import refuse_absurd
from .onnx_network import OnnxNetwork, to_fp16
from .openvino_network import OpenVinoNetwork, refuse_bf16

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...zoo.package import Package
    from ..plan import Plan
    from .probe import Probe

MAX_INPUT = 2**28
"""Values of the smallest tile of a network: 1 GB as float32."""


class Session:
    """Runs a package's network on (n, c, *space) arrays, one a feed of its geometry.

    workers: how many runs may go on at once, each in a network of its own; on the CPU they share out the `threads`
    (default: all processors). runtime: `openvino`, else that of the weights, onnxruntime or torch. turn: held by a
    block while the network works on it. batch_limit: the only batch size that the graph takes, None for any. Safe to
    use from any number of threads. Raises DeviceError when the device that was asked for is not the one that runs,
    PackageError for weights that cannot be loaded, DependencyError without the runtime that was asked for, or for
    TorchScript without torch.
    """

    def __init__(
        self, package: Package, device: Device, workers: int = 1, *, shape: Geometry | None = None,
        precision: str = "fp32", trust_code: bool = False, threads: int | None = None, runtime: str = "",
    ) -> None:  # fmt: skip
        self.device = device
        self.workers = workers
        self.threads = max(1, (threads or cpu_count()) // workers)
        self.geometry = shape or geometry(package)
        self.precision = precision
        self.turn = threading.BoundedSemaphore(workers)
        self.probed: dict[tuple[int, ...], Probe] = {}
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._one_shape = False
        weights = package.chosen_weights(trust_code=trust_code)
        if weights.kind == "onnx" and device.kind == "openvino" and openvino_installed():
            runtime = "openvino"
        if precision == "bf16":
            refuse_bf16(package, device, weights.kind)
            runtime = "openvino"
        if runtime == "openvino" and weights.kind != "onnx":
            raise DeviceError(f"OpenVINO was asked for, but {package.name} has no ONNX weights.", mend="--device cpu")
        self.runtime = runtime or ("onnxruntime" if weights.kind == "onnx" else "torch")
        position = {t.id: i for i, t in enumerate(package.inputs)}
        self._keys = [position[p.id] if weights.kind == "onnx" else p.id for p in self.geometry.inputs]
        smallest = smallest_shapes(package, self.geometry)
        data = package.onnx() if weights.kind == "onnx" else b""
        if weights.kind == "onnx":
            refuse_absurd(data, smallest, package.path)
        if precision == "fp16":
            data = to_fp16(package, data)
        for _ in range(workers):
            backend: Any
            if self.runtime == "openvino":
                backend = OpenVinoNetwork(package, data, self.threads, bf16=precision == "bf16")
            elif weights.kind == "onnx":
                backend = OnnxNetwork(package, data, device, self.threads)
            else:
                from .torch_network import TorchNetwork

                backend = TorchNetwork(package, weights, device, self.threads, trust_code=trust_code)
            self._free.put(backend)
        self.batch_limit = getattr(backend, "batch_limit", None)
        self.tensor_names: tuple[dict[str, str], dict[str, str]] = ({}, {})
        if isinstance(
            backend, OnnxNetwork | OpenVinoNetwork
        ):  # package's names -> those in the graph, which are others
            self.tensor_names = (
                dict(zip([t.id for t in package.inputs], backend.inputs, strict=True)),
                dict(zip([t.id for t in package.outputs], backend.outputs, strict=True)),
            )

    def run(self, feeds: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """One run: arrays (n, c, *space), in the order of the geometry's inputs -> one an output, float32."""
        ports = self.geometry.inputs
        given: dict[Any, NDArray[Any]] = {self._keys[i]: ports[i].declared(f) for i, f in enumerate(feeds)}
        backend = self._free.get()
        try:
            if isinstance(backend, OpenVinoNetwork):
                backend.one_shape = self._one_shape
            found = backend.run(given)
        finally:
            self._free.put(backend)
        return [p.canonical(y) for p, y in zip(self.geometry.outputs, found, strict=True)]

    def expect(self, shape: Sequence[int] | None) -> None:
        """That all runs from now on are of this shape (n, c, *space) of the main input; None: they may differ.

        OpenVINO lays out its memory for it, and takes less. It begins to at once, beside what else is done before the
        first run, which waits for it.
        """
        self._one_shape = shape is not None
        if shape is not None and self.runtime == "openvino":
            ports = self.geometry.inputs
            blank = (np.broadcast_to(np.float32(0), sizes) for sizes in self.geometry.feed_shapes(shape))
            declared = {self._keys[i]: ports[i].declared(x).shape for i, x in enumerate(blank)}
            threading.Thread(target=self._fit, args=([declared[i] for i in sorted(declared)],)).start()

    def _fit(self, shapes: list[tuple[int, ...]]) -> None:
        backend = self._free.get()
        try:
            backend.one_shape = True
            with contextlib.suppress(Exception):  # the first run tries it again, and says what is wrong
                backend.fit(shapes)
        finally:
            self._free.put(backend)

    @property
    def name(self) -> str:
        """The device that really runs, for people."""
        if self.device.kind != "cpu" and self.runtime != "openvino":
            return str(self.device)
        each = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        each += ", OpenVINO" if self.runtime == "openvino" else ""
        return f"cpu ({each})" if self.workers == 1 else f"cpu ({self.workers} x {each})"


def smallest_shapes(package: Package, shape: Geometry) -> list[tuple[int, ...]]:
    """The smallest shape of each input, in the package's axes. Raises PackageError above MAX_INPUT."""
    main = (1, shape.inputs[0].channels, *(r.minimum for r in package.rules.values()))
    refuse_large(package, main)
    found = {}
    for port, sizes in zip(shape.inputs, shape.feed_shapes(main), strict=True):
        refuse_large(package, sizes)
        found[port.id] = port.declared(np.broadcast_to(np.float32(0), sizes)).shape
    return [found[t.id] for t in package.inputs if t.id in found]


def refuse_large(package: Package, shape: Sequence[int]) -> None:
    """Raise PackageError for a tile of more than MAX_INPUT values, before anything is made for it."""
    if prod(shape) > MAX_INPUT:
        raise PackageError(
            f"{package.path}: the smallest image that it takes has {' x '.join(f'{n:,}' for n in shape)} values; "
            f"{MAX_INPUT:,} are the most that can be run at once."
        )


def make_session(plan: Plan) -> Session:
    """The networks that a plan asks for."""
    choices = plan.choices
    return Session(
        plan.package, find_device(plan.device), plan.workers, shape=plan.geometry, precision=choices.precision,
        trust_code=choices.trust_code, threads=plan.threads, runtime=plan.runtime,
    )  # fmt: skip
