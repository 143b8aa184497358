"""Files of texts on any file system: which are meant, and what is in them, a record a row.

Line-oriented files are read record by record with the place of each, so that a reader may begin at
any of them; Parquet is read in batches of rows.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from sparsec.errors import InputError
from sparsec.paths import user_path

# Bytes of the longest line, or field of CSV.
LONGEST = 1 << 26

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

TEXT = "text"
"""The one column of plain text."""


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
            f"input_format, one of {', '.join(FORMATS)}"
        )
    usual = "\t" if ".tsv" in posixpath.basename(place.path).lower() else ","
    return Source(place, kind, None if kind == "parquet" else compression, delimiter or usual)


# ---- records of line-oriented files --------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read: why, and what there is instead."""

    why: str
    raw: str


Record = Mapping[str, Any] | Broken


class Lines:
    """The lines of a stream, and where the next one begins.  An iterator of str; bytes that are not
    UTF-8 are surrogates.

    Attributes:
        at: bytes before the next line.
        number: lines before it.
    """

    def __init__(self, source: Source, stream: BinaryIO, at: int = 0, number: int = 0) -> None:
        self._name, self._stream = source.name, stream
        self.at, self.number = at, number
        if at:
            stream.seek(at)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self._stream.readline(LONGEST)
        except (OSError, EOFError, ValueError) as error:
            raise unreadable(self._name, error) from error
        if not line:
            raise StopIteration
        if len(line) == LONGEST and not line.endswith(b"\n"):
            raise InputError(f"{self._name}, line {self.number + 1}: longer than {LONGEST} bytes")
        start, self.at, self.number = self.at, self.at + len(line), self.number + 1
        text = line.decode("utf-8", "surrogateescape")
        return text if start else text.removeprefix("\ufeff")


def header(source: Source) -> list[str]:
    """The columns of a CSV file.

    Raises:
        InputError: it has none, or two of one name.
    """
    with source.open() as stream:
        names = next(_fields(source, Lines(source, stream)), None)
    if not names or any(_is_broken(name) for name in names):
        raise InputError(f"{source.name} has no first line with the names of columns")
    if len(set(names)) < len(names):
        raise InputError(f"{source.name} has several columns of one name: {', '.join(names)}")
    return names


def records(source: Source, lines: Lines, columns: Sequence[str] = ()) -> Iterator[Record]:
    """The records from where `lines` is; what is behind `lines` is not read before it is asked for.

    Args:
        columns: of CSV, its :func:`header`.
    """
    if source.kind == "text":
        return (_plain(line) for line in lines)
    if source.kind == "csv":
        if not lines.at:
            next(_fields(source, lines), None)
        return (_row(fields, columns) for fields in _fields(source, lines))
    return (_object(line) for line in lines if _no_array(source, lines, line))


def places(source: Source, lines: Lines) -> Iterator[tuple[int, int]]:
    """Where each record ends: (bytes, lines) before the next one.  Nothing is parsed that need not
    be."""
    if source.kind == "csv":
        fields = _fields(source, lines)
        next(fields, None)
        return ((lines.at, lines.number) for _ in fields)
    if source.kind == "text":
        return ((lines.at, lines.number) for _ in lines)
    return ((lines.at, lines.number) for line in lines if _no_array(source, lines, line))


def _blank(line: str) -> bool:
    return line.isspace() or line == "\ufeff"


def _is_broken(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


def _legible(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _plain(line: str) -> Record:
    text = line.removesuffix("\n").removesuffix("\r")
    return Broken("it is not UTF-8", _legible(text)) if _is_broken(text) else {TEXT: text}


def _no_array(source: Source, lines: Lines, line: str) -> bool:
    """Whether a line has a record.

    Raises:
        InputError: the file is JSON, but no JSON lines.
    """
    if lines.number == 1 and line.lstrip("\ufeff").lstrip().startswith("["):
        raise InputError(
            f"{source.name} begins with [: a JSON array; JSON lines are needed, an object a line"
        )
    return not _blank(line)


def _object(line: str) -> Record:
    if _is_broken(line):
        return Broken("it is not UTF-8", _legible(line.strip()))
    try:
        found = orjson.loads(line)
        if _is_rounded(found):
            found = json.loads(line)
    except orjson.JSONDecodeError:
        # Which is right, or is what only json reads: NaN, numbers beyond a double's.
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Broken(f"it is not JSON: {error}", line.strip())
    if not isinstance(found, dict):
        return Broken("it is JSON, but no object", line.strip())
    return found


def _is_rounded(value: Any) -> bool:
    """Whether a value of orjson may have a whole number of more than 64 bits, which it makes a
    double."""
    if isinstance(value, dict):
        return any(map(_is_rounded, value.values()))
    if isinstance(value, list):
        return any(map(_is_rounded, value))
    return isinstance(value, float) and abs(value) >= 1 << 63


def _fields(source: Source, lines: Lines) -> Iterator[list[str]]:
    """Records of CSV that are not empty."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, delimiter=source.delimiter)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{source.name}, line {lines.number}: {error}") from None
        if fields:
            yield fields


def _row(fields: list[str], columns: Sequence[str]) -> Record:
    if len(fields) != len(columns):
        raw = io.StringIO()
        csv.writer(raw).writerow(map(_legible, fields))
        return Broken(
            f"it has {len(fields)} fields, and the first line names {len(columns)}",
            raw.getvalue().strip(),
        )
    if any(map(_is_broken, fields)):
        return Broken("it is not UTF-8", ",".join(map(_legible, fields)))
    return dict(zip(columns, fields, strict=True))
