"""One bucket's plan -> its C files.  Everything is decided; this fills in templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparsec.compiler.c_text import tidy
from sparsec.compiler.codegen.general.render import headers
from sparsec.compiler.codegen.lanes import gelu
from sparsec.compiler.codegen.plan import (
    Buffer,
    Call,
    Copy,
    Loaded,
    Operand,
    Plan,
    Size,
    Slot,
    Stage,
    Weights,
)
from sparsec.compiler.lowering import attention
from sparsec.compiler.lowering.linear import DENSE_CHANNELS, SLAB_QUADS
from sparsec.compiler.templates import environment, read_template
from sparsec.targets import Target

#: Nanoseconds of a multiply-add of a vector, about.
PRODUCT_NS = 0.3

#: Those of a wait of all threads.
WAIT_NS = 2000.0

#: Those of reading 64 bytes that another core has made.
LINE_NS = 6.0


@dataclass(frozen=True)
class BucketSource:
    """What is compiled into one bucket's library.

    Attributes:
        length: tokens per sequence.
        files: C files and headers by name; each ``.c`` is a translation unit.
        kernels: one row per call, in order, with the fields of the runtime's ``KernelInfo``.
        layers: one row per linear layer: name, op, n, k, sparsity, block4_sparsity, kernel.
        supports_lengths: padding can be skipped.
        plan: what the files were made of.
    """

    length: int
    files: Mapping[str, str]
    kernels: tuple[dict[str, Any], ...]
    layers: tuple[dict[str, Any], ...]
    supports_lengths: bool
    plan: Plan


def render(plan: Plan, target: Target, context: Mapping[str, Any], profile: bool) -> BucketSource:
    """C files of one bucket.

    Args:
        plan: verified.
        target: the ISA to emit for.
        context: what the entry points need besides: model, version, tensors, mask_input, padding,
            and whether there are weights.
        profile: count the time of every call, for ``sparsec_profile()``.
    """
    text = _Text(plan, profile)
    users: dict[str, list[str]] = {}
    for call in plan.calls:
        users.setdefault(call.kernel, []).append(call.function)
    inputs, outputs = plan.inputs, plan.outputs
    buffers = [f"(char *)inputs[{i}] + {_step(p.size)} * b0" for i, p in enumerate(inputs)]
    buffers += [f"(char *)outputs[{i}] + {_step(p.size)} * b0" for i, p in enumerate(outputs)]
    buffers += [f"ws + m.offset[{i}]" for i in range(len(plan.memory.places))]
    source = _fill(
        "bucket.c.j2",
        **context,
        length=plan.length,
        tokens=plan.tokens,
        target=target.name,
        kernels=[(text, users.get(name, [])) for name, text in plan.kernels.items()],
        calls=text.stages(),
        stages=text.summaries(),
        n_inputs=len(inputs),
        n_outputs=len(outputs),
        supports_lengths=plan.skips,
        chunk=plan.chunk,
        per_item=max(plan.tokens, 1),
        scratch=max((64, *(call.scratch for call in plan.calls))),
        slots=plan.memory.places,
        local_bytes=plan.memory.local,
        tall=plan.tall,
        product=PRODUCT_NS * 16 / target.lanes,
        wait=WAIT_NS,
        line=LINE_NS,
        matrix=target.matrix is not None,
        bf16=target.precision == "bf16",
        buffers=buffers,
        sites=plan.sites,
        profile=len(plan.calls) if profile else 0,
    )
    files = {"bucket.c": tidy(source), **headers_of(target)}
    if profile:
        files["profile.h"] = read_template("lanes/profile.h")
    return BucketSource(
        plan.length,
        files,
        tuple(_row(call) for call in plan.calls),
        tuple(asdict(layer) for layer in plan.layers),
        plan.skips,
        plan,
    )


def headers_of(target: Target) -> dict[str, str]:
    """The headers that ``bucket.c`` includes."""
    units = {}
    if target.matrix is not None:
        units["split.h"] = read_template("lanes/split.h")
        units["tiles.h"] = read_template("lanes/tiles.h")
        units["tiles_isa.h"] = read_template(f"lanes/{target.matrix.header}")
    if target.precision == "bf16":
        units["bfloat16.h"] = read_template("lanes/bfloat16.h")
    return {
        **units,
        "rt.h": read_template("rt.h"),
        **headers(),
        "vec_isa.h": read_template(f"lanes/{target.vectors.header}"),
        "vec.h": read_template("lanes/vec.h"),
        "vmath.h": tidy(_fill("lanes/vmath.h.j2", phi=gelu.literals())),
        "lanes.h": tidy(_fill("lanes/lanes.h.j2")),
        "dense.h": tidy(_fill("lanes/dense.h.j2", lanes=target.lanes, kinds=_products(target))),
    }


def _splits(stage: Stage) -> list[dict[str, int]]:
    """Layers of a stage, those alike together: packs that are multiplied, unit of rows, slabs, rows
    that take as long as the weights take to arrive."""
    found: dict[tuple[int, int, int], int] = {}
    for call in stage.calls:
        if call.quads:
            alike = call.unit, -(-call.quads // SLAB_QUADS), call.weights_rows
            found[alike] = found.get(alike, 0) + _products_of(call)
    names = ("unit", "slabs", "weights")
    return [{"work": work, **dict(zip(names, alike, strict=True))} for alike, work in found.items()]


def _products_of(call: Call) -> int:
    """Packs that a layer multiplies, in the time that a product takes one by one."""
    if call.matrix:  # 16 cycles each, in which vectors make 32
        return 32 * call.tile_products
    # VPMADDUBSW takes two more instructions a product.
    return call.work.work_block * (2 if call.entry.endswith("_pairs") else 1)


def _products(target: Target) -> list[dict[str, Any]]:
    """What ``dense.h`` has functions for: ``few`` rows are computed by ``wide`` vectors of
    channels, others by 2, from ``low`` to ``most`` rows together."""
    dots = ("vf_fma_acc",) if target.adds_pairs else ("vf_fma_acc", "vi_dot4")
    most = target.tiles.dense
    wide = min(4, DENSE_CHANNELS // target.lanes)
    few = most * 2 // wide if wide > 2 else 0
    low = min(few + 1, (most + 1) // 2)
    same = {"most": most, "wide": wide, "few": few, "low": low}
    return [{"dot": dot, "vector": dot[:2], **same} for dot in dots]


def _row(call: Call) -> dict[str, Any]:
    """What the manifest says of a call."""
    return {
        "name": call.function,
        "kernel": call.kernel,
        "entry": call.entry,
        "family": call.family,
        "source": call.source,
        "detail": call.title,
        **asdict(call.work),
    }


class _Text:
    """C text of the stages of a plan."""

    def __init__(self, plan: Plan, profile: bool) -> None:
        self.plan = plan
        self.places = {buffer.slot: buffer for buffer in plan.memory.buffers}
        # Counters of the calls, where they are counted.
        self.counters = {c.function: i for i, c in enumerate(plan.calls)} if profile else {}

    def names(self) -> list[str]:
        """The functions to call, in order."""
        names = [f"stage_{i}" for i in range(len(self.plan.stages))]
        return [*names, "copy_outputs"] if self.plan.copies else names

    def summaries(self) -> list[tuple[str, str]]:
        """The functions to call, in order, and what each is about."""
        about = []
        for stage in self.plan.stages:
            sources = [call.source.split(", ")[0] for call in stage.calls if call.source]
            first = f" from {sources[0]} on" if sources else ""
            about.append(f"{stage.kind}{first}")
        return list(zip(self.names(), [*about, "copies"], strict=False))

    def stages(self) -> list[str]:
        """The functions, each after what it calls."""
        texts: list[str] = []
        for name, stage in zip(self.names(), self.plan.stages, strict=False):
            if stage.kind != "general":
                texts += map(self._call, stage.calls)
            texts.append(self._stage(name, stage))
        if self.plan.copies:
            copies = list(map(self._copy, self.plan.copies))
            texts.append(_fill("stage_copies.c.j2", name=self.names()[-1], copies=copies))
        return texts

    def _call(self, call: Call) -> str:
        return _fill(
            "call.c.j2",
            **vars(call)
            | {"arguments": [(a.field, self._operand(a.value), a.note) for a in call.arguments]},
            profile=self.counters.get(call.function),
        )

    def _stage(self, name: str, stage: Stage) -> str:
        if stage.kind == "rows":
            return self._rows(name, stage)
        (call,) = stage.calls
        return _fill(
            f"stage_{stage.kind}.c.j2",
            **vars(call) | {"cleared": self._cleared(stage)},
            name=name,
            operands=[self._operand(argument.value) for argument in call.arguments],
            most=attention.PACKED_QUERIES if call.matrix else attention.QUERIES,
            pieces=attention.PACKED_PIECES if call.matrix else attention.PIECES,
            profile=self.counters.get(call.function),
        )

    def _rows(self, name: str, stage: Stage) -> str:
        # What lanes leave out of a row-major buffer is the rows of padding.
        flat = (
            self.places[slot]
            for call in stage.calls
            if call.domain == "token"
            for slot in call.writes
            if slot[1] == "flat" and slot not in call.cleared
        )
        return _fill(
            "stage_rows.c.j2",
            name=name,
            domain=stage.domain,
            waves=[
                [
                    {"name": c.function, "quads": c.quads, "slabs": -(-c.quads // SLAB_QUADS)}
                    for c in wave
                ]
                for wave in stage.waves
            ],
            splits=_splits(stage),
            lines=self._shared_lines(stage),
            matrix=stage.matrix,
            cleared=self._cleared(stage),
            zeroed=[
                {"buffer": self._number(b), "row": b.size.batch // self.plan.tokens} for b in flat
            ],
            slab=SLAB_QUADS,
        )

    def _shared_lines(self, stage: Stage) -> int:
        """Lines of 64 bytes of 16 rows that layers of a stage make and later waves of it read."""
        made: set[Slot] = set()
        read: set[Slot] = set()
        for wave in stage.waves:
            read |= {slot for call in wave for slot in call.reads} & made
            made |= {slot for call in wave if call.quads for slot in call.writes}
        sizes = (self.places[slot].size for slot in read)
        return sum(size.token + size.item for size in sizes) // 64

    def _cleared(self, stage: Stage) -> list[dict[str, int]]:
        """Numbers in the workspace that have to be 0 before a stage."""
        places = (self.places[slot] for call in stage.calls for slot in call.cleared)
        return [{"buffer": self._number(p), "bytes": p.size.fixed} for p in places]

    def _copy(self, copy: Copy) -> dict[str, Any]:
        size = self.plan.outputs[copy.output].size
        return {
            "buffer": len(self.plan.inputs) + copy.output,
            "pointer": self._operand(copy.value),
            "bytes": f"{size.batch}LL * rt->batch" if size.batch else str(size.fixed),
        }

    def _number(self, buffer: Buffer) -> int:
        """Index of a buffer in ``rt->buf``."""
        inputs, outputs = len(self.plan.inputs), len(self.plan.outputs)
        before = {"input": 0, "output": inputs, "workspace": inputs + outputs}
        return before[buffer.region] + buffer.at

    def _operand(self, value: Operand) -> str:
        """C text of what a call passes."""
        if isinstance(value, Weights):
            return f"W({value.offset})"
        if isinstance(value, Loaded):
            load = f"*(const {value.c_type} *){self._operand(value.source)}"
            return f"1.0f / {load}" if value.reciprocal else load
        if isinstance(value, float):
            return _float_literal(value)
        if isinstance(value, int):
            return str(value)
        buffer = self.places[value]
        if buffer.region == "local":
            return f"LOCAL({buffer.at}, {buffer.size.total})"
        return f"BUF(void, {self._number(buffer)})"


def _fill(template: str, **context: Any) -> str:
    return environment().get_template(template).render(**context)


def _step(size: Size) -> str:
    """Bytes of one sequence of an input or output (0 where it has no batch extent)."""
    return f"{size.batch}LL" if size.batch else "0"


def _float_literal(number: float) -> str:
    """A float32 as C text, exact."""
    single = np.float32(number)
    if np.isnan(single):
        return "NAN"
    if np.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    mantissa, exponent = float(single).hex().split("p")
    return f"{mantissa.rstrip('0').removesuffix('.')}p{exponent}f"


__all__ = ["BucketSource", "render"]
