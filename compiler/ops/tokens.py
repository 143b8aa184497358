"""What is known of the sequences at run time only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import BATCH, Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]


def _infer_lengths(attrs: Attrs, x: Value) -> list[tuple[Any, Shape]]:
    if x.shape[:1] != (BATCH,):
        raise ValueError(f"lengths of {x}, which does not begin with the batch")
    return [(np.int32, (BATCH,))]


def _lengths(attrs: Attrs, x: np.ndarray) -> tuple[np.ndarray]:
    given = attrs["_lengths"]
    if given is None:
        given = [int(attrs["length"])] * len(x)
    return (np.asarray(given, np.int32),)


ROWS = [
    # How many tokens of each sequence of x are real; `length`, the bucket's, where nobody says.
    Op("lengths", _infer_lengths, _lengths, flow.tokens),
]
