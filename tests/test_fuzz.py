"""Packages spoilt at random are run, or refused in words: no traceback, no signal, no hang, no file where none belongs.

FUZZ_CASES=1000 tries more of them, FUZZ_SEED=7 others; a failure says how to repeat it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.model_zoo import MODELS
from tests.mutants import Files, files_of, mutant

ROOT = Path(__file__).parents[1]
CASES = int(os.environ.get("FUZZ_CASES", "200"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
ONLY = os.environ.get("FUZZ_ONLY")
SECONDS = 10.0
"""Of processor time that a package may take. By the clock it may be ten times as long: others work here, too."""
BASES = ("pooled", "old_04", "before_zero_mean", "two_outputs", "fixed_64", "after_sigmoid", "before_scale_range_clip")


class Worker:
    """One process for all packages, begun again when it dies."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder, self.image = folder, image
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            places = {"HOME": self.folder / "home", "TMPDIR": self.folder / "temporary"}
            for place in (*places.values(), self.folder / "here"):
                place.mkdir(exist_ok=True)
            path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, **{k: str(v) for k, v in places.items()}, "PYTHONPATH": path}
            with (self.folder / "stderr.txt").open("ab") as told:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.fuzz_worker", str(self.image)],
                    cwd=self.folder / "here", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told,
                )  # fmt: skip
            assert self.answer(120.0) == {"ready": True}, (self.folder / "stderr.txt").read_text()[-2000:]
        return self.process

    def ask(self, package: Path) -> dict[str, Any]:
        process = self.start()
        assert process.stdin is not None
        process.stdin.write(f"{package}\n".encode())
        process.stdin.flush()
        return self.answer(SECONDS)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line; a fault where none comes, and a new process for the next package."""
        assert self.process is not None
        assert self.process.stdout is not None
        ready, before, start = [], self.worked(), time.monotonic()
        while not ready and self.worked() - before < seconds and time.monotonic() - start < 10 * seconds:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.2)
        line = self.process.stdout.readline() if ready else b""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        code = self.stop(kill=not ready)
        return {"fault": f"signal or exit code {code}" if ready else f"no answer within {seconds:g} s"}

    def worked(self) -> float:
        """Seconds of processor time that the process has used."""
        assert self.process is not None
        used = psutil.Process(self.process.pid).cpu_times()
        return used.user + used.system

    def stop(self, *, kill: bool = True) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        if kill:
            process.kill()
        with process:  # closes its pipes and waits
            return process.wait()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: files_of(MODELS[name](folder).path) for name in BASES}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng().integers(50, 900, (44, 53), dtype=np.uint16))
    found = Worker(tmp_path, image)
    yield found
    found.stop()


def seen(folder: Path) -> set[str]:
    """All that lies there, but what a worker's libraries keep for themselves."""
    return {str(p.relative_to(folder)) for top in ("here", "package", "temporary") for p in (folder / top).rglob("*")}


@pytest.mark.slow
def test_spoilt_packages_are_run_or_refused(bases: dict[str, Files], worker: Worker, tmp_path: Path) -> None:
    """Opened, judged for every program and for an upload, planned and predicted: each ends in 10 s of work as a package may."""
    package = tmp_path / "package" / "m.zip"
    package.parent.mkdir()
    ways: Counter[str] = Counter()
    faults, slowest = [], 0.0
    numbers = [int(ONLY)] if ONLY else range(SEED * 1_000_000, SEED * 1_000_000 + CASES)
    for number in numbers:
        name = BASES[number % len(BASES)]
        way, data = mutant(bases[name], number)
        package.write_bytes(data)
        worker.start()
        before, start = seen(tmp_path), time.monotonic()
        found = worker.ask(package)
        slowest = max(slowest, time.monotonic() - start)
        if new := seen(tmp_path) - before - {"package/m.zip"}:
            found = {"fault": f"files appeared: {sorted(new)}"}
        if "fault" in found:
            faults.append(f"FUZZ_ONLY={number} ({way} of {name}): {found['fault']}")
        elif ONLY:
            sys.stdout.write(f"{number} ({way} of {name}): {found['ended']}\n")
        ways["run" if found.get("ended", [""])[-1] == "done" else "refused"] += 1
    report = f"{len(faults)} of {len(numbers)} faults; {dict(ways)}; slowest {slowest:.1f} s\n\n" + "\n\n".join(faults)
    assert not faults, report
    assert ONLY or (ways["run"] > 0 and ways["refused"] > 0), report
    sys.stdout.write(report)


@pytest.mark.slow
def test_what_was_not_spoilt_runs(bases: dict[str, Files], worker: Worker, tmp_path: Path) -> None:
    """The worker's answers mean something: a whole package is predicted; a fault in its place is told as one."""
    from tests.mutants import zipped

    package = tmp_path / "package" / "m.zip"
    package.parent.mkdir()
    for name in BASES[:2]:
        package.write_bytes(zipped(bases[name]))
        assert worker.ask(package)["ended"][-1] == "done"
    process = worker.start()
    process.kill()
    assert "exit code -9" in worker.answer(5.0)["fault"]
    assert worker.ask(package)["ended"][-1] == "done"
