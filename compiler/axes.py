"""Which extents of a graph's values are the batch and which the sequence.

An axis is a product of *factors*, outermost first: ``BATCH`` (sequences), :class:`Token`
(positions of a sequence) and plain numbers.  ``[B*S, C]`` has the axes ``(BATCH, TOKEN)`` and
``(C,)``; an axis of extent 1 has none.  The op table says how axes line up
(:mod:`sparsec.compiler.ops.flow`).  Extents that are the length, and not a number that happens to
be equal, are told apart by a second graph: the same model at another length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from sparsec.compiler.ir import BatchDim, Dim, Graph, Node, Shape, Value
from sparsec.compiler.ops import OPS
from sparsec.compiler.ops.flow import Flow


@dataclass(frozen=True)
class Token:
    """The tokens of a sequence, and some elements more or less: ``length + extra``.

    Where a graph is right at length n, the first ``n + extra`` elements are.
    """

    extra: int = 0


@dataclass(frozen=True)
class Centred:
    """Relative positions: ``2 * length + extra`` elements, whose middle stays in the middle."""

    extra: int = 0


BATCH, TOKEN = "batch", Token()
Factor = Union[str, int, Token, Centred]
AxisFactors = tuple[Factor, ...]
Axes = tuple[AxisFactors, ...]


class Unclear(Exception):
    """An axis cannot be followed; the message says why."""


def flow_of(node: Node, values: Mapping[str, Value]) -> Flow:
    """How the axes of a node's operands come out in its results."""
    inputs = [values[n] if n else None for n in node.inputs]
    return OPS[node.op].flow(node.attrs, inputs, [values[n] for n in node.outputs])


def size(factors: Iterable[Factor], length: int) -> tuple[int, int]:
    """The extent of factors at a length: how often the batch is among them, and the rest."""
    batches, product = 0, 1
    for factor in factors:
        if isinstance(factor, str):
            batches += 1
        else:
            product *= extent(factor, length)
    return batches, product


def extent(factor: Token | Centred | int, length: int) -> int:
    """The extent of a factor other than the batch."""
    if isinstance(factor, Token):
        return length + factor.extra
    return 2 * length + factor.extra if isinstance(factor, Centred) else factor


def tokens(factors: AxisFactors) -> list[Token]:
    """The token factors of an axis."""
    return [f for f in factors if isinstance(f, Token)]


def _size_of(dim: Dim) -> tuple[int, int]:
    return (1, dim.coef) if isinstance(dim, BatchDim) else (0, int(dim))


class Lengths:
    """Extents at the length of a graph and, where there is one, at that of its other self."""

    def __init__(self, graph: Graph, other: Graph | None) -> None:
        self.graph = graph
        self.other = other
        self.length = graph.length
        self.other_length = other.length if other is not None else graph.length

    def shapes(self, name: str) -> tuple[Shape, Shape]:
        """A value's shape at both lengths; Unclear where the ranks differ."""
        shape = self.graph.values[name].shape
        if self.other is None:
            return shape, shape
        if name not in self.other.values or len(self.other.values[name].shape) != len(shape):
            raise Unclear("it is another graph at another length")
        return shape, self.other.values[name].shape

    def fits(self, factors: Iterable[Factor], dims: tuple[Dim, Dim]) -> bool:
        """Whether factors give an extent at both lengths."""
        factors = tuple(factors)
        return size(factors, self.length) == _size_of(dims[0]) and (
            self.other is None or size(factors, self.other_length) == _size_of(dims[1])
        )

    def plain(self, dims: tuple[Dim, Dim]) -> AxisFactors:
        """The factors of an extent that no operand explains."""
        options: list[AxisFactors] = []
        if isinstance(dims[0], BatchDim):
            coef = dims[0].coef
            options = [(BATCH,) if coef == 1 else (BATCH, coef), (BATCH, TOKEN)]
        else:
            here = int(dims[0])
            options = [() if here == 1 else (here,)]
            if self.other is not None:
                options += [(Token(here - self.length),), (Centred(here - 2 * self.length),)]
        for option in options:
            if self.fits(option, dims):
                return option
        raise Unclear(f"its extent {dims[0]} is {dims[1]} at another length")

    def leaf(self, name: str) -> Axes:
        """Axes of a value that nothing makes, by its shape alone."""
        return tuple(map(self.plain, zip(*self.shapes(name), strict=True)))

    def results(self, node: Node, flow: Flow, operands: Sequence[Axes | None]) -> list[Axes]:
        """Axes of a node's results.

        Raises:
            Unclear: axes do not line up with those of the operands.
        """
        if flow.regroups:
            assert operands[0] is not None
            return [self.regrouped(operands[0], *self.shapes(node.output))]
        made = []
        for name, lines in zip(node.outputs, flow.lines, strict=True):
            axes = []
            for line, dims in zip(lines, zip(*self.shapes(name), strict=True), strict=True):
                given = [(operands[i] or ())[axis] for i, axis in line if operands[i] is not None]
                axes.append(self._joined(given, dims))
            made.append(tuple(axes))
        return made

    def _joined(self, given: Sequence[AxisFactors], dims: tuple[Dim, Dim]) -> AxisFactors:
        told = {g for g in given if any(not isinstance(f, int) for f in g)}
        if len(told) > 1:
            raise Unclear(f"axes {sorted(map(str, told))} meet")
        for factors in told:
            if not self.fits(factors, dims):
                raise Unclear(f"an axis of {factors} becomes one of extent {dims[0]}")
            return factors
        return self.plain(dims)

    def regrouped(self, axes: Axes, shape: Shape, other: Shape) -> Axes:
        """Axes of a reshape's result: the operand's factors in order, split where they must be."""
        left = [f for axis in axes for f in axis]
        made: list[AxisFactors] = []
        for dims in zip(shape, other, strict=True):
            batches, rest = _size_of(dims[0])
            taken: list[Factor] = []
            while batches or rest != 1:
                if not left:
                    raise Unclear(f"{axes} does not fall into {list(shape)}")
                factor = left.pop(0)
                if isinstance(factor, str):
                    batches -= 1
                    taken.append(factor)
                    continue
                whole = extent(factor, self.length)
                if rest % whole == 0:
                    rest //= whole
                elif isinstance(factor, int) and factor % rest == 0:
                    left.insert(0, factor // rest)
                    factor, rest = rest, 1
                else:
                    raise Unclear(f"{axes} does not fall into {list(shape)}")
                taken.append(factor)
            if batches < 0 or not self.fits(taken, dims):
                raise Unclear(f"{axes} does not fall into {list(shape)}")
            made.append(tuple(taken))
        if any(f != 1 for f in left):
            raise Unclear(f"{axes} does not fall into {list(shape)}")
        return tuple(made)


def independent(graph: Graph, ranges: frozenset[str] = frozenset()) -> bool:
    """True where no sequence of a batch is seen by another: nothing works along the batch.

    The batch may be anywhere among the axes.  False also where an axis cannot be followed.

    Args:
        graph: any graph.
        ranges: sources of nodes whose maxima and minima do not count.
    """
    lengths = Lengths(graph, None)
    known: dict[str, Axes] = {}
    try:
        for name in (*graph.inputs, *graph.constants):
            known[name] = lengths.leaf(name)
        for node in graph.nodes:
            flow = flow_of(node, graph.values)
            operands = [known[n] if n else None for n in node.inputs]
            if not flow.regroups and not (
                node.source in ranges and node.op in ("reduce_max", "reduce_min")
            ):
                lined = {axis for line in flow.lines for axes in line for axis in axes}
                for i, axes in enumerate(operands):
                    for a, factors in enumerate(axes or ()):
                        if BATCH in factors and ((i, a) in flow.mixed or (i, a) not in lined):
                            return False
            for name, axes in zip(node.outputs, lengths.results(node, flow, operands), strict=True):
                known[name] = axes
    except Unclear:
        return False
    return True
