"""Ahead-of-time compiler and runtime for pruned and quantized transformers on CPUs.

>>> import sparsec
>>> artifact = sparsec.compile("model.onnx", buckets=[16, 128])     # doctest: +SKIP
>>> engine = sparsec.Engine(artifact.path, num_cores=2)             # doctest: +SKIP
>>> outputs = engine.run([input_ids, attention_mask])               # doctest: +SKIP

Importing this is quick: what a name stands for is loaded when it is first used.
"""

from __future__ import annotations

from sparsec import _start  # noqa: F401  it decides where the rest comes from

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

from sparsec.errors import (
    ArtifactError,
    EngineClosedError,
    HardwareError,
    InputError,
    ModelError,
    NonFiniteError,
    SparsecError,
    ToolchainError,
    TooLongError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from sparsec.compiler import compile
    from sparsec.facade import Engine, generate_random_inputs
    from sparsec.pruning.evaluation import Evaluation, evaluate
    from sparsec.pruning.outcome import Sparsified
    from sparsec.pruning.run import sparsify
    from sparsec.runtime import Artifact
    from sparsec.serving.bulk import RunSummary, run
    from sparsec.serving.encoders import CrossEncoder, SentenceTransformer
    from sparsec.serving.pipelines import Pipeline
    from sparsec.session import InferenceSession

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "CrossEncoder",
    "Engine",
    "EngineClosedError",
    "Evaluation",
    "HardwareError",
    "InferenceSession",
    "InputError",
    "ModelError",
    "NonFiniteError",
    "Pipeline",
    "RunSummary",
    "SentenceTransformer",
    "SparsecError",
    "Sparsified",
    "TooLongError",
    "ToolchainError",
    "UnsupportedError",
    "__version__",
    "compile",
    "evaluate",
    "generate_random_inputs",
    "run",
    "sparsify",
]

_LAZY = {
    "Artifact": "sparsec.runtime",
    "CrossEncoder": "sparsec.serving.encoders",
    "Engine": "sparsec.facade",
    "Evaluation": "sparsec.pruning.evaluation",
    "InferenceSession": "sparsec.session",
    "Pipeline": "sparsec.serving.pipelines",
    "RunSummary": "sparsec.serving.bulk",
    "SentenceTransformer": "sparsec.serving.encoders",
    "Sparsified": "sparsec.pruning.outcome",
    "compile": "sparsec.compiler",
    "evaluate": "sparsec.pruning.evaluation",
    "generate_random_inputs": "sparsec.facade",
    "run": "sparsec.serving.bulk",
    "sparsify": "sparsec.pruning.run",
}


# Modules that are loaded when they are first used.
_MODULES = ("ray",)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sparsec.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'sparsec' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
