"""Where answers go: parts that are there whole or not at all, and what becomes of them.

An output is a folder of parts, or one file that is joined from them at the end.  What is done is
noted part by part, so that the same command goes on after any end of the process.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import io
import json
import os
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import parquet

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.serving.bulk.fields import Answers, Values
from sparsec.serving.bulk.files import COMPRESSIONS, Location, Source, suffix_kind
from sparsec.serving.bulk.worker import Answered

FORMATS = ("parquet", "csv", "jsonl")

# Of a folder of parts, the folder with what is done; readers of data sets skip such names.
_STATE = "_run"

_SETTINGS = "settings.json"
_DONE = ".done"
_LOCK = "lock"
_JOINED = "joined.tmp"

# Rows of a row group of a file of Parquet that is joined.
_GROUP_ROWS = 1 << 17
_GROUP_BYTES = 1 << 26


@dataclass(frozen=True)
class Schema:
    """The form of the output.

    Attributes:
        kind: of :data:`FORMATS`.
        columns: the input's, of CSV by name alone; None: JSON lines as they are.
        answers: what is added, with types.
        single: whether it is one file, joined from the parts.
    """

    kind: str
    columns: pa.Schema | None
    answers: pa.Schema
    single: bool = False

    @property
    def part_kind(self) -> str:
        """The format of the parts: tables are written as Parquet once, when they are joined."""
        return "arrow" if self.single and self.kind == "parquet" else self.kind

    @property
    def whole(self) -> pa.Schema:
        """All columns, of Parquet and CSV."""
        assert self.columns is not None
        fields = [*self.columns, *self.answers]
        return pa.schema(fields, self.columns.metadata if self.kind == "parquet" else None)


@dataclass(frozen=True)
class Done:
    """What has become of a part.

    Attributes:
        rows: how many have an answer.
        bad: how many have none.
        cut: how many texts were cut.
    """

    rows: int
    bad: int
    cut: int


@dataclass(frozen=True)
class Encoded:
    """A part as it is written."""

    data: bytes
    bad: bytes
    done: Done


# ---- encoding ------------------------------------------------------------------------------------


def encode(found: Answered, schema: Schema, sources: Sequence[Source]) -> Encoded:
    """A part's rows with their answers, and the bad ones, as bytes of files.

    Raises:
        InputError: a column of the input has the name of an answer.
    """
    both = found.rows.names() & set(schema.answers.names)
    if both:
        raise collision(both)
    data = _WRITERS[schema.part_kind](found, schema)
    done = Done(len(found.good), len(found.bad), found.cut)
    return Encoded(data, _bad(found, sources), done)


def collision(names: set[str]) -> InputError:
    """The error for answers that are called as columns of the input."""
    return InputError(
        f"the input has a column {', '.join(sorted(names))} already, as the answer is called: give "
        f"a prefix for the answer's names, such as predicted_"
    )


def _bad(found: Answered, sources: Sequence[Source]) -> bytes:
    lines = []
    rows = found.rows.records([bad.index for bad in found.bad])
    broken = found.rows.broken()
    for bad, row in zip(found.bad, rows, strict=True):
        line = {
            "file": sources[found.rows.source(bad.index)].name,
            "row": found.rows.number(bad.index),
            "error": str(bad.error),
        }
        raw = broken.get(bad.index)
        lines.append(dumps({**line, **({"raw": raw.raw} if raw else {"data": row})}))
    return b"".join(lines)


def _answers_table(answers: Answers, schema: pa.Schema) -> pa.Table:
    arrays = [_array(answers.get(field.name, []), field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Values, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray):
        flat = pa.array(values.reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    if values and isinstance(values[0], np.ndarray) and values[0].ndim == 1:
        flat = pa.array(np.concatenate(values), kind.value_type)
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), flat)
    if values and isinstance(values[0], np.ndarray):
        values = [list(value) for value in values]
    return pa.array(values, kind)


def _table(found: Answered, schema: Schema) -> pa.Table:
    table = found.rows.table(found.good, schema.columns)
    added = _answers_table(found.columns, schema.answers)
    for field, column in zip(added.schema, added.columns, strict=True):
        table = table.append_column(field, column)
    return table.cast(schema.whole)


def _parquet(found: Answered, schema: Schema) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(_table(found, schema), sink, **_encoding(schema.whole))
    return sink.getvalue()


def _arrow(found: Answered, schema: Schema) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema.whole) as writer:
        writer.write_table(_table(found, schema))
    return sink.getvalue()


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """How columns are written: vectors as they are, since no two numbers of them are alike."""
    vectors = [
        field.name
        for field in schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    others = [name for name in schema.names if name not in vectors]
    return {"use_dictionary": others, "write_statistics": others} if vectors else {}


def _csv(found: Answered, schema: Schema) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema.whole.names)
    assert schema.columns is not None
    names = schema.columns.names
    columns = [found.columns.get(name, []) for name in schema.answers.names]
    rows = found.rows.records(found.good)
    for row, *answers in zip(rows, *columns, strict=True) if columns else ():
        writer.writerow([*(_cell(row.get(name)) for name in names), *map(_cell, answers)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return dumps(value).decode().rstrip("\n")


def _jsonl(found: Answered, schema: Schema) -> bytes:
    names = schema.answers.names
    columns = [found.columns.get(name, []) for name in names]
    lines = []
    for row, *answers in zip(found.rows.records(found.good), *columns, strict=True):
        lines.append(dumps({**row, **dict(zip(names, answers, strict=True))}))
    return b"".join(lines)


_WRITERS = {"arrow": _arrow, "parquet": _parquet, "csv": _csv, "jsonl": _jsonl}

_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


def dumps(value: Any) -> bytes:
    """A line of JSON."""
    try:
        return orjson.dumps(value, _plain, _JSON)
    except TypeError:
        # Whole numbers of more than 64 bits, and halves of characters.
        return json.dumps(value, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.tolist() if hasattr(value, "tolist") else str(value)


# ---- keeping -------------------------------------------------------------------------------------


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

    def writing(self, path: str) -> _Whole:
        """A file to write, which is there when the block ends well."""
        return _Whole(self.place, path)

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


class _Whole:
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
        _flush(self._part)
        Path(self._part).replace(self._path)
        _flush(posixpath.dirname(self._path))

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


def _flush(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Joined:
    """The one file that parts become, in their order.

    Args:
        place: of the file.
        schema: its form.
        part: where it is until it is whole.
    """

    def __init__(self, place: Location, schema: Schema, part: str) -> None:
        compression = COMPRESSIONS.get(posixpath.splitext(place.path)[1])
        self._parquet = schema.kind == "parquet"
        self._whole = _Whole(place, place.path, None if self._parquet else compression, part)
        self._stream = self._whole.__enter__()
        self._tables: list[pa.Table] = []
        self._heading = b""
        if self._parquet:
            self._writer = parquet.ParquetWriter(
                self._stream, schema.whole, **_encoding(schema.whole)
            )
        elif schema.kind == "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(schema.whole.names)
            self._heading = text.getvalue().encode("utf-8", "backslashreplace")
            self._stream.write(self._heading)

    def add(self, part: bytes) -> None:
        """Add the next part.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            if self._parquet:
                self._tables.append(pa.ipc.open_file(pa.py_buffer(part)).read_all())
                self._group(_GROUP_ROWS, _GROUP_BYTES)
            else:
                self._stream.write(memoryview(part)[len(self._heading) :])
        except OSError as error:
            raise self._whole.failed(error) from error

    def _group(self, rows: int, size: int) -> None:
        """Write what there is as a row group, if it is so much."""
        there = sum(table.num_rows for table in self._tables)
        if there >= rows or sum(table.nbytes for table in self._tables) >= size:
            self._writer.write_table(pa.concat_tables(self._tables))
            self._tables = []

    def finish(self) -> None:
        """Put the file in its place.

        Raises:
            InputError: it cannot be written.
        """
        try:
            if self._parquet:
                if self._tables:
                    self._group(0, 0)
                self._writer.close()
        except OSError as error:
            self.drop()
            raise self._whole.failed(error) from error
        self._whole.__exit__(None, None, None)

    def drop(self) -> None:
        """Forget it."""
        if self._parquet:
            with contextlib.suppress(OSError, ValueError):
                self._writer.close()
            self._writer.is_open = False  # else it tries again when it is collected
        self._whole.__exit__(InputError, InputError("dropped"), None)


def describe(output: str, kind: str | None, of_input: str) -> tuple[Location, str, bool]:
    """(where an output is, its format, whether it is one file).

    A name that ends as files of a format do is a file, unless it is that of a folder.

    Raises:
        InputError: files of that format are not written.
    """
    place = Location.of(output)
    by_name, _ = suffix_kind(place.path)
    single = by_name is not None and not output.endswith("/") and not place.fs.isdir(place.path)
    chosen = kind or (by_name if single else None) or ("jsonl" if of_input == "text" else of_input)
    if chosen not in FORMATS:
        raise InputError(
            f"the output's format must be one of {', '.join(FORMATS)}, not {chosen}: end its name "
            f"in {', '.join(f'.{kind}' for kind in FORMATS)}"
        )
    return place, chosen, single


class Output:
    """The output of a run, and what earlier runs of the same command have done of it.

    Args:
        place: where it is.
        schema: its form.
        settings: JSON values: all that the rows of the output depend on.
        bad: the file for bad rows; None: there are none.
        force: replace what is there.

    Raises:
        InputError: it is there already, or is the unfinished one of another command, or another
            process writes it.
    """

    def __init__(
        self,
        place: Location,
        schema: Schema,
        settings: Mapping[str, Any],
        bad: Location | None,
        force: bool,
    ) -> None:
        self.place, self.schema, self.single, self.bad = place, schema, schema.single, bad
        folder, name = posixpath.split(place.path.rstrip("/"))
        state = f"{folder}/.{name}.run" if self.single else f"{place.path.rstrip('/')}/{_STATE}"
        self._state = Folder(place.beside(state))
        self._parts = self._state if self.single else Folder(place)
        self._lock: Any = None
        self._joined: _Joined | None = None
        self._next = 0
        self._there: set[int] = set()
        try:
            self._begin(json.dumps(settings, sort_keys=True), force)
        except OSError as error:
            self.close()
            raise InputError(
                f"cannot write {place.name}: {error.strerror or error}; choose another output"
            ) from error
        except BaseException:
            self.close()
            raise

    def _begin(self, settings: str, force: bool) -> None:
        known = self._state.read(_SETTINGS)
        ours = known is not None and known.decode() == settings
        if known is not None:
            self._take_lock()
        if not ours:
            self._check_free(known is not None, force)
        if self._lock is None:
            self._take_lock()
        if known is not None and not ours:
            if not self.single:
                self._remove_parts()
            self._remove_state()
        if not ours:
            self._state.write(_SETTINGS, settings.encode())

    def _check_free(self, unfinished: bool, force: bool) -> None:
        if force:
            return
        if unfinished:
            raise InputError(
                f"{self._state.place.name} has the work of another command, or of one on other "
                f"inputs: repeat that to go on with it, or give {argument('force', True)} to "
                f"replace it"
            )
        there = self.place.fs.exists(self.place.path)
        if there and (self.single or self._parts.names() - {_STATE}):
            raise InputError(
                f"{self.place.name} exists: replace it with {argument('force', True)}, or choose "
                f"another"
            )
        if self.bad is not None and self.bad.fs.exists(self.bad.path):
            raise InputError(f"{self.bad.name} exists: replace it with {argument('force', True)}")

    def _take_lock(self) -> None:
        if not self.place.local:
            return
        folder = Path(self._state.place.path)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {self.place.name}") from None

    def _remove_parts(self) -> None:
        for name in self._parts.names():
            if name.startswith(("part-", ".part-")):
                self.place.fs.rm(self._parts.path(name))

    def _remove_state(self) -> None:
        for name in self._state.names() - {_LOCK}:
            self.place.fs.rm(self._state.path(name))

    def part_name(self, number: int) -> str:
        return f"part-{number:05d}.{self.schema.part_kind}"

    def done(self) -> dict[int, Done]:
        """The parts that are there, by number.

        What has become of each is in the name of a file, so that a list of names says all.
        """
        there = self._parts.names()
        found = {}
        for name in self._state.names():
            stem, suffix = posixpath.splitext(name)
            if suffix == _DONE:
                number, *counts = map(int, stem.split("-"))
                if self.part_name(number) in there:
                    found[number] = Done(*counts)
        self._there = set(found)
        return found

    def store(self, number: int, part: Encoded) -> None:
        """Keep a part; it is done when this returns."""
        self._parts.write(self.part_name(number), part.data)
        if part.bad:
            self._state.write(f"{number:05d}.bad", part.bad)
        done = part.done
        self._state.write(f"{number:05d}-{done.rows}-{done.bad}-{done.cut}{_DONE}", b"")
        self._there.add(number)
        if self.single and self.place.local:
            self._join(number, part.data)

    def finish(self, done: Mapping[int, Done]) -> None:
        """Make the output of its parts, which are all there, and the file of bad rows."""
        if self.bad is not None:
            with _Whole(self.bad, self.bad.path) as stream:
                for number in sorted(number for number in done if done[number].bad):
                    stream.write(self._state.read(f"{number:05d}.bad") or b"")
        if not self.single:
            return
        joined = self._join()
        self._joined = None
        joined.finish()
        self._state.remove()

    def _join(self, number: int = -1, data: bytes = b"") -> _Joined:
        """Join the parts that are there behind those that are joined.

        Args:
            number, data: a part that need not be read.
        """
        if self._joined is None:
            self._joined = _Joined(self.place, self.schema, self._state.path(_JOINED))
        while self._next in self._there:
            known = data if self._next == number else None
            self._joined.add(known or self._parts.read(self.part_name(self._next)) or b"")
            self._next += 1
        return self._joined

    def close(self) -> None:
        """Let others write it."""
        if self._joined is not None:
            self._joined.drop()
        self._joined = None
        if self._lock is not None:
            self._lock.close()
        self._lock = None
