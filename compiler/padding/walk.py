"""A walk through a graph that follows padding, and finds where it would leak into results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from sparsec.compiler.axes import (
    BATCH,
    TOKEN,
    Axes,
    Centred,
    Lengths,
    Unclear,
    extent,
    flow_of,
    size,
    tokens,
)
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS
from sparsec.compiler.ops.flow import Axis, Flow, conv, layer, matmul
from sparsec.compiler.padding.pads import (
    FINITE,
    LOST_PAD,
    TAME_PAD,
    Info,
    Pad,
    along,
    elementwise,
    equal,
    joined,
    level_of,
    level_of_result,
    limit,
    never_extreme,
    padded,
    softmax_pads,
    uniform,
)
from sparsec.compiler.padding.repair import Leak, Repairs


class Walk:
    """One walk through a graph.

    Args:
        graph, other: the bucket's graph, and the model at a shorter length.
        mask: the only input whose padded positions are known to be 0 (``""``: there is none); None:
            all are.
    """

    def __init__(self, graph: Graph, other: Graph | None, mask: str | None) -> None:
        # At equal lengths there is nothing to compare; nodes must be the same ones.
        self.graph = graph
        self.other = other if other is not None and other.length != graph.length else None
        self.mask = mask
        self.lengths = Lengths(graph, self.other)
        self.known: dict[str, Info] = {}
        self.leaks: list[str] = []
        self.failure = ""
        self.repairs = Repairs(graph)
        self._makers = graph.producers()

    def run(self) -> None:
        """Follow every value, in order; leaks and the first failure are recorded."""
        node: Node | None = None
        try:
            if self.other is not None:
                self._same_nodes(self.other)
            for name in self.graph.inputs:
                self.known[name] = self._input(name)
            for i, node in enumerate(self.graph.nodes):
                for name in node.inputs:
                    if name in self.graph.constants and name not in self.known:
                        self.known[name] = self._constant(name)
                self._node(i, node)
            node = None
            for name in self.graph.outputs:
                if name in self.graph.constants and name not in self.known:
                    self.known[name] = self._constant(name)
        except Unclear as error:
            where = f"{node.source or node.output} ({node.op}): " if node is not None else ""
            self.failure = f"{where}{error}"

    def repaired(self) -> Graph:
        """The graph with its repairs."""
        return self.repairs.edit.finish() if self.leaks else self.graph

    # -- leaves ------------------------------------------------------------------------------------

    def _same_nodes(self, other: Graph) -> None:
        pairs = zip(self.graph.nodes, other.nodes, strict=False)
        same = len(self.graph.nodes) == len(other.nodes) and all(
            (a.op, a.inputs, a.outputs) == (b.op, b.inputs, b.outputs) for a, b in pairs
        )
        if not same or (self.graph.inputs, self.graph.outputs) != (other.inputs, other.outputs):
            raise Unclear("the model computes something else at another length")

    def _input(self, name: str) -> Info:
        value = self.graph.values[name]
        axes = self.lengths.leaf(name)
        if self.other is None:  # the frontend names extents of the length only once
            axes = tuple(
                (TOKEN,) if i and dim == self.graph.length and axis == (dim,) else axis
                for i, (dim, axis) in enumerate(zip(value.shape, axes, strict=True))
            )
        zero = self.mask is None or name == self.mask
        pad = Pad(value.dtype.type(0)) if zero else TAME_PAD
        return Info(axes, tuple((pad,) * len(tokens(axis)) for axis in axes))

    def _constant(self, name: str) -> Info:
        array = self.graph.constants[name]
        axes = self.lengths.leaf(name)
        places = [a for a, axis in enumerate(axes) if tokens(axis)]
        if any(len(axes[a]) > 1 for a in places):
            raise Unclear(f"the constant {name} has an extent of tokens times others")
        moves = self.other is not None and self._moves(name, axes, self.other)
        level = level_of(array)
        number = uniform(array)
        pads = tuple((padded(array, places, a),) if a in places else () for a in range(array.ndim))
        return Info(axes, pads, level, number, moves)

    def _moves(self, name: str, axes: Axes, other: Graph) -> bool:
        """Whether a constant differs by the lengths' difference from itself at the other length.

        Raises:
            Unclear: it is neither that nor the same.
        """
        array, before = self.graph.constants[name], other.constants.get(name)
        gap = self.graph.length - other.length
        if before is array:
            return False
        parts = []
        for axis in axes:
            first = gap if any(isinstance(f, Centred) for f in axis) else 0
            _, extent_there = size(axis, other.length)
            parts.append(slice(first, first + extent_there))
        part = array[tuple(parts)]
        if before is not None and equal(part, before):
            return False
        alike = before is not None and part.shape == before.shape and array.dtype.kind == "i"
        if alike and np.array_equal(part - before, np.full_like(before, gap)):
            return True
        raise Unclear(f"the constant {name} is another one at another length")

    # -- nodes -------------------------------------------------------------------------------------

    def _node(self, position: int, node: Node) -> None:
        if not node.inputs or not any(node.inputs):
            raise Unclear("it reads nothing")
        operands = [self.known[n] if n else None for n in node.inputs]
        leaks = self._leaks(node, operands)
        if leaks:
            self.leaks.append(f"{node.source or node.output} ({node.op}): {leaks[0].reason}")
            if any(leak.operand is None and leak.number is None for leak in leaks):
                raise Unclear(leaks[0].reason)
            if self.mask is None:
                operands = self.repairs.apply(position, node, operands, leaks)
        moving = any(o is not None and o.moves for o in operands)
        looks_up = OPS[node.op].lookup == "read"
        if moving and not looks_up and node.op not in ("reshape", "expand", "transpose"):
            raise Unclear("it reads a constant that is another one at another length")
        flow = flow_of(node, self.graph.values)
        if flow.regroups:
            assert operands[0] is not None
            self.known[node.output] = self._regrouped(node, flow, operands[0])
            return
        results = self.lengths.results(node, flow, [o.axes if o else None for o in operands])
        number = self._number(node, operands)
        for name, axes, lines in zip(node.outputs, results, flow.lines, strict=True):
            pads = self._pads(node, operands, axes, lines, bool(flow.mixed))
            level = level_of_result(node, operands)
            self.known[name] = Info(axes, pads, level, number, moving and not looks_up)

    def _regrouped(self, node: Node, flow: Flow, operand: Info) -> Info:
        """A reshape's result: the operand's tokens, in other axes."""
        (axes,) = self.lengths.results(node, flow, [operand.axes])
        left = iter([p for axis in operand.pads for p in axis])
        pads = tuple(tuple(islice(left, len(tokens(axis)))) for axis in axes)
        return replace(operand, axes=axes, pads=pads)

    def _pads(
        self,
        node: Node,
        operands: Sequence[Info | None],
        axes: Axes,
        lines: Sequence[Sequence[Axis]],
        mixes: bool,
    ) -> tuple[tuple[Pad, ...], ...]:
        """What a result holds at the padded positions of each of its axes."""
        found: list[tuple[Pad, ...]] = []
        for axis, line in zip(axes, lines, strict=True):
            spots, given = len(tokens(axis)), dict(line)
            if spots and not line and mixes:
                found.append((self._edge(node, operands, len(found)),))
                continue
            found.append(
                tuple(
                    self._pad(node, [along(o, given.get(i), t) for i, o in enumerate(operands)])
                    for t in range(spots)
                )
            )
        pads = tuple(found)
        return softmax_pads(node, operands[0], pads) if node.op == "softmax" else pads

    def _number(self, node: Node, operands: Sequence[Info | None]) -> Any:
        """The number that all elements of a result are; None where they are not one."""
        if OPS[node.op].layout and len(operands) == 1 and operands[0] is not None:
            return operands[0].number
        if OPS[node.op].elementwise and all(o is None or o.number is not None for o in operands):
            return self._pad(node, [o.elsewhere() if o else None for o in operands]).number
        return None

    def _edge(self, node: Node, operands: Sequence[Info | None], axis: int) -> Pad:
        """What is behind the tokens of an axis that a node has cut, lengthened or summed over."""
        if node.op == "concat":
            (piece,) = (o for o in operands if o is not None and tokens(o.axes[axis]))
            return piece.pads[axis][0]
        info = operands[0]
        assert info is not None
        if node.op == "slice":
            pad = info.pads[axis][0]
            cut = _range(node, axis)[1] < extent(tokens(info.axes[axis])[0], self.graph.length)
            return joined([pad, info.elsewhere()]) if cut else pad
        return (
            TAME_PAD if info.level == FINITE and all(p.tame for p in info.pads[axis]) else LOST_PAD
        )

    def _pad(self, node: Node, pads: Sequence[Pad | None]) -> Pad:
        """What a node makes of padded positions of its operands along one axis."""
        given = [p for p in pads if p is not None]
        if OPS[node.op].elementwise:
            return elementwise(node, pads, self.graph)
        first = given[0]
        if node.op == "gather":
            return replace(first, number=None, shift=0.0) if first.number is None else first
        if OPS[node.op].layout:
            return joined(given)
        if node.op in ("reduce_max", "reduce_min", "reduce_mean") and first.number is not None:
            return first
        if node.op == "reduce_sum" and first.is_number(0):
            return first
        tame = all(p.tame for p in given)
        return TAME_PAD if tame else LOST_PAD

    # -- leaks -------------------------------------------------------------------------------------

    def _leaks(self, node: Node, operands: Sequence[Info | None]) -> list[Leak]:
        """What to do about the tokens that a node mixes; a Leak without a repair is final."""
        flow = flow_of(node, self.graph.values)
        leaks: list[Leak] = []
        for i, axis in sorted(flow.mixed):
            info = operands[i]
            if info is None:
                continue
            leak = None
            if tokens(info.axes[axis]):
                leak = self._leak(node, operands, i, axis)
            elif any(isinstance(f, Centred) for f in info.axes[axis]):
                leak = self._centred_leak(node, operands, i)
            if leak is not None and leak not in leaks:
                leaks.append(leak)
        return leaks

    def _leak(self, node: Node, operands: Sequence[Info | None], i: int, axis: int) -> Leak | None:
        info = operands[i]
        assert info is not None
        pads = info.pads[axis]
        dtype = self.graph.values[node.inputs[i]].dtype
        if node.op == "softmax":
            return self._softmax_leak(info, axis)
        if node.op == "cumsum":
            if not node.attrs.get("reverse") or all(p.is_number(0) for p in pads):
                return None
            return Leak("it adds up padding", 0, 0)
        if node.op.startswith("reduce_"):
            return self._reduction_leak(node, info, pads, dtype)
        if node.op in ("argmax", "argmin"):
            return _extreme_leak(node, pads, dtype)
        if OPS[node.op].flow in (matmul, layer):
            return self._product_leak(node, operands, i)
        if node.op == "slice":
            return self._slice_leak(node, axis)
        if node.op == "concat":
            return self._concat_leak(operands, i, axis)
        if OPS[node.op].lookup == "read":
            return self._lookup_leak(node, i, axis, operands)
        return None if _is_harmless(node, i, axis) else Leak("it works along the tokens")

    def _softmax_leak(self, info: Info, axis: int) -> Leak | None:
        # Where queries are masked like keys, a row of nothing but masked scores has no largest.
        rows = [p for a, pads in enumerate(info.pads) if a != axis for p in pads]
        tie = self.mask is None and any(p.masked for p in rows)
        if all(p.masked for p in info.pads[axis]) and not tie:
            return None
        return Leak("padding is not masked in it", 0, -np.inf)

    def _centred_leak(self, node: Node, operands: Sequence[Info | None], i: int) -> Leak | None:
        """Relative positions may be looked up, by indices from the middle."""
        ids = operands[1] if len(operands) > 1 else None
        if node.op in ("gather", "gather_elements") and i == 0 and ids is not None and ids.moves:
            return None
        return Leak("it works along relative positions")

    def _concat_leak(self, operands: Sequence[Info | None], i: int, axis: int) -> Leak | None:
        """What stands behind the tokens must be what their padding is."""
        info = operands[i]
        behind = [o for o in operands[i + 1 :] if o is not None]
        others = [o for j, o in enumerate(operands) if j != i and o is not None]
        assert info is not None
        if any(tokens(o.axes[axis]) for o in others):
            return Leak("it joins tokens and tokens")
        if not behind:
            return None
        number = behind[0].number
        if number is None or any(o.number is None or o.number != number for o in behind):
            return Leak("it puts something behind the tokens")
        if all(p.is_number(number) for p in info.pads[axis]):
            return None
        return Leak("it puts a number behind the tokens", i, number)

    def _reduction_leak(
        self, node: Node, info: Info, pads: Sequence[Pad], dtype: np.dtype[Any]
    ) -> Leak | None:
        kind = node.op.removeprefix("reduce_")
        if kind == "mean":
            return Leak("it divides by the bucket's length", 0, 0)
        if kind in ("sum", "prod"):
            neutral = 0 if kind == "sum" else 1
            if all(p.is_number(neutral) for p in pads):
                return None
            return Leak("it takes padding in", 0, neutral)
        low = kind == "max"
        if all(never_extreme(p, dtype, low) for p in pads):
            return None
        # The range of a dynamic quantization, which is taken over the whole batch anyway: to skip
        # tokens that the mask drops is what makes it less dependent on them.
        if self.mask is not None and any(BATCH in info.axes[int(a)] for a in node.attrs["axes"]):
            return None
        return Leak("it takes padding in", 0, limit(dtype, low))

    def _product_leak(self, node: Node, operands: Sequence[Info | None], i: int) -> Leak | None:
        """Sums of products over tokens: one factor must be 0 at padding, the other finite."""
        pads = [_contracted(node, operands, side) for side in (0, 1)]
        zeros: list[Any] = [0, 0]
        if node.op == "matmul_integer":
            for side in (0, 1):
                zero = operands[2 + side] if len(operands) > 2 + side else None
                if zero is not None:
                    name = node.inputs[2 + side]
                    single = all(d == 1 for d in self.graph.values[name].shape)
                    zeros[side] = zero.number if zero.number is not None or not single else name
        elif node.op == "qlinear":
            zeros[0] = int(node.attrs["x_zp"])
        for side in (0, 1):
            pad, other = pads[side], pads[1 - side]
            if zeros[side] is None or isinstance(zeros[side], str) or pad is None:
                continue
            if pad.is_number(zeros[side]) and (other is None or other.tame):
                return None
        sides = [
            s for s in (0, 1) if zeros[s] is not None and node.inputs[s] not in self.graph.constants
        ]
        if not sides:
            return Leak("it sums over tokens")
        # All that may be infinite or NaN at padding, and one operand in any case.
        wild = [s for s in sides if pads[s] is not None and not pads[s].tame]  # type: ignore[union-attr]
        if i in (wild or sides[-1:]):
            return Leak("it sums over padding", i, zeros[i])
        return Leak("it sums over padding", (wild or sides)[-1], zeros[(wild or sides)[-1]])

    def _slice_leak(self, node: Node, axis: int) -> Leak | None:
        """The first token is there in every sequence; the last one is where its length says."""
        here = _range(node, axis)
        if here == (0, 1):
            return None
        if self.other is None:
            whole = here[1] == self.graph.values[node.inputs[0]].shape[axis]
            return None if here[0] >= 0 and whole else Leak(_taking(here))
        (twin,) = (n for n in self.other.nodes if n.outputs == node.outputs)
        there = _range(twin, axis)
        gap = self.graph.length - self.other.length
        if here[1] - here[0] == 1 and (here[0] - there[0], here[1] - there[1]) == (gap, gap):
            tokens_there = int(str(self.graph.values[node.inputs[0]].shape[axis]))
            return Leak("it takes a token from the end", None, tokens_there - here[0])
        if here[0] == there[0] >= 0 and here[1] - there[1] == gap:
            return None
        return Leak(_taking(here))

    def _lookup_leak(
        self, node: Node, i: int, axis: int, operands: Sequence[Info | None]
    ) -> Leak | None:
        """Indices that are computed are of real tokens; constant ones must be, at any length."""
        if i == 1:
            return Leak("its indices are tokens")
        name = self._constant_behind(node.inputs[1])
        if name is None:
            return None
        info, ids = self.known[name], self.graph.constants[name]
        if info.moves:
            return Leak("it takes tokens by a table")
        if not any(tokens(axis) for axis in info.axes):
            if np.all(ids == 0):
                return None
            if ids.size == 1 and int(ids.reshape(-1)[0]) == -1 and node.op == "gather":
                return Leak("it takes the last token", None, 1)
            return Leak("it takes certain tokens")
        if self.other is None:
            return Leak("it takes tokens by a table")
        data = operands[0]
        assert data is not None
        end = extent(tokens(data.axes[axis])[0], self.other.length)
        small = self.other.constants[name]
        if small.size and (small.min() < 0 or small.max() >= end):
            return Leak("it takes tokens by a table")
        return None

    def _constant_behind(self, name: str) -> str | None:
        """The constant that a value is, repeated or in another shape; None if it is none."""
        made_by = self._makers
        while name not in self.graph.constants:
            node = made_by.get(name)
            if node is None or node.op not in ("expand", "reshape", "transpose"):
                return None
            name = node.inputs[0]
        return name


def _extreme_leak(node: Node, pads: Sequence[Pad], dtype: np.dtype[Any]) -> Leak | None:
    low = node.op == "argmax"
    if node.attrs["last"]:
        return Leak("it looks for the last of equal tokens")
    if all(never_extreme(p, dtype, low) for p in pads):
        return None
    return Leak("it looks at padding", 0, limit(dtype, low))


def _is_harmless(node: Node, i: int, axis: int) -> bool:
    """Whether a node that mixes tokens gives what it would give of the real ones alone."""
    if OPS[node.op].flow is conv:
        # The first results read the first elements only.
        return i == 0 and node.attrs["strides"][axis - 2] == 1
    return node.op == "lengths"


def _taking(tokens_taken: tuple[int, int]) -> str:
    first, end = tokens_taken
    return (
        f"it takes token {first}" if end == first + 1 else f"it takes tokens {first} to {end - 1}"
    )


def _contracted(node: Node, operands: Sequence[Info | None], side: int) -> Pad | None:
    """What one factor of a product holds at the padded positions of the extent that is summed."""
    info = operands[side]
    if info is None:
        return None
    rank = len(info.axes)
    by_rows = side == 1 and OPS[node.op].flow is matmul
    axis = max(rank - 2, 0) if by_rows else rank - 1
    pads = info.pads[axis]
    return joined(pads) if pads else info.elsewhere()


def _range(node: Node, axis: int) -> tuple[int, int]:
    """The tokens that a slice takes along an axis; (-1, -1) for those not in order."""
    for start, end, a, step in zip(
        *(node.attrs[k] for k in ("starts", "ends", "axes", "steps")), strict=True
    ):
        if int(a) == axis and (step == 1 or end - start == step):
            return int(start), int(end)
    return -1, -1
