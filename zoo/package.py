"""A model package (bioimage.io): what goes in, what comes out, where the weights are, checked before use.

The rdf.yaml of a portable package (format 0.5.x, one input, one output, no processing steps) is read here directly:
importing bioimageio.spec costs a second that every prediction would pay. docs/decisions/0003 tells more.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .axes import SPACE
from .errors import PackageError

MAX_DESCRIPTION = 4 * 2**20
MAX_FILE = 8 * 2**30
KINDS = ("intensity", "probability", "distance", "logit")


@dataclass(frozen=True)
class AxisRule:
    """The legal sizes of one spatial input axis, `minimum + n * step`, and the halo to cut from the output."""

    minimum: int
    step: int
    halo: int


@dataclass(frozen=True, repr=False)
class Package:
    """A model that predicts one output tensor from one input tensor.

    axes: the spatial axes that the network reads at once, `"yx"` or `"zyx"`. rules: one an axis.
    channels_in, channels_out: names. kinds: one of intensity, probability, distance, logit an output channel, or empty
    where the package does not say. sha256: of the weights file.
    """

    path: str
    name: str
    version: str
    axes: str
    rules: Mapping[str, AxisRule]
    channels_in: tuple[str, ...]
    channels_out: tuple[str, ...]
    kinds: tuple[str, ...]
    weights: str
    sha256: str
    test_input: str
    test_output: str
    description: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def files(self) -> PackageFiles:
        """The files of the package, read with their sha256 checked."""
        return PackageFiles(self.path)

    @property
    def ours(self) -> Mapping[str, Any]:
        """What the spec has no word for (`config.voidzoo`); empty in packages of others."""
        return dict(self.config.get("voidzoo") or {})

    @property
    def pixel_size(self) -> dict[str, float]:
        """The pixel size in um of the training images by axis; empty where unknown."""
        size = (self.ours.get("training") or {}).get("pixel_size") or {}
        return {a: float(v) for a, v in size.items() if v is not None}

    def __repr__(self) -> str:
        """Name, path and what it reads."""
        sizes = ", ".join(f"{a} {r.minimum} + n * {r.step}" for a, r in self.rules.items())
        return f"Package({self.name!r}, {self.path!r}, {len(self.channels_in)} channels, {sizes})"

    def onnx(self) -> bytes:
        """The ONNX weights. Raises PackageError when they are not those that rdf.yaml names by sha256."""
        return self.files.read(self.weights, self.sha256)


class PackageFiles:
    """The files of a package folder or zip. Nothing is extracted; no path leads outside."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_zip = Path(path).is_file()

    def read(self, name: str, sha256: str | None = None, limit: int = MAX_FILE) -> bytes:
        """The bytes of a file. Raises PackageError if it is missing, too large, outside, or has another sha256."""
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
            raise PackageError(
                f"{self.path} refers to {name!r}, which does not lie in the package.", mend="get the package again"
            )
        data = self._read_zip(name, limit) if self.is_zip else self._read_folder(name, limit)
        if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise PackageError(
                f"{self.path} is not what was exported: {name} has sha256 {found[:8]}..., "
                f"rdf.yaml says {sha256[:8]}....",
                mend="export again, or get the package again from where it came",
            )
        return data

    def _read_zip(self, name: str, limit: int) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(name)
                if info.file_size > limit:
                    raise PackageError(f"{self.path}: {name} has {info.file_size:,} bytes, more than {limit:,}.")
                return archive.read(info)
        except KeyError:
            raise self._missing(name) from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            if isinstance(error, PackageError):
                raise
            if Path(self.path).suffix.lower() != ".zip":
                raise PackageError(
                    f"{self.path} is no model: a package is a .zip or a folder with rdf.yaml.",
                    mend="the model comes first: voidzoo predict MODEL.zip IMAGE -o OUT.ome.zarr",
                ) from error
            raise PackageError(
                f"{self.path} is not a whole zip file: {error}.", mend="copy or download it again"
            ) from error

    def _read_folder(self, name: str, limit: int) -> bytes:
        root = Path(self.path).resolve()
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise PackageError(f"{self.path}: {name} is a link out of the package.", mend="get the package again")
        if not file.is_file():
            raise self._missing(name)
        if file.stat().st_size > limit:
            raise PackageError(f"{self.path}: {name} has {file.stat().st_size:,} bytes, more than {limit:,}.")
        return file.read_bytes()

    def _missing(self, name: str) -> PackageError:
        return PackageError(
            f"{self.path} has no {name}.", mend="a bioimage.io package is a zip or folder with rdf.yaml and weights"
        )


def open_package(path: str | Path) -> Package:
    """Read a package (zip or folder). Raises PackageError if it is missing, broken or of a kind that cannot be run."""
    text = str(path)
    if not Path(text).exists():
        raise PackageError(f"there is no model {text}.", mend="a path to a package: a .zip or a folder with rdf.yaml")
    if (Path(text) / "run.json").is_file():
        raise PackageError(
            f"{text} is a training run; its package is made by export.",
            mend=f"voidzoo export {text} -o {Path(text).name}.zip",
        )
    raw = PackageFiles(text).read("rdf.yaml", limit=MAX_DESCRIPTION)
    try:
        rdf = yaml.load(raw, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise PackageError(f"{text}: rdf.yaml is not YAML.", where=" ".join(str(error).split())[:200]) from error
    if not isinstance(rdf, dict):
        raise PackageError(f"{text}: rdf.yaml is not a description of a model.")
    try:
        return _package(text, rdf)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(
            f"{text}: rdf.yaml does not describe a model as bioimage.io format 0.5 does.",
            where=f"{type(error).__name__}: {error}",
            mend=f"bioimageio validate-format {text}",
        ) from error


def _package(path: str, rdf: Mapping[str, Any]) -> Package:
    version = str(rdf.get("format_version", ""))
    if rdf.get("type") != "model" or not version.startswith("0.5."):
        raise PackageError(
            f"{path} is a {rdf.get('type', 'resource')} in format {version or 'unknown'}; "
            "models in format 0.5 can be run.",
            mend=f"bioimageio update-format {path} NEW.zip",
        )
    tensor_in, tensor_out = _single(path, rdf, "inputs"), _single(path, rdf, "outputs")
    _no_processing(path, tensor_in, tensor_out)
    axes_in, axes_out = _axes(tensor_in), _axes(tensor_out)
    if list(axes_in) != list(axes_out) or list(axes_in)[:2] != ["batch", "channel"]:
        raise PackageError(
            f"{path} reads the axes {', '.join(axes_in)} and returns {', '.join(axes_out)}; "
            "models with batch, channel, (z), y, x both ways can be run."
        )
    space = "".join(a for a in axes_in if a in SPACE)
    if space not in ("yx", "zyx") or len(axes_in) != len(space) + 2:
        raise PackageError(f"{path} reads the axes {', '.join(axes_in)}; (z), y, x can be run.")
    rules = {a: _rule(path, a, axes_in[a], axes_out[a]) for a in space}
    weights = rdf.get("weights") or {}
    if "onnx" not in weights:
        raise PackageError(f"{path} has no ONNX weights; it offers: {', '.join(weights) or 'none'}.")
    if not (sha256 := weights["onnx"].get("sha256")):
        raise PackageError(f"{path}: rdf.yaml gives no sha256 for the ONNX weights.", mend="export the model again")
    channels_out = tuple(axes_out["channel"]["channel_names"])
    ours = (rdf.get("config") or {}).get("voidzoo") or {}
    kinds = tuple(ours.get("kinds") or ())
    if kinds and (len(kinds) != len(channels_out) or set(kinds) - set(KINDS)):
        raise PackageError(f"{path}: config.voidzoo.kinds is {kinds}; it takes one of {', '.join(KINDS)} a channel.")
    return Package(
        path=path,
        name=str(rdf["name"]),
        version=str(rdf.get("version", "")),
        axes=space,
        rules=rules,
        channels_in=tuple(axes_in["channel"]["channel_names"]),
        channels_out=channels_out,
        kinds=kinds,
        weights=str(weights["onnx"]["source"]),
        sha256=str(sha256),
        test_input=str(tensor_in["test_tensor"]["source"]),
        test_output=str(tensor_out["test_tensor"]["source"]),
        description=str(rdf.get("description", "")),
        config=rdf.get("config") or {},
    )


def _single(path: str, rdf: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    tensors = rdf[key]
    if len(tensors) != 1:
        raise PackageError(f"{path} has {len(tensors)} {key}; models with one can be run.")
    return tensors[0]


def _no_processing(path: str, tensor_in: Mapping[str, Any], tensor_out: Mapping[str, Any]) -> None:
    """Steps outside the graph would have to be executed; only a cast to the dtype that is used anyway is skipped."""
    for key, tensor in (("preprocessing", tensor_in), ("postprocessing", tensor_out)):
        steps = [s for s in tensor.get(key) or () if not _is_float32_cast(s)]
        if steps:
            names = ", ".join(str(s.get("id", "?")) for s in steps)
            raise PackageError(
                f"{path} asks for {key} outside the network ({names}); "
                "only packages with it inside the graph can be run.",
                mend="bioimageio.core runs it in memory: bioimageio predict",
            )


def _is_float32_cast(step: Mapping[str, Any]) -> bool:
    return step.get("id") == "ensure_dtype" and (step.get("kwargs") or {}).get("dtype") == "float32"


def _axes(tensor: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The axes of a tensor by id; the format lets batch and channel go unnamed, and calls a nameless space axis x."""
    default = {"batch": "batch", "channel": "channel", "space": "x", "time": "time", "index": "index"}
    return {str(a.get("id", default[a["type"]])): a for a in tensor["axes"]}


def _rule(path: str, axis: str, axis_in: Mapping[str, Any], axis_out: Mapping[str, Any]) -> AxisRule:
    size, size_out = axis_in["size"], axis_out["size"]
    if not isinstance(size, dict) or "step" not in size:
        raise PackageError(f"{path} reads {size} along {axis}; models that read any size (min, step) can be run.")
    if float(axis_out.get("scale", 1.0)) != float(axis_in.get("scale", 1.0)) or int(size_out.get("offset", 0)):
        raise PackageError(f"{path} returns another size along {axis} than it reads; equal sizes can be run.")
    rule = AxisRule(minimum=int(size["min"]), step=int(size["step"]), halo=int(axis_out.get("halo", 0)))
    if rule.minimum < 1 or rule.step < 1 or rule.halo < 0:
        raise PackageError(f"{path}: min {rule.minimum}, step {rule.step}, halo {rule.halo} along {axis} cannot be.")
    return rule
