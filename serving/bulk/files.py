"""Files of texts on any file system: which are meant, and of what format they are."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.paths import user_path

# What a file's name ends in.
SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
}
FORMATS = ("parquet", "csv", "jsonl", "text")

# How compressed files' names end, and what fsspec calls that.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


@dataclass(frozen=True)
class Location:
    """A path on a file system of fsspec.

    Attributes:
        fs: the file system.
        path: as the file system names it; of local files absolute.
        name: as the user named it, without what a URL may have of secrets.
    """

    fs: Any
    path: str
    name: str

    @classmethod
    def of(cls, name: str) -> Location:
        """
        Raises:
            InputError: fsspec does not know the protocol, or lacks a package for it.
        """
        from fsspec.core import url_to_fs

        try:
            if "://" not in name:
                name = str(user_path(name))
            fs, path = url_to_fs(name)
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"cannot open {name}: {error}") from error
        return cls(fs, path, name)

    @property
    def local(self) -> bool:
        """Whether this is a file of this machine."""
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def beside(self, path: str) -> Location:
        """Another path of the same file system."""
        scheme, mark, _ = self.name.rpartition("://")
        return Location(self.fs, path, f"{scheme}{mark}{path.lstrip('/')}" if mark else path)


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        place: where it is.
        kind: of :data:`FORMATS`.
        compression: as fsspec calls it; None: it is not compressed.
        delimiter: what parts the fields of CSV.
    """

    place: Location
    kind: str
    compression: str | None = None
    delimiter: str = ","

    @property
    def name(self) -> str:
        return self.place.name

    def open(self) -> BinaryIO:
        """A stream of the file's bytes, compression undone; it can be sought in.

        Raises:
            InputError: it cannot be opened.
        """
        try:
            found: BinaryIO = self.place.fs.open(
                self.place.path, "rb", compression=self.compression
            )
        except (OSError, ValueError, ImportError) as error:
            raise unreadable(self.name, error) from error
        return found

    def stamp(self) -> list[Any]:
        """Name, size, and when or in what version the file was written: equal ones are equal."""
        info = self.place.fs.info(self.place.path)
        keys = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified")
        known = (str(info[key]) for key in keys if info.get(key) is not None)
        return [self.name, info.get("size"), next(known, "")]


def unreadable(name: str, error: Exception) -> InputError:
    """The error for a file that cannot be read."""
    return InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}")


def suffix_kind(name: str) -> tuple[str | None, str | None]:
    """(format, compression) by a file's name; None where it does not say."""
    stem, suffix = posixpath.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = posixpath.splitext(stem)[1]
    return SUFFIXES.get(suffix), compression


def find(
    inputs: Sequence[str], kind: str | None = None, delimiter: str | None = None
) -> tuple[Source, ...]:
    """The files that are meant, in the order of `inputs`, those of a pattern or folder by name.

    Args:
        inputs: files, folders, patterns with ``*``, ``?``, ``[...]`` and ``**``, on this machine or
            as URLs that fsspec knows.
        kind: of :data:`FORMATS`; None: by the names.
        delimiter: of CSV; None: a comma, a tab in ``.tsv``.

    Raises:
        InputError: nothing is there, a name does not say what the file is, or they are of several
            formats.
    """
    found = [_source(place, kind, delimiter) for name in inputs for place in _expand(name)]
    if not found:
        raise InputError("no input is given")
    kinds = {source.kind for source in found}
    if len(kinds) > 1:
        raise InputError(f"the inputs are of several formats ({', '.join(sorted(kinds))}): run one")
    return tuple(found)


def _expand(name: str) -> Iterator[Location]:
    place = Location.of(name)
    place.fs.invalidate_cache()
    try:
        if place.fs.isfile(place.path):
            yield place
            return
        if place.fs.isdir(place.path):
            inside = sorted(place.fs.ls(place.path, detail=False))
        elif any(c in name for c in "*?["):
            inside = sorted(p for p in place.fs.glob(place.path) if place.fs.isfile(p))
        else:
            raise InputError(f"{name} does not exist")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(name, error) from error
    # What writers of data sets leave beside it begins so.
    known = [p for p in inside if not posixpath.basename(p.rstrip("/")).startswith(("_", "."))]
    if place.fs.isdir(place.path):
        known = [p for p in known if suffix_kind(p)[0]]
    if not known:
        raise InputError(f"{name}: there is no such file, or none of a format that is known")
    yield from (place.beside(path) for path in known)


def _source(place: Location, kind: str | None, delimiter: str | None) -> Source:
    by_name, compression = suffix_kind(place.path)
    kind = kind or by_name
    if kind is None:
        raise InputError(
            f"{place.name}: its name does not end in {', '.join(SUFFIXES)}: say what it is with "
            f"{argument('input_format')}, one of {', '.join(FORMATS)}"
        )
    usual = "\t" if ".tsv" in posixpath.basename(place.path).lower() else ","
    return Source(place, kind, None if kind == "parquet" else compression, delimiter or usual)
