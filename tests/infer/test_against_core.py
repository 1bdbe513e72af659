"""bioimageio.core's own blocked prediction, where it can run: the same farther from the border than the network sees."""

from __future__ import annotations

import json
import subprocess
import sys
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from tests.infer.test_models import plan_of, predicted
from tests.model_zoo import MODELS, Model
from tests.test_model_zoo import _canonical, _declared

# in a process of its own: bioimageio leaves files open, which would be a warning here
CORE = """
import json, sys, warnings
import numpy as np
from loguru import logger
from bioimageio.core import create_prediction_pipeline
from bioimageio.core.digest_spec import create_sample_for_model, get_member_ids
from bioimageio.spec import load_model_description
warnings.simplefilter("ignore")
logger.remove()
for job in json.load(sys.stdin):
    error = ""
    try:
        model = load_model_description(job["path"], perform_io_checks=False)
        images = np.load(job["images"])
        inputs = {m: images[str(m)] for m in get_member_ids(model.inputs)}
        with create_prediction_pipeline(model) as pipeline:
            sample = create_sample_for_model(model, inputs=inputs, sample_id="s")
            found = pipeline.predict_sample_with_blocking(sample, ns=job["n"])
        np.savez(job["results"], **{str(m): t.data.values for m, t in found.members.items()})
    except Exception as wrong:
        error = f"{type(wrong).__name__}: {wrong}"[:2000]
    print(json.dumps({"name": job["name"], "error": error}))
"""

CANNOT = {"half_size_input", "without_padding", "bare", "old_04_without_padding", "old_04_halved", "old_04_fixed"}
"""Of these bioimageio.core 0.11.0 makes no image in blocks: it counts different blocks for inputs of different sizes, or
has no blocks for format 0.4."""
DIFFERS = {"two_images"}
"""Here it cuts the second input otherwise than the first; the oracle without tiles (test_models) says so."""


@pytest.mark.slow
def test_inside_the_results_are_those_of_bioimageio_core(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    models: dict[str, Model] = {}
    images, jobs = {}, []
    for name, make in MODELS.items():
        model = make(tmp_path)
        if not (model.core and model.spec) or model.unbounded or model.measures or not model.halo_told:
            continue  # its blocks see other statistics, or less than the network does: it is wrong by design there
        models[name] = model
        size = {a: 3 * n for a, n in model.legal.items() if a in "tzyx"}
        images[name] = model.images(rng, size)
        declared = {t.id: _declared(images[name][t.id], t.letters) for t in model.design.inputs}
        np.savez(model.path / "images.npz", allow_pickle=False, **declared)
        jobs.append({"name": name, "path": str(model.path), "images": str(model.path / "images.npz"), "n": 8,
                     "results": str(model.path / "results.npz")})  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CORE], input=json.dumps(jobs), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    errors, compared = {}, []
    off: dict[str, float] = {}
    for line in done.stdout.splitlines():
        if not line.startswith('{"name"'):
            continue
        said = json.loads(line)
        name, model = said["name"], models[said["name"]]
        if said["error"]:
            errors[name] = said["error"]
            continue
        compared.append(name)
        ours = predicted(model, images[name])
        far = {a: axis.spoilt for a, axis in plan_of(model, images[name]).model_axes.items()}
        with np.load(model.path / "results.npz") as stored:
            for t in model.design.outputs:
                theirs = _canonical(stored[t.id], t.letters)
                mine = ours[t.id].reshape(theirs.shape)
                ratio = model.ratio(t.id)
                inner = tuple(
                    slice(cut, n - cut)
                    for a, n in zip(model.letters[t.id], theirs.shape, strict=True)
                    for cut in [ceil(far.get(a, 0) * ratio)]
                )
                assert mine[inner].size, name
                worst = np.abs(mine[inner] - theirs[inner]).max() / max(float(np.abs(mine).max()), float(mine.std()))
                off[name] = max(off.get(name, 0.0), float(worst))
    assert set(errors) == CANNOT, errors
    assert {name for name, worst in off.items() if worst > 1e-5} == DIFFERS, off
    assert len(compared) >= 30
