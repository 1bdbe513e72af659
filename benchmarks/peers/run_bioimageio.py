"""bioimageio.core's own blocked prediction of a package, to a .npy, which is where it keeps the whole result anyway.

The stack is wrapped by hand: a path to a z y x TIFF fails for a network that reads planes. `default`: the block size that
the library takes by itself; `tuned`: blocks that keep 512 x 512 pixels, as large as the image where it is smaller.
"""

import time
from pathlib import Path

import tifffile
from bioimageio.core import Tensor, create_prediction_pipeline, predict
from bioimageio.spec import load_model_description
from common import core, done, margin, parser, providers

DEFAULT = 10
"""`default_blocksize_parameter` of bioimageio.core 0.11."""


def main() -> None:
    """Predict."""
    given = parser(__doc__ or "").parse_args()
    rules, axes = given.rules, "".join(given.rules)
    description = load_model_description(Path(given.model), perform_io_checks=False)
    pipeline = create_prediction_pipeline(description, weights_format="onnx", devices=providers(given.device))
    start = time.perf_counter()
    image = tifffile.imread(given.image)
    if len(axes) == 2:
        tensor, layout = Tensor(image[:, None], dims=("batch", "channel", "y", "x")), "zcyx"
    else:
        tensor, layout = Tensor(image[None, None], dims=("batch", "channel", "z", "y", "x")), "bczyx"
    if given.setting == "default":
        how = {"blocksize_parameter": DEFAULT}
    else:
        how = {"input_block_shape": {"input": {"batch": 1, "channel": 1, **blocks(rules, image.shape)}}}
    predict(model=pipeline, inputs=tensor, save_output_path=given.out, **how)
    done(layout, start)


def blocks(rules: dict[str, dict[str, int]], shape: tuple[int, ...]) -> dict[str, int]:
    """The block along each axis, halo counted in; one that is larger than the image would be refused."""
    sizes = dict(zip("zyx", shape, strict=True))
    return {a: min(core(rules, a) + (2 * margin(r) if a != "z" else 0), sizes[a]) for a, r in rules.items()}


if __name__ == "__main__":
    main()
