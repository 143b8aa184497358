"""What a model takes and gives: which extents are the batch, which the sequence, which fixed.

Inputs are judged by their declared extents; an integer input ``[batch, length]`` of an export with
a fixed length is a token input all the same, and its length is overridden.  Outputs are found by
importing the graph at two lengths and comparing, so that no number can be mistaken for a length.
A model whose extents are all fixed, and which works with those only, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import onnx

from sparsec.compiler.axes import independent
from sparsec.compiler.frontend.importer import (
    InputShape,
    core_dtype,
    declared_inputs,
    import_nodes,
    node_label,
)
from sparsec.compiler.frontend.load import Model
from sparsec.compiler.frontend.tensor import Fail
from sparsec.compiler.ir import BATCH, BatchDim, Dim, Graph, Shape
from sparsec.errors import InputError, ModelError, UnsupportedError

SpecDim = Union[str, int]
"""``"batch"``, ``"sequence"`` or a fixed extent."""

_PROBES = (2, 3)
"""Lengths at which a graph of any length is imported to find the extents of its outputs."""

_LONGEST = 2**20


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; half floats appear as float32."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[SpecDim, ...]


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs.

    Attributes:
        inputs: in the model's order.
        outputs: in the model's order.
        mask_input: name of the attention mask (``[batch, sequence]``, nonzero where a token is
            real), or None.
        fixed_length: the only sequence length that works, or None if any does.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    mask_input: str | None
    fixed_length: int | None = None

    @property
    def has_sequence(self) -> bool:
        """False for a model without a sequence axis, which has one bucket of length 0."""
        return any("sequence" in spec.shape for spec in self.inputs)


@dataclass(frozen=True)
class _Roles:
    """The role of every input's extents, and the length that an export has fixed."""

    inputs: tuple[tuple[str, int, tuple[SpecDim, ...]], ...]
    declared_length: int | None

    @property
    def has_sequence(self) -> bool:
        return any("sequence" in dims for _, _, dims in self.inputs)

    def shapes(self, length: int) -> list[InputShape]:
        """Input shapes for one length."""

        def dim(d: SpecDim) -> Dim:
            return BATCH if d == "batch" else length if d == "sequence" else int(d)

        return [InputShape(n, t, tuple(dim(d) for d in dims)) for n, t, dims in self.inputs]


def _is_token_input(name: str, data_type: int, rank: int) -> bool:
    try:
        kind = core_dtype(data_type).kind
    except Fail:
        return False
    return rank == 2 and (kind in "iub" or "mask" in name.lower())


def _has_fixed_batch(model: Model) -> bool:
    """Whether all inputs have one and the same leading extent, a number."""
    leading = {dims[0] for _, _, dims in declared_inputs(model) if dims}
    return len(leading) == 1 and all(isinstance(d, int) for d in leading)


_Declared = Sequence[tuple[str, int, Sequence[Union[str, int, None]]]]


def _roles(model: Model, free_batch: bool) -> _Roles:
    """Roles as declared; a leading extent that is fixed is a batch of any size if `free_batch`."""
    declared = declared_inputs(model)
    batch_names = _batch_names(declared)
    fixed_batch = free_batch and _has_fixed_batch(model)
    length = _declared_length(declared, batch_names)
    if length is not None and not 1 <= length <= _LONGEST:
        raise ModelError(f"{model.path.name} declares the absurd length {length}")

    def role(token_input: bool, axis: int, d: str | int | None) -> SpecDim:
        if isinstance(d, int):
            if axis == 0 and fixed_batch:
                return "batch"
            return "sequence" if token_input and axis == 1 and d == length else d
        is_batch = axis == 0 if d is None else d in batch_names
        return "batch" if is_batch else "sequence"

    inputs = []
    for name, kind, dims in declared:
        token_input = _is_token_input(name, kind, len(dims))
        inputs.append((name, kind, tuple(role(token_input, i, d) for i, d in enumerate(dims))))
    return _Roles(tuple(inputs), length)


def _batch_names(declared: _Declared) -> set[str]:
    """Names of extents that are the batch: of a first axis only, or called so."""
    later = {d for _, _, dims in declared for d in dims[1:] if isinstance(d, str)}
    first = {dims[0] for _, _, dims in declared if dims and isinstance(dims[0], str)}
    return (first - later) | {d for d in first | later if "batch" in d.lower()}


def _declared_length(declared: _Declared, batch_names: set[str]) -> int | None:
    """The length that an export has fixed: that of all token inputs, where no axis is open."""
    later = [d for _, _, dims in declared for d in dims[1:]]
    if any(not isinstance(d, int) and d not in batch_names for d in later):
        return None
    lengths = {dims[1] for name, kind, dims in declared if _is_token_input(name, kind, len(dims))}
    only = lengths.pop() if len(lengths) == 1 else None
    return only if isinstance(only, int) else None


def _literal(model: Model) -> _Roles | None:
    """Every extent as it is declared; None if some are not."""
    declared = declared_inputs(model)
    if any(not isinstance(d, int) for _, _, dims in declared for d in dims):
        return None
    return _Roles(
        tuple((n, t, tuple(d for d in dims if isinstance(d, int))) for n, t, dims in declared), None
    )


def _settled(model: Model) -> _Roles:
    """The roles in which the model works: as they are guessed, else literal, else as guessed."""
    if "roles" not in model.cache:
        model.cache["roles"] = _choose(model)
    found: _Roles = model.cache["roles"]
    return found


def _choose(model: Model) -> _Roles:
    guessed, literal = _roles(model, free_batch=True), _literal(model)
    options = [guessed]
    if _has_fixed_batch(model):
        options.append(_roles(model, free_batch=False))
    elif literal is None or literal.inputs == guessed.inputs:
        return guessed
    for roles in options:
        try:
            found = _signature(model, roles)
        except UnsupportedError:
            continue
        if roles is guessed and _has_fixed_batch(model):
            if not _samples_apart(model, roles):
                continue
        elif roles is not guessed and found.fixed_length is not None:
            continue  # nothing about it is free
        model.cache["signature"] = found
        return roles
    if literal is not None:
        with suppress(UnsupportedError):
            import_nodes(model, literal.shapes(0), 0)
            return literal
    return guessed


def _samples_apart(model: Model, roles: _Roles) -> bool:
    """Whether it is proved that no sample of a batch is seen by another, so that any number of
    samples may stand where the file has a fixed one.

    The range of a dynamic quantization is an exception: it is that of the batch in every model.
    """
    length = (roles.declared_length or _PROBES[1]) if roles.has_sequence else 0
    ranges = {
        node_label(node, i)
        for i, node in enumerate(model.proto.graph.node)
        if node.op_type.startswith("DynamicQuantize")
    }
    return independent(_import(model, roles, length), frozenset(ranges))


def declared(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    """Name, element type and shape of a file's inputs or outputs, as far as it says them.

    An element type or a shape that the file does not say is None; so is an extent.
    """
    found = []
    for value in values:
        kind = value.type.tensor_type
        dtype: str | None = value.type.WhichOneof("value")
        if dtype == "tensor_type":
            name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            dtype = {"float": "float32", "double": "float64", "undefined": None}.get(name, name)
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in kind.shape.dim]  # fmt: skip
        shape = dims if kind.HasField("shape") else None
        found.append({"name": value.name, "dtype": dtype, "shape": shape})
    return found


def import_raw(model: Model, length: int) -> Graph:
    """Import a model for one sequence length (0 if it has no sequence axis), as it stands.

    Raises:
        InputError: the length is not one a sequence can have.
        ModelError: the graph is damaged.
        UnsupportedError: listing every node that cannot be imported, and which lengths would work.
    """
    return _import(model, _settled(model), length)


def _import(model: Model, roles: _Roles, length: int) -> Graph:
    if roles.has_sequence and not 1 <= length <= _LONGEST:
        raise InputError(f"a sequence length must be from 1 to {_LONGEST}, not {length}")
    try:
        return import_nodes(model, roles.shapes(length), length if roles.has_sequence else 0)
    except UnsupportedError as error:
        hint = _which_lengths(model, roles, length)
        if not hint:
            raise
        raise UnsupportedError(f"{error}\n{hint}", error.nodes) from None


def _works(model: Model, roles: _Roles, length: int) -> bool:
    try:
        import_nodes(model, roles.shapes(length), length)
    except UnsupportedError:
        return False
    return True


def _which_lengths(model: Model, roles: _Roles, length: int) -> str:
    """Advice on lengths after an import failed, or ""."""
    declared = roles.declared_length
    if not roles.has_sequence or length == declared:
        return ""
    if declared is not None and _works(model, roles, declared):
        only = "" if length > declared and _works(model, roles, max(1, declared - 1)) else "only "
        return (
            f"The file was exported for length {declared}, and {only}length {declared} works: "
            f"compile it with that bucket{'' if only else ' or shorter ones'}, or export it with a "
            "dynamic sequence axis"
        )
    low = _longest_below(model, roles, length)
    return f"Length {length} is too long for this model: it works up to length {low}" if low else ""


def _longest_below(model: Model, roles: _Roles, length: int) -> int:
    """The longest length that works below one that does not; 0 if there is none."""
    if length == 1 or not _works(model, roles, 1):
        return 0
    low, high = 1, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _works(model, roles, middle) else (low, middle)
    return low


def longest_length(model: Model, most: int) -> int:
    """The longest sequence length up to `most` at which a model can be imported.

    It is `most` where none works (the import then says why), and 0 without a sequence axis.

    Raises:
        ModelError: the graph is damaged.
        UnsupportedError: nodes that cannot be imported at any length.
    """
    roles = _settled(model)
    if not roles.has_sequence:
        return 0
    found = signature(model)
    if found.fixed_length is not None:
        return found.fixed_length
    return most if _works(model, roles, most) else _longest_below(model, roles, most) or most


def signature(model: Model) -> Signature:
    """Inputs and outputs of a model.

    Raises:
        ModelError: the graph is damaged.
        UnsupportedError: nodes that cannot be imported, or an output extent that is neither the
            batch, nor the sequence, nor fixed.
    """
    roles = _settled(model)
    if "signature" not in model.cache:
        model.cache["signature"] = _signature(model, roles)
    found: Signature = model.cache["signature"]
    return found


def _signature(model: Model, roles: _Roles) -> Signature:
    fixed: int | None = None
    if not roles.has_sequence:
        first = second = _import(model, roles, 0)
        lengths = (0, 0)
    else:
        lengths = _PROBES
        declared = roles.declared_length
        if declared is not None:
            other = declared - 1 if declared > 1 else 2
            if _works(model, roles, other):
                lengths = (declared, other)
            else:
                lengths, fixed = (declared, declared), declared
        first = _import(model, roles, lengths[0])
        second = _import(model, roles, lengths[1]) if lengths[1] != lengths[0] else first
    inputs = tuple(TensorSpec(n, core_dtype(t), dims) for n, t, dims in roles.inputs)
    outputs = []
    for name, a, b in zip(first.output_names, first.outputs, second.outputs, strict=True):
        one, two = first.values[a], second.values[b]
        shape = _output_shape(model, name, (one.shape, two.shape), lengths, fixed)
        outputs.append(TensorSpec(name, one.dtype, shape))
    return Signature(inputs, tuple(outputs), _mask_input(inputs), fixed)


def _output_shape(
    model: Model,
    name: str,
    shapes: tuple[Shape, Shape],
    lengths: tuple[int, int],
    fixed: int | None,
) -> tuple[SpecDim, ...]:
    out: list[SpecDim] = []
    ranks = {len(s) for s in shapes}
    for axis, (a, b) in enumerate(zip(*shapes, strict=False)):
        if a == b == BATCH:
            out.append("batch")
        elif isinstance(a, BatchDim) or isinstance(b, BatchDim) or len(ranks) > 1:
            break
        elif a == b:
            # With one length to go by, the axis after the batch is the sequence if it is as long.
            out.append("sequence" if fixed and axis == 1 and a == fixed else a)
        elif (a, b) == lengths:
            out.append("sequence")
        else:
            break
    if len(ranks) > 1 or len(out) < len(shapes[0]):
        why = (
            f"its shape {list(shapes[0])} is not made of the batch, the sequence and fixed extents"
        )
        raise UnsupportedError(f"{model.path.name}: output {name}: {why}", [(name, "output", why)])
    return tuple(out)


def _mask_input(inputs: tuple[TensorSpec, ...]) -> str | None:
    """The attention mask: by its usual names, else the only token input called a mask."""
    masks = [
        s.name for s in inputs if s.shape == ("batch", "sequence") and "mask" in s.name.lower()
    ]
    for usual in ("attention_mask", "input_mask", "mask"):
        if usual in masks:
            return usual
    return masks[0] if len(masks) == 1 and not masks[0].lower().startswith("masked") else None
