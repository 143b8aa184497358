"""How the extents of an op's operands come out in its results: which axes line up, which are mixed.

Every row of the op table has such a rule.  It is what proves that the sequences of a batch do not
meet (:mod:`sparsec.compiler.lowering.batch`), and that padding reaches no result
(:mod:`sparsec.compiler.padding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsec.compiler.ir import Value

Attrs = Mapping[str, Any]
Inputs = Sequence[Value | None]
Axis = tuple[int, int]
"""An axis of an operand: position of the operand, axis."""


@dataclass(frozen=True)
class Flow:
    """Where the axes of one node's operands go.

    An operand's axis of extent 1 that broadcasts lines up with nothing.

    Attributes:
        lines: for each result, for each of its axes, the operands' axes that line up with it:
            unless that axis is mixed, the result at an index reads their elements at that index
            only.
        mixed: operands' axes along which a result reads other elements than that at its own index.
        regroups: the elements keep their order and only the extents change, as in a reshape;
            `lines` is empty then.
    """

    lines: tuple[tuple[tuple[Axis, ...], ...], ...]
    mixed: frozenset[Axis] = field(default_factory=frozenset)
    regroups: bool = False


FlowRule = Callable[[Attrs, Inputs, Sequence[Value]], Flow]


def _aligned(inputs: Inputs, rank: int, skip: Iterable[int] = ()) -> list[list[Axis]]:
    """Axes that broadcast to a result of that rank, counted from the last one."""
    lines: list[list[Axis]] = [[] for _ in range(rank)]
    for i, value in enumerate(inputs):
        if value is None or i in skip:
            continue
        for axis, dim in enumerate(value.shape):
            if dim != 1:
                lines[rank - len(value.shape) + axis].append((i, axis))
    return lines


def _flow(lines: Sequence[Sequence[Axis]], mixed: Iterable[Axis] = (), results: int = 1) -> Flow:
    one = tuple(tuple(axes) for axes in lines)
    return Flow((one,) * results, frozenset(mixed))


def elementwise(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """numpy broadcasting."""
    return _flow(_aligned(inputs, len(outputs[0].shape)))


def per_axis(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """One operand, and parameters that are numbers, or vectors along an axis."""
    rank = len(outputs[0].shape)
    lines = _aligned(inputs[:1], rank)
    for i, value in enumerate(inputs[1:], start=1):
        if value is not None and value.shape not in ((), (1,)):
            lines[int(attrs.get("axis", 1)) % rank].append((i, 0))
    return _flow(lines)


def reshape(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Extents are split and joined, elements stay in order."""
    return Flow((), regroups=True)


def transpose(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Axes change places."""
    return _flow([[(0, int(axis))] for axis in attrs["perm"]])


def slices(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """An axis of which a part is taken is mixed."""
    (x,) = inputs
    assert x is not None
    cut = {
        int(axis)
        for start, axis, step in zip(attrs["starts"], attrs["axes"], attrs["steps"], strict=True)
        if start != 0 or step != 1 or x.shape[axis] != outputs[0].shape[axis]
    }
    lines = [[] if a in cut else [(0, a)] for a in range(len(x.shape))]
    return _flow(lines, [(0, a) for a in cut])


def along(*, lost: bool) -> FlowRule:
    """All operands have the result's axes; ``axis`` (or ``axes``) is mixed.

    Args:
        lost: the result's extent along the axis is another one.
    """

    def rule(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
        axis = int(attrs["axis"])
        lines: list[list[Axis]] = [[] for _ in outputs[0].shape]
        for i, value in enumerate(inputs):
            assert value is not None
            for a in range(len(value.shape)):
                if a != axis or not lost:
                    lines[a].append((i, a))
        return _flow(lines, [(i, axis) for i in range(len(inputs))], len(outputs))

    return rule


def reduced(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """``axis`` or ``axes`` are gone, or 1 where ``keepdims``."""
    (x,) = inputs
    assert x is not None
    gone = {int(a) for a in (attrs["axes"] if "axes" in attrs else (attrs["axis"],))}
    lines: list[list[Axis]] = []
    for a in range(len(x.shape)):
        if a not in gone:
            lines.append([(0, a)])
        elif attrs["keepdims"]:
            lines.append([])
    return _flow(lines, [(0, a) for a in gone])


def layernorm(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """The last axis is mixed; two parameters lie along it."""
    rank = len(outputs[0].shape)
    lines = [[(0, a)] for a in range(rank)]
    lines[-1] += [(1, 0), (2, 0)]
    return _flow(lines, [(0, rank - 1)])


def gather(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """The extents of the indices stand where the axis was."""
    x, ids = inputs
    assert x is not None and ids is not None
    axis = int(attrs["axis"])
    lines = [[(0, a)] for a in range(axis)]
    lines += [[(1, a)] for a in range(len(ids.shape))]
    lines += [[(0, a)] for a in range(axis + 1, len(x.shape))]
    return _flow(lines, [(0, axis)])


def gather_elements(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """The indices lie over the data, along whose axis any element may be read."""
    axis = int(attrs["axis"])
    lines: list[list[Axis]] = [[(0, a), (1, a)] for a in range(len(outputs[0].shape))]
    lines[axis] = [(1, axis)]
    return _flow(lines, [(0, axis)])


def gather_nd(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Tuples of indices, behind extents that data and indices share."""
    x, ids = inputs
    assert x is not None and ids is not None
    shared, last = int(attrs["batch_dims"]), len(ids.shape) - 1
    depth = int(str(ids.shape[-1]))
    lines: list[list[Axis]] = [[(0, a), (1, a)] for a in range(shared)]
    lines += [[(1, a)] for a in range(shared, last)]
    lines += [[(0, a)] for a in range(shared + depth, len(x.shape))]
    mixed = [(0, a) for a in range(shared, shared + depth)]
    return _flow(lines, [*mixed, (1, last)])


def scatter_elements(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Indices and updates lie over the data, along whose axis any element may be written."""
    axis = int(attrs["axis"])
    lines: list[list[Axis]] = [[(i, a) for i in range(3)] for a in range(len(outputs[0].shape))]
    lines[axis] = [(0, axis)]
    return _flow(lines, [(i, axis) for i in range(3)])


def scatter_nd(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Tuples of indices say where slices of the data are written."""
    x, ids, updates = inputs
    assert x is not None and ids is not None and updates is not None
    depth, prefix = int(str(ids.shape[-1])), len(ids.shape) - 1
    lines: list[list[Axis]] = [[(0, a)] for a in range(len(x.shape))]
    for a in range(depth, len(x.shape)):
        lines[a].append((2, prefix + a - depth))
    mixed = [(1, a) for a in range(prefix + 1)] + [(2, a) for a in range(prefix)]
    mixed += [(0, a) for a in range(depth)]
    return _flow(lines, mixed)


def matmul(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """numpy.matmul, perhaps with a zero point for each row of `a` and column of `b`."""
    a, b = inputs[:2]
    assert a is not None and b is not None
    lead = len(outputs[0].shape) - (len(a.shape) > 1) - (len(b.shape) > 1)
    lines: list[list[Axis]] = [[] for _ in range(lead)]
    for i, value in ((0, a), (1, b)):
        for axis, dim in enumerate(value.shape[:-2]):
            if dim != 1:
                lines[lead - len(value.shape) + 2 + axis].append((i, axis))
    depth = max(len(b.shape) - 2, 0)
    mixed = [(0, len(a.shape) - 1), (1, depth)]
    rows: list[Axis] = [(0, len(a.shape) - 2)]
    columns: list[Axis] = [(1, len(b.shape) - 1)]
    for i, zero in enumerate(inputs[2:], start=2):
        for axis, back in _moving(zero, vector=2 if i == 2 else 1):
            if back > 2:
                lines[lead + 2 - back].append((i, axis))
            elif back == 4 - i:
                (rows if i == 2 else columns).append((i, axis))
            else:
                mixed.append((i, axis))
    lines += [rows] if len(a.shape) > 1 else []
    lines += [columns] if len(b.shape) > 1 else []
    return _flow(lines, mixed)


def _moving(zero: Value | None, vector: int) -> list[tuple[int, int]]:
    """Axes of a zero point that are not 1, and their places counted from the end of the factor.

    Args:
        vector: the place of the only axis of a vector.
    """
    shape = zero.shape if zero is not None else ()
    shift = vector - 1 if len(shape) == 1 else 0
    return [(a, len(shape) - a + shift) for a, dim in enumerate(shape) if dim != 1]


def conv(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Channels and places of the data are mixed, maps come from the weights."""
    x, w = inputs[:2]
    assert x is not None and w is not None
    lines: list[list[Axis]] = [[(0, 0)], [(1, 0)], *([] for _ in x.shape[2:])]
    if len(inputs) > 3 and inputs[3] is not None and inputs[3].shape:
        lines[1].append((3, 0))
    mixed = [(i, a) for i, v in ((0, x), (1, w)) for a in range(1, len(v.shape))]
    return _flow(lines, mixed)


def layer(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Weights ``[N, K]`` times the last axis; scale and bias lie along N."""
    rank = len(outputs[0].shape)
    lines = [[(0, a)] for a in range(rank - 1)]
    lines.append([(1, 0), *((i, 0) for i, v in enumerate(inputs) if i > 1 and v and v.shape)])
    return _flow(lines, [(0, rank - 1), (1, 1)])


def attention(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Queries ``[B, S, C]`` keep their place; keys, values and channels are mixed.

    What scores meet besides is ``[B, H, S, S]``, or extents of 1.
    """
    lines: list[list[Axis]] = [[(i, 0) for i in range(3)], [(0, 1)], []]
    mixed = [(i, a) for i in (1, 2) for a in (1, 2)] + [(0, 2)]
    for i, extra in enumerate(inputs[3:], start=3):
        assert extra is not None
        for axis, dim in enumerate(extra.shape):
            place = 4 - len(extra.shape) + axis
            if dim == 1:
                continue
            if place in (0, 2):
                lines[place // 2].append((i, axis))
            else:
                mixed.append((i, axis))
    return _flow(lines, mixed)


def everything(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """Each result is made of all elements."""
    mixed = ((i, a) for i, v in enumerate(inputs) if v is not None for a in range(len(v.shape)))
    return _flow([], mixed, len(outputs))


def tokens(attrs: Attrs, inputs: Inputs, outputs: Sequence[Value]) -> Flow:
    """A number for each sequence, whatever they hold."""
    (x,) = inputs
    assert x is not None
    return _flow([[(0, 0)]], [(0, a) for a in range(1, len(x.shape))])
