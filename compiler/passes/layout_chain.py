"""Chains of reshapes and transposes, followed symbolically.

A tensor's axes are split into *atoms*, the factors that a chain of reshapes and transposes moves
around as wholes: ``[B,S,C] -> reshape [B,S,H,D] -> transpose [B,H,S,D]`` has the atoms B, S, H, D.
The order in which they come out says what the whole chain does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.compiler.editor import Editor, Match
from sparsec.compiler.ir import Dim, Node, Shape, element_count


@dataclass(frozen=True)
class Step:
    """One op of a chain: a reshape or expand to `shape`, or a transpose by `perm`."""

    op: str
    shape: Shape = ()
    perm: tuple[int, ...] = ()

    @staticmethod
    def of(node: Node) -> Step:
        if node.op == "transpose":
            return Step("transpose", perm=tuple(node.attrs["perm"]))
        return Step(node.op, shape=tuple(node.attrs["shape"]))

    @property
    def cost(self) -> int:
        """A reshape is a change of name; a transpose moves data."""
        return 2 if self.op == "transpose" else 1

    def result(self, shape: Shape) -> Shape:
        """The shape of what the step makes of a tensor."""
        return tuple(shape[p] for p in self.perm) if self.op == "transpose" else self.shape

    def with_last_extent(self, extent: Dim) -> Step:
        """The step for a tensor whose last axis, which it leaves alone, has another extent."""
        return self if self.op == "transpose" else replace(self, shape=(*self.shape[:-1], extent))

    def emit(self, edit: Editor, x: str, source: str, output: str | None = None) -> str:
        outputs = None if output is None else (output,)
        if self.op == "transpose":
            return edit.emit("transpose", [x], source=source, outputs=outputs, perm=self.perm)
        return edit.emit(self.op, [x], source=source, outputs=outputs, shape=self.shape)


@dataclass(eq=False)
class Atom:
    """A factor of an axis."""

    extent: Dim


def chain_above(m: Match, name: str) -> tuple[str, list[Node]]:
    """The value from which `name` is made by reshapes and transposes, and those, in order."""
    chain: list[Node] = []
    while (node := m.producer(name, "reshape", "transpose")) is not None:
        chain.append(node)
        name = node.inputs[0]
    return name, chain[::-1]


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b where that is a whole number for every batch size, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    if isinstance(a, int):
        return None
    try:
        return a // b
    except ValueError:
        return None


def trace(shape: Shape, steps: Sequence[Step]) -> tuple[list[list[Atom]], list[list[Atom]]] | None:
    """Atoms of each axis of the start and of the end; None if a reshape cannot be followed.

    Axes of extent 1 have no atoms.
    """
    if any(d == 0 for d in shape):
        return None
    start = [[Atom(d)] if d != 1 else [] for d in shape]
    groups = [list(g) for g in start]
    for step in steps:
        if step.op == "transpose":
            groups = [groups[p] for p in step.perm]
            continue
        rest = [atom for group in groups for atom in group][::-1]
        groups = []
        for extent in step.shape:
            group: list[Atom] = []
            while extent != 1:
                atom = rest.pop()
                left = _quotient(extent, atom.extent)
                if left is None:
                    inner = _quotient(atom.extent, extent)
                    if inner is None:
                        return None
                    outer = Atom(extent)
                    rest.append(Atom(inner))
                    axis = next(axis for axis in start if atom in axis)
                    i = axis.index(atom)
                    axis[i : i + 1] = [outer, rest[-1]]
                    atom, left = outer, 1
                group.append(atom)
                extent = left
            groups.append(group)
    return start, groups


def _compose(shape: Shape, steps: Sequence[Step]) -> list[Step]:
    """Successive transposes as one."""
    perm = tuple(range(len(shape)))
    for step in steps:
        perm = tuple(perm[p] for p in step.perm)
    return [] if perm == tuple(range(len(shape))) else [Step("transpose", perm=perm)]


def shorten(shape: Shape, steps: Sequence[Step], final: Shape) -> list[Step]:
    """The cheapest known chain with the same effect as `steps` on a tensor of that shape."""
    candidates = [list(steps)]
    if all(step.op == "transpose" for step in steps):
        candidates.append(_compose(shape, steps))
    traced = trace(shape, steps)
    if traced is not None:
        candidates.append(_canonical(shape, *traced, final))
    return min(candidates, key=lambda c: (sum(step.cost for step in c), len(c)))


def _canonical(
    shape: Shape, start: list[list[Atom]], end: list[list[Atom]], final: Shape
) -> list[Step]:
    """reshape to the atoms, transpose, reshape to the final shape: what of it is needed."""
    place = {id(atom): i for i, atom in enumerate(atom for group in end for atom in group)}
    runs: list[list[Atom]] = []
    for axis in start:
        for i, atom in enumerate(axis):
            if i and place[id(atom)] == place[id(axis[i - 1])] + 1:
                runs[-1].append(atom)
            else:
                runs.append([atom])
    extents = [element_count([atom.extent for atom in run]) for run in runs]
    perm = tuple(sorted(range(len(runs)), key=lambda i: place[id(runs[i][0])]))
    steps: list[Step] = []
    if perm != tuple(range(len(runs))):
        if tuple(extents) != shape:
            steps.append(Step("reshape", shape=tuple(extents)))
        steps.append(Step("transpose", perm=perm))
        shape = tuple(extents[p] for p in perm)
    if shape != final:
        steps.append(Step("reshape", shape=final))
    return steps
