"""Ops whose inputs are all known while a graph is imported: computed, within bounds.

Where a result depends on the batch size, it is known only if it is the same for every batch but for
the extents: its batch axes are uniform (:mod:`~sparsec.compiler.frontend.tensor`), so it is
computed for a batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.compiler.frontend import symbolic
from sparsec.compiler.frontend.tensor import Fail, Tensor, dense
from sparsec.compiler.ir import BatchDim, Shape, element_count
from sparsec.compiler.ops import OPS

FOLD_LIMIT = 2**28
"""Folding may not make a constant larger than this many bytes (nor than its inputs), but for what
has a number for every pair of tokens: that is how masks of positions begin."""

PAIRS_LIMIT = 2**31
"""Not even a constant of a number for every pair of tokens may have more bytes."""

FOLD_TOTAL = 2**35
"""All results of folding in one import may not take more bytes than this."""

SYMBOLIC_LIMIT = 2**22
"""Elements of a compile-time tensor that depends on the batch size."""


@dataclass(frozen=True)
class _Work:
    """An op on compile-time tensors: its operands, and the types and name of its results."""

    op: str
    attrs: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]
    dtypes: tuple[np.dtype[Any], ...]
    shapes: tuple[Shape, ...]
    hint: str

    @property
    def known(self) -> list[Tensor]:
        """The inputs that are there."""
        return [t for t in self.inputs if t is not None]

    @property
    def symbolic(self) -> bool:
        return any(t.symbolic for t in self.known)

    def compute(self, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        return OPS[self.op].reference({**self.attrs, "_batch": 1}, *arrays)

    def only_result(self, array: np.ndarray) -> tuple[Tensor, ...]:
        return (Tensor(self.dtypes[0], self.shapes[0], array=array, hint=self.hint),)


class Folder:
    """Folds the ops of one import.

    Attributes:
        limit: bytes that a constant may have.
    """

    def __init__(self, length: int) -> None:
        self.limit = max(FOLD_LIMIT, min(8 * length**2, PAIRS_LIMIT))
        self._spent = 0

    def fold(
        self,
        op: str,
        attrs: Mapping[str, Any],
        inputs: Sequence[Tensor | None],
        types: Sequence[tuple[Any, Shape]],
        hint: str,
    ) -> tuple[Tensor, ...] | None:
        """Results of an op on compile-time tensors, or None if it has to run later.

        Args:
            types: of the results.
            hint: name of results that are computed.

        Raises:
            Fail: a result is absurdly large, or cannot be computed.
        """
        known = [t for t in inputs if t is not None]
        # A stored tensor in another layout keeps its name; a computed one gets its node's.
        if OPS[op].layout and len(known) == 1:
            hint = known[0].hint
        dtypes = tuple(np.dtype(dtype) for dtype, _ in types)
        work = _Work(op, attrs, tuple(inputs), dtypes, tuple(tuple(s) for _, s in types), hint)
        if OPS[op].elementwise:
            return work.only_result(self._elementwise(work))
        repeated = _repeated(work)
        if repeated is not None:
            return work.only_result(repeated)
        if not _same_for_every_batch(work):
            return None
        return self._at_batch_one(work)

    def _elementwise(self, work: _Work) -> np.ndarray:
        """The result of an elementwise op; it has extent 1 where all its operands have."""
        arrays = [t.contents() if t else None for t in work.inputs]
        # Scale and zero point are along an axis.
        sides = work.known[:1] if OPS[work.op].quantizes else work.known
        self._check(np.broadcast_shapes(*(t.contents().shape for t in sides)), work.dtypes[0], work)
        if work.symbolic:
            present = [a for a in arrays if a is not None]
            return symbolic.elementwise(work.op, work.attrs, work.dtypes[0], present)
        (out,) = work.compute(arrays)
        return out

    def _at_batch_one(self, work: _Work) -> tuple[Tensor, ...]:
        """Results of any other op: its reference, run for a batch of one."""
        for shape, dtype in zip(work.shapes, work.dtypes, strict=True):
            self._check(_one_sample(shape), dtype, work)
        arrays = [
            dense(replace(t, shape=_one_sample(t.shape)), self.limit) if t else None
            for t in work.inputs
        ]
        if work.symbolic and not OPS[work.op].layout and not work.op.startswith("reduce_"):
            raise Fail(f"{work.op} of numbers that depend on the batch size")
        try:
            outs = work.compute(arrays)
        except IndexError as error:
            raise Fail(str(error)) from None
        return tuple(
            Tensor(dtype, shape, array=symbolic.tidy(np.asarray(out), dtype), hint=work.hint)
            for dtype, shape, out in zip(work.dtypes, work.shapes, outs, strict=True)
        )

    def _check(self, shape: tuple[int, ...], dtype: np.dtype[Any], work: _Work) -> None:
        """Refuse a result that is too large, alone or with all before it."""
        size = math.prod(shape) * dtype.itemsize
        # Copies of a stored tensor, even in a wider type, are as large as the model made them.
        limit = max([self.limit, *(8 * t.contents().size for t in work.known)])
        self._spent += size
        if size > limit or self._spent > FOLD_TOTAL:
            raise Fail(f"folding gives a constant of {size} bytes, which is absurd")
        if work.symbolic and math.prod(shape) > SYMBOLIC_LIMIT:
            raise Fail(f"shape arithmetic on {math.prod(shape)} elements is absurd")


def _repeated(work: _Work) -> np.ndarray | None:
    """The contents of a result that repeats its operand: they take no room, so they stay as small;
    None for any other op."""
    rank = len(work.shapes[0])
    if work.op == "expand":
        array = work.known[0].contents()
        return array.reshape((1,) * (rank - array.ndim) + array.shape)
    if work.op == "reshape" and work.known[0].contents().size == 1:
        return work.known[0].contents().reshape((1,) * rank)
    return None


def batch_axes(shape: Shape) -> list[int]:
    """The axes whose extent depends on the batch size."""
    return [i for i, d in enumerate(shape) if isinstance(d, BatchDim)]


def _one_sample(shape: Shape) -> tuple[int, ...]:
    """The shape for a batch of one, where :func:`_one_per_batch` holds."""
    return tuple(1 if isinstance(d, BatchDim) else d for d in shape)


def _one_per_batch(shape: Shape) -> bool:
    """True if every batch extent is the batch size itself, so that it is 1 for a batch of one."""
    return all(not isinstance(d, BatchDim) or (d.coef, d.const) == (1, 0) for d in shape)


def _same_for_every_batch(work: _Work) -> bool:
    """True if results for a batch of one stand for those of any batch."""
    shapes = [t.shape for t in work.known]
    if not all(_one_per_batch(s) for s in shapes):
        return False
    if not any(batch_axes(s) for s in (*work.shapes, *shapes)):
        return True
    return all(_one_per_batch(s) for s in work.shapes) and _leaves_batch_alone(work)


def _leaves_batch_alone(work: _Work) -> bool:
    """True if an op, on tensors that are uniform along the batch, does nothing along it."""
    axes = [batch_axes(t.shape) for t in work.known]
    if work.op == "transpose":
        return True
    if work.op == "reshape":
        return _keeps_batch_axis(work.known[0].shape, work.shapes[0])
    if work.op in ("slice", "concat", "split", "softmax", "cumsum"):
        touched = work.attrs.get("axes", (work.attrs.get("axis"),))
        return not any(a in touched for group in axes for a in group)
    if work.op == "gather":
        return work.attrs["axis"] not in axes[0]
    if work.op.startswith("reduce_"):
        return not any(a in work.attrs["axes"] for a in axes[0])
    return False


def _keeps_batch_axis(before: Shape, after: Shape) -> bool:
    """True if a reshape has one batch axis before and after, with as many elements outside."""
    old, new = batch_axes(before), batch_axes(after)
    if len(old) != 1 or len(new) != 1:
        return False
    return element_count(before[: old[0]]) == element_count(after[: new[0]])
