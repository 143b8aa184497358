"""Which axes of a model's tensors run over the same channels, so that these may change places.

Where an operator treats all channels of an axis alike, or sums over them, their order is nobody's
business as long as all tensors have the same one: the residual stream with its tables, norms and
matrices, and the inside of a feed-forward part.  The axes of all tensors are brought together by
what each ONNX operator does; where an operator reads an order out of an axis (a slice, a split into
heads), that axis and all that belong to it stay as they are.  An operator that is not known here
does that with all of its axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from sparsec.compiler.frontend import Model
from sparsec.compiler.ir import bind_shape
from sparsec.pruning.engine.opened import Opened, stored

Axis = tuple[str, int]
"""A tensor and one of its axes."""

Shape = tuple[int, ...]

_ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "And", "BiasGelu", "Cast", "CastLike", "Celu", "Clip", "Div", "Dropout",
        "Elu", "Equal", "Erf", "Exp", "FastGelu", "Gelu", "Greater", "GreaterOrEqual",
        "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
        "PRelu", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
        "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor",
    }
)  # fmt: skip

#: Over the last axis: what is normalized, and vectors that belong to it.
_NORMS = frozenset(
    {
        "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip

_REDUCTIONS = frozenset(
    {
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
    }
)  # fmt: skip

_RESHAPES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))

_CHANGING = frozenset(("Slice", "Concat", "Expand", "Split"))

#: Data first; what else they read are shapes and places.
_PLACED = _RESHAPES | _REDUCTIONS | {"Slice", "Split", "Expand", "Gather"}


@dataclass(frozen=True)
class Channels:
    """Axes that run over the same channels, whose order is free.

    Attributes:
        count: of channels.
        stored: the axes of stored tensors.
        outputs: those of the model's outputs, which have to have the old order.
    """

    count: int
    stored: tuple[Axis, ...]
    outputs: tuple[Axis, ...]


def free_channels(model: Model, opened: Opened) -> list[Channels]:
    """All channels of a model whose order is free.

    Args:
        model: as `opened` has it.
    """
    tensors = stored(model)
    shapes = {name: tuple(tensor.dims) for name, tensor in tensors.items()}
    known: dict[str, np.ndarray] = {}
    for name, value in opened.values(opened.probe).items():
        shapes[name] = bind_shape(value.shape, 1)
        if value.array is not None and value.array.dtype.kind == "i":
            known[name] = value.array
    search = _Search(shapes, known)
    for value in model.inputs():
        search.freeze(value.name)
    for node in model.proto.graph.node:
        search.node(node)
    return search.found(set(tensors), [value.name for value in model.proto.graph.output])


class _Search:
    """
    Args:
        shapes: of all values, for one sequence of the probe's length.
        known: contents of integers that do not depend on the inputs.
    """

    def __init__(self, shapes: Mapping[str, Shape], known: Mapping[str, np.ndarray]) -> None:
        self.shapes = shapes
        self.known = known
        self.parent: dict[Axis, Axis] = {}
        self.frozen: set[Axis] = set()

    # -- groups -----------------------------------------------------------------------------------

    def root(self, axis: Axis) -> Axis:
        self.parent.setdefault(axis, axis)
        while self.parent[axis] != axis:
            self.parent[axis] = self.parent[self.parent[axis]]
            axis = self.parent[axis]
        return axis

    def join(self, one: Axis, other: Axis) -> None:
        a, b = self.root(one), self.root(other)
        self.parent[b] = a
        if b in self.frozen:
            self.frozen.add(a)

    def fix(self, axis: Axis) -> None:
        self.frozen.add(self.root(axis))

    def freeze(self, name: str) -> None:
        """All axes of a tensor stay as they are."""
        for axis in range(len(self.shapes.get(name, ()))):
            self.fix((name, axis))

    def freeze_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.freeze(name)

    # -- operators --------------------------------------------------------------------------------

    def node(self, node: onnx.NodeProto) -> None:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            # What is inside may read anything.
            self.freeze_all(self.shapes)
            return
        if node.op_type == "Shape":
            self.freeze(node.output[0])
            return
        data = node.input[:1] if node.op_type in _PLACED else node.input
        self.freeze_all(node.input[len(data) :])
        names = [name for name in (*data, *node.output) if name]
        known = all(name in self.shapes for name in names)
        if not known or not self._rule(node):
            self.freeze_all((*node.input, *node.output))

    def _rule(self, node: onnx.NodeProto) -> bool:
        """Apply what an operator does; False: it is not known."""
        op = node.op_type
        if op in _ELEMENTWISE or op in ("Softmax", "LogSoftmax"):
            for name in filter(None, node.input):
                self._beside(name, node.output[0])
            return True
        rule = next((rule for names, rule in _RULES if op in names), None)
        if rule is not None:
            rule(self, node)
        return rule is not None

    def _beside(self, name: str, other: str) -> None:
        """Axes that lie beside each other from the last on, as far as both go."""
        a, b = self.shapes[name], self.shapes[other]
        for back in range(1, min(len(a), len(b)) + 1):
            if a[-back] == b[-back]:
                self.join((name, len(a) - back), (other, len(b) - back))

    def _norm(self, node: onnx.NodeProto) -> None:
        last = len(self.shapes[node.input[0]]) - 1
        attrs = {a.name: a.i for a in node.attribute}
        if attrs.get("axis", -1) not in (-1, last):
            self.freeze_all(filter(None, (*node.input, *node.output)))
            return
        for name in filter(None, (*node.input[1:], *node.output)):
            self._beside(name, node.input[0])

    def _reduction(self, node: onnx.NodeProto) -> None:
        """A sum over an axis does not ask for its order; the others go on."""
        x, y = node.input[0], node.output[0]
        before, after = self.shapes[x], self.shapes[y]
        axes = self._reduced(node, len(before))
        if axes is None:
            self.freeze_all((x, y))
            return
        kept = [i for i in range(len(before)) if len(after) == len(before) or i not in axes]
        for new, old in enumerate(kept):
            if old not in axes:
                self.join((x, old), (y, new))

    def _reduced(self, node: onnx.NodeProto, rank: int) -> set[int] | None:
        """The axes that are summed over; None: they are not known."""
        given = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if given is None and len(node.input) > 1 and node.input[1]:
            if node.input[1] not in self.known:
                return None
            given = self.known[node.input[1]].flatten().tolist()
        return {axis % rank for axis in given} if given else set(range(rank))

    def _product(self, node: onnx.NodeProto) -> None:
        a, b, y = node.input[0], node.input[1], node.output[0]
        left, right, made = self.shapes[a], self.shapes[b], self.shapes[y]
        if len(left) < 2 or len(right) < 2:
            self.freeze_all((a, b, y))
            return
        self.join((a, len(left) - 1), (b, len(right) - 2))
        self.join((a, len(left) - 2), (y, len(made) - 2))
        self.join((b, len(right) - 1), (y, len(made) - 1))
        for name, shape in ((a, left), (b, right)):
            for back in range(3, len(shape) + 1):
                if shape[-back] == made[-back]:
                    self.join((name, len(shape) - back), (y, len(made) - back))

    def _gemm(self, node: onnx.NodeProto) -> None:
        attrs = {a.name: a.i for a in node.attribute}
        a, b, y = node.input[0], node.input[1], node.output[0]
        row, column = (1, 0) if attrs.get("transA") else (0, 1)
        inner, outer = (1, 0) if attrs.get("transB") else (0, 1)
        self.join((a, row), (y, 0))
        self.join((a, column), (b, inner))
        self.join((b, outer), (y, 1))
        if len(node.input) > 2 and node.input[2]:
            self._beside(node.input[2], y)

    def _convolution(self, node: onnx.NodeProto) -> None:
        """Only the channels that it makes may change places, and only if none is set apart."""
        weights, y = node.input[1], node.output[0]
        self.freeze(node.input[0])
        for axis in range(1, len(self.shapes[weights])):
            self.fix((weights, axis))
        for axis in (0, *range(2, len(self.shapes[y]))):
            self.fix((y, axis))
        self.join((weights, 0), (y, 1))
        if len(node.input) > 2 and node.input[2]:
            self.join((node.input[2], 0), (y, 1))
        if any(a.name == "group" and a.i != 1 for a in node.attribute):
            self.fix((y, 1))

    def _gather(self, node: onnx.NodeProto) -> None:
        x, y = node.input[0], node.output[0]
        shape = self.shapes[x]
        indices = len(self.shapes[y]) - len(shape) + 1
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % len(shape)
        self.fix((x, axis))
        for i in range(len(shape)):
            if i != axis:
                self.join((x, i), (y, i if i < axis else i - 1 + indices))
        for i in range(axis, axis + indices):
            self.fix((y, i))

    def _transpose(self, node: onnx.NodeProto) -> None:
        x, y = node.input[0], node.output[0]
        order: Sequence[int] = range(len(self.shapes[x]))[::-1]
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), order)
        for new, old in enumerate(order):
            self.join((x, old), (y, new))

    def _reshape(self, node: onnx.NodeProto) -> None:
        """Axes that stay whole go with each other; those that are cut or laid together stay as
        they are, and those of one element are nobody's."""
        x, y = node.input[0], node.output[0]
        before = [(i, n) for i, n in enumerate(self.shapes[x]) if n != 1]
        after = [(i, n) for i, n in enumerate(self.shapes[y]) if n != 1]
        i = j = 0
        while i < len(before) and j < len(after):
            if before[i][1] == after[j][1]:
                self.join((x, before[i][0]), (y, after[j][0]))
                i, j = i + 1, j + 1
                continue
            one, other = before[i][1], after[j][1]
            self.fix((x, before[i][0]))
            self.fix((y, after[j][0]))
            i, j = i + 1, j + 1
            while one != other and (i < len(before) or j < len(after)):
                if one < other and i < len(before):
                    one *= before[i][1]
                    self.fix((x, before[i][0]))
                    i += 1
                elif j < len(after):
                    other *= after[j][1]
                    self.fix((y, after[j][0]))
                    j += 1
                else:
                    break

    def _changing(self, node: onnx.NodeProto) -> None:
        """An axis whose extent changes is read in its order; the others go on."""
        data = node.input if node.op_type == "Concat" else node.input[:1]
        for x in data:
            for y in node.output:
                before, after = self.shapes[x], self.shapes[y]
                if node.op_type != "Expand" and len(before) != len(after):
                    self.freeze_all((x, y))
                    continue
                for back in range(1, min(len(before), len(after)) + 1):
                    mine, other = (x, len(before) - back), (y, len(after) - back)
                    if before[-back] == after[-back]:
                        self.join(mine, other)
                    elif before[-back] != 1 or node.op_type != "Expand":
                        self.fix(mine)
                        self.fix(other)
        if node.op_type in ("Slice", "Split", "Concat"):
            self._along(node)

    def _along(self, node: onnx.NodeProto) -> None:
        """The axis of a split or a join is read in its order even where its extent stays; a slice
        may turn any axis round."""
        data = node.input if node.op_type == "Concat" else node.input[:1]
        names = [*data, *node.output]
        if node.op_type == "Slice":
            if len(node.input) > 4 and node.input[4]:
                self.freeze_all(names)
            return
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        for name in names:
            if self.shapes[name]:
                self.fix((name, axis % len(self.shapes[name])))

    # -- what comes out ---------------------------------------------------------------------------

    def found(self, tensors: set[str], outputs: Sequence[str]) -> list[Channels]:
        """The groups of free axes of stored tensors."""
        groups: dict[Axis, list[Axis]] = {}
        for name in sorted(tensors):
            for axis in range(len(self.shapes[name])):
                groups.setdefault(self.root((name, axis)), []).append((name, axis))
        made: dict[Axis, list[Axis]] = {}
        for name in outputs:
            for axis in range(len(self.shapes.get(name, ()))):
                made.setdefault(self.root((name, axis)), []).append((name, axis))
        result = []
        for root, axes in groups.items():
            counts = {self.shapes[name][axis] for name, axis in axes}
            if root in self.frozen or len(counts) != 1 or counts == {1}:
                continue
            result.append(Channels(counts.pop(), tuple(axes), tuple(made.get(root, ()))))
        return result


_RULES: tuple[tuple[frozenset[str], Callable[[_Search, onnx.NodeProto], None]], ...] = (
    (_NORMS, _Search._norm),
    (_REDUCTIONS, _Search._reduction),
    (_RESHAPES, _Search._reshape),
    (frozenset(("MatMul",)), _Search._product),
    (frozenset(("Gemm",)), _Search._gemm),
    (frozenset(("Conv",)), _Search._convolution),
    (frozenset(("Gather",)), _Search._gather),
    (frozenset(("Transpose",)), _Search._transpose),
    (_CHANGING, _Search._changing),
)
