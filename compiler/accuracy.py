"""What products of bfloat16 do to the results of a model, by the interpreter: on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.interpreter import Rounding, interpret
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering import lanes
from sparsec.compiler.lowering.bfloat16 import round_bf16
from sparsec.compiler.ops import OPS

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Deviation:
    """How far an output is from that of float32.

    Attributes:
        output: its name.
        largest, mean: differences, relative to the largest element of the output.
        cosine: of the angle between the two outputs as vectors.
    """

    output: str
    largest: float
    mean: float
    cosine: float


def of_bf16(graph: Graph, inputs: Sequence[Array], names: Sequence[str]) -> list[Deviation]:
    """What rounding to bfloat16 changes: in layers and attention with rows in lanes, as compiled.

    Args:
        graph: of a bucket, optimized.
        inputs: one array per graph input.
        names: of the outputs, in the model.

    Returns:
        One row per float output.
    """
    choice = lanes.choose(graph)

    def rounding(node: Node) -> Rounding | None:
        multiplies = OPS[node.op].linear == "f32" or node.op == "attention"
        return round_bf16 if multiplies and choice.has(node) else None

    exact, rounded = interpret(graph, inputs), interpret(graph, inputs, rounding=rounding)
    return [
        _deviation(name, a.astype(np.float64), b.astype(np.float64))
        for name, a, b in zip(names, exact, rounded, strict=True)
        if a.dtype.kind == "f" and a.size
    ]


def _deviation(name: str, exact: Array, rounded: Array) -> Deviation:
    difference = np.abs(exact - rounded)
    most = float(np.abs(exact).max()) or 1.0
    norms = float(np.linalg.norm(exact) * np.linalg.norm(rounded))
    cosine = float((exact * rounded).sum()) / norms if norms else 1.0
    return Deviation(name, float(difference.max()) / most, float(difference.mean()) / most, cosine)
