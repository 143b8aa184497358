"""The core IR: a flat list of typed nodes over named values.

A :class:`Graph` is immutable.  Passes take a graph and return another one, usually through
:class:`Editor`.  Every op has a row in :mod:`sparsec.compiler.ops` with its shape rule and its
numpy reference, so any graph can be checked (:func:`verify`), printed (:func:`to_text`) and
interpreted (:func:`interpret`) between any two passes.

Shapes hold ints and :class:`BatchDim`.  The sequence length is a plain int, because a graph is
specialized to one bucket; the batch size is a run-time number and stays symbolic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
    """

    name: str
    length: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, Value]
    output_names: tuple[str, ...] = ()

    @cached_property
    def tokens(self) -> int:
        """Rows of a sample: the bucket's length, or what stands for it without a sequence axis.

        That is the extent behind the batch that most layers have (patches of an image), or 0.
        """
        from sparsec.compiler.ops import OPS

        if self.length:
            return self.length
        counts: Counter[int] = Counter()
        for node in self.nodes:
            if OPS[node.op].layer:
                shape = self.values[node.output].shape
                if len(shape) == 3 and shape[0] == BATCH and isinstance(shape[1], int):
                    counts[shape[1]] += 1
        return max(counts, key=lambda extent: (counts[extent], extent), default=0)

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


class Editor:
    """Builds a graph node by node, or edits a copy of one.

    ``Editor(graph)`` starts from an existing graph; ``Editor(name=..., length=...)`` from nothing.
    Types of new values come from the op table.  :meth:`finish` drops what no output needs, restores
    topological order, and verifies.
    """

    def __init__(self, graph: Graph | None = None, *, name: str = "", length: int = 0) -> None:
        self.name = graph.name if graph else name
        self.length = graph.length if graph else length
        self.inputs: list[str] = list(graph.inputs) if graph else []
        self.outputs: list[str] = list(graph.outputs) if graph else []
        self.output_names: tuple[str, ...] = graph.output_names if graph else ()
        self.nodes: list[Node] = list(graph.nodes) if graph else []
        self.constants: dict[str, np.ndarray] = dict(graph.constants) if graph else {}
        self.values: dict[str, Value] = dict(graph.values) if graph else {}
        self._renamed: dict[str, str] = {}
        self._taken = 0

    def fresh(self, hint: str) -> str:
        """A value name that is not in use, derived from `hint`."""
        name = hint
        while name in self.values:
            self._taken += 1
            name = f"{hint}.{self._taken}"
        return name

    def input(self, name: str, dtype: Any, shape: Sequence[Dim]) -> str:
        """Declare a run-time input."""
        self.inputs.append(name)
        self.values[name] = Value(name, np.dtype(dtype), tuple(shape))
        return name

    def constant(self, array: Any, hint: str = "const") -> str:
        """Add a compile-time array and return its name."""
        array = np.asarray(array)
        name = self.fresh(hint)
        self.constants[name] = array
        self.values[name] = Value(name, array.dtype, tuple(array.shape))
        return name

    def emit(
        self,
        op: str,
        inputs: Iterable[str],
        *,
        source: str = "",
        outputs: Sequence[str] | None = None,
        **attrs: Any,
    ) -> str:
        """Append a node with inferred output types; returns the (first) output's name."""
        return self.emit_multi(op, inputs, source=source, outputs=outputs, **attrs)[0]

    def emit_multi(
        self,
        op: str,
        inputs: Iterable[str],
        *,
        source: str = "",
        outputs: Sequence[str] | None = None,
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append a node with any number of outputs; returns their names."""
        from sparsec.compiler.ops import infer

        names = tuple(inputs)
        frozen = FrozenAttrs(attrs)
        types = infer(op, [self.values[n] if n else None for n in names], frozen)
        hint = f"{op}_{len(self.nodes)}"
        hints = [hint, *(f"{hint}_{i}" for i in range(1, len(types)))]
        outs = tuple(outputs or map(self.fresh, hints))
        self.nodes.append(Node(op, names, outs, frozen, source))
        for out, (dtype, shape) in zip(outs, types, strict=True):
            self.values[out] = Value(out, np.dtype(dtype), tuple(shape))
        return outs

    def replace_uses(self, old: str, new: str) -> None:
        """Make every reader of `old` (graph outputs too) read `new`, when the graph is finished."""
        self._renamed[old] = new

    def resolve(self, name: str) -> str:
        """Where a value went after :meth:`replace_uses`."""
        seen = []
        while name in self._renamed:
            seen.append(name)
            name = self._renamed[name]
            if name in seen:
                raise ValueError(f"replacements of {name} form a cycle")
        return name

    def finish(self) -> Graph:
        """The edited graph: renamed, without dead nodes, sorted, verified."""
        nodes = [
            replace(n, inputs=tuple(self.resolve(i) if i else "" for i in n.inputs))
            for n in self.nodes
        ]
        outputs = [self.resolve(o) for o in self.outputs]
        made_by = {out: n for n in nodes for out in n.outputs}
        order: list[Node] = []
        state: dict[int, int] = {}
        needed = {id(made_by[o]): made_by[o] for o in outputs if o in made_by}
        for root in sorted(needed.values(), key=nodes.index):
            stack: list[tuple[Node, bool]] = [(root, False)]
            while stack:
                node, done = stack.pop()
                if done:
                    state[id(node)] = 2
                    order.append(node)
                    continue
                if state.get(id(node)):
                    continue
                state[id(node)] = 1
                stack.append((node, True))
                for name in reversed(node.inputs):
                    maker = made_by.get(name)
                    if maker is not None and not state.get(id(maker)):
                        stack.append((maker, False))
        used = {n for node in order for n in (*node.inputs, *node.outputs) if n}
        used |= set(outputs) | set(self.inputs)
        graph = Graph(
            name=self.name,
            length=self.length,
            inputs=tuple(self.inputs),
            outputs=tuple(outputs),
            nodes=tuple(order),
            constants={k: v for k, v in self.constants.items() if k in used},
            values={k: v for k, v in self.values.items() if k in used},
            output_names=self.output_names or tuple(outputs),
        )
        verify(graph)
        return graph


Rule = Callable[["Match", Node], bool]


class Match:
    """What a rewrite rule sees: lookups over the graph being edited, and the editor.

    A rule is ``rule(m, node) -> bool``: it looks at the graph around `node` through the lookups,
    emits replacements through ``m.edit`` and returns True, or returns False having changed nothing.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.edit = Editor(graph)
        self._producers = graph.producers()
        self._consumers = graph.consumers()

    def producer(self, name: str, *ops: str) -> Node | None:
        """Node that makes `name`, if its op is one of `ops` (any op if none is given)."""
        node = self._producers.get(name)
        return node if node is not None and (not ops or node.op in ops) else None

    def users(self, name: str) -> list[Node]:
        """Nodes that read `name`."""
        return self._consumers.get(name, [])

    def only_user(self, name: str, *ops: str) -> Node | None:
        """The single reader of `name`, unless it is also a graph output."""
        users = self.users(name)
        if len(users) != 1 or name in self.graph.outputs:
            return None
        return users[0] if not ops or users[0].op in ops else None

    def constant(self, name: str) -> np.ndarray | None:
        """The array behind a compile-time value, else None."""
        return self.graph.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """The number behind a one-element constant, else None."""
        array = self.graph.constants.get(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def type(self, name: str) -> Value:
        """The type of a value."""
        return self.graph.values[name]


def rewrite(graph: Graph, rules: Sequence[Rule], limit: int = 1000) -> Graph:
    """Apply rules until none fires.

    Each round walks the nodes once and tries the rules in order on each node; lookups see the graph
    as it was when the round began.  A node whose output was already replaced is skipped.  Two rules
    that overlap in one round only leave dead nodes, since every replacement is equivalent to what
    it replaces.
    """
    for _ in range(limit):
        m = Match(graph)
        fired = False
        for node in graph.nodes:
            if any(m.edit.resolve(out) != out for out in node.outputs):
                continue
            fired |= any(rule(m, node) for rule in rules)
        if not fired:
            return graph
        graph = m.edit.finish()
    raise RuntimeError(f"rewrite did not settle after {limit} rounds: {rules}")


def verify(graph: Graph) -> None:
    """Check that a graph is well formed: order, types, one producer per value.

    Raises:
        ValueError: naming the node at fault and its ONNX source.
    """
    from sparsec.compiler.ops import OPS, infer

    known = set(graph.inputs) | set(graph.constants)
    for node in graph.nodes:
        where = f"{node.op} -> {', '.join(node.outputs)} (from {node.source or 'nothing'})"
        if node.op not in OPS:
            raise ValueError(f"unknown op: {where}")
        missing = [n for n in node.inputs if n and n not in known]
        if missing:
            raise ValueError(f"{where} reads {missing} before they are made")
        types = infer(node.op, [graph.values[n] if n else None for n in node.inputs], node.attrs)
        for out, (dtype, shape) in zip(node.outputs, types, strict=True):
            if out in known:
                raise ValueError(f"{where} makes {out} a second time")
            value = graph.values[out]
            if value.dtype != np.dtype(dtype) or value.shape != tuple(shape):
                raise ValueError(f"{where} is {np.dtype(dtype)}{list(shape)}, recorded as {value}")
            known.add(out)
    missing = [n for n in graph.outputs if n not in known]
    if missing:
        raise ValueError(f"outputs {missing} are never made")


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


def compute(node: Node, arrays: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
    """Results of a node on constants.

    Raises:
        UnsupportedError: an index is out of range.
    """
    from sparsec.compiler.ops import OPS
    from sparsec.errors import UnsupportedError

    try:
        with np.errstate(all="ignore"):
            results: Sequence[np.ndarray] = OPS[node.op].reference(
                {**node.attrs, "_batch": 1, "_lengths": None}, *arrays
            )
    except IndexError as error:
        name = node.source or node.output
        message = f"1 node cannot be compiled\n  {name} ({node.op}): {error}"
        raise UnsupportedError(message, [(name, node.op, str(error))]) from None
    return results


def interpret(
    graph: Graph, inputs: Sequence[np.ndarray], lengths: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Run a graph with the numpy references of its ops.

    Args:
        graph: any verified graph.
        inputs: one array per graph input; the batch size is read off the first batch extent.
        lengths: how many leading tokens of each sequence are real; None: all.

    Returns:
        One array per graph output.
    """
    from sparsec.compiler.ops import OPS

    batch = 1
    env: dict[str, np.ndarray] = dict(graph.constants)
    for name, array in zip(graph.inputs, inputs, strict=True):
        value = graph.values[name]
        for dim, extent in zip(value.shape, array.shape, strict=True):
            if isinstance(dim, BatchDim) and dim.const == 0:
                batch = extent // dim.coef
        env[name] = array
    last_use: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.inputs:
            last_use[name] = i
    keep = set(graph.outputs) | set(graph.constants)
    for i, node in enumerate(graph.nodes):
        attrs = {**node.attrs, "_batch": batch, "_lengths": lengths}
        args = [env[n] if n else None for n in node.inputs]
        results = OPS[node.op].reference(attrs, *args)
        for out, result in zip(node.outputs, results, strict=True):
            value = graph.values[out]
            array = np.asarray(result)
            if array.dtype != value.dtype:
                raise TypeError(f"{node.op} ({node.source}) gave {array.dtype} for {value}")
            env[out] = array
        for name in node.inputs:
            if last_use.get(name) == i and name not in keep:
                env.pop(name, None)
    return [env[n] for n in graph.outputs]
