"""CAREamics' prediction with a U-Net of its own, of the same depth and filters (a quarter fewer multiplications).

    run_careamics.py --prepare CHECKPOINT 2 32      for 2D and 32 filters: two steps of a training write it
    run_careamics.py CHECKPOINT IMAGE OUT --rules JSON [--disk] [--whole]

Tiles of 256 x 256 (64 x 128 x 128, halo beside it) with an overlap of 48: faster for it than 512 x 512. `--disk`: from Zarr to Zarr.
`--whole`: no tiles, to compare with.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import done, parser
from no_torchvision import without_torchvision

OVERLAP = 48


def prepare(path: Path, dims: int, filters: int) -> None:
    """Train for two steps on noise, to get a checkpoint with all that prediction wants to know."""
    from careamics import CAREamist
    from careamics.config.factories import create_advanced_n2v_config

    space = "ZYX"[3 - dims :]
    patch = [64, 64] if dims == 2 else [16, 64, 64]
    noise = np.random.default_rng(0).normal(1000, 300, (4, *(2 * n for n in patch))).astype(np.float32)
    config = create_advanced_n2v_config(
        experiment_name="bench", data_type="array", axes="S" + space, patch_size=patch, batch_size=2, num_epochs=1,
        num_steps=2, n_val_patches=2, model_params={"depth": 2, "num_channels_init": filters}, num_workers=0, seed=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trained = CAREamist(config, work_dir=folder, enable_progress_bar=False)
        trained.train(train_data=noise)
        made = max(Path(folder).rglob("*.ckpt"), key=lambda p: p.stat().st_mtime)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.read_bytes())


def predict(given: Any) -> None:
    """Predict a TIFF to a .npy, or a Zarr to a Zarr."""
    from careamics import CAREamist

    flat = len(given.rules) == 2
    with tempfile.TemporaryDirectory(dir=Path(given.out).parent) as folder:
        model = CAREamist(checkpoint_path=given.model, work_dir=folder, enable_progress_bar=False)
        start = time.perf_counter()
        how: dict[str, Any] = {
            "batch_size": 1,
            "axes": "SYX" if flat else "ZYX",
            "num_workers": 0,
            "checkpoint": given.model,
        }
        if not given.whole:
            how["tile_size"] = (256, 256) if flat else (64, 176, 176)
            how["tile_overlap"] = (OVERLAP,) * (2 if flat else 3)
        if given.disk:
            uri = Path(given.image).resolve().as_uri() + "/raw"
            model.predict_to_disk(
                uri, prediction_dir=Path(given.out).resolve(), write_type="zarr", data_type="zarr", **how
            )
        else:
            found, _ = model.predict(given.image, data_type="tiff", **how)
            np.save(given.out, np.asarray(found[0]))
        done("careamics", start, "a U-Net of its own with a quarter fewer multiplications")


def main() -> None:
    """Prepare or predict."""
    without_torchvision()
    if sys.argv[1] == "--prepare":
        prepare(Path(sys.argv[2]), dims=int(sys.argv[3]), filters=int(sys.argv[4]))
        return
    known = parser(__doc__ or "")
    known.add_argument("--disk", action="store_true")
    known.add_argument("--whole", action="store_true")
    predict(known.parse_args())


if __name__ == "__main__":
    main()
