"""Optimized graphs -> C files and packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import sparsec
from sparsec.compiler.codegen.bucket import BucketSource, emit_bucket
from sparsec.compiler.codegen.general import check_supported
from sparsec.compiler.ir import Graph
from sparsec.compiler.lowering import row_major_products
from sparsec.compiler.lowering.linear import Plans
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
    """

    buckets: tuple[BucketSource, ...]
    weights: bytes
    layers: tuple[dict[str, Any], ...]
    classes: Mapping[LayerClass, np.ndarray[Any, Any]]


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
    plans = Plans(target, [graph.tokens for graph in graphs], batch_size, tilings)
    inputs = [spec.name for spec in signature.inputs]
    context = {
        "model": model_name,
        "version": sparsec.__version__,
        "tensors": [_tensor(s) for s in (*signature.inputs, *signature.outputs)],
        "padding": f"SPARSEC_PADDING_{padding.upper()}",
        "mask_input": inputs.index(signature.mask_input) if signature.mask_input in inputs else -1,
    }
    buckets = tuple(emit_bucket(graph, target, pool, plans, context, profile) for graph in graphs)
    layers = buckets[-1].layers if buckets else ()
    return Emission(buckets, pool.data(), layers, plans.classes)


__all__ = ["BucketSource", "Emission", "emit_buckets"]
