"""ONNX Einsum, as transposes and matrix products, two operands at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsec.compiler.frontend.importer import Importer, OnnxNode, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, fixed
from sparsec.compiler.ir import Dim, element_count
from sparsec.compiler.ops.elementwise import broadcast_dim


@dataclass(frozen=True)
class _Operand:
    """A tensor and the label of each of its axes."""

    tensor: Tensor
    labels: tuple[str, ...]

    def extent(self, label: str) -> Dim:
        return self.tensor.shape[self.labels.index(label)]


@onnx_op("Einsum")
def _einsum(c: Importer, n: OnnxNode) -> Tensor:
    """Labels are letters; those of an ellipsis are numbered from the right."""
    equation = n.attrs["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(n.inputs):
        raise Fail(f"{equation!r} has {len(terms)} terms for {len(n.inputs)} operands")
    operands = []
    for i, term in enumerate(terms):
        labels = _labels(term, len(n[i].shape))
        if len(labels) != len(n[i].shape):
            raise Fail(f"{term!r} in {equation!r} names {len(labels)} axes of {len(n[i].shape)}")
        operands.append(_diagonal(c, _Operand(n[i], labels)))
    every = [label for operand in operands for label in operand.labels]
    wide = max((int(label) for label in every if label.isdigit()), default=-1)
    dots = tuple(str(i) for i in range(wide, -1, -1))
    if arrow:
        before, found, after = right.partition("...")
        out = (*before, *(dots if found else ()), *after)
    else:
        letters = "".join(terms).replace(".", "")
        out = (*dots, *(x for x in sorted(set(letters)) if letters.count(x) == 1))
    if len(set(out)) < len(out) or not set(out) <= set(every):
        raise Fail(f"{equation!r} gives axes that no operand has once")
    total = operands[0]
    for i, other in enumerate(operands[1:], start=1):
        later = {label for operand in operands[i + 1 :] for label in operand.labels}
        total = _product(c, total, other, {*out, *later})
    total = _sum(c, total, set(out))
    return c.transpose(total.tensor, [total.labels.index(x) for x in out])


def _labels(term: str, rank: int) -> tuple[str, ...]:
    before, found, after = term.partition("...")
    if not all(x.isascii() and x.isalpha() for x in before + after):
        raise Fail(f"the term {term!r}")
    count = rank - len(before) - len(after) if found else 0
    return (*before, *(str(i) for i in range(count - 1, -1, -1)), *after)


def _diagonal(c: Importer, operand: _Operand) -> _Operand:
    """Axes that share a label become one: every (extent + 1)-th element of both as one axis."""
    tensor, labels = operand.tensor, operand.labels
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            extent = fixed(tensor.shape[first])
            if tensor.shape[second] != extent:
                raise Fail(f"the axes called {label} differ: {list(tensor.shape)}")
            rest = [i for i in range(len(labels)) if i not in (first, second)]
            tensor = c.transpose(tensor, (*rest, first, second))
            tensor = c.reshape(tensor, (*tensor.shape[:-2], extent * extent))
            tensor = c.emit(
                "slice",
                tensor,
                starts=(0,),
                ends=(extent * extent,),
                axes=(len(rest),),
                steps=(extent + 1,),
            )
            labels = (*(labels[i] for i in rest), label)
    return _Operand(tensor, labels)


def _sum(c: Importer, operand: _Operand, keep: set[str]) -> _Operand:
    """Without the axes that nobody needs any more."""
    axes = tuple(i for i, label in enumerate(operand.labels) if label not in keep)
    if not axes:
        return operand
    tensor = c.emit("reduce_sum", operand.tensor, axes=axes, keepdims=False)
    return _Operand(tensor, tuple(x for x in operand.labels if x in keep))


def _product(c: Importer, a: _Operand, b: _Operand, keep: set[str]) -> _Operand:
    """Two operands as one, summed over the labels that are not kept."""
    a, b = _sum(c, a, {*keep, *b.labels}), _sum(c, b, {*keep, *a.labels})
    shared = [x for x in a.labels if x in b.labels]
    batch = [x for x in shared if x in keep]
    summed = [x for x in shared if x not in keep]
    rows = [x for x in a.labels if x not in shared]
    columns = [x for x in b.labels if x not in shared]
    a, b = _widened(c, a, b, summed), _widened(c, b, a, summed)
    labels = (*batch, *rows, *columns)
    if a.tensor.dtype.kind != "f":
        left = _arranged(c, a, (*batch, *rows, *(None for _ in columns), *summed))
        right = _arranged(c, b, (*batch, *(None for _ in rows), *columns, *summed))
        return _sum(c, _Operand(c.emit("mul", left, right), (*labels, *summed)), set(labels))
    left = _matrix(c, a, batch, rows, summed)
    right = _matrix(c, b, batch, summed, columns)
    front = tuple(broadcast_dim(a.extent(x), b.extent(x)) for x in batch)
    shape = (*front, *map(a.extent, rows), *map(b.extent, columns))
    return _Operand(c.reshape(c.emit("matmul", left, right), shape), labels)


def _widened(c: Importer, a: _Operand, b: _Operand, labels: Iterable[str]) -> _Operand:
    """Axes of extent 1 repeated to what the other operand has."""
    shape = list(a.tensor.shape)
    for label in labels:
        shape[a.labels.index(label)] = broadcast_dim(a.extent(label), b.extent(label))
    return _Operand(c.expand(a.tensor, shape), a.labels)


def _arranged(c: Importer, a: _Operand, order: Sequence[str | None]) -> Tensor:
    """The axes in an order, with an extent of 1 for each None."""
    named = [x for x in order if x is not None]
    tensor = c.transpose(a.tensor, [a.labels.index(x) for x in named])
    extents = iter(tensor.shape)
    return c.reshape(tensor, [1 if x is None else next(extents) for x in order])


def _matrix(
    c: Importer, a: _Operand, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> Tensor:
    """[*batch, rows as one, columns as one]."""
    tensor = c.transpose(a.tensor, [a.labels.index(x) for x in (*batch, *rows, *columns)])
    sides = [element_count([a.extent(x) for x in side]) for side in (rows, columns)]
    return c.reshape(tensor, (*tensor.shape[: len(batch)], *sides))
