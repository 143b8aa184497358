"""Elementwise ONNX ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, core_dtype, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant

_UNARY = {
    "Neg": "neg",
    "Abs": "abs",
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Log": "log",
    "Sin": "sin",
    "Cos": "cos",
    "Erf": "erf",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Reciprocal": "reciprocal",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sign": "sign",
    "Not": "not",
    "IsNaN": "isnan",
}

_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Pow": "pow",
    "Equal": "equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
}


@onnx_op(*_UNARY)
def _unary(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit(_UNARY[n.op], n[0])


@onnx_op(*_BINARY)
def _binary(c: Importer, n: OnnxNode) -> Tensor:
    a, b = n[0], n[1]
    if n.op == "Equal" and a.dtype == np.bool_ and b.dtype != np.bool_:
        raise Fail("a bool is compared with a number")
    return c.emit(_BINARY[n.op], a, b)


@onnx_op("And", "Or")
def _logical(c: Importer, n: OnnxNode) -> Tensor:
    """A constant that is True (for And) or False (for Or) throughout changes nothing."""
    neutral = n.op == "And"
    for mine, other in ((n[0], n[1]), (n[1], n[0])):
        if mine.known and bool(np.all(mine.contents() == neutral)):
            return c.expand(other, mine.shape)
    return c.emit(n.op.lower(), n[0], n[1])


@onnx_op("Xor")
def _xor(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit("not", c.emit("equal", n[0], n[1]))


@onnx_op("Sum", "Min", "Max", "Mean")
def _variadic(c: Importer, n: OnnxNode) -> Tensor:
    op = {"Sum": "add", "Mean": "add"}.get(n.op, n.op.lower())
    total = n[0]
    for i in range(1, len(n.inputs)):
        total = c.emit(op, total, n[i])
    if n.op == "Mean" and len(n.inputs) > 1:
        total = c.emit("div", total, c.scalar(len(n.inputs), total))
    return total


@onnx_op("Clip")
def _clip(c: Importer, n: OnnxNode) -> Tensor:
    """Bounds are attributes before opset 11, inputs after."""
    x = n[0]
    low, high = n.optional(1), n.optional(2)
    if n.version < 11:
        low = c.scalar(n.attrs["min"], x) if "min" in n.attrs else None
        high = c.scalar(n.attrs["max"], x) if "max" in n.attrs else None
    x = c.emit("max", x, low) if low is not None else x
    return c.emit("min", x, high) if high is not None else x


@onnx_op("Where")
def _where(c: Importer, n: OnnxNode) -> Tensor:
    cond, a, b = n[0], n[1], n[2]
    if cond.known and not cond.symbolic:
        # A condition that is the same throughout picks one side.
        for wanted, side, other in ((True, a, b), (False, b, a)):
            if bool(np.all(cond.contents() == wanted)):
                return c.expand(c.expand(side, other.shape), cond.shape)
    return c.emit("where", cond, a, b)


@onnx_op("Mod")
def _mod(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit("mod", n[0], n[1], fmod=int(n.attrs.get("fmod", 0)))


@onnx_op("Cast")
def _cast(c: Importer, n: OnnxNode) -> Tensor:
    return c.cast(n[0], core_dtype(n.attrs["to"]))


@onnx_op("CastLike")
def _cast_like(c: Importer, n: OnnxNode) -> Tensor:
    return c.cast(n[0], n[1].dtype)


@onnx_op("Gelu")
def _gelu(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit("gelu", n[0], approximate=n.attrs.get("approximate", "none"))


@onnx_op("LeakyRelu")
def _leaky_relu(c: Importer, n: OnnxNode) -> Tensor:
    zero = c.scalar(0, n[0])
    low = c.emit("mul", c.emit("min", n[0], zero), c.scalar(n.attrs.get("alpha", 0.01), n[0]))
    return c.emit("add", c.emit("relu", n[0]), low)


@onnx_op("PRelu")
def _prelu(c: Importer, n: OnnxNode) -> Tensor:
    """Slopes may be infinite: they meet negative numbers only."""
    x, slope = n[0], n[1]
    return c.emit("where", c.emit("greater", x, c.scalar(0, x)), x, c.emit("mul", x, slope))


@onnx_op("HardSigmoid")
def _hard_sigmoid(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    line = c.emit("mul", x, c.scalar(n.attrs.get("alpha", 0.2), x))
    line = c.emit("add", line, c.scalar(n.attrs.get("beta", 0.5), x))
    return c.emit("min", c.emit("relu", line), c.scalar(1, x))


@onnx_op("IsInf")
def _is_inf(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    up = c.emit("equal", x, c.scalar(np.inf, x))
    down = c.emit("equal", x, c.scalar(-np.inf, x))
    positive, negative = n.attrs.get("detect_positive", 1), n.attrs.get("detect_negative", 1)
    if positive and negative:
        return c.emit("or", up, down)
    if not positive and not negative:
        return c.emit("and", up, down)  # never
    return up if positive else down


@onnx_op("Identity")
def _identity(c: Importer, n: OnnxNode) -> Tensor:
    return n[0]


@onnx_op("Dropout", static=(1, 2))
def _dropout(c: Importer, n: OnnxNode) -> Sequence[Tensor]:
    """Inference, or training with ratio 0: the identity, and a mask that is True throughout."""
    ratio, training = n.optional(1), n.optional(2)
    if training is not None and any(c.plain_ints(training)):
        share = 0.5 if ratio is None else float(np.max(ratio.contents(), initial=0))
        if share:
            raise Fail("training mode is not supported; export the model in eval mode")
    everywhere = c.expand(constant(np.ones((), np.bool_), "mask"), n[0].shape)
    return [n[0], everywhere] if n.wants(1) else [n[0]]


@onnx_op("If")
def _if(c: Importer, n: OnnxNode) -> Sequence[Tensor | None]:
    """A condition known at compile time picks a branch; else both are computed, and it selects."""
    cond = n[0]
    if cond.known:
        branch = n.attrs["then_branch" if c.plain_ints(cond)[0] else "else_branch"]
        return c.subgraph(branch, n)
    cond = c.reshape(cond, ())
    out: list[Tensor | None] = []
    sides = (c.subgraph(n.attrs[name], n) for name in ("then_branch", "else_branch"))
    for a, b in zip(*sides, strict=True):
        if a is None or b is None:
            out.append(None)
        elif (a.dtype, a.shape) != (b.dtype, b.shape):
            raise Fail(f"its branches give {a.type} and {b.type}, and the inputs decide which")
        else:
            out.append(c.emit("where", cond, a, b))
    return out


@onnx_op("Constant")
def _constant(c: Importer, n: OnnxNode) -> Tensor:
    attrs = n.attrs
    hint = next((o for o in n.outputs if o), n.source)
    for name in ("value", "sparse_value"):
        if name in attrs:
            return constant(attrs[name].contents(), hint)
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in attrs:
            return constant(np.asarray(attrs[name], dtype), hint)
    raise Fail("constants of strings are not supported")
