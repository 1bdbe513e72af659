"""A network that nobody here trained becomes a proved package, and runs over volumes of any size."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tifffile
import torch
import yaml

import voidzoo as vz
from tests.packages import micrograph
from voidzoo.cli import main as command
from voidzoo.export import proof
from voidzoo.export.consumers import verdicts
from voidzoo.export.proof import Check
from voidzoo.zoo.errors import (
    AxesError,
    OutputError,
    PackageError,
    ProofFailed,
    RecipeError,
    SizeError,
    ValuesError,
    VoidzooError,
)
from voidzoo.zoo.package import Package

torch.set_num_threads(1)

ODD = '''"""A network with a layout of its own: (b, z, y, x, c) in and out, two channels in, three out."""

import torch
from torch.nn import functional as F


class Odd(torch.nn.Module):
    def __init__(self, n_in, n_out, width=4, last=True):
        super().__init__()
        self.fine = torch.nn.Conv3d(n_in, width, 3, padding=1)
        self.coarse = torch.nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.final = torch.nn.Conv3d(width, n_out, 3, padding=1)
        self.last = last

    def forward(self, x):
        x = x.permute(0, 4, 1, 2, 3) if self.last else x
        fine = torch.relu(self.fine(x * 0.01))
        small = torch.relu(self.coarse(F.max_pool3d(fine, (1, 4, 4))))
        y = self.final(fine + F.interpolate(small, scale_factor=(1.0, 4.0, 4.0), mode="nearest"))
        return y.permute(0, 2, 3, 4, 1) if self.last else y
'''
REACH = {"z": 2, "y": 12, "x": 12}
"""What is spoilt at a cut on the grid: 2 pixels of the fine convolutions, one more coarse pixel (4), rounded to 4."""


@pytest.fixture(autouse=True)
def no_consumer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out bioimageio.core's own test, which takes seconds, but in the one test that is about it."""
    if "bioimageio" not in request.node.name:
        monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))


def odd(folder: Path, *, last: bool = True) -> torch.nn.Module:
    """The network with fresh weights; its file odd.py and state odd.pt lie in the folder."""
    (folder / "odd.py").write_text(ODD)
    namespace: dict[str, Any] = {"__name__": "odd"}
    exec(ODD, namespace)
    network = namespace["Odd"](2, 3, last=last).eval()
    torch.save(network.state_dict(), folder / "odd.pt")
    return network


def written(network: torch.nn.Module, path: Path, opset: int = 12) -> Path:
    """The network as its makers would write it: an old opset, names of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dims = {0: "n", 1: "d", 2: "h", 3: "w"}
        torch.onnx.export(network, (torch.rand(1, 4, 16, 20, 2),), path, opset_version=opset, dynamo=False,
                          input_names=["x"], output_names=["y"], dynamic_axes={"x": dims, "y": dims})  # fmt: skip
    return path


def volume(folder: Path, shape: tuple[int, ...] = (2, 20, 90, 84)) -> Path:
    """A two-channel volume, uint16, c z y x, as a .npy."""
    np.save(folder / "volume.npy", micrograph(np.random.default_rng(), shape))
    return folder / "volume.npy"


def whole(network: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """(c, z, y, x) through the torch network (b, z, y, x, c) at once, mirrored at the end up to multiples of 4."""
    legal = [max(5, x.shape[1]), *(max(64, -(-n // 4) * 4) for n in x.shape[2:])]
    grown = np.pad(x.astype(np.float32), [(0, 0), *((0, m - n) for m, n in zip(legal, x.shape[1:], strict=True))],
                   mode="symmetric")  # fmt: skip
    with torch.inference_mode():
        y = network(torch.from_numpy(np.ascontiguousarray(grown.transpose(1, 2, 3, 0)))[None])[0].numpy()
    return y.transpose(3, 0, 1, 2)[(slice(None), *(slice(0, n) for n in x.shape[1:]))]


@pytest.mark.slow
def test_an_odd_network_is_packed_proved_and_run_out_of_core(tmp_path: Path) -> None:
    """Opset 12, axes b z y x c, step (1, 4, 4): packed from the file alone; predict in 3 x 3 x 3 blocks is the whole run."""
    network = odd(tmp_path)
    model, checks = written(network, tmp_path / "odd.onnx"), []
    package = vz.pack(
        model, tmp_path / "m.zip", image=volume(tmp_path), image_axes="czyx", axes="bzyxc", kinds=["probability"],
        channels=["DAPI", "GFP"], output_channels=["a", "b", "c"], name="odd one", watch=checks.append,
    )  # fmt: skip
    assert [c.name for c in checks] == [
        "onnx = test output", "network = onnx", "whole = tiled", "onnx file", "bioimageio.core",
    ]  # fmt: skip
    assert all(c.passed and c.ran for c in checks)
    assert package.plain
    assert (package.axes, package.channels_in, package.channels_out) == ("zyx", ("dapi", "gfp"), ("a", "b", "c"))
    assert package.kinds == ("probability",) * 3
    assert {a: r.step for a, r in package.rules.items()} == {"z": 1, "y": 4, "x": 4}
    assert {a: r.halo for a, r in package.rules.items()} == REACH
    graph = onnx.load_model_from_string(package.onnx())
    assert ([o.version for o in graph.opset_import], graph.ir_version) == ([17], 8)
    x, y = proof.test_tensors(package)
    raw = np.load(tmp_path / "volume.npy")
    assert set(np.unique(x)) <= set(np.unique(raw).astype(np.float32)), "the test tensor is raw intensities"
    assert np.abs(whole(network, x[0]) - y[0]).max() <= 1e-5 * y.std()

    large = micrograph(np.random.default_rng(), (2, 26, 250, 238))
    block = (10, 96, 96)
    plan = vz.plan(package, large, axes="czyx", tile=(9, 96, 96), block=block, device="cpu")
    assert plan.n_tiles >= 27
    vz.predict(plan, tmp_path / "out.ome.zarr")
    found = vz.open_image(tmp_path / "out.ome.zarr").read()
    expected = whole(network, large)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


@pytest.mark.slow
def test_a_python_file_gives_three_forms(tmp_path: Path) -> None:
    """ARCH.py:CLASS with b c z y x: ONNX, TorchScript and the state dict with that very file, all proved equal."""
    odd(tmp_path, last=False)
    checks: list[Check] = []
    package = vz.pack(
        f"{tmp_path / 'odd.py'}:Odd", tmp_path / "m.zip", weights=tmp_path / "odd.pt", axes="bczyx",
        kwargs={"n_in": 2, "n_out": 3, "last": False}, image=volume(tmp_path), image_axes="czyx",
        kinds=["intensity"], watch=checks.append,
    )  # fmt: skip
    assert [c.name for c in checks] == [
        "onnx = test output", "network = onnx", "torchscript = onnx", "state dict = onnx", "whole = tiled",
        "onnx file", "bioimageio.core",
    ]  # fmt: skip
    assert all(c.passed and c.ran for c in checks)
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert archive.read("odd.py").decode() == ODD
        rdf = yaml.safe_load(archive.read("rdf.yaml"))
    made = rdf["weights"]["pytorch_state_dict"]["architecture"]
    assert (made["callable"], made["kwargs"]) == ("Odd", {"n_in": 2, "n_out": 3, "last": False})
    assert {v.consumer for v in verdicts(package) if v.answer == "no"} == {"qupath", "biapy", "careamics"}, (
        "volumes in QuPath, no task tag for BiaPy"
    )


@pytest.mark.slow
def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    """A file that imports another library, or a layout that its class does not have: no state dict, and the reason."""
    odd(tmp_path)
    given: dict[str, Any] = {
        "weights": tmp_path / "odd.pt", "axes": "bzyxc", "kwargs": {"n_in": 2, "n_out": 3}, "image": volume(tmp_path),
        "image_axes": "czyx",
    }  # fmt: skip
    package = vz.pack(f"{tmp_path / 'odd.py'}:Odd", tmp_path / "turned.zip", **given)
    assert [w.kind for w in package.weights] == ["onnx", "torchscript"]
    assert "the state dict is left out: its network takes bzyxc, the package bczyx" in package.ours["packed"]["notes"]
    (tmp_path / "odd.py").write_text("import scipy\n" + ODD)
    package = vz.pack(f"{tmp_path / 'odd.py'}:Odd", tmp_path / "scipy.zip", **given)
    assert "the state dict is left out: odd.py imports scipy" in package.ours["packed"]["notes"]
    assert not package.kinds


REFUSED: dict[str, tuple[dict[str, Any], type[VoidzooError], str]] = {
    "no axes": ({"axes": None}, AxesError, "which axes the network has is not said"),
    "too few axes": ({"axes": "bcyx"}, AxesError, "are 4 axes; the network has 5"),
    "strange axes": ({"axes": "bzyxq"}, AxesError, "is no layout"),
    "another order": ({"axes": "bczyx"}, AxesError, "any number of channels, and x of one size alone"),
    "an output elsewhere": ({"output_axes": "bcyx"}, AxesError, "results must lie on the image"),
    "kinds": ({"kinds": ["probabilty"]}, RecipeError, "did you mean probability"),
    "too many kinds": ({"kinds": ["logit", "logit"]}, RecipeError, "--kinds names 2 channels; 3 come out"),
    "channels": ({"channels": ["a"]}, RecipeError, "--channels names 1 channels; the network has 2"),
    "step": ({"step": [1, 3, 3], "minimum": [8, 63, 63]}, SizeError, "none of the sizes|does not run at"),
    "numbers": ({"minimum": [64, 64]}, RecipeError, "one number for each of z, y, x is needed"),
    "an image of a plane": ({"image": np.ones((2, 64, 64), np.uint16), "image_axes": "cyx"}, AxesError, "also reads z"),
    "an image of one channel": ({"image": np.ones((9, 64, 64), np.uint16), "image_axes": "zyx"}, AxesError,
                                "has 1 channels; the network reads 2"),
    "a constant image": ({"image": np.ones((2, 12, 70, 72), np.uint16)}, ValuesError, "has one grey value"),
    "a halo": ({"halo": 4}, ProofFailed, "whole = tiled"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    return written(odd(folder), folder / "odd.onnx")


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_before_and_after_the_work_leave_nothing(case: str, model: Path, tmp_path: Path) -> None:
    """What is said wrongly is refused in words with the next legal value; no package, no half of one."""
    change, kind, text = REFUSED[case]
    given: dict[str, Any] = {"axes": "bzyxc", "image": micrograph(np.random.default_rng(), (2, 12, 70, 72)),
                             "image_axes": "czyx"}  # fmt: skip
    with pytest.raises(kind, match=text) as caught:
        vz.pack(model, tmp_path / "m.zip", **given | change)
    assert kind is not ProofFailed or "--halo auto" in caught.value.mend, "what was said is wrong, not voidzoo"
    assert [p.name for p in tmp_path.iterdir()] == (["m.failed"] if kind is ProofFailed else [])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("def Odd(", "SyntaxError"),
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("class Other: pass", "has no 'Odd'"),
        (
            ODD.replace("class Odd", "class A(torch.nn.Module): pass\n\n\nclass Oddd"),
            r"did you mean Oddd(.|\n)*odd.py:Oddd",
        ),
        ("class Odd:\n    def __init__(self, **k): pass", "makes a Odd, no torch network"),
        (ODD.replace("width, 3, padding", "width, 5, padding"), "cannot be made(.|\n)*size mismatch"),
    ],
)
def test_a_python_file_that_makes_no_network_is_told(content: str, text: str, tmp_path: Path) -> None:
    """Whatever the user's code raises becomes one sentence with its first words."""
    odd(tmp_path)
    (tmp_path / "odd.py").write_text(content)
    with pytest.raises(PackageError, match=text):
        vz.pack(f"{tmp_path / 'odd.py'}:Odd", tmp_path / "m.zip", weights=tmp_path / "odd.pt", axes="bzyxc",
                kwargs={"n_in": 2, "n_out": 3}, image=volume(tmp_path), image_axes="czyx")  # fmt: skip
    assert not (tmp_path / "m.zip").exists()


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    """A missing file, a text file, several inputs, an existing OUT."""
    image = np.ones((2, 8, 64, 64), np.uint16)
    (tmp_path / "text.onnx").write_text("no graph")
    ends = [onnx.helper.make_tensor_value_info(n, 1, [None] * 5) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Unheard", ["x"], ["y"])], "g", ends[:1], ends[1:])
    (tmp_path / "new.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    (tmp_path / "m.zip").write_text("precious")
    for model, out, kind, text in (
        ("none.onnx", "n.zip", RecipeError, "cannot be read"),
        ("text.onnx", "n.zip", PackageError, "no ONNX file"),
        ("new.onnx", "n.zip", PackageError, "onnxruntime cannot load"),
        ("model.h5", "n.zip", RecipeError, "no network that can be packed"),
        ("text.onnx", "m.zip", OutputError, "exists"),
    ):
        with pytest.raises(kind, match=text):
            vz.pack(tmp_path / model, tmp_path / out, image=image, image_axes="czyx", axes="bczyx")
    assert (tmp_path / "m.zip").read_text() == "precious"


@pytest.mark.parametrize("kind", ["float16", "float64", "uint8"])
def test_a_network_that_reads_other_numbers_is_packed(kind: str, tmp_path: Path) -> None:
    """Its grey values are cast inside of the graph, which takes float32 as all of the profile do; that is told."""
    from tests import onnx_net as nets

    net = nets.Net(7)
    x = net.node("Cast", "x", to=onnx.TensorProto.FLOAT)
    graph = onnx.load_model_from_string(
        net.model({"x": [None, 1, None, None]}, {"y": (nets.two_convs(net, x)[0], [None, 1, None, None])})
    )
    graph.graph.input[0].type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    onnx.save(graph, tmp_path / "m.onnx")
    image = micrograph(np.random.default_rng(), (70, 80), "uint8")
    package = vz.pack(tmp_path / "m.onnx", tmp_path / "m.zip", image=image, image_axes="yx", axes="bcyx")
    assert f"it reads {kind}: the cast from float32 lies in the network" in package.ours["packed"]["notes"]
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": image[None, None].astype(kind)})[0][0, 0]
    found = vz.predict(package, image, axes="yx", dtype="float32", device="cpu")
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


def test_a_network_of_several_results_is_told(tmp_path: Path) -> None:
    """A tuple: its first part is packed, and the others are not lost in silence."""
    (tmp_path / "two.py").write_text(
        "import torch\n\n\nclass Two(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)\n\n    def forward(self, x):\n"
        "        return self.conv(x * 0.01), x\n"
    )
    image = micrograph(np.random.default_rng(), (70, 80))
    package = vz.pack(f"{tmp_path / 'two.py'}:Two", tmp_path / "m.zip", image=image, image_axes="yx", axes="bcyx")
    assert "the network returns 2 results; the first is packed" in package.ours["packed"]["notes"]


def test_fixed_sizes_and_other_sizes_of_the_output(tmp_path: Path) -> None:
    """A graph of one size keeps it; a network that halves its image is described so, and predict lays it on the image."""
    from tests import onnx_net as nets

    rng = np.random.default_rng()
    image = micrograph(rng, (90, 100))
    fixed = nets.Net(3)
    shape = fixed.constant(np.array([1, 1, 48 * 40], np.int64))
    flat = fixed.node("Reshape", fixed.conv(fixed.scaled("x", 0.01), 1, 1, (3, 3)), shape)
    back = fixed.node("Reshape", flat, fixed.constant(np.array([1, 1, 48, 40], np.int64)))
    (tmp_path / "fixed.onnx").write_bytes(fixed.model({"x": [1, 1, 48, 40]}, {"y": (back, [1, 1, 48, 40])}))
    package = vz.pack(tmp_path / "fixed.onnx", tmp_path / "fixed.zip", image=image, image_axes="yx", axes="bcyx")
    assert {a: (r.minimum, r.fixed) for a, r in package.rules.items()} == {"y": (48, True), "x": (40, True)}
    net = nets.Net(5)
    (tmp_path / "half.onnx").write_bytes(
        net.model({"x": [None, 1, None, None]}, {"y": (nets.halved(net, "x")[0], [None, 1, None, None])})
    )
    package = vz.pack(tmp_path / "half.onnx", tmp_path / "half.zip", image=image, image_axes="yx", axes="bcyx")
    found = vz.predict(package, image, axes="yx", device="cpu")
    session = ort.InferenceSession(str(tmp_path / "half.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": image[None, None].astype(np.float32)})[0][0, 0]
    assert found.shape == (45, 50)
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


@pytest.mark.slow
def test_the_command_line_says_what_was_measured(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checks, sizes, halos and losses in lines; with --json one object; a refusal has exit code 2 and no traceback."""
    tifffile.imwrite(tmp_path / "v.tif", micrograph(np.random.default_rng(), (12, 2, 70, 72)), imagej=True,
                     metadata={"axes": "ZCYX"})  # fmt: skip
    words = ["pack", str(model), "-o", str(tmp_path / "m.zip"), "--input", str(tmp_path / "v.tif"), "--axes", "bzyxc"]
    assert command(words) == 0
    out = capsys.readouterr().out
    assert "check    whole = tiled" in out
    assert "note     y: size 64 + n * 4, halo 12" in out
    assert "note     ONNX opset 12 became 17" in out
    assert "next     voidzoo predict" in out
    assert command([*words, "--json", "--overwrite", "--halo", "2,12,12"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert all(c["passed"] for c in said["checks"])
    assert command(words) == 2
    assert "exists" in capsys.readouterr().err
    assert command([*words, "--overwrite", "--kwargs", "[1]"]) == 2
    assert "names and values are needed" in capsys.readouterr().err


@pytest.mark.slow
def test_bioimageio_takes_what_was_packed(model: Path, tmp_path: Path) -> None:
    """Its own test says passed, for ONNX alone and for all three forms."""
    odd(tmp_path, last=False)
    image = volume(tmp_path)
    given: dict[str, Any] = {"image": image, "image_axes": "czyx"}
    of_file = {"weights": tmp_path / "odd.pt", "kwargs": {"n_in": 2, "n_out": 3, "last": False}, "axes": "bczyx"}
    packages: list[Package] = []
    for name, more in ((str(model), {"axes": "bzyxc"}), (f"{tmp_path / 'odd.py'}:Odd", of_file)):
        checks: list[Check] = []
        packages.append(vz.pack(name, tmp_path / f"{len(packages)}.zip", watch=checks.append, **given, **more))
        assert checks[-1].name.startswith("bioimageio.core")
        assert checks[-1].detail.startswith("status passed")
    x = np.load(io.BytesIO(packages[0].files.read("test_input.npy")))
    assert x.shape[1:] == (2, 20, 88, 84)
