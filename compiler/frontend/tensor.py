"""What flows between ONNX nodes while a graph is imported: tensors known now, or at run time.

A compile-time tensor holds its contents in a numpy array.  Two things go beyond plain constants, so
that the shape and mask code of exported graphs folds away:

* *symbolic* integers: an object array that mixes ints with :class:`~sparsec.compiler.ir.BatchDim`
  (what ``Shape`` gives), see :mod:`sparsec.compiler.frontend.symbolic`;
* *uniform* axes: the array has extent 1 where the shape has another extent, and the contents repeat
  along it.  This is how a constant of shape ``[batch, 1, S, S]`` can exist at compile time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.ir import BatchDim, Dim, Shape, Value


class Fail(Exception):
    """The ONNX node at hand cannot be imported, and why; the importer collects these."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """An ONNX value during import.

    Attributes:
        dtype: the element type in the core IR.
        shape: ints and multiples of the batch size.
        array: contents of a compile-time tensor; same rank, each extent that of `shape` or 1.
        name: IR value of a run-time tensor, else "".
        hint: ONNX name of a compile-time tensor, for the IR constant it may become.
    """

    dtype: np.dtype[Any]
    shape: Shape
    array: np.ndarray | None = None
    name: str = ""
    hint: str = "const"

    @property
    def known(self) -> bool:
        """True for compile-time tensors."""
        return self.array is not None

    @property
    def symbolic(self) -> bool:
        """True if some contents depend on the batch size."""
        return self.array is not None and self.array.dtype == object

    @property
    def uniform(self) -> bool:
        """True if the contents repeat along some axis that the array leaves out."""
        return self.array is not None and tuple(self.array.shape) != self.shape

    @property
    def type(self) -> Value:
        """The tensor's type as the op table takes it."""
        return Value(self.name or self.hint, self.dtype, self.shape)

    def contents(self) -> np.ndarray:
        """The array of a compile-time tensor; raises Fail for a run-time one."""
        if self.array is None:
            raise Fail(f"{self.name} must be known at compile time, but depends on the inputs")
        return self.array


def constant(array: Any, hint: str = "const", dtype: Any = None) -> Tensor:
    """A compile-time tensor; `dtype` is the element type of a symbolic (object) array."""
    array = np.asarray(array)
    kind = np.dtype(dtype) if dtype is not None else array.dtype
    return Tensor(kind, tuple(array.shape), array=array, hint=hint)


def fixed(extent: Dim) -> int:
    """An extent or index that does not depend on the batch size; raises Fail otherwise."""
    if isinstance(extent, BatchDim):
        raise Fail(f"{extent} is not known at compile time")
    return int(extent)


def dense(tensor: Tensor, limit: int) -> np.ndarray:
    """The whole contents of a compile-time tensor without batch extents.

    Raises:
        Fail: it has a batch extent, or it would take more than `limit` bytes.
    """
    array = tensor.contents()
    if not tensor.uniform:
        return array
    shape = tuple(map(fixed, tensor.shape))
    size = array.itemsize * math.prod(shape)
    if size > limit:
        raise Fail(f"a constant of shape {list(tensor.shape)} would take {size} bytes")
    return np.array(np.broadcast_to(array, shape))
