"""Tasks: text in, typed predictions out.  One file a task; importing this registers them all."""

from __future__ import annotations

from sparsec.errors import InputError

try:
    import pydantic  # noqa: F401
    import tokenizers  # noqa: F401
except ModuleNotFoundError as missing:
    raise InputError(
        f"pipelines need {missing.name}, which is not installed: pip install 'sparsec[text]'"
    ) from None

from sparsec.serving.pipelines.base import Features, Job, Outputs, Pipeline, Runner, tasks
from sparsec.serving.pipelines.embedding_extraction import (
    EmbeddingExtractionInput,
    EmbeddingExtractionOutput,
    EmbeddingExtractionPipeline,
)
from sparsec.serving.pipelines.fill_mask import (
    FillMaskInput,
    FillMaskOutput,
    FillMaskPipeline,
    FillMaskResult,
)
from sparsec.serving.pipelines.question_answering import (
    QuestionAnsweringInput,
    QuestionAnsweringOutput,
    QuestionAnsweringPipeline,
)
from sparsec.serving.pipelines.rerank import RerankInput, RerankOutput, RerankPipeline
from sparsec.serving.pipelines.sentence_embedding import (
    SentenceEmbeddingInput,
    SentenceEmbeddingOutput,
    SentenceEmbeddingPipeline,
)
from sparsec.serving.pipelines.sparse_embedding import (
    SparseEmbeddingInput,
    SparseEmbeddingOutput,
    SparseEmbeddingPipeline,
)
from sparsec.serving.pipelines.text_classification import (
    TextClassificationInput,
    TextClassificationOutput,
    TextClassificationPipeline,
)
from sparsec.serving.pipelines.token_classification import (
    TokenClassificationInput,
    TokenClassificationOutput,
    TokenClassificationPipeline,
    TokenClassificationResult,
)
from sparsec.serving.pipelines.zero_shot_text_classification import (
    ZeroShotTextClassificationInput,
    ZeroShotTextClassificationOutput,
    ZeroShotTextClassificationPipeline,
)

__all__ = [
    "EmbeddingExtractionInput",
    "EmbeddingExtractionOutput",
    "EmbeddingExtractionPipeline",
    "Features",
    "FillMaskInput",
    "FillMaskOutput",
    "FillMaskPipeline",
    "FillMaskResult",
    "Job",
    "Outputs",
    "Pipeline",
    "QuestionAnsweringInput",
    "QuestionAnsweringOutput",
    "QuestionAnsweringPipeline",
    "RerankInput",
    "RerankOutput",
    "RerankPipeline",
    "Runner",
    "SentenceEmbeddingInput",
    "SentenceEmbeddingOutput",
    "SentenceEmbeddingPipeline",
    "SparseEmbeddingInput",
    "SparseEmbeddingOutput",
    "SparseEmbeddingPipeline",
    "TextClassificationInput",
    "TextClassificationOutput",
    "TextClassificationPipeline",
    "TokenClassificationInput",
    "TokenClassificationOutput",
    "TokenClassificationPipeline",
    "TokenClassificationResult",
    "ZeroShotTextClassificationInput",
    "ZeroShotTextClassificationOutput",
    "ZeroShotTextClassificationPipeline",
    "tasks",
]
