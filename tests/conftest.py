"""In CI nothing may be skipped: a missing tool there is a mistake of .ci/run. Elsewhere it is a skip with its reason."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


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
