"""One vector for a text, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainSerializer

from sparsec.errors import InputError, NonFiniteError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate, log_nonfinite
from sparsec.serving.pipelines.embedding_extraction import at_layer, choose, gives
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Features, Outputs, Runner
from sparsec.serving.sentence import Normalize, truncated, unit
from sparsec.serving.text import Text

# What an exporter calls the output that is pooled already.
POOLED = ("sentence_embedding", "sentence_embeddings")

# In plain data lists; in Python an array.
Vectors = Annotated[
    np.ndarray[Any, np.dtype[np.float32]], PlainSerializer(lambda x: x.tolist(), return_type=list)
]


class SentenceEmbeddingInput(BaseModel):
    """Texts, and what is put before them."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] = Field(
        validation_alias=AliasChoices("inputs", "sequences"), description="A text, or several"
    )
    prompt_name: str | None = Field(
        default=None, description="The model's prompt to put before each, such as query"
    )
    prompt: str | None = Field(default=None, description="What to put before each instead")
    dimensions: int | None = Field(
        default=None, ge=1, description="Elements of the vectors to keep, from the first"
    )
    normalize: bool | None = Field(
        default=None, description="Whether vectors are scaled to length 1; by default as the model"
    )
    truncate: Truncate = None


class SentenceEmbeddingTokens(SentenceEmbeddingInput):
    """Texts whose tokens somebody has made already, special ones included.

    Attributes:
        ids: for each text its tokens; None: they are made of `inputs`.
    """

    inputs: list[str]
    ids: list[list[int]] | None = None


class SentenceEmbeddingOutput(BaseModel):
    """The vectors, float32 ``[texts, dimensions]``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    embeddings: Vectors = Field(description="For each text its vector")


@dataclass
class SentenceEmbeddingJob(Job):
    """How many tokens of each item are the prompt's, and what is wanted of the vectors."""

    prompt: int = 0
    dimensions: int | None = None
    normalize: bool = False


def _from_hub(given: Any) -> Mapping[str, Any] | None:
    """A sentence and others to compare it with are texts as well."""
    if not isinstance(given, Mapping):
        return None
    source, others = given.get("source_sentence"), given.get("sentences")
    if set(given) != _SIMILARITY or not isinstance(source, str) or not isinstance(others, list):
        raise InputError(
            "inputs: a text, a list of texts, or an object of a source_sentence and a list of "
            "sentences"
        )
    return {"inputs": [source, *others]}


_SIMILARITY = {"source_sentence", "sentences"}


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    """Vectors; of a sentence and others, the cosine of each of these to it."""
    assert isinstance(output, SentenceEmbeddingOutput)
    vectors = output.embeddings
    if not isinstance(given, Mapping):
        return list(vectors)
    rows = unit(vectors)
    return [rows[1:] @ rows[0]]


@Pipeline.register("sentence-embedding", task_aliases=["sentence-similarity"])
class SentenceEmbeddingPipeline(Pipeline):
    """Vectors of texts that can be compared.

    What the files of sentence-transformers beside the model say is obeyed: ``modules.json`` and
    the folders that it names (pooling, dense layers, normalization), prompts, the greatest length.
    Without them, a model that has an output ``sentence_embedding`` gives that, and any other the
    mean of its tokens' states.

    Args:
        prompt_name: the prompt that is put before texts where a call names none.
        truncate_dim: elements of the vectors that are kept where a call says nothing.
        normalize: scale vectors to length 1, whatever the model's files say.

    Raises:
        InputError: there is no such prompt.
        ModelError: the model has no output that this can be made of.
    """

    input_schema = SentenceEmbeddingInput
    output_schema = SentenceEmbeddingOutput
    hub = HubForm(
        names=("feature-extraction", "sentence-similarity"),
        parameters={
            "normalize": "normalize", "prompt_name": "prompt_name", "prompt": "prompt",
            "dimensions": "dimensions",
        },
        fields=_from_hub,
        rows=_as_hub,
        nested=True,
    )  # fmt: skip

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(model, text, runner)
        self.settings = model.sentence
        self.settings.prompt(prompt_name)
        self.prompt_name = prompt_name
        self.truncate_dim = truncate_dim
        self.normalize = normalize
        pooled = [name for name in POOLED if name in runner.output_names]
        if pooled and not self.settings.given:
            self._output = pooled[0]
        else:
            self._output = choose(runner, -1)
        self.reads = (self._output,)

    @classmethod
    def adapt(cls, model: ModelFiles, **options: Any) -> ModelFiles:
        """Cut the model behind its last layer, unless it gives the vectors itself."""
        if model.is_artifact or (not model.sentence.given and gives(model.onnx, POOLED)):
            return model
        return at_layer(model, -1)

    def prepare(self, inputs: BaseModel) -> SentenceEmbeddingJob:
        assert isinstance(inputs, SentenceEmbeddingInput)
        texts = [inputs.inputs] if isinstance(inputs.inputs, str) else inputs.inputs
        before = self.settings.prompt(inputs.prompt_name or self.prompt_name, inputs.prompt)
        job = SentenceEmbeddingJob(
            truncate=self.may_cut(inputs),
            dimensions=inputs.dimensions or self.truncate_dim,
            normalize=self.normalize if inputs.normalize is None else inputs.normalize,
        )
        if before and not self.settings.pooling.include_prompt:
            job.prompt = self._prompt_tokens(before)
        if isinstance(inputs, SentenceEmbeddingTokens) and inputs.ids is not None:
            job.items += [self._given(job, ids, f"inputs.{i}") for i, ids in enumerate(inputs.ids)]
            return job
        self.sequences(job, [self._case(before + text) for text in texts], "inputs")
        return job

    def _given(self, job: Job, ids: list[int], where: str) -> Features:
        """Tokens as they are."""
        self.admit(job, len(ids), where)
        tokens = np.array(ids[: self.max_length], np.int64)
        if not tokens.size or tokens.min() < 0 or tokens.max() >= self.text.vocabulary:
            raise InputError(
                f"{where}: tokens must be ids from 0 to {self.text.vocabulary - 1}, at least one"
            )
        return self.text.features_of(tokens)

    def _case(self, text: str) -> str:
        return text.lower() if self.settings.lower else text

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens of a sequence that are the prompt's: special ones before it are, too."""
        joined = self.text.join(self.text.encode(self._case(prompt)))
        return len(joined) - int(joined.special_tokens_mask[-1])

    def conclude(
        self,
        jobs: Sequence[Job],
        outputs: list[Outputs],
        warn: Callable[[NonFiniteError], None] = log_nonfinite,
    ) -> list[BaseModel]:
        if self.on_nonfinite == "ignore" or not all(map(self._shows_all, jobs)):
            return super().conclude(jobs, outputs, warn)
        with np.errstate(over="ignore", invalid="ignore"):
            results = self._finished(jobs, outputs)
        vectors = [one.embeddings for one in results if isinstance(one, SentenceEmbeddingOutput)]
        if all(np.isfinite(x).all() for x in vectors):
            return results
        return super().conclude(jobs, outputs, warn)

    def _shows_all(self, job: Job) -> bool:
        """Whether vectors that are numbers say that all states are: then nobody has to look at
        those, which takes as long as to add them up."""
        assert isinstance(job, SentenceEmbeddingJob)
        settings = self.settings
        return (
            not job.prompt
            and job.dimensions is None
            and any(mode.startswith("mean") for mode in settings.pooling.modes)
            and all(isinstance(step, Normalize) for step in settings.steps)
        )

    def finish(self, job: Job, outputs: list[Outputs]) -> SentenceEmbeddingOutput:
        assert isinstance(job, SentenceEmbeddingJob)
        vectors = self.settings.vectors([output[self._output] for output in outputs], job.prompt)
        if outputs:
            vectors = truncated(vectors, job.dimensions, job.normalize)
        return SentenceEmbeddingOutput.model_construct(embeddings=vectors)
