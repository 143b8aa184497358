"""The one file that parts become, in their order."""

from __future__ import annotations

import contextlib
import csv
import io
import posixpath

import pyarrow as pa
from pyarrow import parquet

from sparsec.errors import InputError
from sparsec.serving.bulk.encoding import Schema, column_options
from sparsec.serving.bulk.files import COMPRESSIONS, Location
from sparsec.serving.bulk.storage import Whole

# Rows, and bytes, of a row group of a file of Parquet that is joined.
_GROUP_ROWS = 1 << 17
_GROUP_BYTES = 1 << 26


class Joined:
    """The one file that parts become, in their order.

    Args:
        place: of the file.
        schema: its form.
        part: where it is until it is whole.
    """

    def __init__(self, place: Location, schema: Schema, part: str) -> None:
        compression = COMPRESSIONS.get(posixpath.splitext(place.path)[1])
        self._parquet = schema.kind == "parquet"
        self._whole = Whole(place, place.path, None if self._parquet else compression, part)
        self._stream = self._whole.__enter__()
        self._tables: list[pa.Table] = []
        self._heading = b""
        if self._parquet:
            self._writer = parquet.ParquetWriter(
                self._stream, schema.whole, **column_options(schema.whole)
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
