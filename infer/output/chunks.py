"""Zarr arrays on disk as we write them: metadata, chunks and shards, without zarr-python.

zarr-python takes 0.25 to 0.5 s to import and about twice the time of the compression alone to write a chunk; what it
would write here is small: one JSON file, and chunks that are one Blosc buffer each.
v3: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html, its sharding-indexed, blosc and crc32c codecs;
v2: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Tests have zarr-python read what is written here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
"""What can be stored."""
LEVEL, BLOSC_BLOCK = 2, 2**19
"""Blosc's level 2 is zstd's level 3. With blocks of 512 kB, not Blosc's own choice, it packs as well as Blosc's level 3
in a third of the time: 2 ms for a denoised plane of 1024 x 1024 uint16, against 7 ms."""
MISSING = 2**64 - 1
"""Offset and size, in a shard's index, of a chunk that holds nothing but the fill value."""


@dataclass(frozen=True)
class Spec:
    """An array on disk. chunk: what is compressed at once. shard: what one file holds, None for one chunk a file.

    version: of the Zarr format, 2 or 3 (2 has no shards). The fill value is 0. level, block: of the Blosc compressor.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None = None
    version: int = 3
    axes: str = ""
    level: int = LEVEL
    block: int = BLOSC_BLOCK

    @property
    def grid(self) -> tuple[int, ...]:
        """What one file holds: a shard, or a chunk."""
        return self.shard or self.chunk

    @cached_property
    def little(self) -> np.dtype[Any]:
        """The dtype as stored: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def metadata_name(self) -> str:
        """The file that describes the array."""
        return "zarr.json" if self.version == 3 else ".zarray"

    def file(self, index: Sequence[int]) -> str:
        """The path, inside of the array, of the file at `index` of the grid."""
        return "/".join(["c", *map(str, index)] if self.version == 3 else map(str, index))

    def metadata(self) -> dict[str, Any]:
        """The JSON of `zarr.json` or `.zarray`."""
        return self._v3() if self.version == 3 else self._v2()

    def _v2(self) -> dict[str, Any]:
        blosc = {"id": "blosc", "cname": "zstd", "clevel": self.level, "shuffle": 1, "blocksize": self.block}
        return {
            "zarr_format": 2,
            "shape": list(self.shape),
            "chunks": list(self.chunk),
            "dtype": self.little.str,
            "compressor": blosc,
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }

    def _v3(self) -> dict[str, Any]:
        endian = {"name": "bytes", "configuration": {"endian": "little"}}
        size = self.little.itemsize
        codecs: list[dict[str, Any]] = [
            endian if size > 1 else {"name": "bytes"},
            {
                "name": "blosc",
                "configuration": {
                    "typesize": size,
                    "cname": "zstd",
                    "clevel": self.level,
                    "shuffle": "shuffle",
                    "blocksize": self.block,
                },
            },
        ]
        if self.shard:
            sharding = {
                "chunk_shape": list(self.chunk),
                "codecs": codecs,
                "index_codecs": [endian, {"name": "crc32c"}],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.grid)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if self.little.kind == "f" else 0,
            "codecs": codecs,
            "attributes": {},
            "dimension_names": list(self.axes) or None,
            "storage_transformers": [],
        }


def read_spec(folder: Path) -> Spec:
    """The spec of an array that was written here. Raises OutputError for one that was not, or is not there."""
    try:
        if (folder / "zarr.json").exists():
            found = json.loads((folder / "zarr.json").read_text())
            spec = _spec_v3(found)
        else:
            found = json.loads((folder / ".zarray").read_text())
            spec = _spec_v2(found)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _foreign(folder) from error
    rewritten = spec.metadata()
    if any(found.get(key) != rewritten[key] for key in rewritten if key != "attributes"):
        raise _foreign(folder)
    return spec


def _foreign(folder: Path) -> OutputError:
    return OutputError(
        f"{folder} is not an array of this version of voidzoo.", mend="--overwrite, or another -o  to start afresh"
    )


def _spec_v3(found: Mapping[str, Any]) -> Spec:
    grid = tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = found["codecs"]
    shard = None
    chunk = grid
    if codecs[0]["name"] == "sharding_indexed":
        shard, chunk = grid, tuple(codecs[0]["configuration"]["chunk_shape"])
        codecs = codecs[0]["configuration"]["codecs"]
    blosc = codecs[1]["configuration"]
    axes = "".join(found["dimension_names"] or "")
    shape = tuple(found["shape"])
    return Spec(shape, found["data_type"], chunk, shard, 3, axes, int(blosc["clevel"]), int(blosc["blocksize"]))


def _spec_v2(found: Mapping[str, Any]) -> Spec:
    blosc = found["compressor"]
    level, block = int(blosc["clevel"]), int(blosc["blocksize"])
    dtype = np.dtype(found["dtype"]).name
    return Spec(tuple(found["shape"]), dtype, tuple(found["chunks"]), None, 2, "", level, block)


def encode(values: NDArray[Any], spec: Spec) -> bytes | None:
    """One chunk, compressed; None where all of it is the fill value. values: the part of it inside of the array."""
    from imagecodecs import blosc_encode

    chunk: Any = values
    if values.shape != spec.chunk:  # at the end of the array: chunks are stored whole
        chunk = np.zeros(spec.chunk, spec.little)
        chunk[tuple(slice(n) for n in values.shape)] = values
    chunk = np.ascontiguousarray(chunk, spec.little)
    if _empty(chunk):
        return None
    packed: Any = blosc_encode(
        chunk,
        level=spec.level,
        compressor="zstd",
        shuffle=1,
        typesize=spec.little.itemsize,
        blocksize=spec.block,
        numthreads=1,  # blocks run side by side; the bytes are the same with any number
    )
    return packed


def _empty(chunk: NDArray[Any]) -> bool:
    """Whether all bytes are 0 (a -0.0 is a value). Nearly always decided by the first bytes."""
    bits = chunk.reshape(-1).view(f"u{chunk.itemsize}")
    return not bits[:64].any() and not bits.any()


def decode(data: bytes, spec: Spec) -> NDArray[Any]:
    """One chunk, in its whole shape. Raises ValueError for bytes that are not one."""
    from imagecodecs import BloscError, blosc_decode

    expected = prod(spec.chunk) * spec.little.itemsize
    if len(data) < 16 or struct.unpack("<II", data[4:8] + data[12:16]) != (expected, len(data)):
        raise ValueError(f"a chunk of {len(data)} bytes is cut short")  # the decoder would read beyond its end
    try:
        values = np.frombuffer(blosc_decode(data, numthreads=1), spec.little)
        return values.reshape(spec.chunk)
    except BloscError as error:
        raise ValueError(f"a chunk cannot be decoded: {error}") from error


def chunks_of(spec: Spec) -> list[tuple[int, ...]]:
    """The indices of the chunks in a shard, in the order of its index."""
    return list(product(*(range(g // c) for g, c in zip(spec.grid, spec.chunk, strict=True))))


def index_bytes(places: Sequence[tuple[int, int]]) -> bytes:
    """A shard's index: offset and size of each chunk, and the checksum."""
    raw = np.asarray(places, "<u8").tobytes()
    return raw + struct.pack("<I", crc32c(raw))


def index_size(spec: Spec) -> int:
    """Bytes at the end of a shard that are its index."""
    return 16 * prod(g // c for g, c in zip(spec.grid, spec.chunk, strict=True)) + 4


def read_index(raw: bytes) -> list[tuple[int, int]]:
    """Offset and size of each chunk of a shard. Raises ValueError where the checksum does not fit."""
    if len(raw) < 4 or struct.unpack("<I", raw[-4:])[0] != crc32c(raw[:-4]):
        raise ValueError("the checksum of a shard's index does not fit")
    return [(int(offset), int(size)) for offset, size in np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)]


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 3720, appendix B.4. For the few kB of an index only: it is plain Python."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return table


_CRC = _crc_table()
