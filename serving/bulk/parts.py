"""All rows of all inputs cut into parts, which are read, answered and written one by one."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from sparsec.errors import InputError
from sparsec.serving.bulk import files
from sparsec.serving.bulk.files import TEXT, Broken, Lines, Record, Source, unreadable
from sparsec.serving.bulk.rows import Columns, Origin, Records, Rows, as_table

# Bytes of its files that a part has at most, or a row more.
PART_BYTES = 1 << 26

# Rows of Parquet that are read at once.
_BATCH = 4096


@dataclass(frozen=True)
class Slice:
    """Neighbouring rows of one file.

    Attributes:
        source: index of the file.
        at: where they begin: bytes, of Parquet rows.
        number: lines before them, of Parquet rows.
        rows: how many they are.
    """

    source: int
    at: int
    number: int
    rows: int


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of the inputs, perhaps of several files."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.slices)


@dataclass(frozen=True)
class Plan:
    """What is to be read.

    Attributes:
        sources: the files.
        parts: all parts, in order.
        columns: the input's columns where every row has the same ones, with their types.
    """

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    columns: pa.Schema | None

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def plan(
    sources: Sequence[Source], part_rows: int, output: str, texts: Collection[str] = ()
) -> Plan:
    """Look through the files once.

    Args:
        part_rows: rows of a part; fewer where they are long.
        output: format of the output, which says what has to be known of the columns of JSON lines.
        texts: columns that have to be texts, or lists: rows where they are not have no say in the
            types of columns, since they cannot be answered.

    Raises:
        InputError: a file cannot be read, or columns differ between files.
    """
    kind = sources[0].kind
    if kind == "parquet":
        columns, runs = _parquet(sources)
        return Plan(tuple(sources), tuple(_cut(runs, part_rows)), columns)
    seen = _Seen(output, texts) if kind == "jsonl" and output != "jsonl" else None
    runs = itertools.chain.from_iterable(_steps(i, s, seen) for i, s in enumerate(sources))
    columns = _columns(sources)
    cut = tuple(_cut(runs, part_rows))
    return Plan(tuple(sources), cut, seen.columns(sources) if seen else columns)


class _Run(NamedTuple):  # one for each line: a data class would take most of the time
    """Rows of a file: where the first is, and how many bytes each is, about."""

    source: int
    at: int
    number: int
    rows: int
    bytes_each: float


def _steps(index: int, source: Source, seen: _Seen | None) -> Iterator[_Run]:
    """The records of a file, each alone."""
    with source.open() as stream:
        lines = Lines(source, stream)
        at = number = 0
        for end, line in seen.places(source, lines) if seen else files.places(source, lines):
            yield _Run(index, at, number, 1, end - at)
            at, number = end, line


def _cut(runs: Iterator[_Run], part_rows: int) -> Iterator[Part]:
    number = rows = 0
    size = 0.0
    slices: list[list[int]] = []
    for run in runs:
        if run.rows == 1 and 0 < rows < part_rows - 1 and size + run.bytes_each < PART_BYTES:
            # Nearly all: a line, and the part has room.
            _add(slices, run, 0, 1)
            rows, size = rows + 1, size + run.bytes_each
            continue
        done = 0
        while done < run.rows:
            room = max(1, int((PART_BYTES - size) / max(run.bytes_each, 1)))
            count = min(run.rows - done, part_rows - rows, room)
            _add(slices, run, done, count)
            done, rows, size = done + count, rows + count, size + count * run.bytes_each
            if rows >= part_rows or size >= PART_BYTES:
                yield Part(number, tuple(Slice(*piece) for piece in slices))
                number, rows, size, slices = number + 1, 0, 0.0, []
    if slices:
        yield Part(number, tuple(Slice(*piece) for piece in slices))


def _add(slices: list[list[int]], run: _Run, done: int, count: int) -> None:
    """Add rows to the fields of slices."""
    if slices and slices[-1][0] == run.source:
        slices[-1][3] += count
    else:
        slices.append([run.source, run.at + done, run.number + done, count])


# ---- columns -------------------------------------------------------------------------------------


def _parquet(sources: Sequence[Source]) -> tuple[pa.Schema, Iterator[_Run]]:
    schemas, runs = [], []
    for index, source in enumerate(sources):
        with source.open() as stream, _opened(source, stream) as file:
            schemas.append(file.schema_arrow)
            rows = file.metadata.num_rows
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            runs.append(_Run(index, 0, 0, rows, size / max(rows, 1)))
    return _unified(sources, schemas), iter(runs)


def _opened(source: Source, stream: BinaryIO) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {source.name}: {error}") from error


def _unified(sources: Sequence[Source], schemas: Sequence[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"the columns of the inputs differ ({error}): run {sources[0].name} and the others "
            f"apart"
        ) from None


def _columns(sources: Sequence[Source]) -> pa.Schema | None:
    """Columns of lines, as far as they are known without reading all."""
    kind = sources[0].kind
    if kind == "text":
        return pa.schema([(TEXT, pa.string())])
    if kind == "csv":
        names = files.header(sources[0])
        for source in sources[1:]:
            if (other := files.header(source)) != names:
                raise InputError(
                    f"{source.name} has the columns {', '.join(other)}, and {sources[0].name} "
                    f"{', '.join(names)}: run them apart"
                )
        return pa.schema([(name, pa.string()) for name in names])
    return None


class _Seen:
    """Columns of JSON lines that are looked through: with types for Parquet, else names alone.

    Args:
        output, texts: as for :func:`plan`.
    """

    def __init__(self, output: str, texts: Collection[str]) -> None:
        self._typed = output == "parquet"
        self._texts = tuple(texts)
        self._rows: list[Mapping[str, Any]] = []
        self._names: dict[str, None] = {}
        self._schemas: list[pa.Schema] = []

    def places(self, source: Source, lines: Lines) -> Iterator[tuple[int, int]]:
        """As :func:`files.places`, while the records are looked at."""
        for record in files.records(source, lines):
            if not isinstance(record, Broken):
                self._rows.append(record)
            if len(self._rows) == _BATCH:
                self._note()
            yield lines.at, lines.number
        self._note()

    def _note(self) -> None:
        if self._typed:
            good = [row for row in self._rows if self._readable(row)]
            schema = as_table(good).schema
            if schema not in self._schemas:
                self._schemas.append(schema)
        else:
            for row in self._rows:
                self._names.update(dict.fromkeys(row))
        self._rows = []

    def _readable(self, row: Mapping[str, Any]) -> bool:
        for name in self._texts:
            value = row.get(name)
            if not isinstance(value, (str, list)) and value is not None:
                return False
        return True

    def columns(self, sources: Sequence[Source]) -> pa.Schema:
        """All columns that there are."""
        if not self._typed:
            return pa.schema([(name, pa.null()) for name in self._names])
        return _unified(sources, self._schemas) if self._schemas else pa.schema([])


# ---- reading -------------------------------------------------------------------------------------


class Reader:
    """Reads parts; those that follow each other without looking for their beginning.  A context
    manager."""

    def __init__(self, sources: Sequence[Source], columns: pa.Schema | None) -> None:
        self._sources = tuple(sources)
        self._columns = columns
        self._open: _Cursor | None = None
        self._make: Callable[[int, Slice], _Cursor] = (
            self._row_cursor if self._sources[0].kind == "parquet" else self._line_cursor
        )

    def read(self, part: Part) -> Rows:
        """The rows of a part.

        Raises:
            InputError: a file cannot be read, or is not what it was when the parts were cut.
        """
        pieces = [self._piece(piece) for piece in part.slices]
        if self._sources[0].kind == "parquet":
            first = 0
            origins, tables = [], []
            for piece, table in zip(part.slices, pieces, strict=True):
                origins.append(Origin(first, piece.source, piece.number + 1))
                tables.append(table)
                first += piece.rows
            return Columns(pa.concat_tables(tables), tuple(origins))
        data: list[Record] = []
        numbers: list[int] = []
        sources: list[int] = []
        for piece, (rows, lines) in zip(part.slices, pieces, strict=True):
            data += rows
            numbers += lines
            sources += [piece.source] * piece.rows
        return Records(data, numbers, sources)

    def _piece(self, piece: Slice) -> Any:
        cursor = self._open
        if cursor is None or (cursor.source, cursor.at) != (piece.source, piece.at):
            self.close()
            cursor = self._open = self._make(piece.source, piece)
        found, count = cursor.take(piece.rows)
        if count < piece.rows:
            raise InputError(
                f"{self._sources[piece.source].name} has fewer rows than a moment ago: it was "
                f"changed while it was read"
            )
        return found

    def _line_cursor(self, index: int, start: Slice) -> _Cursor:
        source = self._sources[index]
        names = self._columns.names if source.kind == "csv" and self._columns is not None else ()
        return _LineCursor(index, source, start, names)

    def _row_cursor(self, index: int, start: Slice) -> _Cursor:
        assert self._columns is not None
        return _RowCursor(index, self._sources[index], start, self._columns)

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Cursor(abc.ABC):
    """A place in a file.

    Attributes:
        source: index of the file.
        at: where the next row begins, as in :class:`Slice`.
    """

    def __init__(self, index: int, source: Source, at: int) -> None:
        self.source, self.at = index, at
        self._stream = source.open()

    @abc.abstractmethod
    def take(self, rows: int) -> tuple[Any, int]:
        """(the next rows, how many they are: fewer at the end of the file)."""

    def close(self) -> None:
        self._stream.close()


class _LineCursor(_Cursor):
    def __init__(self, index: int, source: Source, start: Slice, columns: Sequence[str]) -> None:
        super().__init__(index, source, start.at)
        self._lines = Lines(source, self._stream, start.at, start.number)
        self._records = files.records(source, self._lines, columns)

    def take(self, rows: int) -> tuple[Any, int]:
        found, numbers = [], []
        for record in itertools.islice(self._records, rows):
            found.append(record)
            numbers.append(self._lines.number)
        self.at = self._lines.at
        return (found, numbers), len(found)


class _RowCursor(_Cursor):
    def __init__(self, index: int, source: Source, start: Slice, columns: pa.Schema) -> None:
        super().__init__(index, source, start.at)
        self._name = source.name
        self._columns = columns
        file = _opened(source, self._stream)
        first, skip = 0, start.at
        # Whole row groups before the first row are not read.
        while first < file.metadata.num_row_groups:
            rows = file.metadata.row_group(first).num_rows
            if skip < rows:
                break
            skip, first = skip - rows, first + 1
        groups = list(range(first, file.metadata.num_row_groups))
        self._batches = file.iter_batches(_BATCH, row_groups=groups, use_threads=False)
        self._rest: list[pa.RecordBatch] = []
        self._schema = file.schema_arrow
        self._next(skip)

    def take(self, rows: int) -> tuple[Any, int]:
        batches = self._next(rows)
        table = pa.Table.from_batches(batches, self._schema)
        self.at += table.num_rows
        if self._schema != self._columns:
            missing = [f for f in self._columns if f.name not in self._schema.names]
            for field in missing:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            table = table.select(self._columns.names).cast(self._columns)
        return table, table.num_rows

    def _next(self, rows: int) -> list[pa.RecordBatch]:
        """So many rows, fewer at the end."""
        taken = []
        while rows:
            batch = self._rest.pop() if self._rest else self._batch()
            if batch is None:
                break
            if batch.num_rows > rows:
                self._rest.append(batch.slice(rows))
                batch = batch.slice(0, rows)
            taken.append(batch)
            rows -= batch.num_rows
        return taken

    def _batch(self) -> pa.RecordBatch | None:
        try:
            return next(self._batches, None)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self._name, error) from error
