"""torch.onnx: both exporters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.zoo.architectures import Architecture


@dataclass(frozen=True)
class Exporter:
    """How a network becomes ONNX.

    Attributes:
        name: the column's name.
        dynamo: the newer exporter, on torch.export.
        opset: the ONNX opset.
        attention: transformers' implementation of attention, ``eager`` or ``sdpa``.
        fixed: batch size and number of tokens of an export without dynamic axes.
    """

    name: str
    dynamo: bool
    opset: int
    attention: str
    fixed: tuple[int, int] | None = None


EXPORTERS: tuple[Exporter, ...] = (
    Exporter("ts11-eager", False, 11, "eager"),
    Exporter("ts14-eager", False, 14, "eager"),
    Exporter("ts14-sdpa", False, 14, "sdpa"),
    Exporter("ts17-sdpa", False, 17, "sdpa"),
    Exporter("ts14-eager-fixed", False, 14, "eager", (1, 16)),
    Exporter("dynamo18-eager", True, 18, "eager"),
    Exporter("dynamo18-sdpa", True, 18, "sdpa"),
    Exporter("dynamo20-sdpa", True, 20, "sdpa"),
    Exporter("dynamo23-sdpa", True, 23, "sdpa"),
    Exporter("dynamo20-sdpa-fixed", True, 20, "sdpa", (3, 16)),
)

BY_NAME = {e.name: e for e in EXPORTERS}


def export(architecture: Architecture, exporter: Exporter, path: Path) -> Path:
    """Write the architecture's network to `path`."""
    import torch

    network = architecture.build(exporter.attention)
    feed = architecture.feed(*(exporter.fixed or (2, 12)))
    args = tuple(torch.from_numpy(v) for v in feed.values())
    with torch.no_grad():
        count = len(network(*args))
    outputs = [f"output_{i}" for i in range(count)]
    names = architecture.inputs
    fixed = exporter.fixed is not None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        how: dict[str, Any]
        if exporter.dynamo:
            batch = torch.export.Dim("batch")
            sequence = torch.export.Dim("sequence", max=512)
            axes = {0: batch} if architecture.image else {0: batch, 1: sequence}
            shapes = None if fixed else {"given": tuple(axes for _ in names)}
            how = {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
        else:
            axes_ts = {0: "batch"} if architecture.image else {0: "batch", 1: "sequence"}
            dynamic = dict.fromkeys(names, axes_ts) | {o: {0: "batch"} for o in outputs}
            how = {"dynamic_axes": None if fixed else dynamic}
        torch.onnx.export(
            network,
            args,
            str(path),
            input_names=names,
            output_names=outputs,
            opset_version=exporter.opset,
            dynamo=exporter.dynamo,
            **how,
        )
    return path
