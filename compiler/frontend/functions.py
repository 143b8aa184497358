"""ONNX functions: ops that the standard itself writes as a graph of other ops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from sparsec.compiler.frontend.tensor import Tensor
from sparsec.compiler.ir import BatchDim

Attributes = Mapping[str, onnx.AttributeProto]


@dataclass(frozen=True)
class Body:
    """The function body of one node, ready to be imported in its place.

    Attributes:
        nodes: inputs that the caller leaves out are absent in them.
        scope: the body's inputs by their names inside.
        opsets: those that the body names.
        attributes: what references to the function's attributes stand for.
        outputs: names inside of the node's outputs.
    """

    nodes: Sequence[onnx.NodeProto]
    scope: dict[str, Tensor | None]
    opsets: Mapping[str, int]
    attributes: Attributes
    outputs: Sequence[str]


def has_body(proto: onnx.NodeProto, domain: str, opsets: Mapping[str, int]) -> bool:
    """Whether the standard gives a function body for a node's op."""
    try:
        schema: Any = onnx.defs.get_schema(proto.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def body_of(
    proto: onnx.NodeProto,
    inputs: Sequence[Tensor | None],
    domain: str,
    opsets: Mapping[str, int],
    caller: Attributes | None,
) -> Body:
    """The function body of a node whose op has one (:func:`has_body`).

    Args:
        inputs: the node's; their types choose the body where it depends on them.
        caller: attributes of the function that the node itself stands in, or None.
    """
    bound = bound_node(proto, caller)
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
    scope: dict[str, Tensor | None] = dict.fromkeys(body.input)
    scope |= dict(zip(body.input, inputs, strict=False))
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in body.opset_import}
    absent = {name for name in body.input if scope[name] is None}
    nodes = [_without(node, absent) for node in body.node]
    return Body(nodes, scope, versions, attributes, list(body.output))


def bound_node(proto: onnx.NodeProto, caller: Attributes | None) -> onnx.NodeProto:
    """A copy of a node with references to the calling function's attributes resolved."""
    copy = onnx.NodeProto()
    copy.CopyFrom(proto)
    del copy.attribute[:]
    copy.attribute.extend(bound_attributes(proto.attribute, caller))
    return copy


def bound_attributes(
    attributes: Iterable[onnx.AttributeProto], caller: Attributes | None
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


def _without(node: onnx.NodeProto, absent: set[str]) -> onnx.NodeProto:
    """A copy of a body's node where inputs that the caller leaves out are absent, too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("input")
    copy.input.extend("" if name in absent else name for name in node.input)
    return copy


def _onnx_type(tensor: Tensor) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(
        onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype),
        [str(d) if isinstance(d, BatchDim) else d for d in tensor.shape],
    )
