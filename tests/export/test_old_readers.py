"""Older readers take what we write: each in an environment of its own, made for the test, none of it pretended."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voidzoo as vz
from tests.export.tiny import tiny_run
from voidzoo.export import proof
from voidzoo.export.proof import Check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CASES: dict[str, dict[str, Any]] = {
    "2d": {"shape": (96, 116), "axes": "yx"},
    "3d-n2v2": {"shape": (16, 64, 72), "axes": "zyx", "dims": 3, "filters": 2, "method": "n2v2", "kernel": [3, 5, 5]},
    "2-channels": {"shape": (2, 96, 80), "axes": "cyx"},
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A package of each kind."""
    folder, made = tmp_path_factory.mktemp("packages"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda _path: Check("bioimageio.core", True, "left out"))
        for name, case in CASES.items():
            settings = dict(case)
            run = tiny_run(folder / name, settings.pop("shape"), settings.pop("axes"), **settings)
            vz.export(run, folder / f"{name}.zip", license="MIT", authors=["A. B."])
            made.append(folder / f"{name}.zip")
    return made


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes an environment with these packages -> its Python. beside: what is not in it is taken from that of the tests."""

    def make(*packages: str, beside: bool = False) -> str:
        folder = tmp_path_factory.mktemp("env")
        venv.create(folder, with_pip=True)
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        if beside:  # after its own packages: torch is too large to be installed once more
            site = next(folder.rglob("site-packages"))
            (site / "zz_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return str(python)

    return make


def told(python: str, code: str, *words: object) -> Any:
    """The last line that a script prints, as JSON."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, *map(str, words)], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


VALIDATE = """
import json, os, sys
os.environ["BIOIMAGEIO_PERFORM_IO_CHECKS"] = "false"
import bioimageio.spec
found = [bioimageio.spec.validate_format(p) for p in sys.argv[1:]]
print(json.dumps([[s.status, *(e.msg for d in s.details for e in d.errors)] for s in found]))
"""


@pytest.mark.parametrize("version", ["0.5.4.4", "0.5.10.2"])
def test_older_spec_finds_the_format_valid(version: str, packages: list[Path], environment: Callable[..., str]) -> None:
    """0.5.4.4 is of June 2025; 0.5.10.2 is pinned by the remote tests of bioimage.io."""
    python = environment(f"bioimageio.spec=={version}", "pydantic<2.12")
    assert told(python, VALIDATE, *packages) == [["valid-format"]] * len(packages)


RUN = """
import json, os, sys
os.environ["BIOIMAGEIO_PERFORM_IO_CHECKS"] = "false"
import bioimageio.core, bioimageio.spec
found = []
for path in sys.argv[1:]:
    for weights in ("onnx", "torchscript", "pytorch_state_dict"):
        summary = bioimageio.core.test_model(path, weight_format=weights)
        found.append([summary.status, *(e.msg for d in summary.details for e in d.errors)])
print(json.dumps([bioimageio.core.__version__, found]))
"""


def test_the_core_of_ilastik_runs_them(packages: list[Path], environment: Callable[..., str]) -> None:
    """bioimageio.core 0.10.2, in all three forms of the weights, at its default tolerance."""
    python = environment("bioimageio.core==0.10.2", "pydantic<2.12", "onnxruntime", beside=True)
    version, found = told(python, RUN, *packages)
    assert version.startswith("0.10")
    assert found == [["passed"]] * 3 * len(packages)


ONNX = """
import json, sys, zipfile, io
import numpy as np, onnxruntime
found = []
for path in sys.argv[1:]:
    archive = zipfile.ZipFile(path)
    x, y = (np.load(io.BytesIO(archive.read(f"test_{n}.npy"))) for n in ("input", "output"))
    session = onnxruntime.InferenceSession(archive.read("weights.onnx"), providers=["CPUExecutionProvider"])
    (z,) = session.run(None, {session.get_inputs()[0].name: x})
    found.append(float(abs(z - y).max() / y.std()))
print(json.dumps([onnxruntime.__version__, found]))
"""


def test_an_onnxruntime_of_2023_runs_them(packages: list[Path], environment: Callable[..., str]) -> None:
    """1.15.1, the oldest that this Python can install; Fiji's is 1.12 or 1.13."""
    version, found = told(environment("onnxruntime==1.15.1", "numpy<2"), ONNX, *packages)
    assert version == "1.15.1"
    assert max(found) < 1e-4


TORCHSCRIPT = """
import json, sys, zipfile, io
import numpy as np, torch
found = []
for path in sys.argv[1:]:
    archive = zipfile.ZipFile(path)
    x, y = (np.load(io.BytesIO(archive.read(f"test_{n}.npy"))) for n in ("input", "output"))
    network = torch.jit.load(io.BytesIO(archive.read("weights.torchscript.pt")))
    code = {}
    exec(archive.read("network.py"), code)
    import yaml
    about = yaml.safe_load(archive.read("rdf.yaml"))["weights"]["pytorch_state_dict"]["architecture"]
    built = code[about["callable"]](**about["kwargs"]).eval()
    built.load_state_dict(torch.load(io.BytesIO(archive.read("weights.pt"))))
    with torch.no_grad():
        for one in (network, built):
            z = one(torch.from_numpy(x)).numpy()
            found.append(float(abs(z - y).max() / y.std()))
print(json.dumps([torch.__version__, found]))
"""
DEBIAN = "/usr/bin/python3"


def test_a_torch_of_2022_runs_them(packages: list[Path]) -> None:
    """Debian's torch 1.13, the nearest to Fiji's libtorch that can be had here: TorchScript, and the state dict."""
    done = subprocess.run([DEBIAN, "-c", "import torch, yaml"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs Debian's python3-torch and python3-yaml")
    version, found = told(DEBIAN, TORCHSCRIPT, *packages)
    assert version.startswith("1.13")
    assert max(found) < 1e-4
    assert len(found) == 2 * len(packages)
    assert np.isfinite(found).all()
