"""The networks of the benchmark as whole bioimage.io packages, which voidzoo and bioimageio.core both read.

    python benchmarks/nets.py FOLDER n2v2d seg2d-trained ...

Random weights are seeded. Normalisation lies in the graph, as in all packages of voidzoo: raw intensities go in. Made in
a process of its own, so that the one that measures never imports torch.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))
OPSET = 17
MEAN, STD = 1000.0, 400.0


@dataclass(frozen=True)
class Net:
    """A network: a U-Net of voidzoo by its settings, `convs` (two convolutions of one channel) or `identity`.

    kind: of its outputs; intensities come out on the scale of the input.
    """

    shape: str = "unet"
    dims: int = 2
    depth: int = 2
    filters: int = 32
    outputs: int = 1
    kind: str = "intensity"

    @property
    def letters(self) -> str:
        """The axes that it reads at once."""
        return "zyx"[3 - self.dims :]


NETS = {
    "n2v2d": Net(),
    "seg2d": Net(depth=4, outputs=4, kind="logit"),
    "n2v3d": Net(dims=3, filters=16),
    "tiny2d": Net(filters=8),
    "convs2d": Net("convs"),
    "null2d": Net("identity"),
}


def package_path(folder: Path, name: str, *, trained: bool = False, toy: bool = False) -> Path:
    """Where a package lies once it is made."""
    return folder / f"{name}{'-trained' if trained else ''}{'-toy' if trained and toy else ''}.zip"


def rules_of(net: Net) -> dict[str, dict[str, int]]:
    """`minimum`, `step` and `halo` of every axis."""
    if net.shape != "unet":
        return {a: {"minimum": 16, "step": 1, "halo": 2 if net.shape == "convs" else 0} for a in net.letters}
    from voidzoo.export.pack import axis_rules
    from voidzoo.trainers.networks.geometry import geometry

    rules = axis_rules(geometry(config_of(net)))
    return {a: {"minimum": r.minimum, "step": r.step, "halo": r.halo} for a, r in rules.items()}


def config_of(net: Net) -> dict[str, Any]:
    """A U-Net's settings as `voidzoo.trainers.networks.unet.build` takes them; it pools along every axis."""
    return {
        "network": "unet", "dims": net.dims, "depth": net.depth, "filters": net.filters, "channels_in": 1,
        "channels_out": net.outputs, "kernel": [3] * net.dims, "pool": [2] * net.dims,
    }  # fmt: skip


def random_onnx(net: Net) -> bytes:
    """The graph with seeded random weights."""
    return (
        _convs_onnx(net) if net.shape == "convs" else _identity_onnx(net) if net.shape == "identity" else unet_onnx(net)
    )


def unet_onnx(net: Net, trained: Any = None) -> bytes:
    """A U-Net as ONNX: `trained`, or one with weights that keep the signal's size (He et al. 2015)."""
    import torch

    from voidzoo.export.graph import denoiser_of, to_onnx
    from voidzoo.trainers.networks.unet import build
    from voidzoo.zoo.normalise import Normalisation

    torch.manual_seed(0)
    network = trained or build(config_of(net)).eval()
    if trained is None:
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    scale = Normalisation((MEAN,), (STD,))
    graph = denoiser_of(network, scale) if net.kind == "intensity" else _normalised(network)
    return to_onnx(graph, 1, net.letters, {a: r["minimum"] for a, r in rules_of(net).items()})


def _normalised(network: Any) -> Any:
    """A network that takes raw intensities and returns what it returns, on no other scale."""
    import torch

    class Normalised(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return self.network((x - MEAN) / STD)

    return Normalised()


def _value(net: Net, name: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, *net.letters])


def _serialised(net: Net, nodes: list[Any], tensors: list[Any]) -> bytes:
    from onnx import checker, helper

    graph = helper.make_graph(nodes, net.shape, [_value(net, "input")], [_value(net, "output")], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _identity_onnx(net: Net) -> bytes:
    from onnx import helper

    return _serialised(net, [helper.make_node("Identity", ["input"], ["output"])], [])


def _convs_onnx(net: Net) -> bytes:
    """Two 3 x 3 convolutions that blur: weights positive, with sum 1, so that intensities stay what they are."""
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors, nodes = [], []
    for before, name, after in (("input", "first", "between"), ("between", "second", "output")):
        weights = rng.random((1, 1, *(3,) * net.dims), dtype=np.float32)
        tensors.append(numpy_helper.from_array(weights / weights.sum(), name))
        nodes.append(helper.make_node("Conv", [before, name], [after], pads=[1] * (2 * net.dims)))
    return _serialised(net, nodes, tensors)


def write_package(path: Path, name: str, net: Net, onnx: bytes) -> None:
    """A zip with all that bioimageio.core wants to see: description, weights, test tensors, README.md."""
    import onnxruntime as ort

    from voidzoo.infer.networks.graph import working_bytes

    rules = rules_of(net)
    shape = (1, 1, *(max(r["minimum"], 64) for r in rules.values()))
    test_input = np.random.default_rng(0).integers(500, 3000, shape).astype(np.float32)
    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    test_output = session.run(None, {"input": test_input})[0]
    files = {
        "README.md": f"# {name}\n\nA network of voidzoo's benchmark.\n".encode(),
        "test_input.npy": _npy(test_input),
        "test_output.npy": _npy(test_output),
        "weights.onnx": onnx,
    }
    each = round(working_bytes(onnx, [shape], prod(shape[2:])), 1)
    rdf = yaml.safe_dump(_description(name, net, rules, files, each), sort_keys=False)
    draft = path.with_suffix(".part")
    with zipfile.ZipFile(draft, "w") as archive:
        for file, content in {"rdf.yaml": rdf.encode(), **files}.items():
            archive.writestr(file, content)
    draft.rename(path)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _description(
    name: str, net: Net, rules: dict[str, dict[str, int]], files: dict[str, bytes], working: float
) -> dict[str, Any]:
    def file(key: str) -> dict[str, str]:
        return {"source": key, "sha256": hashlib.sha256(files[key]).hexdigest()}

    def axes(channels: list[str], space: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"type": "batch"}, {"type": "channel", "id": "channel", "channel_names": channels}, *space]

    inputs = [{"type": "space", "id": a, "size": {"min": r["minimum"], "step": r["step"]}} for a, r in rules.items()]
    outputs = [
        {"type": "space", "id": a, "size": {"tensor_id": "input", "axis_id": a},
         **({"halo": r["halo"]} if r["halo"] else {})}
        for a, r in rules.items()
    ]  # fmt: skip
    return {
        "type": "model",
        "format_version": "0.5.4",
        "name": f"benchmark {name}",
        "description": "A network of voidzoo's benchmark.",
        "authors": [{"name": "The voidzoo developers"}],
        "cite": [{"text": "U-Net", "doi": "10.1007/978-3-319-24574-4_28"}],
        "license": "BSD-3-Clause",
        "documentation": "README.md",
        "config": {"voidzoo": {"kinds": [net.kind] * net.outputs, "working_bytes_per_voxel": working}},
        "inputs": [{"id": "input", "description": "raw intensities", "axes": axes(["raw"], inputs),
                    "data": {"type": "float32"}, "test_tensor": file("test_input.npy")}],
        "outputs": [{"id": "output", "description": net.kind, "axes": axes([f"out{i}" for i in range(net.outputs)], outputs),
                     "data": {"type": "float32"}, "test_tensor": file("test_output.npy")}],
        "weights": {"onnx": {**file("weights.onnx"), "opset_version": OPSET}},
    }  # fmt: skip


def facts_of(path: Path) -> dict[str, Any]:
    """What the benchmark needs of a package: `rules` by axis, `working_bytes` a voxel, `outputs`, `onnx` (bytes)."""
    with zipfile.ZipFile(path) as archive:
        rdf = yaml.safe_load(archive.read("rdf.yaml"))
        onnx = archive.read("weights.onnx")
    space = [a for a in rdf["inputs"][0]["axes"] if a["type"] == "space"]
    halos = {a["id"]: a.get("halo", 0) for a in rdf["outputs"][0]["axes"] if a["type"] == "space"}
    rules = {a["id"]: {"minimum": a["size"]["min"], "step": a["size"]["step"], "halo": halos[a["id"]]} for a in space}
    channels = next(a for a in rdf["outputs"][0]["axes"] if a["type"] == "channel")["channel_names"]
    working = rdf["config"]["voidzoo"]["working_bytes_per_voxel"]
    return {"rules": rules, "working_bytes": working, "outputs": len(channels), "onnx": onnx}


def make(folder: Path, wanted: str, *, toy: bool = False) -> Path:
    """The package `NAME` or `NAME-trained` in `folder`, made if it is not there. toy: trained for a few steps only."""
    name = wanted.removesuffix("-trained")
    path = package_path(folder, name, trained=wanted != name, toy=toy)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if wanted == name:
            write_package(path, name, NETS[name], random_onnx(NETS[name]))
        else:
            from weights import train

            train(path, name, toy=toy)
    return path


def main() -> None:
    """Make packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("nets", nargs="+", help=", ".join(NETS) + "; with -trained behind")
    parser.add_argument("--toy", action="store_true", help="train for a few steps only")
    arguments = parser.parse_args()
    for name in arguments.nets:
        print(make(arguments.folder, name, toy=arguments.toy))


if __name__ == "__main__":
    main()
