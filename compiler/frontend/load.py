"""Reading an ONNX file that may be damaged or hostile.

:func:`load_model` returns a :class:`Model` whose structure, external data and constants have been
checked; everything wrong with the file ends in a :class:`~sparsec.errors.ModelError` that says what
to do.  Large constants stay where they are, in the proto or in a file, until they are asked for.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from sparsec.errors import ModelError, UnsupportedError

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
        sha256: of the .onnx file's bytes, as hex.
        opset: version of the default operator set (0 if the model imports none).
        opsets: version of every imported operator set; the default one is "".
    """

    proto: onnx.ModelProto
    path: Path
    name: str
    folder: Path
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

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The contents of one of the model's tensors.

        Raises:
            ModelError: the data does not fit the tensor's shape, or its file cannot be read.
        """
        return tensor_array(tensor, self.folder)


def load_model(path: str | Path) -> Model:
    """Load and check an ONNX file.

    Args:
        path: a .onnx file, or a folder that holds ``model.onnx``.

    Raises:
        ModelError: it is missing, damaged, invalid or unsafe.
    """
    path = _find(Path(path))
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
        sha256=hashlib.sha256(data).hexdigest(),
        opset=opsets.get("", 0),
        opsets=opsets,
    )


def _find(path: Path) -> Path:
    if path.is_dir():
        inside = path / "model.onnx"
        if not inside.is_file():
            found = sorted(str(p.relative_to(path)) for p in path.glob("**/*.onnx"))[:8]
            hint = f"it has {', '.join(found)}: name one" if found else "it has no .onnx file"
            raise ModelError(f"the folder {path} has no model.onnx ({hint})")
        return inside
    if not path.exists():
        raise ModelError(f"{path} does not exist")
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file")
    return path


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path} is empty; export or download it again")
        if size > PROTO_LIMIT:
            raise ModelError(
                f"{path} has {size} bytes, more than an ONNX file can hold; save it with "
                "onnx.save(model, path, save_as_external_data=True)"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the model; run `git lfs pull`")
    return data


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
        root = folder.resolve(strict=True)
        file = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError):
        raise ModelError(
            f"{what} keeps its data in {location!r}, which is not in {folder}; download that "
            "file too"
        ) from None
    if not file.is_relative_to(root):
        raise ModelError(
            f"{what} keeps its data in {location!r}, a symbolic link that leaves the model's "
            "folder (Hugging Face's cache does this): fetch the model with "
            "snapshot_download(local_dir=...)"
        )
    if not file.is_file():
        raise ModelError(f"{what} keeps its data in {location!r}, which is not a regular file")
    need = _byte_count(tensor)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(need)))
    except ValueError:
        raise ModelError(f"{what} has an external offset or length that is no number") from None
    size = file.stat().st_size
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
            plain.raw_data = np.fromfile(file, np.uint8, size, "", offset).tobytes()
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
    external = [t for t in tensors(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    try:
        if moved:
            _check_in_memory(proto)
        else:
            onnx.checker.check_model(str(path) if external else data)
    except Exception as error:  # the checker raises several unrelated types
        first = " ".join(str(error).split())
        raise ModelError(f"{path} is not a valid ONNX model: {first[:500]}") from None


def _check_in_memory(proto: onnx.ModelProto) -> None:
    """Check a model that differs from its file; external data was checked before."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in tensors(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            del tensor.external_data[:], tensor.dims[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.dims.append(0)
    onnx.checker.check_model(copy)


def require_tensor(value: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    """The tensor type of a graph input.

    Raises:
        UnsupportedError: it is a sequence, a map or an optional.
    """
    if not value.type.HasField("tensor_type"):
        reason = "inputs that are not tensors are not supported"
        raise UnsupportedError(f"input {value.name}: {reason}", [(value.name, "input", reason)])
    return value.type.tensor_type
