"""Paths that users give, and which files beside a model belong to it."""

from __future__ import annotations

import os
from pathlib import Path

from sparsec.errors import InputError, ModelError

# Where a folder may have its model, best first.
PLACES = ("model.onnx", "onnx/model.onnx", "deployment/model.onnx")


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as the user means it: ``~`` and ``~name`` are home folders.

    Raises:
        InputError: it begins with the home folder of somebody who has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{path} begins with ~, but no such home folder is known: give the whole path, or ./~"
        ) from None


def find_onnx(folder: Path) -> Path:
    """The model that a folder stands for: in one of :data:`PLACES`, else its only .onnx file.

    Its only file may also be in ``onnx`` or ``deployment``, as ``onnx/model_quantized.onnx``.

    Raises:
        ModelError: there is none, or there are several of which none is called model.onnx.
    """
    for place in PLACES:
        if (folder / place).is_file():
            return folder / place
    beside = dict.fromkeys((folder / place).parent for place in PLACES)
    found = sorted(p for place in beside for p in place.glob("*.onnx") if p.is_file())
    if len(found) == 1:
        return found[0]
    found = found or sorted(folder.glob("**/*.onnx"))
    names = ", ".join(str(p.relative_to(folder)) for p in found[:8])
    hint = f"it has {names}: name one" if found else "it has no .onnx file"
    raise ModelError(f"the folder {folder} has no model.onnx ({hint})")


def belongs_to(file: Path, folder: Path) -> bool:
    """Whether a file, all its links followed, is one of those in a model's folder.

    It is if it lies in the folder, or, where the folder is a snapshot in the Hugging Face hub's
    cache, among the blobs of the same repository: there every file is a link to a blob.

    Raises:
        OSError, RuntimeError: the file or the folder is missing, or links go in a circle.
    """
    file, folder = file.resolve(strict=True), folder.resolve(strict=True)
    if file.is_relative_to(folder):
        return True
    return any(
        snapshots.name == "snapshots"
        and snapshots.parent.name.startswith("models--")
        and file.parent == snapshots.parent / "blobs"
        for snapshots in folder.parents
    )
