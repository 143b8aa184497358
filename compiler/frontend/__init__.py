"""ONNX in, core IR out.

:func:`load_model` reads and checks a file, :func:`signature` says what it takes and gives, and
:func:`import_graph` makes the core IR for one sequence length:

    load -> import (one function per ONNX op; shapes and constants fold) -> dialects (canonical
    quantized and float linear layers)
"""

from __future__ import annotations

try:
    import onnx  # noqa: F401
except ModuleNotFoundError:
    from sparsec.errors import InputError

    raise InputError(
        "ONNX models need onnx, which is not installed: pip install 'sparsec[compile]' (compiled "
        "models run without it)"
    ) from None

# isort: split
from contextlib import suppress

from sparsec.compiler.frontend import onnx_ops
from sparsec.compiler.frontend.dialects import canonicalize, dialect_name
from sparsec.compiler.frontend.load import Model, load_model
from sparsec.compiler.frontend.signature import (
    Signature,
    TensorSpec,
    declared,
    import_raw,
    longest_length,
    signature,
)
from sparsec.compiler.ir import Graph
from sparsec.errors import UnsupportedError

__all__ = [
    "Model",
    "Signature",
    "TensorSpec",
    "canonicalize",
    "declared",
    "dialect_name",
    "import_graph",
    "import_raw",
    "load_model",
    "longest_length",
    "onnx_ops",
    "shorter_graphs",
    "signature",
]


def import_graph(model: Model, length: int) -> Graph:
    """The core IR of a model, specialized to one sequence length, in canonical form.

    Args:
        length: the bucket's length; 0 for a model without a sequence axis.

    Raises:
        InputError: the length is not one a sequence can have.
        ModelError: the graph is damaged.
        UnsupportedError: listing every node that cannot be imported, and which lengths would work.
    """
    return canonicalize(import_raw(model, length))


def shorter_graphs(model: Model, signature: Signature, length: int) -> list[Graph]:
    """The model at half a sequence length and at one token less; [] where it takes no other."""
    if signature.fixed_length is not None:
        return []
    graphs = []
    for shorter in dict.fromkeys((length // 2, length - 1)):
        if shorter > 0:
            with suppress(UnsupportedError):
                graphs.append(import_graph(model, shorter))
    return graphs
