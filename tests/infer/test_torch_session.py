"""TorchScript and state dicts run as their ONNX twins do, and foreign code runs only for who trusts it."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.model_zoo import MODELS, Model
from voidzoo.infer.networks.device import Device
from voidzoo.infer.networks.torch_network import TorchNetwork
from voidzoo.zoo.errors import DependencyError, DeviceError, PackageError
from voidzoo.zoo.package import Package, open_package

CPU = Device("cpu")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Package:
    """Change rdf.yaml in place and open the package."""
    rdf = yaml.safe_load((folder / "rdf.yaml").read_text())
    change(rdf)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    return open_package(folder)


def with_code(model: Model, code: str, **architecture: Any) -> Package:
    """The package with another Python file and settings."""
    (model.path / "two_convs.py").write_text(code)
    new = {"sha256": hashlib.sha256(code.encode()).hexdigest(), **architecture}
    return edit(model.path, lambda r: r["weights"]["pytorch_state_dict"]["architecture"].update(new))


def network(package: Package, *, trust_code: bool = True) -> TorchNetwork:
    return TorchNetwork(package, package.weights[0], CPU, 1, trust_code=trust_code)


def feed(model: Model) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the network takes, (b, c, y, x) float32 of legal size, and what its ONNX twin makes of it."""
    images = model.images(np.random.default_rng(), {"y": 31, "x": 22})
    return {"raw": images["raw"][None].astype(np.float32)}, model.oracle(images)["out"][None]


@pytest.mark.parametrize("name", ["torchscript", "state_dict"])
def test_torch_computes_what_the_onnx_twin_does(name: str, tmp_path: Path) -> None:
    """Same weights, same numbers, from several threads at once, from read-only memory too."""
    model = MODELS[name](tmp_path)
    package = open_package(model.path)
    run = network(package, trust_code=name == "state_dict").run
    pairs = [feed(model) for _ in range(6)]
    for x, _ in pairs:
        x["raw"].setflags(write=False)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, [x for x, _ in pairs]))
    for (y,), (_, expected) in zip(found, pairs, strict=True):
        assert y.dtype == np.float32
        assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_number_of_torchs_threads_is_given_back(tmp_path: Path) -> None:
    """It is one for the whole process: a training beside would be many times slower on another."""
    package = open_package(MODELS["torchscript"](tmp_path).path)
    before = torch.get_num_threads()
    made = TorchNetwork(package, package.weights[0], CPU, before + 1)
    assert torch.get_num_threads() == before
    seen, inner = [], made._network
    made._network = lambda *x: (seen.append(torch.get_num_threads()), inner(*x))[1]
    made.run(feed(MODELS["torchscript"](tmp_path / "again"))[0])
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_a_state_dict_of_format_04_runs(tmp_path: Path) -> None:
    """`architecture: file.py:Class` with its sha256 and kwargs beside the weights."""
    model = MODELS["state_dict"](tmp_path)

    def change(rdf: dict[str, Any]) -> None:
        state = rdf["weights"]["pytorch_state_dict"]
        new = state.pop("architecture")
        state |= {"architecture": f"{new['source']}:{new['callable']}", "architecture_sha256": new["sha256"],
                  "kwargs": new["kwargs"]}  # fmt: skip
        axes = {"axes": "bcyx", "shape": {"min": [1, 2, 16, 12], "step": [0, 0, 1, 1]}}
        same = {"reference_tensor": "raw", "scale": [1] * 4, "offset": [0] * 4}
        rdf.update(format_version="0.4.9", inputs=[{"name": "raw", **axes}],
                   outputs=[{"name": "out", "axes": "bcyx", "shape": same}])  # fmt: skip

    x, expected = feed(model)
    assert np.allclose(network(edit(model.path, change)).run(x)[0], expected, rtol=1e-4, atol=1e-2)


def test_code_runs_only_for_who_trusts_it_and_only_if_it_is_unchanged(tmp_path: Path) -> None:
    """Without trust_code, and with a Python file of another sha256, not one line of it is executed."""
    model = MODELS["state_dict"](tmp_path)
    trap = tmp_path / "ran"
    code = (model.path / "two_convs.py").read_text() + f"\nimport pathlib; pathlib.Path({str(trap)!r}).touch()\n"
    package = with_code(model, code)
    with pytest.raises(PackageError, match=r"runs Python code of the package(.|\n)*--trust-code"):
        network(package, trust_code=False)
    (model.path / "two_convs.py").write_text(code + "# changed\n")
    with pytest.raises(PackageError, match=r"two_convs\.py has sha256"):
        network(package)
    assert not trap.exists()
    (model.path / "two_convs.py").write_text(code)
    network(package)
    assert trap.exists()


def test_an_architecture_of_an_installed_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import_from` is imported, for who trusts it; a library that is not there is named with how to get it."""
    model = MODELS["state_dict"](tmp_path)
    (tmp_path / "some_library_of_nets.py").write_text((model.path / "two_convs.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)

    def named(library: str, name: str = "TwoConvs") -> Package:
        def change(rdf: dict[str, Any]) -> None:
            old = rdf["weights"]["pytorch_state_dict"]["architecture"]
            rdf["weights"]["pytorch_state_dict"]["architecture"] = {
                "import_from": library, "callable": name, "kwargs": old["kwargs"],
            }  # fmt: skip

        return edit(model.path, change)

    x, expected = feed(model)
    assert np.allclose(network(named("some_library_of_nets")).run(x)[0], expected, rtol=1e-4, atol=1e-2)
    with pytest.raises(PackageError, match="some_library_of_nets has no 'ThreeConvs'"):
        network(named("some_library_of_nets", "ThreeConvs"))
    with pytest.raises(DependencyError, match=r"made of 'no_such_library'(.|\n)*pip install no_such_library"):
        network(named("no_such_library.nets"))
    with pytest.raises(DependencyError, match=r"'another_missing_one', which is not installed"):
        network(with_code(MODELS["state_dict"](tmp_path / "b"), "import another_missing_one\n"))


BAD_CODE = {
    "this is no Python": "cannot load",
    "class TwoConvs:\n    def __init__(self, **k): raise ValueError('too wide')": "too wide",
    "def TwoConvs(**k): return 5": "its code makes a int, no torch network",
    "import torch\nclass TwoConvs(torch.nn.Module):\n    def __init__(self): super().__init__()": "n_in",
    "import torch\ndef TwoConvs(**k): return torch.nn.Conv2d(2, 2, 3)": r"Conv2d",
}


@pytest.mark.parametrize("code", BAD_CODE)
def test_what_foreign_code_raises_is_told_in_its_words(code: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=BAD_CODE[code]) as caught:
        network(with_code(MODELS["state_dict"](tmp_path), code))
    assert "\n" not in caught.value.what + caught.value.where


def test_a_pickle_of_anything_but_tensors_is_not_loaded(tmp_path: Path) -> None:
    """weights_only: a state dict that would call something when it is loaded is a refusal, and nothing is called."""
    model = MODELS["state_dict"](tmp_path)
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trap,)

    buffer = io.BytesIO()
    torch.save({"first.weight": Trap()}, buffer)
    (model.path / "state.pt").write_bytes(buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    package = edit(model.path, lambda r: r["weights"]["pytorch_state_dict"].update(sha256=sha256))
    with pytest.raises(PackageError, match="torch cannot load"):
        network(package)
    assert not trap.exists()


def test_weights_that_are_none_and_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Damaged weights, another sha256, a missing input, a wrong shape, too few outputs: each a PackageError."""
    model = MODELS["torchscript"](tmp_path)
    x, _ = feed(model)
    run = network(open_package(model.path)).run
    with pytest.raises(PackageError, match="needs the input raw"):
        run({})
    with pytest.raises(PackageError, match=r"cannot run on raw 1 x 5 x 31 x 22(.|\n)*channels"):
        run({"raw": np.zeros((1, 5, 31, 22), np.float32)})

    def second(rdf: dict[str, Any]) -> None:
        rdf["outputs"].append({**rdf["outputs"][0], "id": "second"})

    with pytest.raises(PackageError, match="the network returns Tensor; 2 tensors are described"):
        network(edit(model.path, second)).run(x)
    (model.path / "weights.pt").write_bytes(b"no weights")
    with pytest.raises(PackageError, match=r"weights\.pt has sha256"):
        network(open_package(model.path))
    sha256 = hashlib.sha256(b"no weights").hexdigest()
    with pytest.raises(PackageError, match="torch cannot load"):
        network(edit(model.path, lambda r: r["weights"]["torchscript"].update(sha256=sha256)))


SEVERAL = """
import torch
class TwoConvs(torch.nn.Module):
    def __init__(self, **k):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
    def forward(self, raw, hint=None, more=None):
        assert not self.training and not torch.is_grad_enabled()
        return [raw * self.gain + more, raw.new_full((1,), -1.0) if hint is None else hint]
"""


def test_inputs_go_in_and_outputs_come_out_in_the_order_of_the_package(tmp_path: Path) -> None:
    """Several of both; an optional input that is left out is None; evaluation mode, no gradients."""
    model = MODELS["state_dict"](tmp_path)
    with_code(model, SEVERAL)
    torch.save({"gain": torch.tensor([3.0])}, model.path / "state.pt")

    def change(rdf: dict[str, Any]) -> None:
        rdf["inputs"] += [{**rdf["inputs"][0], "id": "hint", "optional": True}, {**rdf["inputs"][0], "id": "more"}]
        rdf["outputs"].append({**rdf["outputs"][0], "id": "second"})
        digest = hashlib.sha256((model.path / "state.pt").read_bytes()).hexdigest()
        rdf["weights"]["pytorch_state_dict"]["sha256"] = digest

    run = network(edit(model.path, change)).run
    raw, more, hint = np.random.default_rng().standard_normal((3, 1, 2, 16, 12)).astype(np.float32)
    first, second = run({"more": more, "raw": raw})
    assert np.allclose(first, raw * 3 + more, atol=1e-6)
    assert np.array_equal(second, [-1.0])
    assert np.array_equal(run({"more": more, "raw": raw, "hint": hint})[1], hint)


@pytest.mark.parametrize("device", [Device("cuda", 99), Device("openvino")])
def test_a_device_that_torch_has_not_is_refused(device: Device, tmp_path: Path) -> None:
    package = open_package(MODELS["torchscript"](tmp_path).path)
    with pytest.raises(
        DeviceError, match=rf"{device} was asked for, but this torch .* cannot use it(.|\n)*--device cpu"
    ):
        TorchNetwork(package, package.weights[0], device, 1)


def test_without_torch_it_is_named(tmp_path: Path) -> None:
    """In an environment without torch the module can be imported; running is a DependencyError that says what to do."""
    folder = MODELS["torchscript"](tmp_path).path
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from voidzoo.infer.networks.torch_network import TorchNetwork\n"
        "from voidzoo.infer.networks.device import Device\n"
        "from voidzoo.zoo.package import open_package\n"
        "from voidzoo.zoo.errors import DependencyError\n"
        f"package = open_package({str(folder)!r})\n"
        "try: TorchNetwork(package, package.weights[0], Device('cpu'), 1)\n"
        "except DependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "need torch, which is not installed" in done.stdout
    assert "pip install torch" in done.stdout
