"""One bucket's graph -> its C files: kernels, calls, stages, and the entry points."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.compiler.c_text import c_comment
from sparsec.compiler.codegen.general import (
    general_kernel,
    general_kernel_for_group,
    group_elementwise,
    group_interface,
    multiply_adds,
)
from sparsec.compiler.codegen.general.render import headers
from sparsec.compiler.codegen.lanes import gelu
from sparsec.compiler.codegen.lanes.attention import attention_kernel
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel, Slot
from sparsec.compiler.codegen.lanes.linear import linear_kernel
from sparsec.compiler.codegen.lanes.map import map_kernel, unpack_kernel
from sparsec.compiler.codegen.lanes.program import Number
from sparsec.compiler.ir import BatchDim, Graph, Node, Shape, element_count
from sparsec.compiler.lowering import lanes
from sparsec.compiler.lowering.batch import separable
from sparsec.compiler.lowering.elements import BYTES
from sparsec.compiler.lowering.linear import SLAB_QUADS, Plans
from sparsec.compiler.lowering.pool import WeightPool
from sparsec.compiler.ops import OPS
from sparsec.compiler.templates import environment, read_template
from sparsec.interface import ELEMENTS
from sparsec.targets import Target

#: Rows that are computed at a time where the batch can be cut: few enough to keep activations in
#: the caches.  With many threads it is more, so that each has TALL blocks.
CHUNK_ROWS = 512

#: Blocks of rows that a thread takes through a stage at a time: what they leave behind from kernel
#: to kernel should stay in the second-level cache.
TALL = 4


@dataclass(frozen=True)
class BucketSource:
    """What is compiled into one bucket's library.

    Attributes:
        length: tokens per sequence.
        files: C files and headers by name; each ``.c`` is a translation unit.
        kernels: one row per call, in order, with the fields of the runtime's ``KernelInfo``.
        layers: one row per linear layer: name, op, n, k, sparsity, block4_sparsity, kernel.
        supports_lengths: padding can be skipped.
    """

    length: int
    files: Mapping[str, str]
    kernels: tuple[dict[str, Any], ...]
    layers: tuple[dict[str, Any], ...]
    supports_lengths: bool


@dataclass(frozen=True)
class _Size:
    """Bytes of a buffer: ``batch * B + token * token_blocks + item * item_blocks + fixed``."""

    batch: int = 0
    token: int = 0
    item: int = 0
    fixed: int = 0

    def cover(self, other: _Size) -> _Size:
        return _Size(
            max(self.batch, other.batch),
            max(self.token, other.token),
            max(self.item, other.item),
            max(self.fixed, other.fixed),
        )

    def kind(self) -> tuple[bool, bool, bool]:
        return (bool(self.batch), bool(self.token), bool(self.item))

    def total(self) -> int:
        return self.batch + self.token + self.item + self.fixed


@dataclass
class _Call:
    """A call of a kernel: a lane kernel, or a row-major node or group of elementwise ones."""

    title: str
    reads: list[Slot]
    writes: list[Slot]
    kernel: LaneKernel | None = None
    nodes: tuple[Node, ...] = ()
    domain: str = ""
    source: str = ""
    function: str = ""
    shape: str = ""
    sparsity: float = 0.0
    rows: int = 0
    work_block: int = 0
    work_key: int = 0
    work_sample: int = 0

    @property
    def family(self) -> str:
        """What a row-major call computes, in one word."""
        return self.nodes[0].op if len(self.nodes) == 1 else "elementwise"


@dataclass
class _Stage:
    calls: list[_Call] = field(default_factory=list)
    kind: str = "general"  # general, rows, attention, copy

    def waves(self) -> list[list[_Call]]:
        """The calls in runs of layers that do not read each other's results."""
        waves: list[list[_Call]] = []
        made: set[Slot] = set()
        for call in self.calls:
            layer = call.kernel is not None and call.kernel.quads > 0
            if waves and layer and made and not made & {*call.reads, *call.writes}:
                waves[-1].append(call)
            else:
                waves.append([call])
                made = set()
            made = made | {*call.writes} if layer else set()
        return waves


def _identifier(text: str) -> str:
    """A C identifier made of an ONNX name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[-60:].strip("_") or "node"


def _by_sequences(shape: Shape, length: int) -> tuple[int, int]:
    """How many elements of a tensor belong to a sequence, and how many of these to a token.

    0 where they do not lie in order of sequences, or of the `length` tokens of a sequence.
    """
    if not shape or not isinstance(shape[0], BatchDim):
        return 0, 0
    inner = 1
    for dim in shape[1:]:
        if isinstance(dim, BatchDim):
            return 0, 0
        inner *= dim
    step = shape[0].coef * inner
    tokens = next((d for d in (shape[0].coef, *shape[1:]) if d != 1), 1)
    return step, step // length if length and tokens == length else 0


class _Emitter:
    def __init__(
        self,
        graph: Graph,
        target: Target,
        pool: WeightPool,
        plans: Plans,
        profile: bool,
    ) -> None:
        self.profile = profile
        self.graph = graph
        self.target = target
        self.pool = pool
        self.plans = plans
        self.choice = lanes.choose(graph)
        self.steps = lanes.group(graph, self.choice)
        self.kernels: dict[str, str] = {}
        self.slots: list[_Size] = []
        self.place: dict[Slot, str] = {}
        #: Buffers that one piece of rows fills and reads within a stage: where each begins in the
        #: thread's own memory, and its size, both in bytes for a block of 16 rows.
        self.local: dict[Slot, tuple[int, int]] = {}
        self.local_bytes = 0
        self.layers: list[dict[str, Any]] = []
        self.copies: list[tuple[str, int]] = []
        self.sites: list[dict[str, Any]] = []
        self._find_makers()

    # -- what is made where, and in which forms it is needed ------------------------------------

    def _find_makers(self) -> None:
        graph, choice = self.graph, self.choice
        self.lane_made: set[str] = set()
        self.gathers: dict[str, Node] = {}
        flat_steps = {id(s.node) for s in self.steps if s.node is not None}
        for step in self.steps:
            if step.group is not None:
                self.lane_made |= {o for n in step.group.nodes for o in n.outputs}
        for node in graph.nodes:
            looked_up = id(node) not in flat_steps and node.output not in self.lane_made
            if node.op == "gather" and id(node) in choice.nodes and looked_up:
                self.gathers[node.output] = node
        self.copied = {n for s in self.steps if s.group is not None for n in s.group.copies}
        self.needed: dict[str, set[str]] = {}

        def need(name: str, form: str) -> None:
            self.needed.setdefault(choice.root(name), set()).add(form)

        for step in self.steps:
            if step.node is not None:
                for name in step.node.inputs:
                    if name and choice.root(name) in self.lane_made:
                        need(name, "flat")
                continue
            assert step.group is not None
            inside = {o for n in step.group.nodes for o in n.outputs}
            for node in step.group.nodes:
                for position, name in enumerate(node.inputs):
                    if not name or name in graph.constants or choice.root(name) in inside:
                        continue
                    form = self._form(node, position, name)
                    if form is not None:
                        need(name, form)
        for name in graph.outputs:
            if choice.root(name) in self.lane_made:
                need(name, "flat")

    def _form(self, node: Node, position: int, name: str) -> str | None:
        """The form in which a lane node reads an operand; None for row-major ones."""
        dtype = self.graph.values[name].dtype
        if OPS[node.op].linear == "i8":
            return "panel_u8" if position == 0 else None
        if node.op == "attention":
            if position > 2:
                root = self.choice.root(name)
                return "flat" if root in self.lane_made else None
            if dtype not in BYTES:
                return "lane"
            return ("panel_u8", "panel_s8", "byte_s8")[position]
        if self.choice.root(name) in self.lane_made or OPS[node.op].linear == "f32":
            return "byte" if dtype in BYTES else "lane"
        return None

    # -- calls ------------------------------------------------------------------------------------

    def _lane_calls(self, group: lanes.Group) -> list[_Call]:
        made = {o for n in group.nodes for o in n.outputs}
        outputs: dict[str, set[str]] = {}
        unpacks: list[str] = []
        wanted = (made & set(self.needed)) | set(group.copies)
        for name in sorted(wanted):
            forms = {f for f in self.needed.get(name, set()) if f != "flat"}
            if "flat" in self.needed.get(name, set()) and name in made:
                unpacks.append(name)
                forms.add("byte" if self.graph.values[name].dtype in BYTES else "lane")
            outputs[name] = forms
        body = Body(
            graph=self.graph,
            choice=self.choice,
            group=group,
            outputs=outputs,
            gathers=self.gathers,
            # A copy reads its value row-major; everyone else finds the copied value in lanes.
            lane_made=self.lane_made,
        )
        if group.kind == "linear":
            anchor = group.nodes[0]
            panels = any(f.startswith("panel") for forms in outputs.values() for f in forms)
            plan = self.plans.get(anchor, self.graph, panels)
            kernel = linear_kernel(body, plan, self.target)
            self.layers.append(
                {
                    "name": anchor.source,
                    "op": anchor.op,
                    "n": plan.n,
                    "k": plan.k,
                    "sparsity": round(plan.sparsity, 4),
                    "block4_sparsity": round(plan.block4_sparsity, 4),
                    "kernel": kernel.name,
                }
            )
        elif group.kind == "attention":
            kernel = attention_kernel(body, self.target)
        else:
            kernel = map_kernel(body)
        source = group.source or ", ".join(group.copies)
        calls = [
            _Call(
                kernel.title,
                list(kernel.args.inputs),
                list(kernel.args.outputs),
                kernel,
                domain=group.domain,
                source=source,
                shape=kernel.shape,
                sparsity=kernel.sparsity,
                rows=self.graph.tokens if group.domain == "token" else 1,
                work_block=kernel.work_block,
                work_key=kernel.work_key,
            )
        ]
        for name in unpacks:
            rows = self.choice.rows[name]
            unpack = unpack_kernel(name, self.graph, rows)
            calls.append(
                _Call(
                    unpack.title,
                    list(unpack.args.inputs),
                    list(unpack.args.outputs),
                    unpack,
                    domain=rows.domain,
                    source=source,
                )
            )
        return calls

    def _fused_steps(self) -> list[lanes.Group | list[Node]]:
        """The steps, with neighbouring row-major nodes in groups that are one loop each."""
        out: list[lanes.Group | list[Node]] = []
        flat: list[Node] = []
        for step in (*self.steps, None):
            if step is not None and step.node is not None:
                flat.append(step.node)
                continue
            out += group_elementwise(self.graph, flat)
            flat = []
            if step is not None and step.group is not None:
                out.append(step.group)
        return out

    def _general(self, nodes: Sequence[Node]) -> _Call:
        """The call of a row-major node or group."""
        reads, writes = self._interface(nodes)
        constants = self.graph.constants
        return _Call(
            ", ".join(node.op for node in nodes),
            [(self.choice.root(n), "flat") for n in reads if n not in constants],
            [(o, "flat") for o in writes],
            nodes=tuple(nodes),
            work_sample=-(-sum(multiply_adds(node, self.graph) for node in nodes) // 16),
            source=", ".join(dict.fromkeys(n.source for n in nodes if n.source)),
        )

    def _interface(self, nodes: Sequence[Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Values that the general kernel of some nodes takes, and those that it makes."""
        if len(nodes) == 1:
            return tuple(n for n in nodes[0].inputs if n), nodes[0].outputs
        return group_interface(nodes, self.graph)

    def stages(self) -> list[_Stage]:
        """Calls grouped into stages, in order."""
        stages: list[_Stage] = []
        number = 0
        for step in self._fused_steps():
            if not isinstance(step, lanes.Group):
                call = self._general(step)
                call.function = f"general_{number}_{_identifier(call.source or call.family)}"
                number += 1
                stages.append(_Stage([call], "general"))
                continue
            kind = "attention" if step.kind == "attention" else "rows"
            calls = self._lane_calls(step)
            for call in calls:
                name = _identifier(call.source.split(", ")[0])
                call.function = f"call_{number}_{name}"
                number += 1
            last = stages[-1] if stages else None
            heads, tail = (calls[:1], calls[1:]) if kind == "attention" else ([], calls)
            if heads:
                stages.append(_Stage(heads, "attention"))
                last = None
            if tail:
                if (
                    last is not None
                    and last.kind == "rows"
                    and last.calls[0].domain == tail[0].domain
                ):
                    last.calls.extend(tail)
                else:
                    stages.append(_Stage(tail, "rows"))
        return stages

    # -- buffers

    def _size(self, slot: Slot) -> _Size:
        name, form = slot
        value = self.graph.values[name]
        if form == "flat":
            count = element_count(value.shape)
            size = value.dtype.itemsize
            if isinstance(count, BatchDim):
                return _Size(batch=count.coef * size)
            return _Size(fixed=int(count) * size)
        rows = self.choice.rows[name]
        block = (rows.channels + 3) // 4 * 4 * 16 * (1 if form[0] in "bp" else 4)
        return _Size(token=block) if rows.domain == "token" else _Size(item=block)

    def allocate(self, stages: Sequence[_Stage]) -> None:
        """Give every buffer a place; buffers that are never alive together share one."""
        graph = self.graph
        for i, name in enumerate(graph.inputs):
            self.place[(name, "flat")] = f"in{i}"
        taken: set[str] = set()
        for i, name in enumerate(graph.outputs):
            root = self.choice.root(name)
            slot = (root, "flat")
            free = root not in graph.constants and slot not in self.place
            if free and graph.values[root].dtype == graph.values[name].dtype:
                self.place[slot] = f"out{i}"
                taken.add(name)
            else:
                self.copies.append((root, i))
        last: dict[Slot, int] = {}
        for i, stage in enumerate(stages):
            for call in stage.calls:
                for slot in (*call.reads, *call.writes):
                    last[slot] = i
        for root, _ in self.copies:
            last[(root, "flat")] = len(stages)
        for i, stage in enumerate(stages):
            if stage.kind == "rows":
                self._allocate_local(stage.waves(), {slot for slot in last if last[slot] == i})
        free_slots: list[int] = []
        busy: list[tuple[int, int]] = []  # (last stage, slot)
        for i, stage in enumerate(stages):
            for end, index in list(busy):
                if end < i:
                    busy.remove((end, index))
                    free_slots.append(index)
            for call in stage.calls:
                for slot in call.writes:
                    if slot in self.place or slot in self.local:
                        continue
                    size = self._size(slot)
                    fits = [s for s in free_slots if self.slots[s].kind() == size.kind()]
                    fits.sort(key=lambda s: abs(self.slots[s].total() - size.total()))
                    if fits:
                        index = fits[0]
                        free_slots.remove(index)
                        self.slots[index] = self.slots[index].cover(size)
                    else:
                        index = len(self.slots)
                        self.slots.append(size)
                    self.place[slot] = f"slot{index}"
                    busy.append((last[slot], index))

    def _allocate_local(self, waves: Sequence[Sequence[_Call]], ending: set[Slot]) -> None:
        """Place what the `waves` of a stage write and nobody reads after it (`ending`)."""
        last = {
            slot: i
            for i, wave in enumerate(waves)
            for call in wave
            for slot in (*call.reads, *call.writes)
        }
        busy: list[tuple[int, int, int]] = []  # (begin, end, last wave)
        for i, wave in enumerate(waves):
            busy = sorted(b for b in busy if b[2] >= i)
            for slot in (s for call in wave for s in call.writes):
                if slot not in ending or slot[1] == "flat":
                    continue
                size = self._size(slot).total()
                begin = 0
                for lo, hi, _ in busy:
                    if begin + size <= lo:
                        break
                    begin = hi
                self.local[slot] = (begin, size)
                busy = sorted([*busy, (begin, begin + size, last[slot])])
                self.local_bytes = max(self.local_bytes, begin + size)

    def number(self, slot: Slot) -> int:
        """Index of a buffer in ``rt->buf``."""
        place = self.place[slot]
        inputs, outputs = len(self.graph.inputs), len(self.graph.outputs)
        if place.startswith("in"):
            return int(place[2:])
        if place.startswith("out"):
            return inputs + int(place[3:])
        return inputs + outputs + int(place[4:])

    # -- text

    def _pointer(self, slot: Slot) -> str:
        name, form = slot
        if form == "flat" and name in self.graph.constants:
            return f"W({self.pool.add(self.graph.constants[name])})"
        if slot in self.local:
            begin, size = self.local[slot]
            return f"LOCAL({begin}, {size})"
        return f"BUF(void, {self.number(slot)})"

    def _number(self, number: float | Number) -> str:
        """C text of a number that a call passes."""
        if not isinstance(number, Number):
            return _float_literal(number)
        load = f"((const {ELEMENTS[number.dtype.name].c_type} *){self._pointer(number.slot)})[0]"
        return f"1.0f / {load}" if number.reciprocal else f"(float){load}"

    def _site(self, node: Node) -> int:
        """The number in ``rt->sites`` of a place where `node` looks its indices up."""
        graph = self.graph
        table, indices = node.inputs[0], graph.values[node.inputs[1]]
        step, token = _by_sequences(indices.shape, graph.length)
        origin = self._origin(indices.name)
        self.sites.append(
            {
                "table": table,
                "node": node.source,
                "input": graph.inputs.index(origin) if origin in graph.inputs else -1,
                "step": step,
                "token": token,
            }
        )
        return len(self.sites) - 1

    def _origin(self, name: str) -> str:
        """The value whose elements, in the same order, are those of an integer value."""
        graph = self.graph
        makers = graph.producers()
        while name in makers:
            node = makers[name]
            whole = node.op == "cast" and np.can_cast(
                graph.values[node.inputs[0]].dtype, graph.values[name].dtype, "safe"
            )
            if node.op != "reshape" and not whole:
                break
            name = node.inputs[0]
        return name

    def _lane_call(self, call: _Call, number: int) -> str:
        kernel = call.kernel
        assert kernel is not None
        args = kernel.args
        limits = (
            (args.inputs, 24),
            (args.outputs, 20),
            (args.vectors, 40),
            (args.scalars, 64),
            (args.sites, 24),
        )
        if any(len(have) > most for have, most in limits):
            raise ValueError(f"{call.source}: too many operands for one lane kernel")
        lines = [f"/* {c_comment(call.source)}: {call.title} */"]
        attention = kernel.heads > 0
        params = (
            "int32_t query, int32_t query_end, int32_t head, char *scratch"
            if attention
            else "const sparsec_tile *tile, int64_t b0, int64_t b1, int32_t q0, int32_t q1"
        )
        lines.append(f"static void {call.function}(const sparsec_rt *rt, {params})")
        lines.append("{")
        if self.profile:
            lines.append("    const uint64_t since = profile_now();")
        lines.append("    const lane_args a = {")
        if args.inputs:
            lines.append(f"        .in = {{{', '.join(self._pointer(s) for s in args.inputs)}}},")
        if args.outputs:
            lines.append(f"        .out = {{{', '.join(self._pointer(s) for s in args.outputs)}}},")
        if args.vectors:
            offsets = (f"W({self.pool.add(v)})" for v in args.vectors)
            lines.append(f"        .cv = {{{', '.join(offsets)}}},")
        if args.scalars:
            numbers = (self._number(s) for s in args.scalars)
            lines.append(f"        .cs = {{{', '.join(numbers)}}},")
        if args.sites:
            sites = (str(self._site(node)) for node in args.sites)
            lines.append(f"        .site = {{{', '.join(sites)}}},")
        lines.append("    };")
        rows = f"&rt->{call.domain}"
        if attention and kernel.loops:
            lines.append(f"    {kernel.name}(rt, &a, query, query_end, head, scratch);")
        elif attention:
            lines.append("    for (; query < query_end; query++)")
            lines.append(f"        {kernel.name}(rt, &a, query, head, scratch);")
        elif kernel.tiles:
            lines.append("    int64_t b = b0;")
            for tile in kernel.tiles:
                step = f"{kernel.name}_t{tile}(rt, {rows}, &a, b, q0, q1, tile->scratch)"
                lines.append(f"    while (b + {tile} <= b1)")
                lines.append(f"        {step}, b += {tile};")
        else:
            lines.append("    (void)q0; (void)q1;")
            lines.append(f"    {kernel.name}(rt, {rows}, &a, b0, b1, tile->scratch);")
        if self.profile:
            lines.append(f"    profile_add({number}, since);")
        return "\n".join([*lines, "}", ""])

    def _attention_stage(self, name: str, call: _Call) -> str:
        assert call.kernel is not None
        heads = call.kernel.heads
        return f"""static void {name}_task(void *arg, int32_t index, int32_t thread)
{{
    const sparsec_rt *const rt = arg;
    const int32_t many = attention_blocks(rt, {heads}), query = index / {heads} * many;
    const int32_t end = query + many < rt->queries ? query + many : rt->queries;
    {call.function}(rt, query, end, index % {heads}, SCRATCH_OF(rt, thread));
}}

static void {name}(const sparsec_rt *rt)
{{
    const int32_t many = attention_blocks(rt, {heads});
    sparsec_for(rt, {name}_task, (void *)rt, (rt->queries + many - 1) / many * {heads});
}}
"""

    def _general_call(self, name: str, call: _Call, number: int) -> str:
        reads, writes = self._interface(call.nodes)
        outs = [self._pointer((o, "flat")) for o in writes]
        ins = [self._pointer((self.choice.root(n), "flat")) for n in reads]
        run = f"    {call.function}({', '.join(['rt', *outs, *ins])});\n"
        if self.profile:
            since = "    const uint64_t since = profile_now();\n"
            run = f"{since}{run}    profile_add({number}, since);\n"
        return (
            f"/* {c_comment(call.source)}: {call.title} */\n"
            f"static void {name}(const sparsec_rt *rt)\n{{\n{run}}}\n"
        )

    def render(self, context: Mapping[str, Any]) -> BucketSource:
        """Everything as C text."""
        graph = self.graph
        stages = self.stages()
        self.allocate(stages)
        kernels: dict[str, str] = {}
        calls: list[str] = []
        names: list[str] = []
        rows: list[dict[str, Any]] = []
        scratch = 64
        numbers: dict[str, int] = {}
        env = environment()
        for i, stage in enumerate(stages):
            name = f"stage_{i}"
            names.append(name)
            for call in stage.calls:
                kernel = call.kernel.name if call.kernel else f"general_{call.family}"
                rows.append(
                    {
                        "name": call.function,
                        "kernel": kernel,
                        "source": call.source,
                        "detail": call.title,
                        "shape": call.shape,
                        "sparsity": call.sparsity,
                        "rows": call.rows,
                        "work_block": call.work_block,
                        "work_key": call.work_key,
                        "work_sample": call.work_sample,
                    }
                )
                numbers[call.function] = len(rows) - 1
                if call.kernel is not None:
                    kernels[call.kernel.name] = call.kernel.text
                    scratch = max(scratch, call.kernel.scratch)
                    calls.append(self._lane_call(call, numbers[call.function]))
            if stage.kind == "general":
                (call,) = stage.calls
                kernels[call.function] = (
                    general_kernel(
                        call.nodes[0],
                        graph,
                        call.function,
                        self._site(call.nodes[0]) if OPS[call.nodes[0].op].lookup else 0,
                    )
                    if len(call.nodes) == 1
                    else general_kernel_for_group(call.nodes, graph, call.function)
                )
                calls.append(self._general_call(name, call, numbers[call.function]))
            elif stage.kind == "attention":
                calls.append(self._attention_stage(name, stage.calls[0]))
            else:
                waves = [
                    [
                        {
                            "name": c.function,
                            "quads": c.kernel.quads if c.kernel else 0,
                            "slabs": -(-(c.kernel.quads if c.kernel else 0) // SLAB_QUADS),
                        }
                        for c in wave
                    ]
                    for wave in stage.waves()
                ]
                zeroed = [
                    {"buffer": self.number(slot), "bytes": self._size(slot).batch}
                    for c in stage.calls
                    if c.domain == "token"
                    for slot in c.writes
                    if slot[1] == "flat"
                ]
                calls.append(
                    env.get_template("stage.c.j2").render(
                        name=name,
                        domain=stage.calls[0].domain,
                        waves=waves,
                        splits=any(c["quads"] for wave in waves for c in wave),
                        zeroed=zeroed,
                        slab=SLAB_QUADS,
                    )
                )
        if self.copies:
            lines = [
                f"    memcpy(rt->buf[{len(graph.inputs) + i}], {self._pointer((root, 'flat'))}, "
                f"{_bytes_of(graph, root)});"
                for root, i in self.copies
            ]
            names.append("copy_outputs")
            calls.append(
                "static void copy_outputs(const sparsec_rt *rt)\n{\n" + "\n".join(lines) + "\n}\n"
            )
        token_lanes = any(c.domain == "token" for s in stages for c in s.calls)
        counts = any(node.op == "lengths" for node in graph.nodes)
        takes = context["padding"] != "SPARSEC_PADDING_EXACT"
        skips = (token_lanes or counts) and graph.length > 0 and takes
        divisible = separable(graph)
        per_item = max(graph.tokens, 1)
        buffers = [
            f"(char *)inputs[{i}] + {_step(graph, n)} * b0" for i, n in enumerate(graph.inputs)
        ]
        buffers += [
            f"(char *)outputs[{i}] + {_step(graph, n)} * b0" for i, n in enumerate(graph.outputs)
        ]
        buffers += [f"ws + m.offset[{i}]" for i in range(len(self.slots))]
        text = env.get_template("bucket.c.j2").render(
            **context,
            length=graph.length,
            tokens=graph.tokens,
            target=self.target.name,
            kernels=list(kernels.values()),
            calls=calls,
            stages=names,
            n_inputs=len(graph.inputs),
            n_outputs=len(graph.outputs),
            supports_lengths=skips,
            chunk=max(1, CHUNK_ROWS // per_item) if divisible else 0,
            per_item=per_item,
            scratch=scratch,
            slots=[vars(s) for s in self.slots],
            local_bytes=self.local_bytes,
            tall=TALL,
            buffers=buffers,
            weights=bool(self.pool.data()),
            sites=self.sites,
            profile=len(rows) if self.profile else 0,
        )
        files = {
            "bucket.c": text,
            "rt.h": read_template("rt.h"),
            **headers(),
            "vec_isa.h": read_template(f"lanes/{self.target.vectors.header}"),
            "vec.h": read_template("lanes/vec.h"),
            "vmath.h": env.get_template("lanes/vmath.h.j2").render(phi=gelu.literals()),
            "lanes.h": read_template("lanes/lanes.h"),
        }
        if self.profile:
            files["profile.h"] = read_template("lanes/profile.h")
        return BucketSource(graph.length, files, tuple(rows), tuple(self.layers), skips)


def _step(graph: Graph, name: str) -> str:
    """Bytes of one sequence of an input or output (0 where it has no batch extent)."""
    value = graph.values[name]
    count = element_count(value.shape)
    return f"{count.coef * value.dtype.itemsize}LL" if isinstance(count, BatchDim) else "0"


def _bytes_of(graph: Graph, name: str) -> str:
    value = graph.values[name]
    count = element_count(value.shape)
    if isinstance(count, BatchDim):
        return f"{count.coef * value.dtype.itemsize}LL * rt->batch"
    return str(int(count) * value.dtype.itemsize)


def _float_literal(number: float) -> str:
    """A float32 as C text, exact."""
    single = np.float32(number)
    if np.isnan(single):
        return "NAN"
    if np.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    return f"{float(single).hex()}f"


def emit_bucket(
    graph: Graph,
    target: Target,
    pool: WeightPool,
    plans: Plans,
    context: Mapping[str, Any],
    profile: bool = False,
) -> BucketSource:
    """C files of one bucket; constants go into `pool`.

    Args:
        graph: optimized, specialized to the bucket.
        target: the ISA to emit for.
        pool: where big constants are collected.
        plans: packed layers, shared by the buckets.
        context: what the entry points need besides: model, version, tensors, mask_input.
        profile: count the time of every call, for ``sparsec_profile()``.
    """
    return _Emitter(graph, target, pool, plans, profile).render(context)


__all__ = ["BucketSource", "emit_bucket"]
