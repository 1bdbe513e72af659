"""Environments of their own for readers that do not go with this one, made for a test, none of it pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any


def make_environment(folder: Path, *packages: str) -> str:
    """An environment with just these packages, the tests' own behind them for all else -> its Python."""
    venv.create(folder, with_pip=False)
    site = next(folder.rglob("site-packages"))
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([sys.executable, *words, *packages], check=True)
    (site / "zz_behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")


def told(python: str, code: str, *words: object, path: str = "") -> Any:
    """The last line that a script prints, as JSON. path: its PYTHONPATH."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, *map(str, words)], capture_output=True, text=True, check=False,
        timeout=900, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
