"""Rows of a part, in the form that their file has: columns of Arrow, or records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from sparsec.errors import InputError
from sparsec.serving.bulk.records import Broken, Record


class Rows(Protocol):
    """So many rows, in order."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> Sequence[Any]:
        """A column's values as Python's; None where a row has none."""

    def broken(self) -> Mapping[int, Broken]:
        """Rows that could not be read, by their index."""

    def names(self) -> set[str]:
        """All columns that there are."""

    def number(self, index: int) -> int:
        """Of a row, its number in its file, the first being 1; of lines, the line it ends in."""

    def source(self, index: int) -> int:
        """Which of the sources a row is of."""

    def records(self, indices: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        """Rows by name of column."""

    def table(self, indices: Sequence[int], schema: pa.Schema) -> pa.Table:
        """Rows as a table of that schema.

        Raises:
            InputError: a value does not fit.
        """


@dataclass(frozen=True)
class Origin:
    """What of a source comes from some row on: `first` is that row's index."""

    first: int
    source: int
    number: int


@dataclass(frozen=True)
class Columns:
    """Rows of Parquet."""

    data: pa.Table
    origins: tuple[Origin, ...]

    def __len__(self) -> int:
        count: int = self.data.num_rows
        return count

    def column(self, name: str) -> Sequence[Any]:
        values: list[Any] = self.data.column(name).to_pylist()
        return values

    def broken(self) -> Mapping[int, Broken]:
        return {}

    def names(self) -> set[str]:
        return set(self.data.column_names)

    def number(self, index: int) -> int:
        origin = self._origin(index)
        return origin.number + index - origin.first

    def source(self, index: int) -> int:
        return self._origin(index).source

    def _origin(self, index: int) -> Origin:
        return [origin for origin in self.origins if origin.first <= index][-1]

    def records(self, indices: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        yield from _without_nanoseconds(self._taken(indices)).to_pylist()

    def table(self, indices: Sequence[int], schema: pa.Schema) -> pa.Table:
        return self._taken(indices).cast(schema)

    def _taken(self, indices: Sequence[int]) -> pa.Table:
        if len(indices) == len(self):
            return self.data
        return self.data.take(pa.array(indices, pa.int64()))


def _without_nanoseconds(table: pa.Table) -> pa.Table:
    """Times as texts where Python has no type for them."""
    for i, field in enumerate(table.schema):
        if pa.types.is_temporal(field.type) and getattr(field.type, "unit", "") == "ns":
            table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
    return table


@dataclass(frozen=True)
class Records:
    """Rows of lines."""

    data: Sequence[Record]
    numbers: Sequence[int]
    sources: Sequence[int]

    def __len__(self) -> int:
        return len(self.data)

    def column(self, name: str) -> Sequence[Any]:
        return [None if isinstance(row, Broken) else row.get(name) for row in self.data]

    def broken(self) -> Mapping[int, Broken]:
        return {i: row for i, row in enumerate(self.data) if isinstance(row, Broken)}

    def names(self) -> set[str]:
        return set().union(*(row for row in self.data if not isinstance(row, Broken)))

    def number(self, index: int) -> int:
        return self.numbers[index]

    def source(self, index: int) -> int:
        return self.sources[index]

    def records(self, indices: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        for i in indices:
            row = self.data[i]
            yield {} if isinstance(row, Broken) else row

    def table(self, indices: Sequence[int], schema: pa.Schema) -> pa.Table:
        return as_table(list(self.records(indices)), schema)


def as_table(rows: list[Mapping[str, Any]], schema: pa.Schema | None = None) -> pa.Table:
    """Records as a table.

    Args:
        schema: None: as the values are.

    Raises:
        InputError: the values of a column are of several types.
    """
    names = dict.fromkeys(name for row in rows for name in row) if schema is None else schema.names
    arrays = []
    for name in names:
        kind = None if schema is None else schema.field(name).type
        try:
            arrays.append(pa.array([row.get(name) for row in rows], kind))
        except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as error:
            raise InputError(
                f"the column {name} has values of several kinds, or such as Parquet does not have "
                f"({error}): write JSON lines (-o OUTPUT.jsonl)"
            ) from None
    return pa.table(dict(zip(names, arrays, strict=True)), schema=schema)
