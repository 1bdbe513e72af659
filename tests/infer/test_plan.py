"""The plan: what it says in words and in JSON is what is done, and whatever cannot be done is refused there."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.infer import planning as plan_module
from voidzoo.infer.events import BlockDone, PlanMade
from voidzoo.infer.place import Place
from voidzoo.zoo.errors import AxesError, DeviceError, DtypeError, OutputError, ResourceError, SizeError
from voidzoo.zoo.package import Package
from voidzoo.zoo.readers.cache import ChunkCache


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Depth 2: step 4, halo 24, minimum 64."""
    return make_package(tmp_path_factory.mktemp("packages") / "p")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "v", dims=3, depth=1, filters=2)


@dataclass
class Unread:
    """A source of any size that cannot be read: a plan that looked at a pixel would fail."""

    axes: str
    shape: tuple[int, ...]
    dtype: Any = field(default_factory=lambda: np.dtype("uint16"))
    chunks: tuple[int, ...] = (1024, 1024)
    cache: ChunkCache = field(default_factory=ChunkCache)
    identity: dict[str, Any] = field(default_factory=dict)

    def with_cache(self, cache: ChunkCache) -> Any:
        return replace(self, cache=cache)

    def read(self, slices: tuple[slice, ...]) -> Any:
        raise AssertionError("a pixel was read")

    def close(self) -> None: ...


def unread(shape: tuple[int, ...], axes: str = "yx", **more: Any) -> vz.Image:
    return vz.Image(Unread(axes, shape, chunks=(1,) * (len(shape) - 2) + (1024, 1024), **more), "huge")


@pytest.mark.parametrize(
    ("shape", "axes"), [((10**6, 10**6), "yx"), ((1000, 100_000, 100_000), "zyx"), ((10**6, 300, 300), "tyx")]
)
def test_a_huge_image_is_planned_at_once_without_reading(package: Package, shape: tuple[int, ...], axes: str) -> None:
    """Terabytes: the plan takes seconds of processor time and less memory than asked, and no pixel is read."""
    start = time.process_time()
    p = vz.plan(package, unread(shape, axes), memory="2GB", device="cpu")
    text, facts = str(p), p.to_json()
    assert time.process_time() - start < 5
    assert p.memory.total <= 2e9
    assert facts["blocks"] == p.n_blocks == prod(-(-n // p.block[a]) for a, n in zip(axes, shape, strict=True))
    assert f"{p.n_blocks:,} of" in text
    assert p.disk >= prod(shape) * 2
    last = p.block_spans(p.n_blocks - 1)
    assert [span.stop for span in last.values()] == list(shape)


def test_words_and_json_agree(package: Package, tmp_path: Path) -> None:
    """Every number that people read is the one that programs read."""
    rng = np.random.default_rng()
    shape = (int(rng.integers(2, 5)), int(rng.integers(300, 700)), int(rng.integers(300, 700)))
    tifffile.imwrite(tmp_path / "a.tif", micrograph(rng, shape), photometric="minisblack", metadata={"axes": "ZYX"})
    p = vz.plan(package, tmp_path / "a.tif", tile=(128, 160), block=(256, 128), device="cpu")
    text, facts = str(p), json.loads(json.dumps(p.to_json()))
    assert facts["tile"] == {"y": 128, "x": 160}
    assert facts["block"] == {"z": 1, "y": 256, "x": 128}
    assert facts["halo"] == {"y": 24, "x": 24}
    assert facts["extended"] == {a: -(-n // 4) * 4 for a, n in zip("yx", shape[1:], strict=True)}
    assert facts["dtype"] == "uint16"
    assert facts["image"]["shape"] == list(shape)
    assert facts["model"]["sha256"] == package.sha256
    assert facts["memory"]["total"] == sum(facts["memory"][k] for k in ("process", "network", "blocks"))
    for line in (
        rf"^model +{package.name} +reads y x",
        rf"^image +a\.tif +z {shape[0]}, y {shape[1]}, x {shape[2]} +uint16",
        rf"^result +z {shape[0]}, y {shape[1]}, x {shape[2]} +uint16",
        rf"^blocks +{facts['blocks']:,} of z 1 x y 256 x x 128",
        rf"^tiles +{facts['tiles']:,} of y 128 x x 160 with a halo of y 24 x x 24",
        rf"the network runs on {facts['overhead']:.2f} x the pixels",
        rf"^device +{re.escape(facts['device'])} \(asked: cpu\)",
        rf"\({facts['voxels_per_second'] / 1e6:.2f} Mvox/s, measured\)",
        r"^note +a\.tif has no pixel size.*--pixel-size",
    ):
        assert re.search(line, text, re.MULTILINE), (line, text)
    assert text == plan_module.Plan.__str__(p)


def test_what_is_planned_is_done(package: Package, tmp_path: Path) -> None:
    """Blocks, shape, dtype and chunks of the result are those of the plan; the plan is stored with its rate."""
    import zarr

    x = micrograph(np.random.default_rng(), (3, 300, 260))
    p = vz.plan(package, x, axes="zyx", block=(128, 128), device="cpu")
    events: list[Any] = []
    vz.predict(p, tmp_path / "o.ome.zarr", watch=events.append)
    assert isinstance(events[0], PlanMade)
    assert len([e for e in events if isinstance(e, BlockDone)]) == p.n_blocks == 3 * 3 * 3
    array = zarr.open_array(tmp_path / "o.ome.zarr" / "0", mode="r")
    assert (array.shape, str(array.dtype)) == (p.out_shape, p.dtype)
    assert dict(zip("zyx", array.chunks, strict=True)) == p.chunk
    stored = Place(tmp_path / "o.ome.zarr").finished()
    assert stored == json.loads(json.dumps(p.to_json()))
    for key in ("identity", "voxels_per_second", "bytes_per_voxel", "memory", "device", "tile", "block"):
        assert stored[key], key


def test_planning_writes_nothing(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the working folder nor beside the image."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", micrograph(np.random.default_rng(), (80, 90)))
    vz.plan(package, "a.tif", device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_the_same_job_has_the_same_identity(package: Package, tmp_path: Path) -> None:
    """Two plans of one job are equal in identity; another dtype, tile, block, channel or pixel size is another job."""
    image = vz.open_image(micrograph(np.random.default_rng(), (2, 300, 260)), axes="cyx")
    sizes = {"tile": (128, 128), "block": (128, 128), "device": "cpu"}
    base = {**sizes, "channel": 0}
    plans = [
        vz.plan(package, image, **settings)
        for settings in (base, base, base | {"dtype": "float32"}, base | {"tile": (132, 128)}, base | {"channel": 1},
                         base | {"block": (256, 128)}, base | {"channel": "all"}, base | {"pixel_size": (0.5, 0.5)})
    ]  # fmt: skip
    assert plans[0].identity == plans[1].identity
    assert len({p.identity for p in plans}) == len(plans) - 1


# --- refusals


def test_memory_that_is_too_small_is_refused_with_what_would_do(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names the sum and an amount to paste, and with that amount the plan is made."""
    monkeypatch.setattr(plan_module, "_process_memory", lambda: 300 * 2**20)
    image = unread((20_000, 20_000))
    with pytest.raises(ResourceError, match=r"the smallest tile of this model needs [\d.,]+ [kM]B beside") as caught:
        vz.plan(package, image, memory="300MB", device="cpu")
    mend = re.search(r"--memory (\S+)", caught.value.mend)
    assert mend
    p = vz.plan(package, image, memory=mend[1], device="cpu")
    assert p.memory.total <= int(mend[1].removesuffix("MB")) * 1e6
    with pytest.raises(
        ResourceError, match=r"this plan needs .* GB of memory; 500 MB may be taken(.|\n)*tile 4000x4000"
    ):
        vz.plan(package, image, memory="500MB", tile=(4000, 4000), device="cpu")


def test_less_memory_means_smaller_tiles_never_more_memory(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a range of limits each plan keeps its limit, and more memory never costs more recomputed halo."""
    monkeypatch.setattr(plan_module, "_process_memory", lambda: 300 * 2**20)
    image, overheads = unread((9_000, 7_000)), []
    for limit in (350, 400, 600, 1200, 4000):
        p = vz.plan(package, image, memory=limit * 2**20, device="cpu")
        assert p.memory.total <= limit * 2**20
        overheads.append(p.overhead)
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[0] > overheads[-1]


@pytest.mark.parametrize(
    ("tile", "legal"),
    [
        ((66, 128), ["64", "68"]),
        ((128, 501), ["500", "504"]),
        ((40, 128), ["64"]),
        ((1, 1), ["64"]),
        ((-8, 64), ["64"]),
    ],
)
def test_an_illegal_tile_names_the_next_legal_ones(package: Package, tile: tuple[int, ...], legal: list[str]) -> None:
    """Each legal size that is named is taken."""
    image = unread((5000, 5000))
    with pytest.raises(SizeError, match="sides must be multiples of 4 and leave room for a halo of 24") as caught:
        vz.plan(package, image, tile=tile, device="cpu")
    assert caught.value.mend.split(" or ") == legal
    for side in map(int, legal):
        better = tuple(side if n % 4 or n < 64 else n for n in tile)
        assert tuple(vz.plan(package, image, tile=better, device="cpu").tile.values()) == better


def test_other_refusals(package: Package, volume: Package) -> None:
    """Wrong count of sizes, wrong axes, empty images, dtypes and devices that are not there: all in the plan."""
    image = unread((500, 500))
    for settings, kind, text in (
        ({"tile": (64,)}, SizeError, r"--tile takes 2 sizes \(y, x\) for this model, not 1"),
        ({"block": (64, 64, 64)}, SizeError, r"--block takes 2 sizes"),
        ({"block": (66, 64)}, SizeError, r"block 66 along y is not a multiple of 4\.\n  mend:  64"),
        ({"block": (0, 64)}, SizeError, r"block 0 along y"),
        ({"dtype": "complex64"}, DtypeError, "whole numbers or floats"),
        ({"dtype": "bool"}, DtypeError, "whole numbers or floats"),
        ({"device": "gpu"}, DeviceError, r"there is no device 'gpu'"),
        ({"device": "cpu:1"}, DeviceError, r"there is no device 'cpu:1'"),
        ({"channel": "DAPI"}, AxesError, r"has no channel 'DAPI'"),
        ({"channel": -1}, AxesError, r"has no channel -1"),
    ):
        with pytest.raises(kind, match=text):
            vz.plan(package, image, **{"device": "cpu", **settings})
    with pytest.raises(AxesError, match=r"needs z, y, x; huge is y 500, x 500"):
        vz.plan(volume, image, device="cpu")
    with pytest.raises(SizeError, match="is empty"):
        vz.plan(package, unread((0, 500)), device="cpu")


def test_the_place_is_checked_before_the_work(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a taken name and an ending that is none are refused before the first block; a TIFF needs twice."""
    import shutil

    x = micrograph(np.random.default_rng(), (100, 100), "float32")
    p = vz.plan(package, x, axes="yx", device="cpu")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=int(p.disk * 1.5)))
    Place(tmp_path / "o.ome.zarr").check(p)
    with pytest.raises(ResourceError, match=r"needs up to .* GB; .* free(.|\n)*--dtype uint16"):
        Place(tmp_path / "o.ome.tif").check(p)
    with pytest.raises(ResourceError, match="needs up to"):
        vz.predict(p, tmp_path / "o.ome.tif")
    monkeypatch.undo()
    with pytest.raises(OutputError, match="the ending chooses the format"):
        Place(tmp_path / "o.nrrd")
    (tmp_path / "t.ome.zarr.part").mkdir()
    (tmp_path / "t.ome.zarr.part" / "notes.txt").write_text("!")
    with pytest.raises(OutputError, match=r"t\.ome\.zarr\.part exists and was not made by voidzoo"):
        vz.predict(p, tmp_path / "t.ome.zarr")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["t.ome.zarr.part"]


def test_what_was_measured_is_remembered(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a result that is there, of either format, with or without sizes that were asked for: no probe."""
    x = micrograph(np.random.default_rng(), (200, 260))
    tifffile.imwrite(tmp_path / "a.tif", x)
    for name, asked in (("o.ome.zarr", {}), ("o.ome.tif", {}), ("b.ome.zarr", {"block": (128, 128)}),
                        ("t.ome.tif", {"tile": (128, 132), "block": (100, 256)})):  # fmt: skip
        first = vz.predict(package, tmp_path / "a.tif", out=tmp_path / name, device="cpu", **asked)
        with monkeypatch.context() as patch:
            patch.setattr(plan_module, "measure", None)
            again = vz.predict(package, tmp_path / "a.tif", out=tmp_path / name, device="cpu", **asked)
        assert again.blocks == 0
        assert again.plan.identity == first.plan.identity
        with pytest.raises(OutputError, match="begun with another plan"):
            vz.predict(package, tmp_path / "a.tif", out=tmp_path / name, device="cpu", **{**asked, "tile": (64, 64)})


def test_steps_that_the_graph_asks_for_are_pinned(tmp_path: Path) -> None:
    """A package that says step 1 for a network on a grid of 2: a run that continues starts its tiles on that grid."""
    from tests import onnx_net as nets
    from tests.model_zoo import write
    from tests.whole_image import Design, In, Out

    sizes = {"y": (16, 2), "x": (16, 2)}
    design = Design([In("raw", "bcyx", sizes)], [Out("out", "bcyx", {"y": 6, "x": 6})])
    path = write(tmp_path / "odd", design, nets.pooled).path
    text = (path / "rdf.yaml").read_text()
    assert text.count("step: 2") == 2
    (path / "rdf.yaml").write_text(text.replace("step: 2", "step: 1"))
    x = micrograph(np.random.default_rng(), (90, 101))
    plan = vz.plan(path, x, axes="yx", device="cpu", block=(32, 32))
    assert {a: axis.step for a, axis in plan.model_axes.items()} == {"y": 2, "x": 2}
    again = vz.plan(path, x, axes="yx", device="cpu", block=(32, 32), facts=plan.to_json())
    assert again.model_axes == plan.model_axes
    assert again.identity == plan.identity


@pytest.mark.parametrize(("name", "cut"), [("without_halo", True), ("pooled", True), ("old_04_without_padding", True), ("doubled", True),
                                           ("squeeze_excitation", False), ("instance_norm", False)])  # fmt: skip
def test_a_light_network_gets_small_tiles_where_they_cost_nothing(name: str, cut: bool, tmp_path: Path) -> None:
    """Where the graph says how far it sees. One that sees everything runs on the whole plane, as it should."""
    from tests.model_zoo import MODELS
    from tests.whole_image import run_whole

    model = MODELS[name](tmp_path)
    x = micrograph(np.random.default_rng(), (1400, 1300))
    plan = vz.plan(model.path, x, axes="yx", device="cpu")
    assert (plan.n_tiles > 1) == cut
    assert plan.overhead <= (1.05 if cut else 1.0)
    told = vz.plan(model.path, x, axes="yx", device="cpu", memory=2 * 10**9)
    assert told.overhead <= 1.02, "memory that may be taken is not spared at the cost of time"
    assert prod(told.tile.values()) >= prod(plan.tile.values())
    out = model.design.outputs[0].id
    (wanted,) = (y for n, y in run_whole(model.design, model.onnx, {model.design.main.id: x[None]}).items() if n == out)
    found = np.asarray(vz.predict(model.path, x, axes="yx", device="cpu")).squeeze()
    assert np.abs(found - wanted.squeeze()).max() <= 1e-5 * wanted.std()


def test_notes_and_what_was_measured_are_in_the_json(package: Package) -> None:
    """Halo facts, the difference of float16 and all notes come back with a stored plan."""
    x = micrograph(np.random.default_rng(), (200, 260))
    plan = vz.plan(package, x, axes="yx", device="cpu", precision="fp16", tolerance=1e-3)
    facts = json.loads(json.dumps(plan.to_json()))
    assert facts["notes"] == list(plan.notes)
    assert len(plan.notes) == 2
    again = vz.plan(package, x, axes="yx", device="cpu", precision="fp16", tolerance=1e-3, facts=facts)
    assert (again.notes, again.halo_facts, again.precision_error) == (
        plan.notes,
        facts["halo_facts"],
        plan.precision_error,
    )


def test_pixel_sizes_that_do_not_fit_are_noted(tmp_path: Path) -> None:
    """An image of other um than the training gets a note with both numbers; a fitting one gets none."""
    import yaml

    make_package(tmp_path / "p", depth=1)
    rdf = yaml.safe_load((tmp_path / "p" / "rdf.yaml").read_text())
    rdf["config"]["voidzoo"]["training"] = {"pixel_size": {"y": 0.5, "x": 0.5}}
    (tmp_path / "p" / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    image = micrograph(np.random.default_rng(), (80, 90))
    far = vz.plan(tmp_path / "p", image, axes="yx", pixel_size=(0.065, 0.5), device="cpu")
    assert len(far.notes) == 1
    assert "has 0.065 um pixels along y" in far.notes[0]
    assert "was trained at 0.5 um" in far.notes[0]
    assert not vz.plan(tmp_path / "p", image, axes="yx", pixel_size=(0.55, 0.45), device="cpu").notes
