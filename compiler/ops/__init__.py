"""The op table: one row for every core op.

A family of ops is one file in this folder; each file ends in rows
(:class:`~sparsec.compiler.ops.row.Op`) that this module collects into :data:`OPS`.
`docs/adding.md` says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsec.compiler.ir import Shape, Value
from sparsec.compiler.ops import (
    contraction,
    elementwise,
    fused,
    indexing,
    layout,
    quantize,
    reduction,
    tokens,
)
from sparsec.compiler.ops.row import Op

_FAMILIES = (elementwise, layout, indexing, reduction, contraction, quantize, tokens, fused)


def infer(
    op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]
) -> list[tuple[Any, Shape]]:
    """Output types of an op for given input types."""
    return OPS[op].infer(attrs, *inputs)


def _collect() -> dict[str, Op]:
    table: dict[str, Op] = {}
    for family in _FAMILIES:
        for row in family.ROWS:
            if row.name in table:
                raise ValueError(f"op {row.name} is defined twice")
            table[row.name] = row
    return table


OPS: dict[str, Op] = _collect()
