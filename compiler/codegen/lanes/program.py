"""Elementwise programs over lanes: IR nodes -> straight-line C on vectors.

An epilogue, a map's body, or the score of an attention is a set of elementwise nodes evaluated for
one channel and one vector of rows.  :class:`Program` walks back from the wanted values and emits
each node once.  Constants do not appear as literals but come from the call's arguments, so that
layers with the same structure share one C function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes.arguments import Args, Number
from sparsec.compiler.codegen.lanes.gelu import steps_table
from sparsec.compiler.codegen.lanes.requantize import exact_factor
from sparsec.compiler.codegen.plan import Slot
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.elements import BOOL, F32, I32, is_square
from sparsec.compiler.ops import OPS


def _is_power_of_two(array: np.ndarray) -> bool:
    """Whether a constant is one power of two, far from the ends of the range."""
    if array.size != 1:
        return False
    fraction, exponent = np.frexp(float(array.reshape(-1)[0]))
    return bool(fraction == 0.5 and abs(exponent) < 100)


@dataclass(frozen=True, eq=False)
class Accumulator:
    """An integer sum that leads to a float value: ``value = real(acc)``, a multiplication.

    Attributes:
        expression: C expression of the int32 vector.
        scale: float32, ``[]`` or ``[N]``.
        low, high: int64 bounds of the sum, ``[]`` or ``[N]``.
    """

    expression: str
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def factor(self, step: np.ndarray, zp: int, dtype: np.dtype[Any]) -> np.ndarray | None:
        """What to multiply the sum with so that it rounds to value / step; None if nothing does."""
        if step.size != 1:
            return None
        scale = np.atleast_1d(self.scale).astype(np.float32)
        info = np.iinfo(dtype)
        low, high = np.asarray(self.low), np.asarray(self.high)
        if scale.size == 1:
            low, high = low.min(), high.max()
        found = exact_factor(
            lambda acc: acc * scale,
            scale.astype(np.float64),
            float(step.reshape(-1)[0]),
            zp,
            int(info.min),
            int(info.max),
            np.broadcast_to(low, scale.shape),
            np.broadcast_to(high, scale.shape),
        )
        return None if found is None else found.reshape(np.shape(self.scale))


def _inverse(number: Any) -> Any:
    """1 / number in float32; infinite for zero, as the division would be."""
    with np.errstate(divide="ignore"):
        return np.float32(1.0) / number


def pad4(array: np.ndarray) -> np.ndarray:
    """A channel vector, lengthened with zeros to a multiple of 4."""
    return np.concatenate([array, np.zeros(-len(array) % 4, array.dtype)])


class Program:
    """Emits C lines that compute values of a graph for one vector and one channel ``c``.

    Args:
        graph: where the nodes live.
        args: filled with the constants that the lines use.
        leaf: gives the C expression of a value that comes from outside, or None to compute it.
        producers: ``graph.producers()``, when the caller has it.
        accumulators: values that are an integer sum times a scale.
        inexact: leaves that are not exact to the last bit.
        prefix: what the names of its constants begin with.
    """

    def __init__(
        self,
        graph: Graph,
        args: Args,
        leaf: Callable[[str], str | None],
        producers: dict[str, Node] | None = None,
        accumulators: Mapping[str, Accumulator] | None = None,
        inexact: Collection[str] = (),
        prefix: str = "",
    ) -> None:
        self.graph = graph
        self.args = args
        self.leaf = leaf
        self.producers = producers if producers is not None else graph.producers()
        self.accumulators = accumulators or {}
        self.inexact = inexact
        self.prefix = prefix
        self.lines: list[str] = []
        self._names: dict[str, str] = {}
        self._steps: dict[str, tuple[str, int]] = {}

    def _bind(self, dtype: np.dtype[Any], expression: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"const {'vf' if dtype == F32 else 'vi'} {name} = {expression};")
        return name

    def constant(self, array: np.ndarray, role: str = "constant") -> str:
        """C expression of a constant operand: a scalar, or a vector over the last axis."""
        if array.dtype == BOOL:
            array = -array.astype(np.int32)
        role = self.prefix + role
        flat = array.reshape(-1)
        if flat.size == 1 and flat.dtype == F32:
            return f"vf_set1({self.args.number(float(flat[0]), role)})"
        if flat.size == 1:
            return f"vi_set1({self.args.integer(int(flat[0]), role)})"
        wide = pad4(flat if flat.dtype == F32 else flat.astype(np.int32))
        letter = "f" if flat.dtype == F32 else "i"
        return f"v{letter}_set1({self.args.vector(wide, role)}[c])"

    def demand(self, name: str) -> str:
        """C name of a value, emitting whatever computes it."""
        if name in self._names:
            return self._names[name]
        graph = self.graph
        expression = self.leaf(name)
        dtype = graph.values[name].dtype
        if expression is None:
            if name in graph.constants:
                expression = self.constant(graph.constants[name])
            else:
                expression = self._node(self.producers[name])
        self._names[name] = bound = self._bind(dtype, expression)
        return bound

    def resolve(self, name: str) -> str:
        """The value that a name stands for."""
        return name

    def steps(self, name: str) -> tuple[str, int] | None:
        """A quantized value on its way into a panel: C name of the number of steps, and zero point.

        The number is not saturated yet; None where the value is wanted for other things as well, or
        is not the result of `quantize`.
        """
        name = self.resolve(name)
        if name in self._steps:
            return self._steps[name]
        node = self.producers.get(name)
        if node is not None and node.op == "gather":
            return self.steps(node.inputs[0])
        if node is None or node.op != "quantize" or name in self._names or self.leaf(name):
            return None
        if any(n and n not in self.graph.constants for n in node.inputs[1:]):
            return None
        self._steps[name] = found = self._count_steps(node)
        return found

    def scale(self, name: str, reciprocal: bool = False) -> str:
        """C expression of the only number of a scale, constant or not; or of 1 / the number."""
        role = self.prefix + ("inverse" if reciprocal else "scale")
        array = self.graph.constants.get(name)
        if array is None:
            number = Number(self._buffer(name), self.graph.values[name].dtype, reciprocal)
            return self.args.number(number, role)
        single = np.float32(array.reshape(-1)[0])
        return self.args.number(float(_inverse(single) if reciprocal else single), role)

    def zero_point(self, name: str) -> str:
        """C expression of the only number of a zero point, constant or not."""
        array = self.graph.constants.get(name)
        if array is None:
            number = Number(self._buffer(name), self.graph.values[name].dtype)
            return self.args.integer(number, f"{self.prefix}zero")
        return self.args.integer(int(array.reshape(-1)[0]), f"{self.prefix}zero")

    def _buffer(self, name: str) -> Slot:
        return self.resolve(name), "flat"

    def _count_steps(self, node: Node) -> tuple[str, int]:
        graph = self.graph
        scale = graph.constants[node.inputs[1]]
        zero = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        zp = 0 if zero is None else int(zero.reshape(-1)[0])
        dtype = graph.values[node.output].dtype
        source = self.resolve(node.inputs[0])
        accumulator = self.accumulators.get(source)
        if accumulator is not None:
            factor = accumulator.factor(scale, zp, dtype)
            if factor is not None:
                sum_ = accumulator.expression
                return self._bind(
                    I32, f"vi_rint(vf_cvt({sum_}) * {self.constant(factor, 'factor')})"
                ), zp
        table = self._gelu_table(source, scale)
        if table is not None:
            return self._bind(I32, f"v_gelu_steps(vf_cvt({table[0]}), {table[1]})"), zp
        x = self.demand(source)
        inverse = self.constant(np.asarray(_inverse(scale), dtype=np.float32), "inverse")
        # Above this everything saturates; below, the conversion to integers sees to it.
        with np.errstate(over="ignore"):
            most = np.asarray(scale * np.float32(np.iinfo(dtype).max - zp + 2))
        limit = self.constant(most, "limit")
        if self._is_inexact(source):
            return self._bind(I32, f"v_steps_near({x}, {inverse}, {limit})"), zp
        step = self.constant(scale, "scale")
        return self._bind(I32, f"v_steps({x}, {step}, {inverse}, {limit})"), zp

    def _gelu_table(self, name: str, step: np.ndarray) -> tuple[str, str] | None:
        """Where `name` is GELU of an integer sum: C expressions of the sum and the table."""
        node = self.producers.get(name)
        if node is None or node.op != "gelu" or name in self._names or self.leaf(name):
            return None
        accumulator = self.accumulators.get(self.resolve(node.inputs[0]))
        exact = node.attrs.get("approximate", "none") == "none"
        if accumulator is None or not exact or accumulator.scale.size != 1 or step.size != 1:
            return None
        scale, width = float(accumulator.scale.reshape(-1)[0]), float(step.reshape(-1)[0])
        most = max(-int(accumulator.low.min()), int(accumulator.high.max()))
        if not 1e-6 < scale < 1.0 or width < 1e-6 or most * scale / width > 2.0**30:
            return None  # the table might not fit float32, or the number of steps an int32
        return accumulator.expression, self.args.vector(steps_table(scale, width), "gelu")

    def _is_inexact(self, name: str) -> bool:
        """Whether a value comes from a function that other implementations round otherwise."""
        name = self.resolve(name)
        if name in self.inexact:
            return True
        node = self.producers.get(name)
        if node is None or self.leaf(name) or node.op in ("quantize", "cast"):
            return False
        row = OPS[node.op].elementwise
        if row is not None and row.inexact:
            return True
        return any(self._is_inexact(n) for n in node.inputs if n not in self.graph.constants)

    def _node(self, node: Node) -> str:
        graph = self.graph
        if node.op == "quantize":
            return self._quantized(node)
        if node.op == "dequantize":
            return self._dequantized(node)
        first = node.inputs[0]
        if node.op == "gather":
            # Of channels: the kernel visits them in that order.
            return self.demand(first)
        if is_square(node, graph):
            x = self.demand(first)
            return f"({x} * {x})"
        types = [graph.values[n].dtype for n in node.inputs]
        divisor = graph.constants.get(node.inputs[1]) if node.op == "div" else None
        if divisor is not None and types[0] == F32 and _is_power_of_two(divisor):
            # The same number to the last bit, without a division.
            return f"({self.demand(first)} * {self.constant(_inverse(divisor), 'inverse')})"
        row = OPS[node.op].elementwise
        template = row.vector(node.op, node.attrs, types) if row is not None else None
        if template is None:
            raise ValueError(f"{node.op} of {types[0]} cannot be computed in lanes")
        operands = map(self.demand, node.inputs)
        return template.format(**dict(zip("abc", operands, strict=False)))

    def _quantized(self, node: Node) -> str:
        graph = self.graph
        x = self.demand(node.inputs[0])
        scale = graph.constants.get(node.inputs[1])
        info = np.iinfo(graph.values[node.output].dtype)
        if scale is None or scale.size == 1:
            step = f"vf_set1({self.scale(node.inputs[1])})"
            inverse = f"vf_set1({self.scale(node.inputs[1], reciprocal=True)})"
        else:
            step = self.constant(scale, "scale")
            inverse = self.constant(np.asarray(_inverse(scale), dtype=np.float32), "inverse")
        zp = self.zero_point(node.inputs[2])
        return f"v_quantize({x}, {step}, {inverse}, {zp}, {info.min}, {info.max})"

    def _dequantized(self, node: Node) -> str:
        graph = self.graph
        x = self.demand(node.inputs[0])
        scale = graph.constants.get(node.inputs[1])
        if scale is None:
            factor = f"vf_set1({self.scale(node.inputs[1])})"
        else:
            factor = self.constant(scale, "scale")
        zero = graph.constants.get(node.inputs[2])
        if zero is None:
            x = f"({x} - vi_set1({self.zero_point(node.inputs[2])}))"
        elif np.any(zero):
            x = f"({x} - {self.constant(zero.astype(np.int32), 'zero')})"
        return f"(vf_cvt({x}) * {factor})"
