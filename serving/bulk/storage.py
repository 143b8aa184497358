"""Files that are there whole or not at all, on any file system."""

from __future__ import annotations

import posixpath
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from sparsec.errors import InputError
from sparsec.paths import flush
from sparsec.serving.bulk.files import Location


class Folder:
    """A folder of any file system, whose files are written whole or not at all."""

    def __init__(self, place: Location) -> None:
        self.place = place

    def path(self, name: str) -> str:
        return posixpath.join(self.place.path, name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file.

        Raises:
            InputError: it cannot be written; what was there stays.
        """
        path = self.path(name)
        with self.writing(path) as stream:
            stream.write(data)

    def writing(self, path: str) -> Whole:
        """A file to write, which is there when the block ends well."""
        return Whole(self.place, path)

    def read(self, name: str) -> bytes | None:
        try:
            data: bytes = self.place.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return data

    def names(self) -> set[str]:
        # Other processes write here, too: what is remembered of it may be old.
        self.place.fs.invalidate_cache()
        try:
            found = self.place.fs.ls(self.place.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return {posixpath.basename(path.rstrip("/")) for path in found}

    def remove(self) -> None:
        """Remove it with all that is in it."""
        if self.place.local:
            shutil.rmtree(self.place.path, ignore_errors=True)
        elif self.place.fs.exists(self.place.path):
            self.place.fs.rm(self.place.path, recursive=True)


class Whole:
    """Writes a file elsewhere and moves it to its place at the end.

    Args:
        place: says on which file system.
        path: of the file.
        compression: as fsspec calls it; None: none.
        part: where it is written; None: beside it.
    """

    def __init__(
        self, place: Location, path: str, compression: str | None = None, part: str | None = None
    ) -> None:
        folder, name = posixpath.split(path)
        self._fs, self._local = place.fs, place.local
        self._path = path
        self._part = part or posixpath.join(folder, f".{name}.tmp")
        self._compression = compression

    def __enter__(self) -> BinaryIO:
        try:
            self._fs.makedirs(posixpath.dirname(self._path), exist_ok=True)
            self._stream = self._fs.open(self._part, "wb", compression=self._compression)
        except (OSError, ValueError, ImportError) as error:
            raise self.failed(error) from error
        found: BinaryIO = self._stream
        return found

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._stream.close()
            if error is None:
                self._publish()
        except OSError as failure:
            error = failure
        if error is not None:
            self._drop()
        if isinstance(error, OSError):
            raise self.failed(error) from error

    def _publish(self) -> None:
        if not self._local:
            self._fs.mv(self._part, self._path)
            return
        flush(self._part)
        Path(self._part).replace(self._path)
        flush(posixpath.dirname(self._path))

    def _drop(self) -> None:
        try:
            self._fs.rm(self._part)
        except OSError:
            return

    def failed(self, error: Exception) -> InputError:
        """The error for a file that cannot be written."""
        reason = getattr(error, "strerror", None) or error
        return InputError(
            f"cannot write {self._path}: {reason}; what is done stays: repeat the command to go on"
        )
