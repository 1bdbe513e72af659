"""Anybody's network, as `pack` sees it: one ONNX graph of b c [t] [z] y x, what it computes, and its other forms."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from ..infer.networks.onnx_network import first_line
from ..zoo.errors import AxesError, DependencyError, PackageError, RecipeError, SizeError, VoidzooError
from ..zoo.package import torch_is_there
from .bake import TYPES, baked
from .layout import LETTERS, canonical, declared
from .measure import Measured, Said, first_size, measured, runner
from .onnx_file import load, modernised, opset_of
from .portable import StateDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .measure import Runner

HARMLESS = {"torch", "numpy", *sys.stdlib_module_names}
"""What an architecture file may import, so that it runs wherever state dicts do."""

NARROW = 8
"""Pixels; an axis that is fixed to less, where channels are free, is no axis of space."""


@dataclass
class Network:
    """onnx: one file at the opset of the profile where that can be. reference: what it was made from, run as it is.

    outputs: channels that come out. notes: what there is to say. torchscript, state: its other forms, where there are.
    """

    onnx: bytes
    found: Measured
    reference: Runner
    outputs: int
    made_of: str
    torchscript: bytes | None = None
    state: StateDict | None = None
    torch: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """Of the graph."""
        import onnx

        return opset_of(onnx.load_model_from_string(self.onnx))


@dataclass(frozen=True)
class Wanted:
    """What was said of a network: its layouts, the channels that it reads, and each axis as far as it is known."""

    axes: str
    output_axes: str
    channels: int
    said: Mapping[str, Said]

    @property
    def space(self) -> str:
        """The letters behind batch and channel, in the order of the profile."""
        return "".join(a for a in LETTERS[2:] if a in self.axes)

    def check(self) -> None:
        """Raise AxesError for letters that are no layout of a network of images."""
        for option, axes in (("--axes", self.axes), ("--output-axes", self.output_axes)):
            strange = [a for a in axes if a not in LETTERS]
            if strange or len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes):
                raise AxesError(
                    f"{option} {axes!r} is no layout: each of {LETTERS} at most once, y and x among them.",
                    mend=f"{option} bcyx or bczyx",
                )
        if set(self.output_axes) - set("bc") != set(self.space):
            raise AxesError(
                f"the network reads {self.space} and returns {self.output_axes}: results must lie on the image.",
                mend=f"--output-axes {self.axes}",
            )


def from_onnx(path: Path, wanted: Callable[[int | None], Wanted]) -> Network:
    """A network in an ONNX file. wanted: given the number of input channels, where the file tells it.

    Raises PackageError, AxesError, SizeError.
    """
    data = _bytes(path)
    model, notes = modernised(load(data, str(path)))
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    asked = wanted(None)
    asked.check()
    returned = len(model.graph.output[0].type.tensor_type.shape.dim)
    for option, axes, many in (("--axes", asked.axes, len(dims)), ("--output-axes", asked.output_axes, returned)):
        if many and len(axes) != many:
            raise AxesError(
                f"{option} {axes} are {len(axes)} axes; the network has {many}.",
                mend=f"{option} bczyx"[: len(option) + 1 + many],
            )
    told = dims[asked.axes.index("c")] if "c" in asked.axes and dims else None
    narrow = [a for a, n in zip(asked.axes, dims, strict=False) if a in asked.space and 0 < n < NARROW]
    if narrow and "c" in asked.axes and not told:
        raise AxesError(
            f"by --axes {asked.axes} the network would read any number of channels, and {narrow[0]} of one size alone.",
            where=f"the graph's own sizes: {', '.join(str(n or 'any') for n in dims)}",
            mend="--axes with c where the number of channels stands",
        )
    asked = wanted(told or None)
    whole = runner(data)

    def reference(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return canonical(whole(declared(x, asked.axes, asked.space)), asked.output_axes, asked.space)

    sizes = {a: n for a, n in zip(asked.axes, dims, strict=False) if n and a != "c"}
    outputs = _outputs(path, reference, asked, sizes)

    def bake(fixed: Mapping[str, int] | None) -> bytes:
        made = baked(model, (asked.axes, asked.output_axes), asked.space, (asked.channels, outputs), sizes=fixed)
        return made.SerializeToString()

    try:
        onnx = bake(None)
        found = measured(onnx, asked.channels, asked.space, asked.said)
    except SizeError:
        if not set(sizes) & set(asked.space):
            raise
        onnx = bake(sizes)
        fixed = {a: Said(fixed=sizes.get(a)) if a in sizes else asked.said.get(a, Said()) for a in asked.space}
        found = measured(onnx, asked.channels, asked.space, fixed)
        notes.append("its sizes are fixed: " + ", ".join(f"{a} {n}" for a, n in sizes.items() if a in asked.space))
    if {asked.axes, asked.output_axes} != {"bc" + asked.space}:
        notes.append(f"axes {asked.axes} -> {asked.output_axes} became bc{asked.space}: the network is turned inside")
    if (kind := model.graph.input[0].type.tensor_type.elem_type) != TYPES["float32"]:
        notes.append(
            f"it reads {np.dtype(helper.tensor_dtype_to_np_dtype(kind))}: the cast from float32 lies in the network"
        )
    notes.append("there is ONNX alone: ilastik's window and QuPath open TorchScript, BiaPy a state dict")
    return Network(onnx, found, reference, outputs, path.name, notes=notes)


def _outputs(path: Path, reference: Runner, asked: Wanted, sizes: Mapping[str, int]) -> int:
    """How many channels come out, at the first size at which the network runs."""
    said = {a: Said(fixed=sizes[a]) if a in sizes else asked.said.get(a, Said()) for a in asked.space}
    size = first_size(reference, asked.channels, asked.space, said)
    found = reference(np.ones((1, asked.channels, *size.values()), np.float32))
    if found.ndim != 2 + len(asked.space):
        raise PackageError(f"{path} returns {found.ndim} axes; {asked.output_axes} were said.", mend="--output-axes")
    return int(found.shape[1])


def from_torch(file: Path, name: str, weights: Path | None, kwargs: Mapping[str, Any], wanted: Wanted) -> Network:
    """A network that a Python file makes, with its weights; the file runs. Raises DependencyError, PackageError, ..."""
    if not torch_is_there():
        raise DependencyError("pack of a Python file needs torch, which is not installed.", mend="pip install torch")
    from .torch_weights import loaded, state_dict

    try:
        json.dumps(dict(kwargs))
    except TypeError as error:
        raise RecipeError(
            f"kwargs of {name} cannot be written down: {error}.", mend="numbers, text and lists"
        ) from None
    module = loaded(file, name, weights, kwargs)
    made = from_module(module, wanted, f"{file.name}:{name}")
    if others := imports(file) - HARMLESS:
        made.notes.append(f"the state dict is left out: {file.name} imports {', '.join(sorted(others))}")
    elif {wanted.axes, wanted.output_axes} != {"bc" + wanted.space}:
        made.notes.append(f"the state dict is left out: its network takes {wanted.axes}, the package bc{wanted.space}")
    else:
        made.state = StateDict(
            state_dict(module), {"callable": name, "kwargs": dict(kwargs)}, file.name, file.read_bytes()
        )
    return made


def from_module(module: Any, wanted: Wanted, made_of: str) -> Network:
    """A torch module in evaluation mode, as ONNX and TorchScript. Raises PackageError where torch cannot write it."""
    import torch

    from .graph import evaluate, to_onnx
    from .torch_weights import TurnedModule, script_of

    wanted.check()
    turned = TurnedModule(module, wanted.axes, wanted.output_axes, wanted.space).eval()

    def reference(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return evaluate(turned, x)

    size = first_size(reference, wanted.channels, wanted.space, wanted.said)
    results: list[int] = []
    hook = module.register_forward_hook(
        lambda _module, _given, y: results.append(len(y) if isinstance(y, tuple | list) else 1)
    )
    outputs = int(reference(np.ones((1, wanted.channels, *size.values()), np.float32)).shape[1])
    hook.remove()
    try:
        onnx = to_onnx(turned, wanted.channels, wanted.space, size)
    except VoidzooError:
        raise
    except Exception as error:  # of torch's exporter, in many kinds
        raise PackageError(f"torch cannot write {made_of} as ONNX.", where=first_line(error)) from error
    found = measured(onnx, wanted.channels, wanted.space, wanted.said)
    script, note = script_of(turned, reference, wanted.channels, found.rules)
    notes = [note] if note else []
    notes += [f"the network returns {results[0]} results; the first is packed"] if results[0] > 1 else []
    return Network(onnx, found, reference, outputs, made_of, script, None, torch.__version__.partition("+")[0], notes)


def imports(file: Path) -> set[str]:
    """The libraries that a Python file names in its imports, wherever they stand. Raises PackageError for no Python."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise PackageError(f"{file} is no Python file.", where=str(error)) from error
    except OSError as error:
        raise PackageError(f"{file} cannot be read: {error.strerror}.", mend="ARCH.py:CLASS") from None
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {n.name.partition(".")[0] for n in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0] if not node.level else "." + (node.module or ""))
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.", mend="MODEL.onnx or ARCH.py:CLASS") from None
