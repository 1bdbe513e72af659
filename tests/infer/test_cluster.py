"""Work over dask.distributed, with real schedulers and workers on loopback, some of which are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.infer.flow import Flow
from voidzoo.infer.schedulers import connect
from voidzoo.infer.schedulers.cluster import Scheduler, open_scheduler
from voidzoo.infer.schedulers.trouble import Lost, SchedulerError
from voidzoo.zoo.errors import RecipeError

ROOT = Path(__file__).parents[2]


class Site:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.taken = socket.socket()  # bound for as long as the site is there, so that nobody else is given this port;
        self.taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # with this the scheduler may listen on it
        self.taken.bind(("127.0.0.1", 0))
        port = self.taken.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.scheduler = self.start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", "127.0.0.1:0"
        )

    def start(self, module: str, *words: str, block: bool = False) -> subprocess.Popen[bytes]:
        """Start a command of dask. block: there, voidzoo cannot be imported."""
        blocked = "import sys; sys.modules['voidzoo'] = None; " if block else ""
        code = f"{blocked}from distributed.cli.{module} import main; main()"
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=log, cwd=ROOT)
        self.processes.append(process)
        return process

    def worker(self, *words: str, block: bool = False) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny: its process is the one that works."""
        name = f"worker-{len(self.processes)}"
        basic = [self.address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--nthreads", "1", "--name", name]
        memory = [] if "--memory-limit" in words else ["--memory-limit", "0"]
        return self.start("dask_worker", *basic, *memory, "--local-directory", str(self.folder), *words, block=block)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.taken.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def joined(site: Site, *statuses: str) -> None:
    """Wait until the scheduler's workers are in these states."""
    from distributed import Client

    connect: Any = Client  # it has no types

    def ask(dask_scheduler: Any) -> list[str]:
        return [ws.status.name for ws in dask_scheduler.workers.values()]

    with connect(site.address, set_as_default=False) as client:
        wait_until(lambda: client.run_on_scheduler(ask) == list(statuses))


def writes(folder: Path, seconds: float = 0.0) -> Callable[[int], tuple[int, int]]:
    """Work that writes a file for each item, and says which process did it."""

    def work(item: int) -> tuple[int, int]:
        time.sleep(seconds)
        with (folder / f"{item}.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return item, os.getpid()

    return work


def takes(seconds: float) -> Callable[[int], int]:
    """Work that takes so long, and gives back the item."""

    def work(item: int) -> int:
        time.sleep(seconds)
        return item

    return work


def run(
    scheduler: Scheduler, work: Any, n: int, lanes: int = 3, each: Callable[[int], None] | None = None
) -> list[Any]:
    """Share out n items -> what was heard. each: called with the number heard so far."""
    heard: list[Any] = []

    def listen(outcome: Any) -> None:
        heard.append(outcome)
        if each:
            each(len(heard))

    scheduler.share_out(work, range(n), lanes, heard=listen)
    return heard


def enter(word: str, **more: Any) -> None:
    with open_scheduler(word, **more):
        pass


def test_a_killed_worker_costs_nothing_and_a_late_one_helps(site: Site, tmp_path: Path) -> None:
    workers = [site.worker(), site.worker()]
    folder = tmp_path / "out"
    folder.mkdir()

    heard: list[tuple[int, int]] = []

    def listen(outcome: tuple[int, int]) -> None:
        heard.append(outcome)
        if len(heard) == 40:
            workers[0].kill()
        if len(heard) == 100:
            workers.append(site.worker())

    def items() -> Iterator[int]:
        """At least 300, and as many as it takes until the third worker has done 30."""
        for i in count():
            if i >= 300 and len([pid for _, pid in heard if pid == workers[-1].pid]) >= 30:
                break
            yield i

    with open_scheduler(site.address) as scheduler:
        wait_until(lambda: scheduler.workers == 2)
        assert scheduler.distributed
        assert scheduler.name == f"{site.address} (2 workers)"
        scheduler.share_out(writes(folder, 0.03), items(), 3, heard=listen)
        assert scheduler.workers == 2
    n = len(heard)
    assert n >= 300
    assert sorted(item for item, _ in heard) == list(range(n)), "every item is heard of exactly once"
    done = [(folder / f"{i}.txt").read_text().splitlines() for i in range(n)]
    assert len(list(folder.iterdir())) == n
    assert sum(len(lines) - 1 for lines in done) <= 3, "done twice are at most those in flight on the worker that died"
    assert {pid for _, pid in heard} == {w.pid for w in workers}


def test_without_workers_it_ends_in_words(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "WORKERS", 1.0)
    told: list[str] = []
    with pytest.raises(SchedulerError, match=rf"has no worker.* 1 s(.|\n)*dask worker {site.address}"):
        enter(site.address, tell=told.append)
    assert told == [f"waiting up to 1 s for the first worker of {site.address}"]
    monkeypatch.setattr(connect, "WORKERS", 60.0)
    workers = [site.worker(), site.worker()]
    heard: list[int] = []

    def listen(outcome: int) -> None:
        heard.append(outcome)
        if len(heard) == 10:
            for worker in workers:
                worker.kill()

    with open_scheduler(site.address) as scheduler:
        wait_until(lambda: scheduler.workers == 2)
        scheduler.patience = 3  # type: ignore[attr-defined]
        start = time.monotonic()
        with pytest.raises(SchedulerError, match=r"last worker has gone(.|\n)*finished blocks are kept"):
            scheduler.share_out(takes(0.05), range(1000), 3, heard=listen)
        assert time.monotonic() - start < 60
        assert len(set(heard)) == len(heard) >= 10
        # one that comes in time is enough
        threading.Timer(0.5, site.worker).start()
        scheduler.patience = 60  # type: ignore[attr-defined]
        assert sorted(run(scheduler, lambda i: i, 20)) == list(range(20))


def test_the_scheduler_dies(site: Site) -> None:
    site.worker()

    def each(heard: int) -> None:
        if heard == 10:
            site.scheduler.kill()

    with open_scheduler(site.address) as scheduler:
        with pytest.raises(SchedulerError, match=r"connection to the scheduler broke(.|\n)*same command again"):
            run(scheduler, takes(0.05), 1000, each=each)
        with pytest.raises(SchedulerError):
            run(scheduler, lambda i: i, 10)


def test_an_item_that_kills_its_workers_is_lost_alone(tmp_path: Path) -> None:
    """Two workers with nannies; items 7 and 30 end their process at once. All the others are done."""

    def work(item: int) -> tuple[int, int]:
        if item in (7, 30):
            os.kill(os.getpid(), signal.SIGKILL)
        return item, os.getpid()

    with open_scheduler("processes:2") as scheduler:
        heard = run(scheduler, work, 60)
        lost = [h for h in heard if isinstance(h, Lost)]
        assert sorted(h.item for h in lost) == [7, 30]
        assert "died each time it was tried" in str(lost[0].error)
        assert sorted(h[0] for h in heard if not isinstance(h, Lost)) == [i for i in range(60) if i not in (7, 30)]


@pytest.mark.slow
def test_a_process_that_takes_more_than_its_share_is_ended() -> None:
    def work(item: int) -> int:
        if item == 3:
            ballast = np.ones(100_000_000)
            time.sleep(30)
            return int(ballast[0])
        return item

    with open_scheduler("processes:2", memory=800_000_000) as scheduler:
        heard = run(scheduler, work, 10)
        assert [h.item for h in heard if isinstance(h, Lost)] == [3]
        assert sorted(h for h in heard if not isinstance(h, Lost)) == [0, 1, 2, *range(4, 10)]


def test_the_work_travels_once_and_things_are_made_once(site: Site) -> None:
    """Ten megabytes of work; 400 items; what the client sends is far less than the work for each."""
    site.worker("--nthreads", "3")
    site.worker("--nthreads", "3")
    rng = np.random.default_rng(3)
    table = rng.bytes(10_000_000)
    expected = [table[i * 1000] for i in range(400)]

    class Work:
        def __init__(self) -> None:
            self.table = table

        def __call__(self, item: int) -> tuple[int, int, int, int]:
            from voidzoo.infer.schedulers.once import once_per_process

            def make() -> list[int]:
                time.sleep(0.2)  # long enough for the other threads to want it, too
                return [0]

            made = once_per_process("test", make)
            made[0] += 1  # (the count is only looked at for its identity)
            return item, self.table[item * 1000], id(made), os.getpid()

    with open_scheduler(site.address) as scheduler:
        wait_until(lambda: scheduler.workers == 2)
        before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        heard = run(scheduler, Work(), 400)
        sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
        assert [h[1] for h in sorted(heard)] == expected
        assert len({(h[2], h[3]) for h in heard}) == len({h[3] for h in heard}) == 2, "one in each process"
        assert sent < 400 * len(table) / 10
        kept = run(scheduler, Work(), 50)
        assert {(h[2], h[3]) for h in kept} <= {(h[2], h[3]) for h in heard}, "also for the next image"
        assert _left_behind(site) > 0
    wait_until(lambda: _left_behind(site) == 0)


def _left_behind(site: Site) -> int:
    """What the workers and the scheduler hold of ours."""
    from distributed import Client

    connect: Any = Client  # it has no types

    def count() -> int:
        from voidzoo.infer.schedulers import once, remote

        return len(once._SLOTS) + len(remote._PARCELS) + len(remote._CLIENTS)

    def plugins(dask_scheduler: Any) -> int:
        names = [*dask_scheduler.plugins, *dask_scheduler.worker_plugins]
        return sum(name.startswith("voidzoo") for name in names)

    with connect(site.address, set_as_default=False) as client:
        return sum(client.run(count).values()) + client.run_on_scheduler(plugins)


def test_a_killed_client_leaves_nothing_in_the_workers(site: Site) -> None:
    site.worker()
    script = f"""
        import time
        from voidzoo.infer.schedulers.cluster import open_scheduler
        from voidzoo.infer.schedulers.once import once_per_process
        def work(item):
            from voidzoo.infer.schedulers.once import once_per_process
            once_per_process("x", lambda: bytes(1000))
            time.sleep(0.1)
            return item
        with open_scheduler({site.address!r}) as scheduler:
            scheduler.share_out(work, range(10**6), 3, heard=lambda i: print(i, flush=True))
    """
    with python(script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert _left_behind(site) > 0
        process.kill()
    wait_until(lambda: _left_behind(site) == 0)


def python(script: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, **more,
    )  # fmt: skip


def session(leader: int) -> list[int]:
    """The processes that live in the session of this one."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader:
                found.append(process.pid)
    return found


def test_stop_finishes_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    with open_scheduler("processes:2") as scheduler:
        stop = threading.Event()
        heard: list[tuple[int, int]] = []

        def listen(outcome: tuple[int, int]) -> None:
            heard.append(outcome)
            if len(heard) == 20:
                stop.set()

        scheduler.share_out(writes(tmp_path, 0.05), range(10**6), 3, heard=listen, stopped=stop.is_set)
        assert 20 <= len(heard) <= 20 + 6
        written = {int(p.stem) for p in tmp_path.glob("*.txt")}
        assert written == {item for item, _ in heard}, "whatever was done was heard of"


def test_an_error_in_the_work_is_raised_here(tmp_path: Path) -> None:
    with open_scheduler("processes:1") as scheduler:

        def work(item: int) -> int:
            if item == 5:
                raise ZeroDivisionError("item five")
            return item

        heard: list[int] = []
        with pytest.raises(ZeroDivisionError, match="item five"):
            scheduler.share_out(work, range(10**6), 3, heard=heard.append)
        assert set(range(5)) <= set(heard) <= {*range(5), 6, 7, 8}
        assert sorted(run(scheduler, lambda i: i, 10)) == list(range(10)), "and the scheduler is as good as new"

        def deaf(_outcome: int) -> None:
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            scheduler.share_out(lambda i: i, range(10**6), 3, heard=deaf)
        assert sorted(run(scheduler, lambda i: i, 10)) == list(range(10))


def test_ctrl_c_reaches_the_children_too_but_they_finish(tmp_path: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it: what runs is finished and heard of."""
    script = f"""
        import time, pathlib
        from voidzoo.infer.schedulers.cluster import open_scheduler
        def work(item):
            time.sleep(0.2)
            pathlib.Path({str(tmp_path)!r}, str(item)).touch()
            return item
        if __name__ == "__main__":
            with open_scheduler("processes:2") as scheduler:
                try:
                    scheduler.share_out(work, range(10**6), 3, heard=lambda i: print(i, flush=True))
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
    """
    with python(script, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.stdout.read(), process.stderr.read()  # communicate() would lose what is buffered
    heard = [*first.split(), *rest.split()]
    assert heard[-1] == "interrupted"
    assert sorted(heard[:-1]) == sorted(p.name for p in tmp_path.iterdir())
    assert len(heard) < 1000  # of a million: ten in a second until the signal is there
    assert process.returncode == 0
    assert errors == ""


def test_a_second_ctrl_c_ends_what_runs(tmp_path: Path) -> None:
    """The second is sent when the first has been noted, which is when the handler of before is back."""
    script = f"""
        import pathlib, signal, threading, time
        from voidzoo.infer.schedulers.cluster import open_scheduler
        def work(item):
            pathlib.Path({str(tmp_path)!r}, str(item)).touch()
            time.sleep(300)
        def tell():
            usual = signal.getsignal(signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is usual:
                time.sleep(0.01)
            print("waits", flush=True)
            while signal.getsignal(signal.SIGINT) is not usual:
                time.sleep(0.01)
            print("noted", flush=True)
        if __name__ == "__main__":
            try:
                with open_scheduler("processes:2") as scheduler:
                    threading.Thread(target=tell, daemon=True).start()
                    scheduler.share_out(work, range(10**6), 3)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    """
    with python(script, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        assert len(session(process.pid)) > 2
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "noted\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("interrupted\n", "")
    wait_until(lambda: not session(process.pid))


@pytest.mark.slow
def test_ctrl_c_while_it_opens_leaves_no_trace() -> None:
    script = """
        from voidzoo.infer.schedulers.cluster import open_scheduler
        if __name__ == "__main__":
            import distributed
            try:
                print("ready", flush=True)
                with open_scheduler("processes:2"):
                    while True:
                        pass
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    """
    rng = np.random.default_rng()
    for _ in range(5):
        with python(script, start_new_session=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.02, 1.5))
            os.killpg(process.pid, signal.SIGINT)
            assert process.communicate(timeout=60) == ("interrupted\n", "")
            assert process.returncode == 0
        wait_until(lambda: not session(process.pid))


def test_children_end_with_a_client_that_is_killed(tmp_path: Path) -> None:
    script = """
        import os, time, pathlib
        from voidzoo.infer.schedulers.cluster import open_scheduler
        def work(item):
            time.sleep(0.1)
            return os.getpid()
        if __name__ == "__main__":
            with open_scheduler("processes:2") as scheduler:
                scheduler.share_out(work, range(10**6), 3, heard=lambda pid: print(pid, flush=True))
    """
    with python(script, start_new_session=True) as process:
        assert process.stdout is not None
        pids: set[int] = set()
        while len(pids) < 2:
            pids.add(int(process.stdout.readline()))
        assert pids < set(session(process.pid))
        process.kill()
    wait_until(lambda: not session(process.pid), 30)


def test_a_worker_process_imports_nothing_heavy() -> None:
    def modules(_item: int) -> list[str]:
        import sys

        heavy = ("torch", "onnxruntime", "scipy", "skimage", "zarr", "pandas", "bokeh", "bioimageio", "xarray")
        return [name for name in heavy if name in sys.modules]

    with open_scheduler("processes:1") as scheduler:
        assert run(scheduler, modules, 1) == [[]]


def test_only_loopback_listens() -> None:
    with open_scheduler("processes:1") as scheduler:
        me = psutil.Process()
        listening = [
            c.laddr.ip for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        ]  # fmt: skip
        assert listening
        assert set(listening) == {"127.0.0.1"}
        assert scheduler.name == "1 process"


def test_gpu_tasks_go_to_gpu_workers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.worker()
    monkeypatch.setattr(connect, "WORKERS", 2.0)
    with pytest.raises(SchedulerError, match=r'no GPU worker(.|\n)*--resources "GPU=1"'):
        enter(site.address, gpu=True)
    gpu = site.worker("--resources", "GPU=1")
    monkeypatch.setattr(connect, "WORKERS", 60.0)
    with open_scheduler(site.address, gpu=True) as scheduler:
        assert {pid for _, pid in run(scheduler, lambda i: (i, os.getpid()), 50)} == {gpu.pid}
    with open_scheduler("processes:2", gpu=True) as scheduler:
        assert len(run(scheduler, lambda i: i, 20)) == 20


def test_workers_that_dask_pauses_do_not_hang_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One holds more than 80 % of its memory after the first item: dask pauses it for ever. The other does the rest;
    when it goes, too, that is told.
    """

    def work(item: int) -> int:
        import time

        from voidzoo.infer.schedulers.once import once_per_process

        once_per_process("ballast", lambda: bytearray(500_000_000) if limited() else None)
        time.sleep(0.05)
        return os.getpid()

    def limited() -> bool:
        from distributed import get_worker

        return bool(get_worker().memory_manager.memory_limit)

    paused = site.worker("--memory-limit", "550MB")
    with open_scheduler(site.address) as scheduler:
        other = site.worker()
        wait_until(lambda: scheduler.workers == 2)
        by = Counter(run(scheduler, work, 100))
        assert sum(by.values()) == 100
        assert by[paused.pid] >= 1
        assert by[other.pid] >= 50
        assert scheduler.workers == 1
        other.kill()
        scheduler.patience = 3  # type: ignore[attr-defined]
        with pytest.raises(SchedulerError, match=r"paused every worker(.|\n)*--memory-limit"):
            run(scheduler, work, 100)
    with open_scheduler(site.address) as scheduler:  # what the worker held went with its client
        assert run(scheduler, lambda i: i, 3)
    paused.kill()
    site.worker("--memory-limit", "40MB")  # less than the process takes by itself
    joined(site, "paused")
    monkeypatch.setattr(connect, "WORKERS", 1.0)
    with pytest.raises(SchedulerError, match="paused every worker"):
        enter(site.address)


def say(listener: socket.socket, text: bytes) -> None:
    """Accept one caller, say this, and listen until it hangs up."""
    caller, _ = listener.accept()
    with caller:
        caller.send(text)
        while caller.recv(1000):
            pass


def test_what_cannot_be_opened(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for word, legal in {
        "dask": "threads, processes:N",
        "processes": "processes:",
        "processes:0": "1 or more",
        "processes:two": "1 or more",
        "tcp://": "tcp://host:8786",
        "tcp://host": "tcp://host:8786",
        "tcp://host:99999": "tcp://host:8786",
        "threads:4": "threads",
    }.items():
        with pytest.raises(RecipeError, match=legal):
            open_scheduler(word)
    monkeypatch.setattr(connect, "CONNECT", 2.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        port = mute.getsockname()[1]
        for banner in (b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            speaker = threading.Thread(target=say, args=(mute, banner))
            speaker.start()
            with pytest.raises(SchedulerError, match=f"no scheduler of dask answers at tcp://127.0.0.1:{port}"):
                enter(f"tcp://127.0.0.1:{port}")
            speaker.join()
    with pytest.raises(SchedulerError, match=rf"no scheduler(.|\n)*dask scheduler --port {port}"):
        enter(f"tcp://127.0.0.1:{port}")
    with pytest.raises(SchedulerError, match="certificates"):
        enter(f"tls://127.0.0.1:{port}")


def test_a_worker_without_voidzoo_is_named(site: Site) -> None:
    site.worker(block=True)
    joined(site, "running")
    with pytest.raises(SchedulerError, match=r"worker at tcp://.* cannot import voidzoo(.|\n)*pip install voidzoo=="):
        enter(site.address)


@pytest.mark.slow
def test_a_million_items_cost_the_client_nothing(site: Site) -> None:
    """What is in flight stays bounded and memory flat; the first 10,000 are done."""
    site.worker()
    site.worker()
    flow = Flow()

    with open_scheduler(site.address) as scheduler:
        wait_until(lambda: scheduler.workers == 2)
        scheduler.share_out(lambda i: i, range(100), 8)
        before = psutil.Process().memory_info().rss
        scheduler.share_out(lambda i: i, flow.items(), 8, heard=flow.listen,
                            stopped=lambda: flow.heard >= 10_000)  # fmt: skip
        assert 10_000 <= flow.heard <= 10_000 + 16
        assert flow.taken <= flow.heard + 16
        assert flow.most <= 16
        assert psutil.Process().memory_info().rss - before < 100e6


def test_a_script_without_its_guard_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from voidzoo.infer.schedulers.cluster import open_scheduler\n"
        "with open_scheduler('processes:2') as scheduler:\n"
        "    scheduler.share_out(print, range(3), 1)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode
    assert '__name__ == "__main__"' in done.stderr.splitlines()[-1]
