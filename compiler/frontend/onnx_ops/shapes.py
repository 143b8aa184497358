"""ONNX ops that make tensors from shapes and numbers."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.frontend import symbolic
from sparsec.compiler.frontend.folding import FOLD_LIMIT
from sparsec.compiler.frontend.importer import Importer, OnnxNode, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant
from sparsec.compiler.ir import BATCH, BatchDim, Dim, element_count

_INT64 = np.dtype(np.int64)


def _integers(values: list[Dim]) -> Tensor:
    array = np.empty(len(values), object)
    array[:] = values
    return constant(symbolic.tidy(array, _INT64), "shape", _INT64)


@onnx_op("Shape")
def _shape(c: Importer, n: OnnxNode) -> Tensor:
    return _integers(list(n[0].shape)[n.attrs.get("start", 0) : n.attrs.get("end")])


@onnx_op("Size")
def _size(c: Importer, n: OnnxNode) -> Tensor:
    (count,) = _integers([element_count(n[0].shape)]).contents()
    return constant(np.asarray(count), "size", _INT64)


@onnx_op("ConstantOfShape", static=(0,))
def _constant_of_shape(c: Importer, n: OnnxNode) -> Tensor:
    shape = c.ints(n[0])
    if any(not isinstance(d, BatchDim) and d < 0 for d in shape):
        raise Fail(f"a shape of {shape}")
    fill = n.attrs["value"].contents() if "value" in n.attrs else np.zeros(1, np.float32)
    return c.expand(constant(fill.reshape((1,) * len(shape))), shape)


@onnx_op("Range", static=(0, 1, 2))
def _range(c: Importer, n: OnnxNode) -> Tensor:
    start, limit, delta = n[0], n[1], n[2]
    if any(t.symbolic for t in (start, limit, delta)):
        return _batch_range(c, n)
    first, last, step = (np.asarray(t.contents()).item() for t in (start, limit, delta))
    if step == 0:
        raise Fail("a step of 0")
    count = max(0, int(np.ceil((last - first) / step)))
    if count * start.dtype.itemsize > FOLD_LIMIT:
        raise Fail(f"a range of {count} elements is absurd")
    return constant((first + np.arange(count) * step).astype(start.dtype), "range")


def _batch_range(c: Importer, n: OnnxNode) -> Tensor:
    """0, 1, .. batch - 1: every sample's own index."""
    first, last, step = (c.ints(n[i]) for i in range(3))
    if first != [0] or step != [1] or last != [BATCH]:
        raise Fail(f"a range from {first[0]} to {last[0]} by {step[0]} depends on the batch size")
    return Tensor(_INT64, (BATCH,), array=np.asarray([symbolic.INDEX], object))
