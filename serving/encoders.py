"""The classes that users of sentence-transformers know, on compiled models."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError, ModelError
from sparsec.serving.pipelines.base import Pipeline, softmax
from sparsec.serving.pipelines.sentence_embedding import (
    SentenceEmbeddingInput,
    SentenceEmbeddingPipeline,
)
from sparsec.serving.pipelines.text_classification import (
    TextClassificationInput,
    TextClassificationPipeline,
)
from sparsec.serving.runner import Features, Outputs
from sparsec.serving.sentence import similarity

Vectors = NDArray[np.float32]

# Sequences whose tokens are held at once: they are sorted by length, so that batches are even.
WINDOW = 8192


class _Model:
    """What both classes share: a pipeline that runs many texts in batches."""

    pipeline: Pipeline

    def close(self) -> None:
        """Give up the model.  Later calls raise EngineClosedError."""
        self.pipeline.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def max_seq_length(self) -> int:
        """Tokens of the longest text, special ones included."""
        return self.pipeline.max_length

    def _infer(self, items: Sequence[Features], batch_size: int) -> Iterator[tuple[int, Outputs]]:
        """(index, outputs) of all items, in batches of similar lengths."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        order = sorted(range(len(items)), key=lambda i: -items[i].length)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield from zip(
                batch, self.pipeline.runner.infer([items[i] for i in batch]), strict=True
            )


class SentenceTransformer(_Model):
    """Vectors of texts, as the class of this name in sentence-transformers makes them.

    >>> model = SentenceTransformer("all-MiniLM-L6-v2.sparsec")             # doctest: +SKIP
    >>> model.encode(["Mary lives in Nairobi", "The soup was cold"]).shape  # doctest: +SKIP
    (2, 384)

    Args:
        model_name_or_path: an artifact, a folder with an ONNX model, an .onnx file, or
            ``hf:org/name``, as for :meth:`Pipeline.create`.
        prompts: prompts by name, beside those of the model's files.
        default_prompt_name: the one that is put before texts where a call names none.
        truncate_dim: elements of the vectors that are kept.
        similarity_fn_name: ``cosine``, ``dot``, ``euclidean`` or ``manhattan``; None: as the
            model's files say.
        truncate: cut texts that are too long, which sentence-transformers does without a word;
            False: TooLongError.
        options: `sequence_length`, `num_cores`, `engine_type` and others of
            :meth:`Pipeline.create`.

    Raises:
        InputError, ModelError: as for :meth:`Pipeline.create`.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        similarity_fn_name: str | None = None,
        truncate: bool = False,
        **options: Any,
    ) -> None:
        from sparsec.serving.sentence import SIMILARITIES

        if similarity_fn_name not in (None, *SIMILARITIES):
            raise InputError(
                f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}, "
                f"not {similarity_fn_name!r}"
            )
        made = Pipeline.create(
            SentenceEmbeddingPipeline,
            model_name_or_path,
            truncate=truncate,
            truncate_dim=truncate_dim,
            **options,
        )
        assert isinstance(made, SentenceEmbeddingPipeline)
        self.pipeline: SentenceEmbeddingPipeline = made
        self.prompts = {**made.settings.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or made.settings.default_prompt
        if self.default_prompt_name is not None:
            self._prompt(self.default_prompt_name)
        self.similarity_fn_name = similarity_fn_name or made.settings.similarity

    def get_sentence_embedding_dimension(self) -> int:
        """Elements of a vector."""
        return int(self.encode("a").shape[-1])

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """The vectors of texts.

        Args:
            sentences: a text, or several.
            prompt_name: the prompt to put before each; None: the default one.
            prompt: what to put before each instead.
            batch_size: texts that run together.
            show_progress_bar: with tqdm, which must be installed.
            convert_to_numpy: an array; False: a list of them.
            convert_to_tensor: a torch tensor instead.
            normalize_embeddings: scale vectors to length 1, whatever the model does.
            truncate_dim: elements to keep, from the first.

        Returns:
            float32 ``[texts, dimensions]``; ``[dimensions]`` for a single text.

        Raises:
            InputError: there is no such prompt, or fewer dimensions.
            TooLongError: a text has too many tokens, and `truncate` is off.
        """
        if not isinstance(sentences, Iterable):
            raise InputError(f"sentences must be a text or several, not {sentences!r}")
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            raise InputError(f"sentences.{wrong[0]} is no text but {texts[wrong[0]]!r}")
        before = prompt if prompt is not None else self._prompt(prompt_name)
        rows: list[Vectors] = []
        with _bar(show_progress_bar, len(texts), "texts") as step:
            for start in range(0, len(texts), WINDOW):
                part = SentenceEmbeddingInput.model_construct(
                    inputs=texts[start : start + WINDOW],
                    prompt=before,
                    dimensions=truncate_dim,
                    normalize=normalize_embeddings,
                )
                job = self.pipeline.prepare(part)
                found: list[Outputs] = [{}] * len(job.items)
                for i, outputs in self._infer(job.items, batch_size):
                    found[i] = outputs
                    step(1)
                rows.append(self.pipeline.finish(job, found).embeddings)
        vectors = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
        answer = vectors[0] if isinstance(sentences, str) else vectors
        if convert_to_tensor:
            return _torch().from_numpy(answer)
        return answer if convert_to_numpy or isinstance(sentences, str) else list(answer)

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """The same as :meth:`encode`, with the prompt ``query`` where the model has one."""
        return self.encode(sentences, **{**self._for("query"), **options})

    def encode_document(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """The same as :meth:`encode`, with the prompt ``document``, ``passage`` or ``corpus``
        where the model has one."""
        return self.encode(sentences, **{**self._for("document", "passage", "corpus"), **options})

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Vectors:
        """How alike vectors ``[n, dimensions]`` and ``[m, dimensions]`` are: float32 ``[n, m]``."""
        return similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Vectors:
        """The same of each vector and that of equal index: float32 ``[n]``."""
        one, two = (np.atleast_2d(np.asarray(x, np.float32)) for x in (embeddings1, embeddings2))
        if one.shape != two.shape:
            raise InputError(f"vectors of shapes {one.shape} and {two.shape} are no pairs")
        pairs = [
            similarity(self.similarity_fn_name, a, b)[0, 0] for a, b in zip(one, two, strict=True)
        ]
        return np.array(pairs, np.float32)

    def _for(self, *names: str) -> dict[str, str]:
        return next(({"prompt_name": name} for name in names if name in self.prompts), {})

    def _prompt(self, name: str | None) -> str:
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise InputError(
                f"prompt_name: there is no prompt {name!r}; there are "
                f"{', '.join(self.prompts) or 'none'}"
            )
        return self.prompts[name]


class CrossEncoder(_Model):
    """Scores of pairs of texts, as the class of this name in sentence-transformers gives them.

    Args:
        model_name_or_path: as for :class:`SentenceTransformer`; a text classifier.
        activation_fn: what is applied to a pair's outputs, ``[labels]`` each; None: what
            config.json says; else a sigmoid if there is one output, nothing if there are several.
        truncate: cut pairs that are too long, the longer text first; False: TooLongError.
        options: of :meth:`Pipeline.create`.

    Raises:
        InputError, ModelError: as for :meth:`Pipeline.create`.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        activation_fn: Callable[[NDArray[np.float64]], NDArray[Any]] | None = None,
        truncate: bool = False,
        **options: Any,
    ) -> None:
        made = Pipeline.create(
            TextClassificationPipeline, model_name_or_path, truncate=truncate, **options
        )
        assert isinstance(made, TextClassificationPipeline)
        self.pipeline: TextClassificationPipeline = made
        self.activation_fn = activation_fn or _activation(made.model.config)

    def predict(
        self,
        sentences: Sequence[Any],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        activation_fn: Callable[[NDArray[np.float64]], NDArray[Any]] | None = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Scores of pairs.

        Args:
            sentences: pairs of texts, or one pair.
            batch_size: pairs that run together.
            show_progress_bar: with tqdm, which must be installed.
            activation_fn: instead of the model's.
            apply_softmax: over the labels, after the activation.
            convert_to_numpy: an array; False: a list.
            convert_to_tensor: a torch tensor instead.

        Returns:
            float32 ``[pairs]``, ``[pairs, labels]`` if the model has several; without the first
            axis for one pair.

        Raises:
            InputError: they are no pairs.
            TooLongError: one has too many tokens, and `truncate` is off.
        """
        if isinstance(sentences, str) or not isinstance(sentences, Iterable):
            raise InputError(f"sentences must be pairs of texts, not {sentences!r}")
        sentences = list(sentences)
        single = bool(sentences) and isinstance(sentences[0], str)
        pairs = [sentences] if single else sentences
        given = [_pair(i, pair) for i, pair in enumerate(pairs)]
        rows: list[NDArray[np.float64]] = [np.zeros(1)] * len(given)
        output = self.pipeline.reads[0]
        with _bar(show_progress_bar, len(given), "pairs") as step:
            for start in range(0, len(given), WINDOW):
                part = TextClassificationInput.model_construct(
                    sequences=given[start : start + WINDOW]
                )
                job = self.pipeline.prepare(part)
                for i, outputs in self._infer(job.items, batch_size):
                    rows[start + i] = np.asarray(outputs[output], np.float64).reshape(-1)
                    step(1)
        activate = activation_fn or self.activation_fn
        scores = np.array([self._score(row, activate, apply_softmax) for row in rows], np.float32)
        if scores.ndim == 2 and scores.shape[1] == 1:
            scores = scores[:, 0]
        answer = scores[0] if single else scores
        if convert_to_tensor:
            return _torch().from_numpy(np.asarray(answer))
        return answer if convert_to_numpy or single else list(answer)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Documents by their score beside a query, the best first.

        Args:
            query: a text.
            documents: texts.
            top_k: how many to return; None: all.
            return_documents: whether rows have the text, too.
            options: of :meth:`predict`.

        Returns:
            Rows of ``corpus_id`` (index of the document), ``score``, and ``text`` if asked.

        Raises:
            ModelError: the model has several labels: their scores are no order.
            InputError: as for :meth:`predict`.
        """
        if not len(documents):
            return []
        scores = self.predict([(query, document) for document in documents], **options)
        scores = np.asarray(scores)
        if scores.ndim != 1:
            raise ModelError(
                f"{self.pipeline.model.path} has {scores.shape[1]} labels: only a model with one "
                f"ranks documents"
            )
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [
            {
                "corpus_id": int(i),
                "score": float(scores[i]),
                **({"text": documents[i]} if return_documents else {}),
            }
            for i in order
        ]

    @staticmethod
    def _score(
        row: NDArray[np.float64],
        activate: Callable[[NDArray[np.float64]], NDArray[Any]],
        apply_softmax: bool,
    ) -> NDArray[Any]:
        found = np.asarray(activate(row))
        return softmax(found) if apply_softmax and found.size > 1 else found


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -x))
    return found


# By the last part of the name of torch's class.
_ACTIVATIONS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "Identity": lambda x: x,
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
}


def _activation(
    config: Mapping[str, Any],
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """What a cross encoder's config.json says is applied to its outputs.

    Raises:
        ModelError: that is not known.
    """
    said = config.get("sentence_transformers")
    name = said.get("activation_fn") if isinstance(said, Mapping) else None
    name = name or config.get("sbert_ce_default_activation_function")
    if name is None:
        return lambda x: _sigmoid(x) if x.size == 1 else x
    known = _ACTIVATIONS.get(str(name).rpartition(".")[2])
    if known is None:
        raise ModelError(
            f"config.json: the activation {name} is not known; there are "
            f"{', '.join(_ACTIVATIONS)}; or give activation_fn"
        )
    return known


def _pair(index: int, given: Any) -> list[str]:
    pair = isinstance(given, Collection) and not isinstance(given, str)
    if not pair or len(given) != 2 or not all(isinstance(t, str) for t in given):
        raise InputError(f"sentences.{index}: a pair of texts is needed, not {given!r}")
    return list(given)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise InputError("convert_to_tensor needs torch: pip install torch") from None
    return torch


class _bar:
    """A progress bar, or nothing; a context manager that gives what counts on."""

    def __init__(self, shown: bool | None, total: int, unit: str) -> None:
        self._bar: Any = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise InputError("show_progress_bar needs tqdm: pip install tqdm") from None
            self._bar = tqdm(total=total, unit=unit)

    def __enter__(self) -> Callable[[int], Any]:
        return self._bar.update if self._bar is not None else lambda count: None

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
