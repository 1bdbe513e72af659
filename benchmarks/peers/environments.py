"""The environments of the peers, each its own, made once in a cache folder with `venv` and pip from PyPI.

    python benchmarks/peers/environments.py FOLDER [dask monai careamics]

torch is pinned to the version that voidzoo is tested with and installed first, so that nothing replaces it. On Linux pip
fetches it with its CUDA libraries (several GB) unless an index or folder with a CPU build is given, e.g.
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. CAREamics 0.3.5 and its microssim are installed without their
dependencies: they refuse this torch, and want a torchvision that prediction does not use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
TORCH = ["torch==2.13.0"]
STEPS: dict[str, list[list[str]]] = {
    "dask": [["--requirement", str(HERE / "requirements-dask.txt")]],
    "monai": [TORCH, [*TORCH, "--requirement", str(HERE / "requirements-monai.txt")]],
    "careamics": [
        TORCH,
        [*TORCH, "--requirement", str(HERE / "requirements-careamics.txt")],
        ["--no-deps", "careamics==0.3.5", "microssim==0.0.3"],
    ],
}
"""What pip is given, step by step."""
NAMED = {
    "dask": ("dask", "onnxruntime", "zarr"),
    "monai": ("monai", "onnxruntime", "torch"),
    "careamics": ("careamics", "lightning", "torch"),
}
"""What is told of an environment beside figures."""


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return folder / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build(folder: Path, name: str) -> Path:
    """Make the environment if it is not there. -> its interpreter. Raises CalledProcessError when pip fails."""
    python, stamp = python_of(folder, name), folder / name / ".complete"
    if not stamp.exists():
        venv.create(folder / name, with_pip=True, clear=True)
        for step in [["--upgrade", "pip"], *STEPS[name]]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *step], check=True)
        stamp.touch()
    return python


def versions(python: Path, name: str) -> dict[str, str]:
    """The versions of what matters in an environment."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {NAMED[name]!r}}}))"
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Make environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(STEPS))
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in STEPS:
            parser.error(f"there is no peer {name!r}: {', '.join(STEPS)}")
        python = build(arguments.folder, name)
        print(python, json.dumps(versions(python, name)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
