"""Checking of arguments that many functions take, and what errors call them."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterator
from typing import Any

from sparsec.errors import InputError
from sparsec.paths import input_path

#: Flags of the command line that are not called as the argument in Python is.
_FLAGS = {"exist_ok": "--force", "seconds": "--time"}

_flags = False


@contextlib.contextmanager
def as_flags() -> Iterator[None]:
    """Let :func:`argument` speak of flags: the process runs a command line."""
    global _flags
    before, _flags = _flags, True
    try:
        yield
    finally:
        _flags = before


def argument(name: str, value: object = None) -> str:
    """What to call an argument in an error: by the word that the caller used or may use.

    Args:
        name: its name in Python.
        value: the one to give; None: only the argument is meant.

    Returns:
        ``force=True`` or ``buckets`` in Python; ``--force`` or ``--buckets`` in a command.
    """
    if not _flags:
        return name if value is None else f"{name}={value!r}"
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    return flag if value is None or value is True else f"{flag} {value}"


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
        name: the argument's name in Python.
        value: what the caller gave.
        least: the smallest that is allowed.

    Raises:
        InputError: it is no integer, or below `least`.
    """
    return _whole(argument(name), value, least)


def _whole(shown: str, value: Any, least: int | None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{shown} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise InputError(f"{shown} must be at least {least}, not {number}")
    return number


def wholes(name: str, values: Any, least: int | None = None) -> list[int]:
    """A list of integers, or an array of them, as Python ints; see :func:`whole`.

    Raises:
        InputError: it is no list, or an element is not what it must be.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise InputError(f"{argument(name)} must be a list of integers, not {values!r}")
    return [_whole(f"each of {argument(name)}", value, least) for value in values]
