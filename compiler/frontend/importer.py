"""From ONNX nodes to the core IR, for one sequence length.

The importer walks the nodes in order.  What can be computed from constants and shapes is computed
(:mod:`~sparsec.compiler.frontend.tensor`); the rest is emitted as core ops.  One function for each
ONNX op, registered with :func:`onnx_op` in :mod:`~sparsec.compiler.frontend.onnx_ops`, says how.
An op without one is imported through its ONNX function body where the standard gives one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

import numpy as np
import onnx

from sparsec.compiler.frontend import reference, symbolic
from sparsec.compiler.frontend.load import (
    Model,
    dense_array,
    needed_values,
    require_tensor,
    tensor_array,
)
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, dense, fixed
from sparsec.compiler.ir import (
    BATCH,
    BatchDim,
    Dim,
    Editor,
    FrozenAttrs,
    Graph,
    Shape,
    element_count,
)
from sparsec.compiler.ops import OPS, infer
from sparsec.compiler.ops.elementwise import broadcast_shape
from sparsec.errors import ModelError, UnsupportedError

FOLD_LIMIT = 2**28
"""Folding may not make a constant larger than this many bytes (nor than its inputs), but for what
has a number for every pair of tokens: that is how masks of positions begin."""

PAIRS_LIMIT = 2**31
"""Not even a constant of a number for every pair of tokens may have more bytes."""

FOLD_TOTAL = 2**35
"""All results of folding in one import may not take more bytes than this."""

SYMBOLIC_LIMIT = 2**22
"""Elements of a compile-time tensor that depends on the batch size."""

VALUE_LIMIT = 2**32
"""No value may have more elements than this for a batch of one."""

MIN_OPSET = 7

_TOKEN_TYPES = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}

_MICROSOFT = "com.microsoft"

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
        self.fold_limit = max(FOLD_LIMIT, min(8 * length**2, PAIRS_LIMIT))
        self.edit = Editor(name=model.name, length=length)
        self.problems: list[Problem] = []
        self._folded = 0
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
            folded = self._fold(op, attrs, inputs, types)
            if folded is not None:
                return folded
        operands = list(inputs)
        if OPS[op].elementwise and op not in ("quantize", "dequantize"):
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
        if not same_rank or count != n * size or _batch_axes(right.shape):
            return tuple(inputs)
        blocks = dense(right, self.fold_limit).reshape(size, n, *right.shape[1:])
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
                    array = dense(tensor, self.fold_limit)
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

    def _fold(
        self,
        op: str,
        attrs: dict[str, Any],
        inputs: Sequence[Tensor | None],
        types: Sequence[tuple[Any, Shape]],
    ) -> tuple[Tensor, ...] | None:
        """Results of an op on compile-time tensors, or None if it has to run later."""
        known = [t for t in inputs if t is not None]
        # A stored tensor in another layout keeps its name; a computed one gets its node's.
        hint = known[0].hint if OPS[op].layout and len(known) == 1 else self._hint
        shapes = [tuple(shape) for _, shape in types]
        dtypes = [np.dtype(dtype) for dtype, _ in types]
        if OPS[op].elementwise:
            arrays = [t.contents() if t else None for t in inputs]
            per_axis = op in ("quantize", "dequantize")  # parameters along an axis
            sides = known[:1] if per_axis else known
            extents = np.broadcast_shapes(*(t.contents().shape for t in sides))
            self._check_fold(extents, dtypes[0], known)
            if any(t.symbolic for t in known):
                out = symbolic.elementwise(
                    op, attrs, dtypes[0], [a for a in arrays if a is not None]
                )
            else:
                (out,) = OPS[op].reference({**attrs, "_batch": 1}, *arrays)
            return (Tensor(dtypes[0], shapes[0], array=out, hint=hint),)
        if op == "expand":
            array = known[0].contents()
            array = array.reshape((1,) * (len(shapes[0]) - array.ndim) + array.shape)
            return (Tensor(dtypes[0], shapes[0], array=array, hint=hint),)
        if op == "reshape" and known[0].contents().size == 1:
            array = known[0].contents().reshape((1,) * len(shapes[0]))
            return (Tensor(dtypes[0], shapes[0], array=array, hint=hint),)
        if not all(_one_per_batch(t.shape) for t in known):
            return None
        if any(_batch_axes(s) for s in (*shapes, *(t.shape for t in known))) and not _batch_apart(
            op, attrs, known, shapes
        ):
            return None
        for shape, dtype in zip(shapes, dtypes, strict=True):
            extents = tuple(1 if isinstance(d, BatchDim) else d for d in shape)
            self._check_fold(extents, dtype, known)
        arrays = [self._at_batch_one(t) if t else None for t in inputs]
        if any(t.symbolic for t in known) and not OPS[op].layout and not op.startswith("reduce_"):
            raise Fail(f"{op} of numbers that depend on the batch size")
        try:
            outs = OPS[op].reference({**attrs, "_batch": 1}, *arrays)
        except IndexError as error:
            raise Fail(str(error)) from None
        return tuple(
            Tensor(dtype, shape, array=symbolic.tidy(np.asarray(out), dtype), hint=hint)
            for dtype, shape, out in zip(dtypes, shapes, outs, strict=True)
        )

    def _at_batch_one(self, tensor: Tensor) -> np.ndarray:
        """The contents for a batch of one: batch axes are uniform, so they have extent 1."""
        shape = tuple(1 if isinstance(d, BatchDim) else d for d in tensor.shape)
        return dense(replace(tensor, shape=shape), self.fold_limit)

    def _check_fold(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Sequence[Tensor]
    ) -> None:
        size = math.prod(shape) * dtype.itemsize
        # Copies of a stored tensor, even in a wider type, are as large as the model made them.
        limit = max([self.fold_limit, *(8 * t.contents().size for t in inputs)])
        self._folded += size
        if size > limit or self._folded > FOLD_TOTAL:
            raise Fail(f"folding gives a constant of {size} bytes, which is absurd")
        if any(t.symbolic for t in inputs) and math.prod(shape) > SYMBOLIC_LIMIT:
            raise Fail(f"shape arithmetic on {math.prod(shape)} elements is absurd")

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
            cache[proto.name] = self.tensor(proto).contents()
        return constant(cache[proto.name], proto.name)

    def run(
        self,
        nodes: Iterable[onnx.NodeProto],
        scope: dict[str, Tensor | None],
        opsets: Mapping[str, int],
        prefix: str = "",
        attributes: Mapping[str, onnx.AttributeProto] | None = None,
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
                if importer is None and not _has_body(proto, domain, opsets):
                    raise Fail(f"no such op is supported{_advice(proto, domain)}")
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
                    reason += "" if prefix else _cut_before(proto, scope)
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
        caller: Mapping[str, onnx.AttributeProto] | None,
    ) -> list[Tensor]:
        """Results of a node that was refused, if all it reads is known; else none."""
        inputs = [scope[name] if name else None for name in proto.input]
        if any(t is not None and (t.symbolic or _batch_axes(t.shape)) for t in inputs):
            return []
        bound = onnx.NodeProto()
        bound.CopyFrom(proto)
        del bound.attribute[:]
        bound.attribute.extend(_bound(proto.attribute, caller))
        cache = self.model.cache.setdefault("evaluated", {})
        hint = next((name for name in proto.output if name), proto.op_type)
        try:
            arrays = [dense(t, self.fold_limit) if t else None for t in inputs]
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
        caller: Mapping[str, onnx.AttributeProto] | None,
        scope: dict[str, Tensor | None],
    ) -> dict[str, Any]:
        attrs: dict[str, Any] = {"_scope": scope}
        for attribute in _bound(proto.attribute, caller):
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
        caller: Mapping[str, onnx.AttributeProto] | None,
    ) -> list[Tensor | None]:
        """Import an op through the function body that the ONNX standard gives for it."""
        bound = onnx.NodeProto()
        bound.CopyFrom(proto)
        del bound.attribute[:]
        bound.attribute.extend(_bound(proto.attribute, caller))
        schema: Any = onnx.defs.get_schema(proto.op_type, opsets.get(domain, 1), domain)
        if schema.has_function:
            body = schema.function_body
        else:
            types = [_onnx_type(t).SerializeToString() if t else b"" for t in inputs]
            text = schema.get_context_dependent_function(bound.SerializeToString(), types)
            body = onnx.FunctionProto.FromString(text)
        attributes = {a.name: a for a in body.attribute_proto}
        attributes |= {
            name: parameter.default_value
            for name, parameter in schema.attributes.items()
            if parameter.default_value.name
        }
        attributes |= {a.name: a for a in bound.attribute}
        inner: dict[str, Tensor | None] = dict(zip(body.input, inputs, strict=False))
        absent = set(body.input) - set(inner)
        for name in absent:
            inner[name] = None
        nodes = []
        for node in body.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            # An input of the body that the caller leaves out is an absent input inside, too.
            gone = {n for n, t in inner.items() if t is None and n in body.input}
            copy.ClearField("input")
            copy.input.extend("" if i in gone else i for i in node.input)
            nodes.append(copy)
        versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in body.opset_import}
        problems = len(self.problems)
        self.run(nodes, inner, {**opsets, **versions}, prefix=label, attributes=attributes)
        if len(self.problems) > problems:
            reasons = dict.fromkeys(f"{p.op}: {p.reason}" for p in self.problems[problems:])
            del self.problems[problems:]
            raise Fail("in its ONNX function body: " + "; ".join(reasons))
        return [inner.get(name) for name in body.output]


_LOOPS = "; export without loops over tokens or layers: torch.onnx.export unrolls Python's"
_SEQUENCES = (
    "; lists of tensors come from loops and splits: export with dynamo=True, or unroll them"
)
_RECURRENT = "; recurrent networks are not compiled"
_GENERATES = "; it is of a model that generates text: export the encoder alone"
_BEFORE_OPTIMIZER = "; give sparsec the model as it was before ONNX Runtime's optimizer"
_BEFORE_QUANTIZER = "; give sparsec the model as it was before it was quantized"

_ADVICE = {
    **dict.fromkeys(("Loop", "Scan"), _LOOPS),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceAt", "SequenceInsert", "SplitToSequence", "SequenceEmpty"),
        _SEQUENCES,
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"),
        "; export the model in eval mode, without random numbers",
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
}

_ONNX_RUNTIME_ADVICE = {
    **dict.fromkeys(("AttnLSTM", "DynamicQuantizeLSTM", "QuantizedLSTM"), _RECURRENT),
    **dict.fromkeys(
        (
            "BeamSearch",
            "DecoderAttention",
            "DecoderMaskedMultiHeadAttention",
            "DecoderMaskedSelfAttention",
            "GreedySearch",
            "GroupQueryAttention",
            "NGramRepeatBlock",
            "PagedAttention",
            "Sampling",
            "SparseAttention",
            "WhisperBeamSearch",
        ),
        _GENERATES,
    ),
    # What each of these was made from is compiled.
    **dict.fromkeys(
        (
            "BiasAdd",
            "BiasDropout",
            "BiasSoftmax",
            "BiasSplitGelu",
            "BitmaskBiasDropout",
            "BitmaskDropout",
            "FusedConv",
            "FusedMatMulActivation",
            "GatedRelativePositionBias",
            "GemmFastGelu",
            "NhwcConv",
            "NhwcFusedConv",
            "PackedAttention",
            "RelativePositionBias",
            "PackedMultiHeadAttention",
            "RemovePadding",
            "RestorePadding",
            "RotaryEmbedding",
            "SkipSimplifiedLayerNormalization",
            "TransposeMatMul",
        ),
        _BEFORE_OPTIMIZER,
    ),
    **dict.fromkeys(
        (
            "GatherBlockQuantized",
            "MatMulBnb4",
            "MatMulFpQ4",
            "QLinearReduceMean",
            "QOrderedAttention",
            "QOrderedGelu",
            "QOrderedLayerNormalization",
            "QOrderedMatMul",
        ),
        _BEFORE_QUANTIZER,
    ),
}

# What vision and detection heads end with, and what gives as much as the data says.
_HEADS = frozenset(
    (
        "AveragePool",
        "Col2Im",
        "Compress",
        "ConvTranspose",
        "DeformConv",
        "GridSample",
        "InstanceNormalization",
        "LpPool",
        "MaxPool",
        "MaxRoiPool",
        "MaxUnpool",
        "NonMaxSuppression",
        "NonZero",
        "Resize",
        "RoiAlign",
        "Unique",
        "Upsample",
    )
)


def _advice(proto: onnx.NodeProto, domain: str) -> str:
    """What to do about an op that has no importer, as the end of a sentence, or ""."""
    if domain.startswith(("com.microsoft.", "com.ms.")):
        return _BEFORE_OPTIMIZER
    if domain == _MICROSOFT:
        own = "; it is an op of ONNX Runtime alone"
        return _ONNX_RUNTIME_ADVICE.get(proto.op_type, own)
    if domain:
        return f"; it is of the domain {domain}, which nothing in the file defines"
    return _ADVICE.get(proto.op_type, "")


def _cut_before(proto: onnx.NodeProto, scope: Mapping[str, Tensor | None]) -> str:
    """How to compile what comes before an op of a head, as the end of a sentence, or ""."""
    read = [name for name in proto.input if name and (t := scope[name]) and not t.known]
    if proto.op_type not in _HEADS or not read:
        return ""
    return (
        f"; if what follows is only the head, end the model before it: make {read[0]!r} the output "
        "instead (onnx.ValueInfoProto(name=...) is enough) and compute the head from that"
    )


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


def _has_body(proto: onnx.NodeProto, domain: str, opsets: Mapping[str, int]) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(proto.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _bound(
    attributes: Iterable[onnx.AttributeProto], caller: Mapping[str, onnx.AttributeProto] | None
) -> list[onnx.AttributeProto]:
    """Attributes with references to the calling function's attributes resolved."""
    out = []
    for attribute in attributes:
        if attribute.ref_attr_name:
            if not caller or attribute.ref_attr_name not in caller:
                continue
            copy = onnx.AttributeProto()
            copy.CopyFrom(caller[attribute.ref_attr_name])
            copy.name = attribute.name
            attribute = copy
        out.append(attribute)
    return out


def _onnx_type(tensor: Tensor) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(
        onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype),
        [str(d) if isinstance(d, BatchDim) else d for d in tensor.shape],
    )


def _batch_axes(shape: Shape) -> list[int]:
    return [i for i, d in enumerate(shape) if isinstance(d, BatchDim)]


def _one_per_batch(shape: Shape) -> bool:
    """True if every batch extent is the batch size itself, so that it is 1 for a batch of one."""
    return all(not isinstance(d, BatchDim) or (d.coef, d.const) == (1, 0) for d in shape)


def _batch_apart(
    op: str, attrs: Mapping[str, Any], inputs: Sequence[Tensor], shapes: Sequence[Shape]
) -> bool:
    """True if the op, on tensors that are uniform along the batch, is the same for every batch."""
    if not all(_one_per_batch(s) for s in shapes):
        return False
    if op == "transpose":
        return True
    axes = [_batch_axes(t.shape) for t in inputs]
    if op == "reshape":
        out = _batch_axes(shapes[0])
        if len(axes[0]) != 1 or len(out) != 1:
            return False
        before = element_count(inputs[0].shape[: axes[0][0]])
        return before == element_count(shapes[0][: out[0]])
    if op in ("slice", "concat", "split", "softmax", "cumsum"):
        touched = attrs.get("axes", (attrs.get("axis"),))
        return not any(a in touched for group in axes for a in group)
    if op == "gather":
        return attrs["axis"] not in axes[0]
    if op.startswith("reduce_"):
        return not any(a in attrs["axes"] for a in axes[0])
    return False


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
    importer = Importer(model, length, _exported_batch(model, inputs))
    graph = model.proto.graph
    scope: dict[str, Tensor | None] = {}
    for given in inputs:
        try:
            dtype = core_dtype(given.data_type)
            _check_size(given.dims)
            importer.edit.input(given.name, dtype, given.dims)
            scope[given.name] = Tensor(dtype, given.dims, name=given.name)
        except Fail as error:
            importer.problems.append(Problem(given.name, "input", str(error)))
            scope[given.name] = None
    needed = needed_values(graph, {value.name for value in graph.output})
    for proto in graph.initializer:
        if proto.name not in needed:
            continue
        try:
            scope[proto.name] = importer.initializer(proto)
        except Fail as error:
            importer.problems.append(Problem(proto.name, "initializer", str(error)))
            scope[proto.name] = None
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        if name not in needed:
            continue
        try:
            scope[name] = importer.sparse_tensor(sparse)
        except Fail as error:
            importer.problems.append(Problem(name, "sparse_initializer", str(error)))
            scope[name] = None
    importer.run(graph.node, scope, model.opsets, needed=needed)
    if importer.problems:
        listed = "\n".join(f"  {problem}" for problem in importer.problems)
        count = len(importer.problems)
        nodes = "1 node" if count == 1 else f"{count} nodes"
        raise UnsupportedError(
            f"{model.path.name}: {nodes} cannot be compiled\n{listed}",
            [(p.name, p.op, p.reason) for p in importer.problems],
        )
    for output in graph.output:
        tensor = scope[output.name]
        if tensor is None:
            raise ModelError(f"{model.path.name}: nothing makes the output {output.name}")
        try:
            importer.edit.outputs.append(importer.name(tensor))
        except Fail as error:
            why = str(error)
            raise UnsupportedError(
                f"{model.path.name}: output {output.name}: {why}", [(output.name, "output", why)]
            ) from None
    importer.edit.output_names = tuple(o.name for o in graph.output)
    return importer.edit.finish()


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
