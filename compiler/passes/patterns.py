"""Lookups that several passes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sparsec.compiler.editor import Match
from sparsec.compiler.ir import Node


def sources(*nodes: Node | None) -> str:
    """The ONNX names behind several nodes, each once, in order."""
    names = [n.source for n in nodes if n is not None and n.source]
    return ", ".join(dict.fromkeys(names))


def operand_orders(node: Node) -> Iterator[tuple[str, str]]:
    """Both orders of the operands of a commutative node."""
    a, b = node.inputs
    yield a, b
    yield b, a


def with_constant(m: Match, node: Node) -> tuple[str, np.ndarray] | None:
    """The run-time operand and the constant of a commutative node that has one of each."""
    for x, c in operand_orders(node):
        array = m.constant(c)
        if array is not None and m.constant(x) is None:
            return x, array
    return None


def uniform(array: np.ndarray | None) -> Any:
    """The value that all elements of an array share, else None."""
    if array is None or not array.size:
        return None
    first = array.reshape(-1)[0]
    return first if array.size == 1 or bool(np.all(array == first)) else None


def per_tensor(m: Match, node: Node) -> tuple[np.float32, int] | None:
    """Scale and zero point of a quantize or dequantize, if they are one constant number each."""
    scale, zp = (uniform(m.constant(name)) for name in node.inputs[1:3])
    return None if scale is None or zp is None else (np.float32(scale), int(zp))


def last_axis_vector(array: np.ndarray | None, extent: Any) -> np.ndarray | None:
    """A constant that varies along the last axis only, as a vector of that axis' extent."""
    if array is None or not isinstance(extent, int):
        return None
    if array.size == 1:
        return np.full(extent, array.reshape(-1)[0])
    if array.size == extent and array.shape[-1] == extent:
        return array.reshape(extent)
    return None
