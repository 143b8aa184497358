"""Reading an ONNX file that may be damaged or hostile.

:func:`load_model` returns a :class:`Model` whose structure, external data and constants have been
checked; everything wrong with the file ends in a :class:`~sparsec.errors.ModelError` that says what
to do.  Large constants stay where they are, in the proto or in a file, until they are asked for.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from sparsec.errors import ModelError, UnsupportedError
from sparsec.paths import belongs_to, find_onnx, user_path

PROTO_LIMIT = 2**31 - 1
"""Protocol buffers end here; larger models keep their weights in external files."""

DENSE_LIMIT = 2**32
"""A sparse initializer may not grow beyond this many bytes when it is made dense."""

_MICROSOFT = "com.microsoft"

_EARLY_OPS = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 2**31}
"""Ops that ONNX Runtime takes in any opset, and the opset in which ONNX has them, if ever."""

NODE_LIMIT = 2_000_000
"""A model may not have more nodes than this once its functions are inlined."""


@dataclass(frozen=True, eq=False)
class Model:
    """A checked ONNX model.

    Attributes:
        proto: the model; local functions are inlined, external data is not loaded into it.
        path: the .onnx file.
        name: the file's name without its suffix.
        folder: where external data may lie.
        bundle: the folder that was named for the model, which may hold its companions (tokenizer,
            configuration) too; None if the file was named.
        sha256: of the .onnx file's bytes, as hex.
        opset: version of the default operator set (0 if the model imports none).
        opsets: version of every imported operator set; the default one is "".
    """

    proto: onnx.ModelProto
    path: Path
    name: str
    folder: Path
    bundle: Path | None
    sha256: str
    opset: int
    opsets: Mapping[str, int]
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's run-time inputs: those without an initializer."""
        graph = self.proto.graph
        fixed = {t.name for t in graph.initializer}
        fixed |= {t.values.name for t in graph.sparse_initializer}
        return [v for v in graph.input if v.name not in fixed]

    def external_files(self) -> dict[str, Path]:
        """Every file with external data, checked and links followed, by its name in the model.

        Raises:
            ModelError: as :func:`load_model` does.
        """
        external = onnx.TensorProto.EXTERNAL
        return {
            entry.value: _external(tensor, self.folder, f"tensor {tensor.name}")[0]
            for tensor in tensors(self.proto)
            if tensor.data_location == external
            for entry in tensor.external_data
            if entry.key == "location"
        }

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The contents of one of the model's tensors.

        Raises:
            ModelError: the data does not fit the tensor's shape, or its file cannot be read.
        """
        return tensor_array(tensor, self.folder)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load and check an ONNX file.

    Args:
        path: a .onnx file, or a folder that has one (:func:`sparsec.paths.find_onnx`).

    Raises:
        ModelError: it is missing, damaged, invalid or unsafe.
        InputError: the path begins with a home folder that does not exist.
    """
    given = user_path(path)
    path = _find(given)
    data = _read(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX file, or it is cut short ({error}); export or download it again"
        ) from None
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model: it has no graph; export it again")
    _check_names(proto, path)
    folder = path.parent
    for tensor in tensors(proto):
        _check_tensor(tensor, folder, path)
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    moved = _sort(proto.graph, path)
    _check_functions(proto, path)
    moved |= _move_early_ops(proto)
    _run_checker(proto, data, path, moved)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    return Model(
        proto=proto,
        path=path,
        name=path.stem,
        folder=folder,
        bundle=given if given.is_dir() else None,
        sha256=hashlib.sha256(data).hexdigest(),
        opset=opsets.get("", 0),
        opsets=opsets,
    )


def _find(path: Path) -> Path:
    try:
        if path.is_dir():
            return find_onnx(path)
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read {path}: {reason}") from None
    if kind != stat.S_IFREG:
        raise ModelError(f"{path} is not a regular file")
    return path


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path} is empty; export or download it again")
        if size > PROTO_LIMIT:
            raise ModelError(
                f"{path} has {size} bytes, more than an ONNX file can hold; export it with "
                "external data, as torch.onnx.export does by itself"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the model; run `git lfs pull`")
    return data


def _check_names(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse names that are not UTF-8, and inputs and outputs whose name C cannot say."""
    # What is no UTF-8 comes as bytes.
    broken = [text for text in _texts(proto) if not isinstance(text, str)]
    broken += [v.name for v in (*proto.graph.input, *proto.graph.output) if "\0" in str(v.name)]
    if broken:
        raise ModelError(
            f"{path} has the name {broken[0]!r}, which is not UTF-8 or holds a NUL character; "
            "rename it"
        )


def _texts(message: Message) -> Iterator[str | bytes]:
    """All texts in a message but for descriptions and the contents of tensors."""
    for entry, value in message.ListFields():
        if entry.name in ("doc_string", "metadata_props"):
            continue
        items: Any = (value,) if isinstance(value, (str, bytes, Message)) else value
        if entry.type == entry.TYPE_STRING:
            yield from items
        elif entry.message_type is onnx.TensorProto.DESCRIPTOR:
            yield from (tensor.name for tensor in items)
        elif entry.type == entry.TYPE_MESSAGE:
            for item in items:
                yield from _texts(item)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a model: initializers and attributes, subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graph_tensors(graph)


def _item_bits(data_type: int) -> int:
    """Bits of one element in raw or external data; 0 for strings and unknown types."""
    name = onnx.TensorProto.DataType.Name(data_type) if data_type in _TYPES else ""
    for prefix, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4", 4), ("INT2", 2), ("UINT2", 2)):
        if name.startswith(prefix):
            return bits
    if not name or name in ("UNDEFINED", "STRING"):
        return 0
    size: int = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize
    return size * 8


_TYPES = set(onnx.TensorProto.DataType.values())


def _byte_count(tensor: onnx.TensorProto) -> int:
    bits: int = math.prod(tensor.dims) * _item_bits(tensor.data_type)
    return -(-bits // 8)


def _check_tensor(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    """Refuse impossible shapes and external data that is missing, short or elsewhere."""
    what = f"tensor {tensor.name or '(unnamed)'} of {path.name}"
    if tensor.data_type not in _TYPES or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise ModelError(f"{what} has the unknown element type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{what} has a negative extent: {list(tensor.dims)}; export it again")
    need = _byte_count(tensor)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _external(tensor, folder, what)
    elif tensor.HasField("raw_data"):
        have = len(tensor.raw_data)
        if tensor.data_type != onnx.TensorProto.STRING and have != need:
            raise ModelError(
                f"{what} of shape {list(tensor.dims)} needs {need} bytes but holds {have}; the "
                "file is damaged: export or download it again"
            )
    elif need > 64 * tensor.ByteSize() + 64:
        raise ModelError(
            f"{what} claims the shape {list(tensor.dims)}, far more than the data it holds; the "
            "file is damaged: export or download it again"
        )


def _external(tensor: onnx.TensorProto, folder: Path, what: str) -> tuple[Path, int, int]:
    """Resolved file, offset and size of a tensor's external data, all checked."""
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    outside = (
        not location
        or "\0" in location
        or PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).is_absolute()
        or bool(PureWindowsPath(location).drive)
        or ".." in PurePosixPath(location).parts
        or ".." in PureWindowsPath(location).parts
    )
    if outside:
        raise ModelError(
            f"{what} keeps its data in {location!r}, outside the model's folder; sparsec reads "
            "only files beside the model: save it again with save_as_external_data=True"
        )
    try:
        inside = belongs_to(folder / location, folder)
        file = (folder / location).resolve(strict=True)
        status = file.stat()
    except (OSError, RuntimeError):
        raise ModelError(
            f"{what} keeps its data in {location!r}, which is not in {folder}; download that "
            "file too"
        ) from None
    if not inside:
        raise ModelError(
            f"{what} keeps its data in {location!r}, a symbolic link that leaves the model's "
            "folder; only links inside of it, and those of a snapshot in the Hugging Face hub's "
            "cache to its own blobs, are followed: put the file itself there"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{what} keeps its data in {location!r}, which is not a regular file")
    if status.st_nlink > 1:
        raise ModelError(
            f"{what} keeps its data in {location!r}, which has {status.st_nlink} hard links, so it "
            "may be a file from elsewhere: put a copy there"
        )
    need = _byte_count(tensor)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(need)))
    except ValueError:
        raise ModelError(f"{what} has an external offset or length that is no number") from None
    size = status.st_size
    if offset < 0 or length != need:
        raise ModelError(
            f"{what} of shape {list(tensor.dims)} needs {need} bytes, but its entry says {length} "
            f"bytes at offset {offset}; export it again"
        )
    if offset + need > size:
        raise ModelError(
            f"{what} ends at byte {offset + need} of {location!r}, which has {size}; the file is "
            "cut short: download it again"
        )
    return file, offset, need


def tensor_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The external data of a tensor, as raw data would hold it.

    Raises:
        ModelError: as :func:`load_model` does, for data that is damaged or out of place.
    """
    file, offset, size = _external(tensor, folder, f"tensor {tensor.name or '(unnamed)'}")
    return np.fromfile(file, np.uint8, size, "", offset).tobytes()


def tensor_array(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The contents of a tensor whose external data, if any, lies in `folder`.

    Raises:
        ModelError: as :func:`load_model` does, for data that is damaged or out of place.
    """
    what = f"tensor {tensor.name or '(unnamed)'}"
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, offset, size = _external(tensor, folder, what)
            plain = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if _item_bits(tensor.data_type) == dtype.itemsize * 8:
                raw = np.fromfile(file, dtype.newbyteorder("<"), size // dtype.itemsize, "", offset)
                return raw.astype(dtype, copy=False).reshape(tuple(tensor.dims))
            plain.raw_data = tensor_bytes(tensor, folder)
            tensor = plain
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, OSError, MemoryError) as error:
        raise ModelError(f"{what} cannot be read: {error}; export or download it again") from None


def dense_array(sparse: onnx.SparseTensorProto, folder: Path) -> np.ndarray:
    """A sparse initializer, made dense; elements that are not stored are 0.

    Raises:
        ModelError: indices that are out of range, or a dense form that is absurdly large.
    """
    what = f"sparse initializer {sparse.values.name or '(unnamed)'}"
    values = tensor_array(sparse.values, folder)
    indices = tensor_array(sparse.indices, folder)
    shape = tuple(sparse.dims)
    count = math.prod(shape)
    if any(d < 0 for d in shape) or count * values.itemsize > DENSE_LIMIT:
        raise ModelError(f"{what} has the absurd shape {list(shape)}")
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        if np.any(indices < 0) or np.any(indices >= np.array(shape)):
            raise ModelError(f"{what} has indices outside {list(shape)}; export it again")
        indices = np.ravel_multi_index(tuple(indices.T), shape)
    if indices.ndim != 1 or indices.shape != values.shape:
        raise ModelError(f"{what} has {values.size} values and {indices.shape} indices")
    if np.any(indices < 0) or np.any(indices >= count):
        raise ModelError(f"{what} has indices outside {list(shape)}; export it again")
    out = np.zeros(count, values.dtype)
    out[indices] = values
    return out.reshape(shape)


def _sort(graph: onnx.GraphProto, path: Path) -> bool:
    """Put nodes behind what they read; True if they were not.

    ONNX Runtime's quantizer leaves files out of order whose subgraphs read what the graph makes,
    and ONNX Runtime reads them.  Refuses inputs that nothing makes, and cycles, with the names at
    fault.
    """
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    made = {out for node in graph.node for out in node.output if out}
    missing = [
        f"{node.name or node.op_type} reads {name}"
        for node in graph.node
        for name in node.input
        if name and name not in known and name not in made
    ]
    missing += [
        f"the output {v.name}" for v in graph.output if v.name not in known and v.name not in made
    ]
    if missing:
        raise ModelError(
            f"{path} is not a whole graph, nothing makes: {'; '.join(missing[:8])}; export it again"
        )
    readers: dict[str, list[int]] = {}
    blocked = [0] * len(graph.node)
    later = made - known
    for i, node in enumerate(graph.node):
        for name in _read_by(node) & later:
            readers.setdefault(name, []).append(i)
            blocked[i] += 1
    ready = [i for i, count in enumerate(blocked) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for name in set(graph.node[order[-1]].output):
            for j in readers.get(name, ()):
                blocked[j] -= 1
                if not blocked[j]:
                    heapq.heappush(ready, j)
    if len(order) < len(graph.node):
        stuck = [n.name or n.op_type for n, count in zip(graph.node, blocked, strict=True) if count]
        raise ModelError(f"{path} has a cycle through {', '.join(stuck[:8])}; export it again")
    if order == sorted(order):
        return False
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def needed_values(graph: onnx.GraphProto, outputs: set[str]) -> set[str]:
    """Names of all values that some values of a sorted graph depend on, and their own."""
    needed = set(outputs)
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed |= _read_by(node)
    return needed


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names of the surrounding graph that a node or its subgraphs read."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            inner |= {out for inside in graph.node for out in inside.output}
            names |= {v.name for v in graph.output} - inner
            for inside in graph.node:
                names |= _read_by(inside) - inner
    return names


def _check_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse local functions that call themselves, and expansions without bound."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], active: tuple[tuple[str, str], ...]) -> int:
        if key in active or len(active) > 64:
            raise ModelError(f"{path} has a function that calls itself: {key[1]}; export it again")
        if key not in sizes:
            sizes[key] = _expanded(bodies[key].node, (*active, key))
        return sizes[key]

    def _expanded(nodes: Any, active: tuple[tuple[str, str], ...]) -> int:
        keys = ((n.domain, n.op_type) for n in nodes)
        return sum(size(key, active) if key in bodies else 1 for key in keys)

    if _expanded(proto.graph.node, ()) > NODE_LIMIT:
        raise ModelError(f"{path} expands to more than {NODE_LIMIT} nodes")


def _move_early_ops(proto: onnx.ModelProto) -> bool:
    """Move what only ONNX Runtime has in so early an opset to its own domain; True if there was.

    Its optimizer writes these ops into graphs of any opset.
    """
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    early = [
        node
        for node in proto.graph.node
        if node.op_type in _EARLY_OPS
        and node.domain in ("", "ai.onnx")
        and opset < _EARLY_OPS[node.op_type]
    ]
    for node in early:
        node.domain = _MICROSOFT
    if early and not any(o.domain == _MICROSOFT for o in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(_MICROSOFT, 1))
    return bool(early)


def _run_checker(proto: onnx.ModelProto, data: bytes, path: Path, moved: bool) -> None:
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors(proto))
    untyped = any(not _typed(v) for graph in _graphs(proto.graph) for v in _values(graph))
    try:
        if moved or external or untyped:
            _check_in_memory(proto)
        else:
            onnx.checker.check_model(data)
    except Exception as error:  # the checker raises several unrelated types
        first = " ".join(str(error).split())
        raise ModelError(f"{path} is not a valid ONNX model: {first[:500]}") from None


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _typed(value: onnx.ValueInfoProto) -> bool:
    """False if the file does not say a value's type or rank; the import finds those of outputs."""
    if not value.type.HasField("tensor_type"):
        return value.type.WhichOneof("value") is not None
    tensor = value.type.tensor_type
    return tensor.elem_type != onnx.TensorProto.UNDEFINED and tensor.HasField("shape")


def _check_in_memory(proto: onnx.ModelProto) -> None:
    """Check a model that differs from its file, or whose files and types are checked elsewhere."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in tensors(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            del tensor.external_data[:], tensor.dims[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.dims.append(0)
    for graph in _graphs(copy.graph):
        for value in _values(graph):
            if not _typed(value):
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
                value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(copy)


def require_tensor(value: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    """The tensor type of a graph input.

    Raises:
        ModelError: the file does not say its type.
        UnsupportedError: it is a sequence, a map or an optional.
    """
    kind = value.type.WhichOneof("value")
    if kind is None or (kind == "tensor_type" and not value.type.tensor_type.elem_type):
        raise ModelError(
            f"the file does not say the element type of the input {value.name}: write it in with "
            "onnx.helper.make_tensor_value_info, or export the model again"
        )
    if not value.type.HasField("tensor_type"):
        reason = "inputs that are not tensors are not supported"
        raise UnsupportedError(f"input {value.name}: {reason}", [(value.name, "input", reason)])
    return value.type.tensor_type
