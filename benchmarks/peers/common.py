"""What the scripts of all peers share: their arguments, and the one line of JSON at their end. Standard library only."""

from __future__ import annotations

import argparse
import json
import sys
import time


def parser(what: str) -> argparse.ArgumentParser:
    """MODEL IMAGE OUT and how to cut. `rules`: axis -> minimum, step, halo."""
    made = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="a package for bioimageio.core, a checkpoint for CAREamics, else an ONNX file")
    made.add_argument("image", help="a TIFF (z, y, x); for CAREamics to disk a Zarr group")
    made.add_argument("out")
    made.add_argument("--rules", type=json.loads, required=True, help="JSON: axis -> minimum, step, halo")
    made.add_argument("--outputs", type=int, default=1, help="channels that the network returns")
    made.add_argument("--setting", default="tuned", choices=("default", "tuned"))
    made.add_argument("--device", default="cpu")
    return made


def providers(device: str) -> list[str]:
    """onnxruntime's names for a device."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def margin(rule: dict[str, int]) -> int:
    """The halo, rounded up to a multiple of the step."""
    return -(-rule["halo"] // rule["step"]) * rule["step"]


def core(rules: dict[str, dict[str, int]], letter: str) -> int:
    """What a tile keeps along an axis with settings that suit all peers: 512 in planes, whole z x 128 x 128 in volumes."""
    return 512 if len(rules) == 2 else 64 if letter == "z" else 128


def done(layout: str, start: float, note: str = "") -> None:
    """The last line of stdout: the axes of the result, and seconds from opening the image to the closed result."""
    end = time.perf_counter()
    found = {"layout": layout, "seconds": round(end - start, 3), "note": note}
    sys.stdout.write("\n" + json.dumps(found) + "\n")
