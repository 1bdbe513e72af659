"""What a training runs on, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..zoo.errors import DeviceError

if TYPE_CHECKING:
    from .loop import Loss


def choose_device(word: str) -> torch.device:
    """auto, cpu, cuda, cuda:1, mps -> a device that is there; auto takes CUDA, then MPS, then the CPU.

    Raises DeviceError for another word, and for a device that was asked for and is not there.
    """
    kind, _, index = word.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"there is no device {word!r}.", mend="--device auto, cpu, cuda, cuda:1 or mps")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if kind == "auto":
        return torch.device("cuda" if gpus else "mps" if mps else "cpu")
    if kind == "cuda" and not gpus:
        build = "was built without CUDA" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) finds no GPU"
        raise DeviceError(
            "CUDA was asked for and is not there.",
            where=f"torch {torch.__version__} {build}",
            mend="--device cpu, or a driver and a torch that fit together",
        )
    if kind == "cuda" and int(index or 0) >= gpus:
        raise DeviceError(f"{word} was asked for; the GPUs here are cuda:0 to cuda:{gpus - 1}.", mend="--device cuda:0")
    if kind == "mps" and not mps:
        raise DeviceError(
            "mps was asked for and is not there (it needs a Mac with Apple silicon).", mend="--device cpu"
        )
    return torch.device(word)


def describe_device(device: torch.device) -> str:
    """`cpu`, `mps`, or a GPU with its name."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def choose_precision(word: str, device: torch.device) -> str:
    """auto, fp32 or bf16 -> fp32 or bf16; auto takes bf16 where the device multiplies in it.

    Elsewhere bf16 is computed by way of float32, which is slower than that.
    """
    if word != "auto":
        return word
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 does not tell
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "fp32"


def in_bf16(loss: Loss, device: torch.device) -> Loss:
    """The same loss with convolutions in bfloat16. Weights, their moments and the mean over pixels stay float32."""

    def mixed(net: Any, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(device.type, torch.bfloat16):
            return loss(net, batch, generator)

    return mixed
