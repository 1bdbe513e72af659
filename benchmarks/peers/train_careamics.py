"""CAREamics' N2V on an array of images: when its steps ended, and what it predicts.

    train_careamics.py IMAGES.npy --batch 16 --patch 64 --epochs 3 --steps 20 [--same-network] [--seed 1] [--out OUT.npy]

IMAGES: float32 (s, y, x). Its own U-Net has a quarter fewer multiplications than the plain one of the same depth and filters;
`--same-network` puts voidzoo's into its place. All other settings are its defaults. The last line of stdout is JSON: `ends`, the
time (seconds since 1970) at the end of each step, an inner list an epoch; `masking`, seconds a step.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from no_torchvision import without_torchvision


def main() -> None:
    """Train, and predict where a file for it is given."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("images")
    for name, default in (("batch", 16), ("patch", 64), ("epochs", 3), ("steps", 20), ("seed", 1), ("threads", 0)):
        known.add_argument(f"--{name}", type=int, default=default)
    known.add_argument("--workers", type=int, help="of its data loader; default: its own choice")
    known.add_argument("--same-network", action="store_true")
    known.add_argument("--out")
    given = known.parse_args()
    without_torchvision()
    from careamics import CAREamist
    from careamics.config.factories.n2v_factory import create_advanced_n2v_config
    from lightning.pytorch.callbacks import Callback

    images = np.load(given.images)
    more: dict[str, Any] = {} if given.workers is None else {"num_workers": given.workers}
    config = create_advanced_n2v_config(
        experiment_name="bench", data_type="array", axes="SYX", patch_size=[given.patch] * 2, batch_size=given.batch,
        num_epochs=given.epochs, num_steps=given.steps, model_params={"depth": 2, "num_channels_init": 32},
        seed=given.seed, **more,
    )  # fmt: skip

    class Clock(Callback):
        """Notes when steps end."""

        ends: list[list[float]] = []  # noqa: RUF012

        def on_train_epoch_start(self, *_: Any) -> None:
            self.ends.append([])

        def on_train_batch_end(self, *_: Any) -> None:
            self.ends[-1].append(time.time())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trained = CAREamist(config, work_dir=folder, callbacks=[clock], enable_progress_bar=False)
        if given.same_network:
            trained.model.model = _ours()
        masking = _timed(trained.model.n2v_manipulate.__class__)
        trained.train(train_data=images)
        if given.out:
            found, _ = trained.predict(images, batch_size=4, num_workers=0)
            np.save(given.out, np.asarray(found[0] if len(found) == 1 else found).reshape(images.shape))
    steps = sum(map(len, clock.ends))
    sys.stdout.write("\n" + json.dumps({"ends": clock.ends, "masking": sum(masking) / max(1, steps)}) + "\n")


def _ours() -> Any:
    """voidzoo's network of the same depth and filters."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from voidzoo.trainers.networks.unet import UNet

    return UNet(dims=2, channels_in=1, channels_out=1, depth=2, filters=32)


def _timed(kind: type) -> list[float]:
    """Seconds of each call of the manipulator; calls in validation are among them, which are few."""
    seconds: list[float] = []
    call = kind.__call__

    def measured(self: Any, *values: Any, **named: Any) -> Any:
        start = time.perf_counter()
        found = call(self, *values, **named)
        seconds.append(time.perf_counter() - start)
        return found

    kind.__call__ = measured  # type: ignore[method-assign]
    return seconds


if __name__ == "__main__":
    main()
