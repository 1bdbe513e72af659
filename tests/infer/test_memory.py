"""Peak memory is what the plan says, whatever the size of the image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.packages import make_package, micrograph

SCRIPT = """
import json, sys
import voidzoo as vz
from voidzoo.infer.networks import runtimes
runtimes.WORTH_IT, runtimes.WORTH_PROBING = {2: 1e9}, 1e9  # on a busy machine a longer stack would get another runtime
package, source, out, memory = sys.argv[1:]
result = vz.predict(package, source, out=out, device="cpu", **({"memory": memory} if memory else {}))
print(json.dumps({"peak": result.peak_memory, "plan": result.plan.to_json()["memory"]}))
"""


def measure(package: str, source: Path, out: Path, memory: str = "") -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, package, str(source), str(out), memory],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {"peak": found["peak"], "plan": found["plan"]["total"]}


@pytest.mark.slow
def test_peak_memory_is_planned_and_flat(tmp_path: Path) -> None:
    """Depth 2, 16 filters: within 15 % above the plan; a stack 8 times as long takes no more."""
    package = make_package(tmp_path / "p", filters=16)
    rng = np.random.default_rng(0)
    peaks: list[dict[str, float]] = []
    for planes in (4, 32):
        source = tmp_path / f"{planes}.tif"
        tifffile.imwrite(
            source, micrograph(rng, (planes, 512, 512)), photometric="minisblack", metadata={"axes": "ZYX"}
        )
        found = measure(package.path, source, tmp_path / f"{planes}.ome.zarr")
        assert found["peak"] <= 1.15 * found["plan"]
        peaks.append(found)
    assert peaks[1]["peak"] <= 1.05 * peaks[0]["peak"] + 10e6


@pytest.mark.slow
def test_a_memory_limit_is_kept(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", filters=16)
    source = tmp_path / "in.tif"
    tifffile.imwrite(source, micrograph(np.random.default_rng(0), (1, 2048, 2048))[0])
    found = measure(package.path, source, tmp_path / "o.ome.zarr", "420MB")
    assert found["plan"] <= 420e6
    assert found["peak"] <= 1.15 * 420e6
