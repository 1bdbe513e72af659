"""Runs TorchScript and state-dict weights of foreign packages: the only module here that imports torch, and late."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import DependencyError, DeviceError, PackageError, VoidzooError
from ...zoo.package_files import MAX_TEXT
from .script_archive import checked_script, refuse_script

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...zoo.package import Package, Weights
    from .device import Device


class TorchNetwork:
    """A network in torch, in evaluation mode. Safe to use from any number of threads.

    threads: that one run may use on the CPU. trust_code: run the package's Python code, which a state dict needs, and
    TorchScript that reaches files.
    Raises DependencyError without torch or a library that the network is made of, DeviceError for a device that torch
    cannot use, PackageError for weights that it cannot load.
    """

    def __init__(
        self, package: Package, weights: Weights, device: Device, threads: int, *, trust_code: bool = False
    ) -> None:
        self._torch = _import_torch(package, weights)
        self._package = package
        self._device = _device(self._torch, device)
        self._threads = threads if device.kind == "cpu" else None
        data = package.files.read(weights.source, weights.sha256)
        with _told(f"torch cannot load {package.path}."), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls TorchScript deprecated; the packages are as they are
            if weights.kind == "torchscript":
                data = data if trust_code else checked_script(data, package.path)
                network = self._torch.jit.load(io.BytesIO(data), map_location=self._device)
            else:
                network = self._with_state(weights, data, trust_code=trust_code)
            self._network = network.eval()

    def _with_state(self, weights: Weights, data: bytes, *, trust_code: bool) -> Any:
        if not trust_code:
            raise PackageError(
                f"{self._package.path} has a state dict: running it runs Python code of the package.",
                mend="--trust-code  if you trust where the package came from",
            )
        made = _architecture(self._package, weights)
        if not isinstance(made, self._torch.nn.Module):
            raise PackageError(f"{self._package.path}: its code makes a {type(made).__name__}, no torch network.")
        network = made.to(self._device)
        refuse_script(data, self._package.path)
        state = self._torch.load(io.BytesIO(data), map_location=self._device, weights_only=True)
        network.load_state_dict(state, strict=bool(weights.options.get("strict", True)))
        return network

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One run. feeds: input id -> array in the package's axes -> the outputs in the package's order and axes.

        An optional input that is left out is None to the network. Raises PackageError where torch cannot run it, and
        for fewer outputs than described.
        """
        torch = self._torch
        inputs = []
        for tensor in self._package.inputs:
            if tensor.id not in feeds and not tensor.optional:
                raise PackageError(f"{self._package.name} needs the input {tensor.id}.")
            inputs.append(self._tensor(feeds[tensor.id]) if tensor.id in feeds else None)
        told = _told(f"{self._package.name} cannot run on {_shapes(feeds)}.")
        with told, _threads(torch, self._threads), torch.inference_mode():
            found = self._network(*inputs)
            outputs = list(found) if isinstance(found, tuple | list) else [found]
            arrays = [o.detach().cpu().numpy() for o in outputs if isinstance(o, torch.Tensor)]
        if len(arrays) != len(outputs) or len(arrays) < len(self._package.outputs):
            kinds = ", ".join(type(o).__name__ for o in outputs)
            described = len(self._package.outputs)
            raise PackageError(f"{self._package.path}: the network returns {kinds}; {described} tensors are described.")
        return arrays[: len(self._package.outputs)]

    def _tensor(self, values: NDArray[Any]) -> Any:
        # torch warns of read-only memory and does not take negative strides
        return self._torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self._device)


@contextlib.contextmanager
def _threads(torch: Any, wanted: int | None) -> Iterator[None]:
    """So many threads for what runs inside; torch has one number for the whole process, which others have set."""
    before = torch.get_num_threads()
    if wanted is None or wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _import_torch(package: Package, weights: Weights) -> Any:
    try:
        import torch
    except ImportError as error:
        raise DependencyError(
            f"{package.path} has {weights.kind} weights; they need torch, which is not installed.",
            mend="pip install torch",
        ) from error
    return torch


def _device(torch: Any, device: Device) -> Any:
    """torch's name for a device. Raises DeviceError for one that this torch does not have."""
    name = {"cpu": "cpu", "cuda": f"cuda:{device.index}", "mps": "mps"}.get(device.kind)
    there = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and device.index < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if name is None or not there[device.kind]():
        raise DeviceError(
            f"{device} was asked for, but this torch {torch.__version__} cannot use it.",
            mend="--device " + " or ".join(kind for kind, found in there.items() if found()),
        )
    return torch.device(name)


def _architecture(package: Package, weights: Weights) -> Any:
    """The network as the package's code, or a library that it names, makes it; with the weights it was born with."""
    about = weights.options.get("architecture")
    if not isinstance(about, Mapping):
        raise PackageError(f"{package.path} does not say what makes the network of its state dict.")
    name, kwargs = str(about.get("callable", "")), dict(about.get("kwargs") or {})
    if source := about.get("source"):
        namespace = _executed(package, str(source), about.get("sha256"))
    else:
        namespace = _imported(package, str(about.get("import_from", "")))
    make: Callable[..., Any] | None = getattr(namespace, name, None)
    if make is None:
        raise PackageError(f"{package.path}: {source or about.get('import_from')} has no {name!r}.")
    return make(**kwargs)


def _executed(package: Package, source: str, sha256: str | None) -> types.ModuleType:
    """The package's Python file as a module. Only for who trusts it; its sha256 is checked before anything runs."""
    code = package.files.read(source, sha256, MAX_TEXT)
    module = types.ModuleType(f"voidzoo_architecture_{hashlib.sha256(code).hexdigest()[:16]}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(code, source, "exec"), module.__dict__)
    except ImportError as error:
        raise _library(package, error.name or str(error)) from error
    return module


def _imported(package: Package, name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise _library(package, name.partition(".")[0]) from error


def _library(package: Package, name: str) -> DependencyError:
    return DependencyError(
        f"the network of {package.path} is made of {name!r}, which is not installed.",
        mend=f"pip install {name.partition('.')[0]}",
    )


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever foreign code raises becomes a PackageError with its first line (of TorchScript the last, the cause)."""
    try:
        yield
    except VoidzooError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PackageError(what, where=lines[-1 if "TorchScript interpreter" in lines[0] else 0][:300]) from error


def _shapes(feeds: Mapping[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name} {' x '.join(map(str, values.shape))}" for name, values in feeds.items())
