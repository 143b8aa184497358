"""The tasks, and which of them a model is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.pruning.evaluation.answers import QuestionAnswering
from sparsec.pruning.evaluation.classification import Classification, MultiLabel, Regression
from sparsec.pruning.evaluation.embeddings import Embeddings
from sparsec.pruning.evaluation.masks import FillMask
from sparsec.pruning.evaluation.models import Found
from sparsec.pruning.evaluation.raw import Raw
from sparsec.pruning.evaluation.task import Metric, Task
from sparsec.pruning.evaluation.tokens import Tokens

TASKS: tuple[type[Task[Any, Any]], ...] = (
    Embeddings, Classification, MultiLabel, Regression, Tokens, QuestionAnswering, FillMask, Raw,
)  # fmt: skip

NAMES = tuple(kind.name for kind in TASKS)

ALIASES = {
    "embedding": Embeddings.name,
    "embedding-extraction": Embeddings.name,
    "transformers-embedding-extraction": Embeddings.name,
    "sentence-embedding": Embeddings.name,
    "sentence-similarity": Embeddings.name,
    "feature-extraction": Embeddings.name,
    "classification": Classification.name,
    "sentiment": Classification.name,
    "sentiment-analysis": Classification.name,
    "glue": Classification.name,
    "nli": Classification.name,
    "zero-shot": Classification.name,
    "zero-shot-classification": Classification.name,
    "zero-shot-text-classification": Classification.name,
    "multi-label": MultiLabel.name,
    "ner": Tokens.name,
    "pos": Tokens.name,
    "qa": QuestionAnswering.name,
    "masked-language-modeling": FillMask.name,
    "raw": Raw.name,
}
"""Other names, those of the pipelines among them."""

_HEADS = {
    "ForTokenClassification": Tokens.name,
    "ForQuestionAnswering": QuestionAnswering.name,
    "ForMaskedLM": FillMask.name,
    "ForPreTraining": FillMask.name,
}
"""How the architecture of config.json ends."""

_EMBEDDINGS = frozenset([
    "embeddings", "hidden_states", "last_hidden_state", "pooler_output", "sentence_embedding",
    "sentence_embeddings", "token_embeddings",
])  # fmt: skip


def metric(task: str, name: str) -> Metric:
    """A task's metric; that of one output (``cosine_mean[logits]``) is called by its name.

    Raises:
        StopIteration: it has none of that name.
    """
    kind = next(kind for kind in TASKS if kind.name == task)
    base = name.partition("[")[0]
    found = next(table[base] for table in (kind.agreement, kind.scores) if base in table)
    return found if base == name else replace(found, title=name)


def named(task: str) -> str:
    """The name of a task that is given by any of its names.

    Raises:
        InputError: there is none.
    """
    key = task.strip().lower().replace("_", "-")
    name = ALIASES.get(key, key)
    if name not in NAMES:
        raise InputError(f"unknown task {task!r}; there are {', '.join(NAMES)}")
    return name


def of_model(found: Found) -> str:
    """The task that a model is for, judged by its config.json, else by its outputs."""
    config = found.files.config
    architectures = config.get("architectures")
    head = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    for end, name in _HEADS.items():
        if head.endswith(end):
            return name
    if head.endswith("ForSequenceClassification"):
        return _of_sequences(found)
    names = [name.lower() for name in found.outputs]
    if any("start" in name for name in names) and any("end" in name for name in names):
        return QuestionAnswering.name
    if _EMBEDDINGS & set(names):
        return Embeddings.name
    shapes = [shape for name, shape in found.outputs.items() if "logits" in name.lower()]
    if len(shapes) != 1:
        return Raw.name
    if len(shapes[0]) == 2:
        return _of_sequences(found)
    if len(shapes[0]) == 3:
        large = shapes[0][-1] == found.files.vocabulary
        return FillMask.name if large else Tokens.name
    return Raw.name


def _of_sequences(found: Found) -> str:
    """Which kind of classification it is."""
    problem = found.files.config.get("problem_type")
    widths = {shape[-1] for shape in found.outputs.values() if len(shape) == 2}
    if problem == "regression" or widths == {1}:
        return Regression.name
    return MultiLabel.name if problem == "multi_label_classification" else Classification.name


def make(name: str, pooling: str | None, seed: int) -> Task[Any, Any]:
    """A task.

    Raises:
        InputError: an option is not one for it, or has a wrong value.
    """
    if pooling is not None and name != Embeddings.name:
        raise InputError(f"{argument('pooling')} is for {Embeddings.name}; this is {name}")
    if pooling not in (None, "mean", "cls", "max"):
        raise InputError(f"{argument('pooling')} must be mean, cls or max, not {pooling!r}")
    options: dict[str, Callable[[], Task[Any, Any]]] = {
        Embeddings.name: lambda: Embeddings(pooling, seed),
        FillMask.name: lambda: FillMask(seed),
    }
    kinds: dict[str, Callable[[], Task[Any, Any]]] = {kind.name: kind for kind in TASKS}
    return {**kinds, **options}[name]()


def check_metric(name: str) -> None:
    """Whether a figure may be asked for: better known before the work than after it.

    Raises:
        InputError: no task has it.
    """
    base = name.partition("[")[0].removesuffix("_kept")
    known = [n for kind in TASKS for table in (kind.agreement, kind.scores) for n in table]
    if base not in ("speedup", *known):
        raise InputError(
            f"there is no metric {name!r}; there are {', '.join(dict.fromkeys(known))}, speedup, "
            f"and a score's name with _kept"
        )
