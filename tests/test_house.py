"""The house: what is in a room is in the wheel, floors are kept, and starting costs nothing."""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import voidzoo as vz

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("zoo", "trainers", "export", "infer")
HEAVY = {
    "bioimageio", "dask", "distributed", "imagecodecs", "matplotlib", "numpy", "onnx", "onnxruntime", "openvino", "pandas", "PIL",
    "scipy", "skimage", "tifffile", "torch", "xarray", "zarr",
}  # fmt: skip


def python(code: str, *, cwd: Path = ROOT, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A fresh process that sees the package lying in `path`."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def sources(*folders: str) -> list[Path]:
    """The Python files of some top-level folders, without those behind the links."""
    return [
        Path(top) / file
        for folder in folders
        for top, _, files in os.walk(ROOT / folder, followlinks=False)
        for file in files
        if file.endswith(".py")
    ]


def test_every_folder_with_an_init_is_in_the_wheel_and_vice_versa() -> None:
    """pyproject lists packages by hand: none may be forgotten, none may be left over, each in its room's folder."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT) for p in sources("voidzoo", *ROOMS) if p.name == "__init__.py"}
    packages = {".".join(f.parts if f.parts[0] == "voidzoo" else ("voidzoo", *f.parts)) for f in folders}
    assert packages == set(setup["packages"])
    assert setup["package-dir"] == {f"voidzoo.{room}": room for room in ROOMS}
    lost = {p.parent for p in sources("voidzoo", *ROOMS)} - {ROOT / f for f in folders}
    assert not lost, "Python files in a folder without __init__.py would not be installed"


def test_the_links_of_the_face_lead_to_the_rooms() -> None:
    """`voidzoo/zoo` and the other three are relative links that git keeps, and nothing else is a link."""
    for room in ROOMS:
        link = ROOT / "voidzoo" / room
        assert link.is_symlink()
        assert link.readlink().as_posix() == f"../{room}"
        assert (link / "__init__.py").is_file()
    links = [p for f in ("voidzoo", *ROOMS) for p in (ROOT / f).rglob("*") if p.is_symlink()]
    assert {p.name for p in links} == set(ROOMS)


def cpu_seconds(*arguments: str) -> float:
    """User and system time of a fresh process, the best of three: what it costs, whoever else uses the machine."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


@pytest.mark.parametrize("arguments", [("-m", "voidzoo", "--help"), ("-c", "import voidzoo")])
def test_starting_is_cheap(arguments: tuple[str, ...]) -> None:
    """Help and the bare import take less than half a second of processor time."""
    assert cpu_seconds(*arguments) < 0.5


@pytest.mark.parametrize(
    "code",
    [
        "import voidzoo",
        "import voidzoo; dir(voidzoo); voidzoo.VoidzooError",
        "from voidzoo.cli import main; assert main(['--help']) == 0",
        "from voidzoo.cli import main; assert main(['predict', '--help']) == 0",
        "import voidzoo.zoo, voidzoo.infer, voidzoo.trainers, voidzoo.export",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    """Neither torch nor onnxruntime, zarr, numpy nor anything that needs them is loaded by help, import or rooms."""
    done = python(f"{code}\nimport sys\nprint('loaded', *sorted({HEAVY} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


def test_looking_loads_no_network_library(tmp_path: Path) -> None:
    """`look` reads a TIFF without torch, onnxruntime, bioimageio or dask."""
    file = ROOT / "tests/data/gen/yx_int16.tif"
    done = python(
        f"from voidzoo.cli import main; assert main(['look', {str(file)!r}]) == 0\n"
        "import sys\nassert not {'torch', 'onnxruntime', 'onnx', 'bioimageio', 'dask'} & set(sys.modules)",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_export_is_a_verb_and_a_room() -> None:
    """`voidzoo.export(...)` can be called, `voidzoo.export.pack` imported, in this order and in the other."""
    call = (
        "\ntry: voidzoo.export('no such run', 'x.zip')\nexcept voidzoo.VoidzooError as e: assert 'no run' in str(e)\n"
    )
    first = "import voidzoo\nfrom voidzoo.export import pack\nimport voidzoo.export.proof" + call
    then = "import voidzoo" + call + "from voidzoo.export import pack\nassert voidzoo.export.pack is pack" + call
    for code in (first, then, "import voidzoo.export, voidzoo\nassert callable(voidzoo.export)"):
        done = python(code)
        assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_told() -> None:
    """`from voidzoo import *` gives what `dir` shows; each has a docstring; another name is an AttributeError."""
    assert sorted(vz.__all__) == dir(vz)
    for name in vz.__all__:
        assert getattr(vz, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vz.trian  # noqa: B018


def test_the_rooms_do_not_print() -> None:
    """Library code tells listeners; only the face writes to the screen, and it does not use print either."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("voidzoo", *ROOMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "breakpoint")
    ]
    assert not found


def test_no_path_of_one_machine() -> None:
    """Nothing in the rooms, tests or settings names a folder that only exists on the machine of its writer."""
    wrong = re.compile(r"/(?:work|home|root|Users|mnt|tmp)/\w|[A-Z]:\\Users")
    files = [*sources("voidzoo", *ROOMS, "tests"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in files for m in wrong.finditer(p.read_text())]
    assert not found


def test_our_own_models_are_small_and_called_what_they_are() -> None:
    """Each shipped zip has at most 5 MB, all together 30 MB, and NAME-VERSION is the version that it says of itself."""
    zips = sorted((ROOT / "zoo" / "models").glob("*.zip"))
    assert all(z.stat().st_size <= 5e6 for z in zips)
    assert sum(z.stat().st_size for z in zips) <= 30e6
    for path in zips:
        name, _, version = path.stem.rpartition("-")
        with zipfile.ZipFile(path) as archive:
            rdf = yaml.safe_load(archive.read("rdf.yaml"))
        assert version == str(rdf["version"]), path.name
        assert name == rdf["config"]["bioimageio"]["nickname"], path.name


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[1:] = ['--no-cache']; from importlinter.cli import lint_imports_command as c; c()"
    return python(code, cwd=root, path=root)


def test_the_floors_are_kept() -> None:
    """import-linter finds zoo < trainers | infer < export < the face, and no torch in zoo and infer."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, links as links."""
    copy = tmp_path_factory.mktemp("checkout") / "voidzoo"
    copy.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("voidzoo", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, copy)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "line"), [("zoo", "import torch"), ("infer", "from ..trainers import loop"), ("zoo", "import onnxruntime")]
)
def test_a_broken_floor_is_noticed(checkout: Path, tmp_path: Path, room: str, line: str) -> None:
    """The contracts bite: one import upwards breaks them."""
    copy = tmp_path / "voidzoo"
    shutil.copytree(checkout, copy, symlinks=True)
    (copy / room / "rotten.py").write_text(line + "\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert re.search(r"[12] broken", done.stdout), done.stdout
    assert f"voidzoo.{room}.rotten" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_the_wheel_has_everything_and_works(checkout: Path, tmp_path: Path, links: bool) -> None:
    """Built with and without the links (Windows), the wheel holds each file once, and runs from another folder."""
    source = tmp_path / "source"
    shutil.copytree(checkout, source, symlinks=True)
    (source / "zoo" / "models").mkdir(exist_ok=True)
    (source / "zoo" / "models" / "shipped-1.0.zip").write_bytes(b"a model")
    if not links:
        for room in ROOMS:
            (source / "voidzoo" / room).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    expected = {"voidzoo/py.typed"}
    for path in sources("voidzoo", *ROOMS):
        inside = path.relative_to(ROOT).as_posix()
        expected.add(inside if inside.startswith("voidzoo/") else f"voidzoo/{inside}")
    expected |= {f"voidzoo/zoo/samples/{p.name}" for p in (ROOT / "zoo/samples").iterdir() if p.is_file()}
    expected |= {f"voidzoo/zoo/models/{p.name}" for p in (source / "zoo/models").glob("*.zip")}
    assert expected == {n for n in names if ".dist-info/" not in n}
    assert len(names) == len(set(names))
    assert any(n.endswith("licenses/LICENSE") for n in names)
    code = (
        "import voidzoo; from voidzoo.cli import main; assert main(['--help']) == 0; import voidzoo.export.pack\n"
        f"assert voidzoo.__file__.startswith({str(tmp_path)!r}); assert voidzoo.__version__ == '0.1.0'"
    )
    done = python(code, cwd=tmp_path, path=tmp_path / "site")
    assert done.returncode == 0, done.stderr
