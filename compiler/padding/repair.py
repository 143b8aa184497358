"""How the padding that an op would let through is kept out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.compiler.axes import BATCH, Axes, Token, Unclear, extent, flow_of, size, tokens
from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import BATCH as BATCH_DIM
from sparsec.compiler.ir import BatchDim, Dim, FrozenAttrs, Graph, Node
from sparsec.compiler.padding.pads import TAME_PAD, Info, Pad


@dataclass(frozen=True)
class Leak:
    """An op that would let padding through.

    Attributes:
        reason: what it does.
        operand: which operand to replace at padded positions, or None where that does not help.
        number: by what; a name is that of a value.
    """

    reason: str
    operand: int | None = None
    number: Any = None


class Repairs:
    """Edits a graph; masks are made once for all that need them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.edit = Editor(graph)
        self._real: dict[Any, str] = {}
        self._count: dict[Token, str] = {}

    def apply(
        self, position: int, node: Node, operands: list[Info | None], leaks: Sequence[Leak]
    ) -> list[Info | None]:
        """Replace operands of a node at padded positions; what is known of them then."""
        operands = list(operands)
        inputs = list(node.inputs)
        for leak in leaks:
            if leak.operand is None:
                self._take_from_end(position, node, operands[0], int(leak.number))
                return operands
            i = leak.operand
            info = operands[i]
            assert info is not None
            flow = flow_of(node, self.graph.values)
            name = inputs[i]
            for side, axis in sorted(flow.mixed):
                if side == i and tokens(info.axes[axis]):
                    name = self._where_real(node, name, info, axis, leak.number)
            inputs[i] = name
            dtype = self.graph.values[node.inputs[i]].dtype
            known = not isinstance(leak.number, str)
            after = Pad(dtype.type(leak.number)) if known else TAME_PAD
            mixed = {axis for side, axis in flow.mixed if side == i}
            pads = tuple((after,) * len(p) if a in mixed else p for a, p in enumerate(info.pads))
            operands[i] = replace(info, pads=pads)
        if node.op == "reduce_mean":
            self._mean(position, node, inputs[0], operands[0])
        else:
            self.edit.nodes[position] = replace(node, inputs=tuple(inputs))
        return operands

    def _where_real(self, node: Node, name: str, info: Info, axis: int, number: Any) -> str:
        dtype = self.edit.values[name].dtype
        if isinstance(number, str):
            fill = number
        else:
            fill = self.edit.constant(dtype.type(number), "padding")
        real = self._real_mask(info, axis)
        return self.edit.emit("where", [real, name, fill], source=node.source)

    def _source(self) -> str:
        """An input that begins with the batch."""
        for name in self.graph.inputs:
            if self.graph.values[name].shape[:1] == (BATCH_DIM,):
                return name
        raise Unclear("no input begins with the batch")

    def _given(self) -> str:
        """The lengths, int32 [B]."""
        if "lengths" not in self._real:
            self._real["lengths"] = self.edit.emit(
                "lengths", [self._source()], length=self.graph.length
            )
        return self._real["lengths"]

    def _counted(self, token: Token) -> str:
        """How many elements of an axis of tokens are real, int32 [B]."""
        if not token.extra:
            return self._given()
        if token not in self._count:
            more = self.edit.constant(np.int32(token.extra), "extra")
            self._count[token] = self.edit.emit("add", [self._given(), more])
        return self._count[token]

    def _tokens(self, token: Token) -> str:
        """Whether each element of an axis of tokens is real, bool [B, S + extra]."""
        if token not in self._real:
            whole = np.arange(extent(token, self.graph.length), dtype=np.int32)
            steps = self.edit.constant(whole[None], "tokens")
            count = self.edit.emit("reshape", [self._counted(token)], shape=(BATCH_DIM, 1))
            self._real[token] = self.edit.emit("less", [steps, count])
        return self._real[token]

    def _real_mask(self, info: Info, axis: int) -> str:
        """Whether tokens are real along one axis, broadcasting to a value of these axes."""
        key = (info.axes, axis)
        if key not in self._real:
            self._real[key] = self._laid_out(info.axes, axis)
        return self._real[key]

    def _laid_out(self, axes: Axes, axis: int) -> str:
        """[B, S] -> extents of 1 but for the batch, this axis, and what shares axes with them."""
        flat = [(a, f) for a, factors in enumerate(axes) for f in factors]
        (batch,) = [i for i, (_, f) in enumerate(flat) if f == BATCH] or [-1]
        if batch < 0:
            raise Unclear("it mixes tokens of something that is the same for every sequence")
        if len(tokens(axes[axis])) != 1:
            raise Unclear("it mixes tokens of two kinds")
        (token,) = [i for i, (a, f) in enumerate(flat) if a == axis and isinstance(f, Token)]
        kept = {axis, flat[batch][0]}
        length = self.graph.length

        def dim(i: int, all_kept: bool) -> Dim:
            a, f = flat[i]
            if isinstance(f, str):
                return BATCH_DIM
            return extent(f, length) if i == token or (all_kept and a in kept) else 1

        edit = self.edit
        name = self._tokens(tokens(axes[axis])[0])
        if token < batch:
            name = edit.emit("transpose", [name], perm=(1, 0))
        slim = tuple(dim(i, False) for i in range(len(flat)))
        wide = tuple(dim(i, True) for i in range(len(flat)))
        name = edit.emit("reshape", [name], shape=slim)
        if wide != slim:
            name = edit.emit("expand", [name], shape=wide)
        merged: list[Dim] = []
        for a, factors in enumerate(axes):
            batches, rest = size(factors, length)
            merged.append((BatchDim(rest) if batches else rest) if a in kept else 1)
        if tuple(merged) != wide:
            name = edit.emit("reshape", [name], shape=tuple(merged))
        return name

    def _mean(self, position: int, node: Node, x: str, info: Info | None) -> None:
        """reduce_mean -> reduce_sum / how many elements are real."""
        assert info is not None
        edit = self.edit
        axes = [int(a) for a in node.attrs["axes"]]
        reduced = [f for a in axes for f in info.axes[a]]
        dtype = edit.values[x].dtype
        if len(tokens(tuple(reduced))) != 1 or dtype.kind != "f":
            raise Unclear("it takes the mean over tokens of two kinds, or of whole numbers")
        (token,) = tokens(tuple(reduced))
        rest = 1
        for factor in reduced:
            rest *= factor if isinstance(factor, int) else 1
        total = edit.emit("reduce_sum", [x], source=node.source, **node.attrs)
        count = edit.emit("cast", [self._counted(token)], to=dtype.name)
        if BATCH in reduced:
            count = edit.emit("reduce_sum", [count], axes=(0,), keepdims=0)
        else:
            count = edit.emit("reshape", [count], shape=self._count_shape(info, axes, node))
        if rest != 1:
            count = edit.emit("mul", [count, edit.constant(dtype.type(rest), "extents")])
        edit.nodes[position] = Node("div", (total, count), node.outputs, FrozenAttrs(), node.source)

    def _count_shape(self, info: Info, axes: Sequence[int], node: Node) -> tuple[Dim, ...]:
        """Extents of a number for each sequence, to broadcast with the result of a reduction."""
        shape: list[Dim] = []
        for a, factors in enumerate(info.axes):
            if a in axes:
                shape += [1] if node.attrs["keepdims"] else []
            elif factors == (BATCH,):
                shape.append(BATCH_DIM)
            elif BATCH in factors:
                raise Unclear("it takes the mean over tokens of rows of several kinds")
            else:
                shape.append(1)
        if BATCH_DIM not in shape:
            raise Unclear("it mixes tokens of something that is the same for every sequence")
        return tuple(shape)

    def _take_from_end(self, position: int, node: Node, info: Info | None, back: int) -> None:
        """Token `length - back` of each sequence: all others are 0, and summed up."""
        edit = self.edit
        name = node.inputs[0]
        assert info is not None
        dtype = self.graph.values[name].dtype
        axis = int(node.attrs["axis"]) if node.op == "gather" else int(node.attrs["axes"][0])
        if node.op == "slice" and len(node.attrs["axes"]) != 1:
            raise Unclear("it takes a token from the end, and parts of other axes")
        if back != 1:
            raise Unclear("it takes a token before the last one")
        real = self._real_mask(info, axis)
        # Real here and not one further on: that is the last one.
        shape = edit.values[real].shape
        extent = shape[axis]
        tail = edit.emit(
            "slice", [real], starts=(1,), ends=(int(str(extent)),), axes=(axis,), steps=(1,)
        )
        none = edit.constant(np.zeros((1,) * len(shape), np.bool_), "no_token")
        gone = edit.emit("expand", [none], shape=(*shape[:axis], 1, *shape[axis + 1 :]))
        further = edit.emit("concat", [tail, gone], axis=axis)
        last = edit.emit("and", [real, edit.emit("not", [further])])
        whole = np.dtype(np.int32) if dtype.kind == "b" else dtype
        x = edit.emit("cast", [name], to=whole.name) if whole != dtype else name
        picked = edit.emit("where", [last, x, edit.constant(whole.type(0), "padding")])
        keep = int(node.op == "slice" or bool(self.graph.values[node.inputs[1]].shape))
        total = edit.emit("reduce_sum", [picked], axes=(axis,), keepdims=keep)
        shape_out = self.graph.values[node.output].shape
        if edit.values[total].shape != shape_out:
            total = edit.emit("reshape", [total], shape=shape_out)
        edit.nodes[position] = Node(
            "cast", (total,), node.outputs, FrozenAttrs({"to": dtype.name}), node.source
        )
