"""TorchScript files of strangers: read as text before torch sees them, because torch runs parts of them when it loads.

TorchScript can write files (`torch.save`), map them (`torch.from_file`) and talk to other processes (`rpc`); code under
`__setstate__` runs while a file is loaded. What is checked here is packed anew, so that torch reads the same bytes.
It is no sandbox: what is let through runs inside of torch, may take any time and memory, and may print.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib

from ...zoo.errors import PackageError

WORDS = re.compile(r"\b(save|from_file|rpc_\w+|remote_\w+|_load_for_\w+|load_library)\b")
"""Operators that reach files or other machines; nothing else in a network has these names."""
OPS = re.compile(r"(?<![\w.])ops\b(?!\s*\.\s*(?:prim|aten|quantized|torchvision)\b)")
"""Operators of libraries that may do anything (`ops.image.write_file`)."""
NAMED = re.compile(r"\s*\(")
PLAIN = re.compile(r'[\w.\s(),"]*')
MAX_CODE = 64 * 2**20
MAX_FILES = 100_000
TRUST = "--trust-code  if you trust where the package came from"


def checked_script(data: bytes, path: str) -> bytes:
    """The same TorchScript archive, packed anew. Raises PackageError for none, and for one that reaches beyond torch.

    path: of the package, for words.
    """
    files = _unpacked(data, path)
    code = {name: text for name, text in files.items() if _is_code(name)}
    if not code:
        raise PackageError(f"{path}: its TorchScript weights hold no network.")
    for name, text in code.items():
        if why := _reaches(text):
            raise PackageError(f"{path}: its TorchScript weights {why}.", where=name[:200], mend=TRUST)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def refuse_script(data: bytes, path: str) -> None:
    """Raise PackageError for a state dict that is a TorchScript archive: torch before 2.6 would run it."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    if any(_is_code(name) for name in _unpacked(data, path, code_only=True)):
        raise PackageError(f"{path}: its state dict is TorchScript, which is code and no state.")


def _unpacked(data: bytes, path: str, *, code_only: bool = False) -> dict[str, bytes]:
    """Name -> bytes, in the order of the archive."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = archive.infolist()
            names = [i.filename for i in listed]
            if len(listed) > MAX_FILES or len(set(names)) < len(names):
                raise PackageError(f"{path}: its torch weights have {len(names):,} files, some of one name.")
            # torch stores tensors as they are; what unpacks to more than there is was made to fill the memory
            if sum(i.file_size for i in listed) > 2 * len(data) + MAX_CODE:
                raise PackageError(f"{path}: its torch weights unpack to much more than they are.")
            for info in listed:
                wanted = not code_only or _is_code(info.filename)
                found[info.filename] = archive.read(info) if wanted else b""
    except PackageError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise PackageError(f"torch cannot load {path}.", where=" ".join(str(error).split())[:200]) from error
    return found


def _is_code(name: str) -> bool:
    return ("/code/" in f"/{name}" and not name.endswith(".debug_pkl")) or name.endswith(".py")


def _reaches(code: bytes) -> str:
    """What a file of TorchScript does beyond computing; nothing where it only computes."""
    try:
        text = code.decode()
    except UnicodeDecodeError:
        return "hold code that is no text"
    if word := WORDS.search(text):
        return f"call {word.group()!r}, which reaches files or other machines"
    if OPS.search(text):
        return "call operators of other libraries"
    for found in re.finditer(r"\bgetattr\b", text):
        if not _plain_name(text, found.end()):
            return "look names up that cannot be read"  # "\x73ave", or "sa" "ve"
    return ""


def _plain_name(text: str, at: int) -> bool:
    """Whether the arguments of a getattr, which begin at `at`, are names and one word in quotes."""
    begin = NAMED.match(text, at)
    if begin is None:
        return False
    depth, stop = 1, begin.end()
    while depth and stop < len(text):
        depth += {"(": 1, ")": -1}.get(text[stop], 0)
        stop += 1
    inside = text[begin.end() : stop]
    return PLAIN.fullmatch(inside) is not None and re.search(r'"\s*"', inside) is None
