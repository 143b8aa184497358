"""The record of ``sparsec compile --tune``: choices for each target, kept in the manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsec import targets
from sparsec.arguments import argument
from sparsec.compiler.lowering.tiling import Tilings
from sparsec.errors import InputError
from sparsec.interface import MANIFEST
from sparsec.runtime import CpuInfo
from sparsec.targets import Target

logger = logging.getLogger("sparsec")


def recorded(path: Path, isas: Sequence[Target]) -> dict[str, Tilings]:
    """The choices that an artifact's manifest, or a file like it, has for some targets.

    Args:
        path: the artifact or the file.
        isas: the targets; those that the record does not know are left out, with a warning.

    Raises:
        InputError: it is no such record, or knows none of them.
    """
    file = path / MANIFEST if path.is_dir() else path
    try:
        rows = json.loads(file.read_bytes())["tuning"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} holds no record of {argument('tune', True)}: {error}") from error
    Tilings.from_json(rows, str(file))
    known = {row.get("target") for row in rows}
    found = {}
    for isa in isas:
        # Where a row names no target, it is for whichever there is.
        mine = [row for row in rows if row.get("target", isa.name) == isa.name]
        if mine or not rows:
            found[isa.name] = Tilings.from_json(mine, str(file))
    if not found:
        raise InputError(
            f"{file} holds choices for {', '.join(sorted(map(str, known)))}, not for "
            f"{', '.join(isa.name for isa in isas)}: name one of those targets"
        )
    for isa in isas:
        if isa.name not in found:
            _warn(isa, f"{file} has no choices for it")
    return found


def measurable(isas: Sequence[Target], here: CpuInfo) -> tuple[Target, ...]:
    """The targets that ``--tune`` can measure here; a warning for each of the others.

    All of them, where none can be: measuring says what is missing.
    """
    why = {isa.name: _hindrance(isa, here) for isa in isas}
    able = tuple(isa for isa in isas if why[isa.name] is None)
    for isa in isas if able else ():
        if reason := why[isa.name]:
            _warn(isa, reason)
    return able or tuple(isas)


def _hindrance(isa: Target, here: CpuInfo) -> str | None:
    if isa.arch not in ("", here.arch):
        return f"this machine is {here.arch}"
    if missing := isa.missing(here.features):
        return f"this machine lacks {', '.join(missing)}"
    return targets.refusal(isa)


def _warn(isa: Target, reason: str) -> None:
    logger.warning("%s is not tuned, but cut by rules: %s", isa.name, reason)


def rows(chosen: Mapping[str, Tilings]) -> list[dict[str, Any]]:
    """The record of choices by target, for the manifest."""
    return [{"target": name, **row} for name, made in chosen.items() for row in made.to_json()]
