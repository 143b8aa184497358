"""What the code of one bucket does, before it is C: stages of calls, and the buffers between them.

A plan prints (:meth:`Plan.to_text`) and is checked (:meth:`Plan.verify`); templates turn it into C
without deciding anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from itertools import combinations, groupby, pairwise

from sparsec.runtime.artifact import LayerInfo

#: A value in one of its forms, which is what a buffer holds.  Forms: "flat" (row-major), "lane"
#: (4-byte lanes), "byte" and "byte_s8" (byte lanes, as is or made signed), "panel_u8", "panel_s8"
#: (made unsigned, signed).
Slot = tuple[str, str]

#: A moment: a stage, and a wave in it.  Inputs are there at BEFORE.
Time = tuple[int, int]
BEFORE: Time = (-1, 0)


@dataclass(frozen=True)
class Size:
    """Bytes, known but for the batch.

    Attributes:
        batch: for each sequence.
        token: for each block of 16 tokens.
        item: for each block of 16 sequences.
        fixed: besides.
    """

    batch: int = 0
    token: int = 0
    item: int = 0
    fixed: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def cover(self, other: Size) -> Size:
        """The least size in which both find room."""
        return Size(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """Which of the extents it grows with."""
        return bool(self.batch), bool(self.token), bool(self.item)

    @property
    def total(self) -> int:
        """All its numbers together, to compare sizes of one kind."""
        return self.batch + self.token + self.item + self.fixed

    def __str__(self) -> str:
        terms = [
            f"{getattr(self, name)}*{unit}"
            for name, unit in (("batch", "batch"), ("token", "tokens/16"), ("item", "batch/16"))
            if getattr(self, name)
        ]
        return " + ".join([*terms, *([str(self.fixed)] if self.fixed else [])]) or "0"


@dataclass(frozen=True)
class Weights:
    """Constants that all buckets share, from an offset in bytes on."""

    offset: int

    def __str__(self) -> str:
        return f"weights+{self.offset}"


@dataclass(frozen=True)
class Loaded:
    """The only number of a buffer, read when the call is made.

    Attributes:
        source: the buffer, or the constant.
        c_type: of the number there.
        reciprocal: 1 / the number is passed.
    """

    source: Slot | Weights
    c_type: str
    reciprocal: bool = False

    def __str__(self) -> str:
        return f"{'1/' if self.reciprocal else ''}{show(self.source)}[0]"


#: What a call passes: a buffer, constants, a number from a buffer, a number, or that of a site.
Operand = Slot | Weights | Loaded | float | int


@dataclass(frozen=True)
class Argument:
    """What a call passes to its kernel, and the field that takes it ("": they go by order).

    `note` says what is there, where the value does not.
    """

    field: str
    value: Operand
    note: str = ""


@dataclass(frozen=True)
class Work:
    """How much a call computes, for ``sparsec benchmark --profile``: fields of its ``KernelInfo``.

    Attributes:
        shape: input x output channels, or heads x channels of a head, or channels.
        sparsity: share of all-zero packs of the weights.
        rows: of one sequence.
        work_block, work_key, work_sample: multiply-adds of 16 lanes for a block of 16 rows; for 16
            queries and a key; for a sequence.
    """

    shape: str = ""
    sparsity: float = 0.0
    rows: int = 0
    work_block: int = 0
    work_key: int = 0
    work_sample: int = 0


@dataclass(frozen=True)
class Call:
    """One use of a kernel.

    Attributes:
        function: the C function that makes it; of a row-major call, the kernel itself.
        kind: "rows" (a lane kernel that takes its rows one by one), "attention", or "general"
            (row-major).
        reads, writes: buffers, constants left out.
        cleared: those that it writes and that are 0 before.
        kernel: its name, as reports show it.
        entry, family: its row in the table of kernels, and the family of that.
        arguments: in order.
        domain: what a row is, "token" or "item"; "" for row-major calls.
        title: what it computes, in a line.
        source: ONNX names of what it computes.
        tiles: units of rows that the variants of a sparse layer's kernel take, largest first.
        quads: groups of 4 output channels, which can be split over threads; 0: they cannot be.
        unit: rows that a layer computes together: one takes as long as all of them.
        weights_rows: rows that take a layer as long as its weights take to arrive.
        tile_products: products of tiles that a layer makes for 16 rows.
        heads: of attention.
        loops: the kernel takes several blocks of queries a call (attention only).
        matrix: the kernel works on tiles, which its thread has to configure.
        whole: the kernel takes all of its blocks of rows a call (linear layers only).
        scratch: bytes that the kernel needs for itself in each thread.
        work: how much it computes.
        layer: what is reported of a linear layer.
    """

    function: str
    kind: str
    reads: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    kernel: str = ""
    entry: str = ""
    family: str = ""
    arguments: tuple[Argument, ...] = ()
    domain: str = ""
    title: str = ""
    source: str = ""
    tiles: tuple[int, ...] = ()
    quads: int = 0
    unit: int = 1
    weights_rows: int = 0
    tile_products: int = 0
    heads: int = 0
    loops: bool = False
    matrix: bool = False
    scratch: int = 0
    work: Work = field(default_factory=Work)
    layer: LayerInfo | None = None
    cleared: tuple[Slot, ...] = ()
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.function} (from {self.source or 'nothing'})"


@dataclass(frozen=True)
class Stage:
    """Calls between two points where all threads wait for each other.

    Attributes:
        kind: that of its calls.  Only "rows" has more than one: a thread takes a piece of the rows
            through all of them.
        waves: the calls in order; those of a wave do not need each other's results.
    """

    kind: str
    waves: tuple[tuple[Call, ...], ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls in order."""
        return tuple(call for wave in self.waves for call in wave)

    @property
    def matrix(self) -> bool:
        """Whether its threads have to configure tiles."""
        return any(call.matrix for call in self.calls)

    @property
    def domain(self) -> str:
        """What a row is."""
        return self.waves[0][0].domain


@dataclass(frozen=True)
class Port:
    """An input or output of the model."""

    name: str
    size: Size


@dataclass(frozen=True)
class Buffer:
    """Where a value in one of its forms is, and when.

    Attributes:
        slot: the value and its form.
        size: how much it takes.
        region: "input", "output", "workspace" (kept from stage to stage), or "local" (of a thread,
            within a stage, for the rows that it is at).
        at: number of the input, the output, or the place in the workspace; begin in the thread's
            memory, in bytes for each block of 16 rows.
        first, last: when it is written first, and written or read last.
    """

    slot: Slot
    size: Size
    region: str
    at: int
    first: Time
    last: Time


@dataclass(frozen=True)
class Copy:
    """An output that is nobody's own result: what to copy to it at the end."""

    value: Slot | Weights
    output: int


@dataclass(frozen=True)
class Memory:
    """All buffers.

    Attributes:
        buffers: in the order in which they are written.
        places: sizes of the places in the workspace, which follow each other, each rounded up to
            64 bytes.
        local: bytes of a thread for each block of 16 rows that it is at.
    """

    buffers: tuple[Buffer, ...]
    places: tuple[Size, ...] = ()
    local: int = 0


@dataclass(frozen=True)
class Site:
    """A place where an index that is data meets a table.

    Attributes:
        table, node: names in the model.
        input: number of the input that the indices are, or -1: they are computed.
        step: indices of a sequence; 0: they are not ordered by sequences.
        token: of these, the indices of a token; 0: they are not ordered by tokens.
    """

    table: str
    node: str
    input: int
    step: int
    token: int


class PlanError(ValueError):
    """A plan whose code would compute something else than the graph."""


@dataclass(frozen=True)
class Plan:
    """One bucket.

    Attributes:
        length: tokens of a sequence; 0 without a sequence axis.
        tokens: rows of a sequence.
        inputs, outputs: in the model's order.
        kernels: C text by the name of the function, each once.
        stages: in order.
        memory: buffers.
        copies: after the last stage.
        sites: by number.
        chunk: sequences to compute at a time; 0: all, because the batch cannot be cut.
        tall: blocks of 16 rows that a thread takes through a stage at a time.
        skips: padding is left out where lengths are given.
    """

    length: int
    tokens: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: Mapping[str, str]
    stages: tuple[Stage, ...]
    memory: Memory
    copies: tuple[Copy, ...] = ()
    sites: tuple[Site, ...] = ()
    chunk: int = 0
    tall: int = 0
    skips: bool = False

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls in order."""
        return tuple(call for stage in self.stages for call in stage.calls)

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """All linear layers in order."""
        return tuple(call.layer for call in self.calls if call.layer is not None)

    def verify(self) -> None:
        """Check that the calls, in this order and these buffers, do what each alone does.

        Raises:
            PlanError: a call reads what is not yet written, writes to an input, or what was written
                already; an output is not written; a buffer is not where and when the calls use it,
                is too large for its place, or shares memory with another while both are needed.
        """
        _check_order(self)
        _check_buffers(self)
        _check_overlaps(self.memory.buffers)

    def to_text(self) -> str:
        """The plan for people: stages with their calls, then the buffers."""
        return "\n".join([*_head(self), "", *_stages(self), *_memory(self), ""])


def show(value: Slot | Weights) -> str:
    """A value in text."""
    return str(value) if isinstance(value, Weights) else ":".join(value)


# -- checks


def _times(stages: Sequence[Stage]) -> Iterator[tuple[Time, tuple[Call, ...]]]:
    for i, stage in enumerate(stages):
        for k, wave in enumerate(stage.waves):
            yield (i, k), wave


def lifetimes(
    stages: Sequence[Stage], inputs: Sequence[Slot], kept: Sequence[Slot]
) -> dict[Slot, tuple[Time, Time]]:
    """When each buffer is used first and last.

    Args:
        stages: all calls.
        inputs: what is there before the first of them.
        kept: what is needed after the last.
    """
    found = dict.fromkeys(inputs, (BEFORE, BEFORE))
    for time, wave in _times(stages):
        for call in wave:
            for slot in (*call.reads, *call.writes):
                found[slot] = (found.get(slot, (time, time))[0], time)
    end = (len(stages), 0)
    return found | {slot: (found.get(slot, (end, end))[0], end) for slot in kept}


def kept(buffers: Sequence[Buffer], copies: Sequence[Copy]) -> list[Slot]:
    """What the caller, or a copy at the end, reads after the last stage."""
    copied = [copy.value for copy in copies if isinstance(copy.value, tuple)]
    return [*(b.slot for b in buffers if b.region == "output"), *copied]


def _check_order(plan: Plan) -> None:
    inputs = {buffer.slot for buffer in plan.memory.buffers if buffer.region == "input"}
    known = set(inputs)
    for _, wave in _times(plan.stages):
        made: set[Slot] = set()
        for call in wave:
            _check_call(call, inputs, known, made)
            made.update(call.writes)
        known |= made
    _check_outputs(plan, known)


def _check_call(call: Call, inputs: Set[Slot], known: Set[Slot], made: Set[Slot]) -> None:
    """Check what a call touches, with `made` by the others of its wave and `known` before it."""
    for slot in call.reads:
        if slot not in known:
            raise PlanError(f"{call} reads {show(slot)}, which is not yet written")
    for slot in call.writes:
        if slot in inputs:
            raise PlanError(f"{call} writes to {show(slot)}, which is an input")
        if slot in known or slot in made:
            raise PlanError(f"{call} writes {show(slot)} again")


def _check_outputs(plan: Plan, known: Set[Slot]) -> None:
    for slot in kept(plan.memory.buffers, plan.copies):
        if slot not in known:
            raise PlanError(f"{show(slot)}, which is an output, is not written")
    here = {b.at for b in plan.memory.buffers if b.region == "output"}
    here |= {copy.output for copy in plan.copies}
    if here != set(range(len(plan.outputs))):
        raise PlanError(f"outputs {sorted(here)} are written of {len(plan.outputs)}")


def _check_buffers(plan: Plan) -> None:
    memory = plan.memory
    inputs = [buffer.slot for buffer in memory.buffers if buffer.region == "input"]
    used = lifetimes(plan.stages, inputs, kept(memory.buffers, plan.copies))
    have = {buffer.slot: buffer for buffer in memory.buffers}
    if len(have) < len(memory.buffers):
        raise PlanError("a value is in two buffers")
    for slot, (first, last) in used.items():
        if slot not in have:
            raise PlanError(f"{show(slot)} has no buffer")
        buffer = have[slot]
        if (buffer.first, buffer.last) != (first, last):
            raise PlanError(
                f"{show(slot)} lives from {buffer.first} to {buffer.last}, "
                f"but is used from {first} to {last}"
            )
        _check_place(buffer, plan)


def _check_place(buffer: Buffer, plan: Plan) -> None:
    size, at, memory = buffer.size, buffer.at, plan.memory
    if buffer.region == "local":
        if buffer.first[0] != buffer.last[0]:
            raise PlanError(f"{show(buffer.slot)} is local, but outlives its stage")
        fits = at >= 0 and at + size.total <= memory.local and not (size.batch or size.fixed)
    else:
        inputs, outputs = ([port.size for port in p] for p in (plan.inputs, plan.outputs))
        places = {"input": inputs, "output": outputs, "workspace": list(memory.places)}
        room = places[buffer.region]
        fits = 0 <= at < len(room) and room[at].cover(size) == room[at]
    if not fits:
        raise PlanError(f"{show(buffer.slot)} of {size} bytes is too large for its place")


def _check_overlaps(buffers: Sequence[Buffer]) -> None:
    def region(buffer: Buffer) -> tuple[str, int]:
        return buffer.region, buffer.first[0] if buffer.region == "local" else buffer.at

    for (kind, _), group in groupby(sorted(buffers, key=region), region):
        members = sorted(group, key=_first)
        pairs = combinations(members, 2) if kind == "local" else pairwise(members)
        for a, b in pairs:
            if _overlap(a, b):
                raise PlanError(f"{show(a.slot)} and {show(b.slot)} are in one place at one time")


def _first(buffer: Buffer) -> Time:
    return buffer.first


def _overlap(a: Buffer, b: Buffer) -> bool:
    """Whether two buffers of one region meet: in time and, where they are local, in bytes."""
    if a.region == "local":
        apart = a.at + a.size.total <= b.at or b.at + b.size.total <= a.at
        return not apart and a.first <= b.last and b.first <= a.last
    # Threads are anywhere within a stage: what one stage uses is needed all the time.
    return a.first[0] <= b.last[0] and b.first[0] <= a.last[0]


# -- text


def _head(plan: Plan) -> list[str]:
    scratch = max((call.scratch for call in plan.calls), default=0)
    length = f"of {plan.length} tokens" if plan.length else "without a sequence axis"
    chunk = f"{plan.chunk} sequences at a time" if plan.chunk else "the batch as a whole"
    return [
        f"bucket {length}: {chunk}{', without padding' if plan.skips else ''}",
        *(f"input {i}: {port.name}, {port.size} bytes" for i, port in enumerate(plan.inputs)),
        *(f"output {i}: {port.name}, {port.size} bytes" for i, port in enumerate(plan.outputs)),
        f"each thread: {scratch} bytes of scratch, {plan.memory.local} for each block of 16 rows",
    ]


def _stages(plan: Plan) -> Iterator[str]:
    for i, stage in enumerate(plan.stages):
        rows = {"token": " of tokens", "item": " of sequences"}.get(stage.domain, "")
        tiles = ", threads configure tiles" if stage.matrix else ""
        yield f"stage {i}: {stage.kind}{rows}{tiles}"
        for k, wave in enumerate(stage.waves):
            if len(stage.waves) > 1:
                yield f"  wave {k}"
            for call in wave:
                yield from _call(call)
    if plan.copies:
        yield "at the end"
    for copy in plan.copies:
        yield f"  copy {show(copy.value)} to output {copy.output}"
    yield ""


def _call(call: Call) -> Iterator[str]:
    yield f"    {call.function}: {call.title}"
    tiles = f", tiles {', '.join(map(str, call.tiles))}" if call.tiles else ""
    yield f"        kernel {call.kernel}{tiles}"
    if call.source:
        yield f"        from   {call.source}"
    yield f"        reads  {', '.join(map(show, call.reads)) or 'nothing'}"
    constants = [str(a.value.offset) for a in call.arguments if isinstance(a.value, Weights)]
    if constants:
        yield f"               weights at {', '.join(constants)}"
    yield f"        writes {', '.join(map(show, call.writes)) or 'nothing'}"


def _memory(plan: Plan) -> Iterator[str]:
    yield "workspace (each place is rounded up to 64 bytes; threads' memory lies before them)"
    offset = Size()
    for i, size in enumerate(plan.memory.places):
        yield f"  place {i} at {offset}: {size} bytes"
        offset += size
    yield ""
    yield "buffers"
    for b in plan.memory.buffers:
        place = {"workspace": f"place {b.at}", "local": f"local {b.at}"}
        yield (
            f"  {show(b.slot)}: {place.get(b.region, f'{b.region} {b.at}')}, {b.size} bytes, "
            f"{_lifetime(b)}"
        )


def _lifetime(buffer: Buffer) -> str:
    (first, wave), (last, end) = buffer.first, buffer.last
    if buffer.region == "local":
        return f"stage {first} waves {wave} to {end}"
    begin = "the start" if (first, wave) == BEFORE else f"stage {first}"
    stop = "the end" if buffer.region == "output" else f"stage {last}"
    return f"{begin} to {stop}"
