"""From a planned kernel to C text: one function, or a function with a task for several threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.c_text import c_comment, tidy
from sparsec.compiler.codegen.general.extents import Extent
from sparsec.compiler.ir import Graph, Node, Value
from sparsec.compiler.templates import environment, read_template
from sparsec.interface import ELEMENTS, Element

# A loop of fewer steps than this is not worth waking another thread for.
PARALLEL_STEPS = 32768


# The headers that kernels need, which ops.h includes.
_PLAIN = ("ops.h", "op_parallel.h", "op_math.h", "op_vectors.h", "op_index.h")
_TYPED = (
    *("op_arithmetic.h", "op_quantize.h", "op_reduce.h"),
    *("op_gemm.h", "op_convolution.h", "op_integer_gemm.h"),
)


def headers() -> dict[str, str]:
    """The headers that kernels need, by name; ``ops.h`` includes the others."""
    made = {name: read_template(f"general/{name}") for name in _PLAIN}
    types = sorted((np.dtype(name) for name in ELEMENTS), key=lambda t: (-t.itemsize, t.name))
    kinds = {
        kind: [(c_type(t), suffix(t)) for t in types if t.kind == letter]
        for kind, letter in (("floats", "f"), ("signed", "i"), ("unsigned", "u"))
    }
    for name in _TYPED:
        made[name] = tidy(environment().get_template(f"general/{name}.j2").render(kinds))
    return made


class NotGeneral(ValueError):
    """A node that the general kernels do not cover; the message is the reason."""


def _element(dtype: np.dtype[Any]) -> Element:
    try:
        return ELEMENTS[dtype.name]
    except KeyError:
        raise NotGeneral(f"element type {dtype.name} is not supported") from None


def c_type(dtype: np.dtype[Any]) -> str:
    """The C type of an element."""
    return _element(dtype).c_type


def suffix(dtype: np.dtype[Any]) -> str:
    """The ending of the `op_*` functions for an element type."""
    return _element(dtype).suffix


@dataclass(frozen=True)
class Call:
    """What a kernel is emitted for.

    Attributes:
        function: the C function's name.
        nodes: the node, or the nodes of a fused group.
        graph: the graph that they are in.
        inputs: types of the C parameters ``x0, x1, ...``.
        outputs: types of the C parameters ``y0, y1, ...``.
        site: number in ``rt->sites`` of the place where it looks indices up, if it does.
    """

    function: str
    nodes: tuple[Node, ...]
    graph: Graph
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    site: int = 0

    @staticmethod
    def of(node: Node, graph: Graph, function: str, site: int = 0) -> Call:
        """The call of a single node: its outputs, then its inputs that are present."""
        inputs = tuple(graph.values[n] for n in node.inputs if n)
        outputs = tuple(graph.values[n] for n in node.outputs)
        return Call(function, (node,), graph, inputs, outputs, site)

    @property
    def node(self) -> Node:
        """The only node."""
        (node,) = self.nodes
        return node

    def render(self, template: str, *, rows: Extent | str, work: Extent, **context: Any) -> str:
        """Fill a template that computes rows ``begin`` to ``end`` of `rows` independent ones.

        Args:
            template: file name in ``templates/general``, without ``.c.j2``.
            rows: how many rows there are.
            work: element steps of all rows together; decides whether threads share them.
            context: what the template itself asks for.
        """
        # Each output without elements: nothing to do, but to see that an index is outside.
        if template != "outside" and all(0 in value.shape for value in self.outputs):
            template = "nothing"
        inputs = [(c_type(v.dtype), f"x{i}") for i, v in enumerate(self.inputs)]
        outputs = [(c_type(v.dtype), f"y{i}") for i, v in enumerate(self.outputs)]
        return (
            environment()
            .get_template(f"general/{template}.c.j2")
            .render(
                function=self.function,
                comment=self._comment(),
                parameters=[
                    *(f"{c} *restrict {name}" for c, name in outputs),
                    *(f"const {c} *restrict {name}" for c, name in inputs),
                ],
                inputs=inputs,
                outputs=outputs,
                rows=rows,
                work=work,
                site=self.site,
                parallel=work.power > 0 or work.coef >= PARALLEL_STEPS,
                **context,
            )
        )

    def _comment(self) -> list[str]:
        lines = []
        for node in self.nodes:
            shown = {k: v for k, v in node.attrs.items() if not isinstance(v, Graph)}
            attrs = " {" + ", ".join(f"{k}={v}" for k, v in shown.items()) + "}" if shown else ""
            args = ", ".join(n or "_" for n in node.inputs)
            source = f"  from {node.source}" if node.source else ""
            lines.append(f"{', '.join(node.outputs)} = {node.op}({args}){attrs}{source}")
        for k, values in (("y", self.outputs), ("x", self.inputs)):
            lines += [f"  {k}{i}: {value}" for i, value in enumerate(values)]
        return [c_comment(line) for line in lines]
