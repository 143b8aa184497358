"""Vectors for texts, from a layer of the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sparsec.arguments import setting
from sparsec.errors import InputError, ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.sentence import unit
from sparsec.serving.text import Text

# What exporters call the outputs that are embeddings.
_NAMES = frozenset([
    "embeddings", "hidden_states", "last_hidden_state", "pooler_output", "sentence_embedding",
    "sentence_embeddings", "token_embeddings",
])  # fmt: skip

STRATEGIES = ("per_token", "reduce_mean", "reduce_max", "cls_token")


class EmbeddingExtractionInput(BaseModel):
    """Texts."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] = Field(
        validation_alias=AliasChoices("inputs", "sequences"), description="A text, or several"
    )
    truncate: Truncate = None


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
            ONNX node, tensor or output; or None for the model's own output as it is: the first one
            with a usual name, such as last_hidden_state or sentence_embedding, or the only one
            that can be.  The model is cut there before it is compiled.
        extraction_strategy: ``per_token``: a vector for each token, special ones included;
            ``reduce_mean``, ``reduce_max``: over the tokens of the text, not the padding;
            ``cls_token``: that of the first token; None: what the files of sentence-transformers
            beside the model say (pooling, dense layers, normalization), and ``per_token`` if there
            are none.
        normalize: scale vectors to length 1.
        return_numpy: numpy arrays instead of lists.

    Raises:
        InputError: an argument has a wrong value.
        ModelError: the model has no such layer, or is compiled already and cannot be cut, or has
            several outputs of which none is known to be embeddings.
    """

    input_schema = EmbeddingExtractionInput
    output_schema = EmbeddingExtractionOutput
    hub = HubForm(names=("feature-extraction",), parameters={"normalize": "normalize"}, nested=True)

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        emb_extraction_layer: int | str | None = -1,
        extraction_strategy: str | None = None,
        normalize: bool = False,
        return_numpy: bool = False,
    ) -> None:
        super().__init__(model, text, runner)
        if extraction_strategy is None and not model.sentence.given:
            extraction_strategy = "per_token"
        if extraction_strategy not in (None, *STRATEGIES):
            raise InputError(
                f"extraction_strategy must be one of {', '.join(STRATEGIES)}, "
                f"not {extraction_strategy!r}"
            )
        self.emb_extraction_layer = emb_extraction_layer
        self.extraction_strategy = extraction_strategy
        self.normalize = normalize
        self.return_numpy = return_numpy
        self._output = choose(runner, emb_extraction_layer)
        self.reads = (self._output,)

    @classmethod
    def adapt(cls, model: ModelFiles, **options: Any) -> ModelFiles:
        """Cut the model at the layer."""
        return at_layer(model, options.get("emb_extraction_layer", -1))

    def prepare(self, inputs: BaseModel) -> Job:
        assert isinstance(inputs, EmbeddingExtractionInput)
        texts = [inputs.inputs] if isinstance(inputs.inputs, str) else inputs.inputs
        job = Job(truncate=self.may_cut(inputs))
        self.sequences(job, texts, "inputs")
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> EmbeddingExtractionOutput:
        vectors = [self._pool(output[self._output]) for output in outputs]
        return EmbeddingExtractionOutput.model_construct(
            embeddings=vectors
            if self.return_numpy or self.arrays
            else [v.tolist() for v in vectors]
        )

    def _pool(self, hidden: NDArray[Any]) -> NDArray[np.float32]:
        """[tokens, channels] -> [channels], or as it is; a vector stays one."""
        x = np.asarray(hidden, np.float32)
        if self.extraction_strategy is None:
            x = self.model.sentence.vector(x)
        elif x.ndim == 2 and self.extraction_strategy != "per_token":
            if self.extraction_strategy == "cls_token":
                x = x[0]
            elif self.extraction_strategy == "reduce_max":
                x = x.max(axis=0)
            else:
                x = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.ascontiguousarray(unit(x) if self.normalize else x)


def at_layer(model: ModelFiles, layer: int | str | None) -> ModelFiles:
    """The model cut at a layer; an artifact as it is, if it gives what is wanted.

    Raises:
        ModelError: there is no such layer, or an artifact does not give it.
    """
    from sparsec import cache

    if layer is None:
        return model
    if model.is_artifact:
        _as_compiled(model, layer)
        return model
    try:
        file = cache.cut(model.path, layer)
    except ModelError:
        # What the model gives itself needs no layers that are known.
        if layer == -1 and _hidden_states(_outputs(model.onnx)):
            return model
        raise
    return model if file == model.onnx else replace(model, path=file)


def _as_compiled(model: ModelFiles, layer: int | str) -> None:
    """An artifact cannot be cut: it must give what is wanted already.

    Raises:
        ModelError: it does not.
    """
    from sparsec.runtime import Artifact

    outputs = Artifact.load(model.path, verify=False).outputs
    if any(output.name == layer for output in outputs):
        return
    known = {output.name: _Known(output.shape, np.dtype(output.dtype)) for output in outputs}
    if layer != -1 or not _hidden_states(known):
        raise ModelError(
            f"{model.path} is compiled already and gives "
            f"{', '.join(str(output) for output in outputs)}: it cannot be cut at layer {layer}. "
            f"Give the ONNX model, or {setting('emb_extraction_layer', None, option=True)} for the "
            f"output as it is"
        )


def _outputs(file: Path) -> dict[str, _Known]:
    """The outputs of an ONNX model."""
    from sparsec.compiler import frontend

    outputs = frontend.signature(frontend.load_model(file)).outputs
    return {output.name: _Known(output.shape, np.dtype(output.dtype)) for output in outputs}


def gives(file: Path, names: Sequence[str]) -> bool:
    """Whether an ONNX model has an output with one of these names."""
    return not set(names).isdisjoint(_outputs(file))


@dataclass(frozen=True)
class _Known:
    """Shape and element type of an output, as far as they are known."""

    shape: Sequence[int | str] | None
    dtype: np.dtype[Any] | None


def _floats(outputs: Mapping[str, _Known], ranks: Sequence[int]) -> list[str]:
    """Outputs of floating-point numbers and one of these ranks, in order."""
    return [
        name
        for name, known in outputs.items()
        if (known.dtype is None or known.dtype.kind == "f")
        and (known.shape is None or len(known.shape) in ranks)
    ]


def _hidden_states(outputs: Mapping[str, _Known]) -> list[str]:
    """Outputs that may be the last hidden state: the one that is called so, if there is one."""
    found = [name for name in _floats(outputs, (3,)) if "logits" not in name.lower()]
    return [name for name in found if name in _NAMES][:1] or found


def choose(runner: Runner, layer: int | str | None) -> str:
    """The output that has the embeddings.

    Raises:
        ModelError: none can be, or several.
    """
    names = runner.output_names
    if isinstance(layer, str) and layer in names:
        return layer
    shapes, types = runner.output_shapes, runner.output_types
    outputs = {name: _Known(shapes.get(name), types.get(name)) for name in names}
    found = _floats(outputs, (2, 3))
    if layer == -1 and len(names) > 1:  # a model that is not cut
        found = _hidden_states(outputs)
    usual = [name for name in found if name in _NAMES]
    tokens = [name for name in found if name in _floats(outputs, (3,))]
    for candidates in (usual[:1], found, tokens):
        if len(candidates) == 1:
            return candidates[0]
    listed = ", ".join(
        f"{name} {known.dtype or ''}[{', '.join(map(str, known.shape or ('?',)))}]"
        for name, known in outputs.items()
        if name in (found or names)
    )
    raise ModelError(
        f"the model has several outputs that may be embeddings: {listed}; name one of them as "
        f"{setting('emb_extraction_layer', option=True)}"
        if found
        else f"no output of the model can be embeddings: {listed}"
    )
