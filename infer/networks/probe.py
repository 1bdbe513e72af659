"""A short run of a network on random tiles: how fast it is, how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import PackageError, VoidzooError
from .onnx_network import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .session import Session


@dataclass(frozen=True)
class Probe:
    """What a short run measured: input voxels per second of all workers, and bytes of working memory per input voxel
    of one of them. fixed: those where all runs are of one shape, if that makes a difference. got: the share of the
    processors' time that the run had; the rest went to other programs, or to nothing.
    """

    voxels_per_second: float
    bytes_per_voxel: float
    fixed: float | None = None
    got: float = 1.0

    @property
    def undisturbed(self) -> float:
        """Voxels per second with the processors for itself: how busy the machine is must not change what is chosen."""
        return self.voxels_per_second / self.got


def probe(session: Session, shape: Sequence[int], seconds: float = 0.02) -> Probe:
    """Measure speed and working memory on random tiles of `shape` (n, c, *space) in a session that is still new.

    The working memory is what the process grew by in the first run: onnxruntime's arena keeps all it took.
    """
    import psutil

    process = psutil.Process()
    x = random_feeds(session, shape)
    before = process.memory_info().rss
    with ThreadPoolExecutor(session.workers) as pool:

        def together() -> tuple[float, float]:
            start, used = time.perf_counter(), time.process_time()
            list(pool.map(lambda _: _run(session, x), range(session.workers)))
            return time.perf_counter() - start, time.process_time() - used

        together()
        grown = max(0, process.memory_info().rss - before) / session.workers
        runs, until = [together()], time.perf_counter() + seconds
        while time.perf_counter() < until:
            runs.append(together())
    best, used = (min(figures) for figures in zip(*runs, strict=True))
    got = used / (best * session.workers * session.threads) or 1.0  # 0: the clock is too coarse to tell
    return Probe(session.workers * _voxels(x[0]) / best, grown / _voxels(x[0]), got=min(1.0, got))


def random_feeds(session: Session, shape: Sequence[int]) -> list[NDArray[Any]]:
    """Random tiles for all inputs, given the shape (n, c, *space) of the main one."""
    rng = np.random.default_rng(0)
    return [rng.random(sizes, dtype=np.float32) for sizes in session.geometry.feed_shapes(shape)]


def _run(session: Session, x: Sequence[NDArray[Any]]) -> None:
    try:
        session.run(x)
    except VoidzooError:
        raise
    except Exception as error:  # onnxruntime raises its own kinds, without a common base
        raise PackageError("the network cannot run on a tile of a size that its package calls legal.",
                           where=f"input {x[0].shape}: {first_line(error)}") from error  # fmt: skip


def _voxels(x: NDArray[Any]) -> int:
    return x.size // x.shape[1]
