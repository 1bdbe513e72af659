"""The benchmarks of training work from command to report at toy size, and their figures mean what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' modules lie beside their commands, in no package."""
    for folder in ("", "peers", "papers"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))


def report_of(script: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of the benchmarks -> its report."""
    report = folder / "report.json"
    command = [sys.executable, str(BENCHMARKS / script), "--json", str(report), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@pytest.mark.usefixtures("_importable")
def test_a_step_and_its_ratio_are_those_of_the_clock() -> None:
    """Steps of 100 ms after a slow first epoch, a pause between epochs; bare takes 80 ms, the peer 250."""
    import training
    from measure import Measured

    began = time.time()

    def outcome(step: float, masking: float) -> dict[str, Any]:
        first = [began + 3, began + 3 + 2 * step]
        second = [began + 60 + i * step for i in range(6)]
        said = json.dumps({"ends": [first, second], "masking": masking, "sampling": 0.01})
        found: dict[str, Any] = training.measured(Measured(70, 9, 10**9, 2 * 10**9, 0, "words\n" + said + "\n", began))
        return found

    ours, peer, bare = outcome(0.1, 0.002), outcome(0.25, 0.0), outcome(0.08, 0.0)
    assert ours["step_ms"] == pytest.approx(100, abs=0.1)
    assert ours["first_step_s"] == 3.0
    assert (ours["peak_mb"], ours["tree_mb"]) == (1000.0, 2000.0)
    assert (ours["masking_share"], ours["sampling_share"]) == pytest.approx((0.02, 0.1), abs=1e-3)
    rounds = training.ratios({"voidzoo": [ours, ours], "careamics": [peer], "bare": [bare, bare]})
    assert rounds == pytest.approx({"faster_than_careamics": 2.5, "step_of_bare": 1.25}, rel=1e-3)


@pytest.mark.slow
def test_training_beside_the_bare_network(tmp_path: Path) -> None:
    """Every step is counted once, sampling and masking are a part of it; CAREamics is said to be missing."""
    found = report_of(
        "training.py", tmp_path, "--toy", "--offline", "--rows", "batch-16,memory", "--cache", str(tmp_path)
    )
    speed, memory = found["rows"]
    ours = speed["contenders"]["voidzoo"]
    assert speed["step_of_bare"] > 0.05  # about 1; of a few short steps, beside whatever else runs here
    assert 0 < ours["masking_share"] < 1
    assert 0 < ours["sampling_share"] < 1
    assert ours["first_step_s"] > 0.5
    assert "no environment" in speed["failures"]["careamics"]
    assert memory["peak_of_plan"] > 0.1


@pytest.mark.slow
def test_papers_continue_where_they_were(tmp_path: Path) -> None:
    """What is in the report is not run again, what is missing is; rows average over seeds; denoising gains dB."""
    arguments = ["--toy", "--sigmas", "20", "--methods", "noisy,n2v,care"]
    first = report_of("papers/dsb2018.py", tmp_path, *arguments, "--seeds", "1")
    second = report_of("papers/dsb2018.py", tmp_path, *arguments, "--seeds", "2")
    assert second["runs"][:3] == first["runs"]
    assert len(second["runs"]) == 6
    noisy = [r["psnr"] for r in second["runs"] if r["method"] == "noisy"]
    assert second["rows"][0]["psnr"] == pytest.approx(np.mean(noisy), abs=1e-3)
    assert second["rows"][0]["psnr_sd"] == pytest.approx(np.std(noisy, ddof=1), abs=1e-3)
    other = [
        sys.executable,
        str(BENCHMARKS / "papers/dsb2018.py"),
        "--json",
        str(tmp_path / "report.json"),
        "--count",
        "3",
    ]
    done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "choose another file" in done.stderr


@pytest.mark.slow
def test_structured_noise_is_judged_and_drawn(tmp_path: Path) -> None:
    """Along y and in a volume; the noisy image has all of its stripes, the networks fewer; a real pair after a fit."""
    sample = BENCHMARKS.parent / "zoo" / "samples"
    real = f"{sample / 'giga_mito60x_n1_low.tif'}:{sample / 'giga_mito60x_n1_high.tif'}"
    found = report_of(
        "papers/structn2v.py", tmp_path, "--data", f"y,volume,{real}", "--noise", "ar0.6", "--methods", "noisy,structn2v-w5",
        "--seeds", "1", "--epochs", "1", "--pictures", str(tmp_path / "pictures"),
    )  # fmt: skip
    rows = {(r["data"], r["method"]): r for r in found["rows"]}
    assert len(rows) == 6
    for data in ("y", "volume"):
        assert rows[data, "structn2v-w5"]["stripes"] < 0.5 * rows[data, "noisy"]["stripes"]
        assert rows[data, "structn2v-w5"]["psnr"] > rows[data, "noisy"]["psnr"]
    masks = [r["mask"] for r in found["runs"] if r["method"] == "structn2v-w5"]
    assert masks == ["5x1", "1x5x1", "1x5"]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize(("kind", "rho"), [("ma0.33", (0.2976, 0.0)), ("ar0.6", (0.6, 0.36)), ("white", (0.0, 0.0))])
def test_synthetic_noise_has_the_correlation_that_it_is_named_by(kind: str, rho: tuple[float, float]) -> None:
    """Variance 1, the correlation along its axis alone, from the first pixel on."""
    import structn2v

    for axis in (-1, -2):
        noise = np.moveaxis(structn2v.correlated(np.random.default_rng(), (5, 400, 500), kind, axis), axis, -1)
        assert noise.var() == pytest.approx(1, abs=0.02)
        assert noise[..., 0].var() == pytest.approx(1, abs=0.2)  # of 2000 values
        for lag, want in enumerate(rho, 1):
            assert (noise[..., lag:] * noise[..., :-lag]).mean() == pytest.approx(want, abs=0.01)
        assert (noise[:, 1:] * noise[:, :-1]).mean() == pytest.approx(0, abs=0.01)
