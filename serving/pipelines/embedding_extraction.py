"""Vectors for texts, from a layer of the encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sparsec.errors import InputError, ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text

STRATEGIES = ("per_token", "reduce_mean", "reduce_max", "cls_token")


class EmbeddingExtractionInput(BaseModel):
    """Texts."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] = Field(
        validation_alias=AliasChoices("inputs", "sequences"), description="A text, or several"
    )


class EmbeddingExtractionOutput(BaseModel):
    """A vector for each text; a list of vectors, one a token, for per_token."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    embeddings: list[list[float]] | list[list[list[float]]] | list[np.ndarray[Any, Any]] = Field(
        description="For each text its vector, or the vectors of its tokens"
    )


@Pipeline.register(
    "transformers_embedding_extraction", task_aliases=["embedding_extraction", "embedding"]
)
class EmbeddingExtractionPipeline(Pipeline):
    """Embeddings.

    Args:
        emb_extraction_layer: index of the encoder layer to take, -1 for the last; the name of an
            ONNX node; or None for the model's first output as it is.  The model is cut there before
            it is compiled.
        extraction_strategy: ``per_token``: a vector for each token, special ones included;
            ``reduce_mean``, ``reduce_max``: over the tokens of the text, not the padding;
            ``cls_token``: that of the first token.
        normalize: scale vectors to length 1.
        return_numpy: numpy arrays instead of lists.

    Raises:
        InputError: an argument has a wrong value.
        ModelError: the model has no such layer, or is compiled already and cannot be cut.
    """

    input_schema = EmbeddingExtractionInput
    output_schema = EmbeddingExtractionOutput

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        emb_extraction_layer: int | str | None = -1,
        extraction_strategy: str = "per_token",
        normalize: bool = False,
        return_numpy: bool = False,
    ) -> None:
        super().__init__(model, text, runner)
        if extraction_strategy not in STRATEGIES:
            raise InputError(
                f"extraction_strategy must be one of {', '.join(STRATEGIES)}, "
                f"not {extraction_strategy!r}"
            )
        self.emb_extraction_layer = emb_extraction_layer
        self.extraction_strategy = extraction_strategy
        self.normalize = normalize
        self.return_numpy = return_numpy
        self._output = runner.output_names[0]
        self.reads = (self._output,)

    @classmethod
    def adapt(cls, model: ModelFiles, **options: Any) -> ModelFiles:
        """Cut the model at the layer."""
        from sparsec import cache

        layer = options.get("emb_extraction_layer", -1)
        if layer is None:
            return model
        if model.is_artifact:
            return _as_compiled(model, layer)
        file = cache.cut(model.path, layer)
        return model if file == model.onnx else replace(model, path=file)

    def prepare(self, inputs: BaseModel) -> Job:
        assert isinstance(inputs, EmbeddingExtractionInput)
        texts = [inputs.inputs] if isinstance(inputs.inputs, str) else inputs.inputs
        job = Job()
        for text in texts:
            encoding = self.text.fit(self.text.encode(text), self.max_length)
            job.items.append(self.text.features(encoding))
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> EmbeddingExtractionOutput:
        vectors = [self._pool(output[self._output]) for output in outputs]
        return EmbeddingExtractionOutput.model_construct(
            embeddings=vectors if self.return_numpy else [vector.tolist() for vector in vectors]
        )

    def _pool(self, hidden: NDArray[Any]) -> NDArray[np.float32]:
        """[tokens, channels] -> [channels], or as it is; a vector stays one."""
        x = np.asarray(hidden, np.float32)
        if x.ndim == 2 and self.extraction_strategy != "per_token":
            if self.extraction_strategy == "cls_token":
                x = x[0]
            elif self.extraction_strategy == "reduce_max":
                x = x.max(axis=0)
            else:
                x = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        if self.normalize:
            length = np.linalg.norm(x, axis=-1, keepdims=True)
            x = x / np.maximum(length, np.finfo(np.float32).tiny)
        return np.ascontiguousarray(x)


def _as_compiled(model: ModelFiles, layer: int | str) -> ModelFiles:
    """An artifact cannot be cut: it must give hidden states already."""
    from sparsec.runtime import Artifact

    first = Artifact.load(model.path, verify=False).outputs[0]
    if layer == -1 and len(first.shape) == 3 and "logits" not in first.name.lower():
        return model
    raise ModelError(
        f"{model.path} is compiled already and gives {first}: it cannot be cut at layer {layer}. "
        f"Give the ONNX model, or emb_extraction_layer=None for the output as it is"
    )
