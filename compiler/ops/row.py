"""The row of the op table: all that is known of one core op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.ir import Shape
from sparsec.compiler.ops.expressions import Elementwise
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
            has extra keys: ``_batch``, the concrete batch size, ``_lengths``, the real tokens of
            each sequence (None: all of them), and ``_run``, which runs a nested graph on arrays.
        flow: how the operands' axes come out in the results.
        elementwise: how an element is written in C, where the result at an index depends on the
            (broadcast) inputs at that index only; else None.
        quantizes: elementwise, and all operands but the first are parameters: numbers, or vectors
            along ``axis``.
        layout: moves elements without changing them (reshape, transpose, ...).
        linear: where it multiplies rows with a weight matrix, its second input (output channels
            first): the type of the weights, "f32" or "i8"; else "".
        layer: linear, or else its results are rows of channels too (see `Graph.tokens`).
        last_axis: makes a vector along the last axis of each such vector of its first operand
            (where ``axis``, if it has one, is the last), wherever that stands.
        row_operands: how many operands are read row by row, as the result is made; those behind
            them are weights, parameters, indices.  None: all are.
        lookup: where its second operand is indices into an axis of the first one: "read" or
            "write"; else "".
        terms: ``terms(attrs, shapes) -> number``: products that one element of the result sums up,
            given the shapes of the operands that are there; None where it is no sum of products.
    """

    name: str
    infer: TypeRule
    reference: Callable[..., tuple[np.ndarray, ...]]
    flow: FlowRule
    elementwise: Elementwise | None = None
    quantizes: bool = False
    layout: bool = False
    linear: str = ""
    layer: bool = False
    last_axis: bool = False
    row_operands: int | None = None
    lookup: str = ""
    terms: Callable[[Mapping[str, Any], Sequence[Shape]], int] | None = None
