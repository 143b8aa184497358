"""What the commands share: help with defaults, progress lines, number parsing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsec.console import say
from sparsec.errors import InputError
from sparsec.paths import user_path
from sparsec.progress import Bar


class Parser(argparse.ArgumentParser):
    """Takes flags by their whole names only: what a part of one means changes with every new flag,
    and of ``--force`` and ``--for`` nobody sees that they are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # `allow_abbrev` leaves out flags that begin with one dash, of which some have whole words.
        found = super()._get_option_tuples(option_string)
        return [row for row in found if option_string.startswith(row[1])]


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default in (None, False, argparse.SUPPRESS) or not action.option_strings
        return text if silent or "%(default)" in text else f"{text} (default: %(default)s)"


def printable(text: str) -> str:
    """A line without what a terminal would obey, which names of a model's making may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def lengths(text: str) -> list[int]:
    """A list of positive integers such as ``16,128``, for argparse."""
    try:
        return [positive(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of lengths such as 16,128"
        ) from None


def option(text: str) -> tuple[str, str]:
    """``name=value``, for argparse."""
    name, mark, value = text.partition("=")
    if not mark or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not like top_k=3")
    return name.strip().replace("-", "_"), value


def output_file(name: str) -> Path:
    """A file to write, with the folders that lead to it, which are made now.

    Raises:
        InputError: it cannot be written: better said before the work than after it.
    """
    path = user_path(name).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {name}: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"cannot write {name}: it is a folder, or may not be written")
    return path


def progress(args: argparse.Namespace) -> Callable[[str], None] | None:
    """Where progress goes: lines with -v, else a bar if standard error is a terminal."""
    if args.quiet:
        return None
    if args.verbose:
        return say
    return Bar() if sys.stderr.isatty() else None


def guessed_task(args: argparse.Namespace, model: str) -> str:
    """The task that a model's files say it is for; the command says so, unless it is to be quiet.

    Args:
        args: of the command, with `tokenizer` and `quiet`.
    """
    from sparsec.serving.defaults import guess_task
    from sparsec.serving.models import ModelFiles

    tell: Callable[[str], None] = (lambda _: None) if args.quiet else say
    task, why = guess_task(ModelFiles.find(model, tokenizer=args.tokenizer, progress=tell))
    tell(f"the task is {task}: {why}; --task says otherwise")
    return task
