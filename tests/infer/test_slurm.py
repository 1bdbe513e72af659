"""Jobs of slurm: what is asked of it, and small jobs on Debian's slurm with one node on loopback."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from voidzoo.infer.schedulers.cluster import Scheduler, open_scheduler
from voidzoo.infer.schedulers.slurm import Jobs
from voidzoo.infer.schedulers.trouble import SchedulerError
from voidzoo.zoo.errors import DependencyError, RecipeError

ROOT = Path(__file__).parents[2]
WORD = "slurm:partition=debug,cpus=1,memory=500MB,walltime=00:10:00,interface=lo"
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=60 State=UP
"""


def test_the_word_says_what_is_asked_of_slurm(tmp_path: Path) -> None:
    jobs = Jobs.parse("partition=gpu,cpus=4,memory=8GB,walltime=1-02:00:00,jobs=10,account=lab,gpus=1,wait=30:00")
    assert jobs == Jobs(
        cpus=4, memory=8 * 10**9, walltime="1-02:00:00", jobs=10, partition="gpu", account="lab", gpus=1, wait=1800.0
    )
    settings = jobs.settings(tmp_path)
    assert settings["job_mem"] == "7630M"  # 8e9 / 2**20, rounded up
    assert settings["job_extra_directives"] == ["--gres=gpu:1"]
    assert Jobs.parse("cpus=1,memory=1.5GiB,walltime=90").memory == 3 * 2**29
    assert Jobs.parse("cpus=1,memory=1GB,walltime=1,wait=2-3").wait == (2 * 24 + 3) * 3600


@pytest.mark.parametrize(
    ("text", "told"),
    {
        "": "needs cpus, memory, walltime",
        "cpus=2,memory=1GB": "needs walltime",
        "cpu=2": r"knows no 'cpu' \(did you mean cpus\?\)(.|\n)*partition(.|\n)*walltime",
        "cpus=0,memory=1GB,walltime=1": "cpus=0 cannot be",
        "cpus=two,memory=1GB,walltime=1": "cpus=two cannot be",
        "cpus=2,memory=8,walltime=1": r"memory=8 is no amount(.|\n)*memory=8GB",
        "cpus=2,memory=0GB,walltime=1": "memory=0GB is no amount",
        "cpus=2,memory=1GB,walltime=soon": "walltime=soon is no time",
        "cpus=2,memory=1GB,walltime=0:0": "walltime=0:0 is no time",
        "cpus=2,memory=1GB,walltime=1,gpus=2": "one GPU; ask for more jobs",
        "cpus=2,cpus=3,memory=1GB,walltime=1": "cpus needs one value",
        "cpus=2,memory=1GB,walltime=1,partition=a;rm": "is no name",
    }.items(),
)
def test_a_wrong_word_is_refused_at_once(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        open_scheduler(f"slurm:{text}")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match=r"sbatch and squeue are not on this machine"):
        open_scheduler(WORD).__enter__()
    with pytest.raises(RecipeError, match="gpus=1"):
        open_scheduler(WORD, gpu=True).__enter__()
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(DependencyError, match=r"pip install .*voidzoo\[cluster\]"):
        open_scheduler(WORD).__enter__()
    assert signal.getsignal(signal.SIGINT) is before, "a part of dask_jobqueue was imported, and takes Ctrl-C"


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_until(condition: Callable[[], Any], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def slurm(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """slurmctld and slurmd of this user, one node named like this machine. -> their configuration."""
    if not (shutil.which("slurmctld") and shutil.which("slurmd")):
        pytest.skip("needs the Debian package slurm-wlm")
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), ports=free_ports(2)))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/null\n")
    environment = {**os.environ, "SLURM_CONF": str(file)}
    daemons = []
    with (folder / "log.txt").open("wb") as log:
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(file))
        try:
            wait_until(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], check=False, capture_output=True,
                                                        text=True).stdout)  # fmt: skip
            yield file
            subprocess.run(["scancel", "--full", "--user", getpass.getuser()], check=False)
            wait_until(lambda: not slurm("squeue", "-h"))
        finally:
            for daemon in daemons:
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(30)


@pytest.fixture
def home(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def run(scheduler: Scheduler, work: Any, n: int) -> list[Any]:
    heard: list[Any] = []
    scheduler.share_out(work, range(n), 3, heard=heard.append)
    return heard


def says_where() -> Callable[[int], tuple[int, str, int]]:
    """Work that says in which job and process it was done. A closure: it travels by value."""

    def work(item: int) -> tuple[int, str, int]:
        time.sleep(0.02)
        return item, os.environ["SLURM_JOB_ID"], os.getpid()

    return work


@pytest.mark.slow
def test_a_job_is_submitted_does_its_blocks_and_is_cancelled(home: Path) -> None:
    told: list[str] = []
    with open_scheduler(f"{WORD},jobs=2", tell=told.append) as scheduler:
        assert told == ["handed 2 jobs to slurm; waiting up to 3600 s for the first to begin"]
        wait_until(lambda: scheduler.workers == 2)
        assert scheduler.name == "slurm (2 of 2 jobs)"
        queue = slurm("squeue", "-h", "-o", "%i %j %P %C %m %l").split()
        heard = run(scheduler, says_where(), 200)
    assert queue[1:6] == queue[7:12] == ["voidzoo", "debug", "1", "477M", "10:00"]
    assert sorted(item for item, _, _ in heard) == list(range(200))
    assert {job for _, job, _ in heard} == {queue[0], queue[6]}
    wait_until(lambda: not slurm("squeue", "-h"))
    assert not any(psutil.pid_exists(pid) for _, _, pid in heard)
    assert not list((home / ".cache" / "voidzoo").iterdir()), "logs of a run that went well are not kept"


@pytest.mark.slow
def test_a_job_that_ends_too_soon_is_followed_by_another(home: Path) -> None:
    """The only job is cancelled in the middle, as at the end of its walltime: a second does the rest."""
    cancelled: list[str] = []
    heard: list[tuple[int, str, int]] = []

    def listen(outcome: tuple[int, str, int]) -> None:
        heard.append(outcome)
        if len(heard) == 50:
            cancelled.extend(slurm("squeue", "-h", "-o", "%i").split())
            slurm("scancel", *cancelled)

    def items() -> Iterator[int]:
        """At least 150, and as many as it takes until the second job has done one: to cancel the first takes a while."""
        for i in count():
            if i >= 150 and len({job for _, job, _ in heard}) > 1:
                break
            yield i

    with open_scheduler(WORD) as scheduler:
        scheduler.share_out(says_where(), items(), 3, heard=listen)
    assert sorted(item for item, _, _ in heard) == list(range(len(heard)))
    jobs = {job for _, job, _ in heard}
    assert len(jobs) == 2
    assert set(cancelled) < jobs


@pytest.mark.slow
def test_gpus_are_asked_for_and_declared(home: Path) -> None:
    with open_scheduler(f"{WORD},gpus=1", gpu=True) as scheduler:
        assert "gpu" in slurm("squeue", "-h", "-o", "%b")
        assert len(run(scheduler, says_where(), 10)) == 10


@pytest.mark.slow
def test_what_slurm_refuses_is_told_in_its_words(home: Path) -> None:
    for change, words in (("partition=debug", "partition=night"), ("cpus=1", "cpus=64")):
        with pytest.raises(SchedulerError, match=r"slurm refuses such a job(.|\n)*(nvalid partition|not available)"):
            open_scheduler(WORD.replace(change, words)).__enter__()
    with pytest.raises(SchedulerError, match=r"could not be started(.|\n)*nothere"):
        open_scheduler(WORD.replace("interface=lo", "interface=nothere")).__enter__()
    assert not slurm("squeue", "-h")


@pytest.mark.slow
def test_jobs_that_end_at_once_are_an_error_with_their_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the node voidzoo's environment is broken: what python said there is in the error."""
    (home / "distributed").mkdir()
    (home / "distributed" / "__init__.py").write_text("raise SystemExit('no such library on this node')\n")
    monkeypatch.setenv("PYTHONPATH", str(home))
    start = time.monotonic()
    with pytest.raises(SchedulerError, match=r"jobs have ended(.|\n)*no such library on this node(.|\n)*cat .*err"):
        open_scheduler(WORD).__enter__()
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_a_queue_that_is_full_is_told(home: Path) -> None:
    (home / "long.sh").write_text("#!/bin/sh\nsleep 100\n")
    blocker = slurm(
        "sbatch", "--parsable", "--cpus-per-task=4", "--mem=10M", "--output=/dev/null", f"{home}/long.sh"
    ).strip()
    try:
        with pytest.raises(SchedulerError, match=r"no job has begun within 5 s(.|\n)*wait="):
            open_scheduler(f"{WORD},wait=0:5").__enter__()
        assert slurm("squeue", "-h", "-o", "%i").split() == [blocker], "ours was taken back"
    finally:
        slurm("scancel", blocker)


@pytest.mark.slow
def test_jobs_end_when_the_client_is_killed(home: Path) -> None:
    script = f"""
        import time
        from voidzoo.infer.schedulers.cluster import open_scheduler
        def work(item):
            time.sleep(0.1)
            return item
        with open_scheduler({WORD!r}) as scheduler:
            scheduler.share_out(work, range(10**6), 3, heard=lambda i: print(i, flush=True))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert slurm("squeue", "-h")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not slurm("squeue", "-h"))
