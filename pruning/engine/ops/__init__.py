"""The table of torch forms: for every core op of the compiler, what torch computes for it.

A family of ops is one file in this folder, as in ``compiler/ops``; each ends in rows
(:class:`~sparsec.pruning.engine.ops.form.Form`).  The meaning of an op is its numpy reference; its
form gives the same.
"""

from __future__ import annotations

from sparsec.pruning.engine.ops import contraction, elementwise, layout, reduction
from sparsec.pruning.engine.ops.form import Form, tensor_of, torch_dtype

__all__ = ["FORMS", "Form", "tensor_of", "torch_dtype"]

FORMS: dict[str, Form] = {
    row.name: row for family in (elementwise, layout, reduction, contraction) for row in family.ROWS
}
