"""A weight for each token of the vocabulary, from a masked language model: SPLADE."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sparsec.errors import InputError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate, output_named, width
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.sentence import Splade
from sparsec.serving.text import Text


class SparseVector(BaseModel):
    """What is not zero of a vector over the vocabulary."""

    indices: list[int] = Field(description="Ids of tokens, the greatest value first")
    values: list[float] = Field(description="Their values")
    tokens: list[str] = Field(description="The tokens")


class SparseEmbeddingInput(BaseModel):
    """Texts."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] = Field(
        validation_alias=AliasChoices("inputs", "sequences"), description="A text, or several"
    )
    truncate: Truncate = None


class SparseEmbeddingOutput(BaseModel):
    """A vector over the vocabulary for each text."""

    embeddings: list[SparseVector] = Field(description="For each text its vector")


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    assert isinstance(output, SparseEmbeddingOutput)
    return [
        [{"index": i, "value": value} for i, value in zip(row.indices, row.values, strict=True)]
        for row in output.embeddings
    ]


@Pipeline.register("sparse-embedding", task_aliases=["splade"])
class SparseEmbeddingPipeline(Pipeline):
    """Weights of the vocabulary's tokens for a text, by a masked language model (SPLADE).

    Of the files of sentence-transformers ``SpladePooling`` is obeyed; without, weights are
    ``log(1 + relu(logit))`` of the largest logit over the text's tokens.

    Args:
        top_k: values to keep of each text, the greatest; None: all that are not zero.
    """

    input_schema = SparseEmbeddingInput
    output_schema = SparseEmbeddingOutput
    score_fields = ()
    hub = HubForm(parameters={"top_k": "top_k"}, rows=_as_hub, nested=True)

    def __init__(
        self, model: ModelFiles, text: Text, runner: Runner, *, top_k: int | None = None
    ) -> None:
        super().__init__(model, text, runner)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, not {top_k}")
        self.top_k = top_k
        self.splade = model.sentence.splade or Splade()
        self._output = output_named(runner, "logits", rank=3)
        self.reads = (self._output,)
        width(runner, self._output, 3)

    def prepare(self, inputs: BaseModel) -> Job:
        assert isinstance(inputs, SparseEmbeddingInput)
        texts = [inputs.inputs] if isinstance(inputs.inputs, str) else inputs.inputs
        job = Job(truncate=self.may_cut(inputs))
        self.sequences(job, texts, "inputs")
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> SparseEmbeddingOutput:
        rows = [self._row(self.splade(output[self._output])) for output in outputs]
        return SparseEmbeddingOutput(embeddings=rows)

    def _row(self, weights: NDArray[np.float32]) -> SparseVector:
        found = np.flatnonzero(weights)
        best = found[np.argsort(-weights[found], kind="stable")][: self.top_k]
        tokens = [self.text.tokenizer.id_to_token(int(i)) or "" for i in best]
        values = weights[best]
        return SparseVector.model_construct(
            indices=best.tolist(), values=values if self.arrays else values.tolist(), tokens=tokens
        )
