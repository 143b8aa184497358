"""The op table: one row for every core op.

A family of ops is one file in this folder; each file ends in rows (:class:`Op`) that this module
collects into :data:`OPS`: the shape rule and the numpy reference.  `docs/adding.md` says how to add
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.ir import Shape, Value
from sparsec.compiler.ops.flow import FlowRule

TypeRule = Callable[..., list[tuple[Any, Shape]]]


@dataclass(frozen=True)
class Op:
    """One core op.

    Attributes:
        name: the op's name in the IR.
        infer: ``infer(attrs, *input_values) -> [(dtype, shape), ...]``; raises ValueError where the
            inputs do not fit.  Absent optional inputs are None.
        reference: ``reference(attrs, *arrays) -> (array, ...)``; the meaning of the op.  `attrs`
            has extra keys: ``_batch``, the concrete batch size, and ``_lengths``, the real tokens
            of each sequence (None: all of them).
        flow: how the operands' axes come out in the results.
        elementwise: the result at an index depends on the (broadcast) inputs at that index only.
        linear: multiplies rows with a weight matrix, its second input (output channels first).
        layer: linear, or else its results are rows of channels too (see `Graph.tokens`).
        layout: moves elements without changing them (reshape, transpose, ...).
    """

    name: str
    infer: TypeRule
    reference: Callable[..., tuple[np.ndarray, ...]]
    flow: FlowRule
    elementwise: bool = False
    layout: bool = False
    linear: bool = False
    layer: bool = False


def infer(
    op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]
) -> list[tuple[Any, Shape]]:
    """Output types of an op for given input types."""
    return OPS[op].infer(attrs, *inputs)


def _collect() -> dict[str, Op]:
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

    table: dict[str, Op] = {}
    families = (
        elementwise,
        layout,
        indexing,
        reduction,
        contraction,
        quantize,
        tokens,
        fused,
    )
    for family in families:
        for row in family.ROWS:
            if row.name in table:
                raise ValueError(f"op {row.name} is defined twice")
            table[row.name] = row
    return table


OPS: dict[str, Op] = {}
OPS.update(_collect())
