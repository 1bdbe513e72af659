"""What a user writes in twenty lines: dask's overlap, onnxruntime in `map_blocks`, to a Zarr. The halo is right and on the grid.

`tuned`: chunks of 512 x 512 pixels (whole z x 128 x 128 in volumes); `default`: dask's own "auto", which here means the pages of the TIFF.
"""

import time

import dask.array as da
import numpy as np
import onnxruntime as ort
import tifffile
import zarr
from common import core, done, margin, parser, providers


def main() -> None:
    """Predict."""
    given = parser(__doc__ or "").parse_args()
    rules = given.rules
    session = ort.InferenceSession(given.model, providers=providers(given.device))
    start = time.perf_counter()
    x = da.from_zarr(zarr.open(tifffile.imread(given.image, aszarr=True), mode="r"))
    flat = len(rules) == 2
    if given.setting == "tuned":
        x = x.rechunk(tuple(min(core(rules, a), n) if a in rules else 1 for a, n in zip("zyx", x.shape, strict=True)))
    # an axis that is not cut needs no halo
    halo = {i: margin(rules[a]) if a in rules and x.numblocks[i] > 1 else 0 for i, a in enumerate("zyx")}

    def run(block: np.ndarray) -> np.ndarray:
        block = block.astype(np.float32)
        if flat:
            return np.stack([session.run(None, {"input": plane[None, None]})[0][0] for plane in block], axis=1)
        return session.run(None, {"input": block[None, None]})[0][0]

    y = da.overlap.overlap(x, depth=halo, boundary="none", allow_rechunk=False)
    y = y.map_blocks(
        run, dtype="float32", new_axis=0, chunks=((given.outputs,), *y.chunks), meta=np.empty((0,) * 4, "float32")
    )
    y = da.overlap.trim_internal(y, {0: 0, **{i + 1: h for i, h in halo.items()}}, boundary="none")
    y.to_zarr(given.out, overwrite=True)
    done("czyx", start)


if __name__ == "__main__":
    main()
