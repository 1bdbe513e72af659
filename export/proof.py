"""The proof: torch, ONNX and tiled ONNX agree, and bioimageio.core runs what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.grid import Axis, round_up
from ..infer.networks.device import cpu_count, find_device
from ..infer.networks.session import Session
from ..infer.planning import make_plan
from ..infer.run import run_in_memory
from ..zoo.errors import ProofFailed
from ..zoo.loose import mapped
from ..zoo.open import open_image
from ..zoo.package import Package, torch_is_there
from ..zoo.package_files import MAX_TEXT
from ..zoo.pictures import contrast, side_by_side
from .consumer import own_architecture
from .tensors import lively, test_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.package import Weights

LIMIT = 1e-4
"""The largest difference that passes, in standard deviations of the output: float rounding, nothing else."""

Runner = Callable[["NDArray[np.float32]"], "NDArray[np.float32]"]


@dataclass(frozen=True)
class Check:
    """One line of a proof. difference and limit are in standard deviations of the output, NaN where none applies.

    ran: False where it could not be looked at; then it is no reason to refuse the package.
    """

    name: str
    passed: bool
    detail: str
    difference: float = float("nan")
    ran: bool = True

    def __str__(self) -> str:
        word = "FAILED" if not self.passed else "ok" if self.ran else "left out"
        return f"{self.name:<24} {self.detail:<40} {word}"


def check_file(package: Package) -> Check:
    """The ONNX file read back: opset, IR version, sizes that are free. That of a network that was trained here must be
    what every program reads; of those of others it is told (`consumers` says where they open).
    """
    import onnx
    from google.protobuf.message import DecodeError

    from .onnx_file import read_back

    ours = "method" in package.ours
    two = any(w.options.get("external_data") for w in package.weights if w.kind == "onnx")
    try:
        found = read_back(package.onnx())
    except ProofFailed as error:
        return Check("onnx file", not ours, error.what.removeprefix("the ONNX file ").rstrip("."))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError) as error:
        return Check("onnx file", not ours, f"onnx finds a fault: {' '.join(str(error).split())[:160]}")
    files = "two files" if two else "one file"
    detail = f"opset {found['opset']}, IR {found['ir_version']}, {files}, batch and space free"
    return Check("onnx file", not (ours and two), detail)


def check_reference(package: Package, session: Session, keep: Path) -> Check:
    """The test output is what onnxruntime makes of the test input."""
    test_input, test_output = test_tensors(package)
    return compare("onnx = test output", test_output, session.run([test_input])[0], keep)


def check_sizes(name: str, package: Package, session: Session, other: Runner, keep: Path) -> Check:
    """ONNX and another form of the network agree at two batch sizes and three sizes; the worst of the six."""
    test_input, _ = test_tensors(package)
    worst: Check | None = None
    for batch in (1, 2):
        for steps in (0, 1, 3):
            sizes = [r.minimum + steps * r.step for r in package.rules.values()]
            x = _cut(test_input, batch, sizes)
            check = compare(f"{name} = onnx", other(x), session.run([x])[0], keep)
            if worst is None or not check.passed or check.difference > worst.difference:
                worst = check
            if not check.passed:
                return check
    assert worst is not None
    return worst


def check_torch_weights(package: Package, weights: Weights, session: Session, keep: Path, *, trust_code: bool) -> Check:
    """TorchScript, or a state dict in its architecture, is the network of the ONNX file.

    A state dict runs Python code of the package: that of voidzoo, or with `trust_code` any other.
    """
    name = {"torchscript": "torchscript", "pytorch_state_dict": "state dict"}[weights.kind]
    if not torch_is_there():
        return Check(f"{name} = onnx", True, "torch is not installed", ran=False)
    if weights.kind == "pytorch_state_dict" and not (trust_code or _own_architecture(package, weights)):
        return Check(f"{name} = onnx", True, "it runs code of the package (--trust-code)", ran=False)
    from ..infer.networks.torch_network import TorchNetwork

    trusted = trust_code or weights.kind == "pytorch_state_dict"  # whose code is ours
    network = TorchNetwork(package, weights, find_device("cpu"), cpu_count(), trust_code=trusted)
    return check_sizes(name, package, session, lambda x: network.run({package.main.id: x})[0], keep)


def _own_architecture(package: Package, weights: Weights) -> bool:
    """Whether what makes the network is this voidzoo's, byte by byte, and lies in the package itself."""
    about = mapped(weights.options.get("architecture"))
    source = about.get("source")
    if not isinstance(source, str) or "://" in source or "import_from" in about or package.format[:3] != "0.5":
        return False
    return hashlib.sha256(package.files.read(source, limit=MAX_TEXT)).hexdigest() == own_architecture()


def check_tiles(package: Package, reference: Runner, keep: Path) -> Check:
    """Tiles with the declared halo, in blocks, make the same as one run on the whole image."""
    test_input, _ = test_tensors(package)
    model = {a: Axis(0, r.step, r.minimum, r.halo) for a, r in package.rules.items()}
    # sides that are multiples of nothing; two blocks along each axis, two tiles along each block
    tile = {a: axis.smallest_tile + 2 * axis.step for a, axis in model.items()}
    sides = {a: 2 * (tile[a] - axis.margin) + axis.step + 1 for a, axis in model.items()}
    block = {a: round_up(sides[a] // 2, axis.step) for a, axis in model.items()}
    pixels = _cut(test_input, 1, list(sides.values()))[0]
    image = open_image(
        pixels if pixels.shape[0] > 1 else pixels[0], axes=("c" if pixels.shape[0] > 1 else "") + package.axes
    )
    plan = make_plan(
        package, image, dtype="float32", tile=tuple(tile.values()), block=tuple(block.values()), device="cpu"
    )
    (tiled,) = run_in_memory(plan).values()
    extended = [(0, 0), *((0, Axis(n, r.step, r.minimum).extended - n)
                          for n, r in zip(sides.values(), package.rules.values(), strict=True))]  # fmt: skip
    whole = reference(np.pad(pixels, extended, mode="symmetric")[None])
    whole = whole[0][(slice(None), *(slice(0, n) for n in sides.values()))]
    if any(not facts["exact"] for facts in plan.halo_facts.values()):  # then no halo is enough, and it was told
        why = next((str(facts["note"]) for facts in plan.halo_facts.values() if not facts["exact"]), "")
        return Check("whole = tiled", True, why, ran=False)
    check = compare("whole = tiled", whole.reshape(tiled.shape), tiled, keep)
    halo = ", ".join(f"{a} {r.halo}" for a, r in package.rules.items())
    return Check(check.name, check.passed, f"{check.detail}, halo {halo}, {plan.n_tiles} tiles", check.difference)


CORE_SECONDS = 600
"""How long bioimageio.core's own test may take."""
DATA_ALONE = ("onnx", "torchscript")
"""Weights that run no Python code of the package; TorchScript is looked through first."""


def check_in_core(package: Package, *, trust_code: bool = False) -> Check:
    """bioimageio.core's own test, without what runs code of the package unless it is trusted; that is told.

    Raises PackageError for weights that are refused before anything runs.
    """
    if any(w.kind == "onnx" for w in package.weights):
        package.onnx()
    if trust_code:
        return check_consumer(Path(package.path), trust_code=True)
    kinds = [*(w.kind for w in package.weights), *package.other_weights]
    ours = [w.kind for w in package.weights if w.kind == "pytorch_state_dict" and _own_architecture(package, w)]
    run = [kind for kind in kinds if kind in (*DATA_ALONE, *ours)]
    why = [f"{kind} runs code of the package" for kind in kinds if kind not in run]
    steps = {s.name for t in (*package.inputs, *package.outputs) for s in t.steps}
    if "custom" in steps:
        run, why = [], ["its custom steps run code of the package"]
    if others := package.files.other_descriptions():
        run, why = [], [f"core may read {others[0]} instead of {package.files.description}"]
    if not why:
        return check_consumer(Path(package.path))
    found = check_consumer(Path(package.path), run)
    detail = f"{found.detail}; left out: {', '.join(why)} (--trust-code)"
    return Check(found.name, found.passed, detail, ran=bool(run) or not found.passed)


def check_consumer(path: Path, formats: list[str] | None = None, *, trust_code: bool = False) -> Check:
    """bioimageio.core's own test of the package says `passed`, at its default tolerance.

    formats: of weights that it runs, None for all; with none of them it looks at the description alone.
    In a process of its own: it tries every onnxruntime provider that is compiled in and reports the missing libraries.
    It looks addresses and accounts up online, and fails where it cannot; a missing network is a timeout to it here,
    which it takes for a warning, and is told.
    """
    import json
    import subprocess
    import sys

    asked = json.dumps({"path": str(path), "formats": formats, "trust_code": trust_code})
    # -P: else a file of the current folder, which may be the package, could take the place of a library
    command = [sys.executable, "-P", "-m", "voidzoo.export.consumer", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CORE_SECONDS)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Check("bioimageio.core", False, f"did not end within {CORE_SECONDS} s")
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check("bioimageio.core", False, f"did not run: {last[:200]}")
    detail = f"status {found['status']}, {found['complete']:.0%} of all metadata"
    detail += f", not looked up at {', '.join(found['offline'])}: no network" if found["offline"] else ""
    detail += f": {' '.join(found['errors'][0].split())[:160]}" if found["errors"] else ""
    right = "valid-format" if formats == [] else "passed"
    return Check(f"bioimageio.core {found['version']}", found["status"] == right, detail)


def _cut(x: NDArray[np.float32], batch: int, sizes: list[int]) -> NDArray[np.float32]:
    """The test input, mirrored until it is large enough, cut to `sizes`; further planes of the batch are shifted.

    One that is constant, which shows nothing, is replaced by noise.
    """
    if not np.ptp(x) > 0:
        x = lively(x)[: x.size].reshape(x.shape)
    grown = np.pad(x[0], [(0, 0), *((0, max(0, n + batch - have)) for n, have in zip(sizes, x.shape[2:], strict=True))],
                   mode="symmetric")  # fmt: skip
    planes = [grown[(slice(None), *(slice(i, i + n) for n in sizes))] for i in range(batch)]
    return np.ascontiguousarray(np.stack(planes))


def compare(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], keep: Path) -> Check:
    """Two results that must be one, of any shape; those that differ are kept, with a picture.

    Where they are masks of 0 and 1, a pixel in 10,000 may lie so near to the threshold that rounding decides.
    """
    same = found.shape == expected.shape
    difference = float(np.abs(found - expected).max() / (expected.std() + 1e-12)) if same else float("inf")
    flipped = float((found != expected).mean()) if difference > LIMIT and np.isfinite(difference) else 0.0
    if 0 < flipped <= LIMIT and set(np.unique(expected)) <= {0, 1} and set(np.unique(found)) <= {0, 1}:
        return Check(name, True, f"masks differ in {flipped:.1e} of the pixels", difference)
    passed = bool(difference <= LIMIT)
    if not passed:
        keep.mkdir(parents=True, exist_ok=True)
        word = name.replace(" = ", "-").replace(" ", "-")
        np.save(keep / f"{word}-expected.npy", expected)
        np.save(keep / f"{word}-found.npy", found)
        if same:
            _draw(expected, found, keep / f"{word}-difference.png")
    return Check(name, passed, f"max difference {difference:.1e} std (limit {LIMIT:.0e})", difference)


def _draw(expected: NDArray[np.float32], found: NDArray[np.float32], path: Path) -> None:
    """Both and their difference, in the plane in which it is largest. (..., y, x)"""
    off = np.abs(np.nan_to_num(found - expected, nan=np.inf)).reshape(-1, *expected.shape[-2:])
    worst = int(off.max(axis=(1, 2)).argmax())
    planes = [np.asarray(p.reshape(off.shape)[worst]) for p in (expected, found)]
    most = float(np.abs(planes[1] - planes[0]).max())
    grey = contrast(planes[0])
    side_by_side(
        [*planes, planes[1] - planes[0]],
        ["expected", "found", f"difference, +-{most:.3g}"],
        [grey, grey, (-most, most)],
        path,
    )


def prove(
    package: Package,
    reference: Runner | None,
    keep: Path,
    tell: Callable[[Check], None] = lambda _check: None,
    *,
    trust_code: bool = False,
    name: str = "torch",
    more: Sequence[Callable[[], Check]] = (),
) -> list[Check]:
    """All checks of a package; `reference` is the network that it was made of, None where only the package is at hand.

    trust_code: run Python code of the package. name: of the reference. more: what is checked beside. Raises ProofFailed
    after the last check when one failed; the tensors that differ then lie in `keep`.
    """
    steps = list(more)
    if package.plain and package.weights[0].kind == "onnx":  # others: only what their own makers ask for
        session = Session(package, find_device("cpu"))
        whole: Runner = reference or (lambda x: session.run([x])[0])
        steps.append(lambda: check_reference(package, session, keep))
        if reference is not None:
            steps.append(lambda: check_sizes(name, package, session, reference, keep))
        steps += [
            partial(check_torch_weights, package, weights, session, keep, trust_code=trust_code)
            for weights in package.weights[1:]
        ]
        steps.append(lambda: check_tiles(package, whole, keep))
    if any(w.kind == "onnx" for w in package.weights):
        steps.append(lambda: check_file(package))
    steps.append(lambda: check_in_core(package, trust_code=trust_code))
    checks = []
    for step in steps:
        checks.append(step())
        tell(checks[-1])
    if failed := [c for c in checks if not c.passed]:
        raise ProofFailed(
            f"{package.name} is not proved: {failed[0].name}: {failed[0].detail}.",
            where=f"the tensors that differ lie in {keep}" if keep.exists() else "",
            mend="this is a fault of the model or of voidzoo, not of your data; report it with these tensors",
        )
    return checks


def summary(checks: list[Check]) -> list[Mapping[str, Any]]:
    """The proof for records, JSON-able."""
    return [{"name": c.name, "passed": c.passed, "ran": c.ran, "detail": c.detail} for c in checks]
