"""The artifact directory: its manifest, and how it comes to be whole or not at all.

Everything is written into a folder next to the output and renamed into place as the last step.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.arguments import argument
from sparsec.errors import ArtifactError, ModelError
from sparsec.interface import FORMAT, MANIFEST, SCHEMA
from sparsec.paths import TOKENIZERS, around, belongs_to, flush
from sparsec.sentence_files import all_files

if TYPE_CHECKING:
    from sparsec.compiler.frontend import Model

# What a model's folder may hold beside the model that users of the artifact need.
COMPANIONS = (
    "added_tokens.json",
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


def check_output(output: Path, force: bool) -> None:
    """Refuse early what could not be published at the end.

    Raises:
        ArtifactError: the output exists and `force` is not given, or it is something else than an
            artifact, or it cannot be written there.
    """
    parent = next(p for p in output.absolute().parents if p.is_symlink() or p.exists())
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {output}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"cannot write {output}: {parent} cannot be written; choose another "
            f"{argument('output')}"
        )
    if output.is_symlink() or output.exists():
        # A forced write removes what was there, so it must be one of ours.
        if output.is_symlink() or not (output / MANIFEST).is_file():
            raise ArtifactError(
                f"{output} exists and is not an artifact; choose another {argument('output')}"
            )
        if not force:
            raise ArtifactError(
                f"{output} exists; replace it with {argument('exist_ok', True)}, or choose another "
                f"{argument('output')}"
            )


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A private folder beside the output, removed at the end whatever happens.

    Folders that lead to the output are made, and removed if nothing has come into them.

    Raises:
        ArtifactError: the disk is full, or another failure to write.
    """
    parent = output.absolute().parent
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    folder = None
    try:
        with writing(output):
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=parent))
            _unfinished.add(folder)
            yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _unfinished.discard(folder)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove the folders that are being written, for an exit that does not wait for threads."""
    for folder in list(_unfinished):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn the operating system's errors into one that says what could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += "; nothing was written, free some space and try again"
        raise ArtifactError(f"cannot write {what}: {reason}") from error


def companions_of(model: Model) -> dict[str, Path]:
    """Files that users of a model's artifact need, by their name in it: those of the folder that
    was named; or of the folder of the file that was, if a tokenizer lies beside it.

    Raises:
        ModelError: one in a folder that was named is a link to somewhere else.
    """
    if model.bundle is not None:
        return companions(model.bundle)
    beside = [place / name for place in around(model.path) for name in TOKENIZERS]
    if not any(path.is_file() for path in beside):
        return {}
    try:
        return companions(model.path.parent)
    except ModelError:  # nobody has asked for these
        return {}


def companions(folder: Path) -> dict[str, Path]:
    """Tokenizer and configuration files of a model's folder, by their name in an artifact.

    Where the model is in ``onnx`` inside of the folder, or the folder is that one, they may be in
    either of the two.

    Raises:
        ModelError: one of them is a link to somewhere else.
    """
    found = {
        name: place / name
        for place in reversed(around(folder))
        for name in COMPANIONS
        if (place / name).is_file()
    }
    for place in around(folder):
        found |= all_files(place)
    for path in found.values():
        if not belongs_to(path, path.parent):
            raise ModelError(
                f"{path} is a symbolic link that leaves the model's folder: put the file itself "
                "there"
            )
    return found


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Record size and sha256 of every file in the folder, write the manifest, flush all to disk."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({**manifest, "files": files}, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        flush(path)


def publish(folder: Path, output: Path, force: bool) -> None:
    """Rename a sealed folder to its final name; with `force`, swap it with what is there.

    Raises:
        ArtifactError: something appeared at `output` meanwhile, or the rename failed.
    """
    with writing(output):
        check_output(output, force)
        if output.exists():
            if not _rename(folder, output, _RENAME_EXCHANGE):
                # Without an atomic exchange there is a moment with neither; still nothing is lost.
                old = folder.with_name(folder.name + ".old")
                output.rename(old)
                try:
                    folder.rename(output)
                except BaseException:
                    old.rename(output)
                    raise
        elif not _rename(folder, output, _RENAME_NOREPLACE):
            folder.rename(output)
        flush(output.absolute().parent)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _rename(source: Path, destination: Path, flags: int) -> bool:
    """renameat2; False where the C library, kernel or file system does not have it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    names = (os.fsencode(source), os.fsencode(destination))
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(destination))


def manifest_of(
    *,
    sparsec_version: str,
    abi: int,
    model: Mapping[str, str],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    mask_input: str | None,
    padding: Mapping[str, str],
    variants: Sequence[Mapping[str, Any]],
    tuning: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The manifest without its file list, which :func:`seal` adds.

    It holds no time and no path, so that the same input gives the same bytes.

    Args:
        variants: for each target, fastest first, what :data:`sparsec.interface.PER_TARGET` names.
    """
    *faster, last = variants
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "abi": abi,
        "sparsec_version": sparsec_version,
        "model": dict(model),
        "inputs": [dict(row) for row in inputs],
        "outputs": [dict(row) for row in outputs],
        "mask_input": mask_input,
        "padding": dict(padding),
        "tuning": [dict(row) for row in tuning],
        **last,
        **({"variants": faster} if faster else {}),
    }
