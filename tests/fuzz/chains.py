"""Short chains of ONNX nodes over the tokens of sequences: what encoders write out, and what is
nearly that.

A pass recognizes a pattern by its nodes and constants.  Each motif here is such a pattern with,
now and then, one thing changed (another axis, another constant, a value that others read too), so
that what is no longer the pattern, but looks like it, is computed as it is written.  Between
motifs stand single operators.  Values that are quantized are exact in float32, so that what
rounding makes of them is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.fuzz.graphs import Drawn, Grower, Misfit

BATCH, LENGTH = 3, 11
WIDTHS = (4, 6, 8, 12, 24, 40)

Motif = Callable[["Chain"], None]


@dataclass
class Chain(Grower):
    """A chain in the making.

    Attributes:
        fixed: whether something stored is as long as the sequences, which then have this length.
    """

    fixed: bool = False

    def fixed_length(self) -> int:
        """The sequences' length, for what is stored."""
        self.fixed = True
        return LENGTH

    def now(self, op: str, *operands: Drawn | None, **more: Any) -> Drawn:
        """Append a node; returns its last output."""
        self.add(op, *operands, **more)
        return self.values[-1]

    def rarely(self) -> bool:
        return not self.rng.integers(10)

    def swapped(self, a: Drawn, b: Drawn) -> tuple[Drawn, Drawn]:
        """Two operands in either order."""
        return (a, b) if self.flip() else (b, a)

    def mostly(self, usual: Any, *others: Any) -> Any:
        """The usual one; one of the others now and then."""
        return self.choice(others) if self.rarely() else usual

    def number(self, value: float) -> Drawn:
        """A stored number, in one of the shapes that exporters give it."""
        shape = self.choice([(), (), (1,), (1, 1), (1, 1, 1)])
        return self.constant(np.full(shape, value, np.float32))

    def vector(self, width: int, exact: bool = False) -> Drawn:
        """A stored vector over channels, or something else that broadcasts."""
        shape = self.mostly((width,), (1, width), (1, 1, width), (0, width), (1,), ())
        shape = tuple(extent or self.fixed_length() for extent in shape)
        array = self.numbers("float32", shape)
        return self.constant(array if exact else array / np.float32(4))

    def weights(self, rows: int, columns: int) -> np.ndarray:
        """Weights [rows, columns], pruned in one of several ways."""
        array = self.numbers("float32", (rows, columns)) / np.float32(4)
        way = int(self.rng.integers(5))
        if way == 0:
            blocks = self.rng.random((-(-rows // 4), columns)) < 0.4
            array *= blocks.repeat(4, 0)[:rows]
        elif way == 1:
            array[:, self.rng.random(columns) < 0.4] = 0
        elif way == 2:
            array[self.rng.random(rows) < 0.4] = 0
        elif way == 3:
            array *= self.rng.random(array.shape) < 0.2
        return array

    def model(self) -> onnx.ModelProto:
        """The chain as a model of any batch and, if nothing is stored for one, any length."""
        model = super().model()
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            if len(dims) and dims[0].dim_value == BATCH:
                dims[0].dim_param = "batch"
            if len(dims) > 1 and dims[1].dim_value == LENGTH and not self.fixed:
                dims[1].dim_param = "sequence"
        return model

    def expected(self) -> list[Drawn]:
        """The model's outputs, but for extents that only part of a batch or a sequence has."""
        found = [v for v in super().expected() if v.array.shape[:1] == (BATCH,)]
        return [v for v in found if v.array.shape[1] not in (5, 6, LENGTH - 1)]

    def tokens(self) -> Drawn:
        """A value [batch, length, channels]."""
        fit = [v for v in self.values if v.array.dtype == np.float32 and v.array.ndim == 3]
        fit = [v for v in fit if v.array.shape[:2] == (BATCH, LENGTH)]
        fit = [v for v in fit if v.array.shape[2] in WIDTHS]
        if not fit:
            raise Misfit
        return fit[-1 - int(min(self.rng.geometric(0.5) - 1, len(fit) - 1))]

    def like(self, x: Drawn) -> Drawn:
        """A value of the shape of another."""
        fit = [v for v in self.values if v.array.shape == x.array.shape]
        fit = [v for v in fit if v.array.dtype == x.array.dtype]
        return self.choice(fit)

    def show(self, *values: Drawn) -> None:
        """Make one of the values an output now and then."""
        if self.rarely():
            self.shown.add(self.choice(values).name)

    def axes(self, *axes: int) -> Drawn:
        return self.constant(np.asarray(axes, np.int64))


# ---- motifs -------------------------------------------------------------------------------------


def layer_norm(g: Chain) -> None:
    x = g.tokens()
    width = x.array.shape[-1]
    axis = g.mostly(-1, 2, 1)
    if np.min(np.var(x.array, axis)) < 0.05:
        raise Misfit
    mean = g.now("ReduceMean", x, g.axes(axis), keepdims=1)
    sign = g.mostly(False, True)
    centred = g.now("Sub", *((mean, x) if sign else (x, mean)))
    again = g.now("Sub", x, mean) if g.rarely() else centred
    base = g.mostly(again, x)
    form = int(g.rng.integers(3))
    if form == 0:
        square = g.now("Pow", base, g.number(g.mostly(2.0, 3.0, 1.0)))
    else:
        square = g.now("Mul", base, g.mostly(base, x))
    variance = g.now("ReduceMean", square, g.axes(g.mostly(axis, -1)), keepdims=1)
    shifted = g.now("Add", *g.swapped(variance, g.number(g.mostly(1e-5, 0.5, 1e-12, 0.0))))
    if np.min(shifted.array) < 0.05:
        raise Misfit
    if form == 1 and g.flip():
        root = g.now("Pow", shifted, g.number(g.mostly(0.5, -0.5, 1.0)))
    else:
        root = g.now("Sqrt", shifted)
    if g.flip():
        y = g.now("Div", centred, root)
    else:
        y = g.now("Mul", *g.swapped(centred, g.now("Reciprocal", root)))
    if not g.rarely():
        y = g.now("Mul", *g.swapped(y, g.vector(width)))
    if not g.rarely():
        g.now("Add", *g.swapped(y, g.vector(width)))
    g.show(mean, centred, variance, root, y)


def gelu(g: Chain) -> None:
    x = g.tokens()
    kind = int(g.rng.integers(3))
    if kind == 0:
        inner = g.now("Div", x, g.number(g.mostly(2**0.5, 1.5, 2.0)))
        gate = g.now("Erf", inner)
    elif kind == 1:
        cube = g.now("Pow", x, g.number(g.mostly(3.0, 2.0)))
        cube = g.now("Mul", cube, g.number(g.mostly(0.044715, 0.05)))
        inner = g.now("Add", *g.swapped(x, cube))
        inner = g.now("Mul", inner, g.number(g.mostly(0.7978845608, 0.8)))
        gate = g.now("Tanh", inner)
    else:
        inner = g.now("Mul", *g.swapped(x, g.number(g.mostly(1.702, 1.0, -1.0))))
        gate = g.now("Sigmoid", inner)
        g.now("Mul", *g.swapped(g.mostly(x, g.like(x)), gate))
        g.show(inner, gate)
        return
    gate = g.now("Add", gate, g.number(g.mostly(1.0, 2.0, -1.0)))
    other = g.mostly(x, g.like(x))
    half = g.number(g.mostly(0.5, 0.25, -0.5))
    order = int(g.rng.integers(3))
    first = (other, gate, half)
    a, b, c = (first, (other, half, gate), (gate, half, other))[order]
    between = g.now("Mul", *g.swapped(a, b))
    g.now("Mul", *g.swapped(between, c))
    g.show(inner, gate, between)


def project(g: Chain) -> None:
    """A layer, or two whose channels between them may be dead."""
    x = g.tokens()
    for _ in range(int(g.choice([1, 1, 2]))):
        width, out = x.array.shape[-1], int(g.choice(WIDTHS))
        x = g.now("MatMul", x, g.constant(g.weights(width, out)))
        if g.flip():
            x = g.now("Add", *g.swapped(x, g.vector(out)))
        if g.flip():
            x = g.now(g.choice(["Relu", "Tanh", "Sigmoid", "Erf", "Neg"]), x)
        if g.rarely():
            x = g.now("Mul", x, g.vector(out))
        if np.max(np.abs(x.array)) > 30:
            raise Misfit
        g.show(x)


def _mask(g: Chain) -> Drawn:
    """A mask over keys as an input: ones and, from somewhere on, zeros."""
    known = [v for v in g.inputs if v.kind == "i" and v.array.max() <= 1]
    if known and g.flip():
        return g.choice(known)
    real = g.rng.integers(1, LENGTH + 1, (BATCH, 1))
    return g.input((np.arange(LENGTH) < real).astype(g.choice([np.int64, np.int32])))


def _masked(g: Chain, scores: Drawn) -> Drawn:
    """Scores [batch, heads, length, length] of which some are left out."""
    form = int(g.rng.integers(5))
    if form == 0:  # a bias that is stored
        heads = scores.array.shape[1]
        n = g.fixed_length()
        shape = g.choice([(n, n), (1, heads, 1, n), (heads, n, 1), (n,)])
        return g.now("Add", *g.swapped(scores, g.constant(g.numbers("float32", shape))))
    if form == 1:  # causal
        length = g.fixed_length()
        later = np.triu(np.ones((length, length), bool), g.mostly(1, 2, 0))
        later[:, 0] = False
        if g.flip():
            low = g.constant(np.float32(g.mostly(-200, -1)))
            return g.now("Where", g.constant(later), low, scores)
        return g.now("Add", scores, g.constant(np.where(later, -200, 0).astype(np.float32)))
    mask = _mask(g)
    axes = g.mostly((1, 2), (1, 3))
    if form == 2:
        wide = g.now("Unsqueeze", mask, g.axes(*axes), exact=True)
        if g.flip():
            none = g.now("Equal", wide, g.constant(np.zeros((), wide.array.dtype)), exact=True)
            return g.now("Where", none, g.number(g.mostly(-200.0, -1.0)), scores)
        some = g.now("Cast", wide, exact=True, to=9)
        return g.now("Where", some, scores, g.number(-200.0))
    wide = g.now("Unsqueeze", mask, g.axes(*axes), exact=True)
    wide = g.now("Cast", wide, exact=True, to=1)
    left = g.now("Sub", g.number(1.0), wide, exact=True)
    low = g.choice([-200.0, -1e4, -3e38])
    low = g.now("Mul", *g.swapped(left, g.number(g.mostly(low, -2.0, 3.0))), tame=False)
    return g.now("Add", *g.swapped(scores, low), tame=False)


def attention(g: Chain) -> None:
    x = g.tokens()
    width = x.array.shape[-1]
    heads = int(g.choice([n for n in (1, 2, 4) if width % n == 0]))
    parts = [x, g.mostly(x, g.like(x)), g.mostly(x, g.like(x))]
    if g.flip():
        parts = [g.now("MatMul", p, g.constant(g.weights(width, width))) for p in parts]
    elif all(p.exact for p in parts) and g.flip():  # products of bytes
        parts = [_through_bytes(g, p) for p in parts]
    shape = g.constant(np.asarray([0, 0, heads, width // heads], np.int64))
    perms = [(0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)]
    split = []
    for part, perm in zip(parts, perms, strict=True):
        apart = g.now("Reshape", part, shape)
        split.append(g.now("Transpose", apart, perm=list(perm)))
    q, k, v = split
    scale = float(g.choice([0.25, 0.5, 1.0]))
    where = int(g.rng.integers(4))
    if where == 0:
        q = g.now("Mul", q, g.number(scale))
    if where == 1:
        k = g.now("Div", k, g.number(2.0))
    scores = g.now("MatMul", q, k)
    if where == 2:
        scores = g.now("Div", scores, g.number(g.choice([2.0, -2.0])))
    if np.max(np.abs(scores.array)) > 60:
        raise Misfit
    masked = _masked(g, scores) if g.flip() else scores
    p = g.now("Softmax", masked, axis=g.mostly(-1, 3, 2, 1))
    chances = p
    if g.rarely():
        p = g.now("Mul", p, g.number(g.choice([2.0, 0.5])))
    o = g.now("MatMul", p, v)
    merged = g.now("Transpose", o, perm=g.mostly([0, 2, 1, 3], [0, 1, 2, 3], [0, 2, 3, 1]))
    g.now("Reshape", merged, g.constant(np.asarray([0, 0, -1], np.int64)))
    if g.values[-1].array.shape != x.array.shape:
        g.now(
            "Reshape", g.values[-1], g.constant(np.asarray([-1, g.fixed_length(), width], np.int64))
        )
    g.show(q, k, scores, masked, chances, p, o)


def _codes(g: Chain) -> tuple[np.ndarray, np.ndarray]:
    """A scale and a zero point of activations."""
    kind = g.choice([np.uint8, np.int8])
    zero = kind(g.choice([0, 128, 131, 7]) if kind is np.uint8 else g.choice([0, 0, 3, -5]))
    return np.float32(g.choice([1 / 8, 1 / 4, 1 / 16])), zero


def _through_bytes(g: Chain, x: Drawn) -> Drawn:
    """What is exact, rounded to bytes and back."""
    if not x.exact:
        raise Misfit
    scale, zero = _codes(g)
    stored = (g.constant(scale), g.constant(zero))
    codes = g.now("QuantizeLinear", x, *stored, exact=True)
    other = _codes(g) if g.rarely() else (scale, zero)
    if other[1].dtype == zero.dtype:
        stored = (g.constant(other[0]), g.constant(other[1]))
    return g.now("DequantizeLinear", codes, *stored, exact=True)


def quantized(g: Chain) -> None:
    """A layer of bytes, of what is exact."""
    x = g.tokens()
    back = _through_bytes(g, x)
    width, out = x.array.shape[-1], int(g.choice(WIDTHS))
    kind = g.mostly(np.int8, np.uint8)
    whole = np.rint(g.weights(width, out) * 8)
    each = g.flip()
    zeros = np.zeros(out if each else (), kind)
    if kind is np.uint8:
        zeros = zeros + kind(128)
    elif g.rarely():
        zeros = g.rng.integers(-3, 4, zeros.shape).astype(kind)
    info = np.iinfo(kind)
    w = np.clip(whole + zeros, info.min, info.max).astype(kind)
    scales = np.asarray(g.rng.choice([1 / 8, 1 / 4, 1 / 16], zeros.shape), np.float32)
    turned = g.flip()
    axis = {"axis": 0 if turned else 1} if each else {}
    w = np.ascontiguousarray(w.T) if turned else w
    weights = g.now(
        "DequantizeLinear", g.constant(w), g.constant(scales), g.constant(zeros), exact=True, **axis
    )
    if turned:
        weights = g.now("Transpose", weights, exact=True, perm=[1, 0])
    y = g.now("MatMul", *((back, weights)), exact=True)
    if g.flip():
        y = g.now("Add", *g.swapped(y, g.vector(out, exact=True)), exact=True)
    if g.flip():
        y = g.now("Relu", y, exact=True)
    g.show(back, y)


def dynamic(g: Chain) -> None:
    """A layer of bytes whose range is that of all tokens."""
    x = g.tokens()
    if not x.exact or np.ptp(x.array) == 0:
        raise Misfit
    g.add("DynamicQuantizeLinear", x, n=3)
    codes, scale, zero = g.values[-3:]
    width, out = x.array.shape[-1], int(g.choice(WIDTHS))
    w = np.rint(g.weights(width, out) * 8).astype(np.int8)
    other = g.constant(np.int8(g.mostly(0, 2)))
    sums = g.now("MatMulInteger", codes, g.constant(w), zero, other)
    wide = g.now("Cast", sums, to=1, tame=False)
    scales = g.constant(
        np.asarray(g.rng.choice([1 / 8, 1 / 4], g.choice([(), (out,)])), np.float32)
    )
    factor = g.now("Mul", *g.swapped(scale, scales))
    y = g.now("Mul", *g.swapped(wide, factor))
    if g.flip():
        g.now("Add", *g.swapped(y, g.vector(out)))


def lookup(g: Chain) -> None:
    """Rows of a table, by ids."""
    table = g.numbers("float32", (9, int(g.choice(WIDTHS))))
    if g.flip():
        table = np.clip(np.rint(table * 16), -100, 100) * g.numbers("float32", (9, 1))
    known = [v for v in g.inputs if v.kind == "i" and v.array.max() > 1]
    ids = g.rng.integers(0, 9, (BATCH, LENGTH)).astype(g.choice([np.int64, np.int32]))
    ids[0, 0] = 8
    given = g.choice(known) if known and g.flip() else g.input(ids)
    y = g.now("Gather", g.constant(table.astype(np.float32)), given, exact=True, axis=0)
    x = [v for v in g.values if v.array.shape == y.array.shape and v.kind == "f" and v is not y]
    if x:
        g.now("Add", *g.swapped(g.choice(x), y), exact=True)


# ---- single operators ---------------------------------------------------------------------------


def round_trip(g: Chain) -> None:
    _through_bytes(g, g.tokens())


def typed(g: Chain) -> None:
    """Through another type and back."""
    x = g.tokens()
    to = g.choice([6, 7, 9, 11])
    if not x.exact and to in (6, 7, 9):
        raise Misfit
    y = g.now("Cast", x, exact=True, to=to)
    if y.kind == "i" and g.flip():
        y = g.now(g.choice(["Add", "Mul", "Max"]), y, g.constant(np.asarray(2, y.array.dtype)),
                  exact=True)  # fmt: skip
    g.now("Cast", y, exact=True, to=1)


def fill(g: Chain) -> None:
    """Tokens that a mask leaves out hold a number."""
    x = g.tokens()
    mask = g.now("Unsqueeze", _mask(g), g.axes(2), exact=True)
    if g.flip():
        some = g.now("Cast", mask, exact=True, to=9)
        g.now("Where", some, *g.mostly((x, g.number(0.0)), (x, g.number(2.0))), exact=True)
    else:
        g.now("Mul", *g.swapped(x, g.now("Cast", mask, exact=True, to=1)), exact=True)


def combine(g: Chain) -> None:
    x = g.tokens()
    op = g.choice(["Add", "Sub", "Mul", "Min", "Max"])
    y = g.like(x) if g.flip() else g.vector(x.array.shape[-1])
    g.now(op, *g.swapped(x, y), exact=True)


def neutral(g: Chain) -> None:
    """What does nothing, or nearly so."""
    x = g.tokens()
    op, value = g.choice([("Add", 0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0), ("Pow", 1.0),
                          ("Mul", 0.0), ("Mul", -1.0), ("Div", 2.0), ("Pow", 2.0), ("Pow", 0.0),
                          ("Max", -np.inf), ("Min", np.inf), ("Max", 0.0)])  # fmt: skip
    shape = g.mostly((), (1,), (1, 1), (x.array.shape[-1],), (1, 1, 1, 1))
    y = g.constant(np.full(shape, value, np.float32))
    g.now(op, *((x, y) if op in ("Sub", "Div", "Pow") else g.swapped(x, y)), exact=op != "Div")


def single(g: Chain) -> None:
    op = g.choice(["Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Erf", "Exp", "Identity", "Cast"])
    x = g.tokens()
    if op == "Exp" and np.max(x.array) > 3:
        raise Misfit
    more = {"to": 1} if op == "Cast" else {}
    g.now(op, x, exact=op in ("Relu", "Neg", "Abs", "Identity", "Cast"), **more)


def choose(g: Chain) -> None:
    x = g.tokens()
    if not x.exact:
        raise Misfit
    which = g.now("Greater", x, g.number(0.5), exact=True)
    other = g.like(x) if g.flip() else g.number(g.choice([0.0, -1.0]))
    g.now("Where", which, *g.swapped(x, other), exact=True)


def softmax(g: Chain) -> None:
    x = g.tokens()
    axis = g.mostly(-1, 2, 1)
    if g.flip():
        g.now("Softmax", x, axis=axis)
        return
    top = g.now("ReduceMax", x, g.axes(axis), keepdims=1, exact=True)
    e = g.now("Exp", g.now("Sub", x, g.mostly(top, g.number(1.0))))
    total = g.now("ReduceSum", e, g.axes(g.mostly(axis, -1)), keepdims=1)
    g.now("Div", e, total)


def lay_out(g: Chain) -> None:
    """Into another layout, something done there, and back or elsewhere."""
    x = g.tokens()
    width = x.array.shape[-1]
    way = int(g.rng.integers(5))
    if way == 0:
        y = g.now("Transpose", x, exact=True, perm=[0, 2, 1])
        y = _touched(g, y)
        g.now("Transpose", y, exact=True, perm=g.mostly([0, 2, 1], [0, 1, 2]))
        if g.values[-1].array.shape != x.array.shape:
            g.now(
                "Reshape",
                g.values[-1],
                g.constant(np.asarray([-1, g.fixed_length(), width])),
                exact=True,
            )
    elif way == 1:
        y = g.now("Reshape", x, g.constant(np.asarray([0, 0, 2, width // 2])), exact=True)
        y = g.now(
            "Transpose", _touched(g, y), exact=True, perm=g.mostly([0, 1, 3, 2], [0, 2, 1, 3])
        )
        g.now("Reshape", y, g.constant(np.asarray([0, 0, -1])), exact=True)
        if g.values[-1].array.shape[1] != LENGTH:
            g.now(
                "Reshape",
                g.values[-1],
                g.constant(np.asarray([-1, g.fixed_length(), width])),
                exact=True,
            )
    elif way == 2:
        y = g.now("Reshape", x, g.constant(np.asarray([-1, width])), exact=True)
        y = g.now("MatMul", _touched(g, y), g.constant(g.weights(width, width)))
        g.now("Reshape", y, g.constant(np.asarray([-1, g.fixed_length(), width])))
    elif way == 3:
        half = width // 2
        cut = g.constant(np.asarray(g.mostly([half, width - half], [1, width - 1])))
        g.add("Split", x, cut, exact=True, n=2, axis=-1)
        a, b = g.values[-2:]
        g.now("Concat", *g.mostly((b, a), (a, b)), exact=True, axis=-1)
    else:
        step = g.mostly(1, -1)
        ends = (0, 2**31 - 1) if step > 0 else (-1, -(2**31))
        if g.flip():
            ends = (1, 2**31 - 1) if step == 1 else (2**31 - 1, 0)
        if g.rarely():
            step *= 2
            g.fixed_length()  # half of it is no extent of a model of any length
        bounds = [g.axes(v) for v in (*ends, 1, step)]
        y = g.now("Slice", x, *bounds, exact=True)
        if y.array.shape[1] < LENGTH:
            first = g.now("Gather", x, g.axes(g.mostly(0, -1)), exact=True, axis=1)
            g.now("Concat", *g.swapped(first, y), exact=True, axis=1)


def _touched(g: Chain, x: Drawn) -> Drawn:
    """A value after something elementwise, or as it is."""
    way = int(g.rng.integers(4))
    if way == 0:
        shape = x.array.shape[-1:]
        g.fixed |= shape == (LENGTH,)
        return g.now("Add", x, g.constant(g.numbers("float32", shape)), exact=True)
    if way == 1:
        return g.now(g.choice(["Relu", "Neg"]), x, exact=True)
    if way == 2:
        return g.now("Mul", x, g.number(0.5), exact=True)
    return x


def pool(g: Chain) -> None:
    """Over tokens, and back on all of them."""
    x = g.tokens()
    way = int(g.rng.integers(3))
    if way == 0:
        y = g.now("Gather", x, g.axes(0), exact=True, axis=1)
    elif way == 1:
        mask = g.now("Unsqueeze", _mask(g), g.axes(2), exact=True)
        mask = g.now("Cast", mask, exact=True, to=1)
        total = g.now("ReduceSum", g.now("Mul", x, mask), g.axes(1), keepdims=1)
        count = g.now("ReduceSum", mask, g.axes(1), keepdims=1)
        y = g.now("Div", total, count)
    else:
        y = g.now(g.choice(["ReduceMean", "ReduceMax", "ReduceSum"]), x, g.axes(1), keepdims=1)
    if g.flip():
        g.now("Sub", x, y)


MOTIFS: tuple[Motif, ...] = (
    layer_norm, gelu, project, attention, attention, quantized, quantized, dynamic, lookup,
)  # fmt: skip
SINGLE: tuple[Motif, ...] = (
    combine, combine, neutral, single, choose, softmax, lay_out, lay_out, pool, round_trip, typed,
    fill,
)  # fmt: skip


def chain(seed: int) -> Chain:
    """A random chain of two to six parts; its inputs are [batch, length, channels] and masks."""
    g = Chain(np.random.default_rng((20, seed)))
    width = int(g.choice(WIDTHS))
    for _ in range(int(g.choice([1, 1, 2]))):
        g.values.append(g.input(g.numbers("float32", (BATCH, LENGTH, width))))
    wanted: Sequence[Motif] = [
        g.choice(MOTIFS if g.flip() else SINGLE) for _ in range(int(g.rng.integers(2, 7)))
    ]
    for motif in wanted:
        for _ in range(4):
            lists: list[list[Any]] = [g.nodes, g.inputs, g.constants, g.values]
            sizes, shown = [len(part) for part in lists], set(g.shown)
            try:
                motif(g)
                break
            except Misfit:
                for part, size in zip(lists, sizes, strict=True):
                    del part[size:]
                g.shown = shown
                motif = g.choice(SINGLE)
    if not g.expected():
        combine(g)
    return g
