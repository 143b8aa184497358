"""A label, or several, for a text or a pair of texts: sentiment, topics, paraphrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sparsec.errors import InputError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import (
    Job,
    Pipeline,
    Truncate,
    best_first,
    output_named,
    softmax,
    width,
)
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text


class TextClassificationInput(BaseModel):
    """Texts, or pairs of texts."""

    model_config = ConfigDict(extra="forbid")

    sequences: str | list[str] | list[list[str]] = Field(
        validation_alias=AliasChoices("sequences", "inputs"),
        description="A text, several texts, or pairs of texts as lists of two",
    )
    truncate: Truncate = None


class TextClassificationOutput(BaseModel):
    """The best label of each text and its score; lists of them if more than one was asked for."""

    labels: list[str | list[str]] = Field(description="Labels of each text, best first")
    scores: list[float | list[float]] = Field(description="Their scores")


def _from_hub(given: Any) -> Mapping[str, Any] | None:
    """Pairs are objects there."""
    if isinstance(given, Mapping):
        return {"sequences": [_pair(given)]}
    if isinstance(given, list) and any(isinstance(one, Mapping) for one in given):
        return {"sequences": [_pair(one) if isinstance(one, Mapping) else one for one in given]}
    return None


def _pair(given: Mapping[str, Any]) -> list[Any]:
    if not {"text"} <= set(given) <= {"text", "text_pair"}:
        raise InputError(
            f"inputs: an object must have text and may have text_pair, not {', '.join(given)}"
        )
    return [given["text"], *([given["text_pair"]] if given.get("text_pair") is not None else [])]


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    assert isinstance(output, TextClassificationOutput)
    rows = []
    for labels, scores in zip(output.labels, output.scores, strict=True):
        names = [labels] if isinstance(labels, str) else labels
        numbers = scores if isinstance(scores, list) else [scores]
        rows.append(
            [{"label": name, "score": score} for name, score in zip(names, numbers, strict=True)]
        )
    return rows


# What makes scores of the model's outputs.
Function = Literal["softmax", "sigmoid", "none"]


@Pipeline.register("text-classification", task_aliases=["sentiment-analysis", "sentiment", "glue"])
class TextClassificationPipeline(Pipeline):
    """Labels of texts.

    Scores are a softmax over the labels; a sigmoid of each where config.json says
    ``multi_label_classification`` or there is one label only; the outputs as they are for
    ``regression``; unless `function_to_apply` says otherwise.

    Args:
        top_k: labels to return for each text, best first; None: all.
        return_all_scores: the same as ``top_k=None``.
        function_to_apply: ``softmax``, ``sigmoid``, or ``none``: the outputs as they are.

    Raises:
        InputError: `top_k` is below 1.
    """

    input_schema = TextClassificationInput
    output_schema = TextClassificationOutput
    hub = HubForm(
        names=("sentiment-analysis",),
        parameters={"top_k": "top_k", "function_to_apply": "function_to_apply"},
        defaults={"top_k": None},
        fields=_from_hub,
        rows=_as_hub,
        nested=True,
    )

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        top_k: int | None = 1,
        return_all_scores: bool = False,
        function_to_apply: Function | None = None,
    ) -> None:
        super().__init__(model, text, runner)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, not {top_k}")
        self.top_k = None if return_all_scores else top_k
        self.function_to_apply = function_to_apply or self._function()
        self._output = output_named(runner, "logits", rank=2)
        self.reads = (self._output,)
        self._labels: list[str] | None = None
        if (count := width(runner, self._output, 2)) is not None:
            self._labels = model.labels(count)

    def prepare(self, inputs: BaseModel) -> Job:
        assert isinstance(inputs, TextClassificationInput)
        given = inputs.sequences
        job = Job(truncate=self.may_cut(inputs))
        tokens: dict[str, NDArray[np.int64]] = {}
        texts: Sequence[str | list[str]] = [given] if isinstance(given, str) else given
        alone = [text for text in texts if isinstance(text, str)]
        if len(alone) == len(texts):
            self.sequences(job, alone, "sequences")
            return job
        for i, text in enumerate(texts):
            parts = [text] if isinstance(text, str) else text
            where = f"sequences.{i}"
            if len(parts) not in (1, 2):
                raise InputError(
                    f"{where}: a text or a pair of texts is needed, not {len(parts)} texts"
                )
            if len(parts) == 1:
                encoding = self.fit(job, self.text.encode(parts[0]), where)
                job.items.append(self.text.features(encoding))
                continue
            # One text is often in many pairs.
            for part in parts:
                if part not in tokens:
                    tokens[part] = self.text.ids(part)
            one, two = (tokens[part] for part in parts)
            job.items.append(self.pair(job, one, two, where))
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> TextClassificationOutput:
        labels: list[str | list[str]] = []
        scores: list[float | list[float]] = []
        for output in outputs:
            values = self._scores(output[self._output])
            if self._labels is None:
                self._labels = self.model.labels(len(values))
            order = best_first(values)[: self.top_k]
            names, numbers = [self._labels[i] for i in order], [float(values[i]) for i in order]
            if self.top_k == 1:
                labels.append(names[0])
                scores.append(numbers[0])
            else:
                labels.append(names)
                scores.append(numbers)
        return TextClassificationOutput(labels=labels, scores=scores)

    def _function(self) -> Function | None:
        """What config.json says of the scores; None: it depends on the number of labels."""
        problem = self.model.config.get("problem_type")
        if problem == "regression":
            return "none"
        return "sigmoid" if problem == "multi_label_classification" else None

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        x = np.asarray(logits, np.float64)
        function = self.function_to_apply or ("sigmoid" if len(x) == 1 else "softmax")
        if function == "none":
            return x
        if function == "sigmoid":
            with np.errstate(invalid="ignore"):
                each: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -x))
            return each
        return softmax(x)
