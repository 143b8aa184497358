"""The attention op in its general form: per block of query rows, with nested graphs as loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.codegen.general.elementwise import expression, operand_strides
from sparsec.compiler.codegen.general.extents import ZERO, Extent, offset, product
from sparsec.compiler.codegen.general.render import Call, NotGeneral, c_type
from sparsec.compiler.ir import Graph
from sparsec.compiler.ops import OPS

# The rows of scores are on the stack: four of this length in float32 are 256 KiB.
MAX_LENGTH = 16384


@dataclass(frozen=True)
class Nested:
    """A nested elementwise graph as the body of a loop over the keys.

    Attributes:
        tables: definitions of constant arrays.
        statements: loads and computations for one element; the graph's first input is `element`,
            and the element's coordinates are i0 to i3 (batch, head, query, key).
        result: C name of the graph's output.
        type: C type of the output.
    """

    tables: list[str]
    statements: list[str]
    result: str
    type: str


def emit_attention(call: Call) -> str:
    """Scores of four query rows against all keys, score graph, softmax, prob graph, product."""
    attrs = call.node.attrs
    q, k, v = call.inputs[:3]
    batch, length, channels = q.shape
    if not isinstance(length, int) or not isinstance(channels, int):
        raise NotGeneral(f"attention with run-time extents {list(q.shape)}")
    if length > MAX_LENGTH:
        raise NotGeneral(f"attention over {length} tokens; at most {MAX_LENGTH} are supported")
    heads = int(attrs["heads"])
    extras = [f"x{3 + i}" for i in range(len(call.inputs) - 3)]
    score = _nested(attrs["score"], extras, "s")
    prob = _nested(attrs["prob"], [], "p")
    integer_scores = q.dtype.kind != "f"
    integer_result = prob.type != "float"
    count = Extent.of(batch)
    return call.render(
        "attention",
        rows=product([count, Extent(heads), Extent(-(-length // 4))]),
        work=product([count, Extent(heads * length * length * (channels // heads))]),
        heads=heads,
        length=length,
        channels=channels,
        depth=channels // heads,
        q_type=c_type(q.dtype),
        k_type=c_type(k.dtype),
        v_type=c_type(v.dtype),
        integer_scores=integer_scores,
        integer_result=integer_result,
        q_zp=int(attrs["q_zp"]) if integer_scores else 0,
        k_zp=int(attrs["k_zp"]) if integer_scores else 0,
        p_zp=int(attrs["p_zp"]) if integer_result else 0,
        v_zp=int(attrs["v_zp"]) if integer_result else 0,
        qk_scale=_literal(np.float32(attrs["qk_scale"])) if integer_scores else "",
        pv_scale=_literal(np.float32(attrs["pv_scale"])) if integer_result else "",
        score=score,
        prob=prob,
    )


def _nested(graph: Graph, extras: list[str], prefix: str) -> Nested:
    tables: list[str] = []
    statements: list[str] = []
    rank = len(graph.values[graph.inputs[0]].shape)
    names = {graph.inputs[0]: "element"}
    sources = dict(zip(graph.inputs[1:], extras, strict=True))
    for name, array in graph.constants.items():
        if array.size == 1:
            names[name] = f"(({c_type(array.dtype)}){_literal(array.reshape(-1)[0])})"
        else:
            sources[name] = f"{prefix}_table{len(tables)}"
            tables.append(_table(sources[name], array))
    loads: dict[tuple[str, tuple[Extent, ...]], str] = {}
    for n, node in enumerate(graph.nodes):
        if OPS[node.op].elementwise is None:
            raise NotGeneral(f"{graph.name}: {node.op} inside attention is not elementwise")
        operands = []
        for position, name in enumerate(node.inputs):
            if name in names:
                operands.append(names[name])
                continue
            value = graph.values[name]
            own = operand_strides(node, position, value, graph)
            steps = (*[ZERO] * (rank - len(own)), *own)
            if (name, steps) not in loads:
                at = offset("i", steps)
                test = " != 0" if value.dtype.kind == "b" else ""
                load = loads[name, steps] = f"{prefix}_in{len(loads)}"
                loaded = f"{sources[name]}[{at}]{test}"
                statements.append(f"const {c_type(value.dtype)} {load} = {loaded};")
            operands.append(loads[name, steps])
        result = c_type(graph.values[node.output].dtype)
        names[node.output] = f"{prefix}{n}"
        statements.append(f"const {result} {prefix}{n} = {expression(node, graph, operands)};")
    output = graph.values[graph.outputs[0]]
    if output.name not in names:
        raise NotGeneral(f"{graph.name}: the result does not depend on the scores")
    return Nested(tables, statements, names[output.name], c_type(output.dtype))


def _literal(value: Any) -> str:
    """A C constant that is exactly this number."""
    if value.dtype.kind == "b":
        return str(int(value))
    if value.dtype.kind in "iu":
        number = int(value)
        if number == -(2**63):
            return "INT64_MIN"
        return f"INT64_C({number})"
    if np.isnan(value):
        return "NAN"
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return float(value).hex() + ("f" if value.dtype == np.float32 else "")


def _table(name: str, array: np.ndarray) -> str:
    numbers = ", ".join(_literal(v) for v in array.reshape(-1))
    return f"static const {c_type(array.dtype)} {name}[] = {{{numbers}}};"
