"""Two models compared: how much they agree, how good and how fast each is.

`texts` reads what they are compared on, `models` finds and runs them, a file per task says how
their answers are compared (`task` has what they share, `tasks` the list), `timing` measures,
`result` is what comes out, made of `parts`; `page` and `plots` show it.
"""

from __future__ import annotations

try:
    import pydantic  # noqa: F401
    import tokenizers  # noqa: F401
except ModuleNotFoundError as missing:
    from sparsec.errors import InputError

    raise InputError(
        f"evaluation needs {missing.name}, which is not installed: pip install 'sparsec[evaluate]'"
    ) from None

# isort: split
from sparsec.pruning.evaluation.parts import (
    Bars,
    Example,
    Histogram,
    Latency,
    Matrix,
    Model,
    Scatter,
    Texts,
)
from sparsec.pruning.evaluation.result import Evaluation
from sparsec.pruning.evaluation.run import evaluate

__all__ = [
    "Bars",
    "Evaluation",
    "Example",
    "Histogram",
    "Latency",
    "Matrix",
    "Model",
    "Scatter",
    "Texts",
    "evaluate",
]
