"""In CI nothing may be skipped: a missing tool there is a mistake of .ci/run. Elsewhere it is a skip with its reason."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.small_disk import SmallDisk, mounted
from tests.web import Server, serving

if TYPE_CHECKING:
    from voidzoo.zoo.package import Package

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime before voidzoo, which sets it

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processors: torch with as many threads as these waits ten times longer for each other than it
    # computes. The processes that tests start inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts what runs in its background with Ctrl-C ignored, and children inherit that:
    # the tests that press Ctrl-C would wait for ever. A handler of Python's is the default again in a child.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _one_runtime() -> None:
    """How busy the machine is must not decide which runtime a test is about: onnxruntime, but where a test says so."""
    from voidzoo.infer.networks import runtimes

    runtimes.WORTH_IT = dict.fromkeys(range(1, 5), float("inf"))


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The folder of a small 2D package with random weights."""
    from tests.packages import make_package

    return make_package(tmp_path_factory.mktemp("made") / "p")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server of the folder `web`, an empty cache, and no patience between two tries."""
    from voidzoo.zoo import download

    monkeypatch.setenv("VOIDZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.02))
    with serving(tmp_path / "web") as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 6 MB."""
    yield from mounted(tmp_path / "small")
