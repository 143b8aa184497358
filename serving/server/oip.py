"""The Open Inference Protocol, version 2, over HTTP: tensors as JSON or, with the binary tensor
extension, as bytes after the JSON.

This file knows tensors only; `tensors.py` says which ones a task takes and gives.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from sparsec.serving.pipelines.base import explain
from sparsec.serving.server import json_text
from sparsec.serving.server.errors import HttpError

HEADER_LENGTH = "inference-header-content-length"

DTYPES: Mapping[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}

Array = NDArray[Any]

#: What a request without tensors is told.
NO_INPUTS = "inputs: there are none, and a request has at least one tensor"

# Axes of a tensor.
MAX_RANK = 8


# Clients write null for what they leave out, also inside of parameters.
_Parameters = Annotated[
    dict[str, Any],
    BeforeValidator(
        lambda given: (
            {key: value for key, value in given.items() if value is not None}
            if isinstance(given, dict)
            else {}
            if given is None
            else given
        )
    ),
    Field(default_factory=dict),
]


class _Input(BaseModel):
    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=MAX_RANK)
    datatype: str
    parameters: _Parameters
    data: Any = None


class _Output(BaseModel):
    name: str
    parameters: _Parameters


class _Request(BaseModel):
    id: str | None = None
    parameters: _Parameters
    inputs: list[_Input]
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class InferRequest:
    """What a client asked for.

    Attributes:
        tensors: by name; BYTES as object arrays of str.
        outputs: names wanted and whether as bytes; all, if there are none.
        binary: whether outputs are bytes where `outputs` does not say.
        parameters: of the request, the protocol's own left out.
    """

    id: str | None
    tensors: dict[str, Array]
    outputs: dict[str, bool] = field(default_factory=dict)
    binary: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


def decode(body: bytes, header_length: str | None) -> InferRequest:
    """A request's body.

    Args:
        header_length: of the JSON at its start; None: all of it.

    Raises:
        HttpError: 400, it is not as the protocol says.
    """
    size = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > size:
            raise HttpError(400, f"{HEADER_LENGTH} must be a number of bytes up to {size}")
        size = int(header_length)
    try:
        parsed = _Request.model_validate_json(json_text.without_mark(body[:size]))
    except ValidationError as error:
        raise HttpError(400, explain(error)) from None
    if not parsed.inputs:
        raise HttpError(400, NO_INPUTS)
    tensors: dict[str, Array] = {}
    for tensor in parsed.inputs:
        if tensor.name in tensors:
            raise HttpError(400, f"input {tensor.name} is given twice")
        tensors[tensor.name], size = _read(tensor, body, size)
    if size != len(body):
        raise HttpError(400, f"{len(body) - size} bytes follow the last tensor")
    parameters = dict(parsed.parameters)
    binary = parameters.pop("binary_data_output", False) is True
    chosen = chosen_once(
        (output.name, output.parameters.get("binary_data", binary) is True)
        for output in parsed.outputs or ()
    )
    return InferRequest(parsed.id, tensors, chosen, binary, parameters)


def chosen_once(outputs: Iterable[tuple[str, bool]]) -> dict[str, bool]:
    """The outputs that a request names, and whether as bytes.

    Raises:
        HttpError: 400, one is named twice.
    """
    found: dict[str, bool] = {}
    for name, binary in outputs:
        if name in found:
            raise HttpError(400, f"output {name} is asked for twice")
        found[name] = binary
    return found


def _read(tensor: _Input, body: bytes, start: int) -> tuple[Array, int]:
    """A tensor, of the JSON or of the bytes of the body from `start`, and where they end."""
    name = tensor.name
    length = tensor.parameters.get("binary_data_size")
    if length is None:
        if not isinstance(tensor.data, list):
            raise HttpError(
                400,
                f"input {name} has no data: a list of its elements, row by row, or bytes behind "
                f"the JSON, as many as its parameter binary_data_size says",
            )
        flat: list[Any] = []
        _flatten(tensor.data, flat)
        return from_values(name, tensor.datatype, tensor.shape, flat), start
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise HttpError(400, f"input {name}: binary_data_size must be a number of bytes")
    if tensor.data is not None:
        raise HttpError(400, f"input {name} has data beside binary_data_size")
    end = start + length
    if end > len(body):
        left = len(body) - start
        raise HttpError(400, f"input {name} has {length} bytes; {left} are left")
    return from_bytes(name, tensor.datatype, tensor.shape, body[start:end]), end


def check_datatype(name: str, kind: str) -> None:
    """See that an input's datatype is one.

    Raises:
        HttpError: 400, there is none of that name.
    """
    if kind not in DTYPES:
        raise HttpError(
            400, f"input {name}: unknown datatype {kind!r}; there are {', '.join(DTYPES)}"
        )


def _count(name: str, kind: str, shape: Sequence[int]) -> int:
    """How many elements a tensor has."""
    check_datatype(name, kind)
    where = f"input {name}"
    if len(shape) > MAX_RANK or any(extent < 0 for extent in shape):
        raise HttpError(
            400, f"{where}: a shape has up to {MAX_RANK} extents from 0 up, not {list(shape)}"
        )
    return math.prod(shape)


def from_values(name: str, kind: str, shape: Sequence[int], flat: Sequence[Any]) -> Array:
    """A tensor of its elements, row by row; those of BYTES are strings.

    Raises:
        HttpError: 400, they are too many, too few, or do not fit the datatype.
    """
    where = f"input {name}"
    count = _count(name, kind, shape)
    if len(flat) != count:
        raise HttpError(
            400, f"{where} has {len(flat)} elements; the shape {list(shape)} has {count}"
        )
    if kind == "BYTES":
        if not all(isinstance(item, str) for item in flat):
            raise HttpError(400, f"{where}: elements of BYTES must be strings")
        array = np.empty(len(flat), np.object_)
        array[:] = flat
        return array.reshape(shape)
    dtype = np.dtype(DTYPES[kind])
    kinds: tuple[type, ...] = (bool,) if dtype.kind == "b" else (int, float)
    for item in flat:
        if not isinstance(item, kinds) or (isinstance(item, bool) and dtype.kind != "b"):
            raise HttpError(400, f"{where}: {item!r} is not {kind}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not all(isinstance(item, int) and limits.min <= item <= limits.max for item in flat):
            raise HttpError(400, f"{where}: a value does not fit {kind}")
    try:
        return np.array(flat, dtype).reshape(shape)
    except (OverflowError, ValueError, TypeError):
        raise HttpError(400, f"{where}: a value is no {kind}") from None


def _flatten(value: list[Any], into: list[Any], depth: int = 0) -> None:
    if depth > MAX_RANK:
        raise HttpError(400, "data is nested too deeply")
    for item in value:
        if isinstance(item, list):
            _flatten(item, into, depth + 1)
        else:
            into.append(item)


def from_bytes(name: str, kind: str, shape: Sequence[int], data: bytes) -> Array:
    """A tensor of its bytes: little endian; each element of BYTES behind its length.

    Raises:
        HttpError: 400, they are too many, too few, or not UTF-8.
    """
    where = f"input {name}"
    count = _count(name, kind, shape)
    if kind != "BYTES":
        dtype = np.dtype(DTYPES[kind])
        if count * dtype.itemsize != len(data):
            raise HttpError(
                400,
                f"{where} has {len(data)} bytes; the shape {list(shape)} needs "
                f"{count * dtype.itemsize}",
            )
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    texts: list[str] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise HttpError(400, f"{where}: the last length is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise HttpError(400, f"{where}: the last element is cut off")
        try:
            texts.append(data[at : at + length].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise HttpError(400, f"{where}: element {len(texts)} is not UTF-8: {error}") from None
        at += length
    if len(texts) != count:
        raise HttpError(
            400, f"{where} has {len(texts)} elements; the shape {list(shape)} has {count}"
        )
    array = np.empty(count, np.object_)
    array[:] = texts
    return array.reshape(shape)


def encode(
    model: str, request: InferRequest, outputs: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON if bytes follow.

    Raises:
        HttpError: 400, an output is wanted that the model does not have.
    """
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in wanted(model, request, outputs).items():
        array = outputs[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": datatype(array),
            "shape": list(array.shape),
        }
        if binary:
            blobs.append(to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.reshape(-1)
        described.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": described}
    if request.id is not None:
        head["id"] = request.id
    text = json_text.dumps(head)
    return (text + b"".join(blobs), len(text)) if blobs else (text, None)


def wanted(model: str, request: InferRequest, outputs: Mapping[str, Array]) -> dict[str, bool]:
    """The outputs to send, and whether as bytes.

    Raises:
        HttpError: 400, one is wanted that the model does not have.
    """
    unknown = [name for name in request.outputs if name not in outputs]
    if unknown:
        raise HttpError(
            400, f"{model} has no output {', '.join(unknown)}; it has {', '.join(outputs)}"
        )
    return request.outputs or dict.fromkeys(outputs, request.binary)


def datatype(array: Array) -> str:
    """What the protocol calls an array's dtype."""
    return _NAMES[array.dtype]


def to_bytes(array: Array) -> bytes:
    """A tensor's elements as :func:`from_bytes` reads them."""
    if array.dtype != np.object_:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts: list[bytes] = []
    for text in array.reshape(-1):
        data = text.encode("utf-8")
        parts += (struct.pack("<I", len(data)), data)
    return b"".join(parts)


def texts(rows: Sequence[Any]) -> Array:
    """Strings, or equally long lists of strings, as a BYTES array."""
    first = rows[0] if rows else ""
    shape = (len(rows), len(first)) if isinstance(first, (list, tuple)) else (len(rows),)
    array = np.empty(shape, np.object_)
    for i, row in enumerate(rows):
        array[i] = row
    return array
