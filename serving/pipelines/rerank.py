"""Documents in the order of how well they answer a query, by a cross encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sparsec.errors import InputError, ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import (
    Job,
    Pipeline,
    Truncate,
    best_first,
    output_named,
    width,
)
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text


class RerankInput(BaseModel):
    """A query, and texts that may answer it."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(description="What is looked for")
    documents: list[str] = Field(min_length=1, description="Texts to put in order")
    top_k: int | None = Field(
        default=None, ge=1, description="How many to return; by default as the pipeline says"
    )
    raw_scores: bool = Field(
        default=False, description="The model's outputs as they are, instead of 0 to 1"
    )
    truncate: Truncate = None


class RankedDocument(BaseModel):
    """A document and its score."""

    index: int = Field(description="Its place among the documents that were given, from 0")
    score: float = Field(description="From 0 to 1; the model's output if raw_scores asked for it")


class RerankOutput(BaseModel):
    """Documents, the best first."""

    ranking: list[RankedDocument] = Field(description="The best documents, best first")


@dataclass
class RerankJob(Job):
    """How many documents to return, and whether scores are the model's outputs."""

    top_k: int | None = None
    raw_scores: bool = False


def _from_hub(given: Any) -> Mapping[str, Any] | None:
    if not isinstance(given, Mapping):
        return None
    return {"documents" if name == "texts" else name: value for name, value in given.items()}


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    assert isinstance(output, RerankOutput)
    return [[row.model_dump() for row in output.ranking]]


@Pipeline.register("rerank", task_aliases=["reranking", "text-ranking"])
class RerankPipeline(Pipeline):
    """Documents in order, by a model with one output for a pair of texts.

    A score is the sigmoid of the model's output.

    Args:
        top_k: documents to return where a call says nothing; None: all.

    Raises:
        InputError: `top_k` is below 1.
        ModelError: the model has several labels.
    """

    input_schema = RerankInput
    output_schema = RerankOutput
    hub = HubForm(
        parameters={"top_k": "top_k", "raw_scores": "raw_scores"},
        fields=_from_hub,
        rows=_as_hub,
        alone=True,
    )

    def __init__(
        self, model: ModelFiles, text: Text, runner: Runner, *, top_k: int | None = None
    ) -> None:
        super().__init__(model, text, runner)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, not {top_k}")
        self.top_k = top_k
        self._output = output_named(runner, "logits", rank=2)
        self.reads = (self._output,)
        if (count := width(runner, self._output, 2)) not in (None, 1):
            raise ModelError(
                f"{model.path} has {count} labels: only a model with one output for a pair of "
                f"texts puts documents in order"
            )

    def example(self) -> dict[str, Any]:
        documents = ["Mary flies to Lima on Friday.", "The soup was cold."]
        return {"query": "Who flies to Lima?", "documents": documents}

    def count(self, inputs: BaseModel) -> int:
        assert isinstance(inputs, RerankInput)
        return len(inputs.documents)

    def prepare(self, inputs: BaseModel) -> RerankJob:
        assert isinstance(inputs, RerankInput)
        job = RerankJob(
            truncate=self.may_cut(inputs),
            top_k=inputs.top_k or self.top_k,
            raw_scores=inputs.raw_scores,
        )
        query = self.text.ids(inputs.query)
        for i, document in enumerate(inputs.documents):
            pair = self.pair(job, query, self.text.ids(document), f"documents.{i}")
            job.items.append(pair)
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> RerankOutput:
        assert isinstance(job, RerankJob)
        x = np.array([output[self._output].reshape(-1)[0] for output in outputs], np.float64)
        scores = x if job.raw_scores else np.exp(-np.logaddexp(0.0, -x))
        order = best_first(x)[: job.top_k]
        return RerankOutput(
            ranking=[RankedDocument(index=int(i), score=float(scores[i])) for i in order]
        )
