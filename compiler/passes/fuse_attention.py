"""Recognize multi-head attention between its two matrix products.

    q4 [B,H,S,D] ─┐
                  matmul ─ score ops ─ softmax ─ prob ops ─┐
    kt [B,H,D,S] ─┘           │                            matmul ── o4 [B,H,S,D]
    extras (masks ...) ───────┘                       v4 ──┘
    ->
    q, k, v [B,S,C] ── attention {score, prob} ── reshape, transpose ── o4

The ops between the products become the nested graphs `score` and `prob`.  Operands may be
[B,H,S,D] or [B*H,S,D]; the reshapes and transposes put around the new node cancel against those
that split and merged the heads (``sink_layout``), whichever way they were written.

A product runs on bytes if both its operands are bytes (matmul_integer, cast, mul) or are
dequantized from bytes directly in front of it.  Otherwise it runs in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sparsec.compiler.editor import Editor, Match, rewrite
from sparsec.compiler.ir import Dim, Graph, Node, Shape
from sparsec.compiler.ops import OPS
from sparsec.compiler.ops.contraction import BYTES
from sparsec.compiler.passes.layout_chain import Step, chain_above, trace
from sparsec.compiler.passes.patterns import per_tensor, sources, uniform


def fuse_attention(graph: Graph) -> Graph:
    """Apply the rule of this file until it does not fire."""
    return rewrite(graph, [_attention])


@dataclass(frozen=True)
class _Operand:
    """An operand of a product; as bytes with its scale and zero point if it comes from bytes."""

    name: str
    scale: float = 1.0
    zp: int = 0


@dataclass(frozen=True)
class _Product:
    """A product that will run inside attention: ``result = float32(left . right) * scale``."""

    left: _Operand
    right: _Operand
    scale: float
    result: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Heads:
    """The extents of an attention, and whether its operands are [B*H, S, D]."""

    batch: Dim
    heads: int
    length: Dim
    width: Dim
    merged: bool

    @property
    def scores(self) -> Shape:
        return (self.batch, self.heads, self.length, self.length)

    def spaces(self) -> tuple[Shape, ...]:
        """Shapes that the scores may take on their way."""
        flat = (self.batch * self.heads, self.length, self.length)
        return (self.scores, flat)


def _bytes_behind(m: Match, name: str) -> tuple[_Operand, list[Node]] | None:
    """Bytes and layout chain, if `name` is layout(dequantize(bytes)) with constant parameters."""
    root, chain = chain_above(m, name)
    node = m.producer(root, "dequantize")
    parameters = per_tensor(m, node) if node is not None else None
    if node is None or parameters is None or m.type(node.inputs[0]).dtype not in BYTES:
        return None
    scale, zp = parameters
    return _Operand(node.inputs[0], float(scale), zp), chain


def _laid_out(m: Match, operand: _Operand, chain: list[Node]) -> _Operand:
    """The operand after a layout chain."""
    name = operand.name
    for node in chain:
        name = Step.of(node).emit(m.edit, name, node.source)
    return replace(operand, name=name)


def _zero_point(m: Match, node: Node, index: int) -> int | None:
    if len(node.inputs) <= index or not node.inputs[index]:
        return 0
    value = uniform(m.constant(node.inputs[index]))
    return None if value is None else int(value)


def _integer_product(m: Match, node: Node) -> _Product | None:
    """matmul_integer ─ cast float32 [─ mul number]."""
    zps = (_zero_point(m, node, 2), _zero_point(m, node, 3))
    cast = m.only_user(node.output, "cast")
    if zps[0] is None or zps[1] is None or cast is None:
        return None
    if np.dtype(cast.attrs["to"]) != np.float32:
        return None
    left, right = _Operand(node.inputs[0], zp=zps[0]), _Operand(node.inputs[1], zp=zps[1])
    mul = m.only_user(cast.output, "mul")
    if mul is not None and mul.inputs[0] != mul.inputs[1]:
        other = mul.inputs[1] if mul.inputs[0] == cast.output else mul.inputs[0]
        scale = m.scalar(other)
        if scale is not None and m.type(mul.output).shape == m.type(cast.output).shape:
            return _Product(left, right, scale, mul.output, (node, cast, mul))
    return _Product(left, right, 1.0, cast.output, (node, cast))


@dataclass(frozen=True)
class _Region:
    """Elementwise nodes between a start and an end, in order, and what else they read."""

    nodes: tuple[Node, ...]
    extras: tuple[str, ...]


def _region(m: Match, start: str, end: str, spaces: tuple[Shape, ...]) -> _Region | None:
    """The nodes from `start` to `end`.

    None if they do more than elementwise work on the scores, or if others read what they make.
    """
    above: set[str] = set()
    stack = [end]
    while stack:
        node = m.producer(name) if (name := stack.pop()) != start else None
        if node is not None and node.outputs[0] not in above and _is_step(m, node, spaces):
            above.add(node.outputs[0])
            stack.extend(node.inputs)
    made = {start}
    order: list[Node] = []
    for node in m.graph.nodes:
        if node.outputs[0] in above and not made.isdisjoint(node.inputs):
            made.add(node.output)
            order.append(node)
    if end not in made or any(name in m.graph.outputs for name in made):
        return None
    inside = {node.outputs[0] for node in order}
    if any(user.outputs[0] not in inside for name in made - {end} for user in m.users(name)):
        return None
    extras: list[str] = []
    for node in order:
        more = [n for n in node.inputs if n not in made and not _is_one_number(m.constant(n))]
        if more and OPS[node.op].quantizes:
            return None
        extras += more
    return _Region(tuple(order), tuple(dict.fromkeys(extras)))


def _is_one_number(array: np.ndarray | None) -> bool:
    return array is not None and array.size == 1


def _is_step(m: Match, node: Node, spaces: tuple[Shape, ...]) -> bool:
    if len(node.outputs) != 1 or m.type(node.output).shape not in spaces:
        return False
    if node.op == "reshape":
        return m.type(node.inputs[0]).shape in spaces
    return OPS[node.op].elementwise is not None


def _extra(m: Match, name: str, reader: Node, heads: _Heads) -> str:
    """What `reader` adds to the scores, made to broadcast against [B,H,S,S]."""
    while (expand := m.producer(name, "expand")) is not None:
        name = expand.inputs[0]
    shape = m.type(name).shape
    if len(m.type(reader.output).shape) == 4 or len(shape) < 3 or shape[0] == 1:
        return name
    apart = (heads.batch, heads.heads, *shape[1:])
    return m.edit.emit("reshape", [name], source=reader.source, shape=apart)


def _nested(
    m: Match, title: str, heads: _Heads, region: _Region, start: str, end: str
) -> tuple[Graph, list[str]]:
    """The region as a graph over [B,H,S,S], and the extras it takes."""
    edit = Editor(name=title)
    inner: dict[str, str] = {start: edit.input("s", np.float32, heads.scores)}
    taken: dict[str, str] = {}

    def operand(node: Node, name: str) -> str:
        if name in inner:
            return inner[name]
        array = m.constant(name)
        if array is not None and array.size == 1:
            inner[name] = edit.constant(array.reshape(()), name)
            return inner[name]
        outer = _extra(m, name, node, heads)
        if outer not in taken:
            value = m.edit.values[outer]
            taken[outer] = edit.input(f"extra{len(taken)}", value.dtype, value.shape)
        return taken[outer]

    for node in region.nodes:
        if node.op == "reshape":
            inner[node.output] = inner[node.inputs[0]]
            continue
        args = [operand(node, name) for name in node.inputs]
        inner[node.output] = edit.emit(node.op, args, source=node.source, **node.attrs)
    edit.outputs = [inner[end]]
    return edit.finish(), list(taken)


def _above(m: Match, name: str, *ops: str) -> list[Node]:
    """The nearest nodes with one of `ops` above `name`, through elementwise ops and reshapes."""
    found: list[Node] = []
    seen: set[str] = set()
    stack = [name]
    while stack:
        node = m.producer(stack.pop())
        if node is None or node.outputs[0] in seen:
            continue
        seen.add(node.outputs[0])
        if node.op in ops:
            found.append(node)
        elif OPS[node.op].elementwise or node.op == "reshape":
            stack.extend(n for n in node.inputs if n)
    return found


def _split_heads(m: Match, names: tuple[str, ...], batch: Dim) -> tuple[Dim, int]:
    """Batch and heads of operands [B*H, ...], read off the reshapes that merged them."""
    for name in names:
        root, chain = chain_above(m, name)
        traced = trace(m.type(root).shape, [Step.of(n) for n in chain])
        if traced is None or len(traced[1][0]) != 2:
            continue
        outer, inner = (atom.extent for atom in traced[1][0])
        if isinstance(inner, int):
            return outer, inner
    return batch, 1


def _extents(m: Match, qk: Node, pv: Node) -> _Heads | None:
    q, kt = qk.inputs[:2]
    v = pv.inputs[1]
    shape = m.type(q).shape
    types = {m.type(node.output).dtype for node in (qk, pv)}
    if len(shape) not in (3, 4) or not types <= {np.dtype(np.float32), np.dtype(np.int32)}:
        return None
    *lead, length, width = shape
    k_shape = (*lead, width, length)
    if m.type(kt).shape != k_shape or m.type(v).shape != shape or not isinstance(width, int):
        return None
    if m.type(pv.inputs[0]).shape != (*lead, length, length):
        return None
    if len(lead) == 2:
        batch, heads = lead
    else:
        batch, heads = _split_heads(m, (q, kt, v), lead[0])
    if not isinstance(heads, int) or not isinstance(length, int):
        return None
    return _Heads(batch, heads, length, width, merged=len(lead) == 1)


def _rows(m: Match, heads: _Heads, name: str, transposed: bool = False) -> str:
    """An operand [B,H,S,D] (or merged, or transposed) as [B,S,C]."""
    edit = m.edit
    if heads.merged:
        tail = edit.values[name].shape[1:]
        name = edit.emit("reshape", [name], shape=(heads.batch, heads.heads, *tail))
    perm = (0, 3, 1, 2) if transposed else (0, 2, 1, 3)
    name = edit.emit("transpose", [name], perm=perm)
    shape = (heads.batch, heads.length, heads.heads * heads.width)
    return edit.emit("reshape", [name], shape=shape)


def _apart(m: Match, heads: _Heads, name: str) -> str:
    """[B,S,C] -> [B,H,S,D], merged if the operands were."""
    edit = m.edit
    shape = (heads.batch, heads.length, heads.heads, heads.width)
    name = edit.emit("reshape", [name], shape=shape)
    name = edit.emit("transpose", [name], perm=(0, 2, 1, 3))
    if heads.merged:
        flat = (heads.batch * heads.heads, heads.length, heads.width)
        name = edit.emit("reshape", [name], shape=flat)
    return name


def _float_product(m: Match, node: Node) -> tuple[_Product, list[Node]]:
    """matmul of floats, on the bytes behind both operands or as it stands.

    Bytes on the left are those in front of the layout chain that is returned with them.
    """
    left, right = (_bytes_behind(m, name) for name in node.inputs)
    if left is None or right is None:
        a, b = (_Operand(name) for name in node.inputs)
        return _Product(a, b, 1.0, node.output, (node,)), []
    scale = float(np.float32(left[0].scale) * np.float32(right[0].scale))
    return _Product(left[0], _laid_out(m, *right), scale, node.output, (node,)), left[1]


def _qk_product(m: Match, node: Node) -> _Product | None:
    if node.op == "matmul_integer":
        return _integer_product(m, node)
    product, chain = _float_product(m, node)
    return replace(product, left=_laid_out(m, product.left, chain))


def _pv_product(m: Match, node: Node) -> _Product | None:
    """The second product.  Its left operand is where `prob` ends, in whichever layout."""
    return _integer_product(m, node) if node.op == "matmul_integer" else _float_product(m, node)[0]


def _candidates(m: Match, pv: Node) -> Iterator[tuple[Node, Node]]:
    """Products and softmaxes that may be the first parts of an attention that ends in `pv`."""
    if pv.op in ("matmul", "matmul_integer"):
        for softmax in _above(m, pv.inputs[0], "softmax"):
            for qk in _above(m, softmax.inputs[0], "matmul", "matmul_integer"):
                yield qk, softmax


def _attention(m: Match, pv: Node) -> bool:
    return any(_fuse(m, qk, softmax, pv) for qk, softmax in _candidates(m, pv))


@dataclass(frozen=True)
class _Parts:
    """What an attention is made of."""

    heads: _Heads
    qk: _Product
    pv: _Product
    before: _Region
    after: _Region


def _parts(m: Match, qk_node: Node, softmax: Node, pv_node: Node) -> _Parts | str:
    """The parts of an attention, or why it is none that the kernels have."""
    if softmax.attrs["axis"] != len(m.type(softmax.output).shape) - 1:
        return "the softmax is not over the last axis"
    heads = _extents(m, qk_node, pv_node)
    if heads is None:
        return "queries, keys and values are not of one shape [batch, heads, length, width]"
    qk, pv = _qk_product(m, qk_node), _pv_product(m, pv_node)
    if qk is None or pv is None:
        return "a product is of bytes whose scale or zero point is known at run time only"
    s, end = softmax.inputs[0], pv.left.name
    if m.only_user(s) is not softmax or m.only_user(end) is None:
        return "scores or probabilities are also read elsewhere"
    before = _region(m, qk.result, s, heads.spaces())
    after = _region(m, softmax.output, end, heads.spaces())
    if before is None or after is None:
        return "between the products is more than elementwise work, or others read from there"
    if after.extras:
        return "the probabilities meet another tensor before they are multiplied with the values"
    return _Parts(heads, qk, pv, before, after)


def why_not(graph: Graph) -> dict[str, str]:
    """Why products behind a softmax that are still there are no attention, by their output."""
    m = Match(graph)
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        for qk, softmax in _candidates(m, node):
            found = _parts(m, qk, softmax, node)
            if isinstance(found, str):
                reasons[node.output] = found
                reasons.setdefault(qk.output, found)
                reasons.setdefault(softmax.output, found)
    return reasons


def _fuse(m: Match, qk_node: Node, softmax: Node, pv_node: Node) -> bool:
    found = _parts(m, qk_node, softmax, pv_node)
    if isinstance(found, str):
        return False
    heads, qk, pv = found.heads, found.qk, found.pv
    before, after, s, end = found.before, found.after, softmax.inputs[0], pv.left.name
    score, extras = _nested(m, "score", heads, before, qk.result, s)
    prob, _ = _nested(m, "prob", heads, after, softmax.output, end)
    q = _rows(m, heads, qk.left.name)
    k = _rows(m, heads, qk.right.name, transposed=True)
    v = _rows(m, heads, pv.right.name)
    new = m.edit.emit(
        "attention",
        [q, k, v, *extras],
        source=sources(*qk.nodes, softmax, *pv.nodes),
        heads=heads.heads,
        q_zp=qk.left.zp,
        k_zp=qk.right.zp,
        v_zp=pv.right.zp,
        p_zp=pv.left.zp,
        qk_scale=qk.scale,
        pv_scale=pv.scale,
        score=score,
        prob=prob,
    )
    m.edit.replace_uses(pv.result, _apart(m, heads, new))
    return True
