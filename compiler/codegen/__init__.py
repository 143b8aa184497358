"""Optimized graphs -> C files and packed weights.

A bucket goes through the files of this folder in order: :mod:`kernels` (what its steps need becomes
calls of kernels), :mod:`schedule` (when they run), :mod:`buffers` (where values are), :mod:`plan`
(all of it, printed and checked), :mod:`bucket` (C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import sparsec
from sparsec.compiler.codegen import buffers, kernels, schedule
from sparsec.compiler.codegen.bucket import BucketSource, render
from sparsec.compiler.codegen.plan import Copy, Plan, Port
from sparsec.compiler.codegen.table import check_supported
from sparsec.compiler.ir import Graph
from sparsec.compiler.lowering import lanes, row_major_products
from sparsec.compiler.lowering.linear import Plans, weight_bytes
from sparsec.compiler.lowering.pool import WeightPool
from sparsec.compiler.lowering.tiling import LayerClass, Tilings
from sparsec.interface import ELEMENTS
from sparsec.targets import Target

if TYPE_CHECKING:
    from sparsec.compiler.frontend import Signature, TensorSpec

_DIMS = {"batch": "SPARSEC_DIM_BATCH", "sequence": "SPARSEC_DIM_SEQUENCE"}


@dataclass(frozen=True)
class Emission:
    """C sources of all buckets and the constants they share.

    Attributes:
        buckets: one per graph, in order.
        weights: the bytes behind ``SPARSEC_WEIGHTS``; may be empty.
        layers: one row per linear layer (those of the last bucket).
        classes: weights of a layer of each class.
        parts: where constants begin in `weights`, ascending.
    """

    buckets: tuple[BucketSource, ...]
    weights: bytes
    layers: tuple[dict[str, Any], ...]
    classes: Mapping[LayerClass, np.ndarray[Any, Any]]
    parts: tuple[int, ...] = ()


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [_DIMS.get(d, d) if isinstance(d, str) else d for d in spec.shape]
    return {
        "name": spec.name,
        "dtype": ELEMENTS[str(spec.dtype)].constant,
        "rank": len(dims),
        "dims": dims or ["0"],
    }


def emit_buckets(
    graphs: Sequence[Graph],
    signature: Signature,
    target: Target,
    model_name: str,
    batch_size: int = 1,
    profile: bool = False,
    tilings: Tilings | None = None,
    padding: str = "masked",
) -> Emission:
    """Lower and render every bucket.

    Args:
        graphs: one optimized graph per bucket.
        signature: names and types of the model's inputs and outputs.
        target: the ISA to emit for.
        model_name: for comments and ``sparsec_info``.
        batch_size: sequences that are expected to run at once.
        profile: count the time of every kernel call.
        tilings: how to cut the layers, where that was measured.
        padding: what padding does to the results, a kind of :data:`~sparsec.interface.PADDING`.

    Raises:
        UnsupportedError: listing every node that has no kernel.
    """
    for graph in graphs:
        check_supported(graph)
    graphs = [row_major_products(graph) for graph in graphs]
    pool = WeightPool()
    kept = target.matrix.kept if target.matrix else 0
    cold = any(weight_bytes(graph) > kept for graph in graphs)
    plans = Plans(target, [graph.tokens for graph in graphs], batch_size, tilings, cold)
    inputs = [spec.name for spec in signature.inputs]
    context = {
        "model": model_name,
        "version": sparsec.__version__,
        "tensors": [_tensor(s) for s in (*signature.inputs, *signature.outputs)],
        "padding": f"SPARSEC_PADDING_{padding.upper()}",
        "mask_input": inputs.index(signature.mask_input) if signature.mask_input in inputs else -1,
    }
    takes_lengths = padding != "exact"
    buckets = []
    for graph in graphs:
        plan = plan_bucket(graph, target, pool, plans, takes_lengths)
        buckets.append(render(plan, target, {**context, "weights": pool.size > 0}, profile))
    layers = buckets[-1].layers if buckets else ()
    return Emission(tuple(buckets), pool.data(), layers, plans.classes, pool.offsets())


def plan_bucket(
    graph: Graph, target: Target, pool: WeightPool, layers: Plans, takes_lengths: bool = True
) -> Plan:
    """What the code of one bucket does: its kernels, then when they run, then where values are.

    Args:
        graph: optimized, specialized to the bucket.
        target: the ISA to emit for.
        pool: where constants are collected.
        layers: packed linear layers, shared by the buckets.
        takes_lengths: results stay the same where padding is left out.
    """
    choice = lanes.choose(graph)
    setting = kernels.Setting(graph, choice, target, pool, layers)
    made = kernels.make(setting)
    stages = schedule.stages(made.calls)
    ends = buffers.ends(graph, choice)
    memory = buffers.allocate(stages, ends, buffers.sizes(stages, ends, graph, choice))
    copies = tuple(Copy(kernels.operand(slot, setting), i) for slot, i in ends.copied)
    token_rows = any(call.domain == "token" for call in made.calls)
    counts = any(node.op == "lengths" for node in graph.nodes)
    plan = Plan(
        length=graph.length,
        tokens=graph.tokens,
        inputs=_ports(graph.inputs, graph.inputs, graph),
        outputs=_ports(graph.output_names or graph.outputs, graph.outputs, graph),
        kernels=made.texts,
        stages=stages,
        memory=memory,
        copies=copies,
        sites=made.sites,
        chunk=schedule.chunk(graph),
        tall=schedule.tall(target),
        skips=takes_lengths and graph.length > 0 and (token_rows or counts),
    )
    plan.verify()
    return plan


def _ports(names: Sequence[str], values: Sequence[str], graph: Graph) -> tuple[Port, ...]:
    """Inputs or outputs: what the model calls them, and how large they are."""
    pairs = zip(names, values, strict=True)
    return tuple(Port(name, buffers.flat_size(value, graph)) for name, value in pairs)


__all__ = ["BucketSource", "Emission", "emit_buckets", "plan_bucket"]
