"""Completion of commands, flags, their values and files in shells: ``--print-completion``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from sparsec.errors import InputError

SHELLS = ("bash", "zsh", "tcsh")

# What stands for a path in the help of a flag, or is one's name where it has no flag.
_FILES = frozenset([
    "ARTIFACT", "FILE", "INPUT", "MODEL", "OUT", "OUTPUT", "PATH", "REFERENCE",
    "candidate", "model", "path", "texts",
])  # fmt: skip
_FOLDERS = frozenset(["DIR", "FOLDER"])

# The attribute of an action with values that are no `choices`.
_SUGGESTED = "suggested"


class PrintCompletion(argparse.Action):
    """Prints a script for a shell, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(script(parser, str(values)))
        parser.exit()


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell has to run to complete the command line of a parser.

    Raises:
        InputError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise InputError(
            "--print-completion needs shtab: pip install 'sparsec[completion]'"
        ) from None
    for action in _actions(parser):
        if values := getattr(action, _SUGGESTED, None):
            action.choices = values
        names = {action.metavar, action.dest if not action.option_strings else None}
        if names & _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif names & _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def suggest(action: argparse.Action, values: Sequence[str]) -> None:
    """Have a flag completed by values, of which it takes others and several, too."""
    setattr(action, _SUGGESTED, tuple(values))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All of a parser and its commands."""
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for command in action.choices.values() for inner in _actions(command)]
    return found
