"""The row of the op table: all that is known of one core op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.ir import Shape
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
