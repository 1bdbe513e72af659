"""What an ONNX file says of itself, read from its bytes: importing onnx costs a fifth of a second.

Source: https://protobuf.dev/programming-guides/encoding and the field numbers of onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

Span = tuple[int, int]

NODE, INITIALIZER, SPARSE = 1, 5, 15
"""Fields of a GraphProto."""
MAX_LEVELS = 64
"""Of graphs in nodes of graphs."""
MAX_NODES = 200_000
"""With the nodes of functions, each time that they are called."""


@dataclass
class External:
    """A tensor that lies in another file. place: location, offset, length as the file says them."""

    name: str
    place: dict[str, str]


@dataclass
class Constant:
    """A tensor of the file. values: those of a float32 of at most 8."""

    dims: list[int]
    values: tuple[float, ...] = ()


@dataclass
class Step:
    """A node. output: its last. pads: of convolutions and pools. inside: whether a graph lies in it."""

    kind: str
    inputs: list[str]
    output: str
    pads: list[int]
    inside: bool = False


@dataclass
class Contents:
    """domains: of all operators, `""` for the standard one. functions: those that the file brings, (domain, name).

    external: tensors in other files. largest: bytes of the largest constant, as its dimensions say. nodes: their
    number, functions unfolded. operators: (domain, kind) of each. steps: the nodes of the graph itself; constants: its
    tensors by name.
    """

    domains: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external: list[External] = field(default_factory=list)
    largest: int = 0
    nodes: int = 0
    operators: set[tuple[str, str]] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)


def contents(data: bytes) -> Contents:
    """What is in an ONNX file. Raises ValueError for what is none, or nested or unfolded beyond all measure."""
    try:
        return _Reader(data).model()
    except (IndexError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"it is no ONNX file: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.found = Contents()
        self.bodies: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def model(self) -> Contents:
        whole = (0, len(self.data))
        calls: list[tuple[str, str]] = []
        functions = list(self.messages(whole, 25))
        graphs = list(self.messages(whole, 7))
        if not graphs:
            raise ValueError("it is no ONNX file: there is no graph in it")
        for span in functions:
            key = (self.text(span, 10), self.text(span, 1))
            body: list[tuple[str, str]] = []
            for node in self.messages(span, 7):
                self.node(node, 0, body)
            self.bodies[key] = body
        self.found.functions = set(self.bodies)
        for span in graphs:
            self.graph(span, 0, calls)
        for training in self.messages(whole, 20):
            for number in (1, 2):
                for span in self.messages(training, number):
                    self.graph(span, 0, calls)
        self.found.nodes = self.unfolded(calls, {}, 0)
        return self.found

    def unfolded(self, calls: list[tuple[str, str]], known: dict[tuple[str, str], int], level: int) -> int:
        """The number of nodes with those of the functions that they call."""
        if level > MAX_LEVELS:
            raise ValueError(f"its functions call each other more than {MAX_LEVELS} levels deep")
        total = len(calls)
        for key in calls:
            if key in self.bodies:
                if key not in known:
                    known[key] = self.unfolded(self.bodies[key], known, level + 1)
                total += known[key]
        if total > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} nodes where its functions are unfolded")
        return total

    def graph(self, span: Span, level: int, calls: list[tuple[str, str]]) -> None:
        if level > MAX_LEVELS:
            raise ValueError(f"its graphs are nested more than {MAX_LEVELS} levels deep")
        for number, _, value in self.fields(span):
            if not isinstance(value, tuple):
                continue
            if number == NODE:
                self.node(value, level, calls)
            elif number == INITIALIZER:
                made = self.tensor(value)
                if level == 0:
                    self.found.constants[self.text(value, 8)] = made
            elif number == SPARSE:
                self.sparse(value)

    def node(self, span: Span, level: int, calls: list[tuple[str, str]]) -> None:
        domain, kind = self.text(span, 7), self.text(span, 4)
        domain = "" if domain == "ai.onnx" else domain
        self.found.domains.add(domain)
        self.found.operators.add((domain, kind))
        calls.append((domain, kind))
        step = Step(kind, [self.data[a:b].decode() for a, b in self.messages(span, 1)], self.text(span, 2), [])
        for attribute in self.messages(span, 5):
            if self.text(attribute, 1) == "pads":
                step.pads = self.integers(attribute, 8)
            for number, _, value in self.fields(attribute):
                if not isinstance(value, tuple):
                    continue
                if number in (6, 11):
                    step.inside = True
                    self.graph(value, level + 1, calls)
                elif number in (5, 10):
                    made = self.tensor(value)
                    if level == 0 and kind == "Constant":
                        self.found.constants[step.output] = made
                elif number in (22, 23):
                    step.inside = True
                    self.sparse(value)
        if level == 0:
            self.found.steps.append(step)

    def tensor(self, span: Span) -> Constant:
        place: dict[str, str] = {}
        outside = False
        kind = 1
        for number, wire, value in self.fields(span):
            if number == 2 and isinstance(value, int):
                kind = value
            elif number == 13 and isinstance(value, tuple):
                place[self.text(value, 1)] = self.text(value, 2)
            elif number == 14 and wire == 0:
                outside = value == 1
        dims = self.integers(span, 1)
        self.size(dims, kind)
        if outside or place:
            self.found.external.append(External(self.text(span, 8), place))
        return Constant(dims, self.few(span) if kind == 1 and prod(dims) <= 8 else ())

    def few(self, span: Span) -> tuple[float, ...]:
        """Values of float32, as raw bytes or as floats."""
        packed = b"".join(self.data[a:b] for number in (9, 4) for a, b in self.messages(span, number))
        return tuple(v for (v,) in struct.iter_unpack("<f", packed[: len(packed) // 4 * 4]))

    def sparse(self, span: Span) -> None:
        """Runtimes make a dense tensor of it."""
        self.size(self.integers(span, 3), 1)
        for number in (1, 2):
            for inner in self.messages(span, number):
                self.tensor(inner)

    def size(self, dims: list[int], kind: int) -> None:
        if any(n < 0 for n in dims):
            raise ValueError(f"a tensor has the shape {dims[:8]}")
        self.found.largest = max(self.found.largest, prod(dims) * WIDTHS.get(kind, 1))

    def integers(self, span: Span, wanted: int) -> list[int]:
        """All int64 of a repeated field, packed or not."""
        found = []
        for number, wire, value in self.fields(span):
            if number != wanted:
                continue
            if wire == 0 and isinstance(value, int):
                found.append(_signed(value))
            elif isinstance(value, tuple):
                at, stop = value
                while at < stop:
                    one, at = self.varint(at, stop)
                    found.append(_signed(one))
        return found

    def messages(self, span: Span, wanted: int) -> Iterator[Span]:
        for number, _, value in self.fields(span):
            if number == wanted and isinstance(value, tuple):
                yield value

    def text(self, span: Span, wanted: int) -> str:
        """The last of that field, as protobuf takes it."""
        found = ""
        for start, stop in self.messages(span, wanted):
            found = self.data[start:stop].decode()
        return found

    def fields(self, span: Span) -> Iterator[tuple[int, int, int | Span]]:
        """(number, wire type, integer or span) of each field."""
        at, stop = span
        while at < stop:
            tag, at = self.varint(at, stop)
            wire = tag & 7
            value: int | Span
            if wire == 0:
                value, at = self.varint(at, stop)
            elif wire == 2:
                length, at = self.varint(at, stop)
                value, at = (at, at + length), at + length
            elif wire in (1, 5):
                value, at = 0, at + (8 if wire == 1 else 4)
            else:
                raise ValueError("it is no ONNX file: its bytes are no protobuf")
            if at > stop or not tag >> 3:
                raise ValueError("it is no ONNX file, or cut off")
            yield tag >> 3, wire, value

    def varint(self, at: int, stop: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 70:
            if at >= stop:
                raise ValueError("it is no ONNX file, or cut off")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
        raise ValueError("it is no ONNX file: a number does not end")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 8: 16, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
"""Bytes of a value by TensorProto.DataType; of the small ones one."""
