"""The row of the table of torch forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsec.errors import UnsupportedError

Attrs = Mapping[str, Any]
Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Form:
    """How torch computes a core op.

    Attributes:
        name: of the op in the IR.
        compute: ``compute(attrs, *tensors) -> (tensor, ...)``, equal to the op's numpy reference;
            `attrs` has its extra keys ``_batch``, ``_lengths`` and ``_run`` too.
        gradient: whether a change of its float operands shows in the gradient of its results.
            Comparisons and indices have none and need none; rounding loses what it is given.
    """

    name: str
    compute: Callable[..., Results]
    gradient: bool = True


_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in ("float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64")
} | {
    np.dtype(name): getattr(torch, name)
    for name in ("uint16", "uint32", "uint64")
    if hasattr(torch, name)
}


def torch_dtype(dtype: Any) -> torch.dtype:
    """torch's element type for one of numpy's.

    Raises:
        UnsupportedError: torch has none.
    """
    try:
        found: torch.dtype = _DTYPES[np.dtype(dtype)]
    except KeyError:
        why = f"torch has no element type {np.dtype(dtype).name}"
        raise UnsupportedError(why, [(str(dtype), "type", why)]) from None
    return found


def tensor_of(array: np.ndarray) -> Tensor:
    """A tensor with the contents of an array, which it does not share."""
    return torch.tensor(np.ascontiguousarray(array), dtype=torch_dtype(array.dtype)).reshape(
        array.shape
    )
