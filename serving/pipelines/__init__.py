"""Tasks: text in, typed predictions out.  One file a task; importing this registers them all."""

from __future__ import annotations

from sparsec.errors import InputError

try:
    import pydantic  # noqa: F401
    import tokenizers  # noqa: F401
except ModuleNotFoundError as missing:
    raise InputError(
        f"pipelines need {missing.name}, which is not installed: pip install 'sparsec[text]'"
    ) from None

from sparsec.serving.pipelines.base import Features, Job, Outputs, Pipeline, Runner, tasks

__all__ = [
    "Features",
    "Job",
    "Outputs",
    "Pipeline",
    "Runner",
    "tasks",
]
