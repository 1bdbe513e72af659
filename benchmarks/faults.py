"""What is left of a prediction that is killed: SIGKILL at random moments, and the same call again.

    python benchmarks/faults.py --json benchmarks/results/faults.json         everything, about half an hour
    python benchmarks/faults.py --toy --kills 3 --worker-kills 1              does everything work?

Every prediction runs in a process of its own, from file to file. It is timed once without a kill. Then, for each kill, it
starts into an empty place and is killed at a moment drawn uniformly from one of three stretches of that time: before the
first block is done, between the first and the last (most of the kills), behind the last (pyramid, TIFF, move to OUT). The
same call then goes on to the end. Counted are the bytes in which the result differs from the undisturbed one, and the blocks
that were begun more than once, which may be no more than were in flight. Worker kills: the same with `processes:2`, where one
worker dies and the call itself goes on.

Of the metadata of an OME-Zarr, what was measured (seconds, memory, speed) is left out of the comparison; TIFFs are compared
as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

STARTED = "VOIDZOO_FAULTS_STARTED"
"""The variable that names the file into which every block is written when it is begun, in workers, too."""
MEASURED = ("memory", "seconds", "voxels_per_second", "bytes_per_voxel")
"""What a stored plan says of speed and memory: measured anew for every result."""
AHEAD = 2
"""Blocks in flight for each thread of a worker process: one runs, one is on its way (`infer.run`)."""
PATIENCE = 600.0
"""Seconds for one prediction."""
Event = dict[str, Any]


# ---- in the process that is killed -----------------------------------------------------------------------------------


def note_what_begins(log: str) -> None:
    """From now on every block, or piece of a later pass, writes a line into a file before it is done."""
    from voidzoo.infer.restore import RestoreWork
    from voidzoo.infer.work import BlockWork

    def noting(real: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        def work(self: Any, index: int) -> Any:
            with Path(log).open("a") as file:
                file.write(f"{type(self).__name__} {index} {os.getpid()}\n")
            return real(self, index)

        return work

    for kind in (BlockWork, RestoreWork):
        kind.__call__ = noting(kind.__call__)  # type: ignore[method-assign]


def child(call: dict[str, Any]) -> None:
    """Predict, and tell each event in a line."""
    import voidzoo
    from voidzoo.screen import event_json, say

    model, image = call.pop("model"), call.pop("image")
    sizes = {key: tuple(call.pop(key)) for key in ("block", "tile") if key in call}
    voidzoo.predict(model, image, watch=lambda event: say(event_json(event)), **sizes, **call)


if __name__ in ("__main__", "__mp_main__") and STARTED in os.environ:  # the second: in a worker process
    note_what_begins(os.environ[STARTED])


# ---- beside it -------------------------------------------------------------------------------------------------------


class Run:
    """A prediction in a process of its own. call: the arguments of `voidzoo.predict`, JSON-able.

    folder: where the blocks that are begun are noted. events: what it has told so far, with its time in s.
    """

    def __init__(self, call: Mapping[str, Any], folder: Path) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed when this is)
        self.events: list[Event] = []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(call)], stdout=subprocess.PIPE, stderr=self.errors,
            text=True, env={**os.environ, STARTED: str(folder / "started.txt")}, start_new_session=True,
        )  # fmt: skip
        self._news = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.events.append({**json.loads(line), "after": time.monotonic() - self.started})
                self._news.notify_all()
        with self._news:
            self._open = False
            self._news.notify_all()

    def until(self, found: Callable[[list[Event]], Any]) -> bool:
        """Wait for events of which `found` is true; False when the process ends before."""
        with self._news:
            self._news.wait_for(lambda: not self._open or bool(found(self.events)), PATIENCE)
            return bool(found(self.events))

    def kill(self) -> bool:
        """SIGKILL. -> whether it still ran."""
        self.process.send_signal(signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for the end. -> the exit code."""
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.seek(0)
        self.said = self.errors.read()
        self.errors.close()
        return code


def named(events: Sequence[Event], name: str) -> list[Event]:
    """The events of a kind."""
    return [e for e in events if e["event"] == name]


def begun(folder: Path) -> list[tuple[str, int]]:
    """The blocks that were begun so far: kind of work, and number."""
    path = folder / "started.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def repeated(folder: Path) -> int:
    """How many blocks were begun again."""
    return sum(n - 1 for n in Counter(begun(folder)).values())


def contents(out: Path) -> dict[str, bytes]:
    """A result's files by name, without what was measured when it was made."""
    if out.is_file():
        return {"": out.read_bytes()}
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    for name in ("zarr.json", ".zattrs"):
        if name in found:
            metadata = json.loads(found[name])
            ours = metadata.get("attributes", metadata)["voidzoo"]
            for key in ("seconds_of_last_run", "peak_memory"):
                del ours["happened"][key]
            for key in MEASURED:
                del ours["plan"][key]
            found[name] = json.dumps(metadata).encode()
    return found


def differing(one: Path, other: Path) -> int:
    """Bytes in which two results differ; a file that only one of them has counts whole."""
    a, b = contents(one), contents(other)
    total = 0
    for name in {*a, *b}:
        x, y = a.get(name, b""), b.get(name, b"")
        if x != y:
            total += abs(len(x) - len(y)) + sum(i != j for i, j in zip(x, y, strict=False))
    return total


def sha256(out: Path) -> str:
    """Of a result's names and bytes, as `contents` has them."""
    hashed = hashlib.sha256()
    for name, data in sorted(contents(out).items()):
        hashed.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return hashed.hexdigest()


# ---- kills -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timeline:
    """When an undisturbed run had its first block, its last, and its end: s after its start. in_flight: blocks."""

    first: float
    last: float
    end: float
    blocks: int
    in_flight: int
    sha256: str


@dataclass
class Kill:
    """One kill. after: s. done: blocks recorded when it came. redone: blocks begun again. differ: bytes of the result."""

    stretch: str
    after: float
    done: int
    redone: int = 0
    differ: int = -1


@dataclass(frozen=True)
class Job:
    """What is done over and over. name: of the result. call: as for `Run`, without `out`; its plan is added."""

    name: str
    call: dict[str, Any]
    folder: Path
    kills: list[Kill] = field(default_factory=list)

    def place(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def run(self, folder: Path) -> Run:
        """Start, or go on, in a folder."""
        return Run({**self.call, "out": str(folder / self.name)}, folder)

    def undisturbed(self) -> Timeline:
        """Run once without a kill. Its plan, of which a part was measured, is that of all further runs."""
        from voidzoo.infer.plan import BESIDE

        folder = self.place("undisturbed")
        run = self.run(folder)
        ended(run)
        plan, blocks = named(run.events, "PlanMade")[0]["plan"], named(run.events, "BlockDone")
        lanes = plan["workers"] + BESIDE
        self.call["facts"] = plan
        for key in ("block", "tile"):  # they are in the plan
            self.call.pop(key, None)
        if word := self.call.get("scheduler", "").partition(":")[2]:  # processes:N
            lanes *= AHEAD * int(word)
        return Timeline(
            blocks[0]["after"], blocks[-1]["after"], named(run.events, "Done")[0]["after"], len(blocks),
            lanes, sha256(folder / self.name),
        )  # fmt: skip

    def kill(self, line: Timeline, stretch: str, share: float) -> Kill | None:
        """Kill at a share of a stretch, go on, compare. None where it was over before."""
        folder = self.place("killed")
        run = self.run(folder)
        if stretch == "before":
            time.sleep(share * line.first)
        elif stretch == "between":
            run.until(lambda events: named(events, "BlockDone"))
            time.sleep(share * (line.last - line.first))
        else:
            run.until(lambda events: len(named(events, "BlockDone")) == line.blocks)
            time.sleep(share * (line.end - line.last))
        if not run.kill():
            return None
        kill = Kill(stretch, round(time.monotonic() - run.started, 3), recorded(folder / self.name))
        if (folder / self.name).exists():  # it came after the move
            kill.done = line.blocks
            if differing(folder / self.name, self.folder / "undisturbed" / self.name):
                raise RuntimeError("what lies at OUT is not the whole result")
        ended(self.run(folder))
        kill.differ = differing(folder / self.name, self.folder / "undisturbed" / self.name)
        kill.redone = repeated(folder)
        return kill

    def kill_worker(self, line: Timeline, share: float, which: int) -> Kill | None:
        """Kill a worker process between the first and the last block; the call goes on by itself."""
        folder = self.place("killed")
        run = self.run(folder)
        run.until(lambda events: named(events, "BlockDone"))
        time.sleep(share * (line.last - line.first))
        done = len(named(run.events, "BlockDone"))
        crew = workers(run.process.pid)
        if len(crew) < 2 or done >= line.blocks:
            run.end()
            return None
        crew[which % len(crew)].kill()
        kill = Kill("worker", round(time.monotonic() - run.started, 3), done)
        ended(run)
        told = Counter(e["report"]["index"] for e in named(run.events, "BlockDone"))
        if set(told.values()) != {1} or len(told) != line.blocks:
            raise RuntimeError(f"not every block was recorded once: {told}")
        kill.differ = differing(folder / self.name, self.folder / "undisturbed" / self.name)
        kill.redone = repeated(folder)
        return kill


def workers(pid: int) -> list[Any]:
    """The worker processes of a prediction with --scheduler processes:N."""
    import psutil

    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda p: p.pid)


def recorded(out: Path) -> int:
    """How many blocks the ledger of an unfinished result has."""
    from voidzoo.infer.ledger import Ledger

    return len(Ledger.peek(out.with_name(out.name + ".part") / "ledger.jsonl"))


def ended(run: Run) -> None:
    """Wait for the end. Raises RuntimeError unless all was done."""
    if code := run.end():
        raise RuntimeError(f"exit code {code}: {run.said[-3000:]}")


# ---- the command -----------------------------------------------------------------------------------------------------


def moments(rng: Any, n: int) -> Iterator[tuple[str, float]]:
    """Which stretch, and where in it: of ten kills eight between the blocks, one before and one behind them."""
    for i in range(n):
        yield ("before" if i % 10 == 4 else "behind" if i % 10 == 9 else "between"), float(rng.random())


def measure(job: Job, n: int, rng: Any, *, worker: bool) -> dict[str, Any]:
    """Kill n times. -> what the report says of it."""
    line = job.undisturbed()
    tell(
        f"{job.folder.name}: {line.blocks} blocks, first after {line.first:.1f} s, last {line.last:.1f}, end {line.end:.1f}"
    )
    waiting = list(moments(rng, n))
    missed = 0
    while waiting:
        stretch, share = waiting.pop(0)
        kill = job.kill_worker(line, share, int(rng.integers(2))) if worker else job.kill(line, stretch, share)
        if kill is None or (stretch == "between" and not 0 < kill.done < line.blocks):
            missed += kill is None
            waiting.append((stretch, float(rng.random())))  # it was slower or faster than before
        if kill is not None:
            job.kills.append(kill)
            tell(f"  {len(job.kills):3} {kill}")
    kills = job.kills
    return {
        "blocks": line.blocks,
        "in_flight": line.in_flight,
        "seconds": {"first_block": round(line.first, 2), "last_block": round(line.last, 2), "end": round(line.end, 2)},
        "kills": len(kills),
        "between_first_and_last_block": sum(0 < k.done < line.blocks for k in kills),
        "bytes_that_differ": sum(k.differ for k in kills),
        "redone": {"most": max(k.redone for k in kills), "mean": round(sum(k.redone for k in kills) / len(kills), 2)},
        "more_redone_than_in_flight": sum(k.redone > line.in_flight for k in kills),
        "over_before_the_kill": missed,
        "each": [asdict(k) for k in kills],
    }


def tell(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="for each format")
    parser.add_argument("--worker-kills", type=int, default=10)
    parser.add_argument("--only", default="", help="zarr, tiff, workers, with commas; default: all")
    parser.add_argument("--toy", action="store_true", help="a small network")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another each time")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench", help="where package, image and results go")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, and write the report. -> 1 where a byte differs or more blocks were redone than were in flight."""
    given = arguments()
    if given.child:
        child(json.loads(given.child))
        return 0
    import numpy as np
    from images import Picture
    from machine import machine, versions

    seed = int(np.random.SeedSequence().entropy % 2**32) if given.seed is None else given.seed
    rng = np.random.default_rng(seed)
    net, shape, side = ("tiny2d", (2, 512, 512), 64) if given.toy else ("n2v2d", (2, 1024, 1024), 128)
    subprocess.run([sys.executable, str(HERE / "nets.py"), str(given.cache / "packages"), net], check=True)
    image = Picture("nuclei", shape).write(given.cache / "images")
    call = {"model": str(given.cache / "packages" / f"{net}.zip"), "image": str(image), "device": "cpu",
            "block": [side, side], "tile": [side + 64, side + 64]}  # fmt: skip
    jobs = {
        "zarr": (Job("result.ome.zarr", {**call}, given.cache / "faults" / "zarr"), given.kills),
        "tiff": (Job("result.ome.tif", {**call}, given.cache / "faults" / "tiff"), given.kills),
        "workers": (Job("result.ome.zarr", {**call, "scheduler": "processes:2"}, given.cache / "faults" / "workers"),
                    given.worker_kills),
    }  # fmt: skip
    wanted = given.only.split(",") if given.only else list(jobs)
    found = {name: measure(*jobs[name], rng, worker=name == "workers") for name in wanted}
    report = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine(), "versions": versions(),
              "seed": seed, "network": net, "image": list(shape), "jobs": found}  # fmt: skip
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    bad = 0
    for name, facts in found.items():
        tell(f"{name:8} {facts['kills']} kills, {facts['between_first_and_last_block']} between the first and the last block: "
             f"{facts['bytes_that_differ']} bytes differ; redone {facts['redone']['mean']} blocks a kill, at most "
             f"{facts['redone']['most']}; in flight {facts['in_flight']}")  # fmt: skip
        bad += facts["bytes_that_differ"] + facts["more_redone_than_in_flight"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
