"""`voidzoo doctor`: versions, memory, disk, and which devices really run a network."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .infer.report import size_text
from .screen import say
from .zoo.errors import VoidzooError

LIBRARIES = (
    "numpy",
    "dask",
    "zarr",
    "tifffile",
    "imagecodecs",
    "onnx",
    "openvino",
    "bioimageio.core",
    "bioimageio.spec",
    "pydantic",
)
EXTRAS = {"torch": "train, export"}
DOUBLE = bytes.fromhex(
    "08083a380a0e0a01780a01781201792203416464120474696e795a0f0a0178120a0a08080112040a020801620f0a0179120a"
    "0a08080112040a02080142040a001011"
)
"""An ONNX graph of one node, y = x + x of one float32 (opset 17, IR 8): what is smaller cannot be run."""


def doctor(*, as_json: bool) -> None:
    """Print what is installed and what runs."""
    facts = examine()
    if as_json:
        say(json.dumps(facts))
        return
    say(f"voidzoo {facts['voidzoo']}   Python {facts['python']}   {facts['system']}")
    say("  libraries  " + "   ".join(f"{k} {v or 'missing'}" for k, v in facts["libraries"].items()))
    for name, found in facts["extras"].items():
        needed = "" if found else f'   needed by {EXTRAS[name]}: pip install "voidzoo[train]"'
        say(f"  {name:<9}  {found or 'not installed'}{needed}")
    say(f"  onnxrt     {facts['onnxruntime']}")
    for word, told in facts["devices"].items():
        say(f"  {word:<9}  {told}")
    say(f"  memory     {size_text(facts['memory'])} free   processors {facts['processors']}")
    say(f"  disk       {size_text(facts['disk'])} free here")


def examine() -> dict[str, Any]:
    """The facts, JSON-able. Each device is asked to run a tiny network, not believed."""
    import onnxruntime
    import psutil

    from .infer.networks.device import PROVIDERS, cpu_count
    from .zoo.version import __version__

    onnxruntime.set_default_logger_severity(4)
    return {
        "voidzoo": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "extras": {name: _version(name) for name in EXTRAS},
        "onnxruntime": f"{onnxruntime.__version__} ({_wheel()})",
        "devices": {word: _try(word) for word in PROVIDERS},
        "memory": psutil.virtual_memory().available,
        "processors": cpu_count(),
        "disk": shutil.disk_usage(Path.cwd()).free,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wheel() -> str:
    found = [n for n in ("onnxruntime-gpu", "onnxruntime") if _version(n)]
    if len(found) > 1:
        return "onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall both, then install one"
    return found[0] if found else "built from source"


def _try(word: str) -> str:
    """Run x + x on a device and say what came of it."""
    import numpy as np
    import onnxruntime as ort

    from .infer.networks.device import PROVIDERS, find_device, openvino, openvino_installed

    try:
        device = find_device(word)
    except VoidzooError as error:
        return f"no: {error.what}"
    if word == "cuda" and hasattr(ort, "preload_dlls") and importlib.util.find_spec("nvidia"):
        ort.preload_dlls()
    x = np.array([1.5], np.float32)
    try:
        if device.kind == "openvino" and openvino_installed():
            core = openvino().Core()
            y = core.compile_model(core.read_model(DOUBLE, b""), "CPU")(x)[0]
            return _told(y)
        session = ort.InferenceSession(DOUBLE, providers=[PROVIDERS[device.kind]], enable_fallback=0)
        if session.get_providers()[0] != PROVIDERS[device.kind]:
            return "no: its libraries were not found or do not fit; onnxruntime fell back to the CPU"
        return _told(session.run(None, {"x": x})[0])
    except Exception as error:  # onnxruntime raises its own kinds, without a common base
        return f"no: {str(error).splitlines()[0][:120]}"


def _told(doubled: Any) -> str:
    return "runs" if float(doubled[0]) == 3.0 else "runs, but 1.5 + 1.5 is not 3: do not use it"
