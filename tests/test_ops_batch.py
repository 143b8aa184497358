"""Batches in pieces: what :func:`separable` says of every op, against what is computed.

A draw is one node, its operands and attributes: shapes are random, and so is where the batch
stands.  Operands with a batch extent are inputs of the graph, others are constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, BatchDim, Dim, Graph, Shape, Value, bind_shape, element_count
from sparsec.compiler.lowering.batch import separable
from sparsec.compiler.ops import OPS, infer
from tests.lane_harness import compile_graph
from tests.passes_support import has_batch

F, I32, I64, U8, S8, B8 = np.float32, np.int32, np.int64, np.uint8, np.int8, np.bool_
LENGTH = 3
"""Of the sequences that `lengths` counts: no extent is longer."""


@dataclass(frozen=True)
class Draw:
    """Operands (None: absent) and attributes of one node."""

    operands: Sequence[tuple[Any, Shape] | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def extents(r: Random, low: int = 1, high: int = 3) -> Shape:
    """A shape that mostly begins with the batch.  Extents are not 1."""
    first: Dim = BATCH if r.random() < 0.8 else r.randint(2, 3)
    rest = (BATCH if r.random() < 0.1 else r.randint(2, 3) for _ in range(r.randint(low, high) - 1))
    return (first, *rest)


def narrowed(r: Random, shape: Shape) -> Shape:
    """A shape that broadcasts to another one."""
    own = tuple(1 if r.random() < 0.2 else d for d in shape)
    return own[r.randint(0, len(own)) :] if r.random() < 0.3 else own


def accepted(op: str) -> list[tuple[Any, ...]]:
    """Types of operands that an elementwise op takes."""
    found: list[tuple[Any, ...]] = []
    for types in ((t,) * n for n in (1, 2) for t in (F, I32, U8, B8)):
        try:
            infer(op, [Value("", np.dtype(t), (2,)) for t in types], {"to": "float32"})
        except (TypeError, ValueError):
            continue
        found.append(types)
    return found


def elementwise(op: str) -> Callable[[Random], Draw]:
    choices = accepted(op) or [(B8, F, F), (B8, I32, I32)]

    def draw(r: Random) -> Draw:
        shape = extents(r)
        operands = [(t, narrowed(r, shape)) for t in r.choice(choices)]
        return Draw(operands, {"to": r.choice(["int32", "float32"])} if op == "cast" else {})

    return draw


def per_axis(first: Any) -> Callable[[Random], Draw]:
    def draw(r: Random) -> Draw:
        shape = extents(r)
        axis = r.randrange(len(shape))
        along = r.choice([(), (shape[axis],)])
        return Draw([(first, shape), (F, along), (U8, along)], {"axis": axis})

    return draw


def along(operands: int = 1, **attrs: Callable[[Random], Any]) -> Callable[[Random], Draw]:
    """Ops with an ``axis``."""

    def draw(r: Random) -> Draw:
        shape = extents(r)
        drawn = {name: value(r) for name, value in attrs.items()}
        return Draw([(F, shape)] * operands, {"axis": r.randrange(len(shape)), **drawn})

    return draw


def flag(r: Random) -> bool:
    return r.random() < 0.5


def reduced(r: Random) -> Draw:
    shape = extents(r)
    axes = tuple(a for a in range(len(shape)) if r.random() < 0.4)
    return Draw([(F, shape)], {"axes": axes, "keepdims": flag(r)})


def reshape(r: Random) -> Draw:
    shape = extents(r)
    rows = r.choice([1, 2, 3])
    inner = r.choice([2, 3, 4])
    each = rows * inner
    shape = r.choice([(BATCH, each), (BatchDim(rows), inner), (BATCH, rows, inner), (each, BATCH)])
    options = [(BATCH, inner, rows), (BatchDim(each),), (rows, BatchDim(inner)), (BATCH, each)]
    return Draw([(F, shape)], {"shape": r.choice(options)})


def transpose(r: Random) -> Draw:
    shape = extents(r)
    return Draw([(F, shape)], {"perm": tuple(r.sample(range(len(shape)), len(shape)))})


def expand(r: Random) -> Draw:
    shape = extents(r)
    return Draw([(F, narrowed(r, shape))], {"shape": shape})


def concat(r: Random) -> Draw:
    shape = extents(r)
    axis = r.randrange(len(shape))
    other = shape if flag(r) else (*shape[:axis], 2, *shape[axis + 1 :])
    return Draw([(F, shape), (F, other)], {"axis": axis})


def slices(r: Random) -> Draw:
    shape = extents(r)
    axis = r.randrange(len(shape))
    start, end, step = r.choice([(0, 1, 1), (0, 2, 1), (1, 2, 1), (1, -1, -1)])
    return Draw(
        [(F, shape)], {"axes": (axis,), "starts": (start,), "ends": (end,), "steps": (step,)}
    )


def split(r: Random) -> Draw:
    shape = extents(r)
    axis = r.randrange(len(shape))
    sizes = (1, shape[axis] - 1)
    return Draw([(F, shape)], {"axis": axis, "sizes": sizes})


def gather(r: Random) -> Draw:
    shape = extents(r)
    ids = r.choice([(), (2,), (BATCH,), (BATCH, 2)])
    return Draw([(F, shape), (I64, ids)], {"axis": r.randrange(len(shape))})


def over(r: Random, axis: int, shape: Shape) -> Shape:
    """A shape for indices that lie over another one."""
    extent = r.choice([2, shape[axis], *([BATCH] if axis == 0 else [])])
    return (*shape[:axis], extent, *shape[axis + 1 :])


def gather_elements(r: Random) -> Draw:
    shape = extents(r)
    axis = r.randrange(len(shape))
    return Draw([(F, shape), (I64, over(r, axis, shape))], {"axis": axis})


def scatter_elements(r: Random) -> Draw:
    shape = extents(r)
    axis = r.randrange(len(shape))
    ids = over(r, axis, shape)
    attrs = {"axis": axis, "reduction": r.choice(["none", "add", "max"])}
    return Draw([(F, shape), (I64, ids), (F, ids)], attrs)


def gather_nd(r: Random) -> Draw:
    shape = extents(r)
    shared = r.randrange(len(shape))
    depth = r.randint(0, len(shape) - shared)
    ids = (*shape[:shared], *r.choice([(), (2,), (BATCH,)]), depth)
    return Draw([(F, shape), (I64, ids)], {"batch_dims": shared})


def scatter_nd(r: Random) -> Draw:
    shape = extents(r)
    depth = r.randint(0, len(shape))
    prefix: Shape = r.choice([(), (2,), (BATCH,)])
    ids = (*prefix, depth)
    updates = (*prefix, *shape[depth:])
    reduction = r.choice(["add", "max"]) if depth < 1 and prefix else r.choice(["none", "add"])
    return Draw([(F, shape), (I64, ids), (F, updates)], {"reduction": reduction})


def layernorm(r: Random) -> Draw:
    shape = extents(r)
    return Draw([(F, shape), (F, shape[-1:]), (F, shape[-1:])], {"eps": 1e-5})


def factors(r: Random) -> tuple[Shape, Shape]:
    """Shapes of two matrices, or vectors, or batches of them."""
    depth = BATCH if r.random() < 0.1 else 4
    lead = extents(r, 1, 2) if flag(r) else ()
    a = (*narrowed(r, lead), r.choice([2, BATCH]), depth)
    b = (*narrowed(r, lead), depth, r.choice([3, BATCH] if r.random() < 0.2 else [3]))
    if r.random() < 0.15:
        return (depth,), b
    return (a, (depth,)) if r.random() < 0.15 else (a, b)


def matmul(r: Random) -> Draw:
    a, b = factors(r)
    return Draw([(F, a), (F, b)])


def matmul_integer(r: Random) -> Draw:
    a, b = factors(r)
    za = r.choice([None, (), a[-2:-1], (*a[:-1], 1)])
    zb = r.choice([None, (), b[-1:] if len(b) > 1 else (), (*b[:-2], 1, *b[-1:])[-len(b) :]])
    zeros = [None if z is None else (U8, z) for z in (za, zb)]
    return Draw([(U8, a), (U8, b), *zeros])


def layer(x: Any, w: Any, *more: Any, **attrs: int) -> Callable[[Random], Draw]:
    def draw(r: Random) -> Draw:
        shape = extents(r)
        operands = [(x, shape), (w, (3, shape[-1])), *((t, (3,)) for t in more)]
        return Draw(operands, attrs)

    return draw


def convolution(dtype: Any, zeros: bool) -> Callable[[Random], Draw]:
    def draw(r: Random) -> Draw:
        groups = r.choice([1, 2])
        x = (BATCH if r.random() < 0.9 else 2, 2 * groups, 4)
        operands = [(dtype, x), (dtype, (2 * groups, 2, 2))]
        operands += [(dtype, ()), (dtype, r.choice([(), (2 * groups,)]))] if zeros else []
        return Draw(operands, {"strides": (1,), "dilations": (1,), "groups": groups})

    return draw


def nested(shape: Shape, extras: Sequence[Shape]) -> Graph:
    edit = Editor(name="nested")
    scores = edit.input("s", F, shape)
    for i, extra in enumerate(extras):
        scores = edit.emit("add", [scores, edit.input(f"extra{i}", F, extra)])
    edit.outputs = [scores]
    return edit.finish()


def attention(r: Random) -> Draw:
    shape = (BATCH, 3, 4)
    scores = (BATCH, 2, 3, 3)
    extras = [narrowed(r, scores) for _ in range(r.randint(0, 2))]
    attrs = {
        "heads": 2,
        "score": nested(scores, extras),
        "prob": nested(scores, ()),
        **dict.fromkeys(("qk_scale", "pv_scale"), 1.0),
        **dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0),
    }
    return Draw([*[(F, shape)] * 3, *((F, extra) for extra in extras)], attrs)


def lengths(r: Random) -> Draw:
    return Draw([(F, (BATCH, *extents(r)[1:]))], {"length": LENGTH})


def extremes(r: Random) -> Draw:
    shape = extents(r)
    return Draw([(F, shape), (B8, shape[:-1]) if r.random() < 0.5 else None])


CASES: dict[str, Callable[[Random], Draw]] = {
    **{op: elementwise(op) for op, row in OPS.items() if row.elementwise},
    "quantize": per_axis(F),
    "dequantize": per_axis(U8),
    "reshape": reshape,
    "transpose": transpose,
    "expand": expand,
    "concat": concat,
    "slice": slices,
    "gather": gather,
    "split": split,
    "gather_elements": gather_elements,
    "gather_nd": gather_nd,
    "scatter_elements": scatter_elements,
    "scatter_nd": scatter_nd,
    "argmax": along(keepdims=flag, last=flag),
    "argmin": along(keepdims=flag, last=flag),
    "topk": along(k=lambda r: r.randint(1, 2), largest=flag),
    **dict.fromkeys((f"reduce_{kind}" for kind in ("sum", "prod", "mean", "max", "min")), reduced),
    "extremes": extremes,
    "softmax": along(),
    "cumsum": along(exclusive=flag, reverse=flag),
    "layernorm": layernorm,
    "matmul": matmul,
    "matmul_integer": matmul_integer,
    "conv": convolution(F, zeros=False),
    "conv_integer": convolution(U8, zeros=True),
    "linear": layer(F, F),
    "linear_integer": layer(U8, S8),
    "qlinear": layer(U8, S8, F, I32, x_zp=3),
    "attention": attention,
    "lengths": lengths,
}


def numbers(rng: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray:
    if dtype.kind == "f":
        return np.asarray(rng.uniform(0.5, 2, shape), dtype)
    # Indices are int64: every axis that they look into is at least 2 long.
    return np.asarray(rng.integers(0, 2 if dtype.kind == "b" or dtype == I64 else 9, shape), dtype)


def add(edit: Editor, op: str, draw: Draw, seed: int) -> list[str]:
    """The node in a graph; its results, seen as one row for each sequence.

    Raises:
        ValueError: the op does not take such operands, or none of them has a batch.
    """
    rng = np.random.default_rng(seed)
    if not any(given is not None and has_batch(given[1]) for given in draw.operands):
        raise ValueError("no batch")
    names = []
    for given_ in draw.operands:
        if given_ is None:
            names.append("")
        elif has_batch(given_[1]):
            names.append(edit.input(edit.fresh("x"), *given_))
        else:
            shape = bind_shape(given_[1], 1)
            names.append(edit.constant(numbers(rng, np.dtype(given_[0]), shape)))
    return [rows(edit, name) for name in edit.emit_multi(op, names, **draw.attrs)]


def rows(edit: Editor, name: str) -> str:
    """What lacks the batch goes to every sequence; several rows of one sequence become one."""
    shape = edit.values[name].shape
    if not has_batch(shape):
        flat = edit.emit("reshape", [name], shape=(1, element_count(shape)))
        return edit.emit("expand", [flat], shape=(BATCH, element_count(shape)))
    lead = shape[0]
    if isinstance(lead, BatchDim) and lead != BATCH and not has_batch(shape[1:]):
        return edit.emit("reshape", [name], shape=(BATCH, lead.coef, *shape[1:]))
    return name


def graph_of(op: str, r: Random) -> Graph | None:
    """A draw as a graph; None where the op does not take it."""
    edit = Editor(name=op)
    try:
        edit.outputs = add(edit, op, CASES[op](r), seed=r.randrange(1000))
        return edit.finish()
    except ValueError:
        return None


def arrays_for(graph: Graph, batch: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    values = [graph.values[name] for name in graph.inputs]
    return [numbers(rng, v.dtype, bind_shape(v.shape, batch)) for v in values]


def same(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_every_op_has_a_case() -> None:
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize("op", sorted(OPS))
@settings(max_examples=50, deadline=None)
@given(
    r=st.randoms(use_true_random=False), sizes=st.lists(st.integers(1, 3), min_size=2, max_size=3)
)
def test_pieces_of_a_batch_are_the_whole(op: str, r: Random, sizes: list[int]) -> None:
    graph = graph_of(op, r)
    if graph is None or not separable(graph):
        return
    batch = sum(sizes)
    inputs = arrays_for(graph, batch, seed=r.randrange(1000))
    real = [r.randint(1, LENGTH) for _ in range(batch)]
    whole = interpret(graph, inputs, real)
    ends = np.cumsum(sizes)
    pieces = [
        interpret(graph, [x[end - size : end] for x in inputs], real[end - size : end])
        for end, size in zip(ends, sizes, strict=True)
    ]
    same([np.concatenate(parts) for parts in zip(*pieces, strict=True)], whole)


def separable_draw(op: str) -> Draw:
    """The first draw of an op that can be cut."""
    for seed in range(200):
        graph = graph_of(op, Random(seed))
        if graph is not None and separable(graph):
            return CASES[op](Random(seed))
    raise AssertionError(f"no batch of {op} can be cut")


def test_compiled_code_cuts_a_batch_of_all_ops(tmp_path: Path) -> None:
    """One graph with a node of every op, and a batch of several pieces."""
    edit = Editor(name="all")
    for seed, op in enumerate(OPS):
        if op == "extremes":  # of the whole batch
            continue
        edit.outputs += add(edit, op, separable_draw(op), seed)
    graph = edit.finish()
    assert separable(graph)
    library = compile_graph(tmp_path, graph)
    (source,) = tmp_path.rglob("bucket.c")
    (piece,) = re.findall(r"#define CHUNK (\d+)", source.read_text())
    assert int(piece) > 0
    batch = 2 * int(piece) + 1
    inputs = arrays_for(graph, batch, seed=0)
    same(library.run(inputs), interpret(graph, inputs))
