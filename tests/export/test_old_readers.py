"""Older readers take what we write: each in an environment of its own, made for the test, none of it pretended."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voidzoo as vz
from tests.export.environments import make_environment, told
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
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
        for name, case in CASES.items():
            settings = dict(case)
            run = tiny_run(folder / name, settings.pop("shape"), settings.pop("axes"), **settings)
            vz.export(run, folder / f"{name}.zip", license="MIT", authors=["A. B."])
            made.append(folder / f"{name}.zip")
    return made


VALIDATE = """
import json, os, sys
os.environ["BIOIMAGEIO_PERFORM_IO_CHECKS"] = "false"
import bioimageio.spec
from importlib.metadata import version
found = [bioimageio.spec.load_description(p).validation_summary for p in sys.argv[1:]]
print(json.dumps([version("bioimageio.spec"), [[s.status, *(e.msg for d in s.details for e in d.errors)] for s in found]]))
"""


OF_2025 = ("pooch", "pydantic==2.11.7", "pydantic-core==2.33.2")


@pytest.mark.parametrize(("version", "others"), [("0.5.4.4", OF_2025), ("0.5.10.2", ())])
def test_older_spec_finds_the_format_valid(
    version: str, others: tuple[str, ...], packages: list[Path], tmp_path: Path
) -> None:
    """0.5.4.4 is of June 2025; 0.5.10.2 is pinned by the remote tests of bioimage.io."""
    found = told(make_environment(tmp_path / "env", f"bioimageio.spec=={version}", *others), VALIDATE, *packages)
    assert found == [version, [["valid-format"]] * len(packages)]


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


def test_the_core_of_ilastik_runs_them(packages: list[Path], tmp_path: Path) -> None:
    """bioimageio.core 0.10.2, in all three forms of the weights, at its default tolerance."""
    version, found = told(
        make_environment(tmp_path / "env", "bioimageio.core==0.10.2", "bioimageio.spec==0.5.9.1"), RUN, *packages
    )
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


def test_an_onnxruntime_of_2023_runs_them(packages: list[Path], tmp_path: Path) -> None:
    """1.15.1, the oldest that this Python can install; Fiji's is 1.12 or 1.13."""
    version, found = told(make_environment(tmp_path / "env", "onnxruntime==1.15.1", "numpy<2"), ONNX, *packages)
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
