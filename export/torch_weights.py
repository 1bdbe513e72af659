"""The same network for those who run torch: a state dict with its architecture file, and TorchScript."""

from __future__ import annotations

import importlib.util
import io
import sys
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..trainers.networks import unet
from ..zoo.errors import PackageError, VoidzooError, nearest

if TYPE_CHECKING:
    from ..zoo.package import AxisRule
    from .measure import Runner

ARCHITECTURE = "network.py"
"""The file of a package that makes the network of its state dict: `trainers/networks/unet.py` (imports torch alone)."""


def architecture() -> bytes:
    """The Python source of the network."""
    return Path(unet.__file__).read_bytes()


def state_dict(network: torch.nn.Module) -> bytes:
    """Tensors alone, as `torch.load(weights_only=True)` reads them, in the layout that every torch since 1.6 knows."""
    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def to_torchscript(network: torch.nn.Module, channels: int, space: str, sizes: Mapping[str, int]) -> bytes:
    """Traced, for any batch and legal size. sizes: a legal size along each letter of `space`, to trace with."""
    shape = [2, channels, *(sizes[a] * (2 if a == space[-1] else 1) for a in space)]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # that tracing will go is known; Fiji's and QuPath's engines read nothing else
        torch.jit.save(torch.jit.trace(network.eval(), torch.rand(shape), check_trace=False), buffer)
    return buffer.getvalue()


class TurnedModule(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
    """A network of any layout as one of b c [t] [z] y x."""

    def __init__(self, network: torch.nn.Module, inner: str, outer: str, space: str) -> None:
        super().__init__()
        self.network, have = network, "bc" + space
        self.gone = [i for i, a in enumerate(have) if a not in inner]
        left = "".join(a for a in have if a in inner)
        self.turn = [left.index(a) for a in inner]
        want = "".join(a for a in have if a in outer)
        self.back = [outer.index(a) for a in want]
        self.new = [i for i, a in enumerate(have) if a not in outer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 (b, c, *space) -> the same."""
        for axis in reversed(self.gone):
            x = x.squeeze(axis)
        if self.turn != sorted(self.turn):
            x = x.permute(self.turn)
        y = self.network(x)
        if isinstance(y, tuple | list):
            y = y[0]
        if self.back != sorted(self.back):
            y = y.permute(self.back)
        for axis in self.new:
            y = y.unsqueeze(axis)
        return y


def script_of(
    network: torch.nn.Module, reference: Runner, channels: int, rules: Mapping[str, AxisRule]
) -> tuple[bytes | None, str]:
    """TorchScript, or a note why there is none: torch cannot write it, or it differs at other sizes."""
    rng = np.random.default_rng(0)
    try:
        data = to_torchscript(network, channels, "".join(rules), {a: r.minimum + r.step for a, r in rules.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript will go is known
            script = torch.jit.load(io.BytesIO(data))
        for steps in (0, 2):
            size = [r.minimum + (0 if r.fixed else steps * r.step) for r in rules.values()]
            x = rng.gamma(2.0, 100.0, (1, channels, *size)).astype(np.float32)
            expected = reference(x)
            with torch.inference_mode():
                found = script(torch.from_numpy(x)).numpy()
            if found.shape != expected.shape or np.abs(found - expected).max() > 1e-4 * (expected.std() + 1e-12):
                return None, "TorchScript is left out: it does not compute the same at other sizes"
    except Exception as error:  # of torch, in many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, f"TorchScript is left out: {lines[0][:120]}"
    return data, ""


def loaded(file: Path, name: str, weights: Path | None, kwargs: Mapping[str, Any]) -> torch.nn.Module:
    """What `name` of a Python file makes of kwargs, with its state dict, in evaluation mode. The file runs.

    Raises PackageError with the first line of what the file or torch said.
    """
    spec = importlib.util.spec_from_file_location(f"voidzoo_packed_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise PackageError(f"there is no Python file {file}.", mend="ARCH.py:CLASS")
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = namespace  # dataclasses look their module up
    sys.path.insert(0, str(file.resolve().parent))  # it may import its neighbours
    try:
        spec.loader.exec_module(namespace)
        make = getattr(namespace, name, None)
        if make is None:
            names = [n for n, v in vars(namespace).items() if isinstance(v, type) and issubclass(v, torch.nn.Module)]
            raise PackageError(
                f"{file} has no {name!r}{nearest(name, names)}.",
                mend=f"{file}:{(get_close_matches(name, names, 1) or names or ['CLASS'])[0]}",
            )
        network = make(**kwargs)
        if not isinstance(network, torch.nn.Module):
            raise PackageError(f"{file}:{name} makes a {type(network).__name__}, no torch network.")
        if weights is not None:
            network.load_state_dict(_state(weights))
    except VoidzooError:
        raise
    except (Exception, SystemExit) as error:  # whatever the file raises; a script may want to leave
        lines = str(error).strip().splitlines() or [""]
        raise PackageError(
            f"{file}:{name} cannot be made.",
            where=f"{type(error).__name__}: {' '.join(lines[:2])[:300]}",
            mend="--kwargs '{\"in_channels\": 2}' with what it asks for, --weights with its state dict",
        ) from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return network.eval().float()


def _state(weights: Path) -> Mapping[str, torch.Tensor]:
    """A state dict, also one that lies in a checkpoint; nothing of it is run."""
    if not weights.is_file():
        raise PackageError(f"there are no weights {weights}.", mend="--weights WEIGHTS.pt")
    found = torch.load(weights, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise PackageError(f"{weights} holds no state dict.", mend="torch.save(network.state_dict(), 'W.pt')")
    return found
