"""From ONNX nodes to the core IR, for one sequence length.

The importer walks the nodes in order.  What can be computed from constants and shapes is computed
(:mod:`~sparsec.compiler.frontend.tensor`); the rest is emitted as core ops.  One function for each
ONNX op, registered with :func:`onnx_op` in :mod:`~sparsec.compiler.frontend.onnx_ops`, says how.
An op without one is imported through its ONNX function body where the standard gives one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Union

import numpy as np
import onnx

from sparsec.compiler.editor import Editor
from sparsec.compiler.frontend import reference, symbolic
from sparsec.compiler.frontend.advice import advice_on, cut_before
from sparsec.compiler.frontend.folding import FOLD_LIMIT, Folder, batch_axes
from sparsec.compiler.frontend.functions import (
    Attributes,
    body_of,
    bound_attributes,
    bound_node,
    has_body,
)
from sparsec.compiler.frontend.load import (
    Model,
    dense_array,
    needed_values,
    require_tensor,
    tensor_array,
)
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, dense, fixed
from sparsec.compiler.ir import BATCH, BatchDim, Dim, FrozenAttrs, Graph, Shape
from sparsec.compiler.ops import OPS, infer
from sparsec.compiler.ops.elementwise import broadcast_shape
from sparsec.errors import ModelError, UnsupportedError

VALUE_LIMIT = 2**32
"""No value may have more elements than this for a batch of one."""

MIN_OPSET = 7

_TOKEN_TYPES = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}

_NIBBLES: dict[int, type[np.generic]] = {
    onnx.TensorProto.INT4: np.int8,
    onnx.TensorProto.UINT4: np.uint8,
}
_WIDENED = {"float16", "bfloat16"}
_PLAIN = {
    *("float32", "float64", "bool", "int8", "uint8", "int16", "uint16"),
    *("int32", "uint32", "int64", "uint64"),
}

Result = Union[Tensor, Sequence[Union[Tensor, None]]]
OpImporter = Callable[["Importer", "OnnxNode"], Result]

IMPORTERS: dict[tuple[str, str], OpImporter] = {}
"""(domain, op type) -> importer function."""

STATIC: dict[tuple[str, str], tuple[int, ...]] = {}
"""(domain, op type) -> inputs that must be known at compile time: most of them say shapes."""


def onnx_op(
    *names: str, domain: str = "", static: tuple[int, ...] = ()
) -> Callable[[OpImporter], OpImporter]:
    """Register the importer of one or more ONNX ops.

    Args:
        static: positions of inputs that must be known at compile time.
    """

    def register(function: OpImporter) -> OpImporter:
        for name in names:
            if (domain, name) in IMPORTERS:
                raise ValueError(f"ONNX op {name} is registered twice")
            IMPORTERS[domain, name] = function
            STATIC[domain, name] = static
        return function

    return register


def core_dtype(data_type: int) -> np.dtype[Any]:
    """The core IR's element type for an ONNX one; half floats are widened to float32.

    Raises:
        Fail: there is none.
    """
    name = onnx.TensorProto.DataType.Name(data_type) if data_type else "UNDEFINED"
    if name in ("STRING", "UNDEFINED"):
        raise Fail(f"tensors of type {name.lower()} are not supported")
    return _core(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)))


def _core(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.name in _WIDENED:
        return np.dtype(np.float32)
    if dtype.name not in _PLAIN:
        raise Fail(f"tensors of type {dtype.name} are not supported")
    return dtype


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """One ONNX node with its inputs resolved.

    Attributes:
        op: the ONNX op type.
        source: the node's ONNX name, or ``OpType_index`` if it has none.
        inputs: None where an optional input is absent; trailing absent inputs are dropped.
        attrs: attribute values; tensors as arrays, strings decoded, subgraphs as protos.
        version: of the operator set the op is from.
        outputs: ONNX names of the outputs, "" where one is not wanted.
    """

    op: str
    source: str
    inputs: tuple[Tensor | None, ...]
    attrs: Mapping[str, Any]
    version: int
    outputs: tuple[str, ...]

    def __getitem__(self, i: int) -> Tensor:
        tensor = self.optional(i)
        if tensor is None:
            raise Fail(f"its input {i} is missing")
        return tensor

    def optional(self, i: int) -> Tensor | None:
        """An input that may be absent."""
        return self.inputs[i] if i < len(self.inputs) else None

    def wants(self, i: int) -> bool:
        """True if output `i` has a name."""
        return i < len(self.outputs) and bool(self.outputs[i])


def node_label(node: onnx.NodeProto, index: int) -> str:
    """What messages and the IR call a node: its name, or its op and position."""
    return node.name or f"{node.op_type}_{index}"


def normal_axis(axis: int, rank: int) -> int:
    """A non-negative axis; raises Fail if it is out of range."""
    if not -rank <= axis < rank:
        raise Fail(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


@dataclass(frozen=True)
class Problem:
    """Something that cannot be imported.

    Attributes:
        name: of the node, input or initializer.
        op: the ONNX op type, or "input", "initializer", "sparse_initializer".
        reason: what stands in the way, and what to do about it where that is known.
        opset: the operator set that the node is from, as in "opset 17", or "".
    """

    name: str
    op: str
    reason: str
    opset: str = ""

    def __str__(self) -> str:
        kind = f"{self.op}, {self.opset}" if self.opset else self.op
        return f"{self.name} ({kind}): {self.reason}"


class Importer:
    """State of one import; importer functions emit core ops and constants through it."""

    def __init__(self, model: Model, length: int, exported_batch: int | None = None) -> None:
        self.model = model
        self.exported_batch = exported_batch
        self.folder = Folder(length)
        self.edit = Editor(name=model.name, length=length)
        self.problems: list[Problem] = []
        self._source = ""
        self._hint = ""
        self._constants: dict[int, tuple[Tensor, str]] = {}

    # -- building ---------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: Tensor | None, fold: bool = True, **attrs: Any) -> Tensor:
        """A core op's only output: computed now if all inputs are known, else emitted.

        Args:
            fold: False emits the op even if it could be computed now.
        """
        return self.emit_multi(op, *inputs, fold=fold, **attrs)[0]

    def emit_multi(
        self, op: str, *inputs: Tensor | None, fold: bool = True, **attrs: Any
    ) -> tuple[Tensor, ...]:
        """Like :meth:`emit`, for ops of several outputs."""
        # An extent of 1 broadcasts by itself, but for concat.
        size = self.exported_batch or 0
        if (size > 1 and OPS[op].elementwise) or (size and op == "concat" and attrs["axis"]):
            inputs = self._for_any_batch(inputs)
        if size and op in ("matmul", "gather_elements"):
            inputs = self._blocks_for_any_batch(inputs)
        try:
            types = infer(op, [t.type if t else None for t in inputs], FrozenAttrs(attrs))
        except ValueError as error:
            raise Fail(str(error)) from None
        for _, shape in types:
            _check_size(shape)
        if fold and all(t is None or t.known for t in inputs):
            folded = self.folder.fold(op, attrs, inputs, types, self._hint)
            if folded is not None:
                return folded
        operands = list(inputs)
        if OPS[op].elementwise and not OPS[op].quantizes:
            operands = [self._compact(t, inputs, types[0][1]) if t else None for t in inputs]
        names = [self.name(t) if t else "" for t in operands]
        outs = [self.edit.fresh(self._hint or op)]
        outs += [self.edit.fresh(f"{self._hint or op}.{i}") for i in range(1, len(types))]
        self.edit.emit_multi(op, names, source=self._source, outputs=outs, **attrs)
        return tuple(
            Tensor(np.dtype(dtype), tuple(shape), name=out)
            for out, (dtype, shape) in zip(outs, types, strict=True)
        )

    def _for_any_batch(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Operands where an export of a fixed batch size has repeated a constant so many times.

        For the size that was exported the result means the same.
        """
        ranks = {len(t.shape) for t in inputs if t is not None and t.shape[:1] == (BATCH,)}

        def repeated(tensor: Tensor) -> bool:
            array = tensor.array
            return (
                array is not None
                and not tensor.symbolic
                and len(tensor.shape) in ranks
                and tensor.shape[0] == self.exported_batch
                and (array.shape[0] == 1 or bool(np.all(array == array[:1])))
            )

        return tuple(
            replace(t, shape=(BATCH, *t.shape[1:]), array=t.contents()[:1])
            if t is not None and repeated(t)
            else t
            for t in inputs
        )

    def _blocks_for_any_batch(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The same for [batch * n, ..], of which a constant holds as many blocks of n.

        DeBERTa multiplies and gathers the heads of a sample with what it makes of positions.
        """
        left, right = inputs
        if left is None or right is None or not left.shape or not right.shape:
            return tuple(inputs)
        lead, count = left.shape[0], right.shape[0]
        if not isinstance(lead, BatchDim) or lead.const or not right.known or right.symbolic:
            return tuple(inputs)
        n, size = lead.coef, self.exported_batch or 0
        same_rank = len(left.shape) == len(right.shape)
        if not same_rank or count != n * size or batch_axes(right.shape):
            return tuple(inputs)
        blocks = dense(right, self.folder.limit).reshape(size, n, *right.shape[1:])
        if np.any(blocks != blocks[:1]):
            return tuple(inputs)
        block = self.expand(constant(blocks[:1], right.hint), (BATCH, *blocks.shape[1:]))
        return left, self.reshape(block, (lead, *right.shape[1:]))

    def name(self, tensor: Tensor) -> str:
        """The IR value of a tensor; compile-time tensors become constants (and an expand)."""
        if tensor.name:
            return tensor.name
        made = self._constants.get(id(tensor))
        if made is None:
            array = tensor.contents()
            if tensor.symbolic:
                name = self._counted(array, tensor.dtype)
            else:
                if tensor.uniform and not any(isinstance(d, BatchDim) for d in tensor.shape):
                    array = dense(tensor, self.folder.limit)
                name = self.edit.constant(array, tensor.hint)
            if tuple(array.shape) != tensor.shape:
                name = self.edit.emit(
                    "expand", [name], source=self._source, outputs=None, shape=tensor.shape
                )
            made = self._constants[id(tensor)] = (tensor, name)
        return made[1]

    def _counted(self, array: np.ndarray, dtype: np.dtype[Any]) -> str:
        """The IR value of integers ``a * batch + b``: the sum of a batch of a, and b."""
        if any(isinstance(v, symbolic.PerSample) for v in array.flat):
            raise Fail("numbers that differ along the batch are used as data")
        parts = [(v.coef, v.const) if isinstance(v, BatchDim) else (0, int(v)) for v in array.flat]
        coefs, consts = np.array(parts, np.int64).T.reshape(2, *array.shape)
        many = self.emit("expand", constant(coefs[None]), fold=False, shape=(BATCH, *array.shape))
        total = self.emit("reduce_sum", many, axes=(0,), keepdims=False)
        return self.name(self.cast(self.emit("add", total, constant(consts)), dtype))

    def _compact(self, tensor: Tensor, others: Iterable[Tensor | None], shape: Shape) -> Tensor:
        """The operand without its uniform axes, where the result's shape does not need them."""
        if not tensor.uniform or tensor.symbolic:
            return tensor
        small = constant(tensor.contents(), tensor.hint)
        shapes = [small.shape if t is tensor else t.shape for t in others if t is not None]
        return small if broadcast_shape(*shapes) == shape else tensor

    # -- shorthands -------------------------------------------------------------------------------

    def scalar(self, value: float, like: Tensor) -> Tensor:
        """A constant of `like`'s element type."""
        return constant(np.asarray(value, like.dtype))

    def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
        """The tensor in another element type."""
        dtype = np.dtype(dtype)
        return tensor if tensor.dtype == dtype else self.emit("cast", tensor, to=dtype)

    def reshape(self, tensor: Tensor, shape: Iterable[Dim]) -> Tensor:
        """The tensor in another, fully resolved shape."""
        shape = tuple(shape)
        return tensor if shape == tensor.shape else self.emit("reshape", tensor, shape=shape)

    def transpose(self, tensor: Tensor, perm: Iterable[int]) -> Tensor:
        """The tensor with its axes permuted."""
        perm = tuple(perm)
        if perm == tuple(range(len(perm))):
            return tensor
        return self.emit("transpose", tensor, perm=perm)

    def expand(self, tensor: Tensor, shape: Iterable[Dim]) -> Tensor:
        """The tensor broadcast against a shape."""
        try:
            full = broadcast_shape(tensor.shape, tuple(shape))
        except ValueError as error:
            raise Fail(str(error)) from None
        return tensor if full == tensor.shape else self.emit("expand", tensor, shape=full)

    def ints(self, tensor: Tensor) -> list[Dim]:
        """The elements of a compile-time integer tensor."""
        if not tensor.known:
            raise Fail(
                "a shape, axis or index depends on the values of the inputs; make it a constant"
            )
        values = dense(tensor, FOLD_LIMIT).reshape(-1).tolist()
        if any(isinstance(v, symbolic.PerSample) for v in values):
            raise Fail("a shape, axis or index differs along the batch")
        return [v if isinstance(v, BatchDim) else int(v) for v in values]

    def plain_ints(self, tensor: Tensor) -> list[int]:
        """Like :meth:`ints`, where none may depend on the batch size."""
        return [fixed(v) for v in self.ints(tensor)]

    # -- walking ----------------------------------------------------------------------------------

    def tensor(self, proto: onnx.TensorProto, hint: str = "") -> Tensor:
        """A stored tensor, half floats widened."""
        core_dtype(proto.data_type)
        array = tensor_array(proto, self.model.folder)
        return constant(array.astype(_core(array.dtype), copy=False), hint or proto.name or "const")

    def sparse_tensor(self, proto: onnx.SparseTensorProto) -> Tensor:
        """A tensor stored as coordinates and values, made dense."""
        core_dtype(proto.values.data_type)
        array = dense_array(proto, self.model.folder)
        return constant(array.astype(_core(array.dtype), copy=False), proto.values.name or "const")

    def initializer(self, proto: onnx.TensorProto) -> Tensor:
        """A stored tensor of the graph, read once for all imports of the model."""
        cache = self.model.cache.setdefault("initializers", {})
        if proto.name not in cache:
            wide = _NIBBLES.get(proto.data_type)
            if wide is not None and self._only_dequantized(proto.name):
                cache[proto.name] = tensor_array(proto, self.model.folder).astype(wide)
            else:
                cache[proto.name] = self.tensor(proto).contents()
        return constant(cache[proto.name], proto.name)

    def _only_dequantized(self, name: str) -> bool:
        """Whether all readers of an initializer take the numbers that it holds for what they are,
        in whatever type: those of 4 bits have no op of their own."""
        readers = [n for n in self.model.proto.graph.node if name in n.input]
        return bool(readers) and all(n.op_type == "DequantizeLinear" for n in readers)

    def run(
        self,
        nodes: Iterable[onnx.NodeProto],
        scope: dict[str, Tensor | None],
        opsets: Mapping[str, int],
        prefix: str = "",
        attributes: Attributes | None = None,
        needed: set[str] | None = None,
    ) -> None:
        """Import nodes.  A value is None in `scope` once a node it needs could not be imported.

        Args:
            needed: leave out nodes that make none of these values.
        """
        for index, proto in enumerate(nodes):
            if needed is not None and needed.isdisjoint(proto.output):
                continue
            domain = "" if proto.domain == "ai.onnx" else proto.domain
            label = prefix or node_label(proto, index)
            missing = any(i and scope[i] is None for i in proto.input)
            results: Sequence[Tensor | None] = []
            outer = self._source, self._hint
            try:
                importer = IMPORTERS.get((domain, proto.op_type))
                if importer is None and not has_body(proto, domain, opsets):
                    raise Fail(f"no such op is supported{advice_on(proto, domain)}")
                _check_version(proto, domain, opsets)
                if not missing:
                    self._source = label
                    self._hint = next((o for o in proto.output if o), label)
                    inputs = tuple(scope[i] if i else None for i in proto.input)
                    if importer is None:
                        results = self._body(proto, inputs, domain, opsets, label, attributes)
                    else:
                        attrs = self._attributes(proto, attributes, scope)
                        version = opsets.get(domain, 1)
                        node = OnnxNode(
                            proto.op_type, label, inputs, attrs, version, tuple(proto.output)
                        )
                        made = importer(self, node)
                        results = (made,) if isinstance(made, Tensor) else made
            except (Fail, ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
                said = isinstance(error, (Fail, ValueError))
                reason = str(error) if said else f"it is malformed ({error!r})"
                results = [] if missing else self._evaluated(proto, scope, opsets, attributes)
                if not results:
                    reason += "" if prefix else cut_before(proto, scope)
                    opset = f"{domain + ' ' if domain else ''}opset {opsets.get(domain, 1)}"
                    self.problems.append(Problem(label, proto.op_type, reason, opset))
            finally:
                self._source, self._hint = outer
            for i, out in enumerate(proto.output):
                if out:
                    scope[out] = results[i] if i < len(results) else None

    def _evaluated(
        self,
        proto: onnx.NodeProto,
        scope: Mapping[str, Tensor | None],
        opsets: Mapping[str, int],
        caller: Attributes | None,
    ) -> list[Tensor]:
        """Results of a node that was refused, if all it reads is known; else none."""
        inputs = [scope[name] if name else None for name in proto.input]
        if any(t is not None and (t.symbolic or batch_axes(t.shape)) for t in inputs):
            return []
        bound = bound_node(proto, caller)
        cache = self.model.cache.setdefault("evaluated", {})
        hint = next((name for name in proto.output if name), proto.op_type)
        try:
            arrays = [dense(t, self.folder.limit) if t else None for t in inputs]
            made = reference.evaluate(bound, arrays, opsets, cache)
            return [constant(a.astype(_core(a.dtype), copy=False), hint) for a in made]
        except Fail:
            return []

    def subgraph(self, graph: onnx.GraphProto, node: OnnxNode) -> list[Tensor | None]:
        """Import a subgraph of a node in place; it sees the values around it."""
        inner: dict[str, Tensor | None] = dict(node.attrs["_scope"])
        inner |= {t.name: self.tensor(t) for t in graph.initializer}
        self.run(graph.node, inner, self.model.opsets)
        return [inner[v.name] for v in graph.output]

    def _attributes(
        self,
        proto: onnx.NodeProto,
        caller: Attributes | None,
        scope: dict[str, Tensor | None],
    ) -> dict[str, Any]:
        attrs: dict[str, Any] = {"_scope": scope}
        for attribute in bound_attributes(proto.attribute, caller):
            if attribute.type == onnx.AttributeProto.TENSOR:
                attrs[attribute.name] = self.tensor(attribute.t)
                continue
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                attrs[attribute.name] = self.sparse_tensor(attribute.sparse_tensor)
                continue
            value = onnx.helper.get_attribute_value(attribute)
            attrs[attribute.name] = value.decode() if isinstance(value, bytes) else value
        return attrs

    def _body(
        self,
        proto: onnx.NodeProto,
        inputs: tuple[Tensor | None, ...],
        domain: str,
        opsets: Mapping[str, int],
        label: str,
        caller: Attributes | None,
    ) -> list[Tensor | None]:
        """Import an op through the function body that the ONNX standard gives for it."""
        body = body_of(proto, inputs, domain, opsets, caller)
        problems = len(self.problems)
        versions = {**opsets, **body.opsets}
        self.run(body.nodes, body.scope, versions, prefix=label, attributes=body.attributes)
        if len(self.problems) > problems:
            reasons = dict.fromkeys(f"{p.op}: {p.reason}" for p in self.problems[problems:])
            del self.problems[problems:]
            raise Fail("in its ONNX function body: " + "; ".join(reasons))
        return [body.scope.get(name) for name in body.outputs]


def _check_version(proto: onnx.NodeProto, domain: str, opsets: Mapping[str, int]) -> None:
    """Refuse ops that meant something else before the oldest opset that importers know."""
    version = opsets.get(domain, 1)
    if domain or version >= MIN_OPSET:
        return
    old, known = (
        onnx.defs.get_schema(proto.op_type, v, "").since_version for v in (version, MIN_OPSET)
    )
    if old != known:
        raise Fail(
            f"its form in opset {version} is not supported; convert the model to {MIN_OPSET} or "
            "newer with onnx.version_converter.convert_version"
        )


def _check_size(shape: Shape) -> None:
    count = 1
    for d in shape:
        count *= d.bind(1) if isinstance(d, BatchDim) else d
    if count > VALUE_LIMIT:
        raise Fail(f"a value of shape {list(shape)} is absurdly large")
    if sum(isinstance(d, BatchDim) for d in shape) > 1:
        raise Fail(
            f"a value of shape {list(shape)} grows with the square of the batch size B: compare "
            "samples with each other outside of the model, or export it with fixed extents"
        )


@dataclass(frozen=True)
class InputShape:
    """What an input's shape becomes: its ONNX name, ONNX element type, and extents."""

    name: str
    data_type: int
    dims: Shape = field(default=())


def _exported_batch(model: Model, inputs: Sequence[InputShape]) -> int | None:
    """The batch size that an export has fixed, where it is now to be any; None if it fixed none."""
    batched = {given.name for given in inputs if BATCH in given.dims[:1]}
    sizes = {dims[0] for name, _, dims in declared_inputs(model) if name in batched}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if isinstance(size, int) else None


def import_nodes(model: Model, inputs: Sequence[InputShape], length: int) -> Graph:
    """Import a model for given input shapes, without canonicalizing it.

    Raises:
        ModelError: the graph is damaged.
        UnsupportedError: listing every node that cannot be imported.
    """
    importer, scope = _imported(model, inputs, length)
    outputs = model.proto.graph.output
    for output in outputs:
        importer.edit.outputs.append(_output(importer, output.name, scope[output.name]))
    importer.edit.output_names = tuple(o.name for o in outputs)
    return importer.edit.finish()


def onnx_values(model: Model, inputs: Sequence[InputShape], length: int) -> dict[str, Tensor]:
    """What each value of a model's ONNX graph is for given input shapes, by its name there; those
    that no output needs, and those inside of bodies, are left out.

    Raises:
        ModelError, UnsupportedError: as :func:`import_nodes`.
    """
    _, scope = _imported(model, inputs, length)
    return {name: tensor for name, tensor in scope.items() if tensor is not None}


def _imported(
    model: Model, inputs: Sequence[InputShape], length: int
) -> tuple[Importer, dict[str, Tensor | None]]:
    """An importer behind the last node, and the values by their ONNX names."""
    importer = Importer(model, length, _exported_batch(model, inputs))
    graph = model.proto.graph
    needed = needed_values(graph, {value.name for value in graph.output})
    scope = {given.name: _given(importer, given) for given in inputs}
    scope |= _stored(importer, needed)
    importer.run(graph.node, scope, model.opsets, needed=needed)
    if importer.problems:
        raise _unsupported(model, importer.problems)
    return importer, scope


def _given(importer: Importer, given: InputShape) -> Tensor | None:
    """An input of the graph; None if it is noted as a problem."""
    try:
        dtype = core_dtype(given.data_type)
        _check_size(given.dims)
        importer.edit.input(given.name, dtype, given.dims)
        return Tensor(dtype, given.dims, name=given.name)
    except Fail as error:
        importer.problems.append(Problem(given.name, "input", str(error)))
        return None


def _stored(importer: Importer, needed: set[str]) -> dict[str, Tensor | None]:
    """The graph's stored tensors that are needed by name; None for those noted as problems."""
    graph = importer.model.proto.graph
    stored: list[tuple[str, str, Callable[[], Tensor]]] = [
        *((p.name, "initializer", partial(importer.initializer, p)) for p in graph.initializer),
        *(
            (p.values.name, "sparse_initializer", partial(importer.sparse_tensor, p))
            for p in graph.sparse_initializer
        ),
    ]
    found: dict[str, Tensor | None] = {}
    for name, kind, read in stored:
        if name not in needed:
            continue
        try:
            found[name] = read()
        except Fail as error:
            importer.problems.append(Problem(name, kind, str(error)))
            found[name] = None
    return found


def _unsupported(model: Model, problems: Sequence[Problem]) -> UnsupportedError:
    """The error that lists all problems."""
    listed = "\n".join(f"  {problem}" for problem in problems)
    nodes = "1 node" if len(problems) == 1 else f"{len(problems)} nodes"
    return UnsupportedError(
        f"{model.path.name}: {nodes} cannot be compiled\n{listed}",
        [(p.name, p.op, p.reason) for p in problems],
    )


def _output(importer: Importer, name: str, tensor: Tensor | None) -> str:
    """The IR value of an output of the graph."""
    file = importer.model.path.name
    if tensor is None:
        raise ModelError(f"{file}: nothing makes the output {name}")
    try:
        return importer.name(tensor)
    except Fail as error:
        why = str(error)
        raise UnsupportedError(f"{file}: output {name}: {why}", [(name, "output", why)]) from None


def declared_inputs(model: Model) -> list[tuple[str, int, list[str | int | None]]]:
    """Name, ONNX element type and declared extents of each input.

    An extent is an int, a parameter's name, or None where nothing is said.  An integer input whose
    rank is not said either is taken for one of tokens, [batch, sequence].

    Raises:
        ModelError: nothing is said of an input's type.
        UnsupportedError: an input is not a tensor, or not even its rank is known.
    """
    out: list[tuple[str, int, list[str | int | None]]] = []
    for value in model.inputs():
        kind = require_tensor(value)
        dims: list[str | int | None] = []
        if not kind.HasField("shape"):
            if kind.elem_type not in _TOKEN_TYPES:
                why = "the file does not say its shape: write it in, or export the model again"
                raise UnsupportedError(f"input {value.name}: {why}", [(value.name, "input", why)])
            dims = [None, None]
        for d in kind.shape.dim:
            if d.HasField("dim_value") and d.dim_value >= 0:
                dims.append(int(d.dim_value))
            else:
                dims.append(d.dim_param or None)
        out.append((value.name, kind.elem_type, dims))
    return out
