"""Checking of arguments that many functions take."""

from __future__ import annotations

import operator
from typing import Any

from sparsec.errors import InputError


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
