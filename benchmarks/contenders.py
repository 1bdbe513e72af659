"""Who runs: voidzoo, the floor, and its peers; each as a process of its own, from file to file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images import Picture, as_zarr
from machine import has_bf16, processors
from measure import Measured, run
from nets import NETS, facts_of, package_path
from rows import Case

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "peers"))
import environments  # noqa: E402  (in benchmarks/peers)

TILES = {
    ("cpu", 2): "1x256x256,1x512x512,1x1024x1024,4x256x256",
    ("cpu", 3): "1x16x128x128,1x32x128x128,1x64x128x128,1x32x256x256",
    ("cuda", 2): "8x512x512,1x1024x1024,4x1024x1024,1x2048x2048",
    ("cuda", 3): "1x32x128x128,4x32x128x128,1x64x256x256,1x64x512x512",
    ("toy", 2): "1x64x64,2x64x64",
    ("toy", 3): "1x16x32x32",
}
"""What the floor is tried with, by kind of device and the axes that the network reads."""


class Unavailable(Exception):  # noqa: N818  (no fault)
    """A contender that cannot run here; the text says why."""


@dataclass(frozen=True)
class Peer:
    """How a peer is called. environment: its own, or "" for voidzoo's. model: what it reads. exact: runs our network."""

    script: str
    environment: str = ""
    model: str = "onnx"
    ending: str = ".npy"
    extra: tuple[str, ...] = ()
    from_zarr: bool = False

    @property
    def exact(self) -> bool:
        """Whether it runs the network that all others run."""
        return self.model != "checkpoint"


PEERS = {
    "bioimageio-default": Peer("run_bioimageio.py", model="package", extra=("--setting", "default")),
    "bioimageio-tuned": Peer("run_bioimageio.py", model="package"),
    "dask": Peer("run_dask.py", "dask", ending=".zarr"),
    "monai-default": Peer("run_monai.py", "monai", extra=("--setting", "default")),
    "monai-tuned": Peer("run_monai.py", "monai"),
    "careamics": Peer("run_careamics.py", "careamics", model="checkpoint"),
    "careamics-disk": Peer("run_careamics.py", "careamics", "checkpoint", ".folder", ("--disk",), from_zarr=True),
}
OURS = ("voidzoo", "voidzoo-lean")
CONTENDERS = (*OURS, *PEERS)


@dataclass(frozen=True)
class Outcome:
    """One run. facts: what the contender tells of it. errors: see `oracle.errors`, where they were asked for."""

    measured: Measured
    facts: dict[str, Any]
    errors: dict[str, float] | None = None


@dataclass
class Workshop:
    """Where packages, images, environments and results lie, and how runs are made.

    environments: their folder. offline: none is made. toy: short trainings, small floors.
    """

    cache: Path
    environments: Path
    device: str = "cpu"
    offline: bool = False
    toy: bool = False
    timeout: float = 3600.0
    floor_seconds: float = 3.0
    options: str = field(default="", repr=False)

    def supports(self, option: str) -> bool:
        """Whether `voidzoo predict` has this option, and for bf16 whether the processor has it."""
        if option == "bf16" and not has_bf16():
            return False
        if not self.options:
            asked = run(
                [sys.executable, "-m", "voidzoo", "predict", "--help"], environment={**_path(), "COLUMNS": "200"}
            )
            self.options = asked.output
        return option in self.options

    def package(self, net: str) -> Path:
        """The package of a network, made in another process if it is not there. Raises RuntimeError."""
        name = net.removesuffix("-trained")
        path = package_path(self.cache / "models", name, trained=name != net, toy=self.toy)
        if not path.exists():
            command = [sys.executable, str(HERE / "nets.py"), str(path.parent), net, *(["--toy"] if self.toy else [])]
            made = run(command, environment=_path())
            if not path.exists():
                raise RuntimeError(f"{net} could not be made: {last_lines(made.output)}")
        return path

    def onnx(self, net: str) -> Path:
        """The weights of a package as a file beside it."""
        package = self.package(net)
        path = package.with_suffix(".onnx")
        if not path.exists():
            path.write_bytes(facts_of(package)["onnx"])
        return path

    def image(self, picture: Picture) -> Path:
        """The image as a TIFF."""
        return picture.write(self.cache / "images")

    def python(self, name: str) -> Path:
        """The interpreter of a peer's environment. Raises Unavailable where there is none and none may be made."""
        if not name:
            return Path(sys.executable)
        stamp = self.environments / name / ".complete"
        if self.offline and not stamp.exists():
            raise Unavailable(f"no environment {name} in {self.environments.name}")
        try:
            return environments.build(self.environments, name)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"pip could not make the environment {name}: {error}") from error

    def floor(self, case: Case, only: list[str]) -> dict[str, float]:
        """Mvox/s of onnxruntime alone by arrangement; `only` those named, all if empty. Raises RuntimeError."""
        kind = "toy" if self.toy else self.device.partition(":")[0]
        tiles = TILES[kind, NETS[case.net.removesuffix("-trained")].dims]
        command = [sys.executable, str(HERE / "floor.py"), str(self.onnx(case.net)), "--tiles", tiles, "--device",
                   self.device, "--seconds", str(self.floor_seconds)]  # fmt: skip
        found = run([*command, *(word for name in only for word in ("--only", name))], timeout=self.timeout)
        if found.returncode:
            raise RuntimeError(f"the floor of {case.net} failed: {last_lines(found.output)}")
        return json.loads(found.output.strip().splitlines()[-1])

    def run(self, case: Case, contender: str, *, check: bool = False) -> Outcome:
        """One run of a contender; its result is compared if `check`, and removed. Raises Unavailable, RuntimeError."""
        results = self.cache / "results"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir(parents=True)
        try:
            return (
                self._voidzoo(case, contender, results, check)
                if contender in OURS
                else self._peer(case, contender, results, check)
            )
        finally:
            shutil.rmtree(results, ignore_errors=True)

    def _voidzoo(self, case: Case, contender: str, results: Path, check: bool) -> Outcome:
        out, log = results / "out.ome.zarr", results / "events.log"
        options = (*case.options, "--memory", case.lean) if contender == "voidzoo-lean" else case.options
        command = [sys.executable, "-m", "voidzoo", "predict", str(self.package(case.net)), str(self.image(case.picture)),
                   "-o", str(out), "--quiet", "--device", self.device, *options,
                   *(["--log", str(log)] if case.log else [])]  # fmt: skip
        enough = _blocks_done(log, case.stop_after) if case.stop_after else None
        measured = run(command, environment=_path(), cpus=processors(case.cpus), timeout=self.timeout,
                       stop_when=enough)  # fmt: skip
        if not (measured.stopped and enough and enough()):
            self._refuse(measured)
        facts = {**(plan_facts(out) if out.exists() else {}), **(times(log, measured.started) if case.log else {})}
        errors = self._errors(case, out, "zyx") if check and out.exists() else None
        return Outcome(measured, facts, errors)

    def _peer(self, case: Case, contender: str, results: Path, check: bool) -> Outcome:
        peer = PEERS[contender]
        package = facts_of(self.package(case.net))
        out = results / f"out{peer.ending}"
        image = as_zarr(case.picture, self.cache / "images") if peer.from_zarr else self.image(case.picture)
        command = [str(self.python(peer.environment)), str(HERE / "peers" / peer.script), str(self._model(case, peer)),
                   str(image), str(out), "--rules", json.dumps(package["rules"]), "--outputs", str(package["outputs"]),
                   "--device", self.device.partition(":")[0], *peer.extra]  # fmt: skip
        measured = run(command, environment={"PYTHONPATH": ""}, timeout=self.timeout)
        self._refuse(measured)
        told = json.loads(measured.output.strip().splitlines()[-1])
        facts = {"inside_seconds": told["seconds"], **({"note": told["note"]} if told["note"] else {})}
        errors = self._errors(case, out, told["layout"]) if check and peer.exact else None
        return Outcome(measured, facts, errors)

    def _model(self, case: Case, peer: Peer) -> Path:
        if peer.model == "package":
            return self.package(case.net)
        if peer.model == "onnx":
            return self.onnx(case.net)
        net = NETS[case.net.removesuffix("-trained")]
        if net.shape != "unet" or net.outputs > 1 or net.depth != 2:
            raise Unavailable("CAREamics runs only networks of its own, like those of depth 2 with one output")
        path = self.cache / "models" / f"careamics-{net.dims}-{net.filters}.ckpt"
        if not path.exists():
            made = run([str(self.python(peer.environment)), str(HERE / "peers" / peer.script), "--prepare", str(path),
                        str(net.dims), str(net.filters)], environment={"PYTHONPATH": ""})  # fmt: skip
            if not path.exists():
                raise RuntimeError(f"CAREamics made no checkpoint: {last_lines(made.output)}")
        return path

    def _refuse(self, measured: Measured) -> None:
        if measured.stopped:
            raise RuntimeError(f"took longer than {self.timeout:.0f} s")
        if measured.returncode:
            raise RuntimeError(last_lines(measured.output) or f"exit code {measured.returncode}")

    def _errors(self, case: Case, out: Path, layout: str) -> dict[str, float]:
        rules = json.dumps(facts_of(self.package(case.net))["rules"])
        found = run([sys.executable, str(HERE / "oracle.py"), str(self.onnx(case.net)), str(self.image(case.picture)),
                     str(out), "--layout", layout, "--rules", rules], environment=_path())  # fmt: skip
        if found.returncode:
            raise RuntimeError(f"the result cannot be compared: {last_lines(found.output)}")
        return json.loads(found.output.strip().splitlines()[-1])


def _path() -> dict[str, str]:
    """voidzoo is found beside this folder, installed or not."""
    return {"PYTHONPATH": str(ROOT)}


def last_lines(output: str) -> str:
    """What a program said in the end, in one line."""
    lines = [line.strip() for line in output.strip().splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if line.startswith("error:")), max(0, len(lines) - 1))
    return " ".join(lines[at:])[:300]


def plan_facts(out: Path) -> dict[str, Any]:
    """What voidzoo wrote into its result: the plan and its own peak."""
    ours = json.loads((out / "zarr.json").read_text())["attributes"]["voidzoo"]
    plan, happened = ours["plan"], ours["happened"]
    found = {
        key: plan[key]
        for key in ("tile", "block", "halo", "blocks", "tiles", "overhead", "device", "workers")
        if key in plan
    }
    found["planned_mb"] = round(plan["memory"]["total"] / 1e6, 1)
    found["own_peak_mb"] = round(happened["peak_memory"] / 1e6, 1)
    return found


def events(log: Path) -> list[dict[str, Any]]:
    """What `--log` wrote."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def times(log: Path, started: float) -> dict[str, Any]:
    """Seconds from the start of the process to: the plan, the first run of the network on a tile, first and last block."""
    told = events(log)
    blocks = [event for event in told if event["event"] == "BlockDone"]
    at = {
        "planned_s": [event["at"] for event in told if event["event"] == "PlanMade"],
        "first_tile_s": [block["report"]["started"] for block in blocks if block["report"].get("started")],
        "first_block_s": [block["at"] for block in blocks],
        "last_block_s": [block["at"] for block in blocks][-1:],
    }
    return {name: round(min(seconds) - started, 3) for name, seconds in at.items() if seconds}


def _blocks_done(log: Path, count: int) -> Callable[[], bool]:
    def enough() -> bool:
        return log.exists() and log.read_bytes().count(b'"BlockDone"') >= count

    return enough
