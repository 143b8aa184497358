"""How much memory a run needs, known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.pruning.batches import TOKENS, Batch
from sparsec.pruning.engine import TorchModel
from sparsec.pruning.least_squares import BATCH_BYTES

GIB = 2**30

#: Copies of the weights: the file's, the dense run's, the pruned run's, ONNX Runtime's or the
#: compiler's, and what is made of one of them on the way.
COPIES = 6

#: Copies of the weights with training: gradients, two moments, a good state, the teacher.  Tables
#: have all but the gradient too, of the rows that texts have: at most as much.
TRAINING_COPIES = 7

#: What Python and its libraries have.
BASE = GIB // 2

#: Values that wait, of the size of a layer's inputs, in each of the two runs.
WAITING = 3


def needed(model: TorchModel, batches: Sequence[Batch], training: bool) -> int:
    """Bytes, about."""
    weights = 4 * sum(weight.numel() for weight in model.weights.values())
    widest = max((max(layer.inputs, layer.outputs) for layer in model.layers), default=1)
    narrow = min((layer.inputs for layer in model.layers), default=1)
    tokens = sum(batch.mask.numel() for batch in batches)
    waiting = 2 * 4 * tokens * (WAITING * narrow + widest)
    moments = 8 * 2 * 4 * widest * widest
    copies = COPIES + (TRAINING_COPIES if training else 0)
    steps = 0
    if training:
        depth = max(1, len(model.layers))
        steps = 4 * 2 * TOKENS * depth * 3 * narrow
    return BASE + copies * weights + waiting + moments + 4 * BATCH_BYTES + steps


def available() -> int | None:
    """Bytes that this process may still take; None: not known."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        rows = dict(line.split(":", 1) for line in lines)
        found.append(int(rows["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def check(model: TorchModel, batches: Sequence[Batch], training: bool) -> int:
    """What a run needs, if that is there.

    Raises:
        InputError: it is not; says what to lower.
    """
    need, free = needed(model, batches, training), available()
    if free is not None and need > free:
        tokens = sum(batch.mask.numel() for batch in batches)
        raise InputError(
            f"about {need / GIB:.1f} GiB of memory are needed and {free / GIB:.1f} GiB are free: "
            f"give fewer texts ({argument('limit')}; they have {tokens} tokens) or cut them "
            f"shorter ({argument('max_length')})"
            f"{', or ' + argument('minutes', 0) if training else ''}"
        )
    return need
