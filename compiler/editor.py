"""Making, rewriting and checking graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.compiler.ir import BATCH, Dim, FrozenAttrs, Graph, Node, Value
from sparsec.compiler.ops import OPS, infer


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
        order = _sorted(nodes, outputs)
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
            tokens=self.length or _rows_of_layers(order, self.values),
        )
        verify(graph)
        return graph


def _sorted(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes that outputs need, each after those that it reads."""
    maker = {out: i for i, node in enumerate(nodes) for out in node.outputs}
    order: list[Node] = []
    seen: set[int] = set()
    for root in sorted({maker[o] for o in outputs if o in maker}):
        stack = [(root, False)]
        while stack:
            i, done = stack.pop()
            if done:
                order.append(nodes[i])
            elif i not in seen:
                seen.add(i)
                stack.append((i, True))
                stack += ((maker[n], False) for n in reversed(nodes[i].inputs) if n in maker)
    return order


def _rows_of_layers(nodes: Sequence[Node], values: Mapping[str, Value]) -> int:
    """The extent behind the batch that most layers have (patches of an image), or 0."""
    counts: Counter[int] = Counter()
    for node in nodes:
        if OPS[node.op].layer:
            shape = values[node.output].shape
            if len(shape) == 3 and shape[0] == BATCH and isinstance(shape[1], int):
                counts[shape[1]] += 1
    return max(counts, key=lambda extent: (counts[extent], extent), default=0)


def verify(graph: Graph) -> None:
    """Check that a graph is well formed: order, types, one producer per value.

    Raises:
        ValueError: naming the node at fault and its ONNX source.
    """
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
