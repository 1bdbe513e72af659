"""Work on the threads of this process: each item once, in order, whatever is raised, and a million as cheap as ten."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from dask.threaded import get
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.infer.flow import Flow
from voidzoo.infer.schedulers.cluster import open_scheduler
from voidzoo.infer.schedulers.once import forget_all, once_per_process
from voidzoo.infer.schedulers.tasks import WINDOW, share_out


@given(n=st.integers(0, 3 * WINDOW + 5), threads=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_every_item_is_done_and_heard_of_once_by_the_caller(n: int, threads: int) -> None:
    heard: list[tuple[int, str]] = []
    here: set[int] = set()

    def listen(outcome: tuple[int, str]) -> None:
        heard.append(outcome)
        here.add(threading.get_ident())

    share_out(lambda i: (i, threading.current_thread().name), iter(range(n)), threads, heard=listen)
    assert sorted(i for i, _ in heard) == list(range(n))
    assert len({name for _, name in heard}) <= threads
    assert here <= {threading.get_ident()}


def test_items_begin_in_order() -> None:
    """Files are read front to back: when an item begins, fewer than there are threads of those before it have not.

    How late one of these begins says nothing: its thread may have taken it and then waited for a processor.
    """
    for threads in (1, 4):
        began: list[int] = []

        def work(item: int, began: list[int] = began) -> None:
            began.append(item)
            time.sleep(0.0005)

        share_out(work, range(2 * WINDOW + 3), threads)
        behind = [sum(later < item for later in began[place:]) for place, item in enumerate(began)]
        assert max(behind) < threads


def test_no_more_threads_than_asked_for_run_at_once() -> None:
    now = most = 0
    lock = threading.Lock()
    together = threading.Barrier(3)

    def work(item: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        if item < 3:
            together.wait(60)  # also on a busy machine three do run at once
        time.sleep(0.001)
        with lock:
            now -= 1

    share_out(work, range(200), 3)
    assert most == 3


def test_stopped_takes_no_further_item() -> None:
    stop = threading.Event()
    begun: list[int] = []
    heard: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.002)
        return item

    def listen(item: int) -> None:
        heard.append(item)
        if len(heard) == 20:
            stop.set()

    with open_scheduler("threads") as scheduler:
        assert (scheduler.name, scheduler.distributed, scheduler.workers) == ("threads", False, 1)
        scheduler.share_out(work, range(10**6), 3, heard=listen, stopped=stop.is_set)
    assert len(heard) <= 20 + 3
    assert sorted(heard) == sorted(begun), "what was begun was heard of"


def test_an_error_is_raised_after_the_running_ones() -> None:
    heard: list[int] = []
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 10:
            raise ZeroDivisionError("item ten")
        time.sleep(0.02)
        return item

    with pytest.raises(ZeroDivisionError, match="item ten"):
        share_out(work, range(10**6), 3, heard=heard.append)
    assert sorted([*heard, 10]) == sorted(begun)
    assert max(begun) <= 13


@pytest.mark.skipif(os.name == "nt", reason="sends itself SIGINT")
def test_ctrl_c_is_raised_after_the_running_ones() -> None:
    heard: list[int] = []
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 10:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return item

    with pytest.raises(KeyboardInterrupt):
        share_out(work, range(10**6), 3, heard=heard.append)
    assert sorted(heard) == sorted(begun)
    assert max(begun) <= 14


def test_other_work_of_dask_is_not_heard() -> None:
    """An image may be a dask array, and a notebook may use dask at the same time: their tasks are not ours."""
    over = threading.Event()
    runs: list[int] = []

    def meanwhile() -> None:
        while not over.is_set():
            runs.append(get({"a": (lambda: "theirs",)}, "a") == "theirs")

    other = threading.Thread(target=meanwhile)
    heard: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.001)
        return item + get({"b": (lambda: 1000,)}, "b")

    other.start()
    try:
        share_out(work, range(300), 3, heard=heard.append)
    finally:
        over.set()
        other.join()
    assert all(runs)
    assert len(runs) > 1
    assert Counter(heard) == Counter(range(1000, 1300))


@pytest.mark.slow
def test_a_million_items_cost_no_memory() -> None:
    flow = Flow()

    share_out(lambda i: i, range(1000), 3)
    before = psutil.Process().memory_info().rss
    share_out(lambda i: i, flow.items(), 3, heard=flow.listen)
    assert flow.heard == 1_000_000
    assert flow.most <= WINDOW
    assert psutil.Process().memory_info().rss - before < 50e6


@pytest.fixture
def _nothing_made() -> Iterator[None]:
    forget_all()
    yield
    forget_all()


@pytest.mark.usefixtures("_nothing_made")
def test_a_thing_is_made_once_however_many_want_it() -> None:
    made: list[int] = []

    def make() -> object:
        made.append(1)
        time.sleep(0.05)
        return object()

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda i: once_per_process(("session", i % 2), make), range(64)))
    assert len(made) == 2
    assert len(set(map(id, got))) == 2
    assert got[0] is got[2] is once_per_process(("session", 0), make)
    forget_all()
    assert once_per_process(("session", 0), make) is not got[0]


@pytest.mark.usefixtures("_nothing_made")
def test_what_could_not_be_made_is_tried_again() -> None:
    tries: list[int] = []

    def make() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")
        return "made"

    for _ in range(2):
        with pytest.raises(OSError, match="not yet"):
            once_per_process("x", make)
    assert once_per_process("x", make) == once_per_process("x", make) == "made"
    assert len(tries) == 3


@pytest.mark.usefixtures("_nothing_made")
def test_one_that_is_being_made_keeps_no_other_waiting() -> None:
    second = threading.Event()

    def slow() -> bool:
        return second.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once_per_process, "slow", slow)
        once_per_process("quick", second.set)
        assert first.result(30)
