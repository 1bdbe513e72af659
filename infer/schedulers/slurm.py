"""Workers as jobs of slurm, through dask-jobqueue: `--scheduler slurm:partition=gpu,cpus=4,memory=8GB,jobs=10,...`."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...zoo.errors import DependencyError, RecipeError, nearest
from .connect import connected, kept, quiet
from .dispatch import TICK, Distributed
from .trouble import SchedulerError, first_line

KEYS = {
    "cpus": "processors of each job",
    "memory": "memory of each job",
    "walltime": "the longest that a job may run",
    "jobs": "how many jobs; each is one worker (1)",
    "partition": "where the jobs run (slurm's default)",
    "account": "who pays (slurm's default)",
    "gpus": "GPUs of each job, 0 or 1 (0)",
    "interface": "the network over which jobs reach this machine (that of its default route)",
    "wait": "how long to wait in the queue for a first worker (01:00:00)",
}
NEEDED = ("cpus", "memory", "walltime")
EXAMPLE = "--scheduler slurm:partition=NAME,cpus=4,memory=8GB,walltime=01:00:00,jobs=10"
LOOK = 5.0
"""Seconds between two questions to slurm whether the jobs are still there."""


@dataclass(frozen=True)
class Jobs:
    """What is asked of slurm. memory: bytes of a job. walltime: as slurm writes it. wait: seconds."""

    cpus: int
    memory: int
    walltime: str
    jobs: int = 1
    partition: str | None = None
    account: str | None = None
    gpus: int = 0
    interface: str | None = None
    wait: float = 3600.0

    @classmethod
    def parse(cls, text: str) -> Jobs:
        """Read `key=value,key=value,...`. Raises RecipeError, which names the legal keys or values."""
        given: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            key, equals, value = (word.strip() for word in part.partition("="))
            if key not in KEYS:
                legal = "; ".join(f"{k}: {meaning}" for k, meaning in KEYS.items())
                raise RecipeError(f"slurm: knows no {key!r}{nearest(key, KEYS)}.", where=legal, mend=EXAMPLE)
            if not (equals and value) or key in given:
                raise RecipeError(f"slurm: {key} needs one value: {KEYS[key]}.", mend=EXAMPLE)
            given[key] = value
        if missing := [key for key in NEEDED if key not in given]:
            raise RecipeError(f"slurm: needs {', '.join(missing)} as well.", mend=EXAMPLE)
        read = {key: _READ[key](key, value) for key, value in given.items()}
        return cls(**read)

    def settings(self, logs: Path) -> dict[str, Any]:
        """The arguments of dask_jobqueue.SLURMCluster. Each job is one worker that runs `cpus` tasks at once."""
        # the limit of the job is slurm's to watch: dask would pause the worker before it is reached, and for ever
        extra = ["--memory-limit", "0", "--no-dashboard"]
        if self.gpus:
            extra += ["--resources", f"GPU={self.cpus}"]
        return {
            "cores": self.cpus,
            "processes": 1,
            "memory": f"{self.memory} B",
            "job_cpu": self.cpus,
            "job_mem": f"{-(-self.memory // 2**20)}M",
            "walltime": self.walltime,
            "queue": self.partition,
            "account": self.account,
            "interface": self.interface,
            "job_name": "voidzoo",
            "log_directory": str(logs),
            "worker_extra_args": extra,
            "job_extra_directives": ["--gres=gpu:1"] if self.gpus else [],
            "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "allowed_failures": 1},
            "silence_logs": logging.CRITICAL,
        }


def _count(key: str, value: str) -> int:
    most = 1 if key == "gpus" else 9999
    if not re.fullmatch(r"\d{1,4}", value) or not (key != "gpus") <= int(value) <= most:
        why = "a worker uses one GPU; ask for more jobs" if key == "gpus" else "a whole number, 1 or more"
        raise RecipeError(f"slurm: {key}={value} cannot be: {why}.", mend=f"{key}=1")
    return int(value)


def _bytes(key: str, value: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT])(i?)B?", value, re.IGNORECASE)
    if not found or not float(found[1]):
        raise RecipeError(f"slurm: {key}={value} is no amount of memory.", mend=f"{key}=8GB")
    return round(float(found[1]) * (1024 if found[3] else 1000) ** ("KMGT".index(found[2].upper()) + 1))


def _time(key: str, value: str) -> str:
    if not _seconds(key, value):
        raise RecipeError(f"slurm: {key}={value} is no time.", mend=f"{key}=01:00:00")
    return value


def _seconds(key: str, value: str) -> float:
    """Seconds of a time as slurm writes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = value.rpartition("-")
    fields = rest.split(":")
    if not all(f.isdecimal() for f in [*fields, *([days] if dash else [])]) or len(fields) > 3:
        raise RecipeError(f"slurm: {key}={value} is no time.", mend=f"{key}=01:00:00   (or D-HH:MM:SS)")
    units = (3600, 60, 1) if dash or len(fields) == 3 else (60, 1)
    seconds = sum(int(f) * unit for f, unit in zip(fields, units, strict=False))
    return float(86400 * int(days or 0) + seconds)


def _word(key: str, value: str) -> str:
    if not re.fullmatch(r"[\w.:@+-]+", value):
        raise RecipeError(f"slurm: {key}={value} is no name.", mend=EXAMPLE)
    return value


_READ: dict[str, Callable[[str, str], Any]] = {
    "cpus": _count, "memory": _bytes, "walltime": _time, "jobs": _count, "partition": _word, "account": _word,
    "gpus": _count, "interface": _word, "wait": _seconds,
}  # fmt: skip


@contextlib.contextmanager
def run_jobs(jobs: Jobs, gpu: bool, tell: Callable[[str], None]) -> Iterator[Distributed]:
    """Hand the jobs to slurm, wait for the first, and cancel them at the end. Their logs are kept when it ends badly.

    Raises DependencyError without dask-jobqueue, SchedulerError when slurm refuses the jobs or none becomes a worker.
    """
    if gpu and not jobs.gpus:
        raise RecipeError("slurm: the device is a GPU, but the jobs have none.", mend="slurm:...,gpus=1")
    try:
        with _signals_kept():
            from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise DependencyError("slurm: needs dask-jobqueue.", mend='pip install "voidzoo[cluster]"') from error
    if not (shutil.which("sbatch") and shutil.which("squeue")):
        raise SchedulerError(
            "slurm's commands sbatch and squeue are not on this machine.",
            mend="run this on a login node of the cluster",
        )
    logs = _logs()
    with quiet(), contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(kept(partial(SLURMCluster, **jobs.settings(logs))))
        except (OSError, ValueError, RuntimeError) as error:  # an interface that is not there
            raise SchedulerError(
                "the scheduler that the jobs are to find could not be started.",
                where=first_line(error),
                mend="interface=...   one of those that 'ip addr' lists",
            ) from error
        client = stack.enter_context(connected(cluster))
        _ask(cluster.job_script(), logs)
        crew = _Crew(cluster, jobs, logs)
        scheduler = Distributed(
            client, lambda n: f"slurm ({n} of {jobs.jobs} jobs)", gpu=gpu, patience=jobs.wait, tend=crew.tend
        )
        crew.start(scheduler, tell)
        yield scheduler
    shutil.rmtree(logs, ignore_errors=True)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Importing dask_jobqueue makes Ctrl-C leave the program at once, which is not its business."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


def _logs() -> Path:
    """A new folder under the home, which the nodes see, too; a folder for temporary files is their own."""
    cache = Path.home() / ".cache" / "voidzoo"
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="slurm-", dir=cache))


def _ask(script: str, logs: Path) -> None:
    """Ask slurm whether it would take such a job. Raises SchedulerError with its words."""
    file = logs / "job.sh"
    file.write_text(script)
    answer = subprocess.run(["sbatch", "--test-only", str(file)], capture_output=True, text=True, check=False)
    if answer.returncode:
        words = [line.removeprefix("sbatch: error: ") for line in answer.stderr.strip().splitlines()]
        raise SchedulerError("slurm refuses such a job.", where="; ".join(words), mend=EXAMPLE)


class _Crew:
    """The jobs: started, watched, and started again as long as they get something done."""

    def __init__(self, cluster: Any, jobs: Jobs, logs: Path) -> None:
        self.cluster = cluster
        self.jobs = jobs
        self.logs = logs
        self.seen: set[str] = set()
        self.mark = 0
        self.looked = time.monotonic()

    def start(self, scheduler: Distributed, tell: Callable[[str], None]) -> None:
        """Submit the jobs and wait for a first worker."""
        self.cluster.scale(jobs=self.jobs.jobs)
        many = "1 job" if self.jobs.jobs == 1 else f"{self.jobs.jobs} jobs"
        tell(f"handed {many} to slurm; waiting up to {self.jobs.wait:g} s for the first to begin")
        until = time.monotonic() + self.jobs.wait
        while not scheduler.workers:
            self._look()
            if time.monotonic() > until:
                raise SchedulerError(
                    f"no job has begun within {self.jobs.wait:g} s.",
                    where=f"slurm: {', '.join(sorted(self._ids()))}",
                    mend="wait=06:00:00   or jobs that slurm can place sooner",
                )
            time.sleep(TICK)
        self.seen = self._ids()

    def tend(self, workers: int, done: int) -> None:
        """Start jobs again that ended (at their walltime, say), unless nothing was done since the last were started.

        done: items that were done so far, over all.
        """
        if new := self._ids() - self.seen:
            self.seen |= new
            self.mark = done
        if workers < self.jobs.jobs and done > self.mark:
            self.cluster.scale(jobs=self.jobs.jobs)  # dask forgets a job 15 s after its worker has gone
        elif not workers:
            self._look()

    def _ids(self) -> set[str]:
        return {job.job_id for job in self.cluster.workers.values() if job.job_id}

    def _look(self) -> None:
        """Raise SchedulerError when slurm has none of the jobs any more."""
        ids = self._ids()
        if not ids or time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        answer = subprocess.run(
            ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(sorted(ids))}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        forgotten = answer.returncode == 0 or "Invalid job id" in answer.stderr
        if forgotten and not answer.stdout.strip():
            raise SchedulerError(
                "the jobs have ended, without a worker that could do anything.",
                where=self._last_words() or f"slurm: {', '.join(sorted(ids))}",
                mend=f"cat {self.logs}/*.err",
            )

    def _last_words(self) -> str:
        """The last line that a job wrote."""
        lines = [line for log in self.logs.glob("*.err") for line in log.read_text(errors="replace").splitlines()]
        return lines[-1].strip()[:300] if lines else ""
