"""Many images in one call: one session, one index, and one bad file that does not stop the rest."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import voidzoo as vz
from tests.model_zoo import MODELS
from tests.packages import make_package, micrograph
from voidzoo.cli import main
from voidzoo.infer.networks import session as sessions
from voidzoo.infer.place import stem
from voidzoo.many import Index, places
from voidzoo.zoo.errors import DependencyError, OutputError
from voidzoo.zoo.package import Package

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "p", depth=1, filters=2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every session that is made, in order."""
    found: list[Any] = []
    make = sessions.Session.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(sessions.Session, "__init__", counted)
    return found


def images(folder: Path, count: int, shape: tuple[int, ...] = (70, 80)) -> list[Path]:
    rng = np.random.default_rng()
    folder.mkdir(exist_ok=True)
    large = micrograph(rng, (shape[0] + count, shape[1]))
    found = []
    for i in range(count):
        found.append(folder / f"im.{i:04d}.tif")
        tifffile.imwrite(found[-1], large[i : i + shape[0]], photometric="minisblack")
    return found


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])


def index(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Result, status and error by image, in the order of the file."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {Path(r["image"]).name: (r["result"], r["status"], r["error"]) for r in rows}


def run(*words: object) -> int:
    return main([str(w) for w in words])


def test_one_bad_file_does_not_stop_the_rest(
    package: Package, tmp_path: Path, made: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 with a list, one session, an index of all in their order; the same line does only the bad one again."""
    files = images(tmp_path / "in", 9)
    damage(files[4])
    line = ["predict", package.path, *files, "-o", tmp_path / "out", "--device", "cpu"]
    assert run(*line) == 1
    told = capsys.readouterr()
    assert f"error: 1 of 9 images failed: {files[4]}." in told.err
    assert f"where: {tmp_path / 'out' / 'index.csv'}" in told.err
    assert "Traceback" not in told.err
    assert re.search(r"^failed +5/9 ", told.out, re.MULTILINE)
    assert told.out.count("model    ") == 1, "one plan is shown, not nine"
    assert len(made) == 1
    rows = index(tmp_path / "out")
    assert list(rows) == [f.name for f in files]
    assert [status for _, status, _ in rows.values()] == ["done"] * 4 + ["failed"] + ["done"] * 4
    assert "is cut" in rows["im.0004.tif"][2]
    for file in files[:4] + files[5:]:
        result = vz.open_image(tmp_path / "out" / rows[file.name][0])
        expected = vz.predict(package, tifffile.imread(file), axes="yx", device="cpu")
        assert np.abs(result.read().astype(int) - expected).max() <= 1
    tifffile.imwrite(files[4], tifffile.imread(files[3]))
    assert run(*line) == 0
    assert {status for _, status, _ in index(tmp_path / "out").values()} == {"done"}


def test_a_rerun_tries_the_bad_one_alone(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished images are not run again: no block is done, their files are not touched; the index is complete."""
    files = images(tmp_path / "in", 5)
    damage(files[0])
    line = ["predict", package.path, *files, "-o", tmp_path / "out", "--device", "cpu", "-q"]
    assert run(*line) == 1
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != "index.csv" and p.is_file()}

    from voidzoo.infer import run as engine

    monkeypatch.setattr(engine, "BlockWork", None)  # whoever wants to do a block fails
    assert run(*line) == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before
    rows = index(tmp_path / "out")
    assert [status for _, status, _ in rows.values()] == ["failed"] + ["done"] * 4


def test_any_error_of_one_image_is_its_own(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Channels, NaN, a reader that raises what it likes: each stands in the index, the good image is done."""
    good, *_ = images(tmp_path / "in", 1)
    tifffile.imwrite(tmp_path / "rgb.tif", np.ones((3, 60, 70), np.uint16), metadata={"axes": "CYX"}, ome=True)
    holes = micrograph(np.random.default_rng(), (60, 70), "float32")
    holes[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", holes)
    odd, foreign = tmp_path / "odd.tif", tmp_path / "a.czi"
    tifffile.imwrite(odd, np.ones((60, 70), np.uint16))
    opened = vz.open_image

    def broken(source: Any, **how: Any) -> Any:
        if str(source) == str(odd):
            raise ZeroDivisionError("a reader tripped")
        if str(source) == str(foreign):
            raise DependencyError(
                "a.czi needs bioio-czi, which is not installed.", mend='pip install "voidzoo[formats]"'
            )
        return opened(source, **how)

    monkeypatch.setattr("voidzoo.verbs.open_image", broken)
    line = [tmp_path / "rgb.tif", tmp_path / "nan.tif", odd, foreign, good]
    assert run("predict", package.path, *line, "-o", tmp_path / "out", "--device", "cpu", "--debug") == 1
    rows = index(tmp_path / "out")
    assert [status for _, status, _ in rows.values()] == ["failed"] * 4 + ["done"]
    assert "takes 1 channel; rgb.tif has 3" in rows["rgb.tif"][2]
    assert "NaN" in rows["nan.tif"][2]
    assert 'mend: pip install "voidzoo[formats]"' in rows["a.czi"][2]
    assert rows["odd.tif"][2] == "ZeroDivisionError: a reader tripped"
    assert "ZeroDivisionError: a reader tripped" in capsys.readouterr().err


def test_what_no_image_would_be_spared_stops_at_once(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device that is not there, a precision that cannot be: told once, with its exit code; the index says to do."""
    files = images(tmp_path / "in", 4)
    line = ["predict", package.path, *files, "-o", tmp_path / "out", "-q"]
    assert run(*line, "--device", "directml") == 3
    assert capsys.readouterr().err.count("was asked for") == 1
    assert run(*line, "--device", "cpu", "--precision", "fp8") == 2
    assert [status for _, status, _ in index(tmp_path / "out").values()] == ["to do"] * 4


def test_holes_stay_in_the_index(package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--skip-failed: the image is done but for its holes, which the same line says again; exit 1 both times."""
    good, *_ = images(tmp_path / "in", 1)
    bad = micrograph(np.random.default_rng(), (3, 60, 70), "float32")
    bad[1, 5, 6] = np.inf
    tifffile.imwrite(tmp_path / "bad.tif", bad, metadata={"axes": "ZYX"}, photometric="minisblack")
    line = ["predict", package.path, tmp_path / "bad.tif", good, "-o", tmp_path / "out", "--axes", "zyx",
            "--device", "cpu", "--skip-failed"]  # fmt: skip
    tifffile.imwrite(good, tifffile.imread(good)[None], metadata={"axes": "ZYX"}, photometric="minisblack")
    for _ in range(2):
        assert run(*line) == 1
        rows = index(tmp_path / "out")
        assert rows["bad.tif"][1] == "holes"
        assert re.search(r"block 1 \(z 1:2, .*infin", rows["bad.tif"][2])
        assert rows[good.name][1] == "done"
        assert "1 of 2 images failed" in capsys.readouterr().err
    single = ["predict", package.path, tmp_path / "bad.tif", "-o", tmp_path / "s.ome.zarr", "--axes", "zyx",
              "--device", "cpu", "--skip-failed"]  # fmt: skip
    for _ in range(2):
        assert run(*single) == 1
        assert "1 blocks of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pooled", "before_scale_range", "two_outputs"])
def test_any_model_has_one_session(name: str, tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign packages too: the graph is read once, float16 is compared once, whatever the number of images."""
    from voidzoo.infer.sight import receptive

    reads: list[int] = []
    look = receptive.receptive_field
    monkeypatch.setattr(receptive, "receptive_field", lambda *a, **k: (reads.append(1), look(*a, **k))[1])
    model = MODELS[name](tmp_path)
    files = images(tmp_path / "in", 4, (60, 64))
    assert run("predict", model.path, *files, "-o", tmp_path / "out", "--device", "cpu", "-q") == 0
    assert (len(made), len(reads)) == (1, 1)
    made.clear()
    line = ["predict", model.path, *files, "-o", tmp_path / "half", "--device", "cpu", "-q", "--precision", "fp16"]
    assert run(*line) == 0
    assert [s.precision for s in made] == ["fp16", "fp32"]


def test_json_and_log_have_every_event(package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json: a plan and an end for each image; --log: the same in a file, while people read a line an image."""
    files = images(tmp_path / "in", 3)
    line = ["predict", package.path, *files, "--device", "cpu", "-o"]
    assert run(*line, tmp_path / "a", "--json") == 0
    events = [json.loads(t)["event"] for t in capsys.readouterr().out.splitlines()]
    assert events.count("PlanMade") == events.count("Done") == 3
    assert run(*line, tmp_path / "b", "--log", tmp_path / "log.jsonl") == 0
    logged = [json.loads(t)["event"] for t in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == events
    told = capsys.readouterr().out
    assert len(re.findall(r"^done +\d/3 +\S+im\.000\d\.tif +[\d.]+ s$", told, re.MULTILINE)) == 3
    assert told.endswith(f"index    {tmp_path / 'b' / 'index.csv'}\n")


@pytest.mark.slow
def test_ctrl_c_ends_after_the_running_image_and_leaves_an_index(package: Package, tmp_path: Path) -> None:
    """A real process, a real signal: exit 130, finished images are kept, the index says what is to do."""
    files = images(tmp_path / "in", 60, (400, 400))
    line = [sys.executable, "-m", "voidzoo", "predict", package.path, *map(str, files), "-o", "out", "--device", "cpu"]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("done"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command again continues" in err
    rows = index(tmp_path / "out")
    counts = {s: [status for _, status, _ in rows.values()].count(s) for s in ("done", "to do")}
    assert counts["done"] >= 1
    assert counts["to do"] >= 1
    assert sum(counts.values()) == 60


@pytest.mark.slow
def test_a_thousand_images_in_one_call(tmp_path: Path, made: list[Any]) -> None:
    """1,000 images of 512 x 512, one of them cut: one session, exit 1, 999 results, an index of 1,000 lines.

    The same line again tries one, and touches nothing else.
    """
    package = make_package(tmp_path / "p", depth=1, filters=2)
    files = images(tmp_path / "in", 1000, (512, 512))
    damage(files[500])
    line = ["predict", package.path, *files, "-o", tmp_path / "out", "--device", "cpu", "-q"]
    assert run(*line) == 1
    assert len(made) == 1
    for _ in range(2):
        rows = index(tmp_path / "out")
        assert len(rows) == 1000
        statuses = [status for _, status, _ in rows.values()]
        assert [i for i, s in enumerate(statuses) if s != "done"] == [500]
        assert len(list((tmp_path / "out").glob("*.ome.zarr"))) == 999
        assert run(*line) == 1
    for i in (0, 499, 501, 999):
        expected = vz.predict(package, tifffile.imread(files[i]), axes="yx", device="cpu")
        found = vz.open_image(tmp_path / "out" / rows[files[i].name][0]).read()
        assert np.abs(found.astype(int) - expected).max() <= 1


# --- names


def test_results_are_named_after_their_images() -> None:
    """Only the ending is taken off, so that numbered files do not fall together."""
    for name, expected in (
        ("a.tif", "a"), ("a.b.c.tif", "a.b.c"), ("x.ome.tif", "x"), ("2024.01.05_1.ome.tiff", "2024.01.05_1"),
        ("plate.ome.zarr", "plate"), ("cells.czi", "cells"), ("stack.NPY", "stack"), ("folder", "folder"), (".tif", ".tif"),
        ("A.OME.TIF", "A"),
    ):  # fmt: skip
        assert stem(name) == expected, name


def test_places_of_several_images(tmp_path: Path) -> None:
    """A folder is made; a file name, two images of one name and a file in the way are refused with both names."""
    out = tmp_path / "v1.2"
    jobs = places(["x/a.1.tif", "x/a.2.tif", "y/b.ome.tif"], out)
    assert [p.name for _, p in jobs] == ["a.1.ome.zarr", "a.2.ome.zarr", "b.ome.zarr"]
    assert out.is_dir()
    with pytest.raises(OutputError, match=r"2 images cannot all become .*o\.ome\.zarr\.") as caught:
        places(["a.tif", "b.tif"], tmp_path / "o.ome.zarr")
    assert caught.value.mend == "a folder: -o o"
    with pytest.raises(OutputError, match=r"have the same name(.|\n)*x/a\.tif and y/a\.ome\.tif"):
        places(["x/a.tif", "y/a.ome.tif"], out)
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken is a file"):
        places(["a.tif", "b.tif"], tmp_path / "taken")
    assert places(["a.tif"], tmp_path / "o.ome.tif") == [("a.tif", tmp_path / "o.ome.tif")]


def test_an_index_is_whole_whatever_happens(tmp_path: Path) -> None:
    """It grows beside, and is replaced when the call ends: by an error too, with what was not reached."""
    jobs = [(f"im, {i}.tif", tmp_path / f"{i}.ome.zarr") for i in range(4)]
    (tmp_path / "index.csv").write_text("image,result,status,error\nold,,done,\n")
    rows = Index(tmp_path, jobs)

    def cut_off() -> None:
        with rows:
            rows.add("im, 0.tif", "done")
            rows.add("im, 1.tif", "failed", 'a "bad"\n  where: line,\n  mend:  none')
            assert "old" in (tmp_path / "index.csv").read_text()
            assert "im, 1.tif" in (tmp_path / "index.csv.part").read_text()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert not (tmp_path / "index.csv.part").exists()
    found = index(tmp_path)
    assert [status for _, status, _ in found.values()] == ["done", "failed", "to do", "to do"]
    assert found["im, 1.tif"] == ("1.ome.zarr", "failed", 'a "bad" where: line, mend: none')
    assert rows.failed == ["im, 1.tif"]
