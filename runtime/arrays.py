"""What callers have for arrays: tensors of other libraries, lists, whatever numpy takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.errors import InputError

_CPU = 1  # kDLCPU


def as_array(name: str, value: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A numpy array of what a caller gave for an input; the same memory where that can be.

    Args:
        name: the input's, for errors.
        value: a tensor of another library (one with ``__dlpack__``, such as PyTorch's, or with
            ``__array__``), a buffer, a number, or lists of numbers.
        dtype: what the input wants.  Lists have no type of their own and become this one where no
            number changes but by rounding to float; what has one keeps it.

    Raises:
        InputError: it is none of these, or is not in the memory of the CPU.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__dlpack__"):
            return _shared(name, value)
        array = np.asarray(value)
        if isinstance(value, (list, tuple, int, float)) and array.dtype.kind in "biuf":
            return _of_lists(array, dtype)
    except InputError:
        raise
    except Exception as error:  # whatever a library's export or a ragged list raises
        raise _refused(name, value, str(error)) from error
    if array.dtype.kind not in "biuf":
        raise _refused(name, value, f"that makes an array of {array.dtype}")
    return array


def _shared(name: str, value: Any) -> np.ndarray[Any, Any]:
    """A tensor's own memory."""
    device = getattr(value, "__dlpack_device__", lambda: (_CPU, 0))()[0]
    if device != _CPU:
        where = getattr(value, "device", f"the device {device} of DLPack")
        raise _refused(name, value, f"it is on {where}: move it to the CPU first")
    if getattr(value, "requires_grad", False) and hasattr(value, "detach"):
        value = value.detach()  # what is returned has no gradient in any case
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError):
        # A type or a layout that DLPack or this numpy does not have.
        if not hasattr(value, "__array__"):
            raise
        return np.asarray(value)


def _of_lists(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Numbers of Python in the type that an input wants."""
    if dtype.kind == "f":
        with np.errstate(over="raise"):
            return array.astype(dtype)
    return array.astype(np.int64) if array.size == 0 else array


def _refused(name: str, value: Any, why: str) -> InputError:
    return InputError(
        f"input {name!r} must be an array, a tensor or lists of numbers, not this "
        f"{type(value).__name__}: {why}"
    )
