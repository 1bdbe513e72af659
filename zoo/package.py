"""A model package (bioimage.io): what goes in, what comes out, where the weights are, checked before use.

Descriptions of format 0.3, 0.4 and 0.5 are read here and in `rdf`, `rdf_old`: importing bioimageio.spec costs a second
that every prediction would pay. docs/decisions/0003 tells more.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DependencyError, PackageError
from .package_files import PackageFiles

if TYPE_CHECKING:
    from .download import Watch

KINDS = ("intensity", "probability", "distance", "logit")
RUNNABLE = ("onnx", "torchscript", "pytorch_state_dict")
"""The kinds of weights that can be run, the first that a package has is used."""
TILED = "tzyx"
"""The axes that a network may read at any size, in the order in which `Package.axes` names them."""


@dataclass(frozen=True)
class AxisRule:
    """The legal sizes of one axis of the main input, and the halo (in its pixels) to cut from the output.

    Legal are `minimum + n * step`, or `minimum` alone where the size is fixed.
    """

    minimum: int
    step: int
    halo: int
    fixed: bool = False


@dataclass(frozen=True)
class SizeOf:
    """A size that follows that of another tensor's axis."""

    tensor: str
    axis: str
    offset: int = 0


@dataclass(frozen=True)
class TensorAxis:
    """One axis of an input or output.

    letter: b c t z y x, or i (index). id: what the description calls it (batch, channel, x, ...).
    size: where it is fixed, for channels their number; else the size is that of `reference` times the quotient of the
    scales (that of the reference over this one) plus its offset; else legal sizes are minimum + n * step.
    data_dependent: the size is known only after the run. scale: relative, as the description has it. halo: pixels of an
    output that are to be cut off at both ends. names: of the channels. pixel_size: um (time: s) where a unit is given.
    """

    letter: str
    id: str
    size: int | None = None
    minimum: int = 1
    step: int = 1
    reference: SizeOf | None = None
    scale: float = 1.0
    halo: int = 0
    names: tuple[str, ...] = ()
    data_dependent: bool = False
    pixel_size: float | None = None


@dataclass(frozen=True)
class Step:
    """One processing step, in the words of format 0.5. custom: `kwargs` holds callable, source, sha256, kwargs."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_float32_cast(self) -> bool:
        """Whether it only asks for the dtype that is used anyway."""
        return self.name == "ensure_dtype" and self.kwargs.get("dtype") == "float32"


@dataclass(frozen=True)
class Tensor:
    """An input or output. dtype: of its values outside of the model: before preprocessing, after postprocessing.

    steps: pre- or postprocessing as listed; the casts to `dtype` that the format implies at their ends are not listed.
    optional: an input that may be left out. test: the name of the file with the test tensor.
    """

    id: str
    axes: tuple[TensorAxis, ...]
    dtype: str = "float32"
    optional: bool = False
    steps: tuple[Step, ...] = ()
    test: str | None = None

    @property
    def letters(self) -> str:
        """The axes in the order in which the network takes or returns them, e.g. `"bcyx"`."""
        return "".join(a.letter for a in self.axes)

    def axis(self, letter: str) -> TensorAxis | None:
        """The (first) axis with a letter, or None."""
        return next((a for a in self.axes if a.letter == letter), None)

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels; a tensor without a channel axis has one, by its own name."""
        axis = self.axis("c")
        return (self.id,) if axis is None else axis.names


@dataclass(frozen=True)
class Weights:
    """Weights of one kind. source: file in the package. options: what else the description says of them."""

    kind: str
    source: str
    sha256: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Package:
    """A model as its description tells it. format: of the description, e.g. `"0.5.4"`; rdf: the description as it is.

    weights: those that can be run, the preferred first. other_weights: the kinds of the others. origin: what results
    record of where it came from: its path; or its NAME@VERSION, its URL, and the sha256 of the zip.
    """

    path: str
    name: str
    version: str
    format: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[Weights, ...]
    other_weights: tuple[str, ...] = ()
    description: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    rdf: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """What names it wherever the same is to be had again: NAME@VERSION, its URL without secrets, or its path."""
        return self.origin.get("model") or self.origin.get("url") or self.path

    @cached_property
    def files(self) -> PackageFiles:
        """The files of the package, read with their sha256 checked."""
        return PackageFiles(self.path)

    @cached_property
    def main(self) -> Tensor:
        """The input that the image is: the first that has y and x, cannot be left out and follows no other.

        Raises PackageError where no input has y and x.
        """
        planes = [t for t in self.inputs if {"y", "x"} <= set(t.letters) and not t.optional]
        if not planes:
            axes = "; ".join(", ".join(a.id for a in t.axes) for t in self.inputs)
            raise PackageError(f"{self.path} reads the axes {axes}; models of images, with y and x, can be run.")
        return next((t for t in planes if not _follows_another(t)), planes[0])

    @property
    def axes(self) -> str:
        """The axes that the network reads at once, by letter, in the order t z y x: `"yx"`, `"zyx"`, `"tyx"`."""
        return "".join(a for a in TILED if a in self.main.letters)

    @cached_property
    def rules(self) -> dict[str, AxisRule]:
        """The legal sizes of the main input and the halo to cut, both in its pixels, by letter of `axes`."""
        return {letter: self._rule(letter) for letter in self.axes}

    def _rule(self, letter: str) -> AxisRule:
        axis = self.main.axis(letter)
        assert axis is not None, letter
        halo = max((_halo_of_input(axis, t.axis(letter)) for t in self.outputs), default=0)
        if axis.size is not None:
            return AxisRule(axis.size, 1, halo, fixed=True)
        if axis.reference is None:
            return AxisRule(axis.minimum, axis.step, halo)
        other = self.axis(axis.reference.tensor, axis.reference.axis)
        ratio = other.scale / axis.scale
        if other.size is not None:
            return AxisRule(floor(other.size * ratio) + axis.reference.offset, 1, halo, fixed=True)
        step = other.step * ratio
        return AxisRule(
            floor(other.minimum * ratio) + axis.reference.offset, int(step) if step == int(step) else 1, halo
        )

    def axis(self, tensor: str, axis: str) -> TensorAxis:
        """An axis by the ids of tensor and axis. Raises KeyError where there is none."""
        for t in (*self.inputs, *self.outputs):
            for a in t.axes if t.id == tensor else ():
                if a.id == axis:
                    return a
        raise KeyError(f"{tensor}.{axis}")

    @property
    def channels_in(self) -> tuple[str, ...]:
        """The names of the main input's channels."""
        return self.main.channels

    @property
    def channels_out(self) -> tuple[str, ...]:
        """The names of the channels of all outputs, one after the other."""
        return tuple(name for t in self.outputs for name in t.channels)

    @property
    def kinds(self) -> tuple[str, ...]:
        """One of intensity, probability, distance, logit an output channel; empty where the package does not say."""
        return tuple(self.ours.get("kinds") or ())

    @property
    def ours(self) -> Mapping[str, Any]:
        """What the spec has no word for (`config.voidzoo`); empty in packages of others."""
        return dict(self.config.get("voidzoo") or {})

    @property
    def pixel_size(self) -> dict[str, float]:
        """The pixel size in um of the training images by axis; empty where unknown."""
        size = (self.ours.get("training") or {}).get("pixel_size") or {}
        if not size:
            size = {a.letter: a.pixel_size for a in self.main.axes if a.letter in "zyx"}
        return {a: float(v) for a, v in size.items() if v is not None}

    @property
    def plain(self) -> bool:
        """Whether one float32 tensor (b, c, [z], y, x) of any legal size comes in and one of equal size goes out."""
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            return False
        inner, outer = self.inputs[0], self.outputs[0]
        if inner.letters != outer.letters or inner.letters not in ("bcyx", "bczyx") or inner.optional:
            return False
        if {inner.dtype, outer.dtype} != {"float32"} or not all(s.is_float32_cast for s in inner.steps + outer.steps):
            return False
        free = [a.letter == "c" or (a.size is None and a.reference is None) for a in inner.axes]
        same = [
            b.reference == SizeOf(inner.id, a.id) and a.scale == b.scale
            for a, b in zip(inner.axes[2:], outer.axes[2:], strict=True)
        ]
        return all(free) and all(same) and outer.axes[0].size is None

    @property
    def test_input(self) -> str:
        """The file with the test tensor of the main input. Raises PackageError where there is none."""
        return self._test(self.main)

    @property
    def test_output(self) -> str:
        """The file with the test tensor of the first output. Raises PackageError where there is none."""
        return self._test(self.outputs[0])

    def _test(self, tensor: Tensor) -> str:
        if tensor.test is None:
            raise PackageError(f"{self.path} has no test tensor for {tensor.id}.")
        return tensor.test

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the weights that are used. Raises PackageError where none can be run."""
        if not self.weights:
            raise self._not_runnable()
        weights = self.weights[0]
        return weights.sha256 or hashlib.sha256(self.files.read(weights.source)).hexdigest()

    def chosen_weights(self, trust_code: bool = False, torch: bool | None = None) -> Weights:
        """The weights to run: ONNX, else TorchScript, else, with trust_code, a state dict (code of the package runs).

        torch: whether it is installed; looked up where it is None. Raises PackageError where no weights can be run,
        DependencyError where those that can need torch.
        """
        if not self.weights:
            raise self._not_runnable()
        weights = self.weights[0]
        if weights.kind == "pytorch_state_dict" and not trust_code:
            raise PackageError(
                f"{self.path} has no ONNX weights, only a state dict: running it runs Python code of the package.",
                mend="--trust-code  if you trust where the package came from",
            )
        if weights.kind != "onnx" and not (torch_is_there() if torch is None else torch):
            raise DependencyError(
                f"{self.path} has no ONNX weights; its {weights.kind} weights need torch, which is not installed.",
                mend="pip install torch",
            )
        return weights

    def onnx(self) -> bytes:
        """The ONNX weights, whole. Raises PackageError for none, for others than the sha256 of the description, and for
        those that read other files or need operators of strangers.
        """
        weights = next((w for w in self.weights if w.kind == "onnx"), None)
        if weights is None:
            raise self._not_runnable()
        data = self.files.read(weights.source, weights.sha256)
        from .onnx_data import embed, refuse_strange

        if external := weights.options.get("external_data"):
            data = embed(data, self.files.read(external["source"], external.get("sha256")), external["source"])
        refuse_strange(data, self.path)
        return data

    def _not_runnable(self) -> PackageError:
        offered = ", ".join([*(w.kind for w in self.weights), *self.other_weights]) or "none"
        return PackageError(f"{self.path}: this model has no ONNX weights; it offers: {offered}.")

    def __repr__(self) -> str:
        """Name, path and what it reads."""
        sizes = ", ".join(
            f"{a} {r.minimum}" if r.fixed else f"{a} {r.minimum} + n * {r.step}" for a, r in self.rules.items()
        )
        return f"Package({self.name!r}, {self.path!r}, {len(self.channels_in)} channels, {sizes})"


def _follows_another(tensor: Tensor) -> bool:
    return any(a.reference is not None and a.reference.tensor != tensor.id for a in tensor.axes)


def _halo_of_input(axis: TensorAxis, output: TensorAxis | None) -> int:
    """The halo of an output in pixels of the input axis that it lies on, rounded up."""
    if output is None:
        return 0
    ratio = output.scale / axis.scale
    if output.size is not None and axis.size is not None:  # fixed sizes have no word about scale but themselves
        ratio = axis.size / output.size if max(axis.size, output.size) % min(axis.size, output.size) == 0 else 1.0
    return ceil(output.halo * ratio - 1e-6)


def torch_is_there() -> bool:
    """Whether torch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def open_package(path: str | Path, watch: Watch | None = None) -> Package:
    """Read a package: a zip, a folder, its rdf.yaml, or what else `catalogue.resolve` knows by a word: the name of a
    model that comes with voidzoo, a URL, an id of bioimage.io.

    watch: gets the events of a download. Raises PackageError if it is missing, broken or no model; NetworkError.
    """
    from .catalogue import resolve
    from .rdf import read_package

    found = resolve(path, watch)
    text = found.path
    if (Path(text) / "run.json").is_file():
        raise PackageError(
            f"{text} is a training run; its package is made by export.",
            mend=f"voidzoo export {text} -o {Path(text).name}.zip",
        )
    return replace(read_package(text, PackageFiles(text).rdf()), origin=found.origin)
