"""How elementwise ops are written in C: for an element, and for a vector of rows in lanes.

An expression is a template in which ``{a}``, ``{b}``, ``{c}`` are the operands and ``{op}`` the
op's name; for an element also ``{S}``, the last operand's type in the names of ``ops.h``, and
``{F}``, the ending of the C library's functions for it.  Vectors of float32 have the functions
``vf_...`` of ``vec.h``, those of int32 ``vi_...``; a truth value is an int32 there, 0 or -1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from sparsec.interface import ELEMENTS

Attrs = Mapping[str, Any]
Types = Sequence[np.dtype[Any]]
Rule = Callable[[Attrs, Types], Union[str, None]]
"""The template for a node with such attributes and operands; None where there is none."""
Expression = Union[Mapping[str, str], Rule]
"""A rule, or a template for each kind of the last operand."""

F32 = np.dtype(np.float32)
I32 = np.dtype(np.int32)
U8 = np.dtype(np.uint8)
S8 = np.dtype(np.int8)
BOOL = np.dtype(np.bool_)
BYTES = (U8, S8)


@dataclass(frozen=True)
class Elementwise:
    """The C of an elementwise op.

    Attributes:
        scalar: for an element; kinds are ``f`` (float32, float64), ``i`` (all integers), ``b``.
        lanes: for a vector of rows; kinds are ``f`` (float32), ``i`` (int32), ``b``.  None where
            general kernels take the op, unless ``program.py`` has a form of its own for it.
        variant: what stands for ``{op}``, where it depends on attributes.
        inexact: results are rounded otherwise than in other implementations.
    """

    scalar: Expression
    lanes: Expression | None
    variant: Callable[[Attrs], str] | None = None
    inexact: bool = False

    def element(self, op: str, attrs: Attrs, types: Types, operands: Sequence[str]) -> str | None:
        """The C of one element, or None.

        Args:
            op: the op's name.
            attrs: the node's.
            types: of its operands, each one of :data:`~sparsec.interface.ELEMENTS`.
            operands: C expressions of their elements.
        """
        last = types[-1]
        template = _template(self.scalar, attrs, types, "i" if last.kind == "u" else last.kind)
        if template is None:
            return None
        names = {"op": self._name(op, attrs), "S": suffix(last), "F": library_suffix(last)}
        return template.format(**names, **dict(zip("abc", operands, strict=False)))

    def vector(self, op: str, attrs: Attrs, types: Types) -> str | None:
        """The template of a vector, with places for the operands only; None where there is none."""
        if self.lanes is None:
            return None
        kind = {F32: "f", I32: "i", BOOL: "b"}.get(types[-1], "")
        template = _template(self.lanes, attrs, types, kind)
        return None if template is None else template.replace("{op}", self._name(op, attrs))

    def _name(self, op: str, attrs: Attrs) -> str:
        return op if self.variant is None else self.variant(attrs)


def _template(expression: Expression, attrs: Attrs, types: Types, kind: str) -> str | None:
    if isinstance(expression, Mapping):
        return expression.get(kind)
    return expression(attrs, types)


def suffix(dtype: np.dtype[Any]) -> str:
    """The ending of the ``op_...`` functions for an element type."""
    return ELEMENTS[dtype.name].suffix


def library_suffix(dtype: np.dtype[Any]) -> str:
    """The ending of the C library's functions for a float type."""
    return "f" if dtype == F32 else ""


def cast(operand: str, source: np.dtype[Any], to: np.dtype[Any]) -> str:
    """The C expression of a converted element.

    Floats truncate toward zero; out of range they give what x86 hardware answers, the least
    integer, cut to the low bits for 8-bit results.
    """
    target = ELEMENTS[to.name].c_type
    if to == source:
        return operand
    if to.kind == "b":
        return f"{operand} != 0"
    if source.kind == "f" and to.kind in "iu":
        wide = {"int64": "i64", "uint64": "u64", "uint32": "i64"}.get(to.name, "i32")
        whole = f"op_{wide}_of_{suffix(source)}({operand})"
        return whole if to.name in ("int32", "int64", "uint64") else f"({target}){whole}"
    return f"({target}){operand}"
