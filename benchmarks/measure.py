"""Run a command as a process of its own: wall and processor seconds, peak memory of it and of its children."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSES = (0.05, 0.5)
"""Seconds between two looks at the memory: in the first second of a process, and later. The high-water mark is the
kernel's, so that only what children take together in a pause can be missed; a look takes half a millisecond of a processor
from what is measured."""


@dataclass(frozen=True)
class Measured:
    """What a process took. peak: bytes of the largest single process; tree: of all processes together at one time
    (pages that several share are counted for each). cpu: seconds of all. output: the end of stdout and stderr.
    """

    seconds: float
    cpu: float
    peak: int
    tree: int
    returncode: int
    output: str
    started: float
    stopped: bool = False


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cpus: Iterable[int] | None = None,
    timeout: float = 7200.0,
    stop_when: Callable[[], bool] | None = None,
) -> Measured:
    """Run `command` to its end, or until `stop_when()` or `timeout` (seconds), which kill it. cpus: all it may use.

    started: seconds since 1970, taken just before the process.
    """
    before = _allow(cpus)
    with tempfile.TemporaryFile() as log:
        started, start = time.time(), time.perf_counter()
        child = subprocess.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
            start_new_session=True,
        )  # fmt: skip
        _allow(before)
        watcher = Watcher(child.pid, start + timeout, stop_when)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - start
        watcher.end()  # before the child is reaped: until then nobody else can have its number
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(max(0, log.seek(0, os.SEEK_END) - 20000))
        output = log.read().decode(errors="replace")
    peak = watcher.peak
    # the kernel counts what this process held when it started the child as the child's; above that it is the child's
    if usage.ru_maxrss * 1024 > _memory_of(os.getpid())[1]:
        peak = max(peak, usage.ru_maxrss * 1024)
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(seconds, cpu, peak, max(peak, watcher.tree), child.returncode, output, started, watcher.stopped)


def _allow(cpus: Iterable[int] | None) -> set[int] | None:
    """Set the processors of this thread, which its children inherit. -> those it had; None where nothing changed."""
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        return None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    return before


class Watcher:
    """Looks at a process and its descendants until `end`: /proc tells their memory. Kills them when time is up."""

    def __init__(self, pid: int, deadline: float, stop_when: Callable[[], bool] | None = None) -> None:
        self.pid, self.deadline, self.stop_when = pid, deadline, stop_when
        self.peak = self.tree = 0
        self.stopped = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking; children that are left over are killed with their group."""
        self._ended.set()
        self._thread.join()
        self._kill()

    def _look(self) -> None:
        start = time.perf_counter()
        while not self._ended.wait(PAUSES[time.perf_counter() - start > 1]):
            held = [_memory_of(pid) for pid in (self.pid, *descendants(self.pid))]
            self.peak = max(self.peak, *(high for _, high in held))
            self.tree = max(self.tree, sum(now for now, _ in held))
            if time.perf_counter() > self.deadline or (self.stop_when is not None and self.stop_when()):
                self.stopped = True
                self._kill()
                return

    def _kill(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on; empty where /proc does not tell."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _memory_of(pid: int) -> tuple[int, int]:
    """Bytes that a process holds in memory, and the most that it ever held; 0, 0 once it is gone."""
    now = high = 0
    try:
        with Path(f"/proc/{pid}/status").open() as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    high = int(line.split()[1]) * 1024
                elif line.startswith("VmRSS:"):
                    now = int(line.split()[1]) * 1024
                    break
    except (OSError, ValueError):
        pass
    return now, high
