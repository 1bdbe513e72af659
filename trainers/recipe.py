"""The recipe: everything a training needs but the pixels, checked when it is made, in YAML and back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..zoo.blind import LEGAL, BlindMask
from ..zoo.dihedral import group
from ..zoo.errors import RecipeError, nearest
from ..zoo.image import Image
from .split import largest_patch, shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


VOLUME = 8
"""From this many z planes on, the guessed model is 3D."""


def setting(default: Any, meaning: str, legal: str, **limits: Any) -> Any:
    """A field of the recipe: what it means goes into the YAML, what is legal into the refusal."""
    return Field(default, description=meaning, json_schema_extra={"legal": legal}, **limits)


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "n2v": ("Noise2Void, Krull et al. 2019: a denoiser from noisy images alone", {}),
    "n2v2": (
        "N2V2, Höck et al. 2022: the same without its checkerboards",
        {"pooling": "blur", "top_skip": False, "manipulator": "median"},
    ),
    "structn2v": (
        "StructN2V, Broaddus et al. 2020: where neighbouring pixels share their noise",
        {"manipulator": "uniform_withoutCP"},
    ),
    "care": (
        "CARE, Weigert et al. 2018, Noise2Noise, Lehtinen et al. 2018: from pairs with a clean or a second noisy image",
        {},
    ),
}
"""What each method is, and where its defaults differ."""
ENDLESS = 1_000_000
"""Epochs of a training that ends with its minutes."""
COUNT = "a whole number from 1"
SIDES = "one whole number for each spatial axis, e.g. [64, 64] or [16, 64, 64]"


class Recipe(BaseModel):
    """How to train. Unknown keys and impossible values are refused with RecipeError, never with a traceback.

    `Recipe.guess("n2v", image)` guesses every setting from the image; `with_settings` changes some of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    method: Literal["n2v", "n2v2", "structn2v", "care"] = setting(
        "n2v", "what is learnt: n2v, n2v2, structn2v or care", "n2v, n2v2, structn2v or care"
    )
    dims: Literal[2, 3] = setting(2, "2: planes (y x), 3: volumes (z y x)", "2 or 3")
    patch: tuple[int, ...] = setting((64, 64), "pixels of a training patch, [z], y, x", SIDES)
    batch: int = setting(8, "patches in one step", COUNT, ge=1)
    epochs: int = setting(30, "how often the validation is looked at", COUNT, ge=1)
    steps: int = setting(30, "training steps in one epoch", COUNT, ge=1)
    learning_rate: float = setting(1e-3, "Adam's step size at the start", "a number above 0, e.g. 4e-4", gt=0, lt=10)
    schedule: Literal["cosine", "plateau"] = setting(
        "cosine",
        "how it falls: along half a cosine to 0 in the last epoch, or whenever the validation stands still",
        "cosine or plateau",
    )
    plateau_factor: float = setting(
        0.5,
        "plateau: the learning rate is multiplied by this when the validation stands still",
        "above 0 and below 1",
        gt=0,
        lt=1,
    )
    plateau_patience: int = setting(
        10, "plateau: that is, after this many epochs without a better validation loss", COUNT, ge=1
    )
    plateau_min_delta: float = setting(1e-4, "plateau: better means lower by more than this", "a number from 0", ge=0)
    minutes: float | None = setting(
        None,
        "train for this long, over all sittings; epochs are then the most there may be",
        "a number above 0, below 1e6",
        gt=0,
        lt=1e6,
    )
    early_stop: int | None = setting(None, "end after this many epochs without a better validation loss", COUNT, ge=1)
    gradient_clip: float | None = setting(
        None, "longest gradient (L2 norm over all weights) that a step follows", "a number above 0", gt=0
    )
    mask_percent: float = setting(
        1.5, "percent of the pixels of a patch that are hidden in each step", "above 0, at most 50", gt=0, le=50
    )
    mask_radius: int = setting(5, "hidden pixels are replaced by one at most this far away (pixels)", COUNT, ge=1)
    manipulator: Literal["uniform_withCP", "uniform_withoutCP", "median", "mean", "normal_fitted"] = setting(
        "uniform_withCP",
        "by what: any pixel nearby, itself included (withCP) or not (withoutCP), their median or mean, or a draw from "
        "the normal distribution that they follow",
        "uniform_withCP, uniform_withoutCP, median, mean or normal_fitted",
    )
    blind_mask: list[Any] | None = setting(
        None,
        "structn2v: the neighbours that share a pixel's noise and are hidden with it; `voidzoo noise` finds it",
        LEGAL,
    )
    depth: int = setting(2, "poolings of the U-Net", "a whole number from 1 to 5", ge=1, le=5)
    filters: int = setting(32, "channels of its first level; they double with every pooling", COUNT, ge=1)
    kernel: tuple[int, ...] = setting((3, 3), "sides of its convolutions, [z], y, x", "odd whole numbers, one an axis")
    pool: tuple[int, ...] = setting(
        (2, 2), "what it pools by, [z], y, x; 1 leaves an axis alone", "1 or 2, one an axis"
    )
    blind_fill: Literal["window", "uniform"] = setting(
        "window",
        "structn2v: what hidden neighbours become: a random pixel of the window that the mask does not hide, or a "
        "uniform random number from -2 to 2 (normalised), as published",
        "window or uniform",
    )
    pooling: Literal["max", "blur"] = setting(
        "max", "how it pools: the maximum, or blurred before it is subsampled (N2V2)", "max or blur"
    )
    top_skip: bool = setting(True, "whether its first level is connected to its last (N2V2: not)", "true or false")
    residual: bool = setting(False, "the network predicts what to add to its input", "true or false")
    loss: Literal["mse", "mae"] = setting(
        "mse", "mean squared or absolute error, over the hidden pixels or, for care, over all", "mse or mae"
    )
    augment: bool = setting(
        True, "turn and mirror patches at random in y and x, as far as the blind mask stays the same", "true or false"
    )
    channels: Literal["independent", "shared"] = setting(
        "independent",
        "independent: every channel has a network of its own, so that none leaks into another; shared: one for all",
        "independent or shared",
    )
    validation: float = setting(
        0.1, "share of the pixels that is held out: whole files, planes or a strip", "from 0.01 to 0.5", ge=0.01, le=0.5
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto",
        "what the network multiplies in while it trains; auto: bf16 (faster, half the memory) where the device has it",
        "auto, fp32 or bf16",
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto",
        "whether the network is compiled for training, which takes a minute; auto: on CUDA, where the training is long "
        "enough to repay it",
        "auto, on or off",
    )
    allow_nan: bool = setting(False, "leave out NaN and infinite pixels instead of refusing them", "true or false")
    seed: int = setting(
        0, "same seed, machine and thread count: same weights (on the CPU)", "a whole number from 0", ge=0
    )

    def __init__(self, **settings: Any) -> None:
        """Raise RecipeError for an unknown key (with the nearest known one) and for an impossible value."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _refusal(error) from None

    @model_validator(mode="before")
    @classmethod
    def _one_per_axis(cls, values: Any) -> Any:
        """kernel 3 -> (3, 3) or (3, 3, 3), pool 2 -> (2, 2) or (1, 2, 2): as the missing ones, they follow `dims`."""
        dims = values.get("dims", 2)
        if dims not in (2, 3):
            return values
        full = {"patch": (64, 64) if dims == 2 else (16, 64, 64), "kernel": (3,) * dims, "pool": (1, 2, 2)[-dims:]}
        values = full | values
        for key in ("patch", "kernel", "pool"):
            value = values[key]
            if isinstance(value, int) and not isinstance(value, bool):
                values[key] = (1,) * (dims - 2) + (value, value) if key == "pool" else (value,) * dims
        return values

    @field_validator("blind_mask", mode="before")
    @classmethod
    def _blind_mask_as_lists(cls, given: Any) -> Any:
        """ "1x9", lists, their JSON or an array -> lists without empty edges."""
        if given is None:
            return None
        try:
            return BlindMask.of(given).lists()
        except ValueError as error:
            raise ValueError(f"blind_mask|{error}") from None

    @model_validator(mode="after")
    def _axes_agree(self) -> Self:
        for key in ("patch", "kernel", "pool"):
            if len(getattr(self, key)) != self.dims:
                raise ValueError(f"{key}|has {len(getattr(self, key))} numbers for {self.dims} axes")
        for key, good in (
            ("kernel", lambda k: k > 0 and k % 2),
            ("pool", lambda p: p in (1, 2)),
            ("patch", lambda p: p > 0),
        ):
            if not all(good(v) for v in getattr(self, key)):
                raise ValueError(f"{key}|")
        for side, step in zip(self.patch, self.step, strict=True):
            if side % step:
                lower = side // step * step
                legal = f"{lower} or {lower + step}" if lower else f"{step}"
                raise ValueError(f"patch|{side} is not a multiple of {step}: use {legal}")
        return self

    @model_validator(mode="after")
    def _mask_fits_method(self) -> Self:
        blind = self.blind
        if (self.method == "structn2v") != (blind is not None):
            raise ValueError(
                f"blind_mask|{self.method} hides single pixels (structn2v takes a mask)"
                if blind
                else "blind_mask|structn2v needs one (`voidzoo noise IMAGE` proposes one)"
            )
        if blind is not None and blind.dims != self.dims:
            raise ValueError(f"blind_mask|has {blind.dims} axes, the network {self.dims}")
        if blind is not None and any(b > p for b, p in zip(blind.hidden.shape, self.patch, strict=True)):
            raise ValueError(f"blind_mask|{'x'.join(map(str, blind.hidden.shape))} is larger than a patch")
        return self

    @property
    def blind(self) -> BlindMask | None:
        """The blind mask, None where single pixels are hidden."""
        return None if self.blind_mask is None else BlindMask.of(self.blind_mask)

    @property
    def turns(self) -> tuple[int, ...]:
        """How patches may be turned and mirrored (codes of zoo.dihedral): so that noise keeps its direction."""
        if not self.augment:
            return (0,)
        blind = self.blind
        return group(None if blind is None else blind.hidden, square=self.patch[-1] == self.patch[-2])

    @property
    def step(self) -> tuple[int, ...]:
        """What sides must be multiples of, one a spatial axis."""
        return tuple(int(p) ** self.depth for p in self.pool)

    @classmethod
    def guess(cls, method: str, image: Image | Sequence[Image], **overrides: Any) -> Self:
        """A recipe for a method of METHODS and an image or several; what is not given is guessed from them.

        3D from VOLUME z planes on, or as the blind mask is (one of y and x hides within each plane); the patch shrinks
        where an image holds no larger one beside its validation strip. Raises RecipeError for an unknown or impossible
        setting, AxesError for dims 3 without z.
        """
        if method not in METHODS:
            raise RecipeError(f"there is no method {method!r}{nearest(method, METHODS)}.", mend=", ".join(METHODS))
        images = [image] if isinstance(image, Image) else list(image)
        deep = min((i.size("z") for i in images), default=1)
        dims = 3 if deep >= VOLUME else 2
        if overrides.get("blind_mask") is not None:
            with contextlib.suppress(ValueError):  # refused below, in the words of the recipe
                blind = BlindMask.of(overrides["blind_mask"])
                dims = overrides.get("dims", max(dims, blind.dims))
                if dims == 3 and blind.dims == 2:  # a mask of y and x, in each plane
                    overrides = overrides | {"blind_mask": [blind.lists()]}
        settings: dict[str, Any] = {"method": method, "dims": dims} | METHODS[method][1] | overrides
        if settings.get("minutes") is not None:
            settings.setdefault("epochs", ENDLESS)
        first = cls(**settings)
        if first.dims == 3:
            guess = {"batch": 2, "steps": 20, "filters": 16}
            first = cls(**(guess | settings))
        if "patch" not in overrides:
            patch = first.patch
            for one in images:
                sides = shape_of(one, first.dims)[1]
                best = largest_patch(sides, first.step, first.validation, len(images) == 1)
                patch = tuple(min(p, b) if b else p for p, b in zip(patch, best, strict=True))
            first = first.with_settings({"patch": patch})
        return first

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> Self:
        """From a mapping, e.g. the contents of a YAML file. Raises RecipeError."""
        return cls(**{str(key): value for key, value in settings.items()})

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """The same recipe with some settings changed. Raises RecipeError."""
        return self.make(self.model_dump() | dict(settings))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a recipe file. Raises RecipeError for a missing file, broken YAML, unknown or impossible settings."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise RecipeError(f"{path} is no recipe; a recipe has lines such as 'epochs: 20'.")
        return cls.make(values)

    def to_yaml(self) -> str:
        """The recipe as YAML, every setting with a comment that says what it means."""
        lines = ["# How this model is trained. Every line may be edited; unknown names are refused."]
        for name, field in type(self).model_fields.items():
            value = self.model_dump(mode="json")[name]
            text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
            lines.append(f"{f'{name}: {text}':32}  # {field.description}")
        return "\n".join(lines) + "\n"


def _refusal(error: ValidationError) -> RecipeError:
    """The first complaint of pydantic in the words of the house."""
    first = error.errors()[0]
    fields = Recipe.model_fields
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][0])
        return RecipeError(
            f"a recipe has no setting {key!r}{nearest(key, fields)}.", mend=f"settings: {', '.join(fields)}"
        )
    if first["loc"] and first["type"] != "value_error":
        key, detail, value = str(first["loc"][0]), "", first["input"]
        if len(first["loc"]) > 1:
            detail = f"{value!r} is not a whole number"
        shown = detail or repr(value)
    else:  # raised by a validator, as "setting|detail"
        key, _, detail = str(first["ctx"]["error"]).partition("|")
        shown = detail or "not possible"
    extra: Any = fields[key].json_schema_extra
    return RecipeError(f"{key}: {shown}; it must be {extra['legal']}.", where=f"setting {key!r} of the recipe")
