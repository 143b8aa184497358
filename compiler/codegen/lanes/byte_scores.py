"""Attention whose scores are 8-bit in front of the softmax, as quantized exports have it.

    acc -> y = real(acc) -> u = quantize(y) -> x = table[u], evenly spaced -> x + mask -> softmax
        -> p = quantize(softmax)

Then e^(x - max x) depends on the difference of two bytes only (``attention_bytes.c.j2``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes import masks
from sparsec.compiler.codegen.lanes.requantize import exact_factor
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.elements import BYTES, S8
from sparsec.targets import Vectors

Array = np.ndarray[Any, Any]

#: e to this power is 0 in float32.
VANISHES = -110.0

#: Of probabilities: 1 is 2^30 steps of it.
LEAST_SCALE = 2.0**-30


@dataclass(frozen=True)
class ByteScores:
    """What the kernel needs to know.

    Attributes:
        factor: takes the sum of products to the number of steps of a score.
        zp: added to it, before it saturates to [0, 255].
        decay: logarithm that a step down from the highest score takes off.
        mask: position among the node's extras of what is added to the scores, or None.
        drop: a mask value from here down leaves a probability of 0.
        prob_scale: step of the probabilities.
    """

    factor: float
    zp: int
    decay: float
    mask: int | None
    drop: float
    prob_scale: float


def find(node: Node, graph: Graph) -> ByteScores | None:
    """The form of an `attention` node's scores, or None where they are not of this kind."""
    score: Graph = node.attrs["score"]
    prob: Graph = node.attrs["prob"]
    if graph.values[node.inputs[0]].dtype not in BYTES:
        return None
    prob_scale = probability_scale(prob)
    made = score.producers()
    mask, top = masks.added(node, graph, score, made)
    chain = _chain(score, made, top)
    if prob_scale is None or chain is None:
        return None
    before, quantize, after = chain
    dtype = score.values[quantize.output].dtype
    levels = np.arange(256).astype(np.uint8)
    order = np.argsort(levels.view(dtype))
    table = masks.run(after, quantize.output, levels.view(dtype), score)[order]
    step = float(table[-1] - table[0]) / 255
    even = float(table[0]) + step * np.arange(256)
    if step <= 0 or np.abs(table - even).max() > 1e-6 * np.abs(table).max():
        return None
    channels = graph.values[node.inputs[0]].shape[-1]
    assert isinstance(channels, int)
    dim = channels // int(node.attrs["heads"])
    most = np.array([dim * 255 * 255])
    qk_scale = np.float32(node.attrs["qk_scale"])

    def real(acc: Array) -> Array:
        return masks.run(before, score.inputs[0], acc * qk_scale, score)

    large = np.float32(1 << 20)
    slope = np.array([float(real(np.atleast_1d(large))[0]) / float(large)])
    info = np.iinfo(dtype)
    zp = int(score.constants[quantize.inputs[2]].reshape(-1)[0])
    scale = float(score.constants[quantize.inputs[1]].reshape(-1)[0])
    factor = exact_factor(real, slope, scale, zp, int(info.min), int(info.max), -most, most)
    if factor is None:
        return None
    return ByteScores(
        factor=float(factor[0]),
        zp=zp + (128 if dtype == S8 else 0),
        decay=step,
        mask=mask,
        drop=VANISHES - 255 * step,
        prob_scale=prob_scale,
    )


def probability_scale(prob: Graph) -> float | None:
    """The scale, if probabilities are quantized and nothing else, 0 being the lowest byte, and
    numbers of steps fit into 32 bits."""
    if len(prob.nodes) != 1 or prob.nodes[0].op != "quantize":
        return None
    node = prob.nodes[0]
    scale, zero = (prob.constants.get(n) for n in node.inputs[1:3])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    if zero.dtype not in BYTES or int(zero.reshape(-1)[0]) != np.iinfo(zero.dtype).min:
        return None
    found = float(scale.reshape(-1)[0])
    return found if LEAST_SCALE <= found < np.inf else None


def _chain(
    score: Graph, made: dict[str, Node], top: str
) -> tuple[list[Node], Node, list[Node]] | None:
    """Scalings, a quantization, and what follows it, from the scores up to `top`."""
    nodes = masks.path(score, made, top) or []
    at = [i for i, node in enumerate(nodes) if node.op == "quantize"]
    if len(at) != 1:
        return None
    before, quantize, after = nodes[: at[0]], nodes[at[0]], nodes[at[0] + 1 :]
    scales = [*before, *after[1:]]
    if not after or after[0].op != "dequantize" or {n.op for n in scales} - {"mul", "div"}:
        return None
    bytes_ = len(quantize.inputs) > 2 and score.values[quantize.output].dtype in BYTES
    return (before, quantize, after) if bytes_ else None


def decay_table(decay: float, vectors: Vectors) -> Array:
    """Float32 factors of e^(-decay * d), d a byte, as the header's ``vf_decay`` takes them."""
    tables = []
    for step, entries in vectors.decay:
        index = np.arange(max(entries, vectors.lanes)) % entries
        tables.append(np.exp(-decay * step * index))
    return np.concatenate(tables).astype(np.float32)
