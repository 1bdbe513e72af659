"""TorchScript of strangers: what would reach files is refused before torch sees it; networks of all kinds pass."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.model_zoo import MODELS
from voidzoo.infer.networks.device import Device
from voidzoo.infer.networks.script_archive import checked_script, refuse_script
from voidzoo.infer.networks.torch_network import TorchNetwork
from voidzoo.zoo.errors import PackageError
from voidzoo.zoo.package import open_package

BODY = "  def forward(self, x: Tensor) -> Tensor:\n    return x\n"
HEAD = "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"


class Writes(torch.nn.Module):
    """Its network writes a file beside computing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "escaped")
        return x


class Several(torch.nn.Module):
    """What real networks hold: numbered layers (getattr), loops, a message, a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Upsample(scale_factor=2.0)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4:
            raise ValueError('four "axes"\n')
        for layer in self.layers:
            x = layer(x)
        return x


def scripted(module: torch.nn.Module) -> bytes:
    made = io.BytesIO()
    torch.jit.save(torch.jit.script(module), made)
    return made.getvalue()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def edited(data: bytes, change: Callable[[str], str]) -> bytes:
    """The same archive with other code."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content.decode()).encode() if name.endswith(".py") else content)
    return made.getvalue()


def test_networks_pass_and_compute_the_same() -> None:
    """Layers by number, branches and messages: the archive packed anew is the same network."""
    data = scripted(Several().eval())
    x = torch.from_numpy(np.random.default_rng().random((1, 2, 9, 11), np.float32))
    again = torch.jit.load(io.BytesIO(checked_script(data, "m")))(x)
    assert torch.equal(torch.jit.load(io.BytesIO(data))(x), again)


def test_a_network_that_writes_files_is_refused_where_it_would_have(tmp_path: Path) -> None:
    """torch alone runs it, and the file appears; in a package it is refused, and none appears; --trust-code runs it."""
    data = scripted(Writes())
    torch.jit.load(io.BytesIO(data))(torch.rand(2))
    Path("escaped").unlink()
    model = MODELS["torchscript"](tmp_path / "p")
    (model.path / "weights.pt").write_bytes(data)
    rdf = yaml.safe_load((model.path / "rdf.yaml").read_text())
    rdf["weights"]["torchscript"]["sha256"] = hashlib.sha256(data).hexdigest()
    (model.path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    package = open_package(model.path)
    with pytest.raises(PackageError, match=r"call 'save', which reaches files(.|\n)*--trust-code") as caught:
        TorchNetwork(package, package.weights[0], Device("cpu"), 1)
    assert "\n" not in caught.value.what
    assert not Path("escaped").exists()
    trusted = TorchNetwork(package, package.weights[0], Device("cpu"), 1, trust_code=True)
    trusted.run({package.main.id: np.random.default_rng().random((1, 2, 4, 4), np.float32)})
    assert Path("escaped").exists()


CODE = {
    "while it is loaded": (
        'def __setstate__(self, s: int) -> NoneType:\n    torch.save(s, "escaped")\n', "call 'save'",
    ),
    "a map of a file": ('_0 = torch.from_file("/etc/hostname", True, 4)\n', "call 'from_file'"),
    "as a method": ('_0 = (x).save("escaped")\n', "call 'save'"),
    "by its namespace": ('ops.aten.save(x, "escaped")\n', "call 'save'"),
    "of another library": ('ops.image.write_file("escaped", x)\n', "operators of other libraries"),
    "of another library, spaced": ('ops . image . write_file("escaped", x)\n', "operators of other libraries"),
    "by another name": ("o = ops\n", "operators of other libraries"),
    "other machines": ('rpc_sync("a", f, (x,))\n', "call 'rpc_sync'"),
    "spelt in hex": ('getattr(torch, "\\x73ave")(x, "escaped")\n', "look names up"),
    "in two words": ('getattr(torch, "sa" "ve")(x, "escaped")\n', "look names up"),
    "in single quotes": ("getattr(torch, 'sa\\166e')(x, 'escaped')\n", "look names up"),
    "over two lines": ('getattr(torch,\n  "\\163ave")(x)\n', "look names up"),
}  # fmt: skip


@pytest.mark.parametrize("way", CODE)
def test_code_that_reaches_files_is_found_however_it_is_spelt(way: str) -> None:
    """Read as text, before torch reads it: torch runs `__setstate__` while it loads."""
    code, message = CODE[way]
    data = edited(scripted(Several().eval()), lambda text: text + f"\n  {code}" if "Several" in text else text)
    with pytest.raises(PackageError, match=message):
        checked_script(data, "m")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "torch cannot load"),
        (b"\x80\x04cposix\nsystem\n(S'touch escaped'\ntR.", "torch cannot load"),
        (b"PTMF" + os.urandom(200), "torch cannot load"),
    ],
)
def test_what_is_no_torchscript_archive_is_refused(data: bytes, message: str) -> None:
    """Pickles and other formats that torch would try do not reach it."""
    with pytest.raises(PackageError, match=message):
        checked_script(data, "m")
    assert not Path("escaped").exists()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/code/__torch__.py", HEAD + BODY)
        archive.writestr("m/data/0", bytes(200 * 2**20))
    with pytest.raises(PackageError, match="unpack to much more than they are"):
        checked_script(made.getvalue(), "m")


def test_a_state_dict_that_is_torchscript_is_refused() -> None:
    """torch before 2.6 ran those in spite of weights_only; a state dict and an old one pass."""
    with pytest.raises(PackageError, match="is TorchScript, which is code"):
        refuse_script(scripted(Several()), "m")
    for new in (True, False):
        made = io.BytesIO()
        torch.save(Several().state_dict(), made, _use_new_zipfile_serialization=new)
        refuse_script(made.getvalue(), "m")
    assert re.match("PK", made.getvalue()[:2].decode("latin-1")) is None
