"""A training learns, can be repeated and resumed to the bit, refuses what cannot work, and says what it did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voidzoo.trainers import (
    EpochDone,
    Recipe,
    TrainingDone,
    TrainingStarted,
    choose_device,
    denoise,
    denoisers,
    load_run,
    train,
)
from voidzoo.trainers import training as training_module
from voidzoo.trainers.compiling import compiled
from voidzoo.trainers.device import choose_precision
from voidzoo.trainers.loop import Plateau, validate
from voidzoo.zoo.errors import (
    AxesError,
    DependencyError,
    DeviceError,
    OutputError,
    RecipeError,
    SizeError,
    TrainingError,
    ValuesError,
)
from voidzoo.zoo.metrics import psnr
from voidzoo.zoo.open import open_image


def same(a, b):
    """Bit-equal weights."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def equal_runs(a, b):
    return (
        same(a.network("last"), b.network("last"))
        and same(a.network("best"), b.network("best"))
        and [(e.train_loss, e.val_loss, e.lr) for e in a.losses] == [(e.train_loss, e.val_loss, e.lr) for e in b.losses]
    )


class StopHere(Exception):  # noqa: N818
    pass


def stop_after(epoch):
    def watch(event):
        if isinstance(event, EpochDone) and event.epoch == epoch:
            raise StopHere

    return watch


def test_folder_says_everything(make_image, tiny, tmp_path):
    image = make_image(4)
    recipe = Recipe.guess("n2v", image, **tiny)
    events = []
    run = train(recipe, image, tmp_path / "run", watch=events.append, device="cpu")
    assert [type(e) for e in events] == [TrainingStarted, EpochDone, EpochDone, TrainingDone]
    assert events[0].parameters == run.info["parameters"]
    again = load_run(tmp_path / "run")
    assert again.state == "done"
    assert again.recipe == recipe == Recipe.from_yaml(tmp_path / "run" / "recipe.yaml")
    assert again.losses == events[1:3]
    info = again.info
    assert (info["images"][0]["shape"], info["images"][0]["axes"], info["channels"]) == (
        [128, 160],
        "yx",
        ["channel 0"],
    )
    assert info["geometry"]["x"] == {"step": 4, "radius": 23, "aligned": 22, "halo": 24}
    low, high = info["intensity_range"][0]
    assert 0 < low < 300 < high < 1200
    raw = again.validation
    assert raw.dtype == np.uint16
    assert raw.ndim == 3
    assert all(n % 4 == 0 and n > 0 for n in raw.shape[1:])
    held = info["split"]["validation"][0]
    start, stop = (int(v) for v in held.split("x ")[-1].split(":"))
    pixels = image.read()
    strip = np.lib.stride_tricks.sliding_window_view(pixels[:, start:stop], raw.shape[1:])
    assert (strip == raw[0]).all(axis=(2, 3)).any()
    train_pixels = np.concatenate([pixels[:, :start], pixels[:, stop:]], axis=1)
    assert again.normalisation.mean[0] == pytest.approx(train_pixels.mean())
    assert again.normalisation.std[0] == pytest.approx(train_pixels.std())
    net = again.network()
    assert not net.training
    assert denoise(net, again.normalisation, raw).shape == raw.shape
    lines = (tmp_path / "run" / "loss.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,val_loss,best,lr,seconds"
    assert len(lines) == 3
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.yaml", "run.json", "best.pt", "last.pt", "checkpoint.pt", "loss.csv", "loss.png", "validation.npy",
        "validation.png", "residual.png", "report.html", "progress",
    }  # fmt: skip
    with Pillow.open(tmp_path / "run" / "validation.png") as picture:
        assert picture.size[0] > 3 * raw.shape[2]


def test_denoise_extends_at_the_end_and_crops(make_image, tiny, tmp_path):
    """Any size, any dtype; equal to a hand-made symmetric extension."""
    run = train(Recipe.guess("n2v", make_image(), **tiny), make_image(), tmp_path / "run", device="cpu")
    net, n = run.network(), run.normalisation
    x = np.random.default_rng().integers(0, 900, (1, 37, 50)).astype(np.int32)
    by_hand = np.concatenate([x, x[:, :-4:-1]], axis=1)
    by_hand = np.concatenate([by_hand, by_hand[:, :, :-3:-1]], axis=2)
    got = denoise(net, n, x)
    assert got.shape == x.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, denoise(net, n, by_hand)[:, :37, :50], rtol=1e-5)
    assert np.isfinite(denoise(net, n, x[:, :1, :3])).all()


def test_same_seed_same_weights(make_image, tiny, tmp_path):
    recipe = Recipe.guess("n2v", make_image(), **tiny)
    torch.manual_seed(99)  # the global state must not matter, nor be touched
    before = torch.random.get_rng_state()
    a = train(recipe, make_image(), tmp_path / "a", device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.randn(3)
    b = train(recipe, make_image(), tmp_path / "b", device="cpu")
    assert equal_runs(a, b)
    c = train(recipe.with_settings({"seed": 1}), make_image(), tmp_path / "c", device="cpu")
    assert not same(a.network("last"), c.network("last"))


PLATEAU = {"schedule": "plateau", "plateau_patience": 1, "plateau_min_delta": 0.5}


@pytest.mark.parametrize(("axes", "rate"), [("yx", PLATEAU), ("yx", {}), ("cyx", {}), ("zyx", PLATEAU)])
def test_resume_is_bit_equal(axes, rate, make_image, tiny, tmp_path):
    """Four epochs, or two, a stop, and two more: the same weights and losses. 2D, two channels, 3D."""
    shape = {"yx": (96, 120), "cyx": (2, 96, 120), "zyx": (8, 64, 96)}[axes]
    image = make_image(1, shape, axes)
    extra = {"patch": [8, 32, 32], "dims": 3} if axes == "zyx" else {}
    recipe = Recipe.guess("n2v", image, **(tiny | extra | rate | {"epochs": 4}))
    straight = train(recipe, image, tmp_path / "straight", device="cpu")
    assert straight.losses[-1].lr < straight.losses[0].lr  # the schedule is part of what must be resumed
    with pytest.raises(StopHere):
        train(recipe, image, tmp_path / "broken", watch=stop_after(2), device="cpu")
    assert load_run(tmp_path / "broken").state == "stopped"
    assert len(load_run(tmp_path / "broken").losses) == 2
    events = []
    resumed = train(recipe, image, tmp_path / "broken", watch=events.append, device="cpu")
    assert events[0].epoch == 2
    assert equal_runs(straight, resumed)
    again = train(recipe, image, tmp_path / "broken", watch=events.append, device="cpu")  # done: nothing happens
    assert again.info == resumed.info
    assert sum(isinstance(e, TrainingStarted) for e in events) == 1


KILLED = """
import os, signal, sys, threading, time, numpy as np
from voidzoo.trainers import EpochDone, Recipe, train
from voidzoo.zoo.open import open_image

def kill_later(event):
    # a thread of its own: however slow the machine is, the training has not gone on much further than this sleeps
    if isinstance(event, EpochDone) and event.epoch == 3:
        wait = np.random.default_rng().uniform(0, 2 * event.seconds)
        threading.Thread(target=lambda: (time.sleep(wait), os.kill(os.getpid(), signal.SIGKILL))).start()

image = open_image(np.load(sys.argv[1]), axes="yx")
watch = {"watch": kill_later} if sys.argv[4:] else {}
train(Recipe.from_yaml(sys.argv[2]), image, sys.argv[3], device="cpu", **watch)
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_bit_equal(make_pair, tiny, tmp_path):
    """SIGKILL in the middle of an epoch; what is left resumes to the weights of an undisturbed process."""
    np.save(tmp_path / "x.npy", make_pair((96, 120), 3)[1])
    recipe = Recipe(**(tiny | {"epochs": 12, "steps": 10}))
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())

    def command(folder):
        return [sys.executable, "-c", KILLED, str(tmp_path / "x.npy"), str(tmp_path / "r.yaml"), str(tmp_path / folder)]

    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([*command("killed"), "kill"], check=False, env=alone).returncode == -signal.SIGKILL
    left = load_run(tmp_path / "killed")
    assert left.state == "running"
    assert 3 <= len(left.losses) < 12
    subprocess.run(command("killed"), check=True, env=alone)
    subprocess.run(command("straight"), check=True, env=alone)
    assert equal_runs(load_run(tmp_path / "killed"), load_run(tmp_path / "straight"))
    assert load_run(tmp_path / "killed").state == "done"


@pytest.mark.slow
def test_it_learns(make_pair, tmp_path):
    """On discs in white noise: the validation loss falls towards the noise, PSNR rises by more than 6 dB."""
    truth, noisy = make_pair((192, 192), 5, sigma=80.0)
    image = open_image(noisy, axes="yx")
    recipe = Recipe.guess("n2v", image, epochs=6, steps=40, batch=4, filters=12, learning_rate=2e-3)
    run = train(recipe, image, tmp_path / "run", device="cpu")
    first, best = run.losses[0].val_loss, min(e.val_loss for e in run.losses)
    assert best < first
    span = truth.max() - truth.min()
    before = psnr(truth, noisy, span)
    after = psnr(truth, denoise(run.network(), run.normalisation, noisy[None])[0], span)
    assert after > before + 6, (before, after)


METHODS = {
    "n2v": {},
    "n2v2": {},
    "structn2v": {"blind_mask": "1x5"},
    "care": {},
    "n2v3d": {"dims": 3, "patch": [8, 32, 32], "kernel": [3, 5, 5]},
    "n2v2_3d": {"dims": 3, "patch": [8, 32, 32]},
    "structn2v3d": {"dims": 3, "patch": [8, 32, 32], "blind_mask": "1x17x1"},
    "shared": {"channels": "shared", "residual": True},
}
SHAPES = {"n2v3d": "zyx", "n2v2_3d": "czyx", "structn2v3d": "zyx", "shared": "cyx", "care": "cyx"}


def of_method(name, make_image, settings):
    """(recipe, image, targets) for a training of a second."""
    axes = SHAPES.get(name, "yx")
    shape = {"yx": (96, 120), "cyx": (2, 96, 120), "zyx": (12, 64, 96), "czyx": (2, 12, 64, 96)}[axes]
    image = make_image(1, shape, axes)
    method = name.removesuffix("3d").removesuffix("_") if name != "shared" else "n2v"
    recipe = Recipe.guess(method, image, **(settings | METHODS[name]))
    return recipe, image, [make_image(1, shape, axes)] if method == "care" else None


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    """What must hold of each way to train a denoiser."""

    def test_resumes_bit_equal(self, name, make_image, tiny, tmp_path):
        """Three epochs, or one, a stop and two more: the same weights and losses."""
        recipe, image, targets = of_method(name, make_image, tiny | {"epochs": 3})
        straight = train(recipe, image, tmp_path / "straight", device="cpu", targets=targets)
        with pytest.raises(StopHere):
            train(recipe, image, tmp_path / "broken", watch=stop_after(1), device="cpu", targets=targets)
        assert equal_runs(straight, train(recipe, image, tmp_path / "broken", device="cpu", targets=targets))
        assert load_run(tmp_path / "broken").recipe == recipe

    def test_validation_repeats(self, name, make_image, tiny, tmp_path):
        """The same pixels of the held-out part are hidden each time, with the same blind mask: the loss is one number."""
        recipe, image, targets = of_method(name, make_image, tiny)
        run = train(recipe, image, tmp_path / "run", device="cpu", targets=targets)
        net = run.network("last")
        loss = training_module.LOSSES[recipe.method](recipe)
        batches = [torch.randn(2, run.info["network"].get("channels", 1) * (1 + bool(targets)), *recipe.patch)]
        if name == "shared":
            batches = [torch.randn(2, 2, *recipe.patch)]
        assert validate(net, loss, batches) == validate(net, loss, batches)

    def test_overfits_one_patch(self, name, make_image, tiny):
        """With always the same batch and mask the loss goes down to a small part of where it began."""
        recipe, image, targets = of_method(name, make_image, tiny)
        recipe = recipe.with_settings({"filters": 16, "mask_percent": 5.0})
        torch.manual_seed(0)
        channels = image.size("c")
        net = denoisers.network(recipe, channels)
        loss = training_module.LOSSES[recipe.method](recipe)
        pixels = image.read().astype(np.float32).reshape(channels, *image.shape[-recipe.dims :])
        x = torch.from_numpy(pixels[(slice(None), *(slice(0, n) for n in recipe.patch))])[None]
        x = (x - x.mean()) / x.std()
        x = torch.cat([x, x.roll(3, -1)], dim=1) if targets else x
        optimiser = torch.optim.Adam(net.parameters(), 5e-3)
        values = []
        for _ in range(100 if recipe.dims == 2 else 60):
            value, _ = loss(net, x, torch.Generator().manual_seed(1))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            values.append(float(value.detach()))
        assert values[-1] < (0.1 if recipe.dims == 2 else 0.3) * values[0]


def test_care_learns_the_clean_partner(make_pair, tmp_path):
    """On other scales of grey values too: the result is on the scale of the target, and closer to it than N2V's."""
    truth, noisy = make_pair((128, 128), 3, sigma=80.0)
    settings = {"epochs": 4, "steps": 20, "batch": 4, "filters": 8, "learning_rate": 2e-3, "patch": [32, 32]}
    image, clean = open_image(noisy, axes="yx"), open_image((truth * 3 + 1000).astype(np.float32), axes="yx")
    run = train(Recipe.guess("care", image, **settings), image, tmp_path / "care", device="cpu", targets=[clean])
    other = train(Recipe.guess("n2v", image, **settings), image, tmp_path / "n2v", device="cpu")
    got = denoise(run.network(), run.normalisation, noisy[None], run.target_normalisation)[0]
    blind = denoise(other.network(), other.normalisation, noisy[None])[0]
    span = truth.max() - truth.min()
    assert psnr(truth, (got - 1000) / 3, span) > psnr(truth, blind, span) > psnr(truth, noisy, span)


def test_targets_that_do_not_fit(make_image, tiny, tmp_path):
    image, out = make_image(), tmp_path / "run"
    care, n2v = (Recipe.guess(m, image, **tiny) for m in ("care", "n2v"))
    with pytest.raises(RecipeError, match="care learns from pairs"):
        train(care, image, out, device="cpu")
    with pytest.raises(RecipeError, match="n2v learns from the images alone"):
        train(n2v, image, out, device="cpu", targets=[image])
    with pytest.raises(RecipeError, match="1 images and 2 targets are no pairs"):
        train(care, image, out, device="cpu", targets=[image, image])
    with pytest.raises(SizeError, match=r"y 128, x 80.* but .* y 128, x 160"):
        train(care, image, out, device="cpu", targets=[make_image(0, (128, 80))])
    assert not out.exists()


def test_keras_plateau():
    """The rate drops when `patience` bad epochs are full; better means lower by more than min_delta."""
    plateau, lr, rates = Plateau(0.5, 3, 1e-4), 1.0, []
    for loss in [1.0, 0.9, 0.89995, 0.9, 0.95, 0.8, 0.8, 0.8, 0.8, 0.7]:
        lr = plateau.next(loss, lr)
        rates.append(lr)
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("room", ["20k", "150k", "300k"])
def test_a_full_disk_is_told_and_costs_one_epoch_at_most(room, make_image, tiny, tmp_path, small_disk):
    """Full at the first file, at the weights, at the checkpoint; with room the same command ends as if nothing was."""
    image = make_image(31)
    recipe = Recipe.guess("n2v", image, **tiny)
    folder = small_disk.folder / "run"
    small_disk.resize(room)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device(.|\n)*the same command again"):
        train(recipe, image, folder, device="cpu")
    assert not list(folder.glob("*.part"))
    small_disk.resize("6m")
    run = train(recipe, image, folder, device="cpu")
    assert run.state == "done"
    assert equal_runs(run, train(recipe, image, tmp_path / "other", device="cpu"))


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt", "last.pt"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(len(b))])
def test_damaged_files_of_a_run_are_named(name, damage, make_image, tiny, tmp_path):
    image = make_image(32)
    with pytest.raises(StopHere):
        train(Recipe.guess("n2v", image, **tiny), image, tmp_path / "run", watch=stop_after(1), device="cpu")
    path = tmp_path / "run" / name
    path.write_bytes(damage(path.read_bytes()))

    def use():
        if name == "checkpoint.pt":
            return train(Recipe.guess("n2v", image, **tiny), image, tmp_path / "run", device="cpu")
        return load_run(tmp_path / "run").network(name.removesuffix(".pt"))

    with pytest.raises(OutputError, match=f"{name} is damaged: ."):
        use()


def test_nan_loss_stops_and_says_where(make_image, tiny, tmp_path):
    recipe = Recipe.guess("n2v", make_image(), **(tiny | {"steps": 50, "learning_rate": 9.0, "residual": True}))
    real = denoisers.n2v(recipe)
    count = 0

    def broken(network, batch, generator):
        nonlocal count
        count += 1
        value, parts = real(network, batch, generator)
        return (value * float("nan") if count == 7 else value), parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training_module.LOSSES, "n2v", lambda recipe: broken)
        with pytest.raises(TrainingError, match="loss became nan in epoch 1, step 7 of 50") as e:
            train(recipe, make_image(), tmp_path / "run", device="cpu")
    assert "values from -" in e.value.where
    assert load_run(tmp_path / "run").state == "stopped"
    with pytest.raises(OutputError, match="no epoch was finished"):
        load_run(tmp_path / "run").network()


def test_images_that_cannot_be_trained_on(make_pair, make_image, tiny, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValuesError, match=r"constant \(every pixel is 500\)"):
        train(Recipe(**tiny), open_image(np.full((128, 128), 500, np.uint16), axes="yx"), out, device="cpu")
    with pytest.raises(SizeError, match="too small"):
        train(Recipe(**tiny), make_image(0, (30, 40)), out, device="cpu")
    with pytest.raises(AxesError, match=r"has 1 channels, .* has 2;"):
        train(Recipe(**tiny), [make_image(), make_image(0, (2, 64, 64), "cyx")], out, device="cpu")
    pixels = make_pair((128, 160), 0)[1].astype(np.float32)
    pixels[3, 5] = np.nan
    pixels[:, 78:82] = np.nan  # also in the strip that is held out
    image = open_image(pixels, axes="yx")
    with pytest.raises(ValuesError, match="NaN of 20,480 pixels"):
        train(Recipe(**tiny), image, out, device="cpu")
    assert not out.exists()  # refused before anything was written
    run = train(Recipe(**(tiny | {"allow_nan": True})), image, out, device="cpu")
    assert run.info["left_out"] == [513]
    assert np.isfinite(run.validation).all()
    assert all(np.isfinite(e.val_loss) for e in run.losses)


def test_nan_only_in_the_held_out_part_is_refused(make_pair, tiny, tmp_path):
    pixels = make_pair((128, 160), 0)[1].astype(np.float32)
    pixels[60, 80] = np.inf
    with pytest.raises(ValuesError, match="1 infinite"):
        train(Recipe(**tiny), open_image(pixels, axes="yx"), tmp_path / "run", device="cpu")


def test_folders_that_are_taken(make_image, tiny, tmp_path):
    recipe = Recipe.guess("n2v", make_image(), **tiny)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=r"other files \(thesis.txt\) and no run"):
        train(recipe, make_image(), tmp_path / "mine", device="cpu")
    with pytest.raises(OutputError, match="is a file"):
        train(recipe, make_image(), tmp_path / "mine" / "thesis.txt", device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    with pytest.raises(OutputError, match="was not written by this version"):
        train(recipe, make_image(), tmp_path / "other", device="cpu")
    with pytest.raises(OutputError, match="is no run folder"):
        load_run(tmp_path / "mine")
    train(recipe, make_image(), tmp_path / "run", device="cpu")
    with pytest.raises(OutputError, match=r"another recipe: learning_rate .*, now 0.01"):
        train(recipe.with_settings({"learning_rate": 0.01}), make_image(), tmp_path / "run", device="cpu")
    with pytest.raises(OutputError, match="begun with other images"):
        train(recipe, make_image(8), tmp_path / "run", device="cpu")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["state"] == "done"
    for image in told["images"]:
        del image["fingerprint"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    train(recipe, make_image(), tmp_path / "run", device="cpu")  # begun by a version that knew less of its images
    with pytest.raises(OutputError, match="begun with other images"):
        train(recipe, make_image(8), tmp_path / "run", device="cpu")


def test_more_epochs_continue_a_plateau_but_not_a_cosine(make_image, tiny, tmp_path):
    """Two epochs raised to four give the weights of four at once; a cosine of two is not the start of one of four."""
    for rate, fits in ((PLATEAU, True), ({}, False)):
        recipe = Recipe.guess("n2v", make_image(), **(tiny | rate))
        longer = recipe.with_settings({"epochs": 4})
        folder = tmp_path / f"run{fits}"
        train(recipe, make_image(), folder, device="cpu")
        if fits:
            straight = train(longer, make_image(), tmp_path / "straight", device="cpu")
            assert equal_runs(train(longer, make_image(), folder, device="cpu"), straight)
        else:
            with pytest.raises(OutputError, match="epochs 2, now 4"):
                train(longer, make_image(), folder, device="cpu")


def test_several_images_of_different_size(make_image, tiny, tmp_path):
    images = [make_image(i, (64 + 8 * i, 90)) for i in range(3)]
    run = train(Recipe.guess("n2v", images, **tiny), images, tmp_path / "run", device="cpu")
    assert run.info["split"]["rule"] == "1 of 3 images held out"
    held = int(run.info["split"]["validation"][0].split()[1].rstrip(","))
    both = np.concatenate([i.read().ravel() for k, i in enumerate(images) if k != held])
    assert run.normalisation.mean[0] == pytest.approx(both.mean())


@pytest.mark.parametrize(("axes", "shape", "dims"), [("zyx", (12, 40, 44), 2), ("tzyx", (10, 4, 40, 44), 3)])
def test_stacks_hold_out_a_block_of_planes(axes, shape, dims, make_image, tiny, tmp_path):
    """Contiguous planes (or time points) in the middle are held out; the normalisation has not seen them."""
    image = make_image(2, shape, axes)
    patch = [16, 16] if dims == 2 else [4, 16, 16]
    run = train(Recipe(**(tiny | {"dims": dims, "patch": patch})), image, tmp_path / "run", device="cpu")
    start, stop = (int(v) for v in run.info["split"]["validation"][0].split("samples ")[1].split(",")[0].split(":"))
    assert stop - start == 1
    assert 3 < start < 8
    kept = np.delete(image.read(), range(start, stop), axis=0)
    assert run.normalisation.mean[0] == pytest.approx(kept.mean())
    assert run.normalisation.std[0] == pytest.approx(kept.std())
    held = image.read()[start].reshape(run.validation.shape[0], *(shape[-2:] if dims == 2 else shape[1:]))
    np.testing.assert_array_equal(run.validation, held)


def test_another_kind_of_device_cannot_continue(make_image, tiny, tmp_path):
    recipe = Recipe.guess("n2v", make_image(), **tiny)
    with pytest.raises(StopHere):
        train(recipe, make_image(), tmp_path / "run", watch=stop_after(1), device="cpu")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda:0 A100"'))
    with pytest.raises(OutputError, match="was begun on cuda, not on cpu"):
        train(recipe, make_image(), tmp_path / "run", device="cpu")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for word in ("gpu", "cuda:x", "cpu:1"):
        with pytest.raises(DeviceError, match="there is no device"):
            choose_device(word)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="CUDA was asked for and is not there"):
            choose_device("cuda")
    with pytest.raises(DeviceError):
        choose_device("cuda:99")


def test_minutes_end_a_training_with_its_learning_rate_at_zero(make_image, tiny, tmp_path):
    """Time over all sittings counts; the cosine follows it; what is done stays done."""
    first = train(Recipe.guess("n2v", make_image(), **tiny), make_image(), tmp_path / "first", device="cpu")
    seconds = max(2.4, 12 * max(e.seconds for e in first.losses))  # a busy machine needs more for as many epochs
    timed = {k: v for k, v in tiny.items() if k != "epochs"} | {"minutes": seconds / 60}
    recipe = Recipe.guess("n2v", make_image(), **timed)
    with pytest.raises(StopHere):
        train(recipe, make_image(), tmp_path / "run", watch=stop_after(2), device="cpu")
    run = train(recipe, make_image(), tmp_path / "run", device="cpu")
    spent = sum(e.seconds for e in run.losses)
    assert seconds <= spent < seconds + 3 * max(e.seconds for e in run.losses)
    assert len(run.losses) > 3
    assert run.losses[-1].lr < 0.3 * run.losses[0].lr
    assert (run.state, run.info["ended"]) == ("done", "minutes")
    assert len(train(recipe, make_image(), tmp_path / "run", device="cpu").losses) == len(run.losses)


def test_early_stop(make_image, tiny, tmp_path):
    """With steps too small to change anything, the best epoch is the first and patience runs out."""
    still = {"learning_rate": 1e-30, "epochs": 50, "early_stop": 3, "schedule": "plateau"}
    run = train(Recipe.guess("n2v", make_image(), **(tiny | still)), make_image(), tmp_path / "run", device="cpu")
    assert run.info["ended"] == "early stop"
    assert len(run.losses) == run.info["best_epoch"] + 3 < 50
    assert train(run.recipe, make_image(), tmp_path / "run", device="cpu").info == run.info


def test_gradients_are_clipped(make_image, tiny, tmp_path):
    """A bound far below every gradient makes Adam's first steps as long, but SGD-like sums smaller: weights differ, and
    a bound far above changes nothing."""
    plain = Recipe.guess("n2v", make_image(), **tiny)
    runs = [
        train(plain.with_settings({"gradient_clip": clip}), make_image(), tmp_path / str(clip), device="cpu")
        for clip in (None, 1e6, 1e-9)
    ]
    assert same(runs[0].network("last"), runs[1].network("last"))
    assert not same(runs[0].network("last"), runs[2].network("last"))


def test_bf16_trains_the_same_float32_network_and_is_kept_over_a_resume(make_image, tiny, tmp_path):
    """Its losses are near fp32's and not the same; what it was begun in is kept, whatever this processor would choose."""
    recipe = Recipe.guess("n2v", make_image(), **(tiny | {"epochs": 4, "precision": "bf16"}))
    plain = train(recipe.with_settings({"precision": "fp32"}), make_image(), tmp_path / "fp32", device="cpu")
    straight = train(recipe, make_image(), tmp_path / "bf16", device="cpu")
    assert (plain.info["precision"], straight.info["precision"]) == ("fp32", "bf16")
    assert all(v.dtype == torch.float32 for v in straight.network().state_dict().values() if v.is_floating_point())
    assert not same(plain.network("last"), straight.network("last"))
    for a, b in zip(plain.losses, straight.losses, strict=True):
        assert b.val_loss == pytest.approx(a.val_loss, rel=0.15)
    recipe = recipe.with_settings({"precision": "auto"})
    with pytest.raises(StopHere):
        train(recipe, make_image(), tmp_path / "auto", watch=stop_after(2), device="cpu")
    path = tmp_path / "auto" / "run.json"
    info = json.loads(path.read_text())
    assert info["precision"] == choose_precision("auto", torch.device("cpu"))
    path.write_text(json.dumps(info | {"precision": "bf16"}))
    assert train(recipe, make_image(), tmp_path / "auto", device="cpu").info["precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, in its compiler
def test_compiled_steps_are_the_same_steps(make_image, tiny, tmp_path):
    """From step 400 on they are compiled, once; losses stay near those of plain ones; weights keep their names."""
    if not shutil.which("g++"):
        pytest.skip("needs the Debian package g++")
    recipe = Recipe.guess("n2v", make_image(), **(tiny | {"epochs": 5, "steps": 99, "precision": "fp32"}))
    plain = train(recipe, make_image(), tmp_path / "plain", device="cpu")
    torch._dynamo.utils.counters.clear()
    run = train(recipe.with_settings({"compile": "on"}), make_image(), tmp_path / "on", device="cpu")
    assert ("compiled" in plain.info, run.info["compiled"]) == (False, "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert [e.train_loss for e in run.losses[:4]] == [e.train_loss for e in plain.losses[:4]]
    assert run.losses[4].train_loss != plain.losses[4].train_loss
    assert run.losses[4].train_loss == pytest.approx(plain.losses[4].train_loss, rel=0.02)
    assert run.network().state_dict().keys() == plain.network().state_dict().keys()


def test_without_a_compiler_there_is_one_clear_error(make_image, tiny, tmp_path, monkeypatch):
    def broken(net, **how):
        def forward(x):
            raise RuntimeError("no working C++ compiler\nsecond line")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    recipe = Recipe.guess("n2v", make_image(), **(tiny | {"compile": "on", "steps": 410}))
    with pytest.raises(DependencyError, match=r"cannot be compiled here: no working C\+\+ compiler") as caught:
        train(recipe, make_image(), tmp_path / "run", device="cpu")
    assert "--set compile=off" in str(caught.value)
    assert "second line" not in str(caught.value)


@pytest.mark.parametrize(("seconds", "decision"), [(1e5, "compiled"), (500, "not compiled: 500 s are left")])
def test_auto_compiles_where_it_is_repaid(seconds, decision, monkeypatch):
    """On CUDA, after some steps, by the time that is left; the draws of each step are those of the plain loss."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda net, **how: made.append(how["mode"]) or net)
    made, said, drawn = [], [], []

    def loss(net, batch, generator):
        drawn.append(float(torch.rand(1, generator=generator)))
        return net(batch).sum(), {}

    recipe = Recipe(method="n2v")
    assert compiled(loss, recipe, torch.device("cpu"), lambda step: seconds, said.append) is loss
    timed = compiled(loss, recipe, torch.device("cuda"), lambda step: seconds, said.append)
    net, generator = torch.nn.Linear(2, 2), torch.Generator().manual_seed(5)
    for _ in range(405):
        timed(net, torch.rand(1, 2), generator)
    assert made == (["reduce-overhead"] if decision == "compiled" else [])
    assert said[0].startswith(decision)
    assert len(said) == 1
    again = torch.Generator().manual_seed(5)
    assert drawn == [float(torch.rand(1, generator=again)) for _ in range(405)]


def test_auto_goes_on_without_a_compiler(monkeypatch):
    """The step that could not be compiled is made plainly, with the same draws."""

    def broken(net, **how):
        def forward(x):
            raise RuntimeError("triton is missing")

        return forward

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "compile", broken)
    said, drawn = [], []

    def loss(net, batch, generator):
        draw = float(torch.rand(1, generator=generator))
        value = net(batch).sum()
        drawn.append(draw)
        return value, {}

    timed = compiled(loss, Recipe(method="n2v"), torch.device("cuda"), lambda step: 1e5, said.append)
    net, generator = torch.nn.Linear(2, 2), torch.Generator().manual_seed(5)
    for _ in range(405):
        timed(net, torch.rand(1, 2), generator)
    again = torch.Generator().manual_seed(5)
    assert drawn == [float(torch.rand(1, generator=again)) for _ in range(405)]
    assert said == ["not compiled: triton is missing"]


def test_a_run_of_before_a_setting_was_known_goes_on(make_image, tiny, tmp_path):
    """Settings that its recipe does not name have their defaults; its precision is fp32, as all were."""
    recipe = Recipe.guess("n2v", make_image(), **(tiny | {"epochs": 3, "precision": "auto"}))
    with pytest.raises(StopHere):
        train(recipe, make_image(), tmp_path / "run", watch=stop_after(1), device="cpu")
    path = tmp_path / "run" / "run.json"
    info = json.loads(path.read_text())
    for key in ("precision", "blind_fill", "top_skip"):
        del info["recipe"][key]
    del info["precision"]
    path.write_text(json.dumps(info))
    run = train(recipe, make_image(), tmp_path / "run", device="cpu")
    assert (len(run.losses), run.info["precision"]) == (3, "fp32")


def test_images_to_validate_on_are_held_out_whole(make_image, make_pair, tiny, tmp_path):
    """Nothing of them is trained on or normalised by, nothing of the others is held out; they may be smaller than a patch."""
    images, held = [make_image(i, (64, 90)) for i in range(2)], [make_image(7, (48, 24)), make_image(8, (20, 50))]
    run = train(Recipe.guess("n2v", images, **tiny), images, tmp_path / "run", device="cpu", validate=held)
    assert run.info["split"]["rule"] == "2 images given to validate on"
    assert [line.split(",")[0] for line in run.info["split"]["train"]] == ["image 0", "image 1"]
    assert [line.split(",")[0] for line in run.info["split"]["validation"]] == ["image 2", "image 3"]
    assert run.normalisation.mean[0] == pytest.approx(np.concatenate([i.read() for i in images]).mean())
    pixels = [np.lib.stride_tricks.sliding_window_view(h.read(), run.validation.shape[1:])
              for h in held if all(a >= b for a, b in zip(h.shape, run.validation.shape[1:], strict=True))]  # fmt: skip
    assert any((p == run.validation[0]).all(axis=(2, 3)).any() for p in pixels)
    assert (
        train(Recipe.guess("n2v", images, **tiny), images, tmp_path / "run", device="cpu", validate=held).info
        == run.info
    )
    with pytest.raises(OutputError, match="begun with other images"):
        train(Recipe.guess("n2v", images, **tiny), images, tmp_path / "run", device="cpu", validate=held[:1])
    clean = [open_image(make_pair(i.shape, 9)[0].astype(np.float32), axes="yx") for i in [*images, *held]]
    pairs = Recipe.guess("care", images, **tiny)
    care = train(pairs, images, tmp_path / "care", device="cpu", validate=held, targets=clean)
    assert care.target_normalisation.mean[0] == pytest.approx(np.concatenate([c.read() for c in clean[:2]]).mean())
    with pytest.raises(RecipeError, match="4 images and 2 targets are no pairs"):
        train(pairs, images, tmp_path / "fewer", device="cpu", validate=held, targets=clean[:2])
    with pytest.raises(RecipeError, match="given to train on and to validate on"):
        train(Recipe.guess("n2v", images, **tiny), images, tmp_path / "twice", device="cpu", validate=images[1])
    with pytest.raises(SizeError, match="too small to train on"):
        train(Recipe(**tiny), images, tmp_path / "small", device="cpu", validate=make_image(1, (3, 40)))
    assert not (tmp_path / "small").exists()


def test_batch_norm_remembers_the_last_quarter_of_the_steps(make_image, tiny, tmp_path, monkeypatch):
    """With steps too small to change a weight, its memory is the weighted mean of what the steps saw: known weights, none of
    them for the first guess; the same over a resume."""
    seen = []
    fit = training_module.fit

    def watched(state, *values, **named):
        first = next(m for m in state.network.modules() if isinstance(m, torch.nn.BatchNorm2d))

        def note(module, inputs):
            if module.training:
                seen.append(inputs[0].mean(dim=(0, 2, 3)).detach())

        with first.register_forward_pre_hook(note):
            fit(state, *values, **named)

    monkeypatch.setattr(training_module, "fit", watched)
    recipe = Recipe.guess(
        "n2v", make_image(), **(tiny | {"learning_rate": 1e-30, "epochs": 3, "steps": 4, "precision": "fp32"})
    )
    with pytest.raises(StopHere):
        train(recipe, make_image(), tmp_path / "run", watch=stop_after(1), device="cpu")
    run = train(recipe, make_image(), tmp_path / "run", device="cpu")
    assert len(seen) == 12
    memory = seen[0]
    for n, mean in enumerate(seen[1:], 1):
        memory = memory + (mean - memory) * 4 / (n + 4)
    kept = next(v for k, v in run.network("last").state_dict().items() if k.endswith("running_mean"))
    torch.testing.assert_close(kept, memory)


def test_a_short_training_is_validated_with_what_it_saw(make_image, tiny, tmp_path):
    """After 30 steps the validation, in eval mode, is near the training loss: batch norm holds no first guess any more."""
    recipe = Recipe.guess("n2v", make_image(), **(tiny | {"epochs": 3, "steps": 10, "batch": 8, "filters": 8}))
    last = train(recipe, make_image(), tmp_path / "run", device="cpu").losses[-1]
    assert last.val_loss < 1.3 * last.train_loss
