"""How far a result lies from that of the network run on the whole image, by numpy and onnxruntime alone.

    python benchmarks/oracle.py MODEL.onnx IMAGE.tif RESULT --layout zcyx --rules JSON

The whole image is not run: a window with a margin that is wider than the receptive field gives the same numbers there,
and there are three windows: at the first corner, in the middle, at the last corner. As in voidzoo the image is mirrored
at its end up to a legal size. Errors are in units of the true result's standard deviation; `inside` leaves out what lies
within the halo of the image's border, where peers extend in other ways. Of results in whole numbers the 0.5 of rounding
is taken off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tifffile

SIDE = {2: 768, 3: 96}
"""Of a window, in pixels."""
Array = np.ndarray[Any, Any]
Rules = dict[str, dict[str, int]]


def windows(shape: tuple[int, ...], rules: Rules) -> list[tuple[slice, ...]]:
    """Windows (z, y, x) at the two ends and in the middle; of one plane where the network reads planes."""
    sides = {a: SIDE[len(rules)] if a in rules else 1 for a in "zyx"}
    if len(rules) == 3:
        sides["z"] = shape[0]
    found: list[tuple[slice, ...]] = []
    for at in (0.0, 0.5, 1.0):
        starts = [int(at * max(0, n - sides[a])) for a, n in zip("zyx", shape, strict=True)]
        window = tuple(slice(s, min(s + sides[a], n)) for s, a, n in zip(starts, "zyx", shape, strict=True))
        if window not in found:
            found.append(window)
    return found


def truth(session: ort.InferenceSession, image: Array, window: tuple[slice, ...], rules: Rules) -> Array:
    """What the network gives there: float32 (c, z, y, x)."""
    reads, crops, pads = [], [], []
    for a, part, n in zip("zyx", window, image.shape, strict=True):
        if a not in rules:
            reads.append(part)
            continue
        step, margin = rules[a]["step"], 2 * rules[a]["halo"]
        start = max(0, (part.start - margin) // step * step)
        stop = ceil((part.stop + margin) / step) * step
        legal = ceil(max(n, rules[a]["minimum"]) / step) * step
        stop = min(stop, legal)
        if stop > n:  # the mirror needs what it mirrors
            start = max(0, min(start, (2 * n - stop) // step * step))
        reads.append(slice(start, min(stop, n)))
        pads.append((0, max(0, stop - n)))
        crops.append(slice(part.start - start, part.stop - start))
    x = image[tuple(reads)].astype(np.float32)
    x = x[0] if len(rules) == 2 else x
    x = np.pad(x, pads, mode="symmetric")
    y = session.run(None, {session.get_inputs()[0].name: x[None, None]})[0][0]
    y = y[(slice(None), *crops)]
    return y[:, None] if len(rules) == 2 else y


def part_of(path: Path, layout: str, window: tuple[slice, ...], shape: tuple[int, ...], channels: int) -> Array:
    """The same window of a result: (c, z, y, x). layout: letters of its axes; c may be left out."""
    if path.suffix == ".npy":
        stored = np.load(path, mmap_mode="r")
    else:
        import zarr

        stored = zarr.open(path, mode="r")
        if isinstance(stored, zarr.Group):
            layers = stored.attrs.get("ome", {}).get("multiscales")
            if layers:
                layout = "".join(axis["name"] for axis in layers[0]["axes"])
                stored = stored[layers[0]["datasets"][0]["path"]]
            else:
                stored = stored[next(iter(stored.array_keys()))]
    sizes = dict(zip("zyx", shape, strict=True)) | {"c": channels}
    if tuple(stored.shape) != tuple(sizes.get(a, 1) for a in layout):
        raise ValueError(f"{path.name} has shape {stored.shape}; {layout} of {sizes} was expected")
    wanted = dict(zip("zyx", window, strict=True))
    values = np.asarray(stored[tuple(wanted.get(a, slice(None)) for a in layout)])
    keep = [a for a in "czyx" if a in layout]
    values = values[tuple(0 if a not in "czyx" else slice(None) for a in layout)]
    letters = [a for a in layout if a in "czyx"]
    values = values.transpose([letters.index(a) for a in keep])
    return values if "c" in keep else values[None]


def border_distance(window: tuple[slice, ...], shape: tuple[int, ...], rules: Rules) -> Array:
    """True farther than the halo from the image's border; (z, y, x)."""
    inside = np.ones([part.stop - part.start for part in window], bool)
    for axis, (a, part, n) in enumerate(zip("zyx", window, shape, strict=True)):
        if a in rules:
            at = np.arange(part.start, part.stop)
            ok = (at >= rules[a]["halo"]) & (at < n - rules[a]["halo"])
            inside &= ok.reshape([-1 if i == axis else 1 for i in range(3)])
    return inside


def pairs(
    session: ort.InferenceSession, image: Array, result: Path, layout: str, rules: Rules
) -> Iterator[tuple[Array, Array, Array]]:
    """Window by window: the truth, the difference, and what lies inside."""
    for window in windows(image.shape, rules):
        right = truth(session, image, window, rules)
        found = part_of(result, layout, window, image.shape, len(right))
        difference = np.abs(found.astype(np.float64) - right)
        if found.dtype.kind in "iu":
            # what a dtype cannot hold is clipped, and what it holds is rounded
            difference = np.maximum(np.abs(found - np.clip(right, *_limits(found.dtype)).astype(np.float64)) - 0.5, 0)
        yield right, difference, np.broadcast_to(border_distance(window, image.shape, rules), right.shape)


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def errors(weights: bytes, image: Array, result: Path, layout: str, rules: Rules) -> dict[str, float]:
    """`inside`, `all`: the largest difference; `rms`: inside; all in units of the truth's standard deviation."""
    session = ort.InferenceSession(weights, providers=["CPUExecutionProvider"])
    found = list(pairs(session, image, result, layout, rules))
    spread = float(np.std(np.concatenate([right.ravel() for right, _, _ in found])))
    inner = np.concatenate([difference[inside] for _, difference, inside in found])
    if not inner.size:
        inner = np.concatenate([difference.ravel() for _, difference, _ in found])
    return {
        "inside": float(inner.max() / spread),
        "rms": float(np.sqrt((inner**2).mean()) / spread),
        "all": float(max(difference.max() for _, difference, _ in found) / spread),
        "spread": spread,
    }


def main() -> None:
    """Compare and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--layout", required=True, help="letters of the result's axes")
    parser.add_argument("--rules", required=True, help="JSON: axis -> minimum, step, halo")
    arguments = parser.parse_args()
    image = tifffile.memmap(arguments.image, mode="r")
    found = errors(arguments.model.read_bytes(), image, arguments.result, arguments.layout, json.loads(arguments.rules))
    print(json.dumps({name: float(f"{value:.3g}") for name, value in found.items()}))


if __name__ == "__main__":
    main()
