"""Checking of arguments that many functions take."""

from __future__ import annotations

import operator
import os
from typing import Any

from sparsec.errors import InputError
from sparsec.paths import input_path


def anchored(path: Any) -> Any:
    """An argument that means the same in another working directory: paths of what is there become
    absolute, everything else (a stub, a mapping, None) stays."""
    if not isinstance(path, (str, os.PathLike)):
        return path
    found = input_path(path)
    return str(found.absolute()) if found.exists() else str(path)


def whole(name: str, value: Any, least: int | None = None) -> int:
    """An integer argument as a Python int; numpy's integers are integers too.

    Args:
        name: what to call it in the error.
        value: what the caller gave.
        least: the smallest that is allowed.

    Raises:
        InputError: it is no integer, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise InputError(f"{name} must be at least {least}, not {number}")
    return number


def wholes(name: str, values: Any, least: int | None = None) -> list[int]:
    """A list of integers, or an array of them, as Python ints; see :func:`whole`.

    Raises:
        InputError: it is no list, or an element is not what it must be.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} must be a list of integers, not {values!r}")
    return [whole(f"each of {name}", value, least) for value in values]
