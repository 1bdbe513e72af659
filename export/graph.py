"""torch -> one ONNX graph that takes raw intensities and returns denoised ones: nobody can normalise it wrongly."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..zoo.errors import PackageError
from .onnx_file import OPSET, read_back

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..trainers.networks.unet import RawToDenoised
    from ..zoo.normalise import Normalisation


def denoiser_of(network: Any, normalisation: Normalisation, target: Normalisation | None = None) -> RawToDenoised:
    """The network between normalisation and its inverse, in eval mode. target: that of the result, if it is another."""
    from ..trainers.networks.unet import RawToDenoised

    with torch.random.fork_rng(devices=[]):  # the fresh weights are replaced at once
        raw = RawToDenoised(**network.config())
    raw.network = network
    target = target or normalisation
    for end, scale in (("", normalisation), ("_out", target)):
        for name, values in (("mean", scale.mean), ("std", scale.std)):
            buffer = getattr(raw, f"{name}{end}")
            buffer.copy_(torch.tensor(values, dtype=torch.float32).reshape(buffer.shape))
    return raw.eval()


def to_onnx(network: torch.nn.Module, channels: int, space: str, sizes: dict[str, int]) -> bytes:
    """Export with dynamic batch and space. sizes: a legal size along each letter of `space`, to trace with.

    Raises ProofFailed when the file that was written is not of the opset, version or kind that was asked for.
    """
    network.eval()
    # two planes of unequal sides: what the tracer takes for constant is then noticed
    shape = [2, channels, *(sizes[a] * (2 if a == space[-1] else 1) for a in space)]
    names = {0: "batch", **{i + 2: a for i, a in enumerate(space)}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # the tracing exporter is the one that writes version 8 in a single file; that it will go is known
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.rand(shape),),
            buffer,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": names, "output": names},
            opset_version=OPSET,
            dynamo=False,
        )
    data = buffer.getvalue()
    read_back(data)
    return data


def evaluate(network: torch.nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The torch network on an array. float32 (b, c, [z], y, x) -> the same."""
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(x)).numpy())


def script_to_onnx(data: bytes, example: np.ndarray[Any, Any], where: str) -> bytes:
    """TorchScript as ONNX, of any size as far as it is. example: in the axes of the network.

    Raises PackageError where torch cannot load or write it.
    """
    buffer = io.BytesIO()
    names = {i: f"d{i}" for i in range(example.ndim)}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            network = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
            x = torch.from_numpy(np.array(example, np.float32))
            torch.onnx.export(
                network, (x,), buffer, input_names=["input"], output_names=["output"], opset_version=OPSET,
                dynamic_axes={"input": names, "output": names}, dynamo=False,
            )  # fmt: skip
        except Exception as error:  # of torch, in many kinds
            raise PackageError(
                f"{where}: its TorchScript cannot be written as ONNX.",
                where=str(error).strip().splitlines()[0][:300],
                mend="ask its makers for ONNX weights, or pack its network: voidzoo pack ARCH.py:CLASS --weights W.pt",
            ) from error
    return buffer.getvalue()
