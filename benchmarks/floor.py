"""The floor: how fast onnxruntime alone runs a network, on random tiles that are there already. No halo, no files.

    python benchmarks/floor.py MODEL.onnx --tiles 1x512x512,4x256x256 --seconds 3

Tiles are batch x [z] x y x x. On the CPU every tile is tried in one session with all threads and in one single-threaded
session for each processor; on CUDA input and output stay in the memory of the device (I/O binding). Prints one JSON object:
arrangement -> Mvox/s.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from math import ceil, prod
from pathlib import Path

import numpy as np
import onnxruntime as ort
from machine import cores

Tile = tuple[int, ...]
Runner = Callable[[], object]
"""Runs one tile and is back when it is done."""


def cpu_runners(weights: bytes, sessions: int, tile: Tile) -> list[Runner]:
    """One runner for each of `sessions` sessions that share out the processors."""
    rng = np.random.default_rng(0)
    runners: list[Runner] = []
    for _ in range(sessions):
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, cores() // sessions)
        session = ort.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        x = rng.uniform(500, 3000, (tile[0], 1, *tile[1:])).astype(np.float32)
        runners.append(partial(session.run, None, {session.get_inputs()[0].name: x}))
    return runners


def cuda_runner(weights: bytes, index: int, tile: Tile) -> Runner:
    """A runner whose tile and result never leave the GPU. Raises RuntimeError where CUDA is not what runs."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    session = ort.InferenceSession(weights, providers=[("CUDAExecutionProvider", {"device_id": index})])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"CUDA was asked for, but {session.get_providers()[0]} runs")
    x = np.random.default_rng(0).uniform(500, 3000, (tile[0], 1, *tile[1:])).astype(np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(x, "cuda", index))
    binding.bind_output(session.get_outputs()[0].name, "cuda", index)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def voxels_per_second(runners: list[Runner], tile: Tile, seconds: float) -> float:
    """How fast all runners together are, over about `seconds` after an unmeasured start."""
    for _ in range(2):
        each = _together(runners, 1)
    rounds = max(1, ceil(seconds / each))
    return rounds * len(runners) * prod(tile) / _together(runners, rounds)


def _together(runners: list[Runner], rounds: int) -> float:
    """Seconds for `rounds` tiles of every runner."""

    def work(runner: Runner) -> None:
        for _ in range(rounds):
            runner()

    threads = [threading.Thread(target=work, args=(runner,)) for runner in runners[1:]]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    work(runners[0])
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def arrangements(device: str) -> list[int]:
    """How many sessions are tried."""
    return [1] if device != "cpu" or cores() == 1 else [1, cores()]


def name_of(sessions: int, tile: Tile) -> str:
    """An arrangement in words: `2 sessions, 1x512x512`."""
    return f"{sessions} session{'s' if sessions > 1 else ''}, {'x'.join(str(n) for n in tile)}"


def survey(weights: bytes, tiles: list[Tile], device: str, seconds: float, only: list[str]) -> dict[str, float]:
    """Mvox/s of every arrangement, or of those named in `only`."""
    found = {}
    for tile in tiles:
        for sessions in arrangements(device):
            name = name_of(sessions, tile)
            if only and name not in only:
                continue
            kind, _, index = device.partition(":")
            runners = (
                cpu_runners(weights, sessions, tile) if kind == "cpu" else [cuda_runner(weights, int(index or 0), tile)]
            )
            found[name] = round(voxels_per_second(runners, tile, seconds) / 1e6, 4)
    return found


def main() -> None:
    """Survey and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tiles", required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each arrangement")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--only", action="append", default=[], help="an arrangement by its name; repeatable")
    arguments = parser.parse_args()
    tiles = [tuple(int(n) for n in tile.split("x")) for tile in arguments.tiles.split(",")]
    weights = arguments.model.read_bytes()
    print(json.dumps(survey(weights, tiles, arguments.device, arguments.seconds, arguments.only)))


if __name__ == "__main__":
    main()
