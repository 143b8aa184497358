"""Line-oriented files in blocks: the same records at any size of a block and from any place on."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

from sparsec.errors import InputError
from sparsec.serving.bulk import parts, records
from sparsec.serving.bulk.files import Location, Source
from sparsec.serving.bulk.records import Broken, blocks

LINES = {
    "text": [b"", b"a", b"\xff", b"caf\xc3\xa9 \r", b" "],
    "csv": [b"1,a", b'2,"b\nb"', b"3", b"", b'4,"x ""y"""', b"5,\xff", b"6,caf\xc3\xa9\r"],
    "jsonl": [b'{"a": 1}', b"", b"\xc2\xa0", b"[2]", b'{"a": 1' + b"0" * 25 + b"}", b"{", b"\xff"],
}


def _source(kind: str, path: str = "/x") -> Source:
    return Source(Location(None, path, "x"), kind)


def _all(
    kind: str, data: bytes, at: int = 0, number: int = 0, parsed: bool = True
) -> list[tuple[Any, int, int]]:
    found: list[tuple[Any, int, int]] = []
    for block in blocks(_source(kind), io.BytesIO(data), at, number, ("a", "b"), parsed=parsed):
        assert len(block.ends) == len(block.numbers)
        rows = block.records if parsed else [None] * len(block.ends)
        found += zip(rows, block.ends, block.numbers, strict=True)
    return found


@settings(deadline=None)
@given(st.data(), st.sampled_from(sorted(LINES)), st.integers(1, 40), st.booleans(), st.booleans())
def test_blocks_of_any_size_have_the_same_records(
    data: st.DataObject, kind: str, chunk: int, bom: bool, closed: bool
) -> None:
    lines = data.draw(st.lists(st.sampled_from(LINES[kind]), max_size=12))
    if kind == "csv":
        lines.insert(0, b"a,b")
    elif kind == "jsonl":
        lines.insert(0, b"{}")  # else an array on the first line is an error
    whole = b"\xef\xbb\xbf" * bom + b"\n".join(lines) + b"\n" * closed
    expected = _all(kind, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK", chunk)
        patch.setattr(records, "_RECORDS", 1 + chunk % 3)
        assert _all(kind, whole) == expected
        places = [(end, number) for _, end, number in expected]
        assert [(e, n) for _, e, n in _all(kind, whole, parsed=False)] == places
        for i, (end, number) in enumerate(places):
            assert _all(kind, whole, end, number) == expected[i + 1 :]


def test_what_the_records_are() -> None:
    found = [row for row, _, _ in _all("text", b"\xef\xbb\xbfa\n\nb\r\n\xff")]
    assert found == [{"text": "a"}, {"text": ""}, {"text": "b"}, Broken("it is not UTF-8", "\\xff")]
    found = [row for row, _, _ in _all("csv", b'a,b\n1,"x\ny"\n\n2,z')]
    assert found == [{"a": "1", "b": "x\ny"}, {"a": "2", "b": "z"}]
    many = b'\xef\xbb\xbf\n{"n": 18446744073709551616, "f": [1e30], "x": NaN}\n[1]\n'
    rows = _all("jsonl", many)
    assert rows[0][0]["n"] == 1 << 64 and rows[0][0]["f"] == [1e30] and rows[0][2] == 2
    assert rows[1][0] == Broken("it is JSON, but no object", "[1]")


@pytest.mark.parametrize("end", [b"", b"\n", b'\n3,"c"\n'])
def test_a_quote_that_is_never_closed_is_an_error(end: bytes) -> None:
    """It would make one field of all the rows behind it."""
    with pytest.raises(InputError, match=r"x, line 3: the quote of a field is never closed"):
        _all("csv", b'a,b\n1,x\n2,"yy\n' + end.replace(b'"', b""))
    assert len(_all("csv", b"a,b\n1,x\n2,y\0" + end)) == 2 + (end == b'\n3,"c"\n')
    assert len(_all("csv", b"a,b\n1,x\n\0\n2,y" + end)) == 3 + (end == b'\n3,"c"\n')


def test_a_line_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 16)
    monkeypatch.setattr(records, "_CHUNK", 8)
    assert len(_all("text", b"x" * 15 + b"\n" + b"y" * 16)) == 2
    with pytest.raises(InputError, match="x, line 2: longer than 16 bytes"):
        _all("text", b"x" * 15 + b"\n" + b"y" * 17 + b"\n")


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("text", "a\n".encode("utf-16"), "x is UTF-16: UTF-8 is needed"),
        ("csv", "text,id\n".encode("utf-16"), "x is UTF-16"),
        ("jsonl", b'\xef\xbb\xbf\n [{"a": 1}]\n', r"x begins with \[: a JSON array; JSON lines"),
        ("jsonl", b'\n{\n "a": 1}\n', r"x begins with \{: an object over several lines; JSON"),
    ],
)
def test_files_of_another_form_are_an_error(kind: str, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _all(kind, data)


def test_columns_of_parquet_have_names_of_their_own(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, ["text", "text"]), path)
    with pytest.raises(InputError, match=r"a\.parquet has several columns of one name: text, text"):
        parts.plan([Source(Location.of(str(path)), "parquet")], 2, "jsonl")


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), max_size=9), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(1, 64),
)
def test_parts_have_so_many_rows_or_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[int]], part_rows: int, part_bytes: int, chunk: int,
) -> None:  # fmt: skip
    """A part ends with the row that fills it; all rows are in parts, in order."""
    folder = tmp_path_factory.mktemp("parts")
    sources, sizes = [], []
    for i, lengths in enumerate(files):
        path = folder / f"{i}.txt"
        path.write_bytes(b"".join(b"x" * (n - 1) + b"\n" for n in lengths))
        sources.append(Source(Location.of(str(path)), "text"))
        sizes += lengths
    expected: list[int] = []
    rows, size = 0, 0
    for one in sizes:
        rows, size = rows + 1, size + one
        if rows == part_rows or size >= part_bytes:
            expected.append(rows)
            rows, size = 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK", chunk)
        patch.setattr(parts, "PART_BYTES", part_bytes)
        plan = parts.plan(sources, part_rows, "jsonl")
        assert [part.rows for part in plan.parts] == expected + [rows] * bool(rows)
        with parts.Reader(sources, plan.columns) as reader:
            read = [reader.read(part) for part in plan.parts]
    lengths = [len(text) + 1 for one in read for text in one.column("text")]
    assert lengths == sizes
    numbers = [one.number(i) for one in read for i in range(len(one))]
    assert numbers == list(itertools.chain(*(range(1, len(f) + 1) for f in files)))


def test_compressed_lines_are_read_from_any_place(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 5))
    source = Source(Location.of(str(path)), "jsonl", "gzip")
    plan = parts.plan([source], 2, "jsonl")
    assert [part.rows for part in plan.parts] == [2, 2, 1]
    with parts.Reader([source], plan.columns) as reader:
        assert len(reader.read(plan.parts[2])) == 1
        assert len(reader.read(plan.parts[0])) == 2
