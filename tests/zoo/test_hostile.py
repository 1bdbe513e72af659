"""Packages made to harm: each is refused in one clear line; nothing of them is executed, nothing is written outside."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import voidzoo as vz
from tests.model_zoo import MODELS
from tests.mutants import Files, files_of, zipped
from voidzoo.cli import main
from voidzoo.export.tensors import test_tensors as tensors_of
from voidzoo.export.upload import ready
from voidzoo.zoo.errors import PackageError, visible
from voidzoo.zoo.html import table
from voidzoo.zoo.package import open_package
from voidzoo.zoo.package_zip import MAX_ENTRIES
from voidzoo.zoo.rdf_text import MAX_DEPTH, MAX_PARTS, read_yaml


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A sound package: two convolutions over a pooled image."""
    return files_of(MODELS["pooled"](tmp_path_factory.mktemp("sound")).path)


@pytest.fixture
def inner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works; all around it is watched: what is there afterwards was there before, or is the package."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def put(folder: Path, files: Files) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def described(files: Files, change: Callable[[dict[str, Any]], Any]) -> Files:
    rdf = yaml.safe_load(files["rdf.yaml"])
    change(rdf)
    return {**files, "rdf.yaml": yaml.safe_dump(rdf).encode()}


def with_onnx(files: Files, data: bytes) -> Files:
    """Other ONNX weights, their sha256 told as it is."""
    digest = hashlib.sha256(data).hexdigest()
    return described({**files, "weights.onnx": data}, lambda r: r["weights"]["onnx"].update(sha256=digest))


def refused(path: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb that takes a package says so in one line, and ends with 2."""
    image = path.parent / "image.npy"
    np.save(image, np.random.default_rng().integers(0, 900, (70, 66), dtype=np.uint16))
    out = path.parent / "out.ome.zarr"
    verbs = (["check", path, "--for", "all"], ["check", path, "--for", "upload"], ["check", path], ["plan", path, image],
             ["predict", path, image, "-o", out])  # fmt: skip
    for verb in verbs:
        words = [str(w) for w in verb] + (["--axes", "yx"] if image in verb else [])
        assert main(words) == 2, words
        told = capsys.readouterr()
        first = told.err.splitlines()[0]
        assert re.search(message, first), (words, told.err)
        assert "Traceback" not in told.err
        assert "fault of voidzoo" not in told.err
        assert visible(told.err) == told.err
    image.unlink()
    assert not list(path.parent.glob("out.ome.zarr*"))


# ---- zips ------------------------------------------------------------------------------------------------------------


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def with_entry(files: Files, info: zipfile.ZipInfo, data: bytes) -> bytes:
    made = io.BytesIO(zipped(files))
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr(info, data)
    return made.getvalue()


def with_header(files: Files, offset: int, form: str, value: int) -> bytes:
    """A number in the list of files of the first entry is another."""
    data = bytearray(zipped(files))
    struct.pack_into(form, data, data.index(b"PK\1\2") + offset, value)
    return bytes(data)


def twice(files: Files) -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return with_entry(files, entry("rdf.yaml"), b"type: model")


def many(files: Files) -> bytes:
    return zipped({**files, **{f"{i}.txt": b"" for i in range(MAX_ENTRIES)}}, zipfile.ZIP_STORED)


def long_list(files: Files) -> bytes:
    """Its last bytes promise a list of files of 4 GB, which zipfile would read at once."""
    data = bytearray(zipped(files))
    struct.pack_into("<L", data, data.rindex(b"PK\5\6") + 12, 0xFFFFFFF0)
    return bytes(data)


ZIPS: dict[str, tuple[Callable[[Files], bytes], str]] = {
    "climbs": (lambda f: with_entry(f, entry("../escaped"), b"!"), "'../escaped' that would lie outside"),
    "climbs later": (lambda f: with_entry(f, entry("a/../../escaped"), b"!"), "would lie outside"),
    "absolute": (lambda f: with_entry(f, entry("/escaped"), b"!"), "would lie outside"),
    "Windows": (lambda f: with_entry(f, entry("..\\escaped"), b"!"), "would lie outside"),
    "drive": (lambda f: with_entry(f, entry("C:escaped"), b"!"), "would lie outside"),
    "steers the terminal": (lambda f: with_entry(f, entry("a\x1b[2Jb"), b"!"), "would lie outside"),
    "link": (lambda f: with_entry(f, entry("weights.pt", stat.S_IFLNK | 0o777), b"/etc/hostname"), "is a link or a device"),
    "device": (lambda f: with_entry(f, entry("zero", stat.S_IFCHR | 0o666), b""), "is a link or a device"),
    "twice": (twice, "has the file 'rdf.yaml' twice"),
    "encrypted": (lambda f: with_header(f, 8, "<H", 1), "is encrypted"),
    "another method": (lambda f: zipped(f, zipfile.ZIP_LZMA), "packed by method 14"),
    "bomb": (lambda f: with_entry(f, entry("zeros.npy"), bytes(100 * 2**20)), r"unpacks from [\d,]+ to 104,857,600 bytes"),
    "bomb of a description": (lambda f: zipped({**f, "rdf.yaml": b" " * 2**21}), r"rdf\.yaml has 2,097,152 bytes, more than"),
    "many": (many, r"has [\d,]+ files; 10,000 are the most"),
    "endless list": (long_list, "lists more files than"),
    "says more than it has": (lambda f: with_header({"rdf.yaml": f["rdf.yaml"]}, 24, "<L", 10**6), r"rdf\.yaml has [\d,]+ bytes, its list"),
    "says less than it has": (lambda f: with_header({"rdf.yaml": f["rdf.yaml"]}, 24, "<L", 100), "is not a whole zip file"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ZIPS)
def test_a_zip_made_to_harm_is_refused(
    attack: str, files: Files, inner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that lead outside, links, doubles, passwords, bombs, lies: one line in every verb, and no file appears."""
    make, message = ZIPS[attack]
    path = inner / "m.zip"
    path.write_bytes(make(files))
    refused(path, message, capsys)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "m.zip"]


def test_a_sound_package_is_not_refused(files: Files, inner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the others spoil opens, is judged and planned: refusals are for what was changed."""
    path = inner / "m.zip"
    path.write_bytes(with_entry(files, entry("examples/more.txt"), b"x"))
    np.save("image.npy", np.random.default_rng().integers(0, 900, (70, 66), dtype=np.uint16))
    assert main(["check", "m.zip", "--for", "all"]) == 0
    assert main(["plan", "m.zip", "image.npy", "--axes", "yx", "--device", "cpu"]) == 0


# ---- folders ---------------------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(9 * 2**30)


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (fifo, "weights.onnx", r"has no weights\.onnx"),
        (fifo, "rdf.yaml", r"has no rdf\.yaml"),
        (loop, "rdf.yaml", r"cannot be read|is a link"),
        (out, "rdf.yaml", "is a link out of the package"),
        (endless, "rdf.yaml", "is a link out of the package"),
        (out, "weights.onnx", "is a link out of the package"),
        (sparse, "weights.onnx", r"weights\.onnx has 9,663,676,416 bytes, more than"),
    ],
)
def test_a_folder_made_to_harm_is_refused(
    spoil: Callable[[Path], None], name: str, message: str, files: Files, inner: Path
) -> None:
    """Pipes, which would never end, links that lead out or around, files without end."""
    path = put(inner / "m", files)
    spoil(path / name)
    with pytest.raises(PackageError, match=message) as caught:
        open_package(path).onnx()
    assert "\n" not in caught.value.what


# ---- descriptions ----------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGED = "a0: &a0 {x0: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], x{i}: 1}}\n" for i in range(1, 60))
TEXTS: dict[str, tuple[bytes, str]] = {
    "a billion laughs": (LAUGHS.encode(), f"more than {MAX_PARTS:,} values where its aliases"),
    "merged laughs": (MERGED.encode(), "'<<' is used"),
    "itself": (b"a: &a [*a]", "contains itself"),
    "brackets": (b"[" * 900_000, f"nested more than {MAX_DEPTH} levels"),
    "dashes": (b"- " * 400_000, f"nested more than {MAX_DEPTH} levels"),
    "values": (b"a: [" + b"x," * 400_000 + b"]", f"more than {MAX_PARTS:,} values"),
    "hours of arithmetic": (b"a: 1" + b":1" * 500_000, "a number of 1,000,001 characters"),
    "a long number": (b"a: " + b"9" * 900_000, "a number of 900,000 characters"),
    "Python": (b"a: !!python/object/apply:os.system ['touch escaped']", "could not determine a constructor"),
    "Python, new": (b"a: !!python/object/new:os.system ['touch escaped']", "could not determine a constructor"),
    "bytes": (b"a: !!binary aGk=", "holds a bytes"),
    "a set": (b"a: !!set {x, y}", "holds a set"),
    "twice": (b"weights: 1\nname: x\nweights: 2", "the key 'weights' is there twice, line 3"),
    "Latin-1": ("name: Zürich".encode("latin-1"), "invalid|decode"),
    "nothing but zeros": (bytes(1000), "control characters|not allowed|acceptable"),
}


@pytest.mark.parametrize("attack", TEXTS)
def test_a_description_made_to_harm_is_refused(attack: str, files: Files, inner: Path) -> None:
    """Laughs, depth, numbers that take hours, tags of Python: refused within seconds, and nothing is called."""
    text, message = TEXTS[attack]
    start = time.monotonic()
    with pytest.raises(PackageError, match=r"rdf\.yaml is not YAML as descriptions are") as caught:
        open_package(put(inner / "m", {**files, "rdf.yaml": text}))
    assert re.search(message, caught.value.where), caught.value.where
    assert time.monotonic() - start < 60, "hours, or all of the memory, where it is not refused"
    assert [p.name for p in inner.iterdir()] == ["m"]


def test_aliases_that_repeat_a_little_are_read() -> None:
    """Tools that write YAML name a list that is there twice; both are lists of their own then."""
    found = read_yaml(b"a: &id001 [x, {y: 1.5}]\nb: *id001\nwhen: 2026-01-02\nnone: ~")
    assert found["a"] == found["b"] == ["x", {"y": 1.5}]
    assert found["a"] is not found["b"]


def sized(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r["inputs"][0]["axes"][2].update({key: value})


NUMBERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "size NaN": (sized("size", float("nan")), "whole number is needed"),
    "size infinite": (sized("size", float("inf")), "whole number is needed"),
    "size huge": (sized("size", 10**30), "numbers of up to"),
    "min huge": (sized("size", {"min": 10**12, "step": 1}), "numbers of up to"),
    "step negative": (sized("size", {"min": 4, "step": -4}), "cannot be"),
    "scale NaN": (sized("scale", float("nan")), "positive number is needed"),
    "scale far off": (sized("scale", 1e-20), "times finer or coarser"),
    "halo true": (lambda r: r["outputs"][0]["axes"][2].update(halo=True), "whole number is needed"),
    "axes without end": (lambda r: r["inputs"][0].update(axes=r["inputs"][0]["axes"] * 30), "at most 8"),
    "name of two lines": (lambda r: r.update(name="good\nerror: all is lost"), "one line"),
    "name without end": (lambda r: r.update(name="x" * 100_000), "one line of at most 1,024"),
    "ours no mapping": (lambda r: r.update(config={"voidzoo": 5}), "config.voidzoo is 5"),
    "pixel size NaN": (
        lambda r: r.update(config={"voidzoo": {"training": {"pixel_size": {"y": float("nan")}}}}), "um are needed",
    ),
    "range of words": (
        lambda r: r.update(config={"voidzoo": {"training": {"intensity_range": [["a", 1]]}}}), "a number is needed",
    ),
    "two files of one": (lambda r: r["weights"]["onnx"].update(external_data=[1]), "external_data"),
}  # fmt: skip


@pytest.mark.parametrize("attack", NUMBERS)
def test_values_that_cannot_be_are_refused(attack: str, files: Files, inner: Path) -> None:
    """NaN, infinity, huge numbers and other types where sizes and names belong."""
    change, message = NUMBERS[attack]
    with pytest.raises(PackageError) as caught:
        open_package(put(inner / "m", described(files, change)))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("minimum", [30_000, 2**31 - 1])
def test_images_that_no_memory_holds_are_refused(
    minimum: int, files: Files, inner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A smallest size of terabytes is told before anything is made for it."""

    def change(rdf: dict[str, Any]) -> None:
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"] = minimum

    path = put(inner / "m", described(files, change))
    np.save("image.npy", np.random.default_rng().integers(0, 900, (70, 66), dtype=np.uint16))
    assert main(["plan", str(path), "image.npy", "--axes", "yx", "--device", "cpu"]) == 2
    assert "are the most that can be run at once" in capsys.readouterr().err


def test_texts_of_strangers_do_not_steer_the_terminal_or_a_report(
    files: Files, inner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escapes, bells, right-to-left marks and lone surrogates in names become U+FFFD wherever they are shown."""

    def change(rdf: dict[str, Any]) -> None:
        rdf["name"] = "n\x1b[2J\x1b]0;owned\x07 \u202egpj.exe"
        rdf["description"] = "\x1b[31mred"
        rdf["tags"] = ["\x9b31m"]
        rdf["inputs"][0]["id"] = rdf["inputs"][0]["id"] + "\x1b[8m"
        rdf["outputs"][0]["axes"][1]["channel_names"] = ["\x1b]8;;http://x\x07<script>alert(1)</script>"]
        for axis in rdf["outputs"][0]["axes"][2:]:
            axis["size"]["tensor_id"] = rdf["inputs"][0]["id"]

    text = described(files, change)
    text["rdf.yaml"] = text["rdf.yaml"].replace(b"0.5.4", b"0.5.4  # ok", 1)
    path = put(inner / "m", text)
    package = open_package(path)
    assert package.name == "n\ufffd[2J\ufffd]0;owned\ufffd \ufffdgpj.exe"
    np.save("image.npy", np.random.default_rng().integers(0, 900, (70, 66), dtype=np.uint16))
    for words in (["check", "m", "--for", "all"], ["plan", "m", "image.npy", "--axes", "yx", "--device", "cpu"],
                  ["predict", "m", "image.npy", "--axes", "yx", "--device", "cpu", "-o", "out.ome.tif"]):  # fmt: skip
        assert main(words) == 0
        told = capsys.readouterr()
        assert visible(told.out + told.err) == told.out + told.err
    assert vz.open_image("out.ome.tif").shape == (70, 66)
    assert "<script>" not in table(("name",), [package.channels_out])


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def graph(*nodes: Any, constants: Any = (), functions: Any = (), domains: tuple[str, ...] = ()) -> bytes:
    """y = the nodes of x, (1, 1, 64, 64) as the sound package has it."""
    sides = ["b", 1, "h", "w"]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, sides) for n in ("x0", "y0")]
    made = helper.make_graph(list(nodes), "g", values[:1], values[1:], list(constants))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    return bytes(
        helper.make_model(made, opset_imports=opsets, ir_version=8, functions=list(functions)).SerializeToString()
    )


def external(location: str) -> bytes:
    tensor = numpy_helper.from_array(np.random.default_rng().random(4, np.float32), "k")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return graph(helper.make_node("Add", ["x0", "k"], ["y0"]), constants=[tensor])


def many_calls() -> bytes:
    """Functions that call each other twice, 60 levels deep: 2**60 nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    bodies = []
    for i in range(60):
        inner = [helper.make_node(f"f{i + 1}", [a], [b], domain="f") for a, b in (("a", "m"), ("m", "z"))]
        last = [helper.make_node("Relu", ["a"], ["z"])]
        bodies.append(helper.make_function("f", f"f{i}", ["a"], ["z"], last if i == 59 else inner, opsets))
    return graph(helper.make_node("f0", ["x0"], ["y0"], domain="f"), functions=bodies, domains=("f",))


def part(number: int, data: bytes) -> bytes:
    """A field of a protobuf message."""
    length, size = bytearray(), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + data


def nested() -> bytes:
    """A graph in a node of a graph, 3000 deep; protobuf itself would not write it."""
    inner = b""
    for _ in range(3000):
        inner = part(1, part(4, b"If") + part(5, part(1, b"then_branch") + part(6, inner)))
    return part(7, inner)


def absurd_constant() -> bytes:
    tensor = onnx.TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[10**6, 10**6])
    return graph(helper.make_node("Add", ["x0", "k"], ["y0"]), constants=[tensor])


def absurd_sparse() -> bytes:
    values = numpy_helper.from_array(np.random.default_rng().random(1, np.float32), "k")
    sparse_tensor = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [5]), [10**13])
    return graph(
        helper.make_node("Constant", [], ["k"], sparse_value=sparse_tensor),
        helper.make_node("Add", ["x0", "k"], ["y0"]),
    )


def absurd_fill() -> bytes:
    """onnxruntime would make 40 TB of zeros while it loads the file."""
    shape = numpy_helper.from_array(np.array([10**5, 10**8], np.int64), "s")
    fill = helper.make_node("ConstantOfShape", ["s"], ["k"])
    return graph(
        fill,
        helper.make_node("ReduceSum", ["k"], ["r"]),
        helper.make_node("Add", ["x0", "r"], ["y0"]),
        constants=[shape],
    )


def absurd_tile() -> bytes:
    repeats = numpy_helper.from_array(np.array([1, 1, 10**5, 10**5], np.int64), "s")
    return graph(helper.make_node("Tile", ["x0", "s"], ["y0"]), constants=[repeats])


GRAPHS: dict[str, tuple[Callable[[], bytes], str]] = {
    "absolute": (lambda: external("/etc/hostname"), "read another file, '/etc/hostname', which rdf.yaml does not name"),
    "climbs": (lambda: external("../../secret"), r"read another file, '\.\./\.\./secret'"),
    "in this folder": (lambda: external("secret"), "read another file, 'secret'"),
    "operators of strangers": (
        lambda: graph(helper.make_node("Evil", ["x0"], ["y0"], domain="evil.com"), domains=("evil.com",)),
        "need operators of 'evil.com'",
    ),
    "compiled code": (
        lambda: graph(helper.make_node("EPContext", ["x0"], ["y0"], domain="com.microsoft"), domains=("com.microsoft",)),
        "EPContext, which loads compiled code",
    ),
    "constant of terabytes": (absurd_constant, r"hold a tensor of 4,000,000,000,000 bytes"),
    "sparse constant": (absurd_sparse, r"hold a tensor of 40,000,000,000,000 bytes"),
    "calls without end": (many_calls, "cannot be read"),
    "graphs in graphs": (nested, "cannot be read"),
    "onnxruntime's own format": (lambda: b"\x20\0\0\0ORTM" + bytes(200), "cannot be read"),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'touch escaped'\ntR.", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("attack", GRAPHS)
def test_onnx_that_reaches_beyond_itself_is_refused(attack: str, files: Files, inner: Path) -> None:
    """Other files, other code, terabytes, 2**60 nodes: refused from the bytes alone, before any runtime sees them."""
    make, message = GRAPHS[attack]
    (inner / "secret").write_bytes(np.random.default_rng().random(4, np.float32).tobytes())
    package = open_package(put(inner / "m", with_onnx(files, make())))
    with pytest.raises(PackageError, match=message) as caught:
        package.onnx()
    assert "\n" not in caught.value.what
    assert sorted(p.name for p in inner.iterdir()) == ["m", "secret"]


@pytest.mark.parametrize("make", [absurd_fill, absurd_tile])
def test_graphs_that_make_terabytes_are_refused(
    make: Callable[[], bytes], files: Files, inner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a graph makes of nothing, or of the smallest image, is added up before onnxruntime makes it."""
    path = put(inner / "m", with_onnx(files, make()))
    np.save("image.npy", np.random.default_rng().integers(0, 900, (70, 66), dtype=np.uint16))
    start = time.monotonic()
    assert main(["plan", str(path), "image.npy", "--axes", "yx", "--device", "cpu"]) == 2
    assert re.search(r"makes a tensor of \d[\d,]{12,} bytes", capsys.readouterr().err)
    assert time.monotonic() - start < 60


def test_a_second_file_is_the_one_that_is_named(files: Files, inner: Path) -> None:
    """external_data of the description: tensors of another file, before its beginning or behind a link are refused."""

    def change(rdf: dict[str, Any]) -> None:
        rdf["weights"]["onnx"]["external_data"] = {"source": "weights.data"}

    data = np.random.default_rng().random(4, np.float32).tobytes()
    for location, message in (("/etc/hostname", "names weights.data alone"), ("../weights.data", "names weights.data")):
        made = described({**with_onnx(files, external(location)), "weights.data": data}, change)
        with pytest.raises(PackageError, match=message):
            open_package(put(inner / str(len(location)), made)).onnx()
    sound = put(inner / "m", described({**with_onnx(files, external("weights.data")), "weights.data": data}, change))
    assert data in open_package(sound).onnx()
    (inner / "secret").write_bytes(data)
    (sound / "weights.data").unlink()
    (sound / "weights.data").symlink_to(inner / "secret")
    with pytest.raises(PackageError, match="is a link out of the package"):
        open_package(sound).onnx()


# ---- tensors and pictures --------------------------------------------------------------------------------------------


def npy(shape: str, kind: str, data: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


class Trap:
    """A pickle that calls something."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("escaped",)


def pickled() -> bytes:
    made = io.BytesIO()
    np.save(made, np.array([Trap()], object), allow_pickle=True)
    return made.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy("(1000000000000000,)", "<f4"), r"promises \(1000000000000000,\) of float32; 0 bytes follow"),
        (npy("(1, -1, 8, 8)", "<f4", bytes(256)), "promises"),
        (pickled(), "objects are pickles, which are not loaded"),
        (npy("(" * 3000, "<f4"), "header cannot be read|invalid|Cannot parse|parse"),
        (b"\x93NUMPY\x09\x00" + bytes(50), r"version 9\.0|magic"),
    ],
)
def test_test_tensors_made_to_harm_are_refused(data: bytes, message: str, files: Files, inner: Path) -> None:
    """Petabytes in a header of 100 bytes, pickles: refused by the header, nothing is allocated or called."""
    name = open_package(put(inner / "sound", files)).test_input
    digest = hashlib.sha256(data).hexdigest()

    def change(rdf: dict[str, Any]) -> None:
        rdf["inputs"][0]["test_tensor"]["sha256"] = digest

    package = open_package(put(inner / "m", described({**files, name: data}, change)))
    with pytest.raises(PackageError, match=r"is no array of numbers") as caught:
        tensors_of(package)
    assert re.search(message, caught.value.where), caught.value.where
    assert sorted(p.name for p in inner.iterdir()) == ["m", "sound"]


def png(width: int, height: int) -> bytes:
    import zlib

    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + chunk + struct.pack(">L", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "cover", [png(2**31 - 1, 2**31 - 1), png(100_000, 100_000), png(0, 0), b"%!PS-Adobe\n", b"GIF89a"]
)
def test_covers_made_to_harm_are_told_and_not_unpacked(cover: bytes, files: Files, inner: Path) -> None:
    """Pictures of gigapixels, of none, and programs in PostScript: one line of the list for an upload."""
    made = described({**files, "cover.png": cover}, lambda r: r.update(covers=["cover.png"]))
    (item,) = [i for i in ready(open_package(put(inner / "m", made))) if i.name == "cover"]
    assert not item.done
    assert "\n" not in item.detail
    assert len(item.detail) <= 300
