"""The core IR in PyTorch: any model that the front end reads, run and differentiated.

`ops` is the table of torch forms, `graph` runs a graph with it, `opened` makes weights inputs of
the graph, `model` is a whole model for sequences of any length.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    from sparsec.errors import InputError

    raise InputError(
        "sparsify needs PyTorch, which is not installed: pip install 'sparsec[sparsify]'"
    ) from None

# isort: split
from sparsec.pruning.engine.graph import TorchGraph, Walk
from sparsec.pruning.engine.model import Outcome, TorchModel

__all__ = ["Outcome", "TorchGraph", "TorchModel", "Walk"]
