"""All rows of all inputs cut into parts, which are read, answered and written one by one."""

from __future__ import annotations

import abc
import bisect
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from sparsec.errors import InputError
from sparsec.serving.bulk.files import Source, unreadable
from sparsec.serving.bulk.records import TEXT, Block, Broken, Record, blocks, header
from sparsec.serving.bulk.rows import Columns, Origin, Records, Rows, as_table

# Bytes of its files that a part has at most, or a row more.
PART_BYTES = 1 << 26

# What a column that has to be texts, or lists, may have.
_READABLE = (str, list, type(None))

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
    runs = itertools.chain.from_iterable(_lines(i, s, seen) for i, s in enumerate(sources))
    columns = _columns(sources)
    cut = tuple(_cut(runs, part_rows))
    return Plan(tuple(sources), cut, seen.columns(sources) if seen else columns)


class _Run(abc.ABC):
    """Neighbouring rows of a file.

    Args:
        source: index of the file.
        rows: how many they are.
    """

    def __init__(self, source: int, rows: int) -> None:
        self.source, self.rows = source, rows

    @abc.abstractmethod
    def place(self, row: int) -> tuple[int, int]:
        """Where a row is: `at` and `number` of :class:`Slice`."""

    @abc.abstractmethod
    def size(self, row: int, count: int) -> float:
        """Bytes of so many rows."""

    @abc.abstractmethod
    def within(self, row: int, size: float) -> int:
        """How many rows it takes from one on to have so many bytes, or more."""


class _LineRun(_Run):
    """Records of a block."""

    def __init__(self, source: int, at: int, number: int, block: Block) -> None:
        super().__init__(source, len(block.ends))
        self._first = (at, number)
        self._block = block

    def place(self, row: int) -> tuple[int, int]:
        return (self._block.ends[row - 1], self._block.numbers[row - 1]) if row else self._first

    def size(self, row: int, count: int) -> float:
        return self._block.ends[row + count - 1] - self.place(row)[0]

    def within(self, row: int, size: float) -> int:
        return bisect.bisect_left(self._block.ends, self.place(row)[0] + size, row) + 1 - row


class _ParquetRun(_Run):
    """All rows of a file, which are taken to be of one size."""

    def __init__(self, source: int, rows: int, size: int) -> None:
        super().__init__(source, rows)
        self._each = max(size / max(rows, 1), 1)

    def place(self, row: int) -> tuple[int, int]:
        return row, row

    def size(self, row: int, count: int) -> float:
        return count * self._each

    def within(self, row: int, size: float) -> int:
        return math.ceil(size / self._each)


def _lines(index: int, source: Source, seen: _Seen | None) -> Iterator[_Run]:
    """The blocks of a file."""
    with source.open() as stream:
        at = number = 0
        for block in blocks(source, stream, parsed=seen is not None):
            if seen is not None:
                seen.note(block.records)
            if block.ends:
                yield _LineRun(index, at, number, block)
                at, number = block.ends[-1], block.numbers[-1]


def _cut(runs: Iterator[_Run], part_rows: int) -> Iterator[Part]:
    number = rows = 0
    size = 0.0
    slices: list[Slice] = []
    for run in runs:
        done = 0
        while done < run.rows:
            room = max(1, run.within(done, PART_BYTES - size))
            count = min(run.rows - done, part_rows - rows, room)
            _add(slices, run, done, count)
            rows, size, done = rows + count, size + run.size(done, count), done + count
            if rows >= part_rows or size >= PART_BYTES:
                yield Part(number, tuple(slices))
                number, rows, size, slices = number + 1, 0, 0.0, []
    if slices:
        yield Part(number, tuple(slices))


def _add(slices: list[Slice], run: _Run, done: int, count: int) -> None:
    """Add rows of a run, which follow those that are there if they are of the same file."""
    if slices and slices[-1].source == run.source:
        slices[-1] = replace(slices[-1], rows=slices[-1].rows + count)
    else:
        slices.append(Slice(run.source, *run.place(done), count))


# ---- columns -------------------------------------------------------------------------------------


def _parquet(sources: Sequence[Source]) -> tuple[pa.Schema, Iterator[_Run]]:
    schemas: list[pa.Schema] = []
    runs: list[_Run] = []
    for index, source in enumerate(sources):
        with source.open() as stream, _opened(source, stream) as file:
            schemas.append(file.schema_arrow)
            if len(set(names := file.schema_arrow.names)) < len(names):
                raise InputError(
                    f"{source.name} has several columns of one name: {', '.join(names)}"
                )
            rows = file.metadata.num_rows
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            runs.append(_ParquetRun(index, rows, size))
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
        names = header(sources[0])
        for source in sources[1:]:
            if (other := header(source)) != names:
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
        self._names: dict[str, None] = {}
        self._schemas: list[pa.Schema] = []

    def note(self, records: Sequence[Record]) -> None:
        """Take note of the columns of records.

        Raises:
            InputError: the values of one are of several types.
        """
        rows = [record for record in records if not isinstance(record, Broken)]
        if self._typed:
            for name in self._texts:
                rows = [row for row in rows if isinstance(row.get(name), _READABLE)]
            schema = as_table(rows).schema
            if schema not in self._schemas:
                self._schemas.append(schema)
        else:
            for row in rows:
                self._names.update(dict.fromkeys(row))

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
        self._blocks = blocks(source, self._stream, start.at, start.number, columns)
        self._block = Block((), (), ())
        self._next = 0

    def take(self, rows: int) -> tuple[Any, int]:
        found: list[Record] = []
        numbers: list[int] = []
        while len(found) < rows:
            if self._next == len(self._block.ends):
                block = next(self._blocks, None)
                if block is None:
                    break
                self._block, self._next = block, 0
                continue
            end = min(self._next + rows - len(found), len(self._block.ends))
            found += self._block.records[self._next : end]
            numbers += self._block.numbers[self._next : end]
            self._next, self.at = end, self._block.ends[end - 1]
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
