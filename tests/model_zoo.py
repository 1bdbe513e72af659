"""Foreign packages of many kinds, written freshly, each with what it makes of a whole image: the proof of "any model".

`MODELS[name](folder)` writes a real package (description, weights, test tensors) and returns its `Model`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

from tests import onnx_net as nets
from tests.onnx_net import OPSET, Net
from tests.whole_image import Array, Design, In, Out, arrays_order, run_whole

TYPES = {"b": "batch", "c": "channel", "t": "time", "i": "index"}
HALF, DOUBLE = Fraction(1, 2), Fraction(2)
Build = Callable[..., Sequence[str]]
"""(net, name of each input) -> the value of each output."""


@dataclass(frozen=True)
class Model:
    """A package folder and its oracle. All arrays have their axes in the order i t c z y x of `letters`, no batch.

    letters: of every tensor's array, by its id; `main` comes first. legal: a size that the network takes as it is, by
    letter of the main input. lead: pixels of the main input that convolutions without padding take off at either end.
    unbounded: every pixel sees the whole image, so that tiles cannot be exact. halo_told: whether the description's halo
    is as far as the network sees. measures: steps need statistics of the image. spec, core: whether bioimageio.spec reads it, and bioimageio.core runs it.
    """

    name: str
    path: Path
    design: Design
    letters: Mapping[str, str]
    legal: Mapping[str, int]
    lead: Mapping[str, int]
    onnx: bytes
    unbounded: bool = False
    halo_told: bool = True
    measures: bool = False
    spec: bool = True
    core: bool = True

    @property
    def main(self) -> str:
        """The id of the input that the image is."""
        return self.design.main.id

    def ratio(self, tensor: str) -> Fraction:
        """Pixels of a tensor for each pixel of the main input."""
        return next(t.ratio for t in (*self.design.inputs, *self.design.outputs) if t.id == tensor)

    def images(self, rng: np.random.Generator, size: Mapping[str, int] | None = None) -> dict[str, Array]:
        """Fresh raw images for every input, uint16. size: of the main one by letter; legal where it is not given."""
        size = {**self.legal, **(size or {})}
        made = {}
        for t in self.design.inputs:
            shape = [t.channels if a == "c" else -int(-size[a] * t.ratio // 1) for a in arrays_order(t.letters)]
            made[t.id] = micrograph(rng, shape)
        return made

    def oracle(self, images: Mapping[str, Array]) -> dict[str, Array]:
        """What the model makes of whole images, output by output; each as large as its image (times its ratio)."""
        return run_whole(self.design, self.onnx, images)


def micrograph(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """A wavy background of random phase with noise, uint16: never flat, with a tail of bright pixels."""
    waves = np.zeros(shape)
    for axis, n in enumerate(shape):
        wave = np.sin(np.arange(n) / rng.uniform(3, 9) + rng.uniform(0, 6))
        waves = waves + wave.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.clip(500 + 90 * waves + rng.gamma(2.0, 30.0, shape), 0, 60000).astype(np.uint16)


def write(
    folder: Path, design: Design, build: Build, *, unbounded: bool = False, halo_told: bool = True,
    measures: bool = False, core: bool = True, weights: Callable[[Path, bytes], dict[str, Any]] | None = None,
    describe: Callable[..., dict[str, Any]] | None = None, spec: bool = True, yaml_name: str = "rdf.yaml",
) -> Model:  # fmt: skip
    """Write a package around a graph, with ONNX weights and in format 0.5.4 unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(folder.name.encode()).digest()[:4], "little")
    shipped = _graph(design, build, seed, free=False)
    entries = (weights or onnx_weights)(folder, shipped)
    letters = {t.id: arrays_order(t.letters) for t in (*design.inputs, *design.outputs)}
    legal = {a: s if isinstance(s, int) else s[0] + 2 * s[1] for a, s in design.main.sizes.items()}
    model = Model(
        folder.name, folder, design, letters, legal, {a: design.lead(a) for a in legal},
        _graph(design, build, seed, free=True), unbounded, halo_told, measures, spec, core,
    )  # fmt: skip
    images = model.images(np.random.default_rng(seed))
    for t, values in (*((t, images[t.id]) for t in design.inputs),
                      *((t, model.oracle(images)[t.id]) for t in design.outputs)):  # fmt: skip
        np.save(folder / f"{t.id}.npy", _as_declared(values, t.letters))
    (folder / "README.md").write_text("# A model for tests\n\n## Validation\n\nNone.\n")
    rdf = {**about(folder.name), **(describe or describe_05)(design), "weights": entries}
    (folder / yaml_name).write_text(yaml.safe_dump(rdf, sort_keys=False))
    return model


def about(name: str) -> dict[str, Any]:
    """What a description has to say beside the tensors."""
    return {
        "type": "model", "name": name.replace("_", " ").ljust(5, "-"), "description": "a network with random weights",
        "authors": [{"name": "Ada Ito", "github_user": "octocat"}], "cite": [{"text": "none", "doi": "10.1000/182"}],
        "license": "CC0-1.0", "documentation": "README.md", "covers": [], "tags": ["test"],
        "git_repo": "https://github.com/voidzoo/voidzoo", "timestamp": "2026-01-02T03:04:05",
    }  # fmt: skip


def _graph(design: Design, build: Build, seed: int, *, free: bool) -> bytes:
    """The graph with the ids of its tensors and free sizes, or as it is shipped: by names of its own, sizes as said."""
    net = Net(seed)
    names = [t.id if free else f"x{i}" for i, t in enumerate(design.inputs)]
    values = build(net, *names)
    ids = [t.id if free else f"y{i}" for i, t in enumerate(design.outputs)]
    outputs = {i: (v, _shape(design, t, free=free)) for i, v, t in zip(ids, values, design.outputs, strict=True)}
    inputs = {n: _shape(design, t, free=free) for n, t in zip(names, design.inputs, strict=True)}
    return net.model(inputs, outputs, {n: t.net_dtype for n, t in zip(names, design.inputs, strict=True)})


def _shape(design: Design, tensor: In | Out, *, free: bool) -> list[int | None]:
    fixed = {a: s for a, s in design.main.sizes.items() if isinstance(s, int)}
    shape: list[int | None] = []
    for a in tensor.letters:
        if a == "c" or (isinstance(tensor, Out) and a in tensor.extra):
            shape.append(tensor.channels if a == "c" else tensor.extra[a])  # type: ignore[union-attr]
        elif free or not fixed:
            shape.append(None)
        else:
            shape.append(1 if a == "b" else int(fixed[a] * tensor.ratio))
    return shape


def _as_declared(values: Array, letters: str) -> Array:
    """An array in the order of the package, with its batch axis."""
    own = arrays_order(letters)
    values = values.transpose([own.index(a) for a in letters if a != "b"])
    return np.expand_dims(values, letters.index("b")) if "b" in letters else values


def file(path: Path) -> dict[str, Any]:
    """The file and its sha256, as a description names it."""
    return {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def onnx_weights(folder: Path, shipped: bytes) -> dict[str, Any]:
    (folder / "weights.onnx").write_bytes(shipped)
    return {"onnx": {**file(folder / "weights.onnx"), "opset_version": OPSET}}


def two_files(folder: Path, shipped: bytes) -> dict[str, Any]:
    """ONNX whose tensors lie in a file of their own."""
    target = folder / "weights.onnx"
    onnx.save_model(onnx.load_model(io.BytesIO(shipped)), target, save_as_external_data=True, location="weights.data",
                    size_threshold=0)  # fmt: skip
    return {"onnx": {**file(target), "opset_version": OPSET, "external_data": file(folder / "weights.data")}}


def describe_05(design: Design) -> dict[str, Any]:
    """The tensors in the words of format 0.5."""

    def axis(t: In | Out, a: str) -> dict[str, Any]:
        if a == "c":
            return {"type": "channel", "id": "channel", "channel_names": [f"{t.id}{i}" for i in range(t.channels)]}
        own = design.main.sizes.get(a)
        fixed = isinstance(own, int)
        if a == "b":
            return {
                "type": "batch",
                **({"size": 1} if any(isinstance(s, int) for s in design.main.sizes.values()) else {}),
            }
        if isinstance(t, Out) and a in t.extra:
            return {"type": "index", "id": "index", "size": t.extra[a]}
        described = {"type": TYPES.get(a, "space"), "id": TYPES.get(a, a)}
        if t is design.main:
            return {**described, "size": own if fixed else dict(zip(("min", "step"), own, strict=True))}  # type: ignore[arg-type]
        lead = int(2 * t.lead.get(a, 0) * t.ratio) if isinstance(t, Out) else 0
        size = {"tensor_id": design.main.id, "axis_id": described["id"], **({"offset": -lead} if lead else {})}
        halo = t.halo.get(a, 0) if isinstance(t, Out) else 0
        return {**described, "size": size, **({"scale": float(1 / t.ratio)} if t.ratio != 1 else {}),
                **({"halo": halo} if halo else {})}  # fmt: skip

    def tensor(t: In | Out, key: str) -> dict[str, Any]:
        return {"id": t.id, "axes": [axis(t, a) for a in t.letters], "data": {"type": t.dtype},
                "test_tensor": {"source": f"{t.id}.npy"}, **({key: list(t.steps)} if t.steps else {})}  # fmt: skip

    return {"format_version": "0.5.4", "inputs": [tensor(t, "preprocessing") for t in design.inputs],
            "outputs": [tensor(t, "postprocessing") for t in design.outputs]}  # fmt: skip


def describe_04(design: Design, *, before: Sequence[Any] = (), after: Sequence[Any] = (), version: str = "0.4.10",
                fixed_out: bool = False) -> dict[str, Any]:  # fmt: skip
    """One input and one output in the words of format 0.4. before, after: the steps in those words too."""
    raw, out = design.main, design.outputs[0]
    rules = {"b": (1, 0), "c": (raw.channels, 0)} | {
        a: (s, 0) if isinstance(s, int) else s for a, s in raw.sizes.items()
    }
    smallest, steps = ([rules[a][i] for a in raw.letters] for i in (0, 1))
    scale = [0.0 if a == "c" else 1.0 if a == "b" else float(out.ratio) for a in out.letters]
    offset = [out.channels / 2 if a == "c" else -float(out.lead.get(a, 0) * out.ratio) for a in out.letters]
    implicit = {
        "reference_input" if version < "0.3.3" else "reference_tensor": raw.id,
        "scale": scale,
        "offset": offset,
    }
    fixed = [1 if a == "b" else out.channels if a == "c" else int(rules[a][0] * out.ratio) for a in out.letters]
    halo = [out.halo.get(a, 0) for a in out.letters]
    return {
        "format_version": version,
        "inputs": [{"name": raw.id, "axes": raw.letters, "data_type": raw.dtype, "preprocessing": list(before),
                    "shape": {"min": smallest, "step": steps} if any(steps) else smallest}],
        "outputs": [{"name": out.id, "axes": out.letters, "data_type": out.dtype, "postprocessing": list(after),
                     "shape": fixed if fixed_out else implicit, **({"halo": halo} if any(halo) else {})}],
        "test_inputs": [f"{raw.id}.npy"], "test_outputs": [f"{out.id}.npy"],
    }  # fmt: skip


# ---- the designs -----------------------------------------------------------------------------------------------------

PLANE = {"y": (16, 1), "x": (12, 1)}
NEAR = {"y": 2, "x": 2}
"""Two convolutions of 3 x 3 see two pixels far."""


def plane(
    channels: int = 1, outputs: int = 1, before: Sequence[Any] = (), after: Sequence[Any] = (), **more: Any
) -> Design:
    """A 2D network (b, c, y, x) that sees two pixels far, with steps around it."""
    raw = In("raw", "bcyx", PLANE, channels, before, **more)
    return Design([raw], [Out("out", "bcyx", NEAR, outputs, after)])


def step(name: str, **kwargs: Any) -> dict[str, Any]:
    """A processing step of format 0.5."""
    return {"id": name, **({"kwargs": kwargs} if kwargs else {})}


ALL, SPACE = ["channel", "y", "x"], ["y", "x"]
FLOAT = step("ensure_dtype", dtype="float32")
BEFORE: dict[str, tuple[int, list[dict[str, Any]], bool]] = {
    "zero_mean": (2, [step("zero_mean_unit_variance", axes=ALL)], True),
    "zero_mean_each": (2, [step("zero_mean_unit_variance", axes=SPACE)], True),
    "scale_range": (1, [step("scale_range", axes=ALL, min_percentile=1.0, max_percentile=99.8)], True),
    "scale_range_clip": (2, [step("scale_range", axes=SPACE, min_percentile=5.0, max_percentile=95.0),
                             step("clip", min=0.0, max=1.0)], True),
    "scale_range_minmax": (1, [step("scale_range", axes=ALL)], True),
    "scale_linear": (1, [step("scale_linear", gain=0.01, offset=-5.0)], False),
    "scale_linear_each": (2, [step("scale_linear", axis="channel", gain=[0.01, 0.02], offset=[-5.0, -9.0])], False),
    "fixed_zero_mean": (1, [step("fixed_zero_mean_unit_variance", mean=500.0, std=100.0)], False),
    "fixed_zero_mean_each": (2, [step("fixed_zero_mean_unit_variance", axis="channel", mean=[500.0, 480.0],
                                      std=[100.0, 80.0])], False),
    "clip": (1, [step("clip", min=400.0, max=600.0), step("scale_linear", gain=0.01)], False),
    "clip_percentiles": (2, [step("clip", min_percentile=2.0, max_percentile=90.0, axes=SPACE),
                             step("scale_linear", gain=0.01)], True),
    "binarize": (1, [step("binarize", threshold=500.0), FLOAT], False),
    "sigmoid": (1, [step("scale_linear", gain=0.01, offset=-5.0), step("sigmoid")], False),
    "softmax": (3, [step("scale_linear", gain=0.01), step("softmax", axis="channel")], False),
    "ensure_dtype": (1, [FLOAT], False),
}  # fmt: skip
"""Preprocessing: channels, steps, whether the image must be measured."""
AFTER: dict[str, tuple[int, list[dict[str, Any]], bool, bool]] = {
    "softmax": (3, [step("softmax", axis="channel")], False, True),
    "sigmoid": (2, [step("sigmoid"), FLOAT], False, True),
    "binarize": (1, [step("binarize", threshold=0.1), FLOAT], False, True),
    "binarize_each": (2, [step("sigmoid"), step("binarize", axis="channel", threshold=[0.4, 0.6]), FLOAT], False, False),
    "scale_linear": (2, [step("scale_linear", axis="channel", gain=[2.0, 3.0], offset=[0.5, -0.5])], False, True),
    "clip": (1, [step("clip", min=-0.5, max=0.5)], False, True),
    "fixed_zero_mean": (1, [step("fixed_zero_mean_unit_variance", mean=0.1, std=2.0)], False, True),
    "scale_range_reference": (1, [step("scale_range", axes=ALL, min_percentile=1.0, max_percentile=99.0,
                                       reference_tensor="raw")], True, True),
    "scale_range": (1, [step("scale_range", axes=ALL, min_percentile=1.0, max_percentile=99.0)], True, False),
    "scale_mean_variance": (1, [step("scale_mean_variance", axes=ALL, reference_tensor="raw")], True, False),
    "zero_mean": (1, [step("zero_mean_unit_variance", axes=ALL)], True, False),
}  # fmt: skip
"""Postprocessing: channels, steps, whether image or result must be measured, whether bioimageio.core can run it."""
OLD_BEFORE = [{"name": "scale_range", "kwargs": {"mode": "per_sample", "axes": "yx", "min_percentile": 1,
                                                 "max_percentile": 99.8}}]  # fmt: skip


def _old(**more: Any) -> Callable[..., dict[str, Any]]:
    return partial(describe_04, **more)


def _models() -> dict[str, Callable[[Path], Model]]:
    """All packages by name."""
    two = In("raw", "bcyx", {"y": (16, 2), "x": (16, 2)})
    near = Out("out", "bcyx", NEAR)
    volume = In("raw", "bczyx", {"z": (6, 1), "y": (32, 4), "x": (28, 4)})
    scaled = step("scale_range", axes=SPACE, min_percentile=1.0, max_percentile=99.8)
    found: dict[str, tuple[Design, Build, dict[str, Any]]] = {
        "anisotropic": (Design([volume], [Out("out", "bczyx", {"z": 1, "y": 12, "x": 12})]), nets.anisotropic, {}),
        "two_in_three_out": (plane(2, 3), partial(nets.two_convs, n_in=2, n_out=3), {}),
        "pooled": (Design([two], [Out("out", "bcyx", {"y": 6, "x": 6})]), nets.pooled, {}),
        "two_images": (Design([In("raw", "bcyx", PLANE), In("mask", "bcyx")], [near]), nets.joined, {}),
        "half_size_input": (Design([two, In("coarse", "bcyx", ratio=HALF)], [Out("out", "bcyx", {"y": 4, "x": 4})]),
                            nets.joined_coarse, {}),
        "two_outputs": (Design([two], [Out("probability", "bcyx", NEAR),
                                       Out("distance", "bcyx", NEAR, 2, ratio=HALF)]), nets.fine_and_coarse, {}),
        "doubled": (Design([two], [Out("out", "bcyx", {"y": 4, "x": 4}, ratio=DOUBLE)]), nets.doubled, {}),
        "halved": (Design([two], [Out("out", "bcyx", NEAR, ratio=HALF)]), nets.halved, {}),
        "fixed_64": (Design([In("raw", "bcyx", {"y": 64, "x": 64})], [near]), nets.two_convs, {}),
        "fixed_pooled": (Design([In("raw", "bcyx", {"y": 64, "x": 48})], [Out("out", "bcyx", {"y": 6, "x": 6})], grid=2),
                         nets.pooled, {}),
        "pointwise": (Design([In("raw", "bcyx", {"y": (1, 1), "x": (1, 1)})], [Out("out", "bcyx", channels=2)]),
                      nets.pointwise, {}),
        "in_time": (Design([In("raw", "bctyx", {"t": (6, 1), **PLANE})], [Out("out", "bctyx", {"t": 2, **NEAR})]),
                    nets.in_time, {}),
        "channels_last": (Design([In("raw", "byxc", PLANE, 2)], [Out("out", "byxc", NEAR, 3)]), nets.last_channels, {}),
        "turned": (Design([In("raw", "xcby", PLANE, 2)], [Out("out", "yxbc", NEAR, 3)]), nets.turned, {}),
        "without_batch": (Design([In("raw", "cyx", PLANE, 2)], [Out("out", "cyx", NEAR, 2)]), nets.without_batch, {}),
        "bare": (Design([In("raw", "yx", PLANE)], [Out("out", "yx", NEAR)]), nets.bare, {}),
        "indexed": (Design([In("raw", "bcyx", PLANE)], [Out("out", "bicyx", NEAR, 2, extra={"i": 3})]), nets.indexed, {}),
        "without_padding": (Design([In("raw", "bcyx", PLANE)], [Out("out", "bcyx", lead=NEAR)]), nets.without_padding, {}),
        "without_halo": (Design([In("raw", "bcyx", PLANE)], [Out("out", "bcyx")]), nets.two_convs, {"halo_told": False}),
        "squeeze_excitation": (plane(), nets.squeeze_excitation, {"unbounded": True}),
        "instance_norm": (plane(), nets.instance_norm, {"unbounded": True}),
        "takes_bytes": (plane(before=[step("clip", min=0.0, max=255.0), step("ensure_dtype", dtype="uint8")],
                              net_dtype="uint8"), nets.takes_bytes, {}),
        "two_files": (plane(), nets.two_convs, {"weights": two_files}),
        "old_04": (plane(before=[scaled], after=[step("sigmoid")]), nets.normalised,
                   {"describe": _old(before=OLD_BEFORE, after=[{"name": "sigmoid"}]), "measures": True}),
        "old_04_without_padding": (Design([In("raw", "bcyx", PLANE)], [Out("out", "bcyx", lead=NEAR)]), nets.without_padding,
                                   {"describe": describe_04}),
        "old_04_halved": (Design([two], [Out("out", "bcyx", NEAR, ratio=HALF)]), nets.halved, {"describe": describe_04}),
        "old_04_fixed": (Design([In("raw", "bcyx", {"y": 64, "x": 48})], [near]), nets.two_convs,
                         {"describe": _old(fixed_out=True)}),
        "old_03": (plane(before=[scaled]), nets.normalised,
                   {"describe": _old(before=OLD_BEFORE, version="0.3.2"), "measures": True, "spec": False, "core": False,
                    "yaml_name": "Old.model.yaml"}),
    }  # fmt: skip
    for name, (channels, steps, measures) in BEFORE.items():
        found[f"before_{name}"] = (
            plane(channels, 1, steps),
            partial(nets.normalised, n_in=channels),
            {"measures": measures},
        )
    for name, (channels, steps, measures, core) in AFTER.items():
        found[f"after_{name}"] = (plane(1, channels, after=steps), partial(nets.two_convs, n_out=channels),
                                  {"measures": measures, "core": core})  # fmt: skip
    found["torchscript"] = (plane(2, 2), partial(nets.normalised, n_in=2, n_out=2), {"weights": torchscript})
    found["state_dict"] = (plane(2, 2), partial(nets.normalised, n_in=2, n_out=2), {"weights": state_dict})
    return {name: partial(_write, name, *rest) for name, rest in found.items()}


def _write(name: str, design: Design, build: Build, more: Mapping[str, Any], folder: Path) -> Model:
    return replace(write(folder / name, design, build, **more), name=name)


# ---- the same network in torch ---------------------------------------------------------------------------------------

ARCHITECTURE = '''"""Two convolutions, as this package's weights have them."""

import torch


class TwoConvs(torch.nn.Module):
    def __init__(self, n_in, n_out, width):
        super().__init__()
        self.first = torch.nn.Conv2d(n_in, width, 3, padding=1)
        self.second = torch.nn.Conv2d(width, n_out, 3, padding=1)

    def forward(self, x):
        return self.second(torch.nn.functional.leaky_relu(self.first(x * 1.0 + 0.0), 0.1))
'''


def torch_twin(shipped: bytes) -> tuple[Any, dict[str, int]]:
    """The torch network with the weights of an ONNX graph of two convolutions, and its settings."""
    import torch
    from onnx import numpy_helper

    graph = onnx.load_model(io.BytesIO(shipped)).graph
    weights = [w for w in (numpy_helper.to_array(t) for t in graph.initializer) if w.ndim == 4 or w.size > 1]
    settings = {"n_in": weights[0].shape[1], "n_out": weights[2].shape[0], "width": weights[0].shape[0]}
    namespace: dict[str, Any] = {"__name__": "twin"}
    exec(ARCHITECTURE, namespace)
    network = namespace["TwoConvs"](**settings).eval()
    for parameter, values in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.from_numpy(values.copy())
    return network, settings


def torchscript(folder: Path, shipped: bytes) -> dict[str, Any]:
    """TorchScript alone."""
    import warnings

    import torch

    network, settings = torch_twin(shipped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, as the weights of many packages are
        torch.jit.trace(network, torch.zeros(2, settings["n_in"], 16, 12)).save(folder / "weights.pt")
    return {"torchscript": {**file(folder / "weights.pt"), "pytorch_version": torch.__version__.partition("+")[0]}}


def state_dict(folder: Path, shipped: bytes) -> dict[str, Any]:
    """A state dict and the Python file that makes its network."""
    import torch

    network, settings = torch_twin(shipped)
    (folder / "two_convs.py").write_text(ARCHITECTURE)
    torch.save(network.state_dict(), folder / "state.pt")
    architecture = {**file(folder / "two_convs.py"), "callable": "TwoConvs", "kwargs": settings}
    return {"pytorch_state_dict": {**file(folder / "state.pt"), "architecture": architecture,
                                   "pytorch_version": torch.__version__.partition("+")[0]}}  # fmt: skip


MODELS = _models()
"""Name -> a function that writes the package into a folder of its name inside the given one."""
