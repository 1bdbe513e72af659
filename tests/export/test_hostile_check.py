"""`check` of a package of strangers: bioimageio.core runs none of its code unless it is trusted, and that is said."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.model_zoo import MODELS
from voidzoo.cli import main
from voidzoo.export import proof
from voidzoo.export.proof import check_in_core
from voidzoo.zoo.package import open_package

TOUCH = "import pathlib\npathlib.Path({canary!r}).touch()\n"


def trapped(folder: Path, name: str, canary: Path) -> str:
    """A Python file that leaves a trace when it is imported; its sha256."""
    code = TOUCH.format(canary=str(canary)) + "def f(**k):\n    return lambda x: x\n"
    (folder / name).write_text(code)
    return hashlib.sha256(code.encode()).hexdigest()


def architecture(rdf: dict[str, Any], folder: Path, canary: Path) -> None:
    """The file that makes the network of the state dict."""
    made = rdf["weights"]["pytorch_state_dict"]["architecture"]
    made["sha256"] = trapped(folder, made["source"], canary)


def library(rdf: dict[str, Any], folder: Path, canary: Path) -> None:
    """Any function that is installed, called with any words."""
    rdf["weights"]["pytorch_state_dict"]["architecture"] = {
        "import_from": "os", "callable": "system", "kwargs": {"command": f"touch {canary}"},
    }  # fmt: skip


def custom(rdf: dict[str, Any], folder: Path, canary: Path) -> None:
    """A step after the network."""
    digest = trapped(folder, "step.py", canary)
    step = {"id": "custom", "callable": "f", "source": "step.py", "sha256": digest, "kwargs": {}}
    rdf["outputs"][0]["postprocessing"] = [step]
    rdf["format_version"] = "0.5.12"


def second(rdf: dict[str, Any], folder: Path, canary: Path) -> None:
    """Another description, which core reads first; ours is harmless."""
    other = yaml.safe_load((folder / "rdf.yaml").read_text())
    custom(other, folder, canary)
    (folder / "a.rdf.yaml").write_text(yaml.safe_dump(other))


def beside(rdf: dict[str, Any], folder: Path, canary: Path) -> None:
    """A module of a library's name in the folder from which the command is run."""
    trapped(folder, "httpx.py", canary)
    trapped(folder, "bioimageio.py", canary)


ATTACKS: dict[str, tuple[str, Callable[[dict[str, Any], Path, Path], None], str]] = {
    "architecture": ("state_dict", architecture, "pytorch_state_dict runs code of the package (--trust-code)"),
    "library": ("state_dict", library, "pytorch_state_dict runs code of the package (--trust-code)"),
    "custom": ("pooled", custom, "its custom steps run code of the package (--trust-code)"),
    "second": ("pooled", second, "core may read a.rdf.yaml instead of rdf.yaml (--trust-code)"),
    "beside": ("pooled", beside, "status passed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_check_runs_no_code_of_the_package(
    attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Architectures, libraries called by name, custom steps, a second description, modules beside it: no trace of any."""
    base, spoil, told = ATTACKS[attack]
    folder, canary = MODELS[base](tmp_path).path, tmp_path / "ran"
    rdf = yaml.safe_load((folder / "rdf.yaml").read_text())
    spoil(rdf, folder, canary)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    before = sorted(p.name for p in folder.iterdir())
    monkeypatch.chdir(folder)
    code = main(["check", "."])
    out = capsys.readouterr()
    assert not canary.exists()
    assert code in (0, 1), out.err
    assert told in out.out, out.out
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.slow
def test_the_guard_holds_by_itself(tmp_path: Path) -> None:
    """Even told to run all weights, core gets no architecture but ours; trusted, it gets that of the package."""
    folder, canary = MODELS["state_dict"](tmp_path).path, tmp_path / "ran"
    rdf = yaml.safe_load((folder / "rdf.yaml").read_text())
    made = rdf["weights"]["pytorch_state_dict"]["architecture"]
    code = (folder / made["source"]).read_text() + TOUCH.format(canary=str(canary))
    (folder / made["source"]).write_text(code)
    made["sha256"] = hashlib.sha256(code.encode()).hexdigest()
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    refused = proof.check_consumer(folder)
    assert not refused.passed
    assert "code of the package is not run" in refused.detail
    assert not canary.exists()
    assert check_in_core(open_package(folder), trust_code=True).passed
    assert canary.exists()


def test_a_test_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """core gets so many seconds; then it is stopped, and the check has failed, in words."""
    monkeypatch.setattr(proof, "CORE_SECONDS", 0.05)
    found = proof.check_consumer(MODELS["pooled"](tmp_path).path)
    assert not found.passed
    assert found.detail == "did not end within 0.05 s"
    assert os.environ.get("PYTHONSAFEPATH") is None
    assert np.isnan(found.difference)
