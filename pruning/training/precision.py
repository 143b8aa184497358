"""How exactly a training multiplies: in bfloat16 where the processor has units for that.

Only the products of a step, forward and backward, and those of the dense model whose answers are
learnt.  Parameters, gradients, moments and all that is no product stay float32, and so does what is
solved for (second moments, least squares) or measured (agreement): that is computed outside of
:func:`products`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def products(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What makes a context whose products are in bfloat16, if that is faster on a device.

    On a CPU it is with AMX, whose tiles take eight times as many of them as vectors take floats;
    the same machine decides the same each time.
    """
    if device.type == "cuda":
        wanted = torch.cuda.is_bf16_supported()
    else:
        wanted = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=wanted)
