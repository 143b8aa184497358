"""Rows with their answers as bytes of files: Parquet, Arrow, CSV and JSON lines."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import parquet

from sparsec.errors import InputError
from sparsec.serving.bulk.fields import Answers, Values
from sparsec.serving.bulk.files import Source
from sparsec.serving.bulk.worker import Answered

FORMATS = ("parquet", "csv", "jsonl")


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
    """A part as it is written: bytes, or a buffer of Arrow's."""

    data: bytes | pa.Buffer
    bad: bytes
    done: Done


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


def _parquet(found: Answered, schema: Schema) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    parquet.write_table(_table(found, schema), sink, **column_options(schema.whole))
    return sink.getvalue()


def _arrow(found: Answered, schema: Schema) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema.whole) as writer:
        writer.write_table(_table(found, schema))
    return sink.getvalue()


def column_options(schema: pa.Schema) -> dict[str, Any]:
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
