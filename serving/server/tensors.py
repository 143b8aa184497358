"""Tasks in terms of the Open Inference Protocol: fields of text become BYTES tensors, and fields of
predictions become tensors with one row per text.

The first axis of a task's required inputs counts texts.  Its other inputs, such as the labels of
zero-shot classification, belong to the whole request: tensors, or parameters of the request.  So
does a text that stands beside lists, as the query of reranking beside the documents.  What
is not text or numbers, such as a list of entities, is a JSON text per row.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sparsec.errors import InputError, SparsecError
from sparsec.serving.pipelines import Pipeline
from sparsec.serving.pipelines.base import spellings
from sparsec.serving.server import json_text
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.oip import Array, InferRequest, datatype, texts

_SCALARS = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP32"}


def inputs(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The tensors that a task takes."""
    found: list[dict[str, Any]] = []
    counted = _counted(pipeline)
    for name, field in pipeline.input_schema.model_fields.items():
        kind, depth = _leaf(field.annotation)
        shape = [-1] if name in counted else [1]
        entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
        if not field.is_required():
            entry |= {"shape": [-1] if depth else [1], "parameters": {"optional": True}}
        found.append(entry)
    return found


def outputs(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The tensors that a task gives, with as many axes as a prediction of it has."""
    ranks = _ranks(pipeline)
    return [
        {
            "name": name,
            "datatype": _leaf(field.annotation)[0],
            "shape": [-1] * ranks.get(name, _rank(pipeline, field)),
        }
        for name, field in pipeline.output_schema.model_fields.items()
    ]


def _ranks(pipeline: Pipeline) -> dict[str, int]:
    """Axes of each output, found by trying the task's example; {} if it has no answer to that."""
    try:
        job = pipeline.prepare(pipeline.validate(pipeline.example()))
        result = pipeline.finish(job, pipeline.runner.infer(job.items))
        arrays = from_results(pipeline, [result])
    except (SparsecError, KeyError):
        return {}
    return {name: array.ndim for name, array in arrays.items()}


def _takes_one(pipeline: Pipeline) -> bool:
    """Whether the task takes one text at a time, as question answering does."""
    return all(
        _leaf(field.annotation)[1] == 0
        for field in pipeline.input_schema.model_fields.values()
        if field.is_required()
    )


def _counted(pipeline: Pipeline) -> list[str]:
    """The required inputs whose first axis counts texts."""
    fields = pipeline.input_schema.model_fields
    required = [name for name, field in fields.items() if field.is_required()]
    one = _takes_one(pipeline)
    return [name for name in required if one or _leaf(fields[name].annotation)[1]]


def _rank(pipeline: Pipeline, field: FieldInfo) -> int:
    """The least number of axes: a label of each text and lists of labels look alike."""
    if _holds_models(field.annotation):
        return 1
    depth = min(_leaf(field.annotation)[1], 2)
    return depth + 1 if _takes_one(pipeline) else max(1, depth)


def to_inputs(pipeline: Pipeline, request: InferRequest) -> list[BaseModel]:
    """A request's tensors as the task's inputs: one for all rows, or one for each if the task takes
    one at a time.

    Raises:
        HttpError: 400, tensors are missing, unknown or of different lengths.
        InputError: values do not fit.
    """
    schema = pipeline.input_schema
    tensors = {_canonical(schema, name): array for name, array in request.tensors.items()}
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    missing = [name for name in required if name not in tensors]
    if missing:
        raise HttpError(400, f"input {', '.join(missing)} is missing")
    for name, array in tensors.items():
        kinds = {kind for kind, _ in _leaves(schema.model_fields[name].annotation, 0)}
        if kinds == {"BYTES"} and (kind := datatype(array)) != "BYTES":
            raise HttpError(400, f"input {name} takes BYTES, not {kind}")
    words = bool(pipeline.words_field and _scalar(tensors, request, pipeline.words_field))
    counted = _counted(pipeline)
    rows = {name: _rows(name, tensors[name], words) for name in counted}
    counts = {name: len(values) for name, values in rows.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise HttpError(400, f"inputs must have equally many rows, at least one, not {counts}")
    # Clients and proxies send parameters of their own to any server: those mean nothing here.
    shared: dict[str, Any] = {
        field: value
        for name, value in request.parameters.items()
        if (field := _field(schema, name)) and field not in required
    }
    for name, array in tensors.items():
        if name not in counted:
            depth = _leaf(schema.model_fields[name].annotation)[1]
            values = array.reshape(-1).tolist()
            if not depth and len(values) != 1:
                raise HttpError(400, f"input {name} takes one element, not {len(values)}")
            shared[name] = values if depth else values[0]
    aliases = _aliases(schema)
    if not _takes_one(pipeline):
        return [_validate(pipeline, {**rows, **shared}, aliases)]
    return [
        _validate(pipeline, {**dict(zip(rows, row, strict=True)), **shared}, aliases)
        for row in zip(*rows.values(), strict=True)
    ]


def _validate(
    pipeline: Pipeline, values: Mapping[str, Any], aliases: Mapping[str, str]
) -> BaseModel:
    return pipeline.validate({aliases[name]: value for name, value in values.items()})


def _rows(name: str, array: Array, words: bool) -> list[Any]:
    """A value for each row: the only one that it has, or a list of words or of texts.

    A column is how Triton's clients write a batch of texts, and nothing else than the texts.
    """
    if array.ndim == 0:
        array = array.reshape(1)
    least = 2 if words else 1
    while array.ndim > least and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 2:
        raise HttpError(400, f"input {name} must have 1 or 2 axes, not {array.ndim}")
    rows: list[Any] = array.tolist()
    return rows


def _scalar(tensors: Mapping[str, Array], request: InferRequest, name: str) -> Any:
    """The value of an option of one element, tensor or parameter; None if it is not there."""
    if name in tensors:
        values = tensors[name].reshape(-1).tolist()
        return values[0] if len(values) == 1 else None
    return request.parameters.get(name)


def _aliases(schema: type[BaseModel]) -> dict[str, str]:
    return {name: spellings(name, field)[0] for name, field in schema.model_fields.items()}


def _field(schema: type[BaseModel], name: str) -> str | None:
    """The field that goes by a name."""
    for field_name, field in schema.model_fields.items():
        if name == field_name or name in spellings(field_name, field):
            return field_name
    return None


def _canonical(schema: type[BaseModel], name: str) -> str:
    found = _field(schema, name)
    if found:
        return found
    known = ", ".join(schema.model_fields)
    raise HttpError(400, f"there is no input {name!r}; there are {known}")


def from_results(pipeline: Pipeline, results: Sequence[BaseModel]) -> dict[str, Array]:
    """Predictions as tensors, one row for each text.

    Raises:
        InputError: rows differ in length, as embeddings of single tokens do.
    """
    by_row = _takes_one(pipeline)
    arrays: dict[str, Array] = {}
    for name, field in pipeline.output_schema.model_fields.items():
        if by_row:
            rows = [result.model_dump()[name] for result in results]
        else:
            rows = results[0].model_dump()[name]
            rows = [rows] if isinstance(rows, str) else list(rows)
        if _holds_models(field.annotation):
            arrays[name] = texts([json_text.dumps(row).decode("utf-8") for row in rows])
            continue
        for _ in range(_rank(pipeline, field) - _depth(rows)):
            rows = [[row] for row in rows]
        arrays[name] = _array(name, _leaf(field.annotation)[0], rows)
    return arrays


def _depth(rows: Any) -> int:
    depth = 0
    while isinstance(rows, (list, tuple)):
        depth += 1
        rows = rows[0] if rows else None
    return depth + (rows.ndim if isinstance(rows, np.ndarray) else 0)


def _array(name: str, kind: str, rows: list[Any]) -> Array:
    if kind == "BYTES":
        return texts(rows)
    dtype = {"INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}[kind]
    try:
        return np.array(rows, dtype)
    except ValueError:
        raise InputError(
            f"{name}: the texts have different numbers of tokens, which no tensor can hold: "
            f"send them one by one"
        ) from None


def _leaf(annotation: Any) -> tuple[str, int]:
    """Datatype of what is in a type, and in how many lists at most."""
    kinds = list(_leaves(annotation, 0))
    depth = max((depth for _, depth in kinds), default=0)
    found = {kind for kind, _ in kinds}
    for name in ("BYTES", "FP32", "INT64", "BOOL"):
        if name in found:
            return name, depth
    return "BYTES", depth


def _leaves(annotation: Any, depth: int) -> Iterator[tuple[str, int]]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _leaves(part, depth)
    elif origin in (list, tuple, Sequence):
        yield from _leaves(get_args(annotation)[0], depth + 1)
    elif origin is np.ndarray:  # whose type says nothing of its axes: rows of numbers
        yield _kind(get_args(annotation)[1]), depth + 2
    elif annotation in _SCALARS:
        yield _SCALARS[annotation], depth


def _kind(dtype: Any) -> str:
    """Datatype for the numbers of an array, by its annotation."""
    element = next(iter(get_args(dtype)), Any)
    kinds = {np.bool_: "BOOL", np.integer: "INT64"}
    return next((kinds[k] for k in kinds if isinstance(element, type) and issubclass(element, k)),
                "FP32")  # fmt: skip


def _holds_models(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_models(part) for part in get_args(annotation))
