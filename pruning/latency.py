"""What a layer takes, by the compiler's cost model: before it is compiled, for any target."""

from __future__ import annotations

from sparsec.compiler.lowering.tiling import LayerClass, blocks_of, by_model, estimate
from sparsec.targets import Target


def layer_milliseconds(
    n: int,
    k: int,
    density: float,
    target: Target,
    length: int,
    *,
    batch_size: int = 1,
    kind: str = "i8",
    panels: bool = False,
) -> float:
    """What a linear layer takes on one core, with the tiling that the compiler would choose.

    Args:
        n, k: output and input channels.
        density: share of 4-blocks that are not zero.
        length: tokens of a sequence.
        batch_size: sequences at once.
        kind: "i8" or "f32".
        panels: whether its result is bytes for another layer.
    """
    layer = LayerClass.of(kind, n, k, density, panels)
    blocks = blocks_of([length], batch_size)
    tiling = by_model(layer, target, blocks)[layer, length]
    exact = LayerClass(kind, n, k, density, panels)
    return estimate(exact, tiling, blocks[length], target) * 1e-6
