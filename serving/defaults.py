"""Tasks without a model: the small models of the package sparsec-models; and models without a task:
what a model's files say that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsec import sentence_files
from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.serving.models import ModelFiles

DEFAULT = "default"
"""What stands for a task's own model, beside None; DeepSparse's word."""

# Task -> folder of the package.
MODELS = {
    "fill-mask": "fill_mask",
    "question-answering": "qa",
    "rerank": "rerank",
    "sentence-embedding": "embedding",
    "sparse-embedding": "fill_mask",
    "text-classification": "sentiment",
    "token-classification": "ner",
    "transformers_embedding_extraction": "embedding",
    "zero-shot-text-classification": "nli",
}

# How the architecture of config.json ends, and the task of such models.
_HEADS = {
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
}


def default_model(task: str) -> Path:
    """The folder of the model that a task has by default.

    Args:
        task: its name, no alias.

    Raises:
        InputError: it has none, or the package with the models is not installed.
    """
    if task not in MODELS:
        raise InputError(
            f"{task} has no default model, which {', '.join(MODELS)} have: give one "
            f"({argument('model_path')}), such as a folder with model.onnx, or hf:org/name"
        )
    try:
        import sparsec_models
    except ImportError:
        raise InputError(
            f"{task} needs a model: give one ({argument('model_path')}), or get small ones for "
            f"trying by pip install 'sparsec[models]', in a clone by pip install ./examples/models"
        ) from None
    folder = Path(sparsec_models.FOLDER) / MODELS[task]
    if not (folder / "model.onnx").is_file():
        raise InputError(
            f"sparsec-models is installed without {folder / 'model.onnx'}: it was built where the "
            f"models are not, which come with a clone only; install it from one"
        )
    return folder


def guess_task(files: ModelFiles) -> tuple[str, str]:
    """The task that a model is for, and what says so.

    Files of sentence-transformers decide, then the architecture in ``config.json``, then the names
    and shapes of the model's outputs.

    Raises:
        InputError: nothing says it.
        ModelError: a file is damaged.
    """
    task, why = _of_modules(files)
    if not task:
        task, why = _of_architecture(files.config)
    if not task:
        task, why = _of_outputs(_outputs(files), files.vocabulary)
    if not task:
        raise InputError(
            f"nothing in the files of {files.path} says what it is for: no modules.json, no known "
            f"architecture in config.json, and outputs that may be anything: name the task "
            f"({argument('task')})"
        )
    return task, why


def _of_modules(files: ModelFiles) -> tuple[str, str]:
    folder = files.sentence_folder
    kinds = {module.kind for module in sentence_files.modules(folder)} if folder else set()
    if "SpladePooling" in kinds:
        return "sparse-embedding", "modules.json has SpladePooling"
    if kinds:
        return "sentence-embedding", "it has the modules.json of sentence-transformers"
    return "", ""


def _of_architecture(config: Mapping[str, Any]) -> tuple[str, str]:
    names = config.get("architectures")
    head = str(names[0]) if isinstance(names, list) and names else ""
    for end, task in _HEADS.items():
        if head.endswith(end):
            return task, f"config.json says {head}"
    if head.endswith("ForSequenceClassification"):
        task, why = _of_labels(config)
        return task, f"config.json says {head}{why}"
    if head.endswith("Model"):
        return "sentence-embedding", f"config.json says {head}, which has no head"
    return "", ""


def _of_labels(config: Mapping[str, Any]) -> tuple[str, str]:
    """Which task a model is for that gives scores for a text or a pair of texts."""
    table = config.get("id2label")
    labels = [str(label).lower() for label in table.values()] if isinstance(table, dict) else []
    count = len(labels) or config.get("num_labels")
    if any(label.startswith("entail") for label in labels):
        return "zero-shot-text-classification", " and labels of entailment"
    if count == 1:
        return "rerank", " with one output"
    return "text-classification", ""


def _outputs(files: ModelFiles) -> dict[str, Sequence[int | str]]:
    """Name and shape of each output."""
    if files.is_artifact:
        from sparsec.runtime import Artifact

        return {spec.name: spec.shape for spec in Artifact.load(files.path, verify=False).outputs}
    from sparsec.compiler import frontend

    signature = frontend.signature(frontend.load_model(files.onnx))
    return {spec.name: spec.shape for spec in signature.outputs}


def _of_outputs(
    outputs: Mapping[str, Sequence[int | str]], vocabulary: int | None
) -> tuple[str, str]:
    names = {name.lower(): shape for name, shape in outputs.items()}
    if any("start" in name for name in names) and any("end" in name for name in names):
        return "question-answering", "it gives where answers start and end"
    for name in ("sentence_embedding", "sentence_embeddings", "last_hidden_state"):
        if name in names:
            return "sentence-embedding", f"its output is {name}"
    shape = names.get("logits", ())
    if len(shape) == 2:
        return "text-classification", "it gives scores for a text"
    if len(shape) == 3 and vocabulary is not None and shape[-1] == vocabulary:
        return "fill-mask", "it gives a score for each token of the vocabulary"
    if len(shape) == 3:
        return "token-classification", "it gives scores for each token"
    return "", ""
