"""What is said of a denoiser that was trained here: the words of its description, its README, `config.voidzoo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..zoo.version import __version__
from .about import suggest_name
from .describe import words_of

if TYPE_CHECKING:
    from ..trainers.record import Run
    from .about import About
    from .measured import Measured

CITE = {
    "unet": {
        "text": "Ronneberger et al. U-Net: convolutional networks for biomedical image segmentation. MICCAI 2015.",
        "doi": "10.1007/978-3-319-24574-4_28",
    },
    "n2v": {
        "text": "Krull et al. Noise2Void - learning denoising from single noisy images. CVPR 2019.",
        "doi": "10.1109/CVPR.2019.00223",
    },
    "n2v2": {
        "text": "Höck et al. N2V2 - fixing Noise2Void checkerboard artifacts with modified sampling strategies and a "
        "tweaked network architecture. ECCV 2022 Workshops.",
        "doi": "10.1007/978-3-031-25069-9_33",
    },
    "structn2v": {
        "text": "Broaddus et al. Removing structured noise with self-supervised blind-spot networks. ISBI 2020.",
        "doi": "10.1109/ISBI45749.2020.9098336",
    },
    "care": {
        "text": "Weigert et al. Content-aware image restoration: pushing the limits of fluorescence microscopy. "
        "Nature Methods 2018.",
        "doi": "10.1038/s41592-018-0216-7",
    },
}
ALSO = {"n2v2": ("n2v",), "structn2v": ("n2v",)}
"""Methods that a method stands on, cited with it."""
TAGS = {
    "n2v": ["denoising", "image-restoration", "noise2void", "n2v", "self-supervision"],
    "n2v2": ["denoising", "image-restoration", "noise2void", "n2v2", "self-supervision"],
    "structn2v": ["denoising", "image-restoration", "noise2void", "structn2v", "self-supervision"],
    "care": ["denoising", "image-restoration", "care"],
}


OPENS_IN = ["fiji", "imagej", "deepimagej", "ilastik"]
"""Where packages of ours open (`consumers`): the catalogue has tags for these."""


def words(run: Run, about: About, dims: int) -> dict[str, Any]:
    """Name, description, tags, citations, ... of the package of a run, as rdf.yaml has them."""
    method = run.recipe.method
    said = words_of(about, name_of(run, about))
    said["description"] = about.description or f"{method.upper()} denoiser, trained on {_images(run)}."[:512]
    said["cite"] = [*said["cite"], *_cited(run)]
    said["tags"] = [*TAGS[method], f"{dims}d", "unet", "pytorch", "onnx", "voidzoo", *OPENS_IN, *about.tags]
    return said


def texts(run: Run) -> tuple[str, str]:
    """The descriptions of input and output."""
    return (
        "raw intensities, as the microscope wrote them; normalisation lies in the network",
        f"denoised intensities, on the scale of the {_scale(run)}",
    )


def ours(run: Run, about: About, channels: int) -> dict[str, Any]:
    """`config.voidzoo`: what the format has no word for."""
    info = run.info
    return {
        "version": __version__,
        "method": run.recipe.method,
        **({"kinds": ["intensity"] * channels} if _on_the_images_scale(run) else {}),
        "training": {
            "images": [{k: i[k] for k in ("name", "axes", "shape", "dtype")} for i in info["images"]],
            "pixel_size": {a: v for a, v in info["pixel_size"].items() if v is not None},
            "intensity_range": info["intensity_range"],
            "normalisation": info["normalisation"],
            "split": info["split"]["rule"],
            "epochs_done": info["epochs_done"],
            "best_epoch": info["best_epoch"],
            "best_validation_loss": info["best_val_loss"],
        },
        "network": info["network"],
        "seed": run.recipe.seed,
        "recipe": run.recipe.model_dump(mode="json"),
        **({"card": said} if (said := _for_the_card(about)) else {}),
    }


def _for_the_card(about: About) -> dict[str, Any]:
    """What only a person can say, and the format has no word for."""
    said = {"data": about.data, "data_link": about.training_link or about.training_data,
            "data_license": about.data_license, "limits": list(about.limits)}  # fmt: skip
    return {k: v for k, v in said.items() if v}


def readme(run: Run, about: About, measured: Measured | None = None) -> str:
    """The README.md of a package: what it is, on what it was trained, how it did on held-out data."""
    info, n = run.info, run.info["normalisation"]
    rows = "\n".join(
        f"| {c} | {mean:.6g} | {std:.6g} |" for c, mean, std in zip(info["channels"], n["mean"], n["std"], strict=True)
    )
    data = [about.data, about.training_data, about.data_license and f"licence {about.data_license}"]
    training = f"\nTraining data: {', '.join(d for d in data if d)}.\n" if any(data) else ""
    limits = "\n## Limits\n\n" + "\n".join(f"* {limit}" for limit in about.limits) + "\n" if about.limits else ""
    held_out = f"\n{measured.text()}\n\n![best](best.png)\n\n![worst](worst.png)\n" if measured else ""
    return f"""# {name_of(run, about)}

{about.description or f"A {run.recipe.method.upper()} denoiser ({run.recipe.dims}D U-Net), trained on {_images(run)}."}

It takes raw intensities and returns denoised intensities on the scale of the {_scale(run)}:
do not normalise the image yourself.

| channel | mean of the training pixels | standard deviation |
|---|---|---|
{rows}
{training}
## Validation

{info["split"]["rule"]}. After {info["epochs_done"]} epochs the smallest {_loss(run)} of the
held-out part was {info["best_val_loss"]:.4g} {_unit(run)} of the image (epoch {info["best_epoch"]}).
{_floor(run)}
{held_out}{limits}
Made with voidzoo {__version__}. `voidzoo predict THIS.zip IMAGE -o OUT.ome.zarr`
"""


def name_of(run: Run, about: About) -> str:
    """The name that was given, or method and folder."""
    return about.name or suggest_name(f"{run.recipe.method}-{run.folder.resolve().name}")


def _cited(run: Run) -> list[dict[str, str]]:
    """The papers of the method."""
    method = run.recipe.method
    return [CITE[m] for m in (method, *ALSO.get(method, ()), "unet")]


def _on_the_images_scale(run: Run) -> bool:
    """Whether a result fits into the image's own dtype: not where care's targets are of another kind of grey values."""
    dtypes = {i["dtype"] for i in run.info["images"]} | {i["dtype"] for i in run.info.get("targets", [])}
    return "targets" not in run.info or len(dtypes) == 1


def _scale(run: Run) -> str:
    return "images that it was trained to predict" if "targets" in run.info else "input"


def _loss(run: Run) -> str:
    kind = "mean squared error" if run.recipe.loss == "mse" else "mean absolute error"
    return kind if run.recipe.method == "care" else f"{kind} at hidden pixels"


def _unit(run: Run) -> str:
    return "variances" if run.recipe.loss == "mse" else "standard deviations"


def _floor(run: Run) -> str:
    if run.recipe.method == "care":
        return (
            "It is measured against held-out partners; where they are noisy, its floor is the variance of their noise."
        )
    return "It is measured against noisy pixels, so its floor is the variance of the noise."


def _images(run: Run) -> str:
    names = [i["name"] for i in run.info["images"]]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
