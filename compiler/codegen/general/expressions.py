"""C expressions of the elementwise ops: one table, op by kind of operand.

Kinds are ``f`` (float32, float64), ``i`` (all integers) and ``b`` (booleans, 0 or 1).  In an
expression ``{a}``, ``{b}``, ``{c}`` are the operands, ``{S}`` the first operand's type in the names
of ``ops.h``, ``{T}`` its C type, and ``{F}`` the ending of the C library's functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsec.compiler.codegen.general.render import NotGeneral, c_type, suffix
from sparsec.compiler.ir import Graph, Node

_TYPED = {"f": "op_{op}_{S}({a}, {b})", "i": "op_{op}_{S}({a}, {b})"}
_TYPED_UNARY = {"f": "op_{op}_{S}({a})", "i": "op_{op}_{S}({a})"}
_LIBRARY = {"f": "{op}{F}({a})"}
_OWN = {"f": "op_{op}_{S}({a})"}


def _compare(operator: str) -> dict[str, str]:
    return dict.fromkeys("fib", f"{{a}} {operator} {{b}}")


EXPRESSIONS: dict[str, dict[str, str]] = {
    "add": {**_TYPED, "f": "{a} + {b}"},
    "sub": {**_TYPED, "f": "{a} - {b}"},
    "mul": {**_TYPED, "f": "{a} * {b}"},
    "div": {**_TYPED, "f": "{a} / {b}"},
    "min": _TYPED,
    "max": _TYPED,
    "mod": _TYPED,
    "fmod": _TYPED,
    "neg": {**_TYPED_UNARY, "f": "-{a}"},
    "abs": {**_TYPED_UNARY, "f": "fabs{F}({a})"},
    "sign": _TYPED_UNARY,
    "relu": {"f": "op_relu_{S}({a})", "i": "op_max_{S}({a}, 0)"},
    "sqrt": _LIBRARY,
    "floor": _LIBRARY,
    "ceil": _LIBRARY,
    "round": {"f": "rint{F}({a})"},
    "exp": _OWN,
    "log": _OWN,
    "sin": _OWN,
    "cos": _OWN,
    "erf": _OWN,
    "tanh": _OWN,
    "sigmoid": _OWN,
    "gelu": _OWN,
    "gelu_tanh": _OWN,
    "reciprocal": {"f": "1 / {a}"},
    "isnan": {"f": "{a} != {a}"},
    "not": {"b": "!{a}"},
    "and": {"b": "{a} & {b}"},
    "or": {"b": "{a} | {b}"},
    "equal": _compare("=="),
    "less": _compare("<"),
    "less_equal": _compare("<="),
    "greater": _compare(">"),
    "greater_equal": _compare(">="),
    "where": dict.fromkeys("b", "{a} ? {b} : {c}"),
}

# Ops whose expression depends on more than the kind of the first operand.
_SPECIAL = ("pow", "cast", "quantize", "dequantize")

ELEMENTWISE = frozenset(EXPRESSIONS) - {"fmod", "gelu_tanh"} | set(_SPECIAL)


def kind(dtype: np.dtype[Any]) -> str:
    """``f``, ``i`` or ``b``."""
    return {"u": "i"}.get(dtype.kind, dtype.kind)


def is_square(node: Node, graph: Graph) -> bool:
    """Whether a node is `pow` of floats with the constant exponent 2, which reads its base only."""
    if node.op != "pow" or graph.values[node.inputs[0]].dtype.kind != "f":
        return False
    exponent = graph.constants.get(node.inputs[1])
    return exponent is not None and exponent.size == 1 and bool(exponent.reshape(-1)[0] == 2)


def expression(node: Node, graph: Graph, operands: Sequence[str]) -> str:
    """The C expression of one element of an elementwise node.

    Args:
        node: its op is in :data:`ELEMENTWISE`.
        graph: has the types of its inputs, and exponents that are constant.
        operands: C names of its inputs' elements.

    Raises:
        NotGeneral: the op has no expression for these types.
    """
    types = [graph.values[n].dtype for n in node.inputs]
    first = types[0]
    if node.op == "cast":
        return cast(operands[0], first, np.dtype(node.attrs["to"]))
    if node.op == "pow":
        if is_square(node, graph):
            return f"{operands[0]} * {operands[0]}"
        return _power(operands, types)
    if node.op in ("quantize", "dequantize"):
        return f"op_{node.op}_{_quantized(types[2])}({', '.join(operands)})"
    op = node.op
    if op == "mod" and node.attrs.get("fmod"):
        op = "fmod"
    if op == "gelu" and node.attrs.get("approximate", "none") == "tanh":
        op = "gelu_tanh"
    try:
        template = EXPRESSIONS[op][kind(first)]
    except KeyError:
        raise NotGeneral(f"{node.op} of {first.name} is not supported") from None
    return template.format(
        op=op,
        S=suffix(first),
        T=c_type(first),
        F="f" if first == np.float32 else "",
        **dict(zip("abc", operands, strict=False)),
    )


def _quantized(dtype: np.dtype[Any]) -> str:
    if dtype.name not in ("uint8", "int8", "uint16", "int16", "int32"):
        raise NotGeneral(f"quantization to {dtype.name} is not supported")
    return suffix(dtype)


def cast(operand: str, source: np.dtype[Any], to: np.dtype[Any]) -> str:
    """The C expression of a converted element.

    Floats truncate toward zero; out of range they give what x86 hardware answers, the least
    integer, cut to the low bits for 8-bit results.
    """
    target = c_type(to)
    c_type(source)
    if to == source:
        return operand
    if to.kind == "b":
        return f"{operand} != 0"
    if source.kind == "f" and to.kind in "iu":
        wide = {"int64": "i64", "uint64": "u64", "uint32": "i64"}.get(to.name, "i32")
        whole = f"op_{wide}_of_{suffix(source)}({operand})"
        return whole if to.name in ("int32", "int64", "uint64") else f"({target}){whole}"
    return f"({target}){operand}"


def _power(operands: Sequence[str], types: Sequence[np.dtype[Any]]) -> str:
    base, power = operands
    if types[0].kind == "f":
        f = "f" if types[0] == np.float32 else ""
        return f"pow{f}({base}, {cast(power, types[1], types[0])})"
    if types[1].kind == "f":
        return cast(f"pow((double){base}, {power})", np.dtype(np.float64), types[0])
    return f"op_power_{suffix(types[0])}({base}, {power})"
