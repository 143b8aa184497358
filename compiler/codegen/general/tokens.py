"""What the caller says of the sequences."""

from __future__ import annotations

from sparsec.compiler.codegen.general.extents import ONE, extents, product
from sparsec.compiler.codegen.general.render import Call


def emit_lengths(call: Call) -> str:
    """How many tokens of each sequence are real."""
    return call.render("lengths", rows=product(extents(call.outputs[0].shape)), work=ONE)
