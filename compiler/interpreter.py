"""Running graphs, and nodes alone, with the numpy references of the op table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sparsec.compiler.ir import BatchDim, Graph, Node, bind_shape
from sparsec.compiler.ops import OPS
from sparsec.errors import UnsupportedError

#: What takes the place of an operand of a product of floats.
Rounding = Callable[[np.ndarray], np.ndarray]


def compute(node: Node, arrays: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
    """Results of a node on constants.

    Raises:
        UnsupportedError: an index is out of range.
    """
    try:
        with np.errstate(all="ignore"):
            return run_node(node, arrays)
    except IndexError as error:
        name = node.source or node.output
        message = f"1 node cannot be compiled\n  {name} ({node.op}): {error}"
        raise UnsupportedError(message, [(name, node.op, str(error))]) from None


def run_node(
    node: Node,
    arrays: Sequence[np.ndarray | None],
    batch: int = 1,
    lengths: Sequence[int] | None = None,
    rounding: Rounding | None = None,
) -> Sequence[np.ndarray]:
    """Results of a node for a batch size, and real tokens of each sequence (None: all).

    Products of floats in layers and attention are of what `rounding` makes of their operands.
    """
    attrs = {**node.attrs, "_batch": batch, "_lengths": lengths, "_run": interpret}
    attrs["_rounding"] = rounding
    return OPS[node.op].reference(attrs, *arrays)


def interpret(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    lengths: Sequence[int] | None = None,
    rounding: Callable[[Node], Rounding | None] = lambda node: None,
) -> list[np.ndarray]:
    """Run a graph with the numpy references of its ops.

    Args:
        graph: any verified graph.
        inputs: one array per graph input; the batch size is read off the first batch extent.
        lengths: how many leading tokens of each sequence are real; None: all.
        rounding: of a node, as for :func:`run_node`.

    Returns:
        One array per graph output.
    """
    env = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    batch = _batch_of(graph, inputs)
    last_use: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.inputs:
            last_use[name] = i
    keep = set(graph.outputs) | set(graph.constants)
    for i, node in enumerate(graph.nodes):
        operands = [env[n] if n else None for n in node.inputs]
        results = run_node(node, operands, batch, lengths, rounding(node))
        for out, result in zip(node.outputs, results, strict=True):
            value = graph.values[out]
            array = np.asarray(result)
            if (array.dtype, array.shape) != (value.dtype, bind_shape(value.shape, batch)):
                got = f"{array.dtype}{list(array.shape)}"
                raise TypeError(f"{node.op} ({node.source}) gave {got} for {value}")
            env[out] = array
        for name in node.inputs:
            if last_use.get(name) == i and name not in keep:
                env.pop(name, None)
    return [env[n] for n in graph.outputs]


def _batch_of(graph: Graph, inputs: Sequence[np.ndarray]) -> int:
    """The batch size that inputs have; 1 where none has a batch extent."""
    batch = 1
    for name, array in zip(graph.inputs, inputs, strict=True):
        for dim, extent in zip(graph.values[name].shape, array.shape, strict=True):
            if isinstance(dim, BatchDim) and dim.const == 0:
                batch = extent // dim.coef
    return batch
