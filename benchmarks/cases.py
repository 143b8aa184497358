"""A case for each kernel of the table: what the tests compare with numpy, and benchmarks time.

A case adds nodes to a graph that has the cases of other kernels too.  Nodes of a kernel in lanes
work on rows of tokens, ``[batch, tokens, channels]``; those of a general kernel on extents that are
no rows, since no batch is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import BATCH, Dim, Graph, bind_shape

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Size:
    """How large cases are: rows, and channels of a row, which are a multiple of 32."""

    tokens: int
    channels: int


class Builder:
    """Where a case puts its nodes."""

    def __init__(self, editor: Editor, size: Size, source: str) -> None:
        self.size = size
        self.rng = np.random.default_rng(0)
        self._editor = editor
        self._source = source

    @property
    def rows(self) -> tuple[Dim, ...]:
        """Extents of rows that can be in lanes."""
        return (BATCH, self.size.tokens, self.size.channels)

    @property
    def plain(self) -> tuple[Dim, ...]:
        """As many elements that are no rows."""
        return self.rows[1:]

    def given(self, dtype: Any, shape: Sequence[Dim], letter: str = "x") -> str:
        """An input, the same for all who ask for such a one."""
        name = f"{letter}_{np.dtype(dtype).name}_{'_'.join(map(str, shape))}"
        known = name in self._editor.values
        return name if known else self._editor.input(name, dtype, shape)

    def number(self, value: Any) -> str:
        """A constant."""
        return self._editor.constant(value)

    def weights(self, keep: float, block: int = 1, largest: int = 127, times: float = 1) -> Array:
        """Int8 [times * channels, channels]; that share of 1 x `block` blocks is not zero."""
        n, k = int(times * self.size.channels), self.size.channels
        w = self.rng.integers(1, largest + 1, (n, k)) * self.rng.choice([-1, 1], (n, k))
        kept = np.repeat(self.rng.random((n, k // block)) < keep, block, axis=1)
        return (w * kept).astype(np.int8)

    def emit(self, op: str, inputs: Iterable[str], **attrs: Any) -> str:
        """A node's first result."""
        return self._editor.emit(op, inputs, source=self._source, **attrs)


@dataclass(frozen=True)
class Case:
    """What a kernel is tested and timed on.

    Attributes:
        build: adds the nodes, returns the results.
        near: how far these may be off, relative to the largest of each.
        tokens: fewest with which the kernel is chosen.
    """

    build: Callable[[Builder], str]
    near: float = 0.0
    tokens: int = 1


def _bytes(keep: float, block: int = 4, largest: int = 127, times: float = 1) -> Case:
    def build(b: Builder) -> str:
        weights = b.weights(keep, block, largest, times)
        w = b.number(weights)
        bias = b.number(b.rng.integers(-999, 999, len(weights)).astype(np.int32))
        scale = b.number(np.float32(0.01))
        return b.emit("qlinear", [b.given(np.uint8, b.rows), w, scale, bias], x_zp=120)

    return Case(build)


def _floats(
    keep: float, block: int = 1, times: float = 1, near: float = 1e-5, coded: int = 0
) -> Case:
    """A layer of floats; `coded`: whole numbers times scales, of so many inputs each."""

    def build(b: Builder) -> str:
        whole = b.weights(keep, block, times=times).astype(np.float32)
        # Powers of 2: whatever bfloat16 can say of the numbers, it can say of the products.
        n, k = whole.shape
        scale = b.rng.choice([1 / 64, 1.0], (n, k // coded) if coded else (n, k))
        scale = np.repeat(scale, coded or 1, axis=1)
        w = b.number(whole * scale.astype(np.float32))
        return b.emit("linear", [b.given(np.float32, b.rows), w])

    return Case(build, near)


def _attention(
    qk: type,
    pv: type,
    *,
    rounded: bool = False,
    lanes: bool = True,
    near: float = 0.0,
    tiles: bool = False,
) -> Case:
    """Scores get a mask; `rounded`: they are bytes before the softmax; `lanes`: in rows.

    With `tiles`, heads are so wide that tiles multiply them fastest, which few tokens need; of
    floats, which are cut in parts first, that takes more tokens.
    """

    def build(b: Builder) -> str:
        tokens = b.size.tokens
        dim = 32 if not tiles else 64 if tokens > 64 else 1024
        heads = -(-b.size.channels // dim)
        batch = BATCH if lanes else 1
        shape, full = (batch, tokens, heads * dim), (batch, heads, tokens, tokens)
        score, prob = Editor(name="score"), Editor(name="prob")
        s, m = score.input("s", np.float32, full), score.input("m", np.float32, (1, 1, 1, tokens))
        if rounded:
            step = [score.constant(np.float32(0.5)), score.constant(np.uint8(128))]
            s = score.emit("dequantize", [score.emit("quantize", [s, *step]), *step])
        if tiles and qk == np.float32:
            s = score.emit("mul", [s, score.constant(np.float32(dim**-0.5))])
        score.outputs = [score.emit("add", [s, m])]
        prob.outputs = [prob.input("p", np.float32, full)]
        if pv != np.float32:
            step = [prob.constant(np.float32(1 / 255)), prob.constant(np.uint8(0))]
            prob.outputs = [prob.emit("quantize", [*prob.outputs, *step])]
        q, k, v = (b.given(t, shape, n) for n, t in zip("qkv", (qk, qk, pv), strict=True))
        zero = 0 if qk == np.float32 else 128
        return b.emit(
            "attention",
            [q, k, v, b.given(np.float32, (1, 1, 1, tokens), "mask")],
            heads=heads,
            score=score.finish(),
            prob=prob.finish(),
            qk_scale=1e-4,
            pv_scale=0.01,
            q_zp=zero,
            k_zp=zero,
            v_zp=0 if pv == np.float32 else 128,
            p_zp=0,
        )

    return Case(build, near, 512 if tiles and (qk, pv) == (np.float32, np.float32) else 1)


def _map(b: Builder) -> str:
    made = b.emit("gelu", [b.given(np.float32, b.rows)], approximate="none")
    # A layer reads it: on its own it would stay row-major.
    return b.emit("linear", [made, b.number(b.weights(0.5).astype(np.float32))])


def _norm(shape: str) -> Case:
    def build(b: Builder) -> str:
        affine = [b.number(b.rng.normal(1, 1, b.size.channels).astype(np.float32)) for _ in "gb"]
        return b.emit("layernorm", [b.given(np.float32, getattr(b, shape)), *affine], eps=1e-5)

    return Case(build, 1e-5)


#: For each kernel in lanes.
IN_LANES: dict[str, Case] = {
    "linear_i8_sparse": _bytes(0.2),
    "linear_i8_sparse_pairs": _bytes(0.2),
    "linear_i8_dense": _bytes(1.0, times=0.5),
    "linear_i8_dense_pairs": _bytes(1.0, largest=64),
    "linear_i8_tiles": _bytes(1.0, times=8),
    "linear_i8_masked": _bytes(0.5, times=8),
    "linear_f32_sparse": _floats(0.1),
    "linear_f32_sparse_runs": _floats(0.2, block=4),
    "linear_f32_dense": _floats(1.0, times=1 / 16),
    "linear_f32_tiles": _floats(1.0, times=16),
    "linear_bf16_sparse": _floats(0.05, block=2, near=0.01),
    "linear_bf16_dense": _floats(1.0, times=1 / 8, near=0.01),
    "linear_bf16_tiles": _floats(1.0, times=16, near=0.01),
    "linear_f32_coded": _floats(1.0, times=8, coded=16),
    "linear_f32_coded_tiles": _floats(1.0, times=16, coded=32),
    "attention_i8_i8_bytes": _attention(np.uint8, np.uint8, rounded=True, near=0.02),
    "attention_i8_i8_pairs_bytes": _attention(np.uint8, np.uint8, rounded=True, near=0.02),
    "attention_i8_i8": _attention(np.uint8, np.uint8, near=0.02),
    "attention_i8_f32": _attention(np.uint8, np.float32, near=1e-5),
    "attention_f32_i8": _attention(np.float32, np.uint8, near=0.02),
    "attention_f32_f32": _attention(np.float32, np.float32, near=1e-5),
    "attention_i8_i8_tiles_bytes": _attention(
        np.uint8, np.uint8, rounded=True, near=0.02, tiles=True
    ),
    "attention_f32_f32_tiles": _attention(np.float32, np.float32, near=1e-5, tiles=True),
    "attention_i8_i8_tiles": _attention(np.uint8, np.uint8, near=0.02, tiles=True),
    "attention_bf16_bf16": _attention(np.float32, np.float32, near=0.02),
    "attention_bf16_bf16_tiles": _attention(np.float32, np.float32, near=0.02, tiles=True),
    "attention_i8_bf16": _attention(np.uint8, np.float32, near=0.02),
    "attention_i8_bf16_tiles": _attention(np.uint8, np.float32, near=0.02, tiles=True),
    "attention_bf16_i8": _attention(np.float32, np.uint8, near=0.02),
    "attention_bf16_i8_tiles": _attention(np.float32, np.uint8, near=0.02, tiles=True),
    "map_layernorm": _norm("rows"),
    "map": Case(_map, 1e-5),
    "unpack": _norm("rows"),
}


def _one(op: str, near: float = 0.0, dtype: Any = np.float32, **attrs: Any) -> Case:
    """A node that reads one input."""
    return Case(lambda b: b.emit(op, [b.given(dtype, b.plain)], **attrs), near)


def _layer(op: str, *more: Any, **attrs: Any) -> Case:
    """A layer on bytes that are no rows."""

    def build(b: Builder) -> str:
        operands = [b.number(b.weights(1.0)), *map(b.number, more)]
        return b.emit(op, [b.given(np.uint8, b.plain), *operands], **attrs)

    return Case(build)


def _indexed(op: str, columns: int = 0, **attrs: Any) -> Case:
    """A node that looks up rows, or so many elements of each row."""

    def build(b: Builder) -> str:
        tokens, width = b.size.tokens, columns or 1
        names = [b.given(np.float32, b.plain), b.given(np.int64, (tokens, width), "index")]
        if op.startswith("scatter"):
            shape = (tokens, columns) if columns else b.plain
            names.append(b.given(np.float32, shape, "new"))
        return b.emit(op, names, **attrs)

    return Case(build, 1e-6)


def _expand(b: Builder) -> str:
    return b.emit("expand", [b.given(np.float32, (1, b.size.channels))], shape=b.plain)


def _slice(b: Builder) -> str:
    end = b.size.channels // 2
    return b.emit(
        "slice", [b.given(np.float32, b.plain)], starts=(0,), ends=(end,), axes=(1,), steps=(1,)
    )


def _reshape(b: Builder) -> str:
    x = b.given(np.float32, (*b.rows[:2], 8, b.size.channels // 8))
    x = b.emit("reshape", [x], shape=b.rows)
    # A layer reads it, and wants it in lanes: on its own it would be the same bytes.
    return b.emit("linear", [x, b.number(b.weights(0.5).astype(np.float32))])


def _split(b: Builder) -> str:
    half = b.size.channels // 2
    return b.emit("split", [b.given(np.float32, b.plain)], axis=1, sizes=(half, half))


def _product(op: str, dtype: Any, near: float = 0.0) -> Case:
    """Two operands that are known at run time only."""

    def build(b: Builder) -> str:
        square = (b.size.channels, b.size.channels)
        return b.emit(op, [b.given(dtype, b.plain), b.given(dtype, square, "y")])

    return Case(build, near)


def _convolution(op: str, dtype: Any, near: float = 0.0) -> Case:
    """One line for each channel, of which each result takes 3 of all."""

    def build(b: Builder) -> str:
        n = b.size.channels
        w = b.rng.integers(-9, 10, (n, n, 3)).astype(np.int8 if dtype == np.uint8 else dtype)
        x = b.given(dtype, (1, n, b.size.tokens))
        return b.emit(op, [x, b.number(w)], strides=(1,), dilations=(1,), groups=1)

    return Case(build, near)


def _lengths(b: Builder) -> str:
    return b.emit("lengths", [b.given(np.float32, b.rows)], length=b.size.tokens)


#: For each general kernel.
GENERAL: dict[str, Case] = {
    "general_elementwise": _one("exp", 1e-6),
    "general_reshape": Case(_reshape, 1e-5),
    "general_transpose": _one("transpose", perm=(1, 0)),
    "general_expand": Case(_expand),
    "general_concat": Case(
        lambda b: b.emit("concat", [b.given(np.float32, b.plain, n) for n in "xy"], axis=1)
    ),
    "general_slice": Case(_slice),
    "general_gather": _indexed("gather", axis=0),
    "general_split": Case(_split),
    "general_gather_elements": _indexed("gather_elements", 8, axis=1),
    "general_gather_nd": _indexed("gather_nd", batch_dims=0),
    "general_scatter_elements": _indexed("scatter_elements", 8, axis=1, reduction="add"),
    "general_scatter_nd": _indexed("scatter_nd", reduction="add"),
    "general_argmax": _one("argmax", axis=1, keepdims=False, last=False),
    "general_topk": _one("topk", axis=1, k=10, largest=True),
    "general_reduce": _one("reduce_sum", 1e-6, axes=(1,), keepdims=False),
    "general_extremes": _one("extremes"),
    "general_softmax": _one("softmax", 1e-5, axis=1),
    "general_cumsum": _one("cumsum", 1e-5, axis=1, exclusive=False, reverse=False),
    "general_layernorm": _norm("plain"),
    "general_matmul": _product("matmul", np.float32, 1e-5),
    "general_linear": _product("linear", np.float32, 1e-5),
    "general_linear_integer": _layer("linear_integer"),
    "general_matmul_integer": _product("matmul_integer", np.uint8),
    "general_qlinear": _layer("qlinear", np.float32(0.01), x_zp=120),
    "general_conv": _convolution("conv", np.float32, 1e-5),
    "general_conv_integer": _convolution("conv_integer", np.uint8),
    "general_attention": _attention(np.float32, np.float32, lanes=False, near=1e-5),
    "general_lengths": Case(_lengths),
}

CASES: Mapping[str, Case] = {**IN_LANES, **GENERAL}


def graph(kernels: Iterable[str], size: Size) -> tuple[Graph, dict[str, str]]:
    """A graph with the cases of these kernels, whose nodes are named for them, and their results.

    Raises:
        KeyError: one has no case.
    """
    editor = Editor(name="kernels", length=size.tokens)
    # From which the batch size is learned, where nobody else says it.
    editor.input("batch", np.uint8, (BATCH,))
    results = {name: CASES[name].build(Builder(editor, size, name)) for name in kernels}
    editor.outputs = list(results.values())
    return editor.finish(), results


def inputs(graph: Graph, batch: int) -> list[Array]:
    """Random inputs; indices are among the first 4."""
    rng = np.random.default_rng(1)
    made: list[Array] = []
    for value in map(graph.values.__getitem__, graph.inputs):
        shape = bind_shape(value.shape, batch)
        if value.dtype.kind == "f":
            made.append(rng.standard_normal(shape).astype(value.dtype))
        else:
            info = np.iinfo(value.dtype)
            low, high = (info.min, info.max + 1) if info.bits == 8 else (0, 4)
            made.append(rng.integers(low, high, shape).astype(value.dtype))
    return made
