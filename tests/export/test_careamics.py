"""A checkpoint of CAREamics becomes a package that gives what CAREamics itself predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import voidzoo as vz
from tests.export.environments import make_environment, told
from voidzoo.zoo.errors import DependencyError

ROOT = Path(__file__).resolve().parents[2]
CAREAMICS = ("careamics==0.3.5", "lightning==2.6.6", "lightning-utilities==0.15.3", "pytorch-lightning==2.6.6",
             "torchmetrics==1.8.2")  # fmt: skip
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2]) / "benchmarks" / "peers"))
from no_torchvision import without_torchvision
without_torchvision()
import numpy as np
from run_careamics import prepare
from careamics import CAREamist
import voidzoo as vz
folder, dims = Path(sys.argv[1]), int(sys.argv[3])
checkpoint = folder / "m.ckpt"
prepare(checkpoint, dims=dims, filters=8)
shape = (128, 160) if dims == 2 else (64, 64, 72)  # legal sizes: nothing is mirrored
image = np.random.default_rng().normal(1000, 300, shape).astype(np.float32)
checks = []
package = vz.pack(checkpoint, folder / "m.zip", image=image, image_axes="zyx"[3 - dims:], kinds=["intensity"], watch=checks.append)
space = "SYX" if dims == 2 else "ZYX"
careamist = CAREamist(checkpoint_path=checkpoint, work_dir=folder, enable_progress_bar=False)
given = image[None] if dims == 2 else image
expected, _ = careamist.predict(given, data_type="array", axes=space, batch_size=1, num_workers=0)
expected = np.asarray(expected[0]).squeeze()
found = vz.predict(package, image, axes="zyx"[3 - dims:], device="cpu", dtype="float32")
print(json.dumps({"difference": float(np.abs(found - expected).max() / expected.std()), "checks": [str(c) for c in checks],
                  "passed": all(c.passed for c in checks), "weights": [w.kind for w in package.weights]}))
"""


@pytest.fixture(scope="module")
def careamics(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A python that has CAREamics, and this environment behind it."""
    return make_environment(tmp_path_factory.mktemp("careamics") / "env", *CAREAMICS)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_a_checkpoint_gives_what_careamics_predicts(dims: int, careamics: str, tmp_path: Path) -> None:
    """Its own prediction of a whole image, normalisation included, is that of the package, which is proved."""
    found = told(careamics, SCRIPT, tmp_path, ROOT, dims, path=str(ROOT))
    assert found["passed"], found["checks"]
    assert found["weights"] == ["onnx", "torchscript"]
    assert found["difference"] <= 1e-4


def test_without_careamics_its_name_is_told(tmp_path: Path) -> None:
    """A checkpoint names the library that is missing, with exit code 3."""
    (tmp_path / "m.ckpt").write_bytes(b"")
    with pytest.raises(DependencyError, match="pip install careamics") as caught:
        vz.pack(tmp_path / "m.ckpt", tmp_path / "m.zip", image=np.ones((64, 64), np.uint16), image_axes="yx")
    assert caught.value.exit_code == 3
