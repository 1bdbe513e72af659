"""The one writer of packages: what a model is made of becomes a portable .zip, and is proved before it is named.

Section by section what every consumer reads: docs/decisions/0003. Our own trainings (`pack`), anybody's networks
(`anybody`) and packages of others (`convert`) all come through here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from ..zoo.errors import OutputError
from ..zoo.files import replace_file
from ..zoo.package import Package, open_package
from .cover import cover
from .describe import describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT = ("-expected.npy", "-found.npy", "-difference.png")
"""How the files end that a failed proof keeps (`proof.compare`)."""


@dataclass(frozen=True)
class End:
    """The input or output of a network, axes b c [t] [z] y x.

    text: its description. channels: identifiers, one a channel. space: what rdf.yaml says of each axis behind the
    channels, by letter. test: float32 (b, c, *space), raw for the input. steps: processing that stays outside of the
    network, as rdf.yaml has it. one: whether a batch has one item and no more.
    """

    text: str
    channels: Sequence[str]
    space: Mapping[str, Mapping[str, Any]]
    test: NDArray[np.float32]
    steps: Sequence[Mapping[str, Any]] = ()
    one: bool = False


@dataclass(frozen=True)
class StateDict:
    """A state dict and what makes its network: `made` is rdf.yaml's architecture without source and sha256.

    code: the content of `file`, None where a library makes it.
    """

    weights: bytes
    made: Mapping[str, Any]
    file: str = ""
    code: bytes | None = None


@dataclass(frozen=True)
class Parts:
    """All that a package is made of.

    words: name, description, authors, cite, tags, ... as rdf.yaml has them. ours: `config.voidzoo`. nickname: made of
    the name where it is empty. onnx: one file that takes and returns the tensors of the ends. torch: the version that
    wrote the other forms. picture: the cover, name and content; drawn from the test tensors where there is none.
    pictures: those that the README shows, by name.
    """

    words: Mapping[str, Any]
    readme: str
    ours: Mapping[str, Any]
    input: End
    output: End
    onnx: bytes
    opset: int
    torchscript: bytes | None = None
    state: StateDict | None = None
    torch: str = ""
    nickname: str = ""
    picture: tuple[str, bytes] | None = field(default=None, repr=False)
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def denoises(self) -> bool:
        """Whether results are images of the input's kind: so it is with all that is trained here."""
        return "method" in self.ours or set(self.ours.get("kinds") or ()) == {"intensity"}


def write(parts: Parts, path: Path) -> None:
    """The package as a zip, there whole or not at all. Raises OutputError."""
    files = _files(parts)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in {"rdf.yaml": describe(parts, files).encode(), **files}.items():
            archive.writestr(file, content)
    replace_file(path, lambda p: p.write_bytes(buffer.getbuffer()))


def write_proved(parts: Callable[[], Parts], out: Path, prove: Callable[[Package, Path], Any]) -> Package:
    """Write a draft beside OUT, prove it, and only then give it its name.

    prove: takes the draft and the folder where tensors that differ are kept; raises ProofFailed. Whatever is raised,
    nothing lies at OUT but what was there before.
    """
    draft = draft_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out.parent} cannot be made: {error.strerror or error}.", mend="another -o") from error
    forget_failed(failed_folder(out))
    try:
        write(parts(), draft)
        prove(open_package(draft), failed_folder(out))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return open_package(out)


def draft_of(out: Path, word: str = "part") -> Path:
    """Where a package lies until it has its name: beside OUT, hidden, so that it is nobody's file."""
    return out.with_name(f".{out.stem}.{word}.zip")


def check_place(out: Path, overwrite: bool) -> None:
    """Raise OutputError where no package can be written."""
    if out.suffix != ".zip":
        raise OutputError(f"{out}: a package is a .zip.", mend=f"-o {out}.zip")
    if out.is_dir():
        raise OutputError(f"{out} is a folder.", mend="another -o")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists.", mend="another -o, or --overwrite")


def failed_folder(out: Path) -> Path:
    """Where the tensors of a failed proof are kept."""
    return out.with_name(out.stem + ".failed")


def forget_failed(folder: Path) -> None:
    """Remove what an earlier proof kept there, and the folder if it holds nothing else."""
    for end in KEPT:
        for file in folder.glob(f"*{end}"):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _files(parts: Parts) -> dict[str, bytes]:
    """Name -> content of everything but rdf.yaml."""
    before, after = parts.input.test, parts.output.test
    name, picture = parts.picture or ("cover.png", b"")
    files = {"README.md": parts.readme.encode(), name: picture or cover(before[0], after[0], one_grey=parts.denoises)}
    files |= parts.pictures
    for which, end in (("input", parts.input), ("output", parts.output)):
        files[f"sample_{which}.tif"] = _tiff(end.test[0], "c" + "".join(end.space))
        files[f"test_{which}.npy"] = npy(end.test)
    files["weights.onnx"] = parts.onnx
    if parts.torchscript is not None:
        files["weights.torchscript.pt"] = parts.torchscript
    if parts.state is not None:
        files["weights.pt"] = parts.state.weights
        if parts.state.code is not None:
            files[parts.state.file] = parts.state.code
    return files


def npy(array: NDArray[Any]) -> bytes:
    """The content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _tiff(pixels: NDArray[np.float32], letters: str) -> bytes:
    """(c, [t], [z], y, x) -> a TIFF for people, without axes of length 1."""
    buffer = io.BytesIO()
    axes = "".join(a for a, n in zip(letters, pixels.shape, strict=True) if n > 1 or a in "yx").upper()
    shape = [n for a, n in zip(letters, pixels.shape, strict=True) if n > 1 or a in "yx"]
    grey: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib"}  # three channels are no colours
    tifffile.imwrite(buffer, pixels.reshape(shape), metadata={"axes": axes}, **grey)
    return buffer.getvalue()
