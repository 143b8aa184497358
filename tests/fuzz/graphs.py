"""Random ONNX graphs, grown node by node; ONNX's own reference says what every value is.

Operands repeat often (x - x, attention of a tensor with itself), and any value can be an output.
Values are kept tame, and ops that jump (rounding, comparisons, sorting) are applied to values that
are exact on both sides only: what remains is rounding, which the tests bound.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 19
LARGEST = 1e3
_ELEMENTS = 2000

FLOATS = ("float32", "float64")
INTEGERS = ("int64", "int32", "int8", "uint8", "int16", "uint16", "uint32", "uint64")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A value: its name, what it is for the graph's inputs, and whether it is free of rounding."""

    name: str
    array: np.ndarray
    exact: bool

    @property
    def kind(self) -> str:
        return str(self.array.dtype.kind)


class Misfit(Exception):
    """The op that was drawn does not go with the values that were drawn."""


@dataclass
class Grower:
    """A graph in the making."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[Drawn] = field(default_factory=list)
    constants: list[Drawn] = field(default_factory=list)
    values: list[Drawn] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)

    # -- drawing -------------------------------------------------------------------------------

    def choice(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def flip(self) -> bool:
        return bool(self.rng.integers(2))

    def shape(self, low: int = 0, high: int = 4) -> tuple[int, ...]:
        rank = int(self.rng.integers(low, high + 1))
        return tuple(int(self.choice([1, 2, 3, 4, 5, 8, 17])) for _ in range(rank))

    def numbers(self, dtype: Any, shape: Sequence[int]) -> np.ndarray:
        """Small numbers; floats are sixteenths, so that sums of a few of them are exact."""
        dtype = np.dtype(dtype)
        if dtype.kind == "f":
            array = self.rng.integers(-48, 49, shape) / 16
        else:
            low, high = {"b": (0, 2), "u": (0, 10)}.get(dtype.kind, (-9, 10))
            array = self.rng.integers(low, high, shape)
        return np.asarray(array, dtype)

    def pick(self, kinds: str = "f", low: int = 0, exact: bool = False) -> Drawn:
        """A value of one of some kinds (f, i, u, b), of some rank at least."""
        fit = [
            v
            for v in self.values
            if v.kind in kinds and v.array.ndim >= low and (v.exact or not exact)
        ]
        if not fit:
            raise Misfit
        return fit[-1 - int(min(self.rng.geometric(0.3) - 1, len(fit) - 1))]

    def constant(self, array: Any) -> Drawn:
        """A stored tensor."""
        drawn = Drawn(f"c{len(self.constants)}", np.asarray(array), True)
        self.constants.append(drawn)
        return drawn

    def operand(self, dtype: Any, shape: Sequence[int]) -> Drawn:
        """A value or a constant of exactly this type."""
        fit = [v for v in self.values if v.array.dtype == dtype and v.array.shape == tuple(shape)]
        return (
            self.choice(fit) if fit and self.flip() else self.constant(self.numbers(dtype, shape))
        )

    def partner(self, x: Drawn) -> Drawn:
        """Something that broadcasts with x, often x itself."""
        if self.rng.integers(4) == 0:
            return x
        shape = tuple(1 if self.rng.integers(4) == 0 else d for d in x.array.shape)
        return self.operand(x.array.dtype, shape[int(self.rng.integers(0, len(shape) + 1)) :])

    def axis(self, x: Drawn) -> int:
        return int(self.rng.integers(-x.array.ndim, x.array.ndim))

    def indices(self, extent: int, shape: Sequence[int], narrow: bool = True) -> Drawn:
        """Indices that are an input at run time, or a constant; int32 if they may be `narrow`."""
        if not extent:
            raise Misfit
        dtype = np.int32 if narrow and self.flip() else np.int64
        array = np.asarray(self.rng.integers(-extent, extent, shape), dtype)
        return self.input(array) if self.flip() else self.constant(array)

    def input(self, array: np.ndarray) -> Drawn:
        """A run-time input."""
        drawn = Drawn(f"x{len(self.inputs)}", array, True)
        self.inputs.append(drawn)
        return drawn

    # -- growing -------------------------------------------------------------------------------

    def add(
        self,
        op: str,
        *operands: Drawn | None,
        exact: bool = False,
        n: int = 1,
        tame: bool = True,
        **attrs: Any,
    ) -> None:
        """Append a node, if the reference takes it and gives tame results.

        Args:
            exact: the op adds no rounding error to exact operands.
            n: how many outputs it has.
            tame: whether its floats must be below `LARGEST`; else only numbers.
        """
        before = sum(len(node.output) for node in self.nodes)
        names = [f"v{before + i}" for i in range(n)]
        given = [o for o in operands if o is not None]
        node = helper.make_node(op, [o.name if o else "" for o in operands], names, **attrs)
        node.name = f"{op}_{len(self.nodes)}"
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                made = _evaluate(node, given)
            except Exception as error:  # the reference raises whatever numpy does
                raise Misfit from error
        for array in made:
            if array.size > _ELEMENTS or array.ndim > 6 or array.dtype.kind not in "fiub":
                raise Misfit
            limit = LARGEST if tame else np.inf
            if array.dtype.kind == "f" and not np.all(np.abs(array) < limit):
                raise Misfit
        self.nodes.append(node)
        free = exact and all(o.exact for o in given)
        free = free and all(a.dtype.kind != "f" or _representable(a) for a in made)
        self.values += [Drawn(name, a, free) for name, a in zip(names, made, strict=True)]
        self.shown |= {name for name in names if self.rng.integers(8) == 0}

    def grow(self, count: int, growth: Sequence[Callable[[Grower], None]]) -> None:
        """Add nodes until there are `count`."""
        for _ in range(20 * count):
            if len(self.nodes) >= count:
                return
            parts: list[list[Any]] = [self.nodes, self.inputs, self.constants, self.values]
            sizes = [len(part) for part in parts]
            try:
                self.choice(growth)(self)
            except Misfit:
                for part, size in zip(parts, sizes, strict=True):
                    del part[size:]

    def model(self) -> onnx.ModelProto:
        """The graph as a model; its outputs are the values that nobody reads, and some others."""
        graph = helper.make_graph(
            self.nodes,
            "random",
            [_info(v) for v in self.inputs],
            [_info(v) for v in self.expected()],
            [numpy_helper.from_array(v.array, v.name) for v in self.constants],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def expected(self) -> list[Drawn]:
        """The model's outputs, in order."""
        read = {name for node in self.nodes for name in node.input}
        made = [v for v in self.values if v.name[0] == "v"]
        return [v for v in made if v.name not in read or v.name in self.shown]


def _representable(array: np.ndarray) -> bool:
    """Multiples of 1 / 256 of modest size, on which sums and products stay exact."""
    return bool(np.all(np.rint(array * 256) == array * 256))


def _info(value: Drawn) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.array.dtype)
    return helper.make_tensor_value_info(value.name, kind, value.array.shape)


def _evaluate(node: onnx.NodeProto, operands: Sequence[Drawn]) -> list[np.ndarray]:
    unique = {o.name: o for o in operands}
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "one", [_info(o) for o in unique.values()], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    feeds = {name: o.array for name, o in unique.items()}
    return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, feeds)]


def grown(seed: int, count: int, batch: int | None = None) -> Grower:
    """A random graph of about `count` nodes; its first inputs have a leading extent of `batch`."""
    grower = Grower(np.random.default_rng(seed))
    front = () if batch is None else (batch,)
    for _ in range(int(grower.rng.integers(2, 5))):
        dtype = grower.choice(["float32", "float32", "float32", "float64", "bool", *INTEGERS])
        drawn = grower.input(grower.numbers(dtype, (*front, *grower.shape(high=3))))
        grower.values.append(drawn)
    grower.grow(count, GROWTH)
    return grower


def grown_tokens(seed: int, count: int, batch: int, length: int, quantized: bool) -> Grower:
    """A random graph over the tokens of sequences, of what encoders are made of.

    All inputs and outputs are [batch, length, ..]; a few widths only, so that operands fit often.

    Args:
        quantized: 8-bit round trips too, whose results jump where rounding differs.
    """
    grower = Grower(np.random.default_rng(seed))
    for _ in range(2):
        shape = (batch, length, int(grower.choice(WIDTHS)))
        grower.values.append(grower.input(grower.numbers("float32", shape)))
    grower.grow(count, [*TOKEN_GROWTH, *([_round_trip] * 3 if quantized else [])])
    return grower


# ---- ops ----------------------------------------------------------------------------------------


def _unary(g: Grower) -> None:
    op = g.choice(["Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu", "Identity", "Sin", "Cos"])
    g.add(op, g.pick(), exact=op in ("Neg", "Abs", "Relu", "Identity"))


def _positive(g: Grower) -> None:
    x = g.pick()
    if x.array.size and np.min(x.array) < 0.1:
        raise Misfit
    g.add(g.choice(["Sqrt", "Log", "Reciprocal"]), x)


def _jump(g: Grower) -> None:
    g.add(g.choice(["Floor", "Ceil", "Round", "Sign"]), g.pick(exact=True), exact=True)


def _binary(g: Grower) -> None:
    x = g.pick("fiu")
    y = g.partner(x)
    op = g.choice(["Add", "Sub", "Mul", "Min", "Max", "Div"])
    if op == "Div" and (x.kind != "f" or np.any(np.abs(y.array) < 0.1)):
        raise Misfit
    pair = (x, y) if g.flip() or op == "Div" else (y, x)
    g.add(op, *pair, exact=op != "Div")


def _many(g: Grower) -> None:
    x = g.pick("f")
    g.add(g.choice(["Sum", "Mean", "Min", "Max"]), x, g.partner(x), g.partner(x))


def _modulo(g: Grower) -> None:
    x = g.pick("iu")
    y = g.partner(x)
    if np.any(y.array == 0):
        raise Misfit
    g.add("Mod", x, y, exact=True)


def _compare(g: Grower) -> None:
    x = g.pick("fiu", exact=True)
    y = g.partner(x)
    if not y.exact:
        raise Misfit
    op = g.choice(["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
    g.add(op, x, y, exact=True)


def _logic(g: Grower) -> None:
    x = g.pick("b")
    if g.flip():
        g.add("Not", x, exact=True)
    else:
        g.add(g.choice(["And", "Or", "Xor"]), x, g.partner(x), exact=True)


def _where(g: Grower) -> None:
    cond = g.pick("b")
    a = g.operand("float32", cond.array.shape) if g.flip() else g.pick("fiu")
    g.add("Where", cond, a, g.partner(a), exact=True)


def _cast(g: Grower) -> None:
    x = g.pick("fiub", exact=True)
    to = g.choice(["float32", "float64", "bool", "int64", "int32", "int16", "int8"])
    g.add("Cast", x, exact=True, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def _clip(g: Grower) -> None:
    x = g.pick("fiu")
    low, high = sorted(g.numbers(x.array.dtype, (2,)).tolist())
    bounds = [g.constant(np.asarray(v, x.array.dtype)) for v in (low, high)]
    g.add("Clip", x, *(b if g.flip() else None for b in bounds), exact=True)


def _reduce(g: Grower) -> None:
    ops = ["Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "Prod", "LogSumExp"]
    x = g.pick("f", low=1)
    axes = [i for i in range(x.array.ndim) if g.flip()] or [g.axis(x)]
    if x.array.size == 0:
        raise Misfit
    axes_in = g.constant(np.asarray(axes, np.int64)) if g.flip() else None
    g.add(f"Reduce{g.choice(ops)}", x, axes_in, keepdims=int(g.flip()))


def _softmax(g: Grower) -> None:
    x, op = g.pick("f", low=1), g.choice(["Softmax", "LogSoftmax"])
    axis = g.axis(x)
    if op == "LogSoftmax" and x.array.size and np.ptp(x.array, axis=axis).max() > 60:
        raise Misfit  # the reference takes the logarithm of what has underflowed
    g.add(op, x, axis=axis)


def _layer_norm(g: Grower) -> None:
    x = g.pick("f", low=1)
    axis = g.axis(x)
    inner = x.array.shape[axis:]
    if (
        x.array.size == 0
        or np.min(
            np.var(x.array, tuple(range(axis, 0)) if axis < 0 else tuple(range(axis, x.array.ndim)))
        )
        < 0.01
    ):
        raise Misfit
    bias = g.operand(x.array.dtype, inner) if g.flip() else None
    g.add("LayerNormalization", x, g.operand(x.array.dtype, inner), bias, axis=axis)


def _matmul(g: Grower) -> None:
    x = g.pick("f", low=1)
    k, n = x.array.shape[-1], int(g.choice([1, 3, 8, 17]))
    front = x.array.shape[:-2] if g.flip() else ()
    y = g.operand(x.array.dtype, (*front, k, n))
    g.add("MatMul", x, y)


def _gemm(g: Grower) -> None:
    x = g.pick("f", low=2)
    if x.array.ndim != 2:
        raise Misfit
    turned, other = g.flip(), g.flip()
    m, k = x.array.shape[::-1] if turned else x.array.shape
    n = int(g.choice([1, 4, 9]))
    y = g.operand(x.array.dtype, (n, k) if other else (k, n))
    bias = g.operand(x.array.dtype, g.choice([(n,), (m, n), (1,), (m, 1)])) if g.flip() else None
    alpha, beta = float(g.choice([1.0, 0.5])), float(g.choice([1.0, -2.0]))
    g.add("Gemm", x, y, bias, transA=int(turned), transB=int(other), alpha=alpha, beta=beta)


def _matmul_integer(g: Grower) -> None:
    x = g.constant(g.numbers(g.choice(["uint8", "int8"]), g.shape(2, 3)))
    x = g.input(x.array) if g.flip() else x
    b = g.numbers(g.choice(["uint8", "int8"]), (x.array.shape[-1], int(g.choice([1, 5, 16]))))
    zero = g.constant(g.numbers(x.array.dtype, ())) if g.flip() else None
    g.add("MatMulInteger", x, g.constant(b), zero, exact=True)


def _quantize(g: Grower) -> None:
    x = g.pick("f", exact=True)
    if x.array.dtype != np.float32:
        raise Misfit
    scale = g.constant(np.float32(g.choice([0.25, 0.5, 1.0])))
    zero = g.constant(g.numbers(g.choice(["uint8", "int8"]), ()))
    g.add("QuantizeLinear", x, scale, zero, exact=True)
    g.add("DequantizeLinear", g.values[-1], scale, zero, exact=True)


def _transpose(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    g.add("Transpose", x, exact=True, perm=g.rng.permutation(x.array.ndim).tolist())


def _reshape(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    shape = list(x.array.shape)
    if g.flip() and len(shape) > 1:
        at = int(g.rng.integers(len(shape) - 1))
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    else:
        shape.insert(int(g.rng.integers(len(shape) + 1)), 1)
    if x.array.size and g.flip():
        shape[int(g.rng.integers(len(shape)))] = -1
    g.add("Reshape", x, g.constant(np.asarray(shape, np.int64)), exact=True)


def _unsqueeze(g: Grower) -> None:
    x = g.pick("fiub")
    axis = int(g.rng.integers(-x.array.ndim - 1, x.array.ndim + 1))
    g.add("Unsqueeze", x, g.constant(np.asarray([axis], np.int64)), exact=True)


def _concat(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    axis = g.axis(x)
    shape = list(x.array.shape)
    shape[axis] = int(g.choice([1, 2, 5]))
    parts = [x, g.operand(x.array.dtype, shape)]
    g.add("Concat", *(parts if g.flip() else parts[::-1]), exact=True, axis=axis)


def _split(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    axis = g.axis(x)
    extent = x.array.shape[axis]
    first = int(g.rng.integers(0, extent + 1))
    sizes = g.constant(np.asarray([first, extent - first], np.int64))
    g.add("Split", x, sizes, exact=True, n=2, axis=axis)


def _slice(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    axis = g.axis(x)
    extent = x.array.shape[axis]
    a, b = g.rng.integers(-extent - 2, extent + 3, 2).tolist()
    step = int(g.choice([1, 1, 2, -1, -2]))
    if step < 0 and a < -extent:
        raise Misfit  # that is the first element, but the reference does as numpy does: none
    parts = [g.constant(np.asarray([v], np.int64)) for v in (a, b, axis, step)]
    g.add("Slice", x, *parts, exact=True)


def _gather(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    axis = g.axis(x)
    g.add("Gather", x, g.indices(x.array.shape[axis], g.shape(0, 2)), exact=True, axis=axis)


def _gather_elements(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    axis = g.axis(x)
    shape = list(x.array.shape)
    shape[axis] = int(g.choice([1, 3, 6]))
    g.add("GatherElements", x, g.indices(x.array.shape[axis], shape), exact=True, axis=axis)


def _gather_nd(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    depth = int(g.rng.integers(1, x.array.ndim + 1))
    least = min(x.array.shape[:depth])
    g.add("GatherND", x, g.indices(least, (*g.shape(0, 2), depth), narrow=False), exact=True)


def _scatter_nd(g: Grower) -> None:
    x = g.pick("f", low=1)
    indices = g.indices(x.array.shape[0], (int(g.choice([1, 4])), 1), narrow=False)
    updates = g.operand(x.array.dtype, (indices.array.shape[0], *x.array.shape[1:]))
    how = g.choice(["none", "add", "mul", "min", "max"])
    if np.any(indices.array < 0):
        raise Misfit  # the reference takes them for what numpy makes of them, but not with add
    g.add("ScatterND", x, indices, updates, exact=how != "mul", reduction=how)


def _expand(g: Grower) -> None:
    x = g.pick("fiub")
    shape = [int(g.choice([1, 2, 3])) if d == 1 else d for d in x.array.shape]
    shape = [*g.shape(0, 1), *shape]
    g.add("Expand", x, g.constant(np.asarray(shape, np.int64)), exact=True)


def _tile(g: Grower) -> None:
    x = g.pick("fiub", low=1)
    repeats = g.rng.integers(1, 3, x.array.ndim).astype(np.int64)
    g.add("Tile", x, g.constant(repeats), exact=True)


def _pad(g: Grower) -> None:
    x = g.pick("fi", low=1)
    pads = g.constant(g.rng.integers(0, 3, 2 * x.array.ndim).astype(np.int64))
    mode = g.choice(["constant", "edge", "reflect", "wrap"])
    least = min(x.array.shape)
    if mode == "wrap" or (mode == "reflect" and least < 4):
        raise Misfit
    value = g.constant(g.numbers(x.array.dtype, ())) if mode == "constant" and g.flip() else None
    g.add("Pad", x, pads, value, exact=True, mode=mode)


def _cumsum(g: Grower) -> None:
    x = g.pick("fi", low=1)
    if x.array.dtype.name not in ("float32", "float64", "int32", "int64"):
        raise Misfit
    axis = g.constant(np.asarray(g.axis(x), np.int64))
    g.add("CumSum", x, axis, exact=True, exclusive=int(g.flip()), reverse=int(g.flip()))


def _trilu(g: Grower) -> None:
    x = g.pick("fib", low=2)
    k = g.constant(np.asarray(int(g.rng.integers(-2, 3)), np.int64)) if g.flip() else None
    g.add("Trilu", x, k, exact=True, upper=int(g.flip()))


def _one_hot(g: Grower) -> None:
    depth = int(g.choice([2, 5]))
    x = g.indices(depth, g.shape(1, 2))
    values = g.constant(g.numbers("float32", (2,)))
    axis = int(g.rng.integers(-x.array.ndim - 1, x.array.ndim + 1))
    g.add("OneHot", x, g.constant(np.asarray([depth], np.int64)), values, exact=True, axis=axis)


def _arg(g: Grower) -> None:
    x = g.pick("fi", low=1, exact=True)
    g.add(
        g.choice(["ArgMax", "ArgMin"]),
        x,
        exact=True,
        axis=g.axis(x),
        keepdims=int(g.flip()),
        select_last_index=int(g.flip()),
    )


def _topk(g: Grower) -> None:
    x = g.pick("fi", low=1, exact=True)
    axis = g.axis(x)
    if not x.array.size or len(np.unique(x.array)) < x.array.size:
        raise Misfit  # the order of equal elements is the reference's own
    k = g.constant(np.asarray([int(g.rng.integers(1, x.array.shape[axis] + 1))], np.int64))
    g.add("TopK", x, k, exact=True, n=2, axis=axis, largest=int(g.flip()))


def _einsum(g: Grower) -> None:
    x = g.pick("f", low=2)
    letters = "abcdefg"[: x.array.ndim]
    last = x.array.shape[-1]
    y = g.operand(x.array.dtype, (last, int(g.choice([1, 3]))))
    out = letters[:-1] + "z"
    g.add(
        "Einsum",
        x,
        y,
        equation=f"{letters},{letters[-1]}z->{''.join(g.rng.permutation(list(out)))}",
    )


def _convolution(g: Grower) -> tuple[list[int], list[int], dict[str, Any]]:
    """Shapes of x and of the weights, and the attributes that go with them."""
    channels, groups = int(g.choice([1, 1, 2, 4])), int(g.choice([1, 1, 2, 3]))
    rank = int(g.choice([1, 2, 2, 3]))
    kernel = [int(g.choice([1, 2, 3])) for _ in range(rank)]
    dilations = [int(g.choice([1, 1, 2])) for _ in range(rank)]
    largest = (0, 40, 16, 8)[rank]
    size = [int(g.rng.integers(5, largest)) for _ in range(rank)]
    maps = groups * int(g.choice([1, 2, 5]))
    attrs = {
        "group": groups,
        "dilations": dilations,
        "strides": [int(g.choice([1, 1, 2, 3])) for _ in range(rank)],
        "pads": g.rng.integers(0, 2, 2 * rank).tolist(),
    }
    return [int(g.choice([1, 2])), channels * groups, *size], [maps, channels, *kernel], attrs


def _conv(g: Grower) -> None:
    x, w, attrs = _convolution(g)
    bias = g.constant(g.numbers("float32", (w[0],))) if g.flip() else None
    images = g.input(g.numbers("float32", x)) if g.flip() else g.operand("float32", x)
    g.add("Conv", images, g.constant(g.numbers("float32", w)), bias, **attrs)


def _conv_integer(g: Grower) -> None:
    x, w, attrs = _convolution(g)
    zero = g.constant(np.asarray(g.rng.integers(0, 9), np.uint8))
    images, weights = g.input(g.numbers("uint8", x)), g.constant(g.numbers("int8", w))
    g.add("ConvInteger", images, weights, zero, exact=True, **attrs)


def _lp_norm(g: Grower) -> None:
    x = g.pick("f", low=1)
    axis = g.axis(x)
    if np.any(np.abs(x.array).sum(axis=axis) < 0.1):
        raise Misfit
    g.add("LpNormalization", x, axis=axis)  # the reference leaves out the sign for p = 1


GROWTH: list[Callable[[Grower], None]] = [
    _unary, _unary, _positive, _jump, _binary, _binary, _binary, _many, _modulo, _compare, _logic,
    _where, _cast, _clip, _reduce, _reduce, _softmax, _layer_norm, _matmul, _matmul, _gemm,
    _matmul_integer, _quantize, _transpose, _transpose, _reshape, _reshape, _unsqueeze, _concat,
    _split, _slice, _gather, _gather_elements, _gather_nd, _scatter_nd, _expand, _tile, _pad,
    _cumsum, _trilu, _one_hot, _arg, _topk, _einsum, _conv, _conv, _conv_integer,
    _lp_norm,
]  # fmt: skip


# ---- what encoders are made of ------------------------------------------------------------------

WIDTHS = (4, 8, 12)


def _small(g: Grower, shape: Sequence[int]) -> Drawn:
    return g.constant(g.numbers("float32", shape) / np.float32(4))


def _peer(g: Grower, x: Drawn) -> Drawn:
    """A value like x, often x itself."""
    fit = [v for v in g.values if v.array.shape == x.array.shape]
    return x if g.rng.integers(3) == 0 else g.choice(fit)


def _lookup(g: Grower) -> None:
    batch, length = g.inputs[0].array.shape[:2]
    table = g.constant(g.numbers("float32", (9, int(g.choice(WIDTHS)))))
    dtype = g.choice([np.int64, np.int32])
    ids = [v for v in g.inputs if v.kind == "i" and v.array.dtype == dtype]
    drawn = g.rng.integers(-9, 9, (batch, length)).astype(dtype)
    g.add("Gather", table, g.choice(ids) if ids and g.flip() else g.input(drawn), axis=0)


def _project(g: Grower) -> None:
    x = g.pick()
    channels = int(g.choice(WIDTHS))
    g.add("MatMul", x, _small(g, (x.array.shape[-1], channels)))
    if g.flip():
        g.add("Add", g.values[-1], _small(g, (channels,)))


def _combine(g: Grower) -> None:
    x = g.pick()
    y = _peer(g, x)
    op = g.choice(["Add", "Add", "Sub", "Mul", "Min", "Max", "Concat"])
    g.add(op, x, y, **({"axis": -1} if op == "Concat" else {}))


def _choose(g: Grower) -> None:
    x = g.pick()
    g.add("Greater", x, g.constant(np.float32(0.01)))
    g.add("Where", g.values[-1], _peer(g, x), _peer(g, x))
    del g.values[-2]


def _norm(g: Grower) -> None:
    x = g.pick()
    if np.min(np.var(x.array, -1)) < 0.01:
        raise Misfit
    gamma = _small(g, (x.array.shape[-1],))
    g.add("LayerNormalization", x, gamma, gamma if g.flip() else _small(g, gamma.array.shape))


def _activate(g: Grower) -> None:
    g.add(g.choice(["Erf", "Tanh", "Sigmoid", "Relu", "Identity"]), g.pick())


def _attend(g: Grower) -> None:
    """softmax(q k^T / 4) v, each of them any value of one width, in one head or in two."""
    q = g.pick()
    width = q.array.shape[-1]
    parts = [q, _peer(g, q), _peer(g, q)]
    heads = int(g.choice([1, 2]))
    known = len(g.values)
    if heads > 1:
        split = {}
        for part in dict.fromkeys(parts):
            shape = g.constant(np.asarray([0, 0, heads, width // heads], np.int64))
            g.add("Reshape", part, shape)
            g.add("Transpose", g.values[-1], perm=[0, 2, 1, 3])
            split[part] = g.values[-1]
        parts = [split[part] for part in parts]
    q, k, v = parts
    last = list(range(k.array.ndim))
    g.add("Transpose", k, perm=[*last[:-2], last[-1], last[-2]])
    g.add("MatMul", q, g.values[-1])
    g.add("Mul", g.values[-1], g.constant(np.float32(0.25)))
    g.add("Softmax", g.values[-1], axis=-1)
    g.add("MatMul", g.values[-1], v)
    if heads > 1:
        g.add("Transpose", g.values[-1], perm=[0, 2, 1, 3])
        g.add("Reshape", g.values[-1], g.constant(np.asarray([0, 0, width], np.int64)))
    # What is in between has other shapes than the rest.
    del g.values[known:-1]


def _round_trip(g: Grower) -> None:
    """Through 8 bits, with a scale and a zero point that others use too."""
    x = g.pick()
    scale, zero = g.constant(np.float32(1 / 8)), g.constant(np.uint8(128))
    g.add("QuantizeLinear", x, scale, zero)
    g.add("DequantizeLinear", g.values[-1], scale, zero)
    del g.values[-2]


TOKEN_GROWTH: list[Callable[[Grower], None]] = [
    _lookup, _project, _project, _combine, _combine, _choose, _norm, _activate, _attend, _attend,
]  # fmt: skip
