"""What runs on a tile: the package's preprocessing, its network, its postprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..turns import averaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...zoo.package import Package
    from ...zoo.statistics import Wanted
    from ..plan import Plan
    from ..samples import Measured
    from .processing import Processing
    from .session import Session

Items = Sequence[Mapping[str, tuple[int, int]]]
"""Where each item of a block lies along the loop axes: position in the block, and in the image."""
Spans = Mapping[str, Mapping[str, tuple[int, int]]]
"""Where a tile lies, by tensor and letter: start and stop in the tensor's pixels."""


class Network:
    """Raw pixels -> results, tile by tile. Steps of the package see one item at a time, with its sample's statistics.

    later: postprocessing waits until the whole sample has been through the network.
    """

    def __init__(self, plan: Plan, session: Session) -> None:
        self.session = session
        self.ports = plan.geometry
        self.turns = plan.turns
        self.processing = processing_of(plan)
        self.wanted_of_inputs: Mapping[str, Sequence[Wanted]] = {}
        self.wanted_of_outputs: Mapping[str, Sequence[Wanted]] = {}
        if self.processing is not None:
            self.wanted_of_inputs = {k: v for k, v in self.processing.inputs_wanted.items() if v}
            self.wanted_of_outputs = {k: v for k, v in self.processing.outputs_wanted.items() if v}
        self.later = bool(self.wanted_of_outputs) and not plan.samples_in_blocks
        self._inputs = [f.port for f in plan.feeds]
        self._dtypes = [np.dtype(p.tensor.dtype if p.tensor.dtype != "bool" else "?") for p in self._inputs]

    def prepare(
        self, feeds: Sequence[NDArray[Any]], measured: Measured | None, items: Items, spans: Spans | None = None
    ) -> list[NDArray[Any]]:
        """What the network reads: (n, c, *space) a feed, contiguous, in the dtype that it takes.

        spans: where the feeds lie in the image, by tensor and letter in its own pixels.
        """
        if self.processing is None:
            return [np.ascontiguousarray(f, dtype) for f, dtype in zip(feeds, self._dtypes, strict=True)]
        done = []
        for n, item in enumerate(items):
            raw = {p.id: p.declared(f[n : n + 1]) for p, f in zip(self._inputs, feeds, strict=True)}
            found = self.processing.before(raw, measured.at(item) if measured else {}, spans)
            done.append([p.canonical(found[p.id]) for p in self._inputs])
        return [np.ascontiguousarray(np.concatenate(parts)) for parts in zip(*done, strict=True)]

    def run(self, feeds: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """(n, c, *space) through the network and out; with --tta the mean over its turns."""
        if self.turns == (0,):
            return self.session.run(feeds)
        return averaged(self.session.run, feeds, self.turns)

    def alone(self, region: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network makes of one region (1, c, *space) of the main image: the channels of all outputs.

        An output of another size than the region alone, where there is one.
        """
        found = self.outputs_of(region)
        if other := [y for y in found if y.shape[2:] != region.shape[2:]]:
            return other[0]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def outputs_of(self, region: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What the network makes of one region (1, c, *space) of the main image, which is a sample of its own."""
        from ..samples import Measured, measure_arrays

        port = self._inputs[0]
        measured = Measured()
        if wanted := self.wanted_of_inputs.get(port.id):
            measured.add(port.id, measure_arrays(region[0], "c" + port.space, wanted))
        return self.run(self.prepare([region], measured, [{}]))

    def after(
        self, outputs: Mapping[str, NDArray[Any]], measured: Measured | None, items: Items, spans: Spans | None = None
    ) -> dict[str, NDArray[Any]]:
        """The package's postprocessing on (n, c, *space) an output, which lies at `spans` of the result."""
        if self.processing is None:
            return dict(outputs)
        ports = self.ports.outputs
        done: dict[str, list[NDArray[Any]]] = {p.id: [] for p in ports}
        for n, item in enumerate(items):
            found = measured.at(item) if measured else {}
            raw = {p.id: p.declared(outputs[p.id][n : n + 1]) for p in ports}
            for name, values in self.processing.after(raw, found, found, spans).items():
                done[name].append(self.ports.port(name).canonical(values))
        return {name: np.concatenate(parts) for name, parts in done.items()}


def processing_of(plan: Plan) -> Processing | None:
    """The steps of a package beside its network; None where there are none but casts to float32."""
    package = plan.package
    if not any(_real(s) for t in (*package.inputs, *package.outputs) for s in t.steps):
        return None
    return _made(_This(package), plan.choices.sample, plan.choices.trust_code)


class _This:
    """A package as a key: it and no other."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def __hash__(self) -> int:
        return id(self.package)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _This) and other.package is self.package


@lru_cache(maxsize=8)  # making bioimageio.core's operators takes longer than a small image
def _made(this: _This, sample: str, trust_code: bool) -> Processing:
    from .processing import Processing

    return Processing(this.package, sample, trust_code=trust_code)


def _real(step: Any) -> bool:
    return not (step.name == "ensure_dtype" and step.kwargs.get("dtype") == "float32")
