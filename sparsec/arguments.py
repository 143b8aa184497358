"""Checking of arguments that many functions take, and what errors call them."""

from __future__ import annotations

import contextlib
import json
import operator
import os
from collections.abc import Iterator
from typing import Any, Literal

from sparsec.errors import InputError
from sparsec.paths import input_path

#: Flags of the command line that are not called as the argument in Python is.
_FLAGS = {"exist_ok": "--force", "seconds": "--time", "columns": "--column"}

#: Who reads the errors of this process: a program in Python, who typed a command, or who sends JSON
#: to a server.
Speech = Literal["python", "flags", "json"]

_speech: Speech = "python"


def speech() -> Speech:
    """How :func:`argument` and :func:`setting` speak."""
    return _speech


def speak(other: Speech) -> Speech:
    """Let them speak otherwise from now on, in the whole process; returns how they did."""
    global _speech
    before, _speech = _speech, other
    return before


@contextlib.contextmanager
def speaking(other: Speech) -> Iterator[None]:
    """Let them speak otherwise for a while: of flags where the process runs a command line."""
    before = speak(other)
    try:
        yield
    finally:
        speak(before)


def argument(name: str, value: object = None) -> str:
    """What to call an argument in an error: by the word that the caller used or may use.

    Args:
        name: its name in Python.
        value: the one to give; None: only the argument is meant.

    Returns:
        ``force=True`` or ``buckets`` in Python; ``--force`` or ``--buckets`` in a command;
        ``"force": true`` or ``buckets`` to who sends JSON.
    """
    if _speech == "json":
        return name if value is None else f'"{name}": {json.dumps(value)}'
    if _speech == "python":
        return name if value is None else f"{name}={value!r}"
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    return flag if value is None or value is True else f"{flag} {value}"


def setting(name: str, *value: object, option: bool = False) -> str:
    """What to call an argument that a pipeline is made with, where a call of it meets an error: who
    sends JSON to a server cannot give it, and whose server it is can.

    Args:
        name: its name in Python.
        value: the one to give, if any.
        option: whether it is of a task, which commands take as ``--option NAME=VALUE``.

    Returns:
        ``top_k=3`` or ``top_k`` in Python; ``--top-k 3`` or, of a task, ``--option top_k=3`` in a
        command; ``top_k: 3 of the endpoint`` to who sends JSON.
    """
    if _speech == "json":
        return f"{name}{''.join(f': {json.dumps(one)}' for one in value)} of the endpoint"
    if _speech == "python":
        return f"{name}{''.join(f'={one!r}' for one in value)}"
    if option:
        return argument("option", name + "".join(f"={json.dumps(one)}" for one in value))
    return argument(name, *value)


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
