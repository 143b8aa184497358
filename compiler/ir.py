"""The core IR: a flat list of typed nodes over named values.

A :class:`Graph` is immutable.  Passes take a graph and return another one, usually through the
:class:`~sparsec.compiler.editor.Editor`.  Every op has a row in :mod:`sparsec.compiler.ops` with
its shape rule and its numpy reference, so any graph can be checked
(:func:`~sparsec.compiler.editor.verify`), printed (:func:`to_text`) and interpreted
(:func:`~sparsec.compiler.interpreter.interpret`) between any two passes.

Shapes hold ints and :class:`BatchDim`.  The sequence length is a plain int, because a graph is
specialized to one bucket; the batch size is a run-time number and stays symbolic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Union

import numpy as np


@dataclass(frozen=True)
class BatchDim:
    """An extent that is ``coef * batch + const``.  Shapes only hold ``const == 0``.

    Supports the arithmetic that shape code in exported graphs performs, so folding can run it on
    numpy object arrays.  Raises ValueError where a result is not of this form.
    """

    coef: int = 1
    const: int = 0

    @staticmethod
    def make(coef: int, const: int) -> Dim:
        return BatchDim(coef, const) if coef else const

    def bind(self, batch: int) -> int:
        """The extent for a given batch size."""
        return self.coef * batch + self.const

    def __add__(self, other: Any) -> Dim:
        if isinstance(other, BatchDim):
            return BatchDim.make(self.coef + other.coef, self.const + other.const)
        return BatchDim(self.coef, self.const + int(other))

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return BatchDim(-self.coef, -self.const)

    def __sub__(self, other: Any) -> Dim:
        return self.__add__(-other)

    def __rsub__(self, other: Any) -> Dim:
        return BatchDim(-self.coef, -self.const).__add__(other)

    def __mul__(self, other: Any) -> Dim:
        if isinstance(other, BatchDim):
            raise ValueError(f"({self}) * ({other}) is not linear in the batch size")
        return BatchDim.make(self.coef * int(other), self.const * int(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Dim:
        if isinstance(other, BatchDim):
            if self.const == 0 and other.const == 0 and self.coef % other.coef == 0:
                return self.coef // other.coef
        elif self.coef % int(other) == 0 and self.const % int(other) == 0:
            return BatchDim.make(self.coef // int(other), self.const // int(other))
        raise ValueError(f"({self}) // ({other}) depends on the batch size")

    def __mod__(self, other: Any) -> Dim:
        if not isinstance(other, BatchDim) and self.coef % int(other) == 0:
            return self.const % int(other)
        raise ValueError(f"({self}) % ({other}) depends on the batch size")

    def _sign(self, other: Any) -> int:
        """Sign of ``self - other`` where it is the same for every batch >= 1, else ValueError."""
        d = self.__sub__(other)
        if not isinstance(d, BatchDim):
            return (d > 0) - (d < 0)
        first = d.coef + d.const
        if d.coef > 0 and first > 0:
            return 1
        if d.coef < 0 and first < 0:
            return -1
        raise ValueError(f"{self} against {other} depends on the batch size")

    def __lt__(self, other: Any) -> bool:
        return self._sign(other) < 0

    def __le__(self, other: Any) -> bool:
        return self._sign(other) <= 0

    def __gt__(self, other: Any) -> bool:
        return self._sign(other) > 0

    def __ge__(self, other: Any) -> bool:
        return self._sign(other) >= 0

    def __str__(self) -> str:
        head = "B" if self.coef == 1 else f"{self.coef}*B"
        return head if not self.const else f"{head}{self.const:+d}"

    __repr__ = __str__


Dim = Union[int, BatchDim]
Shape = tuple[Dim, ...]

BATCH = BatchDim()


def bind_shape(shape: Sequence[Dim], batch: int) -> tuple[int, ...]:
    """The concrete shape for one batch size."""
    return tuple(d.bind(batch) if isinstance(d, BatchDim) else int(d) for d in shape)


def element_count(shape: Sequence[Dim]) -> Dim:
    """Product of the extents (linear in the batch size, else ValueError)."""
    n: Dim = 1
    for d in shape:
        n = n * d
    return n


class FrozenAttrs(Mapping[str, Any]):
    """An immutable attribute mapping that compares by content."""

    __slots__ = ("_items",)
    _items: Mapping[str, Any]

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_items", MappingProxyType(dict(items or {})))

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(dict(self._items))


@dataclass(frozen=True)
class Value:
    """A tensor's name and type.  `shape` entries are ints or multiples of the batch size."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape

    def __str__(self) -> str:
        return f"%{self.name}: {self.dtype.name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        op: a key of :data:`sparsec.compiler.ops.OPS`.
        inputs: value names; ``""`` stands for an optional input that is absent.
        outputs: value names, each produced by exactly one node.
        attrs: compile-time parameters.
        source: name(s) of the ONNX node(s) it came from, for messages and comments.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=FrozenAttrs)
    source: str = ""

    @property
    def output(self) -> str:
        """The name of the only output."""
        (name,) = self.outputs
        return name


@dataclass(frozen=True, eq=False)
class Graph:
    """A network specialized to one bucket.

    Attributes:
        name: the model's name.
        length: the bucket's sequence length in tokens (0 for a nested graph or none).
        inputs: names of the run-time inputs, in the model's order.
        outputs: names of the results, in the model's order.
        nodes: in topological order.
        constants: compile-time arrays by value name.
        values: the type of every value: inputs, constants and node outputs.
        output_names: what the caller calls the outputs (the ONNX names); passes never change it.
        tokens: rows of a sample: the bucket's length, or what stands for it without a sequence
            axis; 0 where nothing does.
    """

    name: str
    length: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, Value]
    output_names: tuple[str, ...] = ()
    tokens: int = 0

    def producers(self) -> dict[str, Node]:
        """Node that produces each value; inputs and constants are absent."""
        return {out: node for node in self.nodes for out in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Nodes that read each value, in order; a node that reads it twice is listed once."""
        users: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    users[name].append(node)
        return users


def _attr_text(value: Any) -> str:
    if isinstance(value, Graph):
        body = "; ".join(line.strip() for line in to_text(value).splitlines()[1:-1])
        return "{ " + body + " }"
    return repr(value)


def to_text(graph: Graph) -> str:
    """The graph as text, one node a line, with types and ONNX names; for reading and diffs."""
    params = ", ".join(str(graph.values[n]) for n in graph.inputs)
    lines = [f"graph {graph.name}[length={graph.length}]({params}) {{"]
    for name, array in graph.constants.items():
        text = f"  {graph.values[name]} = constant"
        if array.size == 1:
            text += f" {array.reshape(-1)[0]}"
        lines.append(text)
    for node in graph.nodes:
        outs = ", ".join(str(graph.values[o]) for o in node.outputs)
        args = ", ".join(f"%{n}" if n else "_" for n in node.inputs)
        attrs = ", ".join(f"{k}={_attr_text(v)}" for k, v in node.attrs.items())
        text = f"  {outs} = {node.op}({args})"
        text += f" {{{attrs}}}" if attrs else ""
        text += f"  # {node.source}" if node.source else ""
        lines.append(text)
    lines.append("  return " + ", ".join(f"%{n}" for n in graph.outputs))
    return "\n".join([*lines, "}", ""])
