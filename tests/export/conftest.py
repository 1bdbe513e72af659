from __future__ import annotations

import pytest

import voidzoo as vz
from tests.export.tiny import tiny_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> vz.Run:
    """A 2D training of two steps."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "plain")
