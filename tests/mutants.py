"""Packages spoilt at random: bytes of the zip, its structure, the description as text and as a tree, ONNX, .npy.

`mutant(base, seed)` is the same for the same package and seed.
"""

from __future__ import annotations

import copy
import hashlib
import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import yaml

from tests.descriptions import nodes

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, -3, 2, 7, 2**31, 2**40, 2**63, 10**30, 1e300, -1e-300, 0.1, float("nan"), float("inf"),
    "", " ", "x", "y", "z", "t", "b", "c", "raw", "batch", "channel", "space", "time", "index", "../../evil",
    "/etc/hostname", "C:\\evil", "\x1b[31mred\x1b[0m", "\x07\x08\r\n", "\u202egpj.exe", "a\nb", "<script>alert(1)</script>",
    "x" * 5000, "é" * 300, "\ud800", "http://localhost:9/x.onnx", "file:///etc/hostname", "rdf.yaml", ".", "..", "weights.onnx",
    [], [[]], ["x"], [None], [0, 0], list(range(50)), {}, {"min": 1}, {"min": 0, "step": 0}, {"min": 2**30, "step": 1},
    {"min": 1, "step": 2**30}, {"min": 1, "max": 5}, {"tensor_id": "raw", "axis_id": "y"}, {1: 2}, {"source": "../evil"},
    [{"id": "softmax", "kwargs": {"axis": "y"}}], [{"id": "custom", "callable": "f", "source": "rdf.yaml"}],
    [{"id": "scale_range", "kwargs": {"axes": ["x"], "min_percentile": 99, "max_percentile": 1}}],
    [{"id": "clip", "kwargs": {"min": 5, "max": 1}}], [{"id": "zero_mean_unit_variance", "kwargs": {"axes": [], "eps": 0}}],
    [{"id": "stardist_postprocessing", "kwargs": {}}], [{"id": "ensure_dtype", "kwargs": {"dtype": "object"}}],
    {"voidzoo": 5}, {"voidzoo": {"kinds": "intensity", "training": [1]}}, {"voidzoo": {"working_bytes_per_voxel": -1}},
    {"voidzoo": {"kinds": ["intensity"], "working_bytes_per_voxel": 1e-9, "training": {"pixel_size": {"y": 0, "x": "a"}}}},
]  # fmt: skip
TOKENS = [
    "&a", "*a", "<<: *a", "!!python/object/apply:os.system [touch evil]", "!!binary aGk=", "!!set {a, b}", "{", "[", "]", "}",
    ":", "- ", "? ", "|", ">", "%YAML 9.9\n", "---\n", "...\n", "\t", "\x00", "\x1b", "\ufeff", "1:1:1:1:1", ".nan", ".inf", "0x" + "f" * 90,
    "9" * 5000, "[" * 3000, "- " * 2000, '"\\e[2J"', "'", '"', "2026-13-45", "~", "type: model\n", "inputs: *id001\n",
]  # fmt: skip
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def zipped(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return made.getvalue()


def mutant(files: Files, seed: int) -> tuple[str, bytes]:
    """What was done, and the zip."""
    rng = random.Random(seed)
    name, change = rng.choice(WAYS)
    return name, change(rng, dict(files))


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, cut out, doubled, or put in."""
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(spoilt) + 1)
        length = rng.choice([1, 1, 4, 16, 200])
        way = rng.randrange(4)
        if way == 0:
            for i in range(at, min(len(spoilt), at + rng.choice([1, 1, 4]))):
                spoilt[i] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif way == 1:
            del spoilt[at : at + length]
        elif way == 2:
            spoilt[at:at] = spoilt[at : at + length]
        else:
            spoilt[at:at] = rng.randbytes(length)
    return bytes(spoilt)


def _spoilt_zip(rng: random.Random, files: Files) -> bytes:
    return _bytes(rng, zipped(files, rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])))


def _lying_zip(rng: random.Random, files: Files) -> bytes:
    """A number in one of its headers is another."""
    data = bytearray(zipped(files))
    signature = rng.choice([b"PK\1\2", b"PK\3\4", b"PK\5\6"])
    starts = [i for i in range(len(data) - 4) if data[i : i + 4] == signature]
    at = rng.choice(starts) + rng.randrange(4, {b"PK\1\2": 46, b"PK\3\4": 30, b"PK\5\6": 22}[signature])
    struct.pack_into("<H", data, min(at, len(data) - 2), rng.choice([0, 1, 8, 14, 99, 0x7FFF, 0xFFFF]))
    return bytes(data)


def _odd_zip(rng: random.Random, files: Files) -> bytes:
    """Entries that no package has."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        odd = zipfile.ZipInfo(
            rng.choice(["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil", "e\x1bvil", "x" * 3000, "odd"])
        )
        odd.external_attr = rng.choice([0o120777, 0o010666, 0o060666, 0o100644, 0o040755]) << 16
        archive.writestr(odd, rng.choice([b"", b"/etc/hostname", bytes(2**20)]))
    return made.getvalue()


def _text(rng: random.Random, files: Files) -> bytes:
    """The description as text: lines dropped, doubled, moved; tokens put in; bytes spoilt."""
    lines = files["rdf.yaml"].decode().splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 2, 4])):
        i = rng.randrange(len(lines))
        way = rng.randrange(5)
        if way == 0:
            del lines[i]
        elif way == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[i])
        elif way == 2:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(TOKENS) + lines[i][at:]
        elif way == 3:
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {rng.choice(TOKENS)}\n"
        else:
            lines[i] = " " * rng.randrange(8) + lines[i].lstrip()
        lines = lines or ["x"]
    text = "".join(lines).encode("utf-8", "surrogatepass")
    return zipped({**files, "rdf.yaml": _bytes(rng, text) if rng.random() < 0.1 else text})


def _tree(rng: random.Random, files: Files) -> bytes:
    """The description as a tree: values dropped, doubled, exchanged, of another type, or nasty."""
    rdf = yaml.safe_load(files["rdf.yaml"])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(nodes(rdf) or [("x",)])
        place = rdf
        for key in path[:-1]:
            place = place[key]
        way = rng.randrange(6)
        if way == 0:
            del place[path[-1]]
        elif way == 1 and isinstance(place, list):
            place.insert(path[-1], place[path[-1]])
        elif way == 2:
            other = rdf
            for key in rng.choice(nodes(rdf)):
                other = other[key]
            if rng.random() < 0.2:  # an alias, which may contain itself
                place[path[-1]] = other
                break
            place[path[-1]] = copy.deepcopy(other)
        elif way == 3:
            place[path[-1]] = str(place[path[-1]]) if rng.random() < 0.5 else [place[path[-1]]]
        elif way == 4 and isinstance(place, dict):
            place[rng.choice(["id", "size", "axes", "halo", "scale", "unit", "config", "optional", "data", "external_data",
                              "preprocessing", "postprocessing", "source", "type", "weights"])] = rng.choice(NASTY)  # fmt: skip
        else:
            place[path[-1]] = rng.choice(NASTY)
    return zipped(
        {**files, "rdf.yaml": yaml.dump(rdf, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")}
    )


def _with(files: Files, name: str, data: bytes) -> bytes:
    """A file in place of another, its sha256 told as it is: what reads it sees it."""
    before, after = (hashlib.sha256(d).hexdigest().encode() for d in (files[name], data))
    return zipped({**files, name: data, "rdf.yaml": files["rdf.yaml"].replace(before, after)})


def _npy(rng: random.Random, files: Files) -> bytes:
    name = rng.choice([n for n in files if n.endswith(".npy")])
    data = files[name]
    way = rng.randrange(3)
    if way == 0:
        return _with(files, name, _bytes(rng, data[:140]) + data[140:])
    shape = rng.choice(
        ["(1000000000000000,)", "(-1, 4)", "(1, 1, 9223372036854775807, 2)", "()", "(0, 0)", "(1,) * 40", "x"]
    )
    kind = rng.choice(["<f4", "|O", "<U9", ">f8", "|b1", "<c16", "|V99999999", "[('a', '<f4')]"])
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return _with(files, name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data[128:])


def _onnx_bytes(rng: random.Random, files: Files) -> bytes:
    name = next(n for n in files if n.endswith(".onnx"))
    return _with(files, name, _bytes(rng, files[name]))


def _onnx_tree(rng: random.Random, files: Files) -> bytes:  # noqa: PLR0912
    """The graph: other operators, attributes, dimensions, names; nodes dropped and doubled."""
    name = next(n for n in files if n.endswith(".onnx"))
    model = onnx.load_model_from_string(files[name])
    graph = model.graph
    sizes = [0, -1, 1, 3, 2**20, 2**31, 2**40, 2**62]
    for _ in range(rng.choice([1, 1, 2, 3])):
        node = rng.choice(graph.node)
        way = rng.randrange(9)
        if way == 0:
            node.op_type = rng.choice(["Relu", "Add", "Loop", "If", "Resize", "Tile", "ConstantOfShape", "Softmax", "EPContext",
                                       "Expand", "ConvTranspose", "Pad", "NonZero", "Nothing", "", "ReduceMean"])  # fmt: skip
        elif way == 1:
            node.domain = rng.choice(["com.evil", "ai.onnx.ml", "com.microsoft", "\x1b[31m"])
        elif way == 2 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                ["", "nothing", *(v for n in graph.node for v in n.output)]
            )
        elif way == 3 and node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice(sizes)
            for i in range(len(attribute.ints)):
                attribute.ints[i] = rng.choice([0, -1, 1, 2, 7, 2**20, 2**40])
        elif way == 4 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(sizes)
        elif way == 5 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(
                key="location", value=rng.choice(["/etc/hostname", "../evil", "weights.data", "x.npy"])
            )
        elif way == 6 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            tensor.data_type = rng.randrange(24)
        elif way == 7:
            graph.node.append(node) if rng.random() < 0.5 else graph.node.remove(node)
        else:
            value = rng.choice([*graph.input, *graph.output])
            for dim in value.type.tensor_type.shape.dim:
                if rng.random() < 0.4:
                    dim.dim_value = rng.choice(sizes)
    return _with(files, name, model.SerializeToString())


WAYS: list[tuple[str, Callable[[random.Random, Files], bytes]]] = [
    ("zip bytes", _spoilt_zip), ("zip headers", _lying_zip), ("zip entries", _odd_zip), ("text", _text), ("text", _text),
    ("tree", _tree), ("tree", _tree), ("tree", _tree), ("npy", _npy), ("onnx bytes", _onnx_bytes), ("onnx graph", _onnx_tree),
    ("onnx graph", _onnx_tree),
]  # fmt: skip
