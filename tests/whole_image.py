"""What a model makes of a whole image, by numpy and onnxruntime alone: the oracle of any package. Nothing of voidzoo.

The rule at the border: the image is mirrored (`symmetric`) at the END of each axis up to a legal size; where the network
takes pixels off (convolutions without padding) it is also mirrored by as many at both ends, so that the result covers
the image. Statistics are those of the image as it is. Source of the steps' definitions:
https://github.com/bioimage-io/spec-bioimage-io, model description 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

ORDER = "itczyx"
"""The order of the axes of all arrays here; the batch axis is left out."""
Array = NDArray[Any]


@dataclass(frozen=True)
class In:
    """An input. letters: in the network's order. sizes: (min, step) by letter, or a fixed size; of the main input only.

    ratio: pixels for each pixel of the main input.
    """

    id: str
    letters: str
    sizes: Mapping[str, tuple[int, int] | int] = field(default_factory=dict)
    channels: int = 1
    steps: Sequence[Mapping[str, Any]] = ()
    dtype: str = "float32"
    net_dtype: str = "float32"
    ratio: Fraction = Fraction(1)


@dataclass(frozen=True)
class Out:
    """An output. halo: pixels of it by letter that a cut spoils. lead: pixels of the main input that it lacks at either
    end, by letter. extra: the sizes of axes that the input does not have (index).
    """

    id: str
    letters: str
    halo: Mapping[str, int] = field(default_factory=dict)
    channels: int = 1
    steps: Sequence[Mapping[str, Any]] = ()
    dtype: str = "float32"
    ratio: Fraction = Fraction(1)
    lead: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Design:
    """The tensors of a model, the main input first in `inputs`. grid: on which a network of fixed size starts."""

    inputs: Sequence[In]
    outputs: Sequence[Out]
    grid: int = 1

    @property
    def main(self) -> In:
        return self.inputs[0]

    def lead(self, letter: str) -> int:
        return max(o.lead.get(letter, 0) for o in self.outputs)

    def legal(self, letter: str, size: int) -> int:
        """The size that the network runs on for an image of `size` pixels along an axis."""
        size += 2 * self.lead(letter)
        rule = self.main.sizes[letter]
        smallest, step = (rule, self.grid) if isinstance(rule, int) else rule
        return smallest + ceil(max(0, size - smallest) / step) * step


def arrays_order(letters: str) -> str:
    """The axes of an array here, given those of the network: `bzyxc` -> `czyx`."""
    return "".join(a for a in ORDER if a in letters)


def run_whole(design: Design, onnx: bytes, images: Mapping[str, Array]) -> dict[str, Array]:
    """Raw images -> results, each with its axes in ORDER. onnx: of free size, whatever the package's may be."""
    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    main = design.main
    size = dict(zip(arrays_order(main.letters), images[main.id].shape, strict=True))
    legal = {a: design.legal(a, size[a]) for a in main.sizes}
    feeds = {}
    for t in design.inputs:
        x = _processed(images[t.id].astype(t.dtype), t, {}, {})
        pad = [(0, 0)] * x.ndim
        for i, a in enumerate(arrays_order(t.letters)):
            if a in legal:
                lead = design.lead(a) if t is main else 0
                pad[i] = (lead, int(legal[a] * t.ratio) - lead - x.shape[i])
        feeds[t.id] = _to_network(np.pad(x, pad, mode="symmetric"), t.letters).astype(t.net_dtype)
    results = {}
    for t, returned in zip(design.outputs, session.run([o.id for o in design.outputs], feeds), strict=True):
        keep = []
        for a in arrays_order(t.letters):
            start = int((design.lead(a) - t.lead.get(a, 0)) * t.ratio) if a in legal else 0
            keep.append(slice(start, start + ceil(size[a] * t.ratio)) if a in legal else slice(None))
        y = _from_network(returned, t.letters)[tuple(keep)]
        letters = {i.id: arrays_order(i.letters) for i in design.inputs}
        results[t.id] = _processed(y, t, images, letters).astype(t.dtype)
    return results


def _processed(x: Array, tensor: In | Out, references: Mapping[str, Array], axes_of: Mapping[str, str]) -> Array:
    for step in tensor.steps:
        x = apply(step, x, arrays_order(tensor.letters), references, axes_of)
    return x


def _to_network(x: Array, letters: str) -> Array:
    own = arrays_order(letters)
    x = x.transpose([own.index(a) for a in letters if a != "b"])
    return x[(slice(None),) * letters.index("b") + (None,)] if "b" in letters else x


def _from_network(y: Array, letters: str) -> Array:
    if "b" in letters:
        y = y.squeeze(letters.index("b"))
    letters = letters.replace("b", "")
    return y.transpose([letters.index(a) for a in arrays_order(letters)])


LETTER_OF = {"batch": "", "channel": "c", "time": "t", "index": "i"}


def apply(
    step: Mapping[str, Any], x: Array, letters: str, references: Mapping[str, Array], axes_of: Mapping[str, str]
) -> Array:
    """One processing step of format 0.5 on a whole array, in float64 as the format defines it."""
    name, k = step["id"], dict(step.get("kwargs") or {})
    if name == "ensure_dtype":
        return x.astype(k["dtype"])
    x = x.astype(np.float64)
    along = [-1 if a == LETTER_OF.get(k.get("axis", "-"), k.get("axis")) else 1 for a in letters]
    values = {n: np.reshape(v, along) if isinstance(v, list) and n != "axes" else v for n, v in k.items()}
    other = x if k.get("reference_tensor") is None else references[k["reference_tensor"]].astype(np.float64)
    axes = _axes(k.get("axes"), letters)
    axes_there = _axes(k.get("axes"), axes_of[k["reference_tensor"]]) if "reference_tensor" in k else axes
    eps = k.get("eps", 1e-6)
    if name == "zero_mean_unit_variance":
        return (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + eps)
    if name == "fixed_zero_mean_unit_variance":
        return (x - values["mean"]) / (values["std"] + 1e-6)
    if name == "scale_range":
        q = (k.get("min_percentile", 0.0), k.get("max_percentile", 100.0))
        low, high = np.percentile(other, q, axis=axes_there, keepdims=True)
        return (x - low) / (high - low + eps)
    if name == "scale_mean_variance":
        there = [f(other, axis=axes_there, keepdims=True) for f in (np.mean, np.std)]
        return (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + eps) * (there[1] + eps) + there[0]
    if name == "clip":
        for side, limit in (("min", np.maximum), ("max", np.minimum)):
            if f"{side}_percentile" in k:
                values[side] = np.percentile(
                    x, k[f"{side}_percentile"], axis=axes, keepdims=True, method="inverted_cdf"
                )
            x = limit(x, values[side]) if side in values else x
        return x
    simple = {
        "scale_linear": lambda: x * values.get("gain", 1.0) + values.get("offset", 0.0),
        "binarize": lambda: (x > values["threshold"]).astype(np.float64),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "softmax": lambda: _softmax(x, letters.index(LETTER_OF.get(k.get("axis", "channel"), k.get("axis", "c")))),
    }
    return simple[name]()


def _axes(ids: Sequence[str] | None, letters: str) -> tuple[int, ...]:
    """The positions of the axes to reduce; all where none are named."""
    named = letters if ids is None else [LETTER_OF.get(a, a) for a in ids]
    return tuple(letters.index(a) for a in named if a and a in letters)


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)
