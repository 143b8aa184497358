"""What each task takes of a row, and what it adds to it."""

from __future__ import annotations

import types as python_types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from sparsec.arguments import argument, setting, speech
from sparsec.errors import InputError
from sparsec.serving.pipelines import (
    EmbeddingExtractionPipeline,
    FillMaskPipeline,
    FillMaskResult,
    Pipeline,
    QuestionAnsweringPipeline,
    RerankPipeline,
    SentenceEmbeddingPipeline,
    SparseEmbeddingPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
    ZeroShotTextClassificationPipeline,
)
from sparsec.serving.pipelines.base import plain

Row = Mapping[str, Any]
"""The values of one row by what the task calls them."""

Values = list[Any] | NDArray[Any]
"""A column's: a list, or numbers whose first axis is that of the rows."""

Answers = dict[str, Values]
"""Columns that are added: a value for each row."""


@dataclass(frozen=True)
class Fields:
    """A task, as rows see it.

    Attributes:
        needed: what is read of every row, by the task's names, and the usual column.
        optional: what is read where the caller names a column for it.
        request: the pipeline's input for rows; for one row unless `together`.
        answers: what is added: of the pipeline, its output and the rows, columns.
        types: the types of those columns, by what is read.
        together: whether rows share an input of the pipeline.
        apart: fields that, where they are read, rows share none for.
        texts: whether what is read must be texts, or lists.
        part_rows: rows of a part, where the caller does not say; fewer where answers are large.
    """

    needed: Mapping[str, str]
    request: Callable[[Sequence[Row]], dict[str, Any]]
    answers: Callable[[Any, Any, Sequence[Row]], Answers]
    types: Callable[[Any, set[str]], dict[str, pa.DataType]]
    optional: tuple[str, ...] = ()
    together: bool = True
    apart: tuple[str, ...] = ()
    texts: bool = True
    part_rows: int = 16384


def joined(parts: Sequence[Values]) -> Values:
    """A column of its parts, of which there is one at least."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [value for part in parts for value in part]


def ordered(parts: Sequence[Values], order: Sequence[int]) -> Values:
    """A column of its parts, of which there is one at least, in another order.

    Args:
        order: for each value of the column, its place in the parts joined.
    """
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) < len(parts):
        column = joined(parts)
        return [column[i] for i in order]
    # Each value is copied once: they may be large.
    found = np.empty((len(order), *arrays[0].shape[1:]), np.result_type(*arrays))
    places = np.empty(len(order), np.intp)
    places[np.asarray(order, np.intp)] = np.arange(len(order))
    start = 0
    for array in arrays:
        found[places[start : start + len(array)]] = array
        start += len(array)
    return found


def of(pipeline: Pipeline) -> Fields:
    """The row of a task, its class's or that of one that it is derived from; for a task that has
    none, what its schemas say."""
    for kind in type(pipeline).__mro__:
        if kind in TASKS:
            return TASKS[kind]
    return _by_schema(type(pipeline))


def columns(
    fields: Fields, task: str, given: Mapping[str, str], there: set[str] | None
) -> dict[str, str]:
    """The column of each field that is read.

    Args:
        given: columns by field, as the caller says; the field "" is the task's first.
        there: columns of the input; None: not known.

    Raises:
        InputError: there is no such field, or no such column.
    """
    first = next(iter(fields.needed))
    named = {(name or first): column for name, column in given.items()}
    known = (*fields.needed, *fields.optional)
    if unknown := [name for name in named if name not in known]:
        raise InputError(
            f"{task} reads {', '.join(known)} of a row, and not {', '.join(unknown)}: name "
            f"columns by {_naming(known[0])}"
        )
    # A document alone stands for a list of one.
    needed = {k: v for k, v in fields.needed.items() if not (k == DOCUMENTS and DOCUMENT in named)}
    found = {**needed, **named}
    for name, column in found.items():
        if there is not None and column not in there:
            raise InputError(
                f"the input has no column {column} for {task}'s {name}: it has "
                f"{', '.join(sorted(there))}; name it by {_naming(name)}"
            )
    return found


def _naming(field: str) -> str:
    """What says which column a field is read from."""
    if speech() == "flags":
        return argument("columns", f"{field}=COLUMN")
    return argument("columns", {field: "COLUMN"})


# ---- the tasks -----------------------------------------------------------------------------------

DOCUMENT, DOCUMENTS = "document", "documents"


def _texts(field: str) -> Callable[[Sequence[Row]], dict[str, Any]]:
    return lambda rows: {field: [row["text"] for row in rows]}


def _classified(rows: Sequence[Row]) -> dict[str, Any]:
    pairs = "pair" in rows[0]
    return {"sequences": [[row["text"], row["pair"]] if pairs else row["text"] for row in rows]}


def _zero_shot(rows: Sequence[Row]) -> dict[str, Any]:
    if "labels" in rows[0]:
        return {"sequences": [rows[0]["text"]], "labels": rows[0]["labels"]}
    return {"sequences": [row["text"] for row in rows]}


def _zero_shot_types(
    pipeline: ZeroShotTextClassificationPipeline, read: set[str]
) -> dict[str, pa.DataType]:
    if (pipeline.labels is None) == ("labels" not in read):
        raise InputError(
            f"labels: give them once: by {setting('labels', option=True)}, or those of each row by "
            f"{_naming('labels')}"
        )
    return {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float64())}


def _ranked(rows: Sequence[Row]) -> dict[str, Any]:
    row = rows[0]
    if DOCUMENT in row:
        if not isinstance(row[DOCUMENT], str):
            raise InputError(f"{DOCUMENT} must be a text")
        return {"query": row["query"], DOCUMENTS: [row[DOCUMENT]]}
    return {"query": row["query"], DOCUMENTS: row[DOCUMENTS]}


def _ranking(pipeline: RerankPipeline, output: Any, rows: Sequence[Row]) -> Answers:
    if DOCUMENT in rows[0]:
        return {"score": [output.ranking[0].score]}
    return {"ranking": [[one.model_dump() for one in output.ranking]]}


def _rank_types(pipeline: RerankPipeline, read: set[str]) -> dict[str, pa.DataType]:
    whole = by_annotation(RerankPipeline.output_schema.model_fields["ranking"].annotation)
    return {"score": pa.float64()} if DOCUMENT in read else {"ranking": whole}


def _label_types(pipeline: TextClassificationPipeline, read: set[str]) -> dict[str, pa.DataType]:
    kinds = {"label": pa.string(), "score": pa.float64()}
    return kinds if pipeline.top_k == 1 else {k: pa.list_(v) for k, v in kinds.items()}


def _vector_types(pipeline: EmbeddingExtractionPipeline, read: set[str]) -> dict[str, pa.DataType]:
    kind = pa.list_(pa.float32())
    per_token = pipeline.extraction_strategy == "per_token"
    return {"embedding": pa.list_(kind) if per_token else kind}


def _vector_length(pipeline: SentenceEmbeddingPipeline, read: set[str]) -> dict[str, pa.DataType]:
    return {"embedding": pa.list_(pa.float32(), pipeline("a").embeddings.shape[-1])}


def _masks(pipeline: FillMaskPipeline, output: Any, rows: Sequence[Row]) -> Answers:
    """A list for each mask, for texts of one as well."""
    each = [row if isinstance(row[0], list) else [row] for row in output.predictions]
    return {"predictions": [[[one.model_dump() for one in mask] for mask in row] for row in each]}


def _dumped(output: BaseModel) -> Answers:
    return {name: [value] for name, value in plain(output.model_dump()).items()}


def _sparse(pipeline: SparseEmbeddingPipeline, output: Any, rows: Sequence[Row]) -> Answers:
    names = ("indices", "values", "tokens")
    return {name: [getattr(one, name) for one in output.embeddings] for name in names}


TASKS: dict[type[Pipeline], Fields] = {
    TextClassificationPipeline: Fields(
        {"text": "text"},
        _classified,
        lambda pipeline, output, rows: {"label": output.labels, "score": output.scores},
        _label_types,
        optional=("pair",),
    ),
    TokenClassificationPipeline: Fields(
        {"text": "text"},
        _texts("inputs"),
        lambda pipeline, output, rows: {
            "entities": [[one.model_dump() for one in row] for row in output.predictions]
        },
        lambda pipeline, read: {
            "entities": by_annotation(
                get_args(pipeline.output_schema.model_fields["predictions"].annotation)[0]
            )
        },
    ),
    QuestionAnsweringPipeline: Fields(
        {"question": "question", "context": "context"},
        lambda rows: dict(rows[0]),
        lambda pipeline, output, rows: _dumped(output),
        lambda pipeline, read: _schema_types(type(pipeline)),
        together=False,
    ),
    ZeroShotTextClassificationPipeline: Fields(
        {"text": "text"},
        _zero_shot,
        lambda pipeline, output, rows: {"labels": output.labels, "scores": output.scores},
        _zero_shot_types,
        optional=("labels",),
        apart=("labels",),
    ),
    SentenceEmbeddingPipeline: Fields(
        {"text": "text"},
        _texts("inputs"),
        lambda pipeline, output, rows: {"embedding": output.embeddings},
        _vector_length,
        # Memory that is as large as more rows need comes from the system each time, which takes
        # longer to clear it than all else takes to write the vectors.
        part_rows=4096,
    ),
    EmbeddingExtractionPipeline: Fields(
        {"text": "text"},
        _texts("inputs"),
        lambda pipeline, output, rows: {"embedding": list(output.embeddings)},
        _vector_types,
        part_rows=1024,
    ),
    SparseEmbeddingPipeline: Fields(
        {"text": "text"},
        _texts("inputs"),
        _sparse,
        lambda pipeline, read: {
            "indices": pa.list_(pa.int32()),
            "values": pa.list_(pa.float32()),
            "tokens": pa.list_(pa.string()),
        },
    ),
    FillMaskPipeline: Fields(
        {"text": "text"},
        _texts("inputs"),
        _masks,
        lambda pipeline, read: {"predictions": by_annotation(list[list[FillMaskResult]])},
    ),
    RerankPipeline: Fields(
        {"query": "query", DOCUMENTS: DOCUMENTS},
        _ranked,
        _ranking,
        _rank_types,
        optional=(DOCUMENT,),
        together=False,
    ),
}


# ---- tasks of others -----------------------------------------------------------------------------


def _by_schema(kind: type[Pipeline]) -> Fields:
    """A row a call: its required fields in, the fields of its output out."""
    fields = kind.input_schema.model_fields
    names = [name for name, field in fields.items() if field.is_required()] or [next(iter(fields))]
    return Fields(
        {name: "text" if len(names) == 1 else name for name in names},
        lambda rows: dict(rows[0]),
        lambda pipeline, output, rows: _dumped(output),
        lambda pipeline, read: _schema_types(kind),
        optional=tuple(name for name in fields if name not in names),
        together=False,
        texts=False,
    )


def _schema_types(kind: type[Pipeline]) -> dict[str, pa.DataType]:
    return {
        name: by_annotation(field.annotation)
        for name, field in kind.output_schema.model_fields.items()
    }


_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def by_annotation(hint: Any) -> pa.DataType:
    """The Arrow type of a field of a schema.

    Raises:
        InputError: there is none.
    """
    if hint in _SCALARS:
        return _SCALARS[hint]
    if get_origin(hint) in (list, Sequence) and len(get_args(hint)) == 1:
        return pa.list_(by_annotation(get_args(hint)[0]))
    if get_origin(hint) in (Union, python_types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if len(kinds) == 1:
            return by_annotation(kinds[0])
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        fields = hint.model_fields.items()
        return pa.struct([(name, by_annotation(field.annotation)) for name, field in fields])
    raise InputError(f"answers of the type {hint} have no form in a table")
