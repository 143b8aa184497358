"""Paths that users give, and which files beside a model belong to it."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterable
from pathlib import Path

from sparsec.errors import InputError, ModelError

# Where a folder may have its model, best first.
PLACES = ("model.onnx", "onnx/model.onnx", "deployment/model.onnx")

# What exporters call the forms of one model, the ones nearest to what was trained first: float32,
# fused, half precision, 8 bits, 4 bits.
VARIANTS = (
    *("model", "model_fp32", "model_optimized", "model_O1", "model_O2", "model_O3"),
    *("model_fp16", "model_O4"),
    *("model_int8", "model_quantized", "model_uint8", "model_q8"),
    *("model_qint8_avx512_vnni", "model_qint8_avx512", "model_quint8_avx2", "model_qint8_arm64"),
    *("model_q4", "model_q4f16"),
)

# What makes a folder that of a model for texts.
TOKENIZERS = ("tokenizer.json", "vocab.txt")


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


def input_path(path: str | os.PathLike[str]) -> Path:
    """A path of something to read, as the user means it; whether it exists is for others to say.

    Raises:
        InputError: it begins with the home folder of somebody who has none, or it is out of reach:
            a folder that may not be entered, a name too long.
    """
    found = user_path(path)
    try:
        folder = stat.S_ISDIR(found.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is a ValueError
        return found
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if folder and not os.access(found, os.R_OK | os.X_OK):
        raise InputError(f"cannot read {path}: {os.strerror(errno.EACCES)}")
    return found


def choose_onnx(files: Iterable[str]) -> str | None:
    """The model among a folder's files.

    It is in one of :data:`PLACES`; else in the folder, ``onnx`` or ``deployment`` and called as one
    of :data:`VARIANTS`, the first of them that is there; else the only .onnx file in those three.

    Args:
        files: relative to the folder, with slashes.

    Returns:
        The file; None if there is none, or several with names of other kinds.
    """
    folders = [posixpath.dirname(place) for place in PLACES]
    found = {f for f in files if f.endswith(".onnx") and posixpath.dirname(f) in folders}
    for name in VARIANTS:
        for folder in folders:
            if (file := posixpath.join(folder, f"{name}.onnx")) in found:
                return file
    return found.pop() if len(found) == 1 else None


def find_onnx(folder: Path) -> Path:
    """The model that a folder stands for, by the rules of :func:`choose_onnx`.

    Raises:
        ModelError: there is none, or there are several with unusual names.
    """
    files = (p for place in PLACES for p in (folder / place).parent.glob("*.onnx") if p.is_file())
    chosen = choose_onnx(p.relative_to(folder).as_posix() for p in files)
    if chosen is not None:
        return folder / chosen
    found = sorted(folder.glob("**/*.onnx"))
    names = ", ".join(str(p.relative_to(folder)) for p in found[:8])
    hint = f"it has {names}: name one" if found else no_onnx(str(folder))
    raise ModelError(f"the folder {folder} has no model.onnx ({hint})")


def no_onnx(model: str) -> str:
    """What to do about a model of PyTorch, which has no file of ONNX.

    Args:
        model: its folder, or its name on the Hub.
    """
    return (
        f"it has no .onnx file: export it, for example with `optimum-cli export onnx --model "
        f"{model} FOLDER`, and give the folder"
    )


def around(path: Path) -> list[Path]:
    """The folders in which the tokenizer and the configuration of a model may be, nearest first.

    Args:
        path: the model: a file, an artifact, or a folder with a model.
    """
    path = path.absolute()
    folders = [path.parent] if path.is_file() else [path]
    if path.is_dir():
        with contextlib.suppress(ModelError):
            folders.append(find_onnx(path).parent)
    # The hub has models in a folder inside of the one that has the rest.
    if folders[0].name in filter(None, map(posixpath.dirname, PLACES)):
        folders.append(folders[0].parent)
    return list(dict.fromkeys(folders))


def config_folder(model: Path) -> Path:
    """The folder of a model's config.json; its own folder where there is none.

    Args:
        model: the .onnx file.
    """
    return next((p for p in around(model) if (p / "config.json").is_file()), model.parent)


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


def flush(path: str | Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
