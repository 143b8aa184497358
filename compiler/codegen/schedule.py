"""When calls run: stages, with a wait of all threads after each, and waves within a stage."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.compiler.codegen.plan import Call, Slot, Stage
from sparsec.compiler.ir import Graph
from sparsec.compiler.lowering.batch import separable
from sparsec.targets import Target

#: Rows that are computed at a time where the batch can be cut: few enough to keep activations in
#: the caches.  With many threads it is more, so that each has TALL blocks.
CHUNK_ROWS = 512

#: Blocks of rows that a thread takes through a stage at a time: what they leave behind from kernel
#: to kernel should stay in the second-level cache.  Products of tiles are so fast that weights
#: should meet more of them.
TALL = 4


def stages(calls: Sequence[Call]) -> tuple[Stage, ...]:
    """The calls in stages: neighbours that take the same rows one by one share one."""
    runs: list[list[Call]] = []
    for call in calls:
        last = runs[-1][-1] if runs else None
        if last is not None and call.kind == last.kind == "rows" and call.domain == last.domain:
            runs[-1].append(call)
        else:
            runs.append([call])
    return tuple(Stage(run[0].kind, waves(run)) for run in runs)


def waves(calls: Sequence[Call]) -> tuple[tuple[Call, ...], ...]:
    """The calls in runs of layers that do not need each other's results."""
    found: list[list[Call]] = []
    made: set[Slot] = set()  # by the layers of the last run
    for call in calls:
        layer = call.quads > 0
        if layer and made and not made & {*call.reads, *call.writes}:
            found[-1].append(call)
        else:
            found.append([call])
            made = set()
        made = made | {*call.writes} if layer else set()
    return tuple(map(tuple, found))


def tall(target: Target) -> int:
    """Blocks of rows that a thread takes through a stage at a time."""
    return TALL if target.matrix is None else max(TALL, target.matrix.sweep)


def chunk(graph: Graph) -> int:
    """Sequences to compute at a time; 0 where a batch cannot be cut."""
    return max(1, CHUNK_ROWS // max(graph.tokens, 1)) if separable(graph) else 0
