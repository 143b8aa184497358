"""A place for what is needed for a moment, on machines that have no temporary folder as well."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsec.errors import ArtifactError

# Memory that containers with a read-only root can still write to.
SHARED_MEMORY = "/dev/shm"


def private_folder(prefix: str) -> Path:
    """A new folder that only this user can enter; removing it is the caller's business.

    Raises:
        ArtifactError: nothing can be written anywhere.
    """
    for parent in _parents():
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError:
            continue
    raise ArtifactError(
        "there is no place for temporary files: mount a writable folder at /tmp, or name one in "
        "TMPDIR"
    )


@contextlib.contextmanager
def temporary(prefix: str) -> Iterator[Path]:
    """A :func:`private_folder` that is removed at the end, whatever happens."""
    folder = private_folder(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parents() -> Iterator[str]:
    """Where temporary folders may be made, best first."""
    try:
        found = tempfile.gettempdir()
    except FileNotFoundError:
        found = ""
    # Python takes the working directory if all else fails; there nobody wants our files.
    asked = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if found and (asked or not Path(found).samefile(os.curdir)):
        yield found
    yield from filter(None, (os.environ.get("XDG_RUNTIME_DIR"), SHARED_MEMORY))
