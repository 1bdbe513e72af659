"""The Python face: the same words and refusals as the command line; arrays in, arrays out; nothing printed."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import tifffile

import voidzoo as vz
from tests.export.tiny import SETTINGS, tiny_run
from tests.model_zoo import MODELS
from tests.packages import make_package, micrograph
from voidzoo import api
from voidzoo.export import proof
from voidzoo.export.proof import Check
from voidzoo.infer.planning import make_plan
from voidzoo.zoo import errors
from voidzoo.zoo.errors import DependencyError, ResourceError, VoidzooError
from voidzoo.zoo.package import Package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "p", depth=1)


def test_the_way_of_the_manual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """open_image, Recipe, train, export, plan, predict: each takes what the one before gave, and prints nothing."""
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
    tifffile.imwrite(tmp_path / "a.tif", micrograph(np.random.default_rng(), (96, 110)))
    image = vz.open_image(tmp_path / "a.tif", pixel_size=(0.5, 0.25))
    seen: list[object] = []
    recipe = vz.Recipe.guess("n2v", image, **{**SETTINGS, "patch": [32, 32]})
    run = vz.train(recipe, image, tmp_path / "run", watch=seen.append, device="cpu")
    assert [type(e).__name__ for e in seen] == ["TrainingStarted", "EpochDone", "TrainingDone"]
    assert len(run.losses) == 1
    assert vz.load_run(tmp_path / "run").losses == run.losses
    package = vz.export(run, tmp_path / "m.zip", license="CC-BY-4.0")
    assert package.pixel_size == {"y": 0.5, "x": 0.25}
    plan = vz.plan(package, image, memory="8GB", device="cpu")
    seen.clear()
    result = vz.predict(plan, tmp_path / "o.ome.zarr", watch=seen.append)
    assert isinstance(seen[0], vz.PlanMade)
    assert isinstance(seen[-1], vz.Done)
    assert result.image.sizes == {"y": 96, "x": 110}
    assert result.image.pixel_size.x == 0.25
    array = vz.predict(tmp_path / "m.zip", image.read(), axes="yx", device="cpu")
    assert np.array_equal(array, result.image.read())
    for thing, word in (
        (image, "a.tif"),
        (run, "n2v 2D, done, 1 epochs"),
        (package, "n2v-run"),
        (result, "o.ome.zarr"),
    ):
        assert word in repr(thing)
    assert "a.tif" in str(plan)
    assert capfd.readouterr() == ("", "")


def test_several_images_train_one_model(tmp_path: Path) -> None:
    """A list of paths, arrays and Images is one training; the run names them all."""
    rng = np.random.default_rng()
    np.save(tmp_path / "b.npy", micrograph(rng, (70, 80)))
    recipe = vz.Recipe(**{**SETTINGS, "patch": [32, 32]})
    many = [micrograph(rng, (64, 72)), tmp_path / "b.npy"]
    run = vz.train(recipe, many, tmp_path / "run", axes="yx", device="cpu")
    assert [i["shape"] for i in run.info["images"]] == [[64, 72], [70, 80]]


def test_arrays_come_back_and_nothing_is_written(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """predict without `out` leaves no file; a path gives an Image in memory with the um of the file."""
    monkeypatch.chdir(tmp_path)
    x = micrograph(np.random.default_rng(), (70, 84))
    y = vz.predict(package, x, axes="yx", device="cpu")
    assert isinstance(y, np.ndarray)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert not list(tmp_path.iterdir())
    tifffile.imwrite("a.ome.tif", x, metadata={"axes": "YX", "PhysicalSizeX": 0.3, "PhysicalSizeXUnit": "µm",
                                               "PhysicalSizeY": 0.4, "PhysicalSizeYUnit": "µm"})  # fmt: skip
    image = vz.predict(package, "a.ome.tif", device="cpu")
    assert isinstance(image, vz.Image)
    assert (image.pixel_size.y, image.pixel_size.x) == (0.4, 0.3)
    assert np.array_equal(image.read(), y)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.tif"]


def test_a_part_of_a_data_array_keeps_its_coordinates(package: Package) -> None:
    """only= takes words or a dict; the coordinates of the part are those of the DataArray there."""
    import xarray as xr

    x = micrograph(np.random.default_rng(), (4, 70, 84))
    coords = {"z": [0.0, 2.0, 4.0, 6.0], "y": np.arange(70) * 0.5, "x": np.arange(84) * 0.25}
    array = xr.DataArray(x, dims=("z", "y", "x"), coords=coords, attrs={"lens": "63x"}, name="cells")
    whole = vz.predict(package, array, device="cpu")
    for only in ("z=1:3,y=10:50", {"z": (1, 3), "y": (10, 50)}):
        part = vz.predict(package, array, only=only, device="cpu")
        xr.testing.assert_identical(part.coords.to_dataset(), array[1:3, 10:50].coords.to_dataset())
        assert (part.name, part.attrs) == (array.name, array.attrs)
        assert np.abs(part.astype(int) - whole[1:3, 10:50]).max() <= 1


def test_several_outputs_come_back_by_name(tmp_path: Path) -> None:
    """Arrays for an array, Images for a path, each with its own axes and um; Result.images for a file."""
    model = MODELS["two_outputs"](tmp_path)
    images = model.images(np.random.default_rng(), {"y": 60, "x": 64})
    expected = model.oracle(images)
    arrays = vz.predict(model.path, images["raw"][0], axes="yx", device="cpu")
    assert {k: (type(v), v.shape) for k, v in arrays.items()} == {
        "probability": (np.ndarray, (60, 64)), "distance": (np.ndarray, (2, 30, 32))}  # fmt: skip
    tifffile.imwrite(tmp_path / "a.tif", images["raw"][0])
    opened = vz.predict(model.path, tmp_path / "a.tif", pixel_size=(0.5, 0.25), device="cpu")
    result = vz.predict(
        model.path, tmp_path / "a.tif", pixel_size=(0.5, 0.25), out=tmp_path / "o.ome.zarr", device="cpu"
    )
    for name, values in expected.items():
        for found in (arrays[name], opened[name].read(), result.images[name].read()):
            assert np.abs(found.reshape(values.shape) - values).max() <= 1e-5 * values.std()
        assert opened[name].pixel_size == result.images[name].pixel_size
    assert result.image.shape == (60, 64)


def test_every_option_of_the_command_line_is_a_word_of_the_api() -> None:
    """What `voidzoo plan` takes, `vz.plan` takes by the same name."""
    from voidzoo import cli

    words = set(inspect.signature(cli.plan).parameters) - {"model", "image", "out", "json", "overwrite", "ome_zarr"}
    known = {*inspect.signature(make_plan).parameters, *api.OPENING, *api.CHOICES}
    assert {w for w in words if not w.startswith("_")} <= known


def test_a_package_opens_by_path_string_or_itself(package: Package) -> None:
    """The model may be named in three ways."""
    x = micrograph(np.random.default_rng(), (64, 64))
    found = [vz.predict(m, x, axes="yx", device="cpu") for m in (package, package.path, Path(package.path))]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GB", 16e9), ("500 MB", 5e8), ("1.5g", 1.5e9), (" 2 TB ", 2e12), ("3000000", 3e6), (2e9, 2e9), (10**9, 1e9)],
)
def test_amounts_of_memory(text: str | float, expected: float) -> None:
    """Powers of 1000, with or without B, spaces and fractions."""
    assert api.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "B", "GB", "lots", "1GiB", "-1GB", "nanGB", "inf", "1e300TB", "5", 0, -5, "5mkGB"]
)
def test_amounts_that_are_none(text: str | float) -> None:
    """Whatever is no sensible amount is refused with an example, never taken for something else."""
    with pytest.raises(ResourceError, match=r"is no amount of memory(.|\n)*8GB"):
        api.parse_bytes(text)
    assert api.parse_bytes(None) is None


def test_without_torch_training_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DependencyError is an ImportError, exit code 3, and says what to install."""
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=r'train needs torch(.|\n)*pip install "voidzoo\[train\]"') as caught:
        vz.train(None, np.ones((64, 64)), tmp_path / "run", axes="yx")
    assert isinstance(caught.value, DependencyError)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_every_error_is_a_builtin_too_and_has_an_exit_code() -> None:
    """A caller who knows no voidzoo can catch ValueError or OSError; scripts rely on 1, 2, 3."""
    kinds = [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, VoidzooError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind is VoidzooError or len(kind.__bases__) == 2
        assert kind.exit_code in (1, 2, 3)
        error = kind("what.", where="there", mend="this")
        assert str(error) == "what.\n  where: there\n  mend:  this"
        assert (error.what, error.where, error.mend) == ("what.", "there", "this")
    import pickle

    again = pickle.loads(pickle.dumps(errors.SizeError("what.", mend="this")))
    assert str(again) == "what.\n  mend:  this"


def test_options_go_by_name() -> None:
    """After model and image, or recipe, images and folder, every argument has a name."""
    for verb in (vz.plan, vz.predict, vz.train):
        kinds = [p.kind for p in inspect.signature(verb).parameters.values()]
        positional = [k for k in kinds if k is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert len(positional) == (3 if verb is vz.train else 2)


def test_a_wrong_word_is_an_error_not_ignored(package: Package) -> None:
    """`tiles=` instead of `tile=` does not silently do something else."""
    with pytest.raises(TypeError, match="tiles"):
        vz.predict(package, np.ones((64, 64)), axes="yx", tiles=(64, 64))


def test_a_trained_run_exports_by_folder_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """export takes a Run or the path of one, and tells each check to whoever watches."""
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
    run = tiny_run(tmp_path / "r")
    seen: list[Check] = []
    one = vz.export(run, tmp_path / "one.zip", watch=seen.append)
    two = vz.export(str(tmp_path / "r"), str(tmp_path / "two.zip"))
    assert len(seen) == 7
    assert one.sha256 == two.sha256, "the same run gives the same weights file"
