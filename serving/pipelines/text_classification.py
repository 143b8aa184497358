"""A label, or several, for a text or a pair of texts: sentiment, topics, paraphrases."""

from __future__ import annotations

from collections.abc import Sequence

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


@Pipeline.register("text-classification", task_aliases=["sentiment-analysis", "sentiment", "glue"])
class TextClassificationPipeline(Pipeline):
    """Labels of texts.

    Scores are a softmax over the labels; a sigmoid of each where config.json says
    ``multi_label_classification`` or there is one label only; the outputs as they are for
    ``regression``.

    Args:
        top_k: labels to return for each text, best first; None: all.
        return_all_scores: the same as ``top_k=None``.

    Raises:
        InputError: `top_k` is below 1.
    """

    input_schema = TextClassificationInput
    output_schema = TextClassificationOutput

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        top_k: int | None = 1,
        return_all_scores: bool = False,
    ) -> None:
        super().__init__(model, text, runner)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, not {top_k}")
        self.top_k = None if return_all_scores else top_k
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

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        problem = self.model.config.get("problem_type")
        x = np.asarray(logits, np.float64)
        if problem == "regression":
            return x
        if problem == "multi_label_classification" or len(x) == 1:
            with np.errstate(invalid="ignore"):
                each: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -x))
            return each
        return softmax(x)
