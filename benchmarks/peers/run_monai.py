"""MONAI's sliding window over each plane or volume, onnxruntime as its predictor, to a .npy.

`default`: a window of 512 x 512 pixels (64 x 128 x 128) and the library's overlap of 0.25; `tuned`: a window that is larger by the
halo, and the overlap that the halo asks for. It blends what the cuts have spoilt into the result either way.
"""

import time

import numpy as np
import onnxruntime as ort
import tifffile
import torch
from common import core, done, margin, parser, providers
from monai.inferers import sliding_window_inference


def main() -> None:
    """Predict."""
    given = parser(__doc__ or "").parse_args()
    rules = given.rules
    session = ort.InferenceSession(given.model, providers=providers(given.device))

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])

    start = time.perf_counter()
    image = tifffile.imread(given.image)
    samples = image if len(rules) == 2 else image[None]
    sizes = dict(zip("zyx", image.shape, strict=True))
    window, overlap = [], []
    for a, rule in rules.items():
        halo = 2 * margin(rule) if given.setting == "tuned" and sizes[a] > core(rules, a) else 0
        window.append(min(core(rules, a) + halo, sizes[a]))
        overlap.append(halo / window[-1])
    found = []
    with torch.inference_mode():
        for sample in samples:
            x = torch.from_numpy(sample.astype(np.float32)[None, None])
            share = overlap if given.setting == "tuned" else 0.25
            found.append(sliding_window_inference(x, window, 1, network, overlap=share)[0].numpy())
    np.save(given.out, np.stack(found))
    done("zcyx" if len(rules) == 2 else "bczyx", start)


if __name__ == "__main__":
    main()
