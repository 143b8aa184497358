"""Line-oriented files, a record a row: JSON lines, CSV, and plain text.

They are read in blocks of records with the place of each, so that a reader may begin at any of
them.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from sparsec.errors import InputError
from sparsec.serving.bulk.files import Source, unreadable

TEXT = "text"
"""The one column of plain text."""

# Bytes of the longest line, or field of CSV.
LONGEST = 1 << 26

# Bytes that are read at once, and of CSV the records of a block.
_CHUNK = 1 << 20
_RECORDS = 4096


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read: why, and what there is instead."""

    why: str
    raw: str


Record = Mapping[str, Any] | Broken


@dataclass(frozen=True)
class Block:
    """Neighbouring records of a file.

    Attributes:
        records: what they are; none where only their places are asked for.
        ends: of each, the bytes before the next one.
        numbers: of each, the lines before the next one: the line that it ends in.
    """

    records: Sequence[Record]
    ends: Sequence[int]
    numbers: Sequence[int]


def header(source: Source) -> list[str]:
    """The columns of a CSV file.

    Raises:
        InputError: it has none, or two of one name.
    """
    with source.open() as stream:
        names = next(_fields(source, _Lines(source, stream, 0, 0)), None)
    if not names or any(_is_broken(name) for name in names):
        raise InputError(f"{source.name} has no first line with the names of columns")
    if len(set(names)) < len(names):
        raise InputError(f"{source.name} has several columns of one name: {', '.join(names)}")
    return names


def blocks(
    source: Source,
    stream: BinaryIO,
    at: int = 0,
    number: int = 0,
    columns: Sequence[str] = (),
    *,
    parsed: bool = True,
) -> Iterator[Block]:
    """The records of a file from a place on.

    Args:
        stream: the file, open.
        at, number: bytes and lines before the first record.
        columns: of CSV, its :func:`header`.
        parsed: whether the records themselves are wanted, and not only their places.

    Raises:
        InputError: the file cannot be read, or is not of its format.
    """
    if at:
        stream.seek(at)
    if source.kind == "csv":
        return _csv(source, _Lines(source, stream, at, number), columns, parsed)
    return (_text if source.kind == "text" else _json)(source, stream, at, number, parsed)


# ---- lines ---------------------------------------------------------------------------------------


def _chunks(source: Source, stream: BinaryIO, number: int) -> Iterator[list[bytes]]:
    """Lines, those that were read at once together.

    Args:
        number: lines before the first.

    Raises:
        InputError: the file cannot be read, or a line is too long.
    """
    while True:
        try:
            data = stream.read(_CHUNK)
            if data and not data.endswith(b"\n"):
                data += stream.readline(LONGEST)
        except (OSError, EOFError, ValueError) as error:
            raise unreadable(source.name, error) from error
        if not data:
            return
        if not number and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(
                f"{source.name} is UTF-16: UTF-8 is needed (iconv -f UTF-16 -t UTF-8 makes it)"
            )
        lines = io.BytesIO(data).readlines()
        if len(data) > LONGEST:
            for i, line in enumerate(lines, number + 1):
                if len(line) > LONGEST:
                    raise InputError(f"{source.name}, line {i}: longer than {LONGEST} bytes")
        yield lines
        number += len(lines)


def _places(lines: list[bytes], at: int) -> list[int]:
    """Bytes before the line behind each."""
    return list(itertools.accumulate(map(len, lines), initial=at))[1:]


def _text(source: Source, stream: BinaryIO, at: int, number: int, parsed: bool) -> Iterator[Block]:
    for lines in _chunks(source, stream, number):
        ends = _places(lines, at)
        numbers = range(number + 1, number + 1 + len(lines))
        if not at:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        yield Block([_plain(line) for line in lines] if parsed else (), ends, numbers)
        at, number = ends[-1], numbers[-1]


def _plain(line: bytes) -> Record:
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return {TEXT: line.decode()}
    except UnicodeDecodeError:
        return Broken("it is not UTF-8", line.decode("utf-8", "backslashreplace"))


def _json(source: Source, stream: BinaryIO, at: int, number: int, parsed: bool) -> Iterator[Block]:
    """A record a line that is not blank."""
    for lines in _chunks(source, stream, number):
        ends = _places(lines, at)
        numbers: Sequence[int] = range(number + 1, number + 1 + len(lines))
        if not at:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            _check_lines(source, lines)
        at, number = ends[-1], numbers[-1]
        there = [i for i, line in enumerate(lines) if line[:1] == b"{" or not _blank(line)]
        if len(there) < len(lines):
            lines, ends = [lines[i] for i in there], [ends[i] for i in there]
            numbers = [numbers[i] for i in there]
        yield Block([_object(line) for line in lines] if parsed else (), ends, numbers)


def _check_lines(source: Source, lines: Sequence[bytes]) -> None:
    """
    Raises:
        InputError: the file is JSON, but no JSON lines.
    """
    first = next((line for line in lines if not _blank(line)), b"").strip()
    what = "a JSON array" if first.startswith(b"[") else "an object over several lines"
    if first.startswith(b"[") or first == b"{":
        raise InputError(
            f"{source.name} begins with {first.decode()[:1]}: {what}; JSON lines are needed, an "
            f"object a line"
        )


def _blank(line: bytes) -> bool:
    return not line.decode("utf-8", "surrogateescape").strip("\ufeff").strip()


def _object(line: bytes) -> Record:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _object_of(line.decode("utf-8", "surrogateescape"))
    if type(found) is not dict:
        return Broken("it is JSON, but no object", line.decode().strip())
    for value in found.values():
        # Whole numbers of more than 64 bits are among the doubles of orjson.
        if type(value) is not str and type(value) is not int and _is_rounded(value):
            record: Record = json.loads(line)
            return record
    return found


def _object_of(line: str) -> Record:
    """What orjson does not read, which is right: it is wrong, or is what only json reads: NaN,
    numbers beyond a double's."""
    if _is_broken(line):
        return Broken("it is not UTF-8", _legible(line.strip()))
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Broken(f"it is not JSON: {error}", line.strip())
    return found if isinstance(found, dict) else Broken("it is JSON, but no object", line.strip())


def _is_rounded(value: Any) -> bool:
    """Whether a value of orjson may have a whole number of more than 64 bits, which it makes a
    double."""
    if isinstance(value, dict):
        return any(map(_is_rounded, value.values()))
    if isinstance(value, list):
        return any(map(_is_rounded, value))
    return isinstance(value, float) and abs(value) >= 1 << 63


# ---- CSV -----------------------------------------------------------------------------------------


# Behind the last line: where it is part of a record, that has a quote which nothing closes.
_END = "\0"


class _Lines:
    """An iterator of lines, and :data:`_END`; bytes that are not UTF-8 are surrogates.

    Attributes:
        at, number: bytes and lines before the next one.
        ended: whether there is none.
    """

    def __init__(self, source: Source, stream: BinaryIO, at: int, number: int) -> None:
        self._chunks = _chunks(source, stream, number)
        self._lines: Iterator[bytes] = iter(())
        self.ended = False
        self.at, self.number = at, number

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            lines = next(self._chunks, None)
            if lines is None:
                if self.ended:
                    raise StopIteration
                self.ended = True
                return _END
            self._lines = iter(lines)
            line = next(self._lines)
        text = line.decode("utf-8", "surrogateescape")
        if not self.at:
            text = text.removeprefix("\ufeff")
        self.at, self.number = self.at + len(line), self.number + 1
        return text


def _csv(source: Source, lines: _Lines, columns: Sequence[str], parsed: bool) -> Iterator[Block]:
    first = lines.at
    fields = _fields(source, lines)
    if not first:
        next(fields, None)
    records: list[Record] = []
    ends: list[int] = []
    numbers: list[int] = []
    for row in fields:
        if parsed:
            records.append(_row(row, columns))
        ends.append(lines.at)
        numbers.append(lines.number)
        if len(ends) == _RECORDS or lines.at - first >= _CHUNK:
            yield Block(records, ends, numbers)
            records, ends, numbers, first = [], [], [], lines.at
    if ends:
        yield Block(records, ends, numbers)


def _fields(source: Source, lines: _Lines) -> Iterator[list[str]]:
    """Records of CSV that are not empty."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, delimiter=source.delimiter)
    number = lines.number
    while True:
        try:
            fields = next(reader)
        except csv.Error as error:
            raise InputError(f"{source.name}, line {lines.number}: {error}") from None
        if lines.ended:
            if fields == [_END]:
                return
            raise InputError(
                f"{source.name}, line {number + 1}: the quote of a field is never closed"
            )
        if fields:
            yield fields
        number = lines.number


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


def _is_broken(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


def _legible(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
