"""The test tensors of a package, which may be anybody's: read as the numbers that lie there, and nothing else."""

from __future__ import annotations

import io
import tokenize
import warnings
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import PackageError
from ..zoo.package_files import MAX_TENSOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..zoo.package import Package


def test_tensors(package: Package) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The test input and output of a package, float32 (b, c, [z], y, x). Raises PackageError if there are none."""
    test_input = _tensor(package, package.test_input, package.channels_in)
    test_output = _tensor(package, package.test_output, package.channels_out)
    if test_input.shape[2:] != test_output.shape[2:] or len(test_input) != len(test_output):
        raise PackageError(
            f"{package.path}: the test input has the shape {test_input.shape}, the output {test_output.shape}."
        )
    return test_input, test_output


def tensor_of(package: Package, name: str) -> NDArray[Any]:
    """A .npy of a package, as it lies there. Raises PackageError for one that is missing or no array of numbers."""
    data = package.files.read(name, limit=MAX_TENSOR)
    try:
        return _numbers(data)
    except (ValueError, TypeError, EOFError, OverflowError, MemoryError) as error:
        raise PackageError(f"{package.path}: {name} is no array of numbers.", where=str(error)[:200]) from error


def lively(x: NDArray[Any]) -> NDArray[np.float32]:
    """The grey values of a tensor, to draw others from; where it has one alone, noise of about its level.

    On a constant image every halo is enough and every kernel of the same sum the same. x: any axes -> (n,).
    """
    values = np.asarray(x, np.float32).ravel()
    if np.ptp(values) > 0:
        return values
    level = float(np.clip(abs(np.nan_to_num(values[0])), 1.0, 60.0))  # within 8 bits, whatever the network reads
    return np.random.default_rng(0).integers(0, int(4 * level) + 1, max(4096, values.size)).astype(np.float32)


def _tensor(package: Package, name: str, channels: Sequence[str]) -> NDArray[np.float32]:
    tensor = np.array(tensor_of(package, name), dtype=np.float32, order="C")  # torch wants to be able to write
    if tensor.ndim != 2 + len(package.axes) or tensor.shape[1] != len(channels) or 0 in tensor.shape:
        raise PackageError(
            f"{package.path}: {name} has the shape {tensor.shape}; "
            f"batch, {len(channels)} channels, {', '.join(package.axes)} are needed."
        )
    return tensor


def _numbers(data: bytes) -> NDArray[Any]:
    """A .npy file as it lies in memory: what its header promises beyond that is never asked for. Raises ValueError."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"it is a .npy of version {version[0]}.{version[1]}; 1.0 and 2.0 hold numbers")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2
            shape, fortran, dtype = read(stream)
    except (SyntaxError, tokenize.TokenError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, no numbers; objects are pickles, which are not loaded")
    left = len(data) - stream.tell()
    if min(shape, default=0) < 0 or len(shape) > 32 or prod(shape) * dtype.itemsize != left:
        raise ValueError(f"its header promises {str(shape)[:60]} of {dtype}; {left:,} bytes follow")
    found = np.frombuffer(data, dtype, offset=stream.tell())
    return found.reshape(shape, order="F" if fortran else "C")
