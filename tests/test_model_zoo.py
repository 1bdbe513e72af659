"""The packages of `model_zoo` are what they say: valid, predicted by bioimageio.core as by their oracle, halos enough."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.model_zoo import MODELS, Model
from tests.whole_image import arrays_order
from voidzoo.zoo.package import open_package

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
    valid, error = False, ""
    try:
        model = load_model_description(job["path"], perform_io_checks=False)
        valid, error = True, ""
        images = np.load(job["images"])
        inputs = {m: images[str(m)] for m in get_member_ids(model.inputs)}
        with create_prediction_pipeline(model) as pipeline:
            sample = create_sample_for_model(model, inputs=inputs, sample_id="s")
            found = pipeline.predict_sample_without_blocking(sample, skip_input_padding=True, skip_output_cropping=True)
        np.savez(job["results"], **{str(m): t.data.values for m, t in found.members.items()})
    except Exception as wrong:
        error = f"{type(wrong).__name__}: {wrong}"[:2000]
    print(json.dumps({"name": job["name"], "valid": valid, "error": error}))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def by_core(models: dict[str, Model]) -> dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """What bioimageio.core says of each package: (error, images, results), arrays as the oracle has them."""
    rng = np.random.default_rng()
    jobs, images = [], {}
    for name, model in models.items():
        images[name] = model.images(rng)
        declared = {t.id: _declared(images[name][t.id], t.letters) for t in model.design.inputs}
        job = {"name": name, "path": str(model.path), "images": str(model.path / "images.npz"),
               "results": str(model.path / "results.npz")}  # fmt: skip
        np.savez(job["images"], allow_pickle=False, **declared)
        if model.spec:
            jobs.append(job)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CORE], input=json.dumps(jobs), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"name"'):
            said = json.loads(line)
            model, results = models[said["name"]], {}
            assert said["valid"], said["error"]
            if not said["error"]:
                with np.load(model.path / "results.npz") as stored:
                    results = {t.id: _canonical(stored[t.id], t.letters) for t in model.design.outputs}
            found[said["name"]] = (said["error"], images[said["name"]], results)
    return found


def _declared(x: np.ndarray, letters: str) -> np.ndarray:
    own = arrays_order(letters)
    x = x.transpose([own.index(a) for a in letters if a != "b"])
    return np.expand_dims(x, letters.index("b")) if "b" in letters else x


def _canonical(y: np.ndarray, letters: str) -> np.ndarray:
    y = y.squeeze(letters.index("b")) if "b" in letters else y
    letters = letters.replace("b", "")
    return y.transpose([letters.index(a) for a in arrays_order(letters)])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n != "old_03"])
def test_bioimageio_takes_the_package_and_predicts_what_the_oracle_says(
    name: str, models: dict[str, Model], by_core: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]
) -> None:
    """bioimageio.spec finds it valid; bioimageio.core's plain prediction of an image of legal size is the oracle's."""
    model, (error, images, results) = models[name], by_core[name]
    if not model.core:  # it does not measure results, nor compare along an axis that is not the last
        assert re.search(r"KeyError: 'out'|could not be broadcast", error)
        return
    assert not error
    assert set(results) == {t.id for t in model.design.outputs}
    for tensor, y in model.oracle(images).items():
        lead = [int(model.lead.get(a, 0) * model.ratio(tensor)) for a in model.letters[tensor]]
        inner = y[tuple(slice(n, -n or None) for n in lead)]  # bioimageio.core gives what the network returns, no more
        assert results[tensor].shape == inner.shape
        assert np.abs(results[tensor] - inner).max() <= 1e-5 * max(float(np.abs(inner).max()), float(inner.std()))


@pytest.mark.parametrize("name", list(MODELS))
def test_the_package_is_read_as_it_was_designed(name: str, models: dict[str, Model]) -> None:
    """Axes, channels, sizes, scales and the tensors' order are in the description what they are in the design."""
    model = models[name]
    package = open_package(model.path)
    assert [t.id for t in package.inputs] == [t.id for t in model.design.inputs]
    assert package.main.id == model.main
    assert [t.letters for t in package.inputs] == [t.letters for t in model.design.inputs]
    assert [t.letters for t in package.outputs] == [t.letters for t in model.design.outputs]
    rules = {a: (r.minimum, None if r.fixed else r.step) for a, r in package.rules.items()}
    assert rules == {a: (s, None) if isinstance(s, int) else s for a, s in model.design.main.sizes.items()}
    assert sum(o.channels for o in model.design.outputs) == len(package.channels_out)
    for t, designed in zip(package.outputs, model.design.outputs, strict=True):
        for a in t.axes:
            if a.reference is not None:
                own = package.main.axis(a.letter)
                assert own is not None
                assert own.scale / a.scale == designed.ratio
                assert a.reference.offset == -2 * designed.lead.get(a.letter, 0) * designed.ratio
            assert a.halo == designed.halo.get(a.letter, 0)
    assert [s.name for t in package.outputs for s in t.steps] == [
        s["id"] for t in model.design.outputs for s in t.steps
    ]
    assert package.sha256


TILEABLE = [n for n in MODELS if not n.startswith(("before_", "after_", "old_"))]


@pytest.mark.parametrize("name", TILEABLE)
def test_the_halo_is_as_far_as_the_network_sees(name: str, models: dict[str, Model]) -> None:
    """A part of an image gives the whole image's result but for the halo at its cut; it does not where none is declared.

    One that sees everything, and one that does not tell how far it sees, differ farther in: that is what they are for.
    """
    model = models[name]
    rng = np.random.default_rng()
    main = model.design.main
    letter = str(rng.choice(list(main.sizes)))
    rule = main.sizes[letter]
    smallest, step = (rule, model.design.grid) if isinstance(rule, int) else rule
    steps = int(rng.integers(3, 7))
    cut, size = steps * step, smallest + (steps + int(rng.integers(2, 5)) + 12 // step) * step
    images = model.images(rng, {letter: size})
    parts = {}
    for t in model.design.inputs:
        if letter in model.letters[t.id]:
            along = np.moveaxis(images[t.id], model.letters[t.id].index(letter), 0)
            along[: int(cut * t.ratio)] *= 2  # by chance both parts could have the mean that a network sees of them
            along = along[int(cut * t.ratio) :]
            parts[t.id] = np.moveaxis(along, 0, model.letters[t.id].index(letter))
        else:
            parts[t.id] = images[t.id]
    whole = model.oracle(images)
    part = model.oracle(parts)
    for out in model.design.outputs:
        axis = model.letters[out.id].index(letter)
        kept = np.take(whole[out.id], range(int(cut * out.ratio), whole[out.id].shape[axis]), axis)
        wrong = np.abs(kept - part[out.id]).max(tuple(i for i in range(kept.ndim) if i != axis)) > 1e-4 * kept.std()
        spoilt = int(np.flatnonzero(wrong).max(initial=-1)) + 1
        halo = out.halo.get(letter, 0) + int(out.lead.get(letter, 0) * out.ratio)
        if model.unbounded or not model.halo_told:
            assert spoilt > halo
        else:
            assert spoilt <= halo
            assert (spoilt > 0) == (halo > 0)
