"""OpenVINO where it is worth it: the same result, pinned when begun, and never a reason to fail."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import voidzoo as vz
from tests.infer.test_models import plan_of, predicted, spatial
from tests.model_zoo import MODELS
from tests.packages import make_package, micrograph, whole
from voidzoo.infer import planning
from voidzoo.infer.blocks import tiles_of
from voidzoo.infer.networks import openvino_network, runtimes
from voidzoo.infer.networks.device import cpu_count, find_device, openvino_installed
from voidzoo.infer.networks.session import Session
from voidzoo.infer.run import run_in_memory
from voidzoo.zoo.errors import DependencyError

STD = 1e-4
"""How far the two runtimes may be from each other, in units of the output's std."""

pytestmark = pytest.mark.skipif(not openvino_installed(), reason="OpenVINO is for x86-64")

NETWORKS: dict[str, dict[str, Any]] = {
    "2d": {"dims": 2, "depth": 2, "filters": 8},
    "2d-residual": {"dims": 2, "depth": 3, "residual": True},
    "3d": {"dims": 3, "depth": 2, "filters": 4, "pool": [2, 2, 2]},
    "3d-flat": {"dims": 3, "depth": 2, "filters": 4},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> vz.Package:
    return make_package(tmp_path_factory.mktemp("p"), depth=1)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO wherever it computes the same."""
    monkeypatch.setattr(runtimes, "WORTH_IT", dict.fromkeys(range(1, 5), 0.0))
    monkeypatch.setattr(runtimes, "AS_FAST", float("inf"))


def image_for(name: str, rng: np.random.Generator) -> np.ndarray:
    return micrograph(rng, (21, 70, 85) if name.startswith("3d") else (3, 150, 170))


def in_memory(plan: vz.Plan) -> np.ndarray:
    """The (only) array of a result."""
    return next(iter(run_in_memory(plan).values()))


def off(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_in_openvino_equal_the_whole_in_onnxruntime(name: str, tmp_path: Path) -> None:
    package = make_package(tmp_path / name, seed=3, **NETWORKS[name])
    x = image_for(name, np.random.default_rng())
    expected = whole(package, x[None])[0] if name.startswith("3d") else np.concatenate(
        [whole(package, plane[None]) for plane in x])  # fmt: skip
    block = (12, 32, 40) if name.startswith("3d") else (64, 64)
    for how in ({}, {"block": block}):
        plan = vz.plan(package, x, axes="zyx", device="cpu", dtype="float32", **how)
        assert plan.runtime == "openvino"
        assert "OpenVINO" in str(plan)
        assert off(in_memory(plan), expected) <= STD
    result = vz.predict(plan, tmp_path / "o.ome.zarr")
    assert off(result.image.read(), expected) <= STD
    stored = zarr.open_group(tmp_path / "o.ome.zarr", mode="r").attrs["voidzoo"]
    assert stored["plan"]["runtime"] == "openvino"
    assert stored["versions"]["openvino"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", MODELS)
def test_any_model_is_the_same_or_stays_in_onnxruntime(name: str, tmp_path: Path) -> None:
    """Whole and in tiles; a model that OpenVINO cannot run, or runs otherwise, is not given to it."""
    model = MODELS[name](tmp_path)
    grown = {a: n * 2 + 13 if a in "yx" else n + 5 for a, n in model.legal.items() if a in "tzyx"}
    images = model.images(np.random.default_rng(4), grown)
    expected = model.oracle(images)
    plan = plan_of(model, images)
    tile = tuple(axis.smallest_tile for axis in plan.model_axes.values())
    for how in [{}] if model.unbounded else [{}, {"tile": tile}]:
        for output, found in predicted(model, images, **how).items():
            wanted = expected[output].reshape(found.shape)
            assert np.abs(found - wanted).max() <= STD * wanted.std() + 1e-6


@pytest.mark.usefixtures("always")
def test_most_models_run_in_openvino(tmp_path: Path) -> None:
    taken = 0
    for name, write in MODELS.items():
        model = write(tmp_path)
        taken += plan_of(model, model.images(np.random.default_rng(5))).runtime == "openvino"
        assert name
    assert taken > len(MODELS) / 2


def test_how_busy_the_machine_is_does_not_choose_the_runtime(
    package: vz.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is counted in processor time: beside programs that take all processors it is no more of it."""
    x = micrograph(np.random.default_rng(), (40, 256, 256))
    quiet = vz.plan(package, x, axes="zyx", device="cpu")
    (measured,) = quiet.session.probed.values()
    monkeypatch.setattr(runtimes, "WORTH_IT", {2: 3 * quiet.seconds * measured.got})
    spin = "import time\nprint(flush=True)\nend = time.time() + 60\nwhile time.time() < end: pass"
    with contextlib.ExitStack() as stack:
        for _ in range(8 * cpu_count()):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE))
            stack.callback(busy.kill)
            assert busy.stdout is not None
            busy.stdout.readline()
        plan = vz.plan(package, x, axes="zyx", device="cpu")
    assert plan.runtime == "", "by the clock it takes many times as long, and would nearly always have been chosen"


@pytest.mark.usefixtures("always")
def test_what_was_begun_in_openvino_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a block, continued where nothing would choose it; and where it is not installed that is an error."""
    import threading

    package = make_package(tmp_path / "p", depth=1)
    x = micrograph(np.random.default_rng(), (4, 90, 80))
    stop = threading.Event()
    settings: dict[str, Any] = {"axes": "zyx", "device": "cpu", "block": (32, 32), "out": tmp_path / "o.ome.zarr"}
    with pytest.raises(KeyboardInterrupt):
        vz.predict(
            package, x, stop=stop, watch=lambda e: stop.set() if isinstance(e, vz.BlockDone) else None, **settings
        )
    begun = json.loads((tmp_path / "o.ome.zarr.part" / "plan.json").read_text())
    assert begun["runtime"] == "openvino"
    monkeypatch.setattr(runtimes, "WORTH_IT", {})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(DependencyError, match="begun with OpenVINO, which is not installed") as caught:
            vz.predict(package, x, **settings)
        assert "pip install" in caught.value.mend
        assert "--overwrite" in caught.value.mend
    result = vz.predict(package, x, **settings)
    assert result.plan.runtime == "openvino"
    assert 0 < result.blocks < result.plan.n_blocks
    expected = np.concatenate([whole(package, plane[None]) for plane in x])
    assert np.abs(result.image.read() - np.clip(np.rint(expected), 0, 65535)).max() <= 1


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "fault", ["not installed", "cannot load", "cannot run", "computes something else", "returns NaN"]
)
def test_onnxruntime_does_what_openvino_does_not(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_package(tmp_path / "p", depth=1)
    x = micrograph(np.random.default_rng(), (2, 90, 80))

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("no such operator")

    network = openvino_network.OpenVinoNetwork
    honest = network.run
    if fault == "not installed":
        monkeypatch.setattr(runtimes, "openvino_installed", lambda: False)
    if fault == "cannot load":
        monkeypatch.setattr(network, "__init__", refuse)
    if fault == "cannot run":
        monkeypatch.setattr(network, "run", refuse)
    if fault == "computes something else":
        monkeypatch.setattr(network, "run", lambda self, given: [1.01 * y for y in honest(self, given)])
    if fault == "returns NaN":
        monkeypatch.setattr(network, "run", lambda self, given: [np.nan * y for y in honest(self, given)])
    plan = vz.plan(package, x, axes="zyx", device="cpu", dtype="float32")
    assert plan.runtime == ""
    expected = np.concatenate([whole(package, plane[None]) for plane in x])
    assert off(in_memory(plan), expected) <= 1e-5


def test_it_can_be_asked_for(tmp_path: Path) -> None:
    """By its word also for a job of a blink, whatever is faster; weights that it cannot read are refused."""
    package = make_package(tmp_path / "p", depth=1)
    x = micrograph(np.random.default_rng(), (2, 90, 80))
    plan = vz.plan(package, x, axes="zyx", device="openvino", dtype="float32")
    assert plan.runtime == "openvino"
    assert "OpenVINO) (asked: openvino)" in str(plan)
    expected = np.concatenate([whole(package, plane[None]) for plane in x])
    assert off(in_memory(plan), expected) <= STD
    with pytest.raises(vz.VoidzooError, match=r"float16 is made and measured in onnxruntime(.|\n)*--device cpu"):
        vz.plan(package, x, axes="zyx", device="openvino", precision="fp16")
    model = MODELS["torchscript"](tmp_path)
    image = model.images(np.random.default_rng())[model.main]
    with pytest.raises(vz.VoidzooError, match=r"has no ONNX weights(.|\n)*--device cpu"):
        vz.plan(model.path, image, axes=spatial(model.letters[model.main]), device="openvino")


@pytest.mark.usefixtures("always")
def test_onnxruntime_when_it_is_asked_for(tmp_path: Path) -> None:
    """Two runs that must agree to the last bit name their runtime; what is begun in one goes on in it."""
    package = make_package(tmp_path / "p", depth=1)
    x = micrograph(np.random.default_rng(), (2, 90, 80))
    plan = vz.plan(package, x, axes="zyx", device="onnxruntime", dtype="float32")
    assert not plan.runtime
    assert "OpenVINO" not in str(plan)
    assert vz.plan(package, x, axes="zyx", device="cpu", dtype="float32").runtime == "openvino"
    assert str(find_device("onnxruntime")) == "cpu"


def test_a_short_job_does_not_load_it(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", depth=1)
    tifffile.imwrite(tmp_path / "in.tif", micrograph(np.random.default_rng(), (80, 80)))
    script = "import sys; from voidzoo.cli import main; main(sys.argv[1:]); assert 'openvino' not in sys.modules"
    line = [sys.executable, "-c", script, "predict", package.path, str(tmp_path / "in.tif"), "-o",
            str(tmp_path / "o.ome.zarr"), "--device", "cpu"]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


QUIET = """
import os, sys, threading
import numpy as np
import voidzoo as vz
from voidzoo.infer.networks import runtimes
runtimes.WORTH_IT, runtimes.AS_FAST = {2: 0.0}, float("inf")
plan = vz.plan(sys.argv[1], np.random.default_rng(0).random((90, 80), np.float32), axes="yx", device="cpu")
assert plan.runtime == "openvino"
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__, "openvino_telemetry" in sys.modules, os.listdir(os.path.expanduser("~")))
import openvino_telemetry  # whoever else wants it gets it
"""


def test_nothing_is_reported(tmp_path: Path) -> None:
    """Both runtimes would send usage data and leave an identity behind, unless they run in CI."""
    package = make_package(tmp_path / "p", depth=1)
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "LOCALAPPDATA": str(home), "USERPROFILE": str(home)}
    for name in ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    line = [sys.executable, "-c", QUIET, package.path]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub False []\n", (done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr


CTRL_C = """
import gc, os, signal, sys, threading, time
import numpy as np
import voidzoo as vz
from voidzoo.infer.networks import runtimes
runtimes.WORTH_IT, runtimes.AS_FAST = {2: 0.0}, float("inf")
plans = [vz.plan(sys.argv[1], np.random.default_rng(0).random((90, 80), np.float32), axes="yx", device="cpu")]
assert plans[0].runtime == "openvino"
threading.Thread(target=lambda: (plans.clear(), gc.collect())).start()  # the session goes on another thread
time.sleep(0.2)
for _ in range(20):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    except KeyboardInterrupt:
        pass
print("alive")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself SIGINT")
def test_ctrl_c_after_a_session_has_gone(tmp_path: Path) -> None:
    """OpenVINO's stack for signal handlers must not go with the session: the process would end by SIGSEGV."""
    package = make_package(tmp_path / "p", depth=1)
    done = subprocess.run([sys.executable, "-c", CTRL_C, package.path], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n", (done.returncode, done.stderr)


SCRIPT = """
import json, sys
import voidzoo as vz
from voidzoo.infer.networks import runtimes
runtimes.WORTH_IT, runtimes.AS_FAST = {2: 0.0, 3: 0.0}, float("inf")
package, source, out, memory = sys.argv[1:]
result = vz.predict(package, source, out=out, device="cpu", **({"memory": memory} if memory else {}))
print(json.dumps({"peak": result.peak_memory, "plan": result.plan.memory.total, "runtime": result.plan.runtime}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "memory"), [
    ("2d", (4, 1024, 1024), ""), ("2d", (2, 2048, 2048), "700MB"), ("3d", (48, 192, 192), ""),
    ("3d-flat", (32, 256, 256), "600MB"),
])  # fmt: skip
def test_peak_memory_is_planned(name: str, shape: tuple[int, ...], memory: str, tmp_path: Path) -> None:
    package = make_package(tmp_path / name, **{**NETWORKS[name], "filters": 16})
    tifffile.imwrite(tmp_path / "in.tif", micrograph(np.random.default_rng(), shape), photometric="minisblack",
                     metadata={"axes": "ZYX"})  # fmt: skip
    line = [sys.executable, "-c", SCRIPT, package.path, str(tmp_path / "in.tif"), str(tmp_path / "o.ome.zarr"), memory]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runtime"] == "openvino"
    assert found["peak"] <= 1.15 * found["plan"]
    if memory:
        assert found["peak"] <= 1.15e6 * int(memory.removesuffix("MB"))


@pytest.mark.usefixtures("always")
def test_libraries_that_were_loaded_in_vain_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO stays in memory when it is found not to do: tiles shrink by as much, and the plan tells of it."""
    loaded = 80_000_000
    package = make_package(tmp_path / "p", depth=2, filters=16)
    x = micrograph(np.random.default_rng(), (2, 1100, 1200))
    process = planning._process_memory()  # it grows and shrinks from plan to plan
    monkeypatch.setattr(planning, "_process_memory", lambda: process)
    memory = process + 300_000_000
    settings: dict[str, Any] = {"axes": "zyx", "device": "cpu", "memory": memory}
    monkeypatch.setattr(runtimes, "_openvino", lambda *_: (None, None, 0))
    free = vz.plan(package, x, **settings)
    monkeypatch.setattr(runtimes, "_openvino", lambda *_: (None, None, loaded))
    found = vz.plan(package, x, **settings)
    assert not found.runtime
    assert found.memory.process - free.memory.process == pytest.approx(loaded, abs=10_000_000)
    assert found.memory.total <= memory
    assert np.prod(list(found.tile.values())) < np.prod(list(free.tile.values()))


@pytest.mark.usefixtures("always")
def test_openvino_is_not_loaded_where_tiles_need_the_memory_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_package(tmp_path / "p", depth=2, filters=16)
    x = micrograph(np.random.default_rng(), (2, 600, 700))
    free = planning._process_memory()
    monkeypatch.setattr(planning, "_process_memory", lambda: free)
    asked = []
    monkeypatch.setattr(runtimes, "_openvino", lambda *_: asked.append(1) or (None, None, 0))
    vz.plan(package, x, axes="zyx", device="cpu", memory=free + int(3 * runtimes.LIBRARIES))
    assert not asked
    vz.plan(package, x, axes="zyx", device="cpu", memory=free + int(6 * runtimes.LIBRARIES))
    assert asked


def test_a_network_compiled_for_one_shape_runs_others_too(tmp_path: Path) -> None:
    """What was compiled for one shape is compiled again for the next, or for any: the same result in any order."""
    package = make_package(tmp_path / "p", depth=2, filters=8)
    other = Session(package, find_device("cpu"), runtime="openvino")
    reference = Session(package, find_device("cpu"))
    rng = np.random.default_rng()
    for one_shape, shape in [(False, (1, 64, 80)), (True, (1, 64, 80)), (True, (1, 96, 48)), (True, (2, 96, 48)),
                             (False, (2, 96, 48)), (False, (1, 32, 48)), (True, (1, 32, 48))]:  # fmt: skip
        other.expect((shape[0], 1, *shape[1:]) if one_shape else None)
        x = micrograph(rng, (shape[0], 1, *shape[1:]), "float32")
        assert off(other.run([x])[0], reference.run([x])[0]) <= STD


def test_a_shape_that_cannot_be_compiled_is_told_by_the_run_and_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_package(tmp_path / "p", depth=1)
    session = Session(package, find_device("cpu"), runtime="openvino")
    x = micrograph(np.random.default_rng(), (1, 1, 64, 48), "float32")
    session.expect(x.shape)
    before = session.run([x])[0]

    def full(*_: Any) -> None:
        raise MemoryError("full")

    with monkeypatch.context() as broken:
        broken.setattr(openvino_network.OpenVinoNetwork, "_compiled", full)
        session.expect((1, 1, 96, 96))
        with pytest.raises(MemoryError, match="full"):
            session.run([micrograph(np.random.default_rng(), (1, 1, 96, 96), "float32")])
    session.expect(x.shape)
    assert np.array_equal(session.run([x])[0], before)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(40, 300), st.integers(40, 300)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(4, 8),
)
def test_one_shape_is_what_all_runs_have(
    package: vz.Package, size: tuple[int, int, int], blocks: tuple[int, int], tile: int
) -> None:
    """Told of a plan without walking it; here every run of every block is looked at."""
    x = np.zeros(size, "uint16")
    block = tuple(16 * b for b in blocks)
    plan = vz.plan(package, x, axes="zyx", device="cpu", block=block, tile=(16 * tile, 16 * tile))
    shapes = set()
    for k in range(plan.n_blocks):
        spans = plan.block_spans(k)
        for tiles in tiles_of(plan.model_axes, spans, plan.tile):
            count = spans["z"].size
            for start in range(0, count, plan.batch):
                shapes.add((min(plan.batch, count - start), *(t.read.size for t in tiles.values())))
    assert plan.one_shape == (len(shapes) == 1)
    n, y, x_ = next(iter(shapes))
    assert plan.run_shape == ((n, 1, y, x_) if len(shapes) == 1 else None)
