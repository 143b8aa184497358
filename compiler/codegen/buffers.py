"""Where values are: each gets a buffer, and those that are never needed together share memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsec.compiler.codegen.plan import (
    Buffer,
    Memory,
    Size,
    Slot,
    Stage,
    Time,
    lifetimes,
)
from sparsec.compiler.ir import BatchDim, Graph, element_count
from sparsec.compiler.lowering.lanes import Choice


@dataclass(frozen=True)
class Ends:
    """What the caller brings and takes.

    Attributes:
        inputs: by number.
        outputs: results that are made where the caller wants them -> number of the output.
        copied: (value, number of the output) where that cannot be: the value is an input, a
            constant, or another output as well.
    """

    inputs: tuple[Slot, ...] = ()
    outputs: Mapping[Slot, int] = field(default_factory=dict)
    copied: tuple[tuple[Slot, int], ...] = ()


def ends(graph: Graph, choice: Choice) -> Ends:
    """The inputs and outputs of a graph."""
    inputs = tuple((name, "flat") for name in graph.inputs)
    outputs: dict[Slot, int] = {}
    copied: list[tuple[Slot, int]] = []
    for i, name in enumerate(graph.outputs):
        slot = choice.root(name), "flat"
        if slot in outputs or slot in inputs or slot[0] in graph.constants:
            copied.append((slot, i))
        else:
            outputs[slot] = i
    return Ends(inputs, outputs, tuple(copied))


def flat_size(name: str, graph: Graph) -> Size:
    """Bytes of a value row by row."""
    value = graph.values[name]
    count = element_count(value.shape)
    if isinstance(count, BatchDim):
        return Size(batch=count.coef * value.dtype.itemsize)
    return Size(fixed=int(count) * value.dtype.itemsize)


def size_of(slot: Slot, graph: Graph, choice: Choice) -> Size:
    """Bytes of a value in one of its forms."""
    name, form = slot
    if form == "flat":
        return flat_size(name, graph)
    rows = choice.rows[name]
    block = (rows.channels + 3) // 4 * 4 * 16 * (1 if form[0] in "bp" else 4)
    return Size(token=block) if rows.domain == "token" else Size(item=block)


def sizes(stages: Sequence[Stage], ends: Ends, graph: Graph, choice: Choice) -> dict[Slot, Size]:
    """Bytes of all buffers that calls and caller use."""
    calls = (call for stage in stages for call in stage.calls)
    used = {slot for call in calls for slot in (*call.reads, *call.writes)}
    return {slot: size_of(slot, graph, choice) for slot in used | {*ends.inputs, *ends.outputs}}


def allocate(stages: Sequence[Stage], ends: Ends, sizes: Mapping[Slot, Size]) -> Memory:
    """Give every buffer a place.

    Args:
        stages: all calls.
        ends: what the caller brings and takes.
        sizes: of all buffers.
    """
    kept = [*ends.outputs, *(slot for slot, _ in ends.copied if slot in sizes)]
    lives = lifetimes(stages, ends.inputs, kept)
    local = _Local(lives, sizes)
    shared = _Workspace(lives, sizes)
    placed = [(slot, "input", i) for i, slot in enumerate(ends.inputs)]
    for i, stage in enumerate(stages):
        if stage.kind == "rows":
            local.fill(i, stage)
        shared.free_before(i)
        for slot in (slot for call in stage.calls for slot in call.writes):
            if slot in ends.outputs:
                placed.append((slot, "output", ends.outputs[slot]))
            elif slot in local.begin:
                placed.append((slot, "local", local.begin[slot]))
            else:
                placed.append((slot, "workspace", shared.place(slot)))
    buffers = (Buffer(slot, sizes[slot], where, at, *lives[slot]) for slot, where, at in placed)
    return Memory(tuple(buffers), tuple(shared.places), local.most)


class _Workspace:
    """Places that are taken for whole stages."""

    def __init__(self, lives: Mapping[Slot, tuple[Time, Time]], sizes: Mapping[Slot, Size]) -> None:
        self.lives = lives
        self.sizes = sizes
        self.places: list[Size] = []
        self.free: list[int] = []
        self.busy: list[tuple[int, int]] = []  # (last stage, place)

    def free_before(self, stage: int) -> None:
        """Give back what no call from this stage on uses."""
        self.free += [at for last, at in self.busy if last < stage]
        self.busy = [(last, at) for last, at in self.busy if last >= stage]

    def place(self, slot: Slot) -> int:
        """The free place that is nearest in size, made large enough; or else a new one."""
        size = self.sizes[slot]
        fits = [at for at in self.free if self.places[at].kind == size.kind]
        if fits:
            at = min(fits, key=lambda at: abs(self.places[at].total - size.total))
            self.free.remove(at)
            self.places[at] = self.places[at].cover(size)
        else:
            at = len(self.places)
            self.places.append(size)
        self.busy.append((self.lives[slot][1][0], at))
        return at


class _Local:
    """Memory of a thread: what one piece of the rows fills and reads within a stage."""

    def __init__(self, lives: Mapping[Slot, tuple[Time, Time]], sizes: Mapping[Slot, Size]) -> None:
        self.lives = lives
        self.sizes = sizes
        self.begin: dict[Slot, int] = {}
        self.most = 0

    def fill(self, number: int, stage: Stage) -> None:
        """Place what a stage writes and nobody reads after it."""
        busy: list[tuple[int, int, int]] = []  # (begin, end, last wave)
        for i, wave in enumerate(stage.waves):
            busy = sorted(b for b in busy if b[2] >= i)
            for slot in (slot for call in wave for slot in call.writes):
                last, last_wave = self.lives[slot][1]
                if last != number or slot[1] == "flat":
                    continue
                size = self.sizes[slot].total
                begin = _gap(size, [(lo, hi) for lo, hi, _ in busy])
                self.begin[slot] = begin
                busy = sorted([*busy, (begin, begin + size, last_wave)])
                self.most = max(self.most, begin + size)


def _gap(size: int, busy: Sequence[tuple[int, int]]) -> int:
    """Where the first `size` bytes begin that are free; `busy` is in order."""
    begin = 0
    for lo, hi in busy:
        if begin + size <= lo:
            break
        begin = hi
    return begin
