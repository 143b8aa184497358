"""What models are compared on: texts, pairs or questions, with labels or without."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

from sparsec.errors import InputError
from sparsec.paths import user_path

WANTED = 64
"""Texts from which on figures begin to mean something."""

Source = Union[str, "os.PathLike[str]"]

_PAIRS = (
    ("question", "context"), ("question", "passage"), ("text", "text_pair"), ("text", "pair"),
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("query", "passage"),
)  # fmt: skip
_TEXTS = ("text", "sentence", "sentences", "sequences", "inputs", "content")
_WORDS = ("tokens", "words")
_LABELS = (
    "label", "labels", "ner_tags", "tags", "pos_tags", "entities", "answers", "answer", "score",
)  # fmt: skip
"""Names of fields, the first that a line has counts."""


@dataclass(frozen=True)
class Sample:
    """A text to compare models on.

    Attributes:
        text: the text; of question answering the question.
        pair: the second text; of question answering the context.
        words: the words of a text that came split; `text` is them with spaces between.
        label: what is right for it, in a form that depends on the task; None: not known.
    """

    text: str
    pair: str | None = None
    words: tuple[str, ...] | None = None
    label: Any = None


@dataclass(frozen=True)
class Fields:
    """Which fields of JSON lines and Parquet to read; None: the usual names, tried in order.

    Attributes:
        text: the field with the text, or two for pairs.
        label: the field with the label.
    """

    text: tuple[str, ...] | None = None
    label: str | None = None


def read(
    texts: Source | Sequence[Any],
    labels: Source | Sequence[Any] | None = None,
    fields: Fields | None = None,
    limit: int | None = None,
) -> tuple[Sample, ...]:
    """Read what models are to be compared on.

    Args:
        texts: a file (``-``: standard input) of lines, JSON lines or Parquet; or texts, pairs and
            mappings of fields in a list.  Lines that are JSON objects are read as such; empty ones
            are left out.
        labels: a file with a label for every text, as plain or JSON lines; or the labels.  None:
            those that the texts have as a field.
        fields: names of fields.
        limit: how many texts to read at most; None: all.

    Raises:
        InputError: there is no text, a file cannot be read or is not UTF-8, a line is not what it
            must be, or there are not as many labels as texts.
    """
    fields = fields or Fields()
    name, rows = _rows(texts, "texts")
    samples = [
        _sample(row, f"{name}, {kind} {number}", fields)
        for kind, number, row in itertools.islice(rows, limit)
    ]
    if not samples:
        raise InputError(f"{name} has no text: {WANTED} or more are wanted, one a line")
    if labels is not None:
        samples = _with_labels(samples, labels, fields, limit)
    labelled = sum(sample.label is not None for sample in samples)
    if 0 < labelled < len(samples):
        raise InputError(
            f"{name}: {labelled} of {len(samples)} texts have a label; all must, or none"
        )
    return tuple(samples)


def _with_labels(
    samples: Sequence[Sample], labels: Source | Sequence[Any], fields: Fields, limit: int | None
) -> list[Sample]:
    name, rows = _rows(labels, "labels")
    found = [
        _label(row, f"{name}, {kind} {number}", fields) if isinstance(row, Mapping) else row
        for kind, number, row in itertools.islice(rows, limit)
    ]
    if len(found) != len(samples):
        raise InputError(
            f"{name} has {len(found)} labels for {len(samples)} texts: every text needs one"
        )
    return [replace(sample, label=label) for sample, label in zip(samples, found, strict=True)]


_Row = tuple[str, int, Any]
"""What rows are called, the row's number, and a text or a mapping of fields."""


def _rows(source: Source | Sequence[Any], what: str) -> tuple[str, Iterator[_Row]]:
    """(what to call the source, its rows)."""
    if not isinstance(source, (str, os.PathLike)):
        return what, (("number", i, row) for i, row in enumerate(source, 1))
    name = "standard input" if str(source) == "-" else str(source)
    if name.endswith((".parquet", ".pq")):
        return name, (("row", i, row) for i, row in enumerate(_parquet(name), 1))
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else user_path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name} is not UTF-8: line {line} has the byte {data[error.start]:#x}"
        ) from None
    return name, _lines(name, text)


def _lines(name: str, text: str) -> Iterator[_Row]:
    # Not splitlines: a text may hold separators that are no ends of lines.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    first = next((line.lstrip() for line in lines if line.strip()), "")
    as_json = name.endswith((".jsonl", ".ndjson", ".json")) or _is_object(first)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not as_json:
            yield "line", number, line
            continue
        try:
            yield "line", number, json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}, line {number}: not JSON: {error}") from None


def _is_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parquet(name: str) -> Iterable[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{name}: Parquet needs pyarrow: pip install pyarrow") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(user_path(name)).to_pylist()
    except Exception as error:  # its exceptions share no base class
        raise InputError(f"cannot read {name}: {error}") from error
    return rows


def _sample(row: Any, where: str, fields: Fields) -> Sample:
    """A row as a sample.

    Raises:
        InputError: it has no text.
    """
    if isinstance(row, str):
        return Sample(row)
    if isinstance(row, (list, tuple)):
        return _of_texts(list(row), where)
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: a text or an object with a field {_TEXTS[0]} is needed")
    sample = _text(row, where, fields)
    return replace(sample, label=_label(row, where, fields, needed=False))


def _text(row: Mapping[str, Any], where: str, fields: Fields) -> Sample:
    if fields.text is not None:
        missing = [name for name in fields.text if name not in row]
        if missing:
            raise InputError(f"{where} has no field {', '.join(missing)}; it has {_names(row)}")
        found = [row[name] for name in fields.text]
        return _of_texts(found[0] if len(found) == 1 else found, where)
    for names in _PAIRS:
        if all(isinstance(row.get(name), str) for name in names):
            return _of_texts([row[name] for name in names], where)
    for name in (*_TEXTS, *_WORDS):
        if name in row:
            value = row[name]
            words = isinstance(value, (list, tuple)) and name in _WORDS
            return _of_words(value, where) if words else _of_texts(value, where)
    raise InputError(
        f"{where} has no text: a field {', '.join(_TEXTS[:2])} or {_WORDS[0]} is needed, or a pair "
        f"such as {' and '.join(_PAIRS[0])}; it has {_names(row)}"
    )


def _of_texts(value: Any, where: str) -> Sample:
    """A text, or a pair of them."""
    parts = [value] if isinstance(value, str) else value
    if (
        not isinstance(parts, (list, tuple))
        or len(parts) not in (1, 2)
        or not all(isinstance(part, str) for part in parts)
    ):
        if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            return _of_words(value, where)
        raise InputError(f"{where}: a text or a pair of texts is needed, not {value!r:.80}")
    return Sample(parts[0], parts[1] if len(parts) == 2 else None)


def _of_words(value: Any, where: str) -> Sample:
    if not value or not all(isinstance(word, str) and word.strip() for word in value):
        raise InputError(f"{where}: words must be a list of texts, none of them empty")
    return Sample(" ".join(value), words=tuple(value))


def _label(row: Mapping[str, Any], where: str, fields: Fields, needed: bool = True) -> Any:
    names = (fields.label,) if fields.label is not None else _LABELS
    for name in names:
        if name in row:
            return row[name]
    if needed or fields.label is not None:
        raise InputError(f"{where} has no field {' or '.join(names[:2])}; it has {_names(row)}")
    return None


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
