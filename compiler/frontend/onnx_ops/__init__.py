"""How each ONNX op becomes core ops: one function per op, in one file per family.

Importing this package registers them all in :data:`sparsec.compiler.frontend.importer.IMPORTERS`.
"""

from sparsec.compiler.frontend.onnx_ops import (
    contrib,
    contrib_attention,
    contrib_quantized,
    conv,
    einsum,
    elementwise,
    indexing,
    layout,
    matmul,
    normalization,
    quantization,
    reduction,
    shapes,
)

__all__ = [
    "contrib",
    "contrib_attention",
    "contrib_quantized",
    "conv",
    "einsum",
    "elementwise",
    "indexing",
    "layout",
    "matmul",
    "normalization",
    "quantization",
    "reduction",
    "shapes",
]
