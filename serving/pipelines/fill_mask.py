"""Words for the place that a text leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sparsec.errors import InputError, ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate, output_named, softmax, width
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text


class FillMaskInput(BaseModel):
    """Texts with mask tokens."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] = Field(
        validation_alias=AliasChoices("inputs", "sequences"),
        description="A text with the tokenizer's mask token, or several",
    )
    truncate: Truncate = None


class FillMaskResult(BaseModel):
    """One token for a mask."""

    score: float = Field(description="Its probability")
    token: int = Field(description="Its id")
    token_str: str = Field(description="The token")
    sequence: str = Field(description="The text with the token in place")


class FillMaskOutput(BaseModel):
    """The best tokens of each text; of each of its masks, if it has several."""

    predictions: list[list[FillMaskResult] | list[list[FillMaskResult]]] = Field(
        description="For each text, tokens from the best; a list for each mask if there are several"
    )


@dataclass
class FillMaskJob(Job):
    """The ids of each text and where its masks are."""

    ids: list[list[int]] = field(default_factory=list)
    masks: list[list[int]] = field(default_factory=list)


@Pipeline.register("fill-mask", task_aliases=["masked-language-modeling"])
class FillMaskPipeline(Pipeline):
    """Tokens in place of masks.

    Args:
        top_k: tokens to return for each mask.
        targets: the only tokens to choose from; of one that the tokenizer splits, its first piece.

    Raises:
        InputError: `top_k` is below 1, or a target is no token.
        ModelError: the tokenizer has no mask token.
    """

    input_schema = FillMaskInput
    output_schema = FillMaskOutput
    hub = HubForm(parameters={"top_k": "top_k", "targets": "targets"})

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, text, runner)
        if top_k < 1:
            raise InputError(f"top_k must be at least 1, not {top_k}")
        if text.special_id("mask") is None:
            raise ModelError(f"{model.tokenizer} has no mask token: it is not for this task")
        self.top_k = top_k
        self.targets = None if targets is None else self._tokens(targets)
        self._output = output_named(runner, "logits", rank=3)
        self.reads = (self._output,)
        width(runner, self._output, 3)

    def _tokens(self, targets: str | Sequence[str]) -> NDArray[np.int64]:
        """Ids of tokens, each once.

        Raises:
            InputError: there are none, or one has no tokens.
        """
        ids = []
        for target in [targets] if isinstance(targets, str) else targets:
            known = self.text.tokenizer.token_to_id(target)
            pieces = [known] if known is not None else self.text.ids(target).tolist()
            if not pieces:
                raise InputError(f"targets: {target!r} is no token")
            ids.append(pieces[0])
        if not ids:
            raise InputError("targets: there are none")
        return np.unique(np.array(ids, np.int64))

    def example(self) -> dict[str, Any]:
        return {"inputs": f"Paris is the {self.text.specials['mask']} of France."}

    def prepare(self, inputs: BaseModel) -> FillMaskJob:
        assert isinstance(inputs, FillMaskInput)
        texts = [inputs.inputs] if isinstance(inputs.inputs, str) else inputs.inputs
        job = FillMaskJob(truncate=self.may_cut(inputs))
        for i, text in enumerate(texts):
            encoding = self.fit(job, self.text.encode(text), f"inputs.{i}")
            masks = [k for k, n in enumerate(encoding.ids) if n == self.text.special_id("mask")]
            if not masks:
                raise InputError(
                    f"inputs.{i}: there is no {self.text.specials['mask']} in the first "
                    f"{self.max_length} tokens"
                )
            job.ids.append(encoding.ids)
            job.masks.append(masks)
            job.items.append(self.text.features(encoding))
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> FillMaskOutput:
        assert isinstance(job, FillMaskJob)
        predictions: list[list[FillMaskResult] | list[list[FillMaskResult]]] = []
        for ids, masks, output in zip(job.ids, job.masks, outputs, strict=True):
            rows = []
            for mask in masks:
                scores = softmax(output[self._output][mask])
                row = []
                for token in self._chosen(scores):
                    filled = [*ids[:mask], token, *ids[mask + 1 :]]
                    # Other masks are special tokens too, and stay visible.
                    row.append(
                        FillMaskResult(
                            score=float(scores[token]),
                            token=token,
                            token_str=self.text.decode([token]),
                            sequence=self.text.decode(filled, skip_special_tokens=len(masks) == 1),
                        )
                    )
                rows.append(row)
            predictions.append(rows[0] if len(rows) == 1 else rows)
        return FillMaskOutput(predictions=predictions)

    def _chosen(self, scores: NDArray[np.float64]) -> list[int]:
        if self.targets is None:
            return _best(scores, self.top_k)
        return [int(self.targets[i]) for i in _best(scores[self.targets], self.top_k)]


def _best(scores: NDArray[np.float64], count: int) -> list[int]:
    """Indices of the highest, best first."""
    count = min(count, len(scores))
    found = np.argpartition(-scores, count - 1)[:count]
    best: list[int] = found[np.lexsort((found, -scores[found]))].tolist()
    return best
