"""Random nodes of one ONNX operator, with attributes and shapes that are seldom met.

A generator draws the inputs and attributes of its operators for an opset; what it draws need not be
valid, since ONNX Runtime says so.  A new operator of the importer needs one here, or a reason in
``ELSEWHERE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.fuzz.draws import BYTES, FLOATS, INTEGERS, Array, Draw


@dataclass(frozen=True)
class Constant:
    """An input that is known when the model is compiled."""

    value: Array


@dataclass(frozen=True)
class Drawn:
    """The arguments of a node.

    Attributes:
        inputs: None: left out.
        outputs: how many there are.
    """

    inputs: Sequence[Array | Constant | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1


Generator = Callable[[Draw, str, int], Drawn]

GENERATORS: dict[str, Generator] = {}

#: Operators that are not drawn here, and why.
ELSEWHERE = {
    "Constant": "the importer's own tests have all of its attributes",
    "ConvInteger": "ONNX Runtime has it for unsigned bytes only",
    "Dropout": "it does nothing",
    "If": "its branches are graphs",
    "NonZero": "how much it gives depends on its input, so that has to be a constant",
    "QLinearConv": "test_frontend_contrib.py",
    "Scatter": "the old name of ScatterElements",
    "CastLike": "a Cast",
}

UNARY = (
    *("Ceil", "Floor", "Round", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tanh", "Sigmoid", "Erf"),
    *("Reciprocal", "IsNaN", "LeakyRelu", "HardSigmoid", "Identity"),
)
REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)


def draws(*operators: str) -> Callable[[Generator], Generator]:
    """Register a generator."""

    def register(generator: Generator) -> Generator:
        GENERATORS.update(dict.fromkeys(operators, generator))
        return generator

    return register


def ints(values: Sequence[int], dtype: type = np.int64) -> Constant:
    """A constant list of whole numbers, cut to its type."""
    info = np.iinfo(dtype)
    return Constant(np.array([min(max(v, info.min), info.max) for v in values], dtype))


@draws("Add", "Sub", "Mul", "Sum", "Max", "Min", "Mean")
def _combining(draw: Draw, op: str, opset: int) -> Drawn:
    many = op in ("Sum", "Max", "Min", "Mean")
    shapes = draw.broadcasting(draw.whole(1, 3) if many else 2)
    floats = op in ("Sum", "Mean")
    first = draw.floats(shapes[0]) if floats else draw.numbers(shapes[0])
    return Drawn([first, *(draw.like(first, shape) for shape in shapes[1:])])


@draws("Div", "Mod")
def _dividing(draw: Draw, op: str, opset: int) -> Drawn:
    a, b = draw.broadcasting(2)
    x = draw.numbers(a)
    y = draw.like(x, b)
    if x.dtype.kind in "iu":  # neither 0 nor what overflows
        y = np.where((y == 0) | (y.astype(np.int64) == -1), 3, y).astype(y.dtype)
    fmod = op == "Mod" and (x.dtype.kind == "f" or draw.sometimes(0.4))
    return Drawn([x, y], {"fmod": 1} if fmod else {})


@draws("Pow")
def _power(draw: Draw, op: str, opset: int) -> Drawn:
    a, b = draw.broadcasting(2)
    x = draw.floats(a) if draw.sometimes(0.7) else draw.integers(a, np.int64, -3, 3)
    y = draw.floats(b) if x.dtype.kind == "f" else draw.integers(b, np.int64, 0, 5)
    return Drawn([x, y])


@draws("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
def _comparing(draw: Draw, op: str, opset: int) -> Drawn:
    a, b = draw.broadcasting(2)
    x = draw.truths(a) if op == "Equal" and draw.sometimes(0.2) else draw.numbers(a)
    return Drawn([x, draw.like(x, b)])


@draws("And", "Or", "Xor")
def _logical(draw: Draw, op: str, opset: int) -> Drawn:
    return Drawn([draw.truths(shape) for shape in draw.broadcasting(2)])


@draws("Not")
def _negation(draw: Draw, op: str, opset: int) -> Drawn:
    return Drawn([draw.truths(draw.extents())])


@draws("Where")
def _where(draw: Draw, op: str, opset: int) -> Drawn:
    a, b, c = draw.broadcasting(3)
    x = draw.numbers(b)
    return Drawn([draw.truths(a), x, draw.like(x, c)])


@draws("PRelu")
def _slopes(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents()
    slopes = shape[draw.whole(0, len(shape)) :]
    return Drawn([draw.floats(shape), draw.floats([draw.one((1, d)) for d in slopes])])


@draws("Abs", "Neg", "Sign", "Relu")
def _signs(draw: Draw, op: str, opset: int) -> Drawn:
    return Drawn([draw.numbers(draw.extents())])


@draws(*UNARY)
def _unary(draw: Draw, op: str, opset: int) -> Drawn:
    attributes = {}
    if op in ("LeakyRelu", "HardSigmoid") and draw.sometimes(0.6):
        attributes["alpha"] = draw.one((0.0, 0.5, -0.5, 2.0, 0.1))
    if op == "HardSigmoid" and draw.sometimes():
        attributes["beta"] = draw.one((0.0, 1.0, -0.5))
    return Drawn([draw.floats(draw.extents(), draw.one(FLOATS))], attributes)


@draws("IsInf")
def _infinite(draw: Draw, op: str, opset: int) -> Drawn:
    signs = ("detect_negative", "detect_positive")
    attributes = {sign: draw.whole(0, 1) for sign in signs if draw.sometimes()}
    return Drawn([draw.floats(draw.extents(), special=1)], attributes)


@draws("Gelu")
def _gelu(draw: Draw, op: str, opset: int) -> Drawn:
    form = {"approximate": draw.one(("tanh", "none"))} if draw.sometimes() else {}
    return Drawn([draw.floats(draw.extents())], form)


@draws("Clip")
def _clip(draw: Draw, op: str, opset: int) -> Drawn:
    # Where a limit is missing, infinity stays here and becomes the largest number there.
    x = draw.like(draw.numbers([1]), draw.extents(), special=0)
    if opset < 11:
        limits = {name: draw.one((-1.0, 0.0, 0.5)) for name in ("min", "max") if draw.sometimes()}
        return Drawn([x.astype(np.float32)], limits)
    return Drawn([x, *(draw.like(x, []) if draw.sometimes(0.7) else None for _ in range(2))])


@draws("Cast")
def _cast(draw: Draw, op: str, opset: int) -> Drawn:
    to = ("FLOAT", "DOUBLE", "INT64", "INT32", "INT16", "INT8", "UINT8", "UINT16", "BOOL")
    shape = draw.extents()
    kind = draw.whole(0, 3)
    # What leaves the type of the result is another number on each machine.
    x = draw.truths(shape) if kind == 0 else draw.integers(shape, draw.one(INTEGERS))
    if kind == 1:
        x = np.clip(draw.floats(shape, special=0), 0, 100)
    return Drawn([x], {"to": getattr(TensorProto, draw.one(to))})


@draws("Softmax", "LogSoftmax")
def _softmax(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1)
    attributes = {"axis": draw.axis(len(shape))} if draw.sometimes(0.7) else {}
    return Drawn([draw.floats(shape, draw.one(FLOATS), special=0)], attributes)


@draws("LpNormalization")
def _lp(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1)
    attributes = {"axis": draw.axis(len(shape))} if draw.sometimes(0.6) else {}
    return Drawn([draw.floats(shape, special=0)], attributes | {"p": draw.whole(1, 2)})


@draws(*REDUCTIONS)
def _reduction(draw: Draw, op: str, opset: int) -> Drawn:
    whole = op in ("ReduceSum", "ReduceMax", "ReduceMin") and draw.sometimes(0.3)
    # The mean of nothing is not a number here, and anything there.
    shape = draw.extents(empty=0.0 if op == "ReduceMean" else 0.05)
    x = draw.integers(shape, np.int64) if whole else draw.floats(shape, special=0)
    if op == "ReduceLogSum":
        x = np.abs(x)
    attributes: dict[str, Any] = {"keepdims": draw.whole(0, 1)} if draw.sometimes(0.6) else {}
    axes = draw.axes(len(shape)) if shape and draw.sometimes(0.7) else None
    as_input = opset >= (13 if op == "ReduceSum" else 18)
    if as_input and draw.sometimes(0.3):
        attributes["noop_with_empty_axes"] = draw.whole(0, 1)
    if axes and not as_input:
        attributes["axes"] = axes
    return Drawn([x, ints(axes)] if as_input and axes is not None else [x], attributes)


@draws("ArgMax", "ArgMin")
def _argument(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, empty=0)
    attributes = {"axis": draw.axis(len(shape)), "keepdims": draw.whole(0, 1)}
    if opset >= 12 and draw.sometimes():
        attributes["select_last_index"] = draw.whole(0, 1)
    ties = draw.integers(shape, draw.one((np.int32, np.int8, np.uint8)), 0, 3)
    return Drawn([draw.floats(shape, special=0) if draw.sometimes() else ties], attributes)


@draws("TopK")
def _topk(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3, empty=0)
    axis = draw.axis(len(shape))
    attributes = {"axis": axis}
    if opset >= 11 and draw.sometimes():
        attributes["largest"] = draw.whole(0, 1)
    x = np.reshape(draw.order(int(np.prod(shape))), shape).astype(np.float32)
    return Drawn([x, ints([draw.whole(1, shape[axis])])], attributes, outputs=2)


@draws("CumSum")
def _cumsum(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3)
    attributes = {name: draw.whole(0, 1) for name in ("exclusive", "reverse") if draw.sometimes()}
    x = draw.floats(shape, special=0) if draw.sometimes() else draw.integers(shape, np.int32)
    return Drawn([x, Constant(np.array(draw.axis(len(shape)), np.int64))], attributes)


@draws("Transpose")
def _transpose(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents()
    attributes = {"perm": draw.order(len(shape))} if shape and draw.sometimes(0.7) else {}
    return Drawn([draw.numbers(shape)], attributes)


@draws("Reshape")
def _reshape(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(empty=0.1)
    size = int(np.prod(shape))
    target = [draw.one((0, 1, -1, 2, 3, max(size, 1))) for _ in range(draw.whole(0, 4))]
    attributes = {"allowzero": draw.whole(0, 1)} if opset >= 14 and draw.sometimes(0.3) else {}
    return Drawn([draw.numbers(shape), ints(target)], attributes)


@draws("Flatten")
def _flatten(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents()
    attributes = {"axis": draw.whole(-len(shape) if opset >= 11 else 0, len(shape))}
    return Drawn([draw.numbers(shape)], attributes)


@draws("Squeeze", "Unsqueeze")
def _ones(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents()
    if op == "Squeeze":
        ones = [i for i, extent in enumerate(shape) if extent == 1]
        axes = [i - len(shape) if draw.sometimes(0.4) else i for i in ones if draw.sometimes(0.7)]
        if not axes:
            return Drawn([draw.numbers(shape)])
    else:
        axes = draw.axes(len(shape) + 2, least=1)[:2]
    if opset >= 13:
        return Drawn([draw.numbers(shape), ints(axes)])
    return Drawn([draw.numbers(shape)], {"axes": axes})


@draws("Expand")
def _expand(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(0, 3)
    wanted = [draw.one((1, d)) if d != 1 else draw.one((1, 2, 0, 3)) for d in shape]
    lead = [draw.one((1, 2, 3))] * draw.whole(0, 1)
    return Drawn([draw.numbers(shape), ints([*lead, *wanted])])


@draws("Tile")
def _tile(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3)
    return Drawn([draw.numbers(shape), ints([draw.one((0, 1, 1, 2, 3)) for _ in shape])])


@draws("Concat")
def _concat(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1)
    axis = draw.axis(len(shape))
    parts = [draw.numbers(shape)]
    for _ in range(draw.whole(0, 2)):
        shape = list(shape)
        shape[axis] = draw.whole(0, 3)
        parts.append(draw.like(parts[0], shape))
    return Drawn(parts, {"axis": axis})


@draws("Split")
def _split(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3, empty=0.03)
    axis = draw.axis(len(shape))
    count = draw.whole(1, 3)
    cuts = sorted(draw.whole(0, shape[axis]) for _ in range(count - 1))
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, shape[axis]], strict=True)]
    x, attributes = draw.numbers(shape), {"axis": axis}
    if draw.sometimes():
        equal = {"num_outputs": count} if opset >= 18 else {}
        return Drawn([x], attributes | equal, outputs=count)
    if opset >= 13:
        return Drawn([x, ints(sizes)], attributes, outputs=count)
    return Drawn([x], attributes | {"split": sizes}, outputs=count)


@draws("Slice")
def _slice(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1)
    axes = draw.order(len(shape))[: draw.whole(1, len(shape))]
    far = (2**63 - 1, -(2**63), 2**31 - 1)
    starts = [draw.one((draw.whole(-7, 7), 0, -1, *far)) for _ in axes]
    ends = [draw.one((draw.whole(-7, 7), 0, *far)) for _ in axes]
    x = draw.numbers(shape)
    if opset < 10:
        return Drawn([x], {"axes": axes, "starts": starts, "ends": ends})
    dtype = draw.one((np.int64, np.int64, np.int32))
    steps = [draw.one((1, 1, 2, -1, -2, 3, -3, 100, -100)) for _ in axes]
    counted = [axis - len(shape) if draw.sometimes(0.3) else axis for axis in axes]
    form = draw.whole(0, 3)
    where = [None if form == 0 and axes == sorted(axes) else ints(counted, dtype)]
    more = [*where, *([] if form == 1 else [ints(steps, dtype)])]
    return Drawn([x, ints(starts, dtype), ints(ends, dtype), *more])


@draws("Gather", "GatherElements")
def _gather(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3, empty=0)
    axis = draw.axis(len(shape))
    wanted = draw.extents(0, 2)
    if op == "GatherElements":
        wanted = [draw.whole(0, extent) for extent in shape]
        wanted[axis] = draw.whole(0, 4)
    extent = shape[axis]
    index = draw.integers(wanted, np.int64, -extent if opset >= 11 else 0, extent - 1)
    return Drawn([draw.numbers(shape), index], {"axis": axis})


@draws("GatherND")
def _gather_nd(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, empty=0)
    batch = draw.whole(0, len(shape) - 1) if opset >= 12 else 0
    depth = draw.whole(1, len(shape) - batch)
    rows = [*shape[:batch], *draw.extents(0, 2)]
    parts = [draw.integers(rows, np.int64, -e, e - 1) for e in shape[batch : batch + depth]]
    attributes = {"batch_dims": batch} if opset >= 12 else {}
    return Drawn([draw.numbers(shape), np.stack(parts, -1)], attributes)


def _way(draw: Draw, opset: int) -> str:
    """How what is scattered meets what is there."""
    new = ("add", "mul", "max", "min") if opset >= 18 else ("add", "mul") if opset >= 16 else ()
    return draw.one(("none", *new))


@draws("ScatterElements")
def _scatter_elements(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3, empty=0)
    axis, way = draw.axis(len(shape)), _way(draw, opset)
    updates = [draw.whole(0, extent) for extent in shape]
    if way == "none":  # each place once: the order is nobody's business
        full = [shape[axis] if i == axis % len(shape) else d for i, d in enumerate(updates)]
        index = np.argsort(draw.rng.random(full), axis=axis)
        index = np.take(index, range(updates[axis]), axis=axis)
    else:
        updates[axis] = draw.whole(0, 5)
        index = draw.integers(updates, np.int64, -shape[axis], shape[axis] - 1)
    x = draw.floats(shape, special=0)
    attributes = {"axis": axis} | ({"reduction": way} if opset >= 16 else {})
    return Drawn([x, index, draw.floats(updates, special=0)], attributes)


@draws("ScatterND")
def _scatter_nd(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, 3, empty=0)
    depth, way = draw.whole(1, len(shape)), _way(draw, opset)
    places = int(np.prod(shape[:depth]))
    some = draw.order(places)[: draw.whole(0, places)]
    flat = some if way == "none" else draw.integers([draw.whole(0, 5)], np.int64, 0, places - 1)
    index = np.stack(np.unravel_index(np.asarray(flat, np.int64), shape[:depth]), -1)
    updates = draw.floats([len(flat), *shape[depth:]], special=0)
    attributes = {"reduction": way} if opset >= 16 else {}
    return Drawn([draw.floats(shape, special=0), index.astype(np.int64), updates], attributes)


@draws("Pad")
def _pad(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, empty=0)
    mode = draw.one(("constant", "reflect", "edge"))
    inner = -1 if mode == "constant" else 1
    pads = [draw.one((0, 0, 1, 2, inner)) for _ in range(2 * len(shape))]
    x = draw.floats(shape, special=0)
    if opset < 11:
        return Drawn([x], {"mode": mode, "pads": pads, "value": draw.one((0.0, 1.5))})
    value = draw.floats([]) if draw.sometimes() else None
    if opset >= 18 and draw.sometimes(0.4):
        axes = draw.axes(len(shape), least=1)
        some = ints([draw.one((0, 1, 2)) for _ in range(2 * len(axes))])
        return Drawn([x, some, value, ints(axes)], {"mode": mode})
    return Drawn([x, ints(pads), value], {"mode": mode})


@draws("MatMul")
def _matmul(draw: Draw, op: str, opset: int) -> Drawn:
    a, b = draw.broadcasting(2)
    k, m, n = draw.whole(0, 9), draw.whole(0, 5), draw.whole(0, 5)
    left = [k] if draw.sometimes(0.2) else [*a[:2], m, k]
    right = [k] if draw.sometimes(0.2) else [*b[:2], k, n]
    return Drawn([draw.floats(left, special=0), draw.floats(right, special=0)])


@draws("Gemm")
def _gemm(draw: Draw, op: str, opset: int) -> Drawn:
    k, m, n = draw.whole(0, 5), draw.whole(0, 4), draw.whole(0, 4)
    turned = {name: draw.whole(0, 1) for name in ("transA", "transB")}
    factors = {name: draw.one((0.0, 1.0, 0.5, -2.0)) for name in ("alpha", "beta")}
    a = draw.floats([k, m] if turned["transA"] else [m, k], special=0)
    b = draw.floats([n, k] if turned["transB"] else [k, n], special=0)
    added = [draw.floats(draw.one(([n], [m, n], [1, n], [m, 1], [1], [])), special=0)]
    return Drawn([a, b, *added[: 1 if opset < 11 else draw.whole(0, 1)]], turned | factors)


@draws("MatMulInteger")
def _matmul_integer(draw: Draw, op: str, opset: int) -> Drawn:
    # ONNX Runtime leaves sums of nothing as they are in memory; on AVX2, two products of signed
    # weights saturate in 16 bits.
    k, m, n = draw.whole(1, 9), draw.whole(0, 4), draw.whole(1, 5)
    small = draw.integers([k, n], np.int8, -64, 63)
    b = draw.one((small, draw.bytes([k, n], np.uint8)))
    a = draw.bytes([*draw.extents(0, 1), m, k], np.uint8)
    zeros = [draw.one((None, draw.bytes([], a.dtype.type)))]
    zeros.append(draw.one((None, draw.bytes([], b.dtype.type), draw.bytes([n], b.dtype.type))))
    return Drawn([a, b, *zeros])


def _scale(draw: Draw, shape: Sequence[int]) -> Array:
    return np.abs(draw.floats(shape, special=0)) + np.float32(draw.one((0.01, 1e-5, 1.0)))


@draws("QuantizeLinear", "DequantizeLinear")
def _quantization(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(empty=0.05)
    channels = opset >= 13 and len(shape) > 0 and draw.sometimes()
    axis = draw.axis(len(shape)) if channels else 0
    own = [shape[axis]] if channels else []
    dtype = draw.one(BYTES)
    x = 30 * draw.floats(shape) if op == "QuantizeLinear" else draw.bytes(shape, dtype)
    zero = [draw.bytes(own, dtype)] if op != "QuantizeLinear" or draw.sometimes(0.8) else []
    inputs = [np.asarray(x), np.asarray(_scale(draw, own)), *zero]
    return Drawn(inputs, {"axis": axis} if channels else {})


@draws("DynamicQuantizeLinear")
def _dynamic(draw: Draw, op: str, opset: int) -> Drawn:
    x = draw.floats(draw.extents(0, 3, empty=0), special=0)
    return Drawn([draw.one((x, np.abs(x), -np.abs(x), 0 * x))], outputs=3)


@draws("QLinearMatMul")
def _qlinear_matmul(draw: Draw, op: str, opset: int) -> Drawn:
    k, m, n = draw.whole(1, 9), draw.whole(1, 4), draw.whole(1, 5)
    dtype, own = draw.one(BYTES), [n] if draw.sometimes(0.4) else []
    a = (draw.bytes([m, k], dtype), _scale(draw, []), draw.bytes([], dtype))
    b = (draw.bytes([k, n], dtype), _scale(draw, own), draw.bytes(own, dtype))
    y = (_scale(draw, []) * np.float32(20 * k), draw.bytes([], dtype))
    return Drawn([np.asarray(part) for part in (*a, *b, *y)])


@draws("Conv")
def _conv(draw: Draw, op: str, opset: int) -> Drawn:
    axes, groups = range(draw.whole(1, 2)), draw.one((1, 1, 2, 3))
    kernel, space = [draw.whole(1, 3) for _ in axes], [draw.whole(1, 8) for _ in axes]
    attributes: dict[str, Any] = {"group": groups, "kernel_shape": kernel}
    if draw.sometimes():
        attributes["strides"] = [draw.whole(1, 3) for _ in axes]
    if draw.sometimes():
        attributes["dilations"] = [draw.whole(1, 2) for _ in axes]
    padding = draw.one(("", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if padding:
        attributes["auto_pad"] = padding
    if padding in ("", "NOTSET"):
        attributes["pads"] = [draw.whole(0, 2) for _ in (*axes, *axes)]
    inputs, outputs = groups * draw.whole(1, 2), groups * draw.whole(1, 2)
    x = draw.floats([draw.whole(1, 2), inputs, *space], special=0)
    w = draw.floats([outputs, inputs // groups, *kernel], special=0)
    return Drawn([x, w, *([draw.floats([outputs], special=0)] * draw.whole(0, 1))], attributes)


@draws("LayerNormalization")
def _layernorm(draw: Draw, op: str, opset: int) -> Drawn:
    shape = draw.extents(1, empty=0)
    axis = draw.axis(len(shape))
    own = shape[axis:]
    affine = [draw.floats(own, special=0) for _ in range(draw.whole(1, 2))]
    attributes = {"axis": axis, "epsilon": draw.one((1e-5, 0.1))}
    return Drawn([draw.floats(shape, special=0), *affine], attributes)


@draws("BatchNormalization")
def _batchnorm(draw: Draw, op: str, opset: int) -> Drawn:
    channels = draw.whole(1, 3)
    shape = [draw.whole(1, 3), channels, *draw.extents(0, 2, empty=0)]
    affine = [draw.floats([channels], special=0) for _ in range(3)]
    return Drawn([draw.floats(shape, special=0), *affine, np.abs(affine[0]) + 1])


@draws("OneHot")
def _one_hot(draw: Draw, op: str, opset: int) -> Drawn:
    shape, depth = draw.extents(0, 2), draw.whole(1, 5)
    index = draw.integers(shape, draw.one((np.int64, np.int32)), -depth - 1, depth + 1)
    wanted = Constant(np.array(draw.one((depth, [depth])), np.int64))
    return Drawn([index, wanted, draw.numbers([2])], {"axis": draw.axis(len(shape) + 1)})


@draws("Trilu")
def _trilu(draw: Draw, op: str, opset: int) -> Drawn:
    offset = Constant(np.array(draw.one((-9, -2, -1, 0, 1, 2, 9)), np.int64))
    attributes = {"upper": draw.whole(0, 1)} if draw.sometimes(0.7) else {}
    x = draw.floats(draw.extents(2))
    return Drawn([x, offset] if draw.sometimes(0.7) else [x], attributes)


@draws("Shape", "Size")
def _extents(draw: Draw, op: str, opset: int) -> Drawn:
    ends = ("start", "end") if op == "Shape" and opset >= 15 else ()
    attributes = {name: draw.whole(-6, 6) for name in ends if draw.sometimes()}
    return Drawn([draw.numbers(draw.extents())], attributes)


#: Equations, and the extents of their operands.
EQUATIONS: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = (
    ("ij,jk->ik", ((2, 3), (3, 4))),
    ("bij,bjk->bik", ((2, 2, 3), (2, 3, 4))),
    ("bij,bkj", ((2, 2, 3), (2, 4, 3))),
    ("ii->i", ((3, 3),)),
    ("ij->ji", ((2, 3),)),
    ("...ij,...jk->...ik", ((1, 2, 2, 3), (2, 3, 4))),
    ("i,j->ij", ((2,), (3,))),
    ("bhid,bhjd->bhij", ((2, 2, 3, 4), (2, 2, 5, 4))),
    ("ij,ij->", ((2, 3), (2, 3))),
    (" a b , b c -> a c ", ((2, 3), (3, 4))),
    ("...a->...", ((2, 3, 4),)),
    ("abc,cd->abd", ((2, 3, 4), (4, 5))),
    ("ab,b->ba", ((2, 3), (3,))),
)


@draws("Einsum")
def _einsum(draw: Draw, op: str, opset: int) -> Drawn:
    equation, shapes = draw.one(EQUATIONS)
    return Drawn([draw.floats(s, special=0) for s in shapes], {"equation": equation})


@draws("DepthToSpace", "SpaceToDepth")
def _blocks(draw: Draw, op: str, opset: int) -> Drawn:
    size, few = draw.whole(1, 2), [draw.whole(1, 3) for _ in range(4)]
    if op == "SpaceToDepth":
        shape = [few[0], few[1], size * few[2], size * few[3]]
        return Drawn([draw.floats(shape)], {"blocksize": size})
    mode = {"mode": draw.one(("DCR", "CRD"))} if opset >= 11 else {}
    shape = [few[0], size * size * few[1], few[2], few[3]]
    return Drawn([draw.floats(shape)], {"blocksize": size, **mode})


@draws("Range")
def _range(draw: Draw, op: str, opset: int) -> Drawn:
    limits = (draw.one((0, 1, 5, -2)), draw.one((0, 5, -3)), draw.one((1, 2, -1, 3)))
    return Drawn([Constant(np.array(limit, np.int64)) for limit in limits])


@draws("ConstantOfShape")
def _filled(draw: Draw, op: str, opset: int) -> Drawn:
    value = {"value": numpy_helper.from_array(draw.numbers([1]))} if draw.sometimes(0.6) else {}
    return Drawn([ints(draw.extents(0, 3))], value)
