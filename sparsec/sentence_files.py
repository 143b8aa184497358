"""The files by which a sentence-transformers model says how the vector of a text is made.

A model's folder has ``modules.json``, which lists modules and the folder of each, such as
``1_Pooling/config.json``; an artifact has all files side by side, as ``1_Pooling-config.json``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.errors import ModelError

MODULES = "modules.json"

# What describes the whole.
SETTINGS = "config_sentence_transformers.json"

# What describes the transformer; old models name it after their architecture.
TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# What a module may have in its folder.
_PARTS = ("config.json", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Module:
    """A row of modules.json.

    Attributes:
        kind: its class, without the package: Transformer, Pooling, Dense, Normalize ...
        path: its folder in the model's; "" for the model's own.
    """

    kind: str
    path: str


def modules(folder: Path) -> tuple[Module, ...]:
    """The modules of a model; none if the folder has no modules.json.

    Raises:
        ModelError: the file is damaged, or names a place outside of the folder.
    """
    file = folder / MODULES
    if not file.is_file():
        return ()
    rows = read_json(file)
    found = []
    for row in rows if isinstance(rows, list) else [None]:
        kind, path = (row.get("type"), row.get("path")) if isinstance(row, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise ModelError(f"{file} is damaged: it must be a list of modules with type and path")
        if not re.fullmatch(r"([A-Za-z0-9_-][A-Za-z0-9._-]*)?", path):
            raise ModelError(f"{file}: {path!r} is not the name of a folder inside of the model's")
        found.append(Module(kind.rpartition(".")[2], path))
    return tuple(found)


def part(folder: Path, module: Module, name: str) -> Path | None:
    """A module's file, in a model's folder or in an artifact; None if it has none."""
    if not module.path:
        places = [folder / name]
    else:
        places = [folder / module.path / name, folder / f"{module.path}-{name}"]
    return next((place for place in places if place.is_file()), None)


def all_files(folder: Path) -> dict[str, Path]:
    """All of these files in a model's folder, by the names that they have in an artifact.

    Raises:
        ModelError: as for :func:`modules`.
    """
    rows = modules(folder)
    if not rows:
        return {}
    found = {name: folder / name for name in (MODULES, SETTINGS, *TRANSFORMER)}
    for row in rows:
        if row.path:
            names = (*_PARTS, *TRANSFORMER)
            found |= {f"{row.path}-{name}": folder / row.path / name for name in names}
    return {name: path for name, path in found.items() if path.is_file()}


def read_json(file: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        ModelError: it cannot be read, or is none.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
